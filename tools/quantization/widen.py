"""Gives the few activations of 8 bits that harm the outputs most 16 bits, where the outputs are not good enough.

Which layers lose most alone is measured first; the worst of them are then tried one by one, each by the error that the
outputs are left with when it alone reads 16 bits. The best are kept, together, as long as products with them are no
more than MOST_MACS of the model's multiply-adds, and if they are worth their time together.

Their ranges are wide: with 16 bits nothing needs to be cut off, and what calibration did not see has room.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from evort.graph import Model, Node
from evort.types import BITS, DType
from evort_tools.quantization import layers
from evort_tools.quantization.capture import specs_of
from evort_tools.quantization.encodings import Encoding
from evort_tools.quantization.integers import integer_model
from evort_tools.quantization.select import is_product
from evort_tools.quantization.static import FEW, Calibrated

GOOD = 35.0  # dB of the outputs from which all activations stay at 8 bits
_UNSURE = 10.0  # more of them, where the samples are too few to tell
WIDE = "16 bits"  # the encodings' method
MOST_MACS = 0.3
_TRIED = 10
_ROOM = 1.5  # how much further than what was seen the range goes
_WORTH = 0.96  # an activation must lower the error to this share to be kept,
_ALL_WORTH = 0.7  # and all of them together to this one: products of 16 bits take three times as long


def good(found: Calibrated) -> float:
    """The SQNR of the outputs, in dB, from which all activations stay at 8 bits."""
    return GOOD + (_UNSURE if found.samples < FEW else 0.0)


def widened(
    model: Model,
    found: Calibrated,
    ratio: Callable[[Mapping[str, Encoding]], float],
    sample: Mapping[str, Any],
    threads: int | None = None,
) -> Calibrated:
    """The calibration with some encodings of 16 bits. ratio: noise over signal of the outputs with encodings."""
    noise = before = ratio(found.encodings)
    candidates = _worst(model, found, sample, threads)
    wide = {name: _wide(found, name) for name in candidates}
    alone = {name: ratio({**found.encodings, name: wide[name]}) for name in candidates}
    macs = multiply_adds(model, sample)
    most = MOST_MACS * sum(macs.values())
    chosen: dict[str, Encoding] = {}
    for name in sorted(candidates, key=lambda n: alone[n]):
        spent = sum(macs[node.outputs[0]] for n in (*chosen, name) for node in found.selection.readers[n])
        got = (
            ratio({**found.encodings, **chosen, name: wide[name]})
            if alone[name] < noise and spent <= most
            else math.inf
        )
        if got < _WORTH * noise:
            chosen[name], noise = wide[name], got
    if noise > _ALL_WORTH * before:
        return found
    return replace(found, encodings={**found.encodings, **chosen})


def readers(found: Calibrated) -> list[str]:
    """The first outputs of the products that read what has 16 bits."""
    wide = {name for name, encoding in found.encodings.items() if encoding.method == WIDE}
    return [node.outputs[0] for node in found.selection.nodes if is_product(node) and node.inputs[0] in wide]


def _worst(model: Model, found: Calibrated, sample: Mapping[str, Any], threads: int | None) -> list[str]:
    """The activations of products that lose most by themselves, the worst first; those that only products read."""
    selection = found.selection
    groups = selection.groups()
    quantized, left = integer_model(model, found)
    errors = {layer.name: layer.alone for layer in layers.compare(model, quantized, left.encodings, [sample], threads)}
    lost: dict[str, float] = {}
    for names in groups.values():
        encoding = found.encodings.get(names[0])
        readers = selection.readers.get(names[0], [])
        if (
            len(names) > 1
            or encoding is None
            or BITS[encoding.dtype] > 8
            or selection.graph.constant(names[0]) is not None
        ):
            continue
        if not all(is_product(r) and selection.integer(r) and r.inputs[1] in selection.weights for r in readers):
            continue
        found_errors = [errors[r.outputs[0]].ratio for r in readers if errors.get(r.outputs[0]) is not None]
        if found_errors:
            lost[names[0]] = max(found_errors)
    return sorted(lost, key=lost.__getitem__, reverse=True)[:_TRIED]


def _wide(found: Calibrated, name: str) -> Encoding:
    histogram = found.histograms[found.selection.representative(name, [name])]
    most = _ROOM * max(-float(histogram.low.min()), float(histogram.high.max()), float(np.finfo(np.float32).tiny))
    return Encoding.of_range(-most, most, DType.INT16, True, method=WIDE)


def multiply_adds(model: Model, sample: Mapping[str, Any]) -> dict[str, int]:
    """Multiply-adds of the products with constant weights, by output."""
    specs = specs_of(model.graph, sample)
    found: dict[str, int] = {}
    for node in model.graph.nodes:
        w = model.graph.constant(node.inputs[1]) if is_product(node) else None
        if w is not None and node.outputs[0] in specs:
            found[node.outputs[0]] = specs[node.outputs[0]].size * _depth(node, w)
    return found


def _depth(node: Node, w: np.ndarray) -> int:
    """Multiply-adds for each number of a product's output."""
    if node.op == "Conv":
        return math.prod(w.shape[1:])
    if node.op == "ConvTranspose":  # each input meets the whole window; strides make fewer of each output
        return w.shape[0] // node.attrs.get("group", 1)
    return w.size // w.shape[-1 if node.op == "MatMul" or not node.attrs.get("transB", 0) else 0]
