"""Pruned models in integers: quantized after training, or trained with what integers round (weights of 8 or 4 bits)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from evort.graph import Model
from evort_tools.pruning.schedule import apply
from evort_tools.pruning.training import Training
from evort_tools.quantization.options import Options

QUANTIZATIONS = ("static", "qat")
BITS = (8, 4)
_MOST = 7  # of a symmetric number of 4 bits


def quantized(
    model: Model, training: Training, how: str, bits: int, masks: Mapping[str, np.ndarray], step: Callable[[], None]
) -> Model:
    """The integer model of a float one that was pruned, as whole numbers of int8. how: see QUANTIZATIONS; masks: what
    stays zero while it is trained."""
    if how == "static" and bits == 8:
        from evort_tools.quantize import quantize_model

        # By size, so that it does not depend on measured times what becomes an integer; in 8 bits throughout, as the
        # kernels that skip zeros take no int16.
        options = Options(prefer="size", wide_activations="off", threads=training.threads)
        return quantize_model(model, training.calibration(model), options).model
    from evort_tools import qat

    options = qat.Options(bits=bits, threads=training.threads, seed=training.seed, samples=256)
    graph = qat.build(model, training.batches, options)
    if how == "static":
        return graph.integer(graph.model)
    trainer = training.trainer(graph.model, training.epochs * len(training.batches), qat._fixed(graph))
    for epoch in range(training.epochs):
        for batch in training.batches.epoch(epoch):
            trainer.step(batch)
            apply(trainer.parameters, masks)
        step()
    return graph.integer(trainer.model())
