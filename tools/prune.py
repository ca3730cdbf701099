"""Makes weights zero in patterns that kernels skip and files leave out, or removes whole channels.

    evort prune model.onnx --pattern 4x1 --sparsity 0.75 --data train.npz --epochs 10 --quantize static -o model.etm
    evort_tools.prune("model.onnx", "model.etm", pattern="channels", sparsity=0.5, data=(images, labels), epochs=5)

patterns: 2:4 and 1:4 (of 4 consecutive weights of an output channel 2 or 1 stay), blocks of output channels by inputs
(4x1, 8x1, 16x1, 1x4), channels, groups:8 (8 neighbouring channels together). With training data (an npz file: arrays by
input name, and one more with the targets) the share of zeros grows while the model is trained; without, weights of the
least magnitude go at once, which costs accuracy.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from evort import etm
from evort.graph import Model, Node, Tensor
from evort.ops import sparse
from evort.types import DType, Spec
from evort_tools.common import Progress, bytes_text, print_json, progress_bar
from evort_tools.pruning import schedule
from evort_tools.pruning.channels import Channels
from evort_tools.pruning.integers import BITS, QUANTIZATIONS, quantized
from evort_tools.pruning.patterns import Pattern
from evort_tools.pruning.schedule import IMPORTANCES, Importance
from evort_tools.pruning.surgery import least, remove, saliency, separated
from evort_tools.pruning.training import Training, accuracy, arrays_of
from evort_tools.pruning.weights import chosen, dense, encode, stored_bytes, weights_of, zero_share
from evort_tools.quantization.qdq import copy_model

_ROUNDS = 4  # in which channels are removed while training, at most


class Result:
    """A pruned model and what it cost.

    model: what goes into the file. real: the pruned float model, with its zeros. layers: a row for each product with
    weights: tensor, operator, shape, zeros (share), stored ("" where it is dense), runs ("skipping" what is zero, or
    "dense" where that is faster), bytes before and after, and why it was left out. sizes: bytes of files. accuracy:
    {"before", "pruned", "quantized"}: share of the test data that is right. history: what training said, by epoch.
    """

    def __init__(self, model: Model, pattern: Pattern, share: float):
        self.model = self.real = model
        self.pattern = pattern
        self.share = share
        self.layers: list[dict[str, Any]] = []
        self.sizes: dict[str, int] = {}
        self.accuracy: dict[str, float] = {}
        self.history: list[dict[str, Any]] = []

    def to_bytes(self) -> bytes:
        """The `.etm` file's bytes, which `evort.load` takes."""
        return etm.write(self.model)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "pattern": str(self.pattern), "sparsity": self.share, "layers": self.layers, "sizes": self.sizes,
            "accuracy": self.accuracy, "history": self.history,
        }  # fmt: skip


def prune(
    model: Any,
    output: str | os.PathLike[str] | None = None,
    pattern: str = "4x1",
    sparsity: float | None = None,
    importance: str = "magnitude",
    data: Any = None,
    epochs: int = 0,
    *,
    test: Any = None,
    quantize: str | None = None,
    bits: int = 8,
    exclude: Iterable[str] = (),
    batch_size: int = 128,
    lr: float = 1e-3,
    scale: float = 1.0,
    distill: bool = False,
    seed: int = 0,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Result:
    """Prunes a model: the path of an ONNX or `.etm` file, an ONNX model's bytes or ModelProto, or an evort Model of
    float.

    output: the `.etm` file to write; None to write none (`Result.to_bytes`). pattern, sparsity: see
    `evort_tools.pruning.patterns.Pattern`; of channels, the share that goes (0.5), of others that of zeros (0.75).
    importance: "magnitude" or, with data, "taylor". data, epochs, batch_size, lr, scale, distill, seed: see
    `evort_tools.pruning.training.Training`. test: data to measure accuracy on. quantize: "static" for uint8
    activations, whose ranges come from `data`, and weights of 8 or 4 `bits`; "qat" trains for as many epochs once more,
    with the integers' rounding. exclude: nodes, tensors or operators that stay as they are.

    Raises InputError for data, ConversionError for a model that evort cannot run, ValueError for options, OSError.
    """
    from evort_tools.quantization.options import Options
    from evort_tools.quantize import open_model

    chosen_pattern = Pattern.parse(pattern)
    share = chosen_pattern.target(sparsity)
    if importance not in IMPORTANCES:
        raise ValueError(f"importance is {' or '.join(IMPORTANCES)}, not {importance!r}")
    if data is None and (epochs or importance == "taylor" or quantize):
        raise ValueError("training, first-order importance and static quantization need data (--data FILE)")
    if quantize not in (None, *QUANTIZATIONS) or bits not in BITS or (bits != 8 and not quantize):
        raise ValueError(f"quantize is static or qat, with weights of 8 or 4 bits; not {quantize!r} with {bits}")
    if quantize == "qat" and not epochs:
        raise ValueError("quantization-aware training needs epochs")
    progress = progress or (lambda what, count: lambda: None)
    source, size = open_model(model, Options())
    source = dense(source)
    training = Training(data, epochs, batch_size, lr, scale, distill, seed, threads)
    if data is not None:
        training.read(source)
    held = None if test is None else arrays_of(test, source, scale)
    result = Result(source, chosen_pattern, share)
    if size is not None:
        result.sizes["source"] = size
    if held is not None:
        result.accuracy["before"] = accuracy(source, held, threads)
    if chosen_pattern.whole:
        kept: dict[str, str] = {}
        masks: dict[str, np.ndarray] = {}
        result.real = _channels(source, training, result, importance, tuple(exclude), progress)
    else:
        kept, masks = _blocks(source, training, result, importance, tuple(exclude), progress)
    if held is not None:
        result.accuracy["pruned"] = accuracy(result.real, held, threads)
    result.model = copy_model(result.real)
    reference = source
    if quantize:
        step = progress("quantizing", epochs if quantize == "qat" else None)
        result.model = quantized(result.real, training, quantize, bits, masks, step)
        if chosen_pattern.whole:
            reference = quantized(source, training, "static", 8, {}, lambda: None)
    unpruned = {w.name: stored_bytes(reference.graph.tensors[w.name]) for w in weights_of(reference.graph)}
    result.sizes["dense"] = len(etm.write(copy_model(reference if chosen_pattern.whole else result.model)))
    before = {w.name: stored_bytes(result.model.graph.tensors[w.name]) for w in weights_of(result.model.graph)}
    zeros = {w.name: zero_share(result.model.graph.tensors[w.name].data) for w in weights_of(result.model.graph)}
    if not chosen_pattern.whole:
        encode(result.model, chosen_pattern, bits)
        unpruned = before
    _rows(result, kept, zeros, unpruned)
    if held is not None and quantize:
        result.accuracy["quantized"] = accuracy(result.model, held, threads)
    written = etm.write(result.model)
    result.sizes["file"] = len(written)
    if output is not None:
        etm.write(result.model, output)
    return result


def _blocks(
    source: Model, training: Training, result: Result, importance: str, exclude: tuple[str, ...], progress: Progress
) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    """Zeros in a pattern; sets result.real, returns why weights were left out, and the masks."""
    weights, kept = chosen(source.graph, exclude)
    if not weights:
        raise ValueError("the model has no weights to prune: every product was left out")
    if training.epochs:
        batches = training.batches
        trainer = training.trainer(source, training.epochs * len(batches))
        step = progress("training while the zeros grow", training.epochs)
        measure = Importance(importance, trainer, batches)
        masks = schedule.gradual(trainer, batches, training.epochs, weights, result.pattern, result.share, measure,
                                 step, result.history)  # fmt: skip
        result.real = trainer.model()
        return kept, masks
    if importance == "taylor":
        trainer = training.trainer(source, 1)
        measure = Importance(importance, trainer, training.batches)
        masks = schedule.masks_of(trainer, weights, result.pattern, result.share, measure)
    else:
        masks = schedule.at_once(source, weights, result.pattern, result.share)
    result.real = copy_model(source)
    for name, mask in masks.items():
        tensor = result.real.graph.tensors[name]
        tensor.data = tensor.data * mask
    return kept, masks


def _channels(
    source: Model, training: Training, result: Result, importance: str, exclude: tuple[str, ...], progress: Progress
) -> Model:
    """The model without its least important channels."""
    rounds = min(_ROUNDS, training.epochs) or 1
    epochs = [training.epochs // rounds + (i >= rounds - training.epochs % rounds) for i in range(rounds)]
    model = separated(source)
    before = {s.makers: s.count for s in Channels(model).groups()}
    left_out = {w.name for w in weights_of(source.graph)} - {w.name for w in chosen_channels(source, exclude)}
    step = progress("removing channels", rounds)
    for i in range(rounds):
        batches = training.batches if training.epochs or importance == "taylor" else None
        trainer = None if batches is None else training.trainer(model, epochs[i] * len(batches))
        scores = _saliencies(model, trainer, batches, importance)
        analysis = Channels(model)
        spaces = analysis.groups()
        gone: list[int] = []
        for space in spaces:
            if left_out.intersection(space.makers):
                continue
            # Of the channels that there were at first, a share that grows as that of zeros does.
            total = round(before[space.makers] * result.share * (1 - (1 - (i + 1) / rounds) ** 3))
            now = total - (before[space.makers] - space.count)
            if now > 0:
                gone += least(space, saliency(space, scores), result.pattern, now / space.count)
        model = remove(model, analysis, spaces, gone)
        if trainer is not None and epochs[i]:
            trainer = training.trainer(model, epochs[i] * len(batches))
            result.history += trainer.fit(batches, epochs[i]).rows
            model = trainer.model()
        step()
    return model


def chosen_channels(source: Model, exclude: tuple[str, ...]) -> list[Any]:
    """The weights whose channels may go: all that are not excluded. Raises ValueError as `chosen` does."""
    _, kept = chosen(source.graph, exclude)
    return [w for w in weights_of(source.graph) if kept.get(w.name) != "excluded"]


def _saliencies(model: Model, trainer: Any, batches: Any, importance: str) -> dict[str, np.ndarray]:
    """Of every element of the float constants, in their shapes."""
    if importance == "taylor":
        total: dict[str, np.ndarray] = {}
        for products in Importance(importance, trainer, batches).each_batch():
            for name, value in products.items():
                total[name] = total.get(name, 0.0) + np.square(value)
        return total
    floats = {n: t.data for n, t in model.graph.tensors.items() if t.data is not None and t.data.dtype == np.float32}
    return {name: np.square(value.astype(np.float64)) for name, value in floats.items()}


def _way(node: Node, tensor: Tensor) -> str:
    """How the CPU's kernels run a layer, products of eight rows or more: "skipping" what is zero, or "dense"."""
    if tensor.sparsity is None:
        return "dense"
    spec = Spec(tensor.dtype, tensor.shape, None, tensor)
    convolution = "Conv" in node.op
    transposed = not convolution and not node.attrs.get("transB", 0)
    kind = f"{'convolution' if convolution else 'product'}_{'f32' if tensor.dtype == DType.FLOAT else 's8'}"
    return "skipping" if sparse.worth(spec, sparse.height(spec, transposed), kind) else "dense"


def _rows(result: Result, kept: Mapping[str, str], zeros: Mapping[str, float], before: Mapping[str, int]) -> None:
    for weight in weights_of(result.model.graph):
        tensor = result.model.graph.tensors[weight.name]
        source = weight.name.removesuffix("/quantized")
        result.layers.append({
            "tensor": weight.name, "operator": weight.node.op, "shape": list(tensor.shape),
            "zeros": round(zeros[weight.name], 4), "stored": "" if tensor.sparsity is None else str(result.pattern),
            "bytes_before": before.get(weight.name, stored_bytes(tensor)), "bytes": stored_bytes(tensor),
            "runs": _way(weight.node, tensor), "left_out": kept.get(source, ""),
        })  # fmt: skip


# Command line


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="an .onnx or a float .etm file")
    parser.add_argument("-o", "--output", help="the .etm file to write (default: the model's name with .etm)")
    parser.add_argument("--pattern", default="4x1", help="2:4, 1:4, 4x1, 8x1, 16x1, 1x4, channels or groups:8 (4x1)")
    parser.add_argument("--sparsity", type=float, metavar="S", help="share of zeros (0.75), or of channels (0.5)")
    parser.add_argument("--importance", default="magnitude", choices=IMPORTANCES, help="what goes first is least of it")
    parser.add_argument("--data", metavar="FILE.npz", help="training data: the inputs by name, and the targets")
    parser.add_argument("--test", metavar="FILE.npz", help="data to measure accuracy on")
    parser.add_argument("--epochs", type=int, default=0, metavar="N", help="epochs of training (0: prune at once)")
    parser.add_argument("--batch-size", type=int, default=128, metavar="N")
    parser.add_argument("--lr", type=float, default=1e-3, metavar="RATE", help="AdamW's learning rate (0.001)")
    parser.add_argument("--scale", type=float, default=1.0, metavar="F", help="inputs of integers are multiplied by F")
    parser.add_argument("--distill", action="store_true", help="learn from the unpruned model's outputs too")
    parser.add_argument("--quantize", choices=QUANTIZATIONS, help="integers too: ranges from the data, or trained")
    parser.add_argument("--bits", type=int, default=8, choices=BITS, help="of integer weights (8)")
    parser.add_argument("--exclude", action="append", default=[], metavar="NAME", help="stays as it is (repeatable)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(args: argparse.Namespace) -> int:
    output = args.output or str(Path(args.model).with_suffix(".etm"))
    if os.path.exists(output) and os.path.samefile(args.model, output):
        raise ValueError(f"{output} is the model itself: name another output with -o")
    with progress_bar(quiet=args.json) as progress:
        result = prune(
            args.model, output, args.pattern, args.sparsity, args.importance, args.data, args.epochs, test=args.test,
            quantize=args.quantize, bits=args.bits, exclude=args.exclude, batch_size=args.batch_size, lr=args.lr,
            scale=args.scale, distill=args.distill, seed=args.seed, threads=args.threads, progress=progress,
        )  # fmt: skip
    if args.json:
        print_json({"output": output, **result.as_dict()})
    else:
        _print(result, output)
    return 0


def _print(result: Result, output: str) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("weights", "operator", "shape", "zeros", "stored", "runs", "before", "after", title=output)
    for row in result.layers:
        table.add_row(
            row["tensor"], row["operator"], "x".join(map(str, row["shape"])), f"{100 * row['zeros']:.1f} %",
            row["stored"] or row["left_out"] or "dense", row["runs"], bytes_text(row["bytes_before"]),
            bytes_text(row["bytes"]),
        )  # fmt: skip
    console = Console()
    console.print(table)
    sizes = result.sizes
    console.print(f"file: {bytes_text(sizes['file'])}, {sizes['file'] / sizes['dense']:.3f} of the dense one")
    for what, value in result.accuracy.items():
        console.print(f"accuracy {what}: {100 * value:.2f} %")


class _Callable(ModuleType):
    """Importing this module binds it to the name of the function, `evort_tools.prune`, so calling it prunes."""

    def __call__(self, *args: Any, **options: Any) -> Result:
        return prune(*args, **options)


sys.modules[__name__].__class__ = _Callable


if __name__ == "__main__":
    from evort_tools.cli import run_command

    sys.exit(run_command("prune"))
