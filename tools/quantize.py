"""Turns an ONNX model (or an .etm file) into a smaller, faster .etm, and says what it cost.

    evort quantize model.onnx -o model.etm --scheme static --calib calib.npz
    evort_tools.quantize("model.onnx", "model.etm", calib={"image": images})

static: weights and activations are integers; ranges of activations come from calibration data: an npz file with
arrays by input name, samples along the first axis, an npy file, or a folder of images (--mean, --std, --size ...).

dynamic: weights are integers; activations become integers by the range that they have in each run. Needs no data.
weight-only: weights take 2, 3, 4 or 8 bits in groups, or 16; activations stay float32. Calibration data lets it round
with GPTQ.
mixed: each layer in float32, float16, int16, int8 or int4, chosen for --max-size, --max-drop and --max-latency by what
it bears and what it costs on this machine, or on the target (--profile). Needs calibration data.

No layer becomes integers that is slower so (static, mixed; --prefer size for the smallest file). --metric
FILE.py:FUNCTION runs that file, which is yours, and holds its result within --max-drop (static, mixed).

The input and outputs of the model stay float32. What has no integer form stays in float, and is listed.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from dataclasses import asdict, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from evort import etm
from evort.graph import Model
from evort.quant import decibels
from evort_tools.common import Progress, bytes_text, check_place, print_json, progress_bar, silent
from evort_tools.passes.fitting import shapes_of
from evort_tools.quantization import (
    accuracy,
    by_range,
    improve,
    layers,
    memory,
    mixed,
    nested,
    normalized,
    placement,
    reduced,
    static,
    stored,
    trials,
    widen,
)
from evort_tools.quantization import latency as latency_profile
from evort_tools.quantization.adaptive import add_levels
from evort_tools.quantization.data import Calibration, CalibrationError, Images, open_calibration
from evort_tools.quantization.encodings import Encoding
from evort_tools.quantization.integers import integer_model
from evort_tools.quantization.metric import Drop, Goal
from evort_tools.quantization.options import Options, add_flags, from_arguments, from_mapping, read_toml
from evort_tools.quantization.qdq import nodes_in_integers, total_bytes
from evort_tools.quantization.report import PRECISION_COLUMNS, precision_cells, write_report
from evort_tools.quantization.schemes import as_dynamic, as_static, by_layer, learns
from evort_tools.quantization.search import NOTED
from evort_tools.quantization.select import PRODUCTS


class Result:
    """A quantized model and what it cost.

    model: the graph that goes into the file. real: the float model that the encodings are for (with the changes of
    the helpers); plain: the same before helpers fitted weights and biases to integers, where one did. encodings: of
    the tensors that are integers. layers: what changed, each with its name; kept: {label of a node: why it stays in
    float}. sqnr: {output: signal-to-noise ratio in dB against float32}, the lowest of what was `measured` on {kind of
    samples: how many, `sqnr_db` of all together and `worst_db` of the worst one}; empty where it was not measured.
    judges: the samples of each kind. sizes: bytes of constants before and after; `source` and `file` of the files,
    where there are such. methods: noise over signal by calibration method, where those were compared; helpers: noise
    over signal with each helper that was kept, in the order in which they were applied.
    latency: microseconds of the float model and predicted of this one, where layers were chosen by measured times;
    loss: what was lost, its limit, and the float model's metric, where there was a limit. notes: what the user should
    know. stored: the layers that run in float32 with weights that the file holds as integers; storable: the places of
    those for which that is tried.
    levels: of precision, with `adaptive`: see `evort_tools.quantization.adaptive`. compared: what each layer costs,
    where there was a report to write.
    """

    def __init__(self, model: Model, options: Options):
        self.model = self.real = model
        self.plain: Model | None = None
        self.options = options
        self.encodings: dict[str, Encoding] = {}
        self.kept: dict[str, str] = {}
        self.integer_nodes = 0
        self.sqnr: dict[str, float] = {}
        self.measured: dict[str, dict[str, Any]] = {}
        self.judges: dict[str, Calibration] = {}
        self.sizes: dict[str, int] = {}
        self.methods: dict[str, float] = {}
        self.layers: list[dict[str, object]] = []
        self.helpers: dict[str, float] = {}
        self.latency: dict[str, Any] = {}
        self.loss: dict[str, float] = {}
        self.notes: list[str] = []
        self.stored: list[str] = []
        self.storable: set[stored.Place] = set()
        self.levels: dict[str, Any] = {}
        self.compared: list[layers.Layer] = []

    def to_bytes(self) -> bytes:
        """The `.etm` file's bytes, which `evort.load` takes."""
        return etm.write(self.model)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "options": asdict(self.options),
            "sizes": self.sizes,
            "sqnr_db": self.sqnr,
            "measured": self.measured,
            "integer_nodes": self.integer_nodes,
            "layers": self.layers,
            "kept_in_float": self.kept,
            "noise_by_method": self.methods,
            "helpers": self.helpers,
            "latency": self.latency,
            "loss": self.loss,
            "notes": self.notes,
            "stored_as_integers": self.stored,
            "adaptive": self.levels,
            "compared": [layer.as_dict() for layer in self.compared],
            "encodings": {name: e.as_dict() for name, e in self.encodings.items()},
        }


def quantize(
    model: Any,
    output: str | os.PathLike[str] | None = None,
    calib: Any = None,
    progress: Progress | None = None,
    report: str | os.PathLike[str] | None = None,
    **options: Any,
) -> Result:
    """Quantizes a model: the path of an ONNX or `.etm` file, an ONNX model's bytes or ModelProto, or an evort Model.

    output: the `.etm` file to write; None to write none (`Result.to_bytes`). calib: calibration data: a path (npz,
    npy, folder), {input: array of samples}, an array for the only input, or an iterable of samples {input: array}.
    report: an HTML page to write, with what each layer costs (needs calibration data). options: the fields of
    `evort_tools.quantization.options.Options`.

    Raises CalibrationError for data that is missing or of no use, ConversionError for a model that evort cannot run,
    ValueError for options, OSError for files. The file appears complete or not at all.
    """
    chosen = from_mapping(options)
    for path in (output, report):
        if path is not None:
            check_place(path)
    source, size = open_model(model, chosen)
    if calib is not None:
        calib = _calibration(calib, source, chosen)
    elif report is not None:
        raise CalibrationError("a report needs calibration data (--calib FILE): typical inputs to run both models on")
    result = quantize_model(source, calib, chosen, progress)
    if size is not None:
        result.sizes["source"] = size
    if output is not None:
        etm.write(result.model, output)
        result.sizes["file"] = os.stat(output).st_size
    if report is not None:
        result.compared = write_report(source, result, str(output or "model"), report, progress)
    return result


def _judged(result: Result, name: str) -> str:
    """An output's SQNR, what it was measured on, and the worst sample's."""
    parts = []
    for kind, found in result.measured.items():
        worst = f" (the worst {found['worst_db'][name]:.1f})" if found["samples"] > 1 and found["worst_db"] else ""
        parts.append(f"{found['sqnr_db'][name]:.1f} on {found['samples']} {kind}{worst}")
    return f"{result.sqnr[name]:.1f} dB: {', '.join(parts)}"


_TOO_FEW = "8 bits are too few for what it reads, and 16 take longer than float32"
_CALIBRATION, _HELD_OUT, _SAMPLES = "calibration samples", "samples held out from calibration", "samples"
_FEWEST_TYPICAL = 8  # samples from which one that reaches far beyond the others is left out
_HELD_FROM = 32  # samples of which some are held out


def _calibration(calib: Any, model: Model, options: Options) -> Calibration:
    images = Images(options.scale, options.mean, options.std, options.size, options.bgr, options.channels_last)
    return open_calibration(calib, model.graph, images, options.samples)


def quantize_model(model: Model, calib: Any, options: Options, progress: Progress | None = None) -> Result:
    """`quantize` for a graph on which the float passes have run; the graph stays as it is."""
    progress = progress or silent
    data = None if calib is None else _calibration(calib, model, options)
    result = Result(model, options)
    if already := nodes_in_integers(model.graph):
        result.notes.append(f"{already} operators have weights in integers already, and stay as they are")
    if data is not None:
        result.judges = {_CALIBRATION if learns(options) else _SAMPLES: data}
    if data is not None and learns(options):
        data = _typical(data, options, result)
        result.judges = {_CALIBRATION: data}
    if data is not None and learns(options) and options.hold_out and len(data) >= _HELD_FROM:
        data, held = data.split(options.hold_out)
        result.judges = {_HELD_OUT: held, _CALIBRATION: data}
    result.sizes["weights_before"] = total_bytes(model.graph)
    if options.scheme == "static":
        _static(data, result, progress)
    elif options.scheme == "mixed":
        _mixed(data, result, progress)
    else:
        made = by_layer(model, data, options)
        result.model, result.layers, result.kept, result.stored = made.model, made.layers, made.kept, made.stored
        result.notes += made.notes
    result.integer_nodes = sum(row.get("precision") != "float32" for row in result.layers)
    result.sizes["weights_after"] = total_bytes(result.model.graph)
    if options.verify:
        for kind, samples in result.judges.items():
            result.measured[kind] = trials.measured(model, result.model, samples, options.threads, progress)
        found = [measured["sqnr_db"] for measured in result.measured.values()]
        result.sqnr = {name: min(sqnr[name] for sqnr in found) for name in (found[0] if found else ())}
    return result


def _typical(data: Calibration, options: Options, result: Result) -> Calibration:
    """The samples without those few that reach far beyond all others, which would widen ranges for nothing.

    Raises CalibrationError where all that the model reads is one number throughout.
    """
    constant, far = data.oddities()
    said = [f"input {name!r} is {number:g} throughout the calibration data" for name, number in constant.items()]
    if len(said) == len(data.inputs):
        raise CalibrationError(f"{said[0]}: no ranges can be found from it; give inputs as the model will see them")
    result.notes += [f"{text}: ranges found from it mean nothing" for text in said]
    leave = options.outliers == "drop" and len(data) >= _FEWEST_TYPICAL and len(far) <= max(1, len(data) // 20)
    if far:
        place, what = next(iter(far.items()))
        do = "left out of calibration (--outliers keep takes them)" if leave else "leave it out unless it is typical"
        result.notes.append(f"sample {place}: {what} ({len(far)} of {len(data)} do so): {do}")
    return data.without(far) if far and leave else data


def _settings(
    data: Calibration | None, options: Options, exclude: tuple[str, ...]
) -> tuple[static.Settings, improve.Helpers]:
    """How to calibrate. Raises CalibrationError where there is no data to do so."""
    if data is None:
        what = f"the {options.scheme} scheme needs calibration data"
        raise CalibrationError(f"{what} (--calib FILE): a few hundred typical inputs")
    settings = static.Settings(
        options.method,
        options.activations,
        options.percentile,
        exclude,
        options.per_channel,
        options.threads,
        options.isa,
    )
    channels = options.per_channel_activations
    helpers = improve.Helpers(
        options.equalize, "on" if channels else options.smooth, options.wide_activations, options.clip_weights,
        options.adaround, options.bias_correction, 1.0 if channels else options.smooth_alpha,
    )  # fmt: skip
    return settings, helpers


def _mixed(data: Calibration | None, result: Result, progress: Progress) -> None:
    settings, helpers = _settings(data, result.options, result.options.exclude)
    part = Result(result.model, as_static(result.options))

    def nested_int8(model: Model) -> tuple[Model, dict[str, str]]:
        part.model = model
        kept = _nested(data, part, progress)
        return part.model, {**part.kept, **kept}

    found = mixed.mixed(result.model, data, result.options, settings, helpers, progress, nested_int8)
    result.kept = found.kept
    result.model, result.real, result.layers, result.helpers = found.model, found.real, found.layers, found.helpers
    if found.found is not None:
        result.encodings, result.methods = found.found.encodings, found.found.ratios
    if math.isfinite(found.goal.limit):
        result.loss = {"limit": found.goal.limit, "float": found.goal.base, "loss": found.loss}
    result.notes += found.notes
    if found.profile is not None:
        source = found.profile.source or "measured here"
        result.latency = {"float32_us": found.us_float, "predicted_us": found.us, "profile": source}


def _static(
    data: Calibration | None, result: Result, progress: Progress, inside: bool = False, goal: Goal | None = None
) -> None:
    """inside: whether this is a graph nested in another, which then has a view of the goal, where there is one."""
    options = result.options
    exclude = nested.fitting(result.model.graph, options.exclude, inside)
    settings, helpers = _settings(data, options, exclude)
    if options.max_drop is not None and goal is None:
        samples, _ = improve.halves(data, trials.trial_count(result.model, data))
        goal = Goal(result.model, options.metric, Drop(options.max_drop), samples, options.threads)
    inner = _nested(data, result, progress, goal)
    costs = None
    if options.prefer == "speed":
        given = latency_profile.read(options.profile) if options.profile else None
        ranged = by_range.layers_by_range(result.model.graph)
        others = {"int8": by_range.in_integers(result.model, options.attention)} if ranged else {}
        reduces = (
            options.reduce_range == "auto"
            and reduced.fits(result.model, options.isa)
            and not (given or options.adaptive)
        )
        costs, settings.floats = placement.decide(result.model, data, settings, given, progress, others, reduces)
        settings.reduce = placement.saved_by_reducing(costs, settings.floats)
    if options.reduce_range == "on":
        settings.reduce = None
    real = result.model
    changed, found, result.helpers = improve.quantize(real, data, settings, helpers, progress)
    wide = costs is not None and not options.profile and helpers.int16 == "auto" and "int16" in result.helpers
    if wide and placement.slower(real, changed, found, data, settings):
        # What 8 bits are too few for stays in float, where that is fast enough.
        helpers, wanted = replace(helpers, int16="off"), widen.readers(found)
        fitting = replace(settings, floats={**settings.floats, **dict.fromkeys(wanted, _TOO_FEW)})
        changed, found, result.helpers = improve.quantize(real, data, fitting, helpers, progress)
        if placement.slower(real, changed, found, data, settings):
            result.notes.append("16 bits for a few activations make it slower than in float32, and are left out")
            changed, found, result.helpers = improve.quantize(real, data, settings, helpers, progress)
    whole = (settings.reduce or {}).keys() - found.reduced.keys()
    if whole:  # they were measured with weights of a reduced range
        settings.floats = placement.slower_unreduced(costs, settings.floats, whole)
        found = static.restricted(found, settings.floats)
        changed = improve.restored(changed, found)
    result.notes += found.notes
    products: list[str] = []
    samples = data.head(trials.trial_count(changed, data))
    judge = trials.Judge(real, samples, options.threads)
    large = [] if options.adaptive else normalized.spots(changed, found, samples[0])
    if options.method == "auto" and not options.adaptive and found.encodings:
        products = by_range.products_by_range(changed, found, judge, options.threads, large)
        found = static.restricted(found, dict.fromkeys(products, ""))
        changed = improve.restored(changed, found)
    if goal is None:
        result.model, found = integer_model(changed, found)
    else:
        result.model, changed, found, loss = accuracy.undo(changed, found, goal, costs, progress)
        result.loss = {"limit": goal.limit, "float": goal.base, "loss": loss}
    result.model, ranged, apart = by_range.converted(result.model, exclude, costs, goal, options.attention, products)
    if large:
        made = normalized.in_bytes(real, result.model, large, data, judge.of_integers, options.threads)
        result.model = made if goal is None or goal.holds(goal.loss(made)) else result.model
    if not options.adaptive:
        result.model = memory.smaller(real, result.model, samples[0])
    if goal is not None and (ranged or large):
        result.loss["loss"] = goal.loss(result.model)
    integer = {node.outputs[0] for node in found.selection.nodes}.union(products)
    if costs is not None and not options.adaptive:
        slow = {n.outputs[0] for n in costs.selection.nodes} & settings.floats.keys() - integer
        result.storable |= {(name,) for name in slow}
        if not inside:  # passes over the graph around a nested one would make floats of its weights again
            _store(result, goal)
    result.real, result.encodings, result.methods = changed, found.encodings, found.ratios
    result.plain = found.plain
    ranged_too = {node.label() for node in changed.graph.nodes if node.outputs[0] in products}
    kept = static.kept_in_float(changed, found.selection)
    result.kept = {label: why for label, why in kept.items() if label not in ranged_too} | result.kept | inner | apart
    result.layers += [{"name": node.name or node.outputs[0], "operator": node.op} for node in found.selection.nodes]
    result.layers += ranged
    for node in result.model.graph.nodes:
        if node.op in PRODUCTS and not node.domain:
            result.kept.setdefault(node.label(), "it has no integer form for these operands")
    if costs is not None:
        _note_speed(result, costs, integer)
    if options.adaptive and not inside:
        plain = (found.plain or changed).graph
        weights = {name: t.data for name, t in plain.tensors.items() if t.data is not None}
        samples = data.head(trials.trial_count(changed, data))
        result.levels = add_levels(
            result.model, real, weights, samples, options.adaptive_float, options.threads, progress
        )


def _nested(data: Calibration, result: Result, progress: Progress, goal: Goal | None = None) -> dict[str, str]:
    """Quantizes the model's nested graphs; returns what stays in float there, since no sample runs it, or for the
    goal's sake."""
    if not nested.has_nested(result.model.graph):
        return {}

    def quantized(model: Model, samples: Calibration, inside: Goal | None, place: stored.Place) -> Model:
        part = Result(model, result.options)
        _static(samples, part, progress, True, inside)
        result.layers += part.layers
        result.kept |= part.kept
        result.notes += part.notes
        result.storable |= {(*place, *inner) for inner in part.storable}
        return part.model

    def without_data(model: Model, why: str, place: stored.Place) -> Model:
        exclude = nested.fitting(model.graph, result.options.exclude, True)
        made = by_layer(model, None, as_dynamic(result.options, exclude))
        result.layers += made.layers
        result.kept |= made.kept
        return made.model

    def in_float(model: Model, why: str, place: stored.Place) -> Model:
        layers = nested.layers_of(model.graph)
        result.kept |= {node.label(): why for node in layers}
        chosen = (node for node in layers if not any(nested.fits([node], p) for p in result.options.exclude))
        result.storable.update((*place, node.outputs[0]) for node in chosen)
        return model

    # It is unknown what such a graph takes and gives: so where speed or a limit is to be held it stays in float.
    unseen = None if goal is not None else without_data if result.options.prefer == "size" else in_float
    shapes, threads = shapes_of(result.model.graph), result.options.threads
    result.model, kept = nested.quantized_nested(result.model, data, shapes, quantized, threads, goal, unseen)
    return kept


def _store(result: Result, goal: Goal | None) -> None:
    """Stores the weights of products that stay in float in 8 bits, where the goal bears that."""
    made, changed = stored.stored(result.model, result.storable)
    loss = None if goal is None or not changed else goal.loss(made)
    if not changed or (loss is not None and not goal.holds(loss)):
        return
    if loss is not None:
        result.loss["loss"] = loss
    result.model, result.stored = made, changed


def _note_speed(result: Result, costs: placement.Costs, integer: set[str]) -> None:
    """Writes down what was decided by measured times, in the result and in the file's metadata. integer: the first
    outputs of what is in integers."""
    floats = {n.outputs[0]: "" for n in costs.selection.nodes if n.outputs[0] not in integer}
    real, spent = costs.profile.total(), costs.total(costs.selection.without(floats))
    result.latency = {"float32_us": real, "predicted_us": spent, "profile": costs.profile.source or "measured here"}
    products = [n for n in costs.selection.graph.nodes if n.op in PRODUCTS and n.outputs[0] not in integer]
    noted = {
        "scheme": "static",
        "prefer": "speed",
        **{key: costs.profile.machine.get(key) for key in ("isa", "threads")},
        "float": [node.name or node.outputs[0] for node in products],
    }
    result.model.metadata[NOTED] = json.dumps(noted, separators=(",", ":"))


def open_model(model: Any, options: Options) -> tuple[Model, int | None]:
    """The float graph, and the size of its file. Raises what `quantize` does."""
    if isinstance(model, Model):
        return model, None
    if isinstance(model, str | os.PathLike) and Path(model).suffix == ".etm":
        from evort_tools.pruning.weights import dense

        return dense(etm.read(model).model), os.stat(model).st_size
    from evort_tools.convert import Options as ConvertOptions
    from evort_tools.convert import convert_model, parse_shape

    found = convert_model(model, ConvertOptions(input_shapes=dict(map(parse_shape, options.shape))))
    if isinstance(model, str | os.PathLike):
        return found, os.stat(model).st_size
    return found, len(model) if isinstance(model, bytes) else None


# Command line


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="an .onnx or .etm file")
    parser.add_argument("-o", "--output", help="the .etm file to write (default: the model's name with .etm)")
    parser.add_argument("--calib", metavar="PATH", help="calibration data: .npz, .npy or a folder of images")
    parser.add_argument("--config", metavar="FILE.toml", help="options from a file; flags go before it")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--report", metavar="FILE.html", help="a page with what each layer costs")
    add_flags(parser)


def run(args: argparse.Namespace) -> int:
    config = dict(read_toml(args.config)) if args.config else {}
    paths = {key: config.pop(key, None) for key in ("calib", "output", "report")}
    for key, value in paths.items():
        if value is not None and not isinstance(value, str):
            raise ValueError(f"{args.config}: {key} = {value!r} should be a path")
    calib, report = args.calib or paths["calib"], args.report or paths["report"]
    output = args.output or paths["output"] or str(Path(args.model).with_suffix(".etm"))
    options = from_arguments(args, config)
    if os.path.exists(output) and os.path.samefile(args.model, output):
        raise ValueError(f"{output} is the model itself: name another output with -o")
    with progress_bar(quiet=args.json) as progress:
        result = quantize(args.model, output, calib, progress, report, **asdict(options))
    if args.json:
        print_json({"output": output, **result.as_dict()})
    else:
        _print(result, output)
    return 0


def _print(result: Result, output: str) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table("", "before", "after", "ratio", title=output)
    pairs = (("file", "source", "file"), ("constants", "weights_before", "weights_after"))
    for what, before, after in pairs:
        a, b = result.sizes.get(before), result.sizes.get(after)
        if a and b:
            table.add_row(what, bytes_text(a), bytes_text(b), f"{b / a:.3f}")
    console.print(table)
    for name in result.sqnr:
        console.print(f"output {name!r}: signal to quantization noise {_judged(result, name)}")
    nodes = len(result.model.graph.nodes)
    console.print(f"{result.integer_nodes} operators changed, {nodes} nodes in the file")
    if result.stored:
        console.print(f"{len(result.stored)} layers in float for speed, with weights in integers in the file")
    if result.helpers:
        console.print(f"helpers that lowered the error: {', '.join(result.helpers)}")
    if result.latency:
        real, spent = result.latency["float32_us"], result.latency["predicted_us"]
        console.print(f"layers take {spent / 1e3:.3f} ms of {real / 1e3:.3f} in float ({result.latency['profile']})")
    if result.loss:
        console.print(f"lost {result.loss['loss']:.6g} of at most {result.loss['limit']:.6g}")
    for note in result.notes:
        console.print(note)
    if result.options.scheme == "mixed":
        chosen = Table(title="precisions; alone: SQNR of the outputs with this layer alone")
        for name, numeric in PRECISION_COLUMNS:
            chosen.add_column(name, justify="right" if numeric else "left", no_wrap=numeric, overflow="fold")
        for row in result.layers:
            chosen.add_row(*precision_cells(row))
        console.print(chosen)
    if result.levels:
        table = Table("level", "int16 tensors", "float32 layers", "SQNR of the outputs, dB")
        ratios = result.levels["noise_by_level"]
        for i, (level, ratio) in enumerate(zip([{}, *result.levels["levels"]], ratios, strict=True)):
            counts = (str(len(level.get(key, ()))) for key in ("int16", "float"))
            table.add_row(str(i), *counts, f"{decibels(1.0, ratio):.1f}")
        console.print(table)
    if result.kept:
        kept = Table("kept in float", "why")
        for label, why in result.kept.items():
            kept.add_row(label, why)
        console.print(kept)


class _Callable(ModuleType):
    """Importing this module binds it to the name of the function, `evort_tools.quantize`, so calling it quantizes."""

    def __call__(self, *args: Any, **options: Any) -> Result:
        return quantize(*args, **options)


sys.modules[__name__].__class__ = _Callable


if __name__ == "__main__":
    from evort_tools.cli import run_command

    sys.exit(run_command("quantize"))
