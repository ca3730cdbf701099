"""One step of training as one plan: forward, backward and update, in one arena, run by the executor.

Parameters, moments and running statistics are arrays outside the plan. A step takes them as inputs and writes their new
values to the same memory, behind the last node that reads the old ones.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from evort.backends import CpuBackend
from evort.graph import Graph, Node, Tensor
from evort.ops.base import Op, lookup
from evort.ops.gradients import Gradients
from evort.plan import Plan
from evort.runner import Runner
from evort.train.autodiff import differentiate, needed_nodes, trace
from evort.train.losses import Loss
from evort.train.optimizers import Optimizer
from evort.train.prepare import STEP, Prepared
from evort.types import STORAGE, DType, Spec, dtype_of

RATE, COUNT = "train/lr", "train/t"


class Step:
    """A training step for one set of batch shapes.

    graph: all of it; metrics: by name, the tensors that the step gives beside the loss; gradients: of each parameter,
    by name, the tensor with its gradient. plan: what runs, for those who look.
    """

    def __init__(
        self,
        prepared: Prepared,
        batch: Sequence[np.ndarray],
        loss: Loss,
        optimizer: Optimizer | None,
        parameters: dict[str, np.ndarray],
        state: dict[str, np.ndarray],
        *,
        threads: int = 1,
        clip_norm: float | None = None,
        checkpoint: int | str | None = None,
        keep_gradients: bool = False,
        forward_only: bool = False,
        frozen: Collection[str] = (),
    ):
        """batch: the arrays of one batch, inputs first, in their final element types. state: moments and running
        statistics, to which missing moments are added. forward_only: the loss and its metrics, nothing else.
        frozen: parameters that stay as they are."""
        graph = prepared.graph
        names = [n for n in graph.inputs if n != STEP]
        targets = [f"train/target_{i}" for i in range(len(batch) - len(names))]
        self.names = [*names, *targets]
        specs = {n: Spec(dtype_of(a), a.shape) for n, a in zip(self.names, batch, strict=True)}
        specs.update({n: Spec(dtype_of(a), a.shape) for n, a in parameters.items()})
        specs.update({n: Spec(dtype_of(state[n]), state[n].shape) for n, _ in prepared.running})
        real = next(iter(parameters.values())).dtype
        specs[RATE] = specs[COUNT] = Spec(dtype_of(np.empty(0, real)), ())
        specs[STEP] = Spec(DType.INT64, ())
        self.parameters, self.state, self._real = parameters, state, real

        g = trace(graph, specs)
        trained = [name for name in parameters if name not in frozen]
        loss_name, self.metrics = loss.build(g, list(graph.outputs), targets)
        found = {} if forward_only else differentiate(g, loss_name, trained, checkpoint)
        self.gradients = found
        self.in_place: list[tuple[str, str]] = [(old, new) for old, new in prepared.running]
        self.loss = loss_name
        ends: list[tuple[int, list[Node]]] = []
        if optimizer is not None:
            nodes = g.nodes
            scale = None
            if clip_norm is not None and found:
                scale = g.emit("ClipFactor", list(found.values()), {"max_norm": float(clip_norm)}, "evort")
            for name, gradient in found.items():
                slots = [f"{name}/{slot}" for slot in optimizer.slots]
                for slot in slots:
                    if slot not in state:
                        state[slot] = np.zeros_like(parameters[name])
                    g.specs[slot] = Spec(dtype_of(state[slot]), state[slot].shape)
                before = len(nodes)
                new = optimizer.build(g, name, gradient, slots, RATE, COUNT, scale)
                self.in_place += list(zip([name, *slots], new, strict=True))
                # Without clipping the update is due as soon as nothing reads the old value any more.
                update = nodes[before:]
                del nodes[before:], g.calls[before:]
                at = len(nodes) if scale is not None else _last_reader(nodes, {name, gradient})
                ends.append((at, update))
        ordered: list[Node] = []
        for i in range(len(g.nodes) + 1):
            for at, update in ends:
                if at == i:
                    ordered.extend(update)
            if i < len(g.nodes):
                ordered.append(g.nodes[i])
        outputs = [loss_name, *self.metrics.values(), *(new for _, new in self.in_place)]
        if keep_gradients:
            outputs += found.values()
        self.outputs = list(dict.fromkeys(outputs))
        self.runner, self.graph = _runner(g, ordered, specs, parameters, state, self.outputs, threads)
        reads = self.runner.root.reads
        self.planned = self.runner.plan(self.runner.root, {n: g.specs[n] for n in reads})
        self.plan: Plan = self.planned.plan
        self._results = {
            n: np.empty(g.specs[n].shape, STORAGE[g.specs[n].dtype])
            for n in self.outputs
            if n not in {new for _, new in self.in_place}
        }
        self._into = {**self._results, **{new: self._array(old) for old, new in self.in_place}}
        self._into = {n: a for n, a in self._into.items() if n in self.plan.writes}

    def _array(self, name: str) -> np.ndarray:
        return self.parameters[name] if name in self.parameters else self.state[name]

    def run(self, batch: Sequence[np.ndarray], lr: float, count: int) -> dict[str, np.ndarray]:
        """Trains on a batch; returns the loss ("loss") and the metrics by name. count: of the step, from 1 on.

        Raises ExecutionError where a kernel refuses its operands (a label that is no class).
        """
        feeds = dict(zip(self.names, batch, strict=True))
        feeds.update(self.parameters)
        feeds.update(self.state)
        feeds[RATE], feeds[COUNT] = np.array(lr, self._real), np.array(count, self._real)
        feeds[STEP] = np.array(count, np.int64)
        self.planned.call_into(feeds, self._into)
        found = {key: self._results[name] for key, name in self.metrics.items()}
        found["loss"] = self._results[self.loss]
        return found

    def result(self, name: str) -> np.ndarray:
        """An output of the latest run: a gradient, where they are kept."""
        return self._results[name]


def _last_reader(nodes: list[Node], names: set[str]) -> int:
    """One past the last node that makes or reads one of these tensors, or a view of one."""
    names, at = set(names), 0
    for i, node in enumerate(nodes):
        if any(n in names for n in node.inputs):
            at = i + 1
            if type(lookup(node)).view is not Op.view:
                names.update(node.outputs)
        elif any(n in names for n in node.outputs):
            at = i + 1
    return at


def _runner(
    g: Gradients,
    nodes: list[Node],
    specs: dict[str, Spec],
    parameters: dict[str, np.ndarray],
    state: dict[str, np.ndarray],
    outputs: list[str],
    threads: int,
) -> tuple[Runner, Graph]:
    graph = Graph("training step")
    graph.nodes = needed_nodes(nodes, outputs)
    used = {name for node in graph.nodes for name in node.inputs} | set(outputs)
    for name in (*specs, *state):
        if name in used and name not in graph.inputs:
            spec = g.specs[name]
            graph.inputs.append(graph.add(Tensor(name, spec.dtype, spec.shape)))
    for name, value in g.constants.items():
        if name in used and name not in graph.inputs:
            graph.add(Tensor(name, g.specs[name].dtype, value.shape, value))
    graph.outputs = outputs
    return Runner(graph, CpuBackend(), threads), graph


__all__ = ["Step"]
