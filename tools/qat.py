"""Quantization-aware training: makes an integer model and trains it to lose nothing.

    evort qat model.onnx --data train.npz -o model.etm
    evort_tools.qat.qat("model.onnx", {"image": x, "labels": y}, "model.etm")

The data (npz) has an array for each input of the model, samples along the first axis, and one more: the labels. The
model is calibrated on the first of them, as `evort quantize --scheme static` does, and trained with what is rounded and
clipped in its integer form rounded and clipped in the same places, scales included (LSQ). What comes out computes the
numbers that the training graph computed."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

from evort import etm, train
from evort.graph import Model
from evort_tools.common import arrays_of, batches_of, bytes_text, print_json
from evort_tools.quantization import static
from evort_tools.quantization.data import Images, open_calibration
from evort_tools.quantization.integers import integer_model
from evort_tools.quantization.qat_graph import LOG, QatGraph, weight_encoding
from evort_tools.quantization.qdq import total_bytes

BITS = (2, 4, 8)


@dataclass
class Options:
    """How to train.

    bits: of weights (2, 4 or 8); layers: {pattern of a node's name, output or operator: bits} for those that are to
      have others, the last fitting one counts.
    activations, method, per_channel, exclude: see `static.Settings`; samples: for calibration.
    epochs, lr, batch_size, seed, threads: of the training (Adam, cosine decay; lr None: by the bits).
    freeze_after: the share of the epochs after which scales stay as they are.
    distill: weight of the float model's scores in the loss, beside the labels; temperature: of those.
    scale: a factor of the inputs (1/255 for bytes).
    """

    bits: int = 8
    layers: Mapping[str, int] = field(default_factory=dict)
    activations: str = "uint8"
    method: str = "mse"
    per_channel: bool = True
    epochs: int = 3
    lr: float | None = None
    batch_size: int = 64
    seed: int = 0
    threads: int | None = None
    freeze_after: float = 0.5
    distill: float = 0.9
    temperature: float = 3.0
    samples: int = 256
    exclude: tuple[str, ...] = ()
    scale: float = 1.0

    def __post_init__(self) -> None:
        for bits in (self.bits, *self.layers.values()):
            if bits not in BITS:
                raise ValueError(f"weights can have 2, 4 or 8 bits, not {bits}")
        if not 0 <= self.distill <= 1 or not 0 <= self.freeze_after <= 1:
            raise ValueError("distill and freeze_after must be from 0 to 1")
        if self.lr is None:  # what is hardly off needs small steps, or training costs more than rounding
            self.lr = 1e-4 if min(self.bits, *self.layers.values(), 8) == 8 else 5e-4
        if self.epochs < 1 or self.batch_size < 1:
            raise ValueError("epochs and batch_size must be at least 1")


class Result:
    """What came out.

    model: the integer model. graph: the training graph (`QatGraph`); trained: the model that it became. before, after:
    {"loss", "accuracy"} of the training graph on the validation data, calibrated only and trained. sizes: bytes of
    constants before and after.
    """

    def __init__(self, graph: QatGraph, trained: Model, history: train.History):
        self.graph, self.trained, self.history = graph, trained, history
        self.model = graph.deployed(trained)
        self.before: dict[str, float] = {}
        self.after: dict[str, float] = {}
        self.sizes = {"before": total_bytes(graph.real.graph), "after": total_bytes(self.model.graph)}

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"sizes": self.sizes, "before": self.before, "after": self.after, "history": self.history.rows}


def qat(
    model: Any,
    data: Mapping[str, np.ndarray] | train.Batches,
    output: str | os.PathLike[str] | None = None,
    *,
    validation: Mapping[str, np.ndarray] | train.Batches | None = None,
    loss: train.Loss | None = None,
    progress: bool = False,
    **options: Any,
) -> Result:
    """Trains an integer model of a float one: the path of an ONNX or `.etm` file, an ONNX model, or an evort Model.

    data: arrays by input name and one more, the targets; or batches of the same (inputs first). loss: cross entropy
    where None. options: the fields of `Options`. The file appears complete or not at all.

    Raises ConversionError for a model that evort cannot run, CalibrationError and InputError for data that does not
    fit, ValueError for options, OSError for files."""
    chosen = Options(**options)
    real = _open(model)
    batches = _batches(real, data, chosen, True)
    test = None if validation is None else _batches(real, validation, chosen, False)
    graph = build(real, batches, chosen)
    hard = loss or train.CrossEntropy()
    whole = hard
    if chosen.distill:
        whole = train.Distillation(real, hard, chosen.temperature, chosen.distill)
    steps = chosen.epochs * len(batches)
    trainer = train.Trainer(
        graph.model, whole, train.Adam(chosen.lr), schedule=train.schedules.cosine(steps), threads=chosen.threads,
        seed=chosen.seed, freeze=_fixed(graph),
    )  # fmt: skip
    before = trainer.evaluate(test) if test is not None else {}
    freeze_at = max(1, round(chosen.freeze_after * chosen.epochs))

    def freeze(row: dict[str, Any]) -> None:
        if row["epoch"] == freeze_at:
            trainer.freeze(f"*{LOG}")

    trainer.fit(batches, chosen.epochs, validation=test, progress=progress, on_epoch=freeze)
    result = Result(graph, trainer.model(), trainer.history)
    result.before = before
    if test is not None:
        result.after = {k.removeprefix("val_"): v for k, v in trainer.history.rows[-1].items() if k.startswith("val_")}
    if output is not None:
        etm.write(result.model, output)
        result.sizes["file"] = os.stat(output).st_size
    return result


def build(real: Model, batches: train.Batches, options: Options) -> QatGraph:
    """The training graph: calibrated on the first samples, weights in as many bits as the options say."""
    first: list[list[np.ndarray]] = []
    seen = 0
    for batch in train.Batches(*batches.arrays, batch_size=64, shuffle=False, transform=batches.transform):
        first.append(list(batch[: len(real.graph.inputs)]))
        seen += len(batch[0])
        if seen >= options.samples:
            break
    arrays = {name: np.concatenate([b[i] for b in first]) for i, name in enumerate(real.graph.inputs)}
    calibration = open_calibration(arrays, real.graph, Images(), options.samples)
    settings = static.Settings(
        options.method, options.activations, 99.99, options.exclude, options.per_channel, options.threads
    )
    # Without the light operators that deployment leaves in float.
    _, found = integer_model(real, static.calibrate(real, calibration, settings))
    for name, node in found.selection.weights.items():
        bits = options.bits
        for pattern, wanted in options.layers.items():
            if any(fnmatchcase(text, pattern) for text in (node.name, node.op, *node.outputs) if text):
                bits = wanted
        if bits != 8:
            found.encodings[name] = weight_encoding(real.graph.constant(name), found.encodings[name].axis, bits)
    return QatGraph(real, found)


def _fixed(graph: QatGraph) -> list[str]:
    """Constants that are no parameters: all but weights, biases and scales of products in integers."""
    kept = {*graph.scales.values(), *graph.selection.weights}
    kept |= {node.inputs[2] for node in graph.selection.nodes if len(node.inputs) > 2 and node.inputs[2]}
    return [name for name in train.trainable(graph.model.graph) if name not in kept]


def _open(model: Any) -> Model:
    if isinstance(model, Model):
        return model
    if isinstance(model, str | os.PathLike) and Path(model).suffix == ".etm":
        return etm.read(model).model
    from evort_tools.convert import Options as ConvertOptions
    from evort_tools.convert import convert_model

    # One Attention stays in float; its two products, as exporters write them out, are trained.
    return convert_model(model, ConvertOptions(disable=("attention",)))


def _batches(
    real: Model, data: Mapping[str, np.ndarray] | train.Batches, options: Options, shuffle: bool
) -> train.Batches:
    if isinstance(data, train.Batches):
        return data
    return batches_of(
        real.graph, data, shuffle=shuffle, batch_size=options.batch_size, seed=options.seed, scale=options.scale
    )


def _layer(text: str) -> tuple[str, int]:
    pattern, equals, bits = text.rpartition("=")
    if not equals or not bits.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not like conv1=8")
    return pattern, int(bits)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    plain = Options()
    parser.add_argument("model", help="an .onnx file, or an .etm file of a float model")
    parser.add_argument("--data", required=True, metavar="FILE.npz", help="inputs by name, and the labels")
    parser.add_argument("--validation", metavar="FILE.npz", help="the same, to measure on")
    parser.add_argument("-o", "--output", required=True, metavar="FILE.etm")
    parser.add_argument("--bits", type=int, default=plain.bits, choices=BITS, help="of weights (8)")
    parser.add_argument("--layer", type=_layer, action="append", default=[], metavar="PATTERN=BITS",
                        help="bits of layers by name, output or operator (repeatable)")  # fmt: skip
    parser.add_argument("--activations", default=plain.activations, choices=tuple(static.ACTIVATIONS))
    parser.add_argument("--exclude", action="append", default=[], metavar="PATTERN", help="what stays in float")
    for name, text in (
        ("epochs", "how often the data is seen"), ("batch_size", "samples of a step"),
        ("seed", "of the order of the data"), ("samples", "for calibration"), ("distill", "weight of the float scores"),
        ("temperature", "of the float model's scores"), ("scale", "a factor of the inputs, 0.00392157 for bytes"),
        ("freeze_after", "share of the epochs after which scales stay"),
    ):  # fmt: skip
        value = getattr(plain, name)
        flag = "--" + name.replace("_", "-")
        parser.add_argument(flag, type=type(value), default=value, help=f"{text} ({value})")
    parser.add_argument("--lr", type=float, help="learning rate (0.0001 for 8 bits, 0.0005 for fewer)")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(args: argparse.Namespace) -> int:
    names = (
        "bits", "activations", "epochs", "lr", "batch_size", "seed", "samples", "distill", "temperature", "scale",
        "freeze_after", "threads",
    )  # fmt: skip
    options = {name: getattr(args, name) for name in names}
    validation = arrays_of(args.validation) if args.validation else None
    result = qat(
        args.model, arrays_of(args.data), args.output, validation=validation, progress=not args.json,
        layers=dict(args.layer), exclude=tuple(args.exclude), **options,
    )  # fmt: skip
    if args.json:
        print_json({"output": args.output, **result.as_dict()})
        return 0
    sizes = result.sizes
    print(f"{args.output}: {bytes_text(sizes['file'])}; constants {bytes_text(sizes['before'])} -> "
          f"{bytes_text(sizes['after'])}")  # fmt: skip
    if "accuracy" in result.after:
        print(f"accuracy {result.before['accuracy']:.2%} calibrated, {result.after['accuracy']:.2%} trained")
    return 0


if __name__ == "__main__":
    import sys

    from evort_tools.cli import run_command

    sys.exit(run_command("qat"))
