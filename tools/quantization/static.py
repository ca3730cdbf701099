"""Static quantization: ranges of activations from calibration data, weights per output channel, sums in integers.

select     which nodes run in integers, which tensors need an encoding, which share one
calibrate  one pass over the data: a histogram of each tensor
ranges     five ways from a histogram to a range; `auto` takes the one that harms the next layer least
weights    symmetric per output channel, with room for the bias in units of the sums
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from evort.graph import Graph, Model, Node
from evort.types import DType
from evort_tools.passes.fitting import shapes_of
from evort_tools.quantization import auto, ranges, trials
from evort_tools.quantization.capture import observe
from evort_tools.quantization.data import Calibration
from evort_tools.quantization.encodings import Encoding
from evort_tools.quantization.observers import Histogram
from evort_tools.quantization.ranges import Target
from evort_tools.quantization.select import FIXED, PRODUCTS, Selection, is_table, operand, weight_axis

# Kinds of activations: element type, and whether the range is symmetric about zero.
ACTIVATIONS = {
    "uint8": (DType.UINT8, False),
    "int8": (DType.INT8, False),
    "int8-symmetric": (DType.INT8, True),
    "int16": (DType.INT16, True),
}
METHODS = ("auto", *ranges.METHODS)
# A product's bias is an int32 in units of its sums. Half of the range is for the sums; half of the rest is left, for
# what correction may add to it.
_BIAS_LIMIT = 1 << 29
FEW = 8  # samples, of which the ranges seen say little about the next
ROOM = 0.25  # how much further ranges reach that one sample has shown; half of that for two


@dataclass
class Settings:
    """How to quantize statically.

    method: one of METHODS. activations: one of ACTIVATIONS. percentile: what the method of that name keeps, in %.
    exclude: names or patterns of what stays in float. per_channel: weights have a scale for each output channel.
    threads: of the runs. isas: instruction sets to measure with, none for that in use. floats: more that stays in
    float, {first output of a node: why}. reduce: products whose weights are to have a reduced range, {first output:
    microseconds that it saves}; None: all that can, whatever it costs.
    """

    method: str = "auto"
    activations: str = "uint8"
    percentile: float = 99.99
    exclude: tuple[str, ...] = ()
    per_channel: bool = True
    threads: int | None = None
    isas: tuple[str, ...] = ()
    floats: Mapping[str, str] = field(default_factory=dict)
    reduce: Mapping[str, float] | None = field(default_factory=dict)

    def __post_init__(self) -> None:
        for what, given, known in (
            ("method", self.method, METHODS),
            ("activations", self.activations, ACTIVATIONS),
        ):
            if given not in known:
                raise ValueError(f"{what} {given!r} is not one of {', '.join(known)}")
        if not 50 <= self.percentile <= 100:
            raise ValueError(f"percentile must be from 50 to 100, not {self.percentile}")

    @property
    def target(self) -> Target:
        return Target(*ACTIVATIONS[self.activations], self.percentile)


@dataclass
class Calibrated:
    """What calibration found.

    encodings: of all tensors to be quantized, by name: activations (`written`) and weights. histograms: by the tensor
    that was observed. selection: what runs in integers, and what is kept in float and why. samples: how many were seen.
    ratios: noise over signal of the model's outputs on trial samples, by method, where methods were compared. plain:
    the float model before helpers rounded its weights and corrected its biases, where one did. reduced: the products
    whose weights have a reduced range, {first output: presum}. notes: what the user should know.
    """

    encodings: dict[str, Encoding]
    histograms: dict[str, Histogram]
    selection: Selection
    samples: int
    ratios: dict[str, float] = field(default_factory=dict)
    plain: Model | None = None
    reduced: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def calibrate(
    model: Model,
    data: Calibration,
    settings: Settings,
    progress: Callable[[str, int | None], Callable[[], None]] | None = None,
    trial: bool = False,
) -> Calibrated:
    """Finds encodings for a model by running it on calibration data.

    trial: only to see what it would give: of a large model by some of the samples, and with the method auto without
    comparing it as a whole with the others. progress: called with (what, number of steps or None) before each stage;
    returns what is called after each step. Raises CalibrationError for data that cannot be used, ValueError for an
    excluded name that fits nothing.
    """
    progress = progress or (lambda what, count: lambda: None)
    shapes = shapes_of(model.graph)
    selection = Selection(model.graph, shapes, settings.exclude).without(settings.floats)
    histograms: dict[str, Histogram] = {}
    samples = 0
    seen = data.some(trials.run_count(model, data)) if trial else data
    for _ in range(4):  # where values are not finite, what reads them stays in float, which others may depend on
        wanted = _observed(selection)
        new = {name: Histogram() for name in wanted if name not in histograms}
        if new or not samples:
            step = progress("calibrating", seen.count)
            samples = observe(model, seen, new, settings.threads, step)
            histograms.update(new)
        bad = [name for name in wanted if histograms[name].nonfinite]
        if not bad:
            break
        selection = Selection(model.graph, shapes, settings.exclude, {*bad, *selection._bad}).without(settings.floats)
    found = Calibrated({}, histograms, selection, samples)
    _choose(model, data, settings, found, progress, trial)
    return found


def restricted(found: Calibrated, floats: Mapping[str, str]) -> Calibrated:
    """The same calibration with more nodes in float: {first output: why}; what is left keeps its encodings."""
    old, new = found.selection, found.selection.without(floats)
    encodings = {n: found.encodings.get(n) or found.encodings[old.activations[n]] for n in new.written()}
    encodings |= {name: found.encodings[name] for name in new.weights}
    return replace(found, encodings=encodings, selection=new)


def _observed(selection: Selection) -> list[str]:
    """The computed tensors whose values decide ranges."""
    names = [selection.representative(root, names) for root, names in selection.groups().items()]
    return [name for name in names if selection.graph.constant(name) is None]


def _choose(
    model: Model,
    data: Calibration,
    settings: Settings,
    found: Calibrated,
    progress: Callable[[str, int | None], Callable[[], None]],
    trial: bool,
) -> None:
    """Fills in the encodings."""
    selection = found.selection
    methods = tuple(ranges.METHODS) if settings.method == "auto" else (settings.method,)
    proposals: dict[str, dict[str, Encoding]] = {}
    for root, names in selection.groups().items():
        name = selection.representative(root, names)
        proposals[root] = _proposals(selection, name, found.histograms.get(name), methods, settings)
    by_method = {
        m: _complete(selection, {r: p.get(m) or next(iter(p.values())) for r, p in proposals.items()}, settings)
        for m in methods
    }
    found.encodings = by_method[methods[0]]
    if settings.method != "auto" or not proposals:
        return
    trials.rank(model, data, [by_method["minmax"], by_method["mse"]], settings.threads, progress)
    samples = data.head(trials.trial_count(model, data))
    step = progress("comparing ranges", None)
    order = ("fixed", "mse", "minmax", "percentile", "entropy", "moving-average")  # the first of equals is taken
    best = auto.choose(
        model,
        selection,
        {r: [p[m] for m in order if m in p] for r, p in proposals.items()},
        {name: found.encodings[name] for name in selection.weights},
        samples,
        settings.threads,
        step,
    )
    candidates = {"auto": _complete(selection, best, settings), **by_method}
    if trial:
        found.encodings = candidates["auto"]
        return
    # What is best for each layer alone is nearly always best for all together; where it is not, one method for all is.
    step = progress("comparing methods", len(candidates))
    judge = trials.Judge(model, samples, settings.threads)
    for method, encodings in candidates.items():
        found.ratios[method] = judge.ratio(model, encodings)
        step()
    least = min(found.ratios.values())
    # Differences of some percent are chance.
    chosen = next(m for m in candidates if found.ratios[m] <= 1.02 * least)
    found.encodings = candidates[chosen]


def _proposals(
    selection: Selection, name: str, histogram: Histogram | None, methods: Iterable[str], settings: Settings
) -> dict[str, Encoding]:
    """The encodings that the methods propose for a tensor; one alone where its range is known."""
    target = settings.target
    constant = selection.graph.constant(name)
    if constant is not None:
        lo, hi = float(constant.min(initial=0.0)), float(constant.max(initial=0.0))
        return {"minmax": Encoding.of_range(lo, hi, target.dtype, target.symmetric, method="minmax")}
    row = histogram.row()
    fixed = _fixed_range(selection.writer.get(name))
    if fixed is not None:
        lo, hi = row.extremes
        # Attention over many tokens never comes near 1: then half of the steps or more would be for nothing.
        if max(-lo, hi) * 2 > fixed[1]:
            return {"fixed": Encoding.of_range(*fixed, target.dtype, target.symmetric, method="fixed")}
    room = widest(histogram.samples)
    found: dict[str, Encoding] = {}
    for method in methods:
        lo, hi = (room * end for end in ranges.find(method, row, target))
        found[method] = Encoding.of_range(lo, hi, target.dtype, target.symmetric, method=method)
    return found


def widest(samples: int) -> float:
    """How much further than what was seen ranges reach: of few samples the next is likely to reach further."""
    return 1 + ROOM / samples if samples < FEW else 1.0


def _fixed_range(writer: Node | None) -> tuple[float, float] | None:
    """The range of what a node computes, where its function has one."""
    if writer is None or writer.domain:
        return None
    return FIXED.get(writer.attrs.get("activation") or writer.op)


def _complete(selection: Selection, chosen: Mapping[str, Encoding], settings: Settings) -> dict[str, Encoding]:
    """The encodings of all tensors to be quantized, from those of the groups; weights fitted to them."""
    roots = selection.activations
    encodings = {name: chosen[roots[name]] for name in selection.written()}
    for name, node in selection.weights.items():
        if is_table(node):
            table = selection.graph.constant(name)
            encodings[name] = Encoding.of_range(table.min(), table.max(), DType.UINT8, method="table")
            continue
        x = roots.get(node.inputs[0])
        encodings[name] = weight_encoding(selection.graph, node, None if x is None else chosen[x], settings.per_channel)
    return encodings


def weight_encoding(graph: Graph, node: Node, x: Encoding | None, per_channel: bool = True) -> Encoding:
    """The encoding of a product's weights: int8, symmetric, one scale for each output channel where there may be.

    The bias is added in units of x's scale times the weights', as int32. Where weights are so small beside the bias
    that it would not fit, and where they are all zero, the scale is set by the bias.
    """
    w = graph.constant(node.inputs[1])
    axis = weight_axis(node, w) if per_channel else None
    encoding = Encoding.of_weights(w, axis)
    b = graph.constant(operand(node, 2)) if operand(node, 2) else None
    if b is None or x is None:
        return encoding
    count = encoding.scale.size
    magnitude = np.abs(b.astype(np.float64)).reshape(-1)
    largest = magnitude if magnitude.size == count else np.full(count, magnitude.max(initial=0.0))
    step = float(np.max(x.scale))
    least = (largest / (step * _BIAS_LIMIT)).reshape(encoding.scale.shape)
    others = None if axis is None else tuple(i for i in range(w.ndim) if i != axis)
    zero = ~np.any(w, axis=others).reshape(encoding.scale.shape)
    # With weights of zero any scale is right: one in whose units the bias is exact to float32.
    by_bias = np.where(largest > 0, largest / (step * (1 << 24)), 1.0).reshape(encoding.scale.shape)
    scale = np.where(zero, by_bias, np.maximum(encoding.scale, least))
    encoding.scale = np.clip(scale, np.finfo(np.float32).tiny, None).astype(np.float32)
    return encoding


def kept_in_float(model: Model, selection: Selection) -> dict[str, str]:
    """{label of a node: why it is in float}: products that do not run in integers, those in nested graphs included."""
    kept = dict(selection.kept)
    for node in model.graph.nodes:
        for sub in node.subgraphs():
            for inner in _nested(sub):
                if inner.op in PRODUCTS and not inner.domain:
                    kept[inner.label()] = f"it is in a nested graph ({node.label()})"
    return kept


def _nested(graph: Graph) -> list[Any]:
    found = list(graph.nodes)
    for node in graph.nodes:
        for sub in node.subgraphs():
            found += _nested(sub)
    return found
