"""Control flow: If, Loop, Scan. Their bodies are nested graphs that may read names of the graphs around them.

An If whose condition is known when its stage is planned is replaced by its branch, so none of these is ever a step of
a plan: a Loop or Scan runs between stages, its body planned once for each set of shapes.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from evort.graph import Graph
from evort.ops.base import REQUIRED, Attr, Call, DataDependent, Op, op
from evort.types import BITS, DType, Spec


@op("If", since=25)
class If(Op):
    """The outputs of `then_branch` where cond is true, else those of `else_branch`."""

    inputs, outputs = ("cond",), ("*outputs",)
    dtypes = {"cond": frozenset({DType.BOOL})}
    attrs = {"then_branch": Attr("graph", REQUIRED), "else_branch": Attr("graph", REQUIRED)}

    def expand(self, c: Call) -> Graph:
        condition = c.value(0)
        if condition.size != 1:
            raise c.error("the condition must have one element")
        branch = c["then_branch"] if condition.reshape(-1)[0] else c["else_branch"]
        if branch.inputs:
            raise c.error("a branch of If takes no inputs")
        if len(branch.outputs) < len(c.node.outputs):
            raise c.error(f"a branch gives {len(branch.outputs)} outputs, the node has {len(c.node.outputs)}")
        return branch.taken()


@op("Loop", since=25)
class Loop(Op):
    """Runs `body(iteration, condition, *carried) -> (condition, *carried, *scanned)` up to M times while the condition
    holds; scanned outputs are stacked along a new first axis."""

    inputs, outputs = ("M?", "cond?", "*v_initial"), ("*v_final_and_scan_outputs",)
    attrs = {"body": Attr("graph", REQUIRED)}

    def infer(self, c: Call) -> list[Spec]:
        raise DataDependent

    def reference(self, c: Call, trips: Any = None, cond: Any = None, *carried: Any) -> tuple[Any, ...]:
        body = c["body"]
        if len(body.inputs) != 2 + len(carried) or len(body.outputs) < 1 + len(carried):
            raise c.error(f"its body takes {len(body.inputs)} inputs and gives {len(body.outputs)} outputs")
        limit = None if trips is None else int(np.asarray(trips).reshape(-1)[0])
        going = True if cond is None else bool(np.asarray(cond).reshape(-1)[0])
        values = list(carried)
        scanned: list[list[np.ndarray]] = [[] for _ in body.outputs[1 + len(values) :]]
        iteration = 0
        while going and (limit is None or iteration < limit):
            # A body that declares its counter or condition of rank 1 gets it so.
            counter = _scalar(body, body.inputs[0], iteration, np.int64)
            flag = _scalar(body, body.inputs[1], going, np.bool_)
            results = c.run_graph(body, dict(zip(body.inputs, [counter, flag, *values], strict=True)))
            going = bool(np.asarray(results[0]).reshape(-1)[0])
            values = results[1 : 1 + len(values)]
            for rows, row in zip(scanned, results[1 + len(carried) :], strict=True):
                rows.append(row)
            iteration += 1
        names = body.outputs[1 + len(carried) :]
        return (*values, *(_stack(body, name, rows, 0) for name, rows in zip(names, scanned, strict=True)))


@op("Scan", since=25)
class Scan(Op):
    """Runs `body(*state, *slices) -> (*state, *slices)` over the slices of its scan inputs, in step."""

    inputs, outputs = ("*initial_state_and_scan_inputs",), ("*final_state_and_scan_outputs",)
    attrs = {
        "body": Attr("graph", REQUIRED),
        "num_scan_inputs": Attr("int", REQUIRED),
        "scan_input_axes": Attr("ints"),
        "scan_input_directions": Attr("ints"),
        "scan_output_axes": Attr("ints"),
        "scan_output_directions": Attr("ints"),
    }

    def infer(self, c: Call) -> list[Spec]:
        raise DataDependent

    def reference(self, c: Call, *operands: Any) -> tuple[Any, ...]:
        body, count = c["body"], c["num_scan_inputs"]
        n_state = len(operands) - count
        if count < 1 or n_state < 0 or len(body.inputs) != len(operands) or len(body.outputs) < n_state:
            raise c.error(f"num_scan_inputs is {count} of {len(operands)} inputs; its body takes {len(body.inputs)}")
        n_out = len(body.outputs) - n_state
        in_axes = self._list(c, "scan_input_axes", count)
        reverse_in = self._list(c, "scan_input_directions", count)
        out_axes = self._list(c, "scan_output_axes", n_out)
        reverse_out = self._list(c, "scan_output_directions", n_out)
        state = list(operands[:n_state])
        scans = [
            np.moveaxis(x, c.axis(a, x.ndim), 0)[:: -1 if r else 1]
            for x, a, r in zip(operands[n_state:], in_axes, reverse_in, strict=True)
        ]
        if len({len(x) for x in scans}) != 1:
            raise c.error("the scan inputs have different lengths")
        rows: list[list[np.ndarray]] = [[] for _ in range(n_out)]
        for slices in zip(*scans, strict=True):
            results = c.run_graph(body, dict(zip(body.inputs, [*state, *slices], strict=True)))
            state = results[:n_state]
            for kept, row in zip(rows, results[n_state:], strict=True):
                kept.append(row)
        outs = []
        for name, kept, axis, reverse in zip(body.outputs[n_state:], rows, out_axes, reverse_out, strict=True):
            stacked = _stack(body, name, kept[::-1] if reverse else kept, 0)
            outs.append(np.moveaxis(stacked, 0, c.axis(axis, stacked.ndim)))
        return (*state, *outs)

    @staticmethod
    def _list(c: Call, name: str, count: int) -> list[int]:
        values = c[name]
        if not values:
            return [0] * count
        if len(values) != count:
            raise c.error(f"{name} has {len(values)} items, expected {count}")
        return list(values)


def _scalar(body: Graph, name: str, value: int | bool, dtype: type) -> np.ndarray:
    tensor = body.tensors.get(name)
    rank = len(tensor.shape) if tensor is not None and tensor.shape is not None else 0
    return np.full((1,) * rank, value, dtype)


def _stack(body: Graph, name: str, rows: list[np.ndarray], axis: int) -> np.ndarray:
    """Rows stacked; with none, an empty array of the declared dtype and shape (0 for what is not declared)."""
    if rows:
        return np.stack(rows, axis)
    from evort.types import STORAGE

    tensor = body.tensors.get(name)
    if tensor is None or tensor.dtype not in BITS:
        return np.empty((0,), np.float32)
    shape = [d if isinstance(d, int) else 0 for d in tensor.shape or ()]
    return np.empty((0, *shape), STORAGE[tensor.dtype])
