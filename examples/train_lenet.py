"""Train LeNet-5 on MNIST from scratch, with evort alone.

    python examples/train_lenet.py --data DIR --out lenet.etm [--epochs N --seed S --threads T]

DIR holds MNIST's four IDX files, gzip or plain. The network is that of models/lenet.onnx: LeNet-5 (LeCun et al., 1998)
with ReLU and max pooling; AdamW, warm-up and cosine decay, digits shifted by up to two pixels. Writes the model,
reloads it and counts what it gets right of the test set. `--onnx FILE` writes it as ONNX too.
"""

from __future__ import annotations

import argparse

import numpy as np

import evort
from evort import train
from evort.etm import write
from evort.graph import Model
from evort.train import layers as L
from evort_tools.export import export
from evort_tools.passes import lower

BATCH = 128


def lenet(seed: int) -> Model:
    """LeNet-5, untrained."""
    return L.sequential(
        ("N", 1, 28, 28),
        L.Conv2d(1, 6, 5, padding=2, name="conv1"), L.Relu(), L.MaxPool(2),
        L.Conv2d(6, 16, 5, name="conv2"), L.Relu(), L.MaxPool(2), L.Flatten(),
        L.Linear(400, 120, name="fc1"), L.Relu(), L.Linear(120, 84, name="fc2"), L.Relu(),
        L.Linear(84, 10, name="fc3"),
        seed=seed, input="image", output="logits",
    )  # fmt: skip


def trainer_of(data: dict[str, np.ndarray], epochs: int, seed: int, threads: int | None) -> tuple:
    """The trainer and its batches."""
    batches = train.Batches(
        data["train_images"], data["train_labels"], batch_size=BATCH, seed=seed, drop_last=True,
        transform=train.shifted_digits(2),
    )  # fmt: skip
    schedule = train.schedules.warm_up(len(batches), train.schedules.cosine(epochs * len(batches)))
    optimizer = train.AdamW(3e-3, weight_decay=0.03)
    return train.Trainer(
        lenet(seed), train.CrossEntropy(), optimizer, schedule=schedule, threads=threads, seed=seed
    ), batches


def accuracy(session: evort.Session, images: np.ndarray, labels: np.ndarray) -> float:
    """Share of images that the model gets right."""
    right = 0
    for i in range(0, len(images), 500):
        x = images[i : i + 500, None].astype(np.float32) / np.float32(255)
        right += int((session(x).argmax(1) == labels[i : i + 500]).sum())
    return right / len(images)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, metavar="DIR", help="folder with MNIST's IDX files, gzip or plain")
    parser.add_argument("--out", required=True, metavar="FILE", help="the .etm file to write")
    parser.add_argument("--onnx", metavar="FILE", help="write the model as ONNX too")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--log", metavar="FILE", help="write the history, .csv or .json")
    parser.add_argument("--plot", metavar="FILE", help="draw loss and accuracy over epochs")
    parser.add_argument("--checkpoint", metavar="FILE", help="written after each epoch; training goes on from it")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    args = parser.parse_args(argv)

    data = train.mnist(args.data)
    trainer, batches = trainer_of(data, args.epochs, args.seed, args.threads)
    if args.checkpoint:
        trainer.resume(args.checkpoint)
    scale = train.shifted_digits(0)
    test = train.Batches(data["test_images"], data["test_labels"], batch_size=500, shuffle=False, transform=scale)
    trainer.fit(
        batches, args.epochs, validation=test, progress=not args.quiet, log=args.log, plot=args.plot,
        save=args.checkpoint,
    )  # fmt: skip
    model = trainer.model()
    images, labels = data["test_images"], data["test_labels"]
    model.metadata = {
        "task": "MNIST digit classification", "input_scaling": "pixel / 255", "layout": "NCHW",
        "accuracy_mnist_test_10000": f"{accuracy(trainer.session(), images, labels):.4f}",
        "accuracy_mnist_500": f"{accuracy(trainer.session(), images[:500], labels[:500]):.4f}",
    }  # fmt: skip
    if args.onnx:
        export(model, args.onnx)
    lower(model)  # what the converter does: fewer, larger operators
    write(model, args.out)
    found = accuracy(evort.load(args.out, threads=args.threads), images, labels)
    print(f"{args.out}: {found:.2%} of {len(images)} test digits right")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
