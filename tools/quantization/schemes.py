"""The schemes that replace layers one by one: dynamic and weight-only, from the quantizer's options."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields, replace
from fnmatch import fnmatchcase
from typing import Any

from evort.errors import EvortError
from evort.graph import Model, Node
from evort.session import Session
from evort.types import DType
from evort_tools.common import tried_inputs
from evort_tools.passes import graphs_of
from evort_tools.quantization.data import Calibration
from evort_tools.quantization.dynamic import DynamicOptions, dynamic
from evort_tools.quantization.gptq import gptq
from evort_tools.quantization.latency import both, ratio
from evort_tools.quantization.options import GOAL, MIXED_ONLY, WEIGHTS, Options
from evort_tools.quantization.placement import slower_than
from evort_tools.quantization.qdq import own_constants
from evort_tools.quantization.stored import places, stored, unpacked
from evort_tools.quantization.weights import WeightOptions, weight_only

_LAYERS = frozenset({"MatMul", "Gemm", "Conv", "ConvTranspose", "LSTM", "GRU", "RNN"})
_WHY = {"dynamic": "too few channels to pay, or no integer form",
        "weight-only": "it would not become smaller, or weights of few bits have no such operator"}  # fmt: skip
_INTEGERS = {f"DynamicQuantize{op}" for op in ("MatMul", "Conv", "ConvTranspose", "LSTM", "GRU", "Attention")}
_TIE = 1.03  # of measured times
_SCATTER = 1.03
_PACKED = 1.1  # of float32's time: what weights may take that stay packed, for the memory


def learns(options: Options) -> bool:
    """Whether a scheme takes anything from calibration data; the others only measure what they have made by it."""
    few = options.bits is None or options.bits < 16
    return options.scheme in ("static", "mixed") or (
        options.scheme == "weight-only" and few and options.rounding != "nearest"
    )


@dataclass
class ByLayer:
    """A model in which layers have other weights. layers: what became of each (name, bits, snr of its weights in dB);
    kept: {label: why} of the layers that stay in float32; stored: names of those whose weights are integers in the file
    all the same; notes: what the user should know."""

    model: Model
    layers: list[dict[str, object]]
    kept: dict[str, str]
    stored: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def by_layer(model: Model, data: Calibration | None, options: Options) -> ByLayer:
    """A model in the dynamic or the weight-only scheme.

    Raises ValueError for options that the scheme does not have, weights that are not finite, and an excluded name that
    fits nothing.
    """
    model = own_constants(model)
    excluded = _excluded(model, options.exclude)
    made = (
        _dynamic(model, data, options, excluded)
        if options.scheme == "dynamic"
        else _few_bits(model, data, options, excluded)
    )
    for graph in graphs_of(made.model.graph):
        for node in graph.nodes:
            w = graph.tensors.get(node.inputs[1]) if len(node.inputs) > 1 else None
            plain = w is not None and w.data is not None and w.dtype == DType.FLOAT
            if not node.domain and ((plain and node.op in _LAYERS) or node.op == "Attention"):
                why = "excluded" if (node.name or node.outputs[0]) in excluded else _WHY[options.scheme]
                made.kept.setdefault(node.label(), why)
    return made


def _few_bits(model: Model, data: Calibration | None, options: Options, excluded: set[str]) -> ByLayer:
    """Layers of few bits that are measured to be slower so read floats, which loading makes of what the file has."""
    kind = DType.FLOAT16 if options.storage == "float16" else DType.BFLOAT16
    bits = 4 if options.bits is None else options.bits
    how = WeightOptions(bits, options.block, not options.zero_points, kind=kind, skip=excluded.__contains__)
    rounding = options.rounding
    if rounding == "auto":
        rounding = "gptq" if data is not None and bits < 16 else "nearest"
    if rounding == "gptq" and data is None:
        raise ValueError("GPTQ needs calibration data (--calib FILE): a hundred typical inputs are enough")
    report: list[dict[str, object]] = []
    found = gptq(model, data, how, report=report) if rounding == "gptq" else weight_only(model, how, report)
    made = ByLayer(found, report, {})
    feeds = _feeds(model, data, options, made) if bits < 16 else None
    if feeds is not None:
        times = both(model, found, feeds, options.threads, options.isa)
        slow = [place for place, _, node in places(found.graph) if _ratio(times, node) > _PACKED]
        made.model, made.stored = unpacked(found, model, slow)
    return made


def _dynamic(model: Model, data: Calibration | None, options: Options, excluded: set[str]) -> ByLayer:
    """Layers that are measured to be slower in integers stay in float, with integers for weights in the file."""
    bits = 8 if options.bits is None else options.bits
    activations = 16 if options.activations == "int16" else 8

    def but_for(floats: Collection[str]) -> ByLayer:
        report: list[dict[str, object]] = []
        skip = excluded.union(floats).__contains__
        how = DynamicOptions(bits, not options.zero_points, activations, skip, attention=options.attention)
        return ByLayer(dynamic(model, how, report), report, {})

    made = but_for(())
    feeds = _feeds(model, data, options, made)
    if feeds is None:
        return made
    slow: dict[str, str] = {}
    names = {node.outputs[0]: node.name or node.outputs[0] for _, _, node in places(model.graph)}
    free = _INTEGERS - {"DynamicQuantizeAttention" if options.attention == "on" else ""}
    for least in (_TIE, 1 / _TIE, 0.0):  # of float32's time, from which a layer stays in float
        times = both(model, made.model, feeds, options.threads, options.isa)
        found = {
            names[node.outputs[0]]: slower_than(*times[node.outputs[0]])
            for _, _, node in places(made.model.graph)
            if node.op in free and _ratio(times, node) >= least
        }
        if found:
            slow |= found
            made = ByLayer(model, [], {})  # the former is not held beside the next
            made = but_for(slow)
        if ratio(model, made.model, feeds, options.threads, options.isa) <= _SCATTER:
            break
    floats = [place for place, _, node in places(made.model.graph) if (node.name or node.outputs[0]) in slow]
    made.model, made.stored = stored(made.model, floats, DType.INT16 if bits == 16 else DType.INT8)
    labels = {node.name or node.outputs[0]: node.label() for _, _, node in places(model.graph)}
    made.kept = {labels[name]: why for name, why in slow.items()}
    return made


def _ratio(times: Mapping[str, tuple[float, float]], node: Node) -> float:
    """A layer's time in parts of the float one's; below 0 where it is not known."""
    real, other = times.get(node.outputs[0], (0.0, 0.0))
    return other / real if real else -1.0


def _feeds(model: Model, data: Calibration | None, options: Options, made: ByLayer) -> Mapping[str, Any] | None:
    """The inputs that layers are measured with: a sample, or random ones, as times depend on shapes. None where nothing
    is to be measured, or where the model leaves more of its shapes open than how many samples there are, or cannot run
    with what is made up, which is noted."""
    if options.prefer == "size" or not made.layers:
        return None
    if data is not None:
        return data.head(1)[0]
    try:
        for name in model.graph.inputs:
            shape = model.graph.tensors[name].shape
            if shape is None or any(isinstance(size, str) for size in shape[1:]):
                raise ValueError(f"the shape of {name!r} is open (--shape {name}=...)")
        return tried_inputs(Session(model, threads=options.threads or 1), {})
    except (EvortError, ValueError) as error:
        made.notes.append(
            f"which layers are slower so is not known, as no input can be made up ({error}): give some (--calib)"
        )
        return None


def as_static(options: Options) -> Options:
    """What the mixed scheme has of the static one for nested graphs, which are in integers as a whole or not at all."""
    others = (*GOAL, *MIXED_ONLY, *WEIGHTS, "sensitivity", "exclude", "profile")
    plain = {f.name: f.default for f in fields(Options) if f.name in others}
    return replace(options, scheme="static", **plain)


def as_dynamic(options: Options, exclude: tuple[str, ...]) -> Options:
    """The dynamic scheme, which needs no data, for a part of a model in another one."""
    activations = "int16" if options.activations == "int16" else "uint8"
    return Options(
        scheme="dynamic", prefer="size", activations=activations, attention=options.attention, exclude=exclude
    )


def _excluded(model: Model, patterns: tuple[str, ...]) -> set[str]:
    """The names (of the node, else of its output) of nodes that a pattern names, by name, output or operator."""
    found: set[str] = set()
    for pattern in patterns:
        fits = {
            node.name or node.outputs[0]
            for graph in graphs_of(model.graph)
            for node in graph.nodes
            if any(fnmatchcase(text, pattern) for text in (node.name, node.op, *node.outputs) if text)
        }
        if not fits:
            raise ValueError(f"exclude: {pattern!r} fits no node, tensor or operator of the model")
        found |= fits
    return found
