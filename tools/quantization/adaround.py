"""AdaRound: whether each weight is rounded up or down is chosen for the layer's output, not for the weight.

Nagel et al., "Up or Down? Adaptive Rounding for Post-Training Quantization" (ICML 2020). What rounding errors E do to a
layer's output on average is, for each output channel, the quadratic form

    E[(e x)^2] = e H e^T,    H = E[x x^T]

over calibration samples (section 3.2 of the paper, for the layer's own output). Each weight is one of its two
neighbours, so this is quadratic binary optimization; the paper relaxes it and descends the gradient. Here it is solved
by descent over the weights themselves: one column after the other takes the other neighbour in all channels in which
that lowers the error, round after round until nothing does. It starts from rounding to nearest and never gets worse.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np

from evort.graph import Model, Node
from evort.quant import limits
from evort.types import DType
from evort_tools.quantization.capture import observe
from evort_tools.quantization.encodings import Encoding
from evort_tools.quantization.equalize import readers_of
from evort_tools.quantization.gptq import Hessian
from evort_tools.quantization.weighted import Layer, layer_of

ROUNDS = 12
LIMIT = 1 << 24  # bytes of H that are collected in one pass over the data
WORK = 1 << 28  # multiplications of one round of descent (channels * k * k) beyond which a layer is left alone


def round_rows(
    rows: np.ndarray, scale: np.ndarray, h: np.ndarray, dtype: DType = DType.INT8, rounds: int = ROUNDS
) -> np.ndarray:
    """The integers for weights `rows` [n, k], float64 [n, k], in the symmetric range of `dtype`.

    scale: [n], or one for all. h: [k, k], the sum of x x^T over inputs x; where an input never differs from zero,
    rounding is to nearest.
    """
    low, high = limits(dtype, narrow=True)
    scaled = rows.astype(np.float64) / np.asarray(scale, np.float64).reshape(-1, 1)
    q = np.clip(np.rint(scaled), low, high)
    other = np.clip(np.where(q > scaled, np.floor(scaled), np.ceil(scaled)), low, high)
    diagonal = np.diag(h)
    error = q - scaled  # in steps; the scale is the same for all of a channel's weights
    slope = error @ h
    for _ in range(rounds):
        changed = 0
        for j in np.nonzero(diagonal > 0)[0]:
            step = other[:, j] - q[:, j]
            gain = step * (2 * slope[:, j] + step * diagonal[j])
            take = np.nonzero((gain < 0) & (step != 0))[0]
            if len(take):
                q[take, j], other[take, j] = other[take, j], q[take, j]
                slope[take] += step[take, None] * h[j]
                changed += len(take)
        if not changed:
            break
    return q


def error_of(q: np.ndarray, rows: np.ndarray, scale: np.ndarray, h: np.ndarray) -> float:
    """What integers do to the layer's output: the sum of e H e^T over its channels."""
    step = np.asarray(scale, np.float64).reshape(-1, 1)
    e = q * step - rows
    return float(np.sum((e @ h) * e))


def adaround(
    model: Model,
    nodes: Iterable[Node],
    encodings: Mapping[str, Encoding],
    samples: Iterable[Mapping[str, np.ndarray]],
    threads: int | None = None,
    progress: Callable[[], None] | None = None,
) -> dict[str, np.ndarray]:
    """{name of a constant: weights, already rounded to the grid of its encoding} for convolutions, Gemm and MatMul.

    The samples run through the float model. Layers whose H would be larger than `LIMIT` bytes, or which would
    take more than `WORK`, are left to rounding to nearest, as are weights that several nodes read.
    """
    readers = readers_of(model.graph)
    chosen: list[tuple[Layer, Hessian]] = []
    for node in nodes:
        layer = layer_of(model.graph, node)
        if layer is None or layer.weight not in encodings or node.op not in ("Conv", "Gemm", "MatMul"):
            continue
        k, groups = layer.rows.shape[1], node.attrs.get("group", 1)
        small = groups * k * k * 8 <= LIMIT and layer.rows.size * k <= WORK
        if len(readers[layer.weight]) == 1 and small:
            chosen.append((layer, Hessian(layer)))
    rounded: dict[str, np.ndarray] = {}
    samples = list(samples)
    for part in _parts(chosen):
        observers: dict[str, _All] = {}
        for layer, hessian in part:
            observers.setdefault(layer.input(0), _All()).append(hessian)
        observe(model, samples, observers, threads)
        for layer, hessian in part:
            w, rows, encoding = model.graph.constant(layer.weight), layer.rows, encodings[layer.weight]
            scale = np.broadcast_to(encoding.scale.reshape(-1), (len(rows),))
            each = np.split(np.arange(len(rows)), hessian.groups)
            q = np.concatenate(
                [round_rows(rows[i], scale[i], h, encoding.dtype) for i, h in zip(each, hessian.sum, strict=True)]
            )
            real = (q * scale[:, None]).astype(np.float32)
            rounded[layer.weight] = np.ascontiguousarray(real.T if layer.columns else real.reshape(w.shape))
            if progress is not None:
                progress()
    return rounded


class _All(list[Hessian]):
    """Several observers of one tensor."""

    def observe(self, value: np.ndarray) -> None:
        for hessian in self:
            hessian.observe(value)


def _parts(chosen: list[tuple[Layer, Hessian]]) -> Iterator[list[tuple[Layer, Hessian]]]:
    """Layers whose H together stay below LIMIT bytes (they are zero, and so take none, before they are observed)."""
    part: list[tuple[Layer, Hessian]] = []
    size = 0
    for layer, hessian in chosen:
        if part and size + hessian.sum.nbytes > LIMIT:
            yield part
            for _, done in part:
                done.sum = done.sum[:0]
            part, size = [], 0
        part.append((layer, hessian))
        size += hessian.sum.nbytes
    if part:
        yield part
