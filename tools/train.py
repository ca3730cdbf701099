"""Trains (or fine-tunes) a float model on arrays, on evort's own graph and kernels.

    evort train model.onnx --data train.npz --validation test.npz -o model.etm --epochs 5

The data (npz) has an array for each input of the model, samples along the first axis, and one more: the targets (labels
for cross entropy). Starts from the weights that the model has; batch normalizations of an ONNX model are trained as
such, and folded when the `.etm` is written. `--onnx FILE` writes the trained model as ONNX too. In Python:
`evort.train`, see docs/training.md."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from evort import etm, train
from evort.graph import Model
from evort_tools.common import arrays_of, batches_of, print_json
from evort_tools.export import export
from evort_tools.passes import lower

LOSSES = {"cross-entropy": train.CrossEntropy, "mse": train.MSE, "l1": train.L1}
OPTIMIZERS = {"sgd": train.SGD, "adam": train.Adam, "adamw": train.AdamW}
SCHEDULES = ("constant", "cosine")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="an .onnx file, or an .etm file of a float model")
    parser.add_argument("--data", required=True, metavar="FILE.npz", help="inputs by name, and the targets")
    parser.add_argument("--validation", metavar="FILE.npz", help="the same, to measure on after each epoch")
    parser.add_argument("-o", "--output", required=True, metavar="FILE.etm")
    parser.add_argument("--onnx", metavar="FILE", help="write the trained model as ONNX too")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--loss", choices=LOSSES, default="cross-entropy")
    parser.add_argument("--label-smoothing", type=float, default=0.0, help="of cross entropy (0)")
    parser.add_argument("--optimizer", choices=OPTIMIZERS, default="adamw")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--weight-decay", type=float, default=0.0)
    parser.add_argument("--schedule", choices=SCHEDULES, default="cosine", help="of the learning rate (cosine)")
    parser.add_argument("--clip-norm", type=float, help="the largest norm of all gradients together")
    parser.add_argument("--freeze", action="append", default=[], metavar="PATTERN", help="constants that stay")
    parser.add_argument("--scale", type=float, default=1.0, help="a factor of the inputs, 0.00392157 for bytes")
    parser.add_argument("--patience", type=int, help="end when the validation loss has not fallen for so many epochs")
    parser.add_argument("--recompute", action="store_true", help="less memory, more time")
    parser.add_argument("--checkpoint", metavar="FILE", help="written after each epoch; training goes on from it")
    parser.add_argument("--log", metavar="FILE", help="the history, .csv or .json")
    parser.add_argument("--plot", metavar="FILE", help="loss and accuracy over epochs (needs matplotlib)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", action="store_true", help="print the history as JSON, and no progress")


def run(args: argparse.Namespace) -> int:
    model = _open(args.model)
    options = {"batch_size": args.batch_size, "seed": args.seed, "scale": args.scale}
    batches = batches_of(model.graph, arrays_of(args.data), shuffle=True, **options)
    test = None
    if args.validation:
        test = batches_of(model.graph, arrays_of(args.validation), shuffle=False, **options)
    elif args.patience is not None:
        raise ValueError("--patience watches the validation loss: give --validation FILE")
    loss = train.CrossEntropy(args.label_smoothing) if args.loss == "cross-entropy" else LOSSES[args.loss]()
    schedule = train.schedules.cosine(args.epochs * len(batches)) if args.schedule == "cosine" else None
    trainer = train.Trainer(
        model, loss, OPTIMIZERS[args.optimizer](args.lr, weight_decay=args.weight_decay), schedule=schedule,
        threads=args.threads, seed=args.seed, clip_norm=args.clip_norm,
        checkpoint="auto" if args.recompute else None, freeze=args.freeze,
    )  # fmt: skip
    if args.checkpoint:
        trainer.resume(args.checkpoint)
    stop = None if args.patience is None else train.EarlyStopping("val_loss", args.patience)
    history = trainer.fit(
        batches, args.epochs, validation=test, early_stopping=stop, progress=not args.json, log=args.log,
        plot=args.plot, save=args.checkpoint,
    )  # fmt: skip
    trained = trainer.model()
    if args.onnx:
        export(trained, args.onnx)
    lower(trained)
    etm.write(trained, args.output)
    if args.json:
        print_json({"output": args.output, "history": history.rows})
    else:
        print(f"{args.output}: {Path(args.output).stat().st_size:,} bytes")
    return 0


def _open(path: str) -> Model:
    """The model with its operators as they are in the file: training does without fused ones."""
    if Path(path).suffix == ".etm":
        return etm.read(path).model
    from evort_tools.convert import Options, convert_model

    options: Any = Options(optimize=False)
    return convert_model(path, options)


if __name__ == "__main__":
    import sys

    from evort_tools.cli import run_command

    sys.exit(run_command("train"))
