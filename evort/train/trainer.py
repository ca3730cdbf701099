"""The training loop.

trainer = train.Trainer(model, train.CrossEntropy(), train.AdamW(1e-3), seed=1)
history = trainer.fit(train.Batches(images, labels, batch_size=128), epochs=10, validation=test_batches)
evort.etm.write(trainer.model(), "model.etm")
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from evort._kernels import core
from evort.errors import InputError
from evort.graph import Graph, Model, Tensor
from evort.ops.base import lookup
from evort.session import Session
from evort.train.data import Batch, Batches
from evort.train.history import History
from evort.train.losses import Loss
from evort.train.optimizers import Optimizer
from evort.train.prepare import Prepared, prepare
from evort.train.schedules import Schedule, constant
from evort.train.step import Step
from evort.types import STORAGE, DType

_TRAINED = (DType.FLOAT, DType.DOUBLE)


class EarlyStopping:
    """Ends training when `metric` of an epoch has not got better by `least` for `patience` epochs. metric: a column of
    the history; "loss" and "val_loss" are to fall, others to rise."""

    def __init__(self, metric: str = "val_loss", patience: int = 3, least: float = 0.0):
        self.metric, self.patience, self.least = metric, patience, least

    def stops(self, rows: Sequence[dict[str, Any]]) -> bool:
        values = [row[self.metric] for row in rows if self.metric in row]
        if not values and rows:
            raise InputError(f"early stopping watches {self.metric!r}; the epochs have {', '.join(rows[-1])}")
        sign = 1 if self.metric.endswith("loss") else -1
        best, since = float("inf"), 0
        for value in values:
            if sign * value < best - self.least:
                best, since = sign * value, 0
            else:
                since += 1
        return since >= self.patience


class Trainer:
    """Trains the float constants of a model.

    model: what is trained; it is not changed, `model()` gives the trained one. loss, optimizer: see evort.train.losses
    and optimizers. schedule: a factor of the learning rate, by step. threads: as a session's; the same number of
    threads and seed give the same results, bit for bit. clip_norm: the largest norm of all gradients together.
    checkpoint: see `evort.train.differentiate`. freeze: patterns (`fnmatch`) of names of constants that are not
    trained.

    parameters: the arrays that are trained, by name; frozen: those of them that are not trained any more (see
    `freeze`); state: moments and running statistics. steps: done so far.
    """

    def __init__(
        self,
        model: Model,
        loss: Loss,
        optimizer: Optimizer,
        *,
        schedule: Schedule | None = None,
        threads: int | None = None,
        seed: int = 0,
        clip_norm: float | None = None,
        checkpoint: int | str | None = None,
        freeze: Sequence[str] = (),
    ):
        self.source, self.loss, self.optimizer = model, loss, optimizer
        self.schedule = schedule or constant()
        self.threads = core.default_threads() if threads is None else threads
        self.seed, self.clip_norm, self.checkpoint = seed, clip_norm, checkpoint
        trained = trainable(model.graph, freeze)
        if not trained:
            raise InputError("the model has no float constants to train")
        frozen = frozenset(set(model.graph.tensors) - set(trained))
        self.prepared: Prepared = prepare(model, seed, frozen)
        tensors = model.graph.tensors
        self.parameters = {n: np.array(tensors[n].data, order="C") for n in trained}
        self.state = {n: np.array(tensors[n].data, order="C") for n, _ in self.prepared.running}
        self.steps = self.epochs = 0
        self.history = History()
        self.frozen: set[str] = set()
        self._within = 0  # batches of an unfinished epoch that are done
        self._sums: dict[str, float] = {}
        self._inputs = list(model.graph.inputs)
        self._plans: dict[tuple[Any, ...], Step] = {}

    # One step --------------------------------------------------------------------------------------------------------

    def batch_arrays(self, batch: Sequence[np.ndarray]) -> list[np.ndarray]:
        """A batch in the element types that the model and the loss take. Raises InputError."""
        count = len(self._inputs)
        batch = tuple(batch) if isinstance(batch, tuple | list) else (batch,)
        given = batch[count:]
        if len(given) != self.loss.targets:
            raise InputError(
                f"a batch has {len(batch)} arrays; the model takes {count} ({', '.join(self._inputs)}) and the loss "
                f"{self.loss.targets}"
            )
        inputs = []
        for name, array in zip(self._inputs, batch, strict=False):
            storage = STORAGE[self.source.graph.tensors[name].dtype]
            inputs.append(np.ascontiguousarray(array, storage))
        targets = [self.loss.prepare_target(a) for a in given]
        targets += self.loss.extra(dict(zip(self._inputs, inputs, strict=True)))
        real = next(iter(self.parameters.values())).dtype
        targets = [t.astype(real, copy=False) if t.dtype.kind == "f" else t for t in targets]
        return [*inputs, *targets]

    def plan(self, batch: Sequence[np.ndarray]) -> Step:
        """The step for a batch's shapes, made where it is not there yet."""
        return self._planned(self.batch_arrays(batch))

    def _planned(self, arrays: list[np.ndarray]) -> Step:
        key = tuple((a.dtype, a.shape) for a in arrays)
        found = self._plans.get(key)
        if found is None:
            if len(self._plans) >= 4:
                self._plans.pop(next(iter(self._plans)))
            found = self._plans[key] = Step(
                self.prepared, arrays, self.loss, self.optimizer, self.parameters, self.state, threads=self.threads,
                clip_norm=self.clip_norm, checkpoint=self.checkpoint, frozen=self.frozen,
            )  # fmt: skip
        return found

    def freeze(self, *patterns: str) -> None:
        """From now on, leaves parameters whose names match (`fnmatch`) as they are."""
        self.frozen |= {n for n in self.parameters if any(fnmatchcase(n, pattern) for pattern in patterns)}
        self._plans.clear()

    def step(self, batch: Sequence[np.ndarray]) -> dict[str, float]:
        """Trains on one batch; returns its loss and metrics."""
        arrays = self.batch_arrays(batch)
        lr = self.optimizer.lr * self.schedule(self.steps)
        results = self._planned(arrays).run(arrays, lr, self.steps + 1)
        self.steps += 1
        return {key: float(value) for key, value in results.items()}

    # The loop --------------------------------------------------------------------------------------------------------

    def fit(
        self,
        batches: Batches | Iterable[Batch],
        epochs: int,
        *,
        validation: Batches | Iterable[Batch] | None = None,
        early_stopping: EarlyStopping | None = None,
        progress: bool = False,
        log: str | None = None,
        plot: str | None = None,
        save: str | None = None,
        save_every: int | None = None,
        on_epoch: Callable[[dict[str, Any]], None] | None = None,
    ) -> History:
        """Trains until `epochs` epochs are done in all (those of a resumed training included).

        batches: `Batches`, or anything that can be iterated anew for each epoch. progress: bars on the terminal (needs
        rich). log: a file for the history, .csv or .json; plot: an image file for it (needs matplotlib); both are
        written after each epoch. save: a checkpoint, written after each epoch and after every `save_every` steps, from
        which `Trainer.load` resumes. Returns the history, a row for each epoch.

        Raises InputError where there are no batches, ExecutionError where the loss is no number any more.
        """
        from evort.train.progress import Bars

        with Bars(progress, epochs) as bars:
            while self.epochs < epochs:
                row = self._epoch(batches, bars, save, save_every)
                if validation is not None:
                    row.update({f"val_{key}": value for key, value in self.evaluate(validation).items()})
                self.history.rows.append(row)
                bars.epoch(row)
                if on_epoch is not None:
                    on_epoch(row)
                if log is not None:
                    self.history.write(log)
                if plot is not None:
                    self.history.plot(plot)
                if save is not None:
                    self.save(save)
                if early_stopping is not None and early_stopping.stops(self.history.rows):
                    break
        return self.history

    def _epoch(
        self, batches: Batches | Iterable[Batch], bars: Any, save: str | None, save_every: int | None
    ) -> dict[str, Any]:
        started = time.perf_counter()
        source: Iterator[Batch] = batches.epoch(self.epochs) if isinstance(batches, Batches) else iter(batches)
        bars.begin(self.epochs, len(batches) if hasattr(batches, "__len__") else None, self._within)
        done = self._within
        for i, batch in enumerate(source):
            if i < self._within:
                continue  # done before the checkpoint that this resumes from
            samples = len(batch[0])
            found = self.step(batch)
            if found["loss"] != found["loss"]:
                raise InputError(
                    f"the loss of step {self.steps} is no number: lower the learning rate, or clip gradients"
                )
            self._sums["samples"] = self._sums.get("samples", 0) + samples
            self._sums["loss"] = self._sums.get("loss", 0) + found["loss"] * samples
            if "correct" in found:
                self._sums["correct"] = self._sums.get("correct", 0) + found["correct"]
            done = i + 1
            bars.step(self._means())
            if save is not None and save_every and self.steps % save_every == 0:
                self._within = done
                self.save(save)
        if not done:
            raise InputError("there are no batches: an iterator can be used for one epoch only")
        row = {"epoch": self.epochs + 1, "step": self.steps, **self._means()}
        row["lr"] = self.optimizer.lr * self.schedule(max(0, self.steps - 1))
        row["seconds"] = round(time.perf_counter() - started, 3)
        self.epochs, self._within, self._sums = self.epochs + 1, 0, {}
        return row

    def _means(self) -> dict[str, float]:
        samples = max(1.0, self._sums.get("samples", 1))
        found = {"loss": self._sums.get("loss", 0.0) / samples}
        if "correct" in self._sums:
            found["accuracy"] = self._sums["correct"] / samples
        return found

    def evaluate(self, batches: Batches | Iterable[Batch]) -> dict[str, float]:
        """The mean loss, and the accuracy where the loss counts it, of the model as it is run (no Dropout, running
        statistics)."""
        steps: dict[tuple[Any, ...], Step] = {}
        fixed = _Plain(self.model())
        sums = {"samples": 0.0, "loss": 0.0}
        for batch in batches:
            arrays = self.batch_arrays(batch)
            key = tuple((a.dtype, a.shape) for a in arrays)
            if key not in steps:
                steps[key] = Step(
                    fixed, arrays, self.loss, None, self.parameters, self.state, threads=self.threads, forward_only=True
                )
            found = steps[key].run(arrays, 0.0, 1)
            samples = len(batch[0])
            sums["samples"] += samples
            for name, value in found.items():
                sums[name] = sums.get(name, 0.0) + float(value) * (samples if name == "loss" else 1)
        samples = max(1.0, sums["samples"])
        found = {"loss": sums["loss"] / samples}
        if "correct" in sums:
            found["accuracy"] = sums["correct"] / samples
        return found

    # The result ------------------------------------------------------------------------------------------------------

    def model(self) -> Model:
        """The trained model, to be run, written or exported: the source's graph with copies of the parameters."""
        source = self.source.graph
        graph = Graph(source.name)
        graph.nodes, graph.inputs, graph.outputs = list(source.nodes), list(source.inputs), list(source.outputs)
        for name, tensor in source.tensors.items():
            trained = self.parameters.get(name, self.state.get(name))
            data = tensor.data if trained is None else trained.copy()
            graph.add(Tensor(name, tensor.dtype, tensor.shape, data))
        old = self.source
        return Model(graph, dict(old.opsets), dict(old.metadata), old.producer, dict(old.bounds))

    def session(self) -> Session:
        """A session of the trained model."""
        return Session(self.model(), threads=self.threads)

    def save(self, path: str) -> None:
        """Writes a checkpoint (npz): whole, or not at all. Raises OSError."""
        from evort.train.checkpoint import write

        write(path, self)

    def load(self, path: str) -> None:
        """Goes on where a checkpoint was written. Raises InputError where it is none, or of another model."""
        from evort.train.checkpoint import read

        read(path, self)

    def resume(self, path: str) -> bool:
        """`load`, where there is such a file; whether there was."""
        import os

        if not os.path.exists(path):
            return False
        self.load(path)
        return True

    def progress_state(self) -> dict[str, Any]:
        """What a checkpoint holds beside the arrays."""
        return {
            "steps": self.steps, "epochs": self.epochs, "within": self._within, "sums": self._sums,
            "history": self.history.rows, "frozen": sorted(self.frozen),
        }  # fmt: skip

    def restore_progress(self, found: dict[str, Any]) -> None:
        self.steps, self.epochs, self._within = found["steps"], found["epochs"], found["within"]
        self._sums, self.history.rows = dict(found["sums"]), list(found["history"])
        self.frozen = set(found["frozen"])
        self._plans.clear()


class _Plain(Prepared):
    """A model as it is run, for evaluation."""

    def __init__(self, model: Model):
        super().__init__(model.graph, [])


def trainable(graph: Graph, freeze: Sequence[str] = ()) -> list[str]:
    """Names of the constants that are trained: floats with an axis, read where an operator has a gradient for them, and
    not of a name that a pattern of `freeze` matches. Raises InputError for a pattern that matches no constant."""
    fixed, read = set(), []
    for node in graph.nodes:
        untrained = lookup(node).untrained
        for i, name in enumerate(node.inputs):
            if name:
                read.append(name)
                if i in untrained:
                    fixed.add(name)
    found = []
    for name in dict.fromkeys(read):
        tensor = graph.tensors.get(name)
        if tensor is None or tensor.data is None or tensor.dtype not in _TRAINED or tensor.data.ndim == 0:
            continue
        if name not in fixed and name not in graph.inputs:
            found.append(name)
    for pattern in freeze:
        if not any(fnmatchcase(name, pattern) for name in graph.tensors):
            raise InputError(f"freeze {pattern!r} matches no tensor; trained are {', '.join(found)}")
    return [name for name in found if not any(fnmatchcase(name, pattern) for pattern in freeze)]


__all__ = ["EarlyStopping", "Trainer", "trainable"]
