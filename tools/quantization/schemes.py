"""The schemes that replace layers one by one: dynamic and weight-only, from the quantizer's options."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from fnmatch import fnmatchcase

from evort.graph import Model
from evort.types import DType
from evort_tools.passes import graphs_of
from evort_tools.quantization.data import Calibration
from evort_tools.quantization.dynamic import DynamicOptions, dynamic
from evort_tools.quantization.gptq import gptq
from evort_tools.quantization.options import GOAL, MIXED_ONLY, WEIGHTS, Options
from evort_tools.quantization.qdq import own_constants
from evort_tools.quantization.weights import WeightOptions, weight_only

_LAYERS = frozenset({"MatMul", "Gemm", "Conv", "ConvTranspose", "LSTM", "GRU", "RNN"})


def learns(options: Options) -> bool:
    """Whether a scheme takes anything from calibration data; the others only measure what they have made by it."""
    few = options.bits is None or options.bits < 16
    return options.scheme in ("static", "mixed") or (
        options.scheme == "weight-only" and few and options.rounding != "nearest"
    )


def by_layer(
    model: Model, data: Calibration | None, options: Options
) -> tuple[Model, list[dict[str, object]], dict[str, str]]:
    """A copy of a model in which layers have other weights; what became of each (name, bits, snr of its weights in dB);
    and {label: why} of the layers that stay in float32.

    Raises ValueError for options that the scheme does not have, weights that are not finite, and an excluded name that
    fits nothing.
    """
    model = own_constants(model)
    report: list[dict[str, object]] = []
    excluded = _excluded(model, options.exclude)
    skip: Callable[[str], bool] = excluded.__contains__
    if options.scheme == "dynamic":
        bits = 8 if options.bits is None else options.bits
        activations = 16 if options.activations == "int16" else 8
        how = DynamicOptions(bits, not options.zero_points, activations, skip, attention=options.attention)
        found = dynamic(model, how, report)
        why = "too few channels to pay, or no integer form"
    else:
        kind = DType.FLOAT16 if options.storage == "float16" else DType.BFLOAT16
        bits = 4 if options.bits is None else options.bits
        how = WeightOptions(bits, options.block, not options.zero_points, kind=kind, skip=skip)
        rounding = options.rounding
        if rounding == "auto":
            rounding = "gptq" if data is not None and bits < 16 else "nearest"
        if rounding == "gptq" and data is None:
            raise ValueError("GPTQ needs calibration data (--calib FILE): a hundred typical inputs are enough")
        found = gptq(model, data, how, report=report) if rounding == "gptq" else weight_only(model, how, report)
        why = "it would not become smaller, or weights of few bits have no such operator"
    kept = {}
    for graph in graphs_of(found.graph):
        for node in graph.nodes:
            w = graph.tensors.get(node.inputs[1]) if len(node.inputs) > 1 else None
            plain = w is not None and w.data is not None and w.dtype == DType.FLOAT
            if not node.domain and ((plain and node.op in _LAYERS) or node.op == "Attention"):
                kept[node.label()] = "excluded" if (node.name or node.outputs[0]) in excluded else why
    return found, report, kept


def as_static(options: Options) -> Options:
    """What the mixed scheme has of the static one for nested graphs, which are in integers as a whole or not at all."""
    others = (*GOAL, *MIXED_ONLY, *WEIGHTS, "sensitivity", "exclude", "profile")
    plain = {f.name: f.default for f in fields(Options) if f.name in others}
    return replace(options, scheme="static", **plain)


def as_dynamic(options: Options, exclude: tuple[str, ...]) -> Options:
    """The dynamic scheme, which needs no data, for a part of a model in another one."""
    activations = "int16" if options.activations == "int16" else "uint8"
    return Options(scheme="dynamic", activations=activations, attention=options.attention, exclude=exclude)


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
