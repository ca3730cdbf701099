"""Training data and trainers for what pruning costs, and accuracy."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from evort.errors import InputError
from evort.graph import Model
from evort.session import Session

_CALIBRATION = 256  # samples that ranges are taken from


class Training:
    """How to repair what pruning costs.

    data: an npz file, {input: array, ...: targets}, (inputs..., targets), or an `evort.train.Batches` of that. Whole
    targets are classes (cross entropy), others numbers (squared error). scale: inputs of integers are multiplied by it
    (not those of Batches). distill: half of the loss is the distance to the outputs of the unpruned model.
    """

    def __init__(
        self,
        data: Any,
        epochs: int,
        batch_size: int = 128,
        lr: float = 1e-3,
        scale: float = 1.0,
        distill: bool = False,
        seed: int = 0,
        threads: int | None = None,
    ):
        self.data, self.epochs, self.batch_size, self.lr = data, epochs, batch_size, lr
        self.scale, self.distill, self.seed, self.threads = scale, distill, seed, threads
        self.batches: Any = None
        self.teacher: Session | None = None

    def read(self, model: Model) -> None:
        """Opens the data of a model that is to be pruned. Raises InputError, OSError."""
        from evort.train import Batches

        if isinstance(self.data, Batches):
            self.batches = self.data
        else:
            arrays = arrays_of(self.data, model, self.scale)
            size = min(self.batch_size, len(arrays[0]))
            self.batches = Batches(*arrays, batch_size=size, seed=self.seed, drop_last=True)
        self.teacher = Session(model, threads=self.threads) if self.distill else None

    def calibration(self, model: Model) -> dict[str, np.ndarray]:
        """Samples of the inputs."""
        parts: list[tuple[np.ndarray, ...]] = []
        for batch in self.batches:
            parts.append(batch)
            if sum(len(p[0]) for p in parts) >= _CALIBRATION:
                break
        return {
            name: np.concatenate([p[i] for p in parts])[:_CALIBRATION].astype(np.float32)
            for i, name in enumerate(model.graph.inputs)
        }

    def trainer(self, model: Model, steps: int, freeze: Sequence[str] = ()) -> Any:
        """A trainer whose learning rate falls to zero in so many steps. freeze: names of constants to leave."""
        from evort import train

        first = next(iter(self.batches))
        loss = train.CrossEntropy() if first[-1].dtype.kind in "iu" else train.MSE()
        if self.teacher is not None:
            loss = train.Distillation(self.teacher, loss)
        schedule = train.schedules.cosine(max(1, steps))
        optimizer = train.AdamW(self.lr)
        return train.Trainer(
            model, loss, optimizer, schedule=schedule, threads=self.threads, seed=self.seed, freeze=freeze
        )


def arrays_of(data: Any, model: Model, scale: float) -> tuple[np.ndarray, ...]:
    """The model's inputs and the targets, samples first. Raises InputError, OSError."""
    names = model.graph.inputs
    if isinstance(data, str | os.PathLike):
        with np.load(data, allow_pickle=False) as file:
            data = dict(file)
    if isinstance(data, Mapping):
        rest = [name for name in data if name not in names]
        missing = [name for name in names if name not in data]
        if missing or len(rest) != 1:
            raise InputError(
                f"training data must have the inputs {', '.join(names)} and one more array, the targets; it has "
                f"{', '.join(data)}"
            )
        data = [*(data[name] for name in names), data[rest[0]]]
    arrays = [np.asarray(a) for a in data]
    if len(arrays) != len(names) + 1 or len({len(a) for a in arrays}) != 1:
        raise InputError(f"training data are {len(names)} inputs and the targets, with as many samples each")
    if scale != 1.0:
        arrays[:-1] = [a * np.float32(scale) if a.dtype.kind in "iu" else a for a in arrays[:-1]]
    return tuple(arrays)


def accuracy(model: Model, arrays: tuple[np.ndarray, ...], threads: int | None = None, batch: int = 200) -> float:
    """Share of samples whose largest output is their class."""
    session = Session(model, threads=threads)
    names = model.graph.inputs
    right = total = 0
    for i in range(0, len(arrays[-1]), batch):
        feeds = {n: np.ascontiguousarray(a[i : i + batch], np.float32) for n, a in zip(names, arrays, strict=False)}
        scores = session.run(feeds)[model.graph.outputs[0]]
        right += int((scores.reshape(len(scores), -1).argmax(1) == arrays[-1][i : i + batch]).sum())
        total += len(scores)
    return right / max(1, total)


__all__ = ["Training", "accuracy", "arrays_of"]
