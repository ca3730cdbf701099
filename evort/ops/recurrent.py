"""Recurrent layers: RNN, GRU, LSTM, in one or both directions."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from evort.ops.activation_functions import sigmoid, softplus
from evort.ops.base import Attr, Call, Kernel, Op, op
from evort.ops.conv import same_dtype
from evort.types import FLOATS, DType, Spec

if TYPE_CHECKING:
    from evort.ops.gradients import Gradients

_FUNCTIONS: dict[str, tuple[tuple[float, ...], Callable[..., np.ndarray]]] = {
    # name: (defaults of alpha and beta, f(x, alpha, beta)), as the ONNX operators of these names
    "relu": ((), lambda x: np.maximum(x, 0)),
    "tanh": ((), np.tanh),
    "sigmoid": ((), sigmoid),
    "affine": ((1.0, 0.0), lambda x, a, b: a * x + b),
    "leakyrelu": ((0.01,), lambda x, a: np.where(x < 0, a * x, x)),
    "thresholdedrelu": ((1.0,), lambda x, a: np.where(x > a, x, 0)),
    "scaledtanh": ((1.0, 1.0), lambda x, a, b: a * np.tanh(b * x)),
    "hardsigmoid": ((0.2, 0.5), lambda x, a, b: np.clip(a * x + b, 0, 1)),
    "elu": ((1.0,), lambda x, a: np.where(x < 0, a * np.expm1(np.minimum(x, 0)), x)),
    "softsign": ((), lambda x: x / (1 + np.abs(x))),
    "softplus": ((), softplus),
}

_OPERATORS = {
    "relu": "Relu", "tanh": "Tanh", "sigmoid": "Sigmoid", "leakyrelu": "LeakyRelu", "elu": "Elu",
    "softsign": "Softsign", "thresholdedrelu": "ThresholdedRelu", "hardsigmoid": "HardSigmoid", "softplus": "Softplus",
}  # fmt: skip

Function = Callable[[np.ndarray], np.ndarray]
# f(x, h, c, direction) -> (h, c): one step, for the products x of the inputs with the weights.
StepFunction = Callable[[np.ndarray, np.ndarray, np.ndarray | None, int], tuple[np.ndarray, np.ndarray | None]]


class _Cell:
    """One direction of a layer that is lowered: what its steps are made of.

    bias: (of the inputs, of the states), or None; functions: (name, alpha and beta) of the activations.
    """

    def __init__(self, g: Gradients, c: Call, operands: list[str | None], d: int, hidden: int,
                 functions: list[tuple[str, list[float]]]):  # fmt: skip
        self.g, self.c, self.operands, self.d, self.hidden, self.functions = g, c, operands, d, hidden, functions
        self.recurrent = self.part(2)
        gates = c.ins[2].shape[1]
        self.bias: tuple[str, str] | None = None
        if operands[3] is not None:
            both = g.reshape(self.part(3), (2 * gates,))
            self.bias = tuple(g.emit("Split", [both, g.ints(gates, gates)], {"axis": 0}, outputs=2))

    def part(self, index: int) -> str:
        """This direction's part of an operand, without the axis of directions."""
        g, spec = self.g, self.c.ins[index]
        taken = g.emit("Slice", [self.operands[index], g.ints(self.d), g.ints(self.d + 1), g.ints(0)])
        return g.reshape(taken, spec.shape[1:])

    def split(self, x: str, parts: int, axis: int) -> list[str]:
        sizes = self.g.ints(*[self.hidden] * parts)
        return self.g.emit("Split", [x, sizes], {"axis": axis}, outputs=parts)

    def activated(self, index: int, x: str) -> str:
        """An activation function of x, which is clipped before it."""
        g, clip, (name, params) = self.g, self.c["clip"], self.functions[index]
        if clip is not None:
            x = g.emit("Clip", [x, g.scalar(-clip, x), g.scalar(clip, x)])
        if name == "affine":
            return g.add(g.scale(x, params[0]), g.scalar(params[1], x))
        if name == "scaledtanh":
            return g.scale(g.emit("Tanh", [g.scale(x, params[1])]), params[0])
        return g.emit(_OPERATORS[name], [x], dict(zip(("alpha", "beta"), params, strict=False)))

    def product(self, h: str, weights: str, bias: str | None = None) -> str:
        return self.g.emit("Gemm", [h, weights, bias], {"transB": 1})


class _Recurrent(Op):
    """What the three have in common. gates: how many; defaults: their activation functions; states: 2 with a cell."""

    gates: int
    defaults: tuple[str, ...]
    states = 1
    attrs = {
        "activation_alpha": Attr("floats"),
        "activation_beta": Attr("floats"),
        "activations": Attr("strs"),
        "clip": Attr("float"),
        "direction": Attr("str", "forward"),
        "hidden_size": Attr("int"),
        "layout": Attr("int", 0),
    }

    def infer(self, c: Call) -> list[Spec | None]:
        floats = [i for i, name in enumerate(self.inputs) if name != "sequence_lens?"]
        same_dtype(c, *floats)
        x, r = c.ins[0], c.ins[2]
        if c["direction"] not in ("forward", "reverse", "bidirectional"):
            raise c.error(f"direction {c['direction']!r} must be forward, reverse or bidirectional")
        if c["layout"] not in (0, 1):
            raise c.error(f"layout {c['layout']} must be 0 or 1")
        if x.rank != 3 or r.rank != 3:
            raise c.error("X, W and R must have three axes")
        steps, batch = x.shape[:2] if c["layout"] == 0 else x.shape[1::-1]
        ways, hidden = self._ways(c), r.shape[2]
        if c["hidden_size"] not in (None, hidden):
            raise c.error(f"hidden_size {c['hidden_size']} is not that of R, {hidden}")
        state = (ways, batch, hidden) if c["layout"] == 0 else (batch, ways, hidden)
        expected = {
            "W": (ways, self.gates * hidden, x.shape[2]),
            "R": (ways, self.gates * hidden, hidden),
            "B": (ways, 2 * self.gates * hidden),
            "sequence_lens": (batch,),
            "initial_h": state,
            "initial_c": state,
            "P": (ways, 3 * hidden),
        }
        for i, name in enumerate(self.inputs):
            shape = expected.get(name.strip("?"))
            if shape is not None and c.has(i) and c.ins[i].shape != shape:
                raise c.error(f"{name.strip('?')} must have shape {list(shape)}")
        if c["clip"] is not None and not c["clip"] >= 0:
            raise c.error(f"clip {c['clip']} must be at least 0")
        self._functions(c)
        all_steps = (steps, ways, batch, hidden) if c["layout"] == 0 else (batch, steps, ways, hidden)
        shapes = (all_steps, *(state,) * self.states)
        return [Spec(x.dtype, s) if c.wants(i) else None for i, s in enumerate(shapes[: len(c.node.outputs)])]

    def macs(self, c: Call) -> int:
        steps = c.ins[0].shape[0] * c.ins[0].shape[1]
        return steps * (math.prod(c.ins[1].shape) + math.prod(c.ins[2].shape))

    def seen(self, h: np.ndarray) -> np.ndarray:
        """A state as the product with R sees it."""
        return h

    @staticmethod
    def _ways(c: Call) -> int:
        return 2 if c["direction"] == "bidirectional" else 1

    def _names(self, c: Call) -> list[str]:
        """The activation functions' names, for one direction after the other."""
        names = list(self.defaults) * self._ways(c) if c["activations"] is None else c["activations"]
        return [name.lower() for name in names]

    def _functions(self, c: Call) -> list[list[Function]]:
        """The activation functions of each direction, clipping included. Raises ShapeError."""
        clip = c["clip"]
        return [[_clipped(_FUNCTIONS[name][1], params, clip) for name, params in way] for way in self._parameters(c)]

    def _parameters(self, c: Call) -> list[list[tuple[str, list[float]]]]:
        """The activation functions of each direction: names, alpha and beta. Raises ShapeError."""
        names, count = self._names(c), len(self.defaults)
        if len(names) != count * self._ways(c):
            raise c.error(f"activations has {len(names)} names; {count * self._ways(c)} are needed")
        given = [list(c["activation_alpha"] or ()), list(c["activation_beta"] or ())]
        found = []
        for name in names:
            if name not in _FUNCTIONS:
                raise c.error(f"unknown activation {name!r}; known: {', '.join(_FUNCTIONS)}")
            defaults = _FUNCTIONS[name][0]
            found.append((name, [v.pop(0) if v else default for default, v in zip(defaults, given, strict=False)]))
        return [found[i : i + count] for i in range(0, len(found), count)]

    def _run(
        self,
        c: Call,
        x: np.ndarray,
        w: np.ndarray,
        lens: np.ndarray | None,
        h0: np.ndarray | None,
        c0: np.ndarray | None,
        hidden: int,
        step: StepFunction,
        bias: np.ndarray,
    ) -> tuple[np.ndarray, ...]:
        """All steps of all directions. bias [D, gates * H] is added to the products of the inputs."""
        if c["layout"] == 1:
            x = x.swapaxes(0, 1)
            h0, c0 = (None if s is None else s.swapaxes(0, 1) for s in (h0, c0))
        steps, batch = x.shape[:2]
        ways = self._ways(c)
        lens = np.full(batch, steps) if lens is None else np.clip(lens, 0, steps)
        y = np.zeros((steps, ways, batch, hidden), x.dtype)
        states: list[list[np.ndarray]] = [[], []]
        rows = np.arange(batch)
        for d in range(ways):
            reverse = c["direction"] == "reverse" or d == 1
            h, cell = (np.zeros((batch, hidden), x.dtype) if s is None else s[d] for s in (h0, c0))
            products = x @ w[d].T + bias[d]
            for t in range(steps):
                live = t < lens
                at = np.where(live, lens - 1 - t if reverse else t, 0)
                new_h, new_cell = step(products[at, rows], h, cell, d)
                h = np.where(live[:, None], new_h, h)
                cell = np.where(live[:, None], new_cell, cell) if new_cell is not None else cell
                y[at[live], d, rows[live]] = h[live]
            states[0].append(h)
            states[1].append(cell)
        last = [np.stack(s) for s in states[: self.states]]
        if c["layout"] == 1:
            return (y.transpose(2, 0, 1, 3), *(s.swapaxes(0, 1) for s in last))
        return (y, *last)

    # Training: the steps one after another, of operators with gradients.

    def lower(self, g: Gradients, c: Call) -> list[str | None]:
        """Every step's operators. Of sequences of different lengths, each keeps its state behind its end."""
        functions = self._parameters(c)
        operands = [c.node.inputs[i] if c.has(i) else None for i in range(len(self.inputs))]
        x, hidden = operands[0], c.ins[2].shape[2]
        steps, batch = c.ins[0].shape[:2] if c["layout"] == 0 else c.ins[0].shape[1::-1]
        if c["layout"]:
            x = g.transpose(x, [1, 0, 2])
        ways = self._ways(c)
        lengths = g.reshape(g.cast(operands[4], c.ins[0].dtype), (batch, 1)) if c.has(4) else None
        rows = g.reshape(x, (steps * batch, c.ins[0].shape[2]))
        outputs: list[list[str]] = []
        lasts: list[list[str]] = []
        for d in range(ways):
            cell = _Cell(g, c, operands, d, hidden, functions[d])
            products = g.emit("Gemm", [rows, cell.part(1), self.input_bias(cell)], {"transB": 1})
            each = g.emit("Split", [products, g.ints(*[batch] * steps)], {"axis": 0}, outputs=steps)
            each = [each] if steps == 1 else each
            reverse = c["direction"] == "reverse" or d == 1
            zero = g.expand(g.scalar(0, x), (batch, hidden))
            state = [self._first(g, c, operands, i, d, zero) for i in (5, 6)[: self.states]]
            found: dict[int, str] = {}
            for t in range(steps)[::-1] if reverse else range(steps):
                new = self.cell(cell, each[t], state)
                if lengths is None:
                    state, found[t] = new, new[0]
                    continue
                live = g.emit("Greater", [lengths, g.scalar(t, lengths)])
                state = [g.emit("Where", [live, *pair]) for pair in zip(new, state, strict=True)]
                found[t] = g.emit("Where", [live, new[0], g.scalar(0, x)])
            outputs.append([g.reshape(found[t], (1, 1, batch, hidden)) for t in range(steps)])
            lasts.append([g.reshape(s, (1, batch, hidden)) for s in state])
        y = g.emit("Concat", [g.emit("Concat", way, {"axis": 0}) for way in outputs], {"axis": 1})
        last = [g.emit("Concat", [way[i] for way in lasts], {"axis": 0}) for i in range(self.states)]
        if c["layout"]:
            y, last = g.transpose(y, [2, 0, 1, 3]), [g.transpose(s, [1, 0, 2]) for s in last]
        return [y, *last]

    @staticmethod
    def _first(g: Gradients, c: Call, operands: list[str | None], index: int, d: int, zero: str) -> str:
        """A direction's first state."""
        if index >= len(operands) or operands[index] is None:
            return zero
        s = g.transpose(operands[index], [1, 0, 2]) if c["layout"] else operands[index]
        return g.reshape(g.emit("Slice", [s, g.ints(d), g.ints(d + 1), g.ints(0)]), g.shape(zero))

    def input_bias(self, cell: _Cell) -> str | None:
        """What is added to the products of the inputs."""
        return None if cell.bias is None else cell.g.add(*cell.bias)

    def cell(self, cell: _Cell, x: str, state: list[str]) -> list[str]:
        """One step: the new states, from the products of the inputs."""
        raise NotImplementedError

    def _bind(self, c: Call, driver: str, flag: int) -> Kernel | None:
        """A driver where the activation functions are the default ones. flag: what else the cell does."""
        x, r = c.ins[0], c.ins[2]
        if x.dtype != DType.FLOAT or self._names(c) != [name.lower() for name in self.defaults] * self._ways(c):
            return None
        from evort._kernels import recurrent

        steps, batch = x.shape[:2] if c["layout"] == 0 else x.shape[1::-1]
        sizes = (steps, batch, x.shape[2], r.shape[2])
        direction = ("forward", "reverse", "bidirectional").index(c["direction"])
        clip = math.inf if c["clip"] is None else c["clip"]
        scratch = recurrent.recurrent_scratch(*sizes, self.gates, c.threads)
        return Kernel(driver, (*sizes, direction, c["layout"], flag), (clip,), scratch)


def _clipped(function: Callable[..., np.ndarray], params: list[float], clip: float | None) -> Function:
    def f(x: np.ndarray) -> np.ndarray:
        if clip is not None:
            x = np.clip(x, -clip, clip)
        with np.errstate(all="ignore"):
            return function(x, *(x.dtype.type(p) for p in params))

    return f


def _wide(*arrays: np.ndarray | None) -> list[np.ndarray | None]:
    """float16 as float32, in which the steps are computed."""
    return [x.astype(np.float32) if x is not None and x.dtype == np.float16 else x for x in arrays]


_T1 = {"sequence_lens": frozenset({DType.INT32})}


@op("RNN", since=22)
class RNN(_Recurrent):
    """H_t = f(X_t W^T + H_{t-1} R^T + Wb + Rb). X [T, N, I] (layout 1: [N, T, I]), W [D, H, I], R [D, H, H],
    B [D, 2H] = (Wb, Rb); Y [T, D, N, H], Y_h [D, N, H] (layout 1: [N, T, D, H], [N, D, H])."""

    inputs = ("X", "W", "R", "B?", "sequence_lens?", "initial_h?")
    outputs = ("Y?", "Y_h?")
    dtypes = {**dict.fromkeys(("X", "W", "R", "B", "initial_h"), FLOATS), **_T1}
    gates = 1
    defaults = ("Tanh",)

    def reference(self, c: Call, x: np.ndarray, w: np.ndarray, r: np.ndarray, b: np.ndarray | None = None,
                  lens: np.ndarray | None = None, h0: np.ndarray | None = None) -> tuple[np.ndarray, ...]:  # fmt: skip
        x, w, r, b, h0 = _wide(x, w, r, b, h0)
        functions, hidden = self._functions(c), r.shape[2]
        bias = np.zeros((len(w), hidden), x.dtype) if b is None else b[:, :hidden] + b[:, hidden:]

        def step(p: np.ndarray, h: np.ndarray, cell: np.ndarray | None, d: int) -> tuple[np.ndarray, None]:
            return functions[d][0](p + self.seen(h) @ r[d].T), None

        return self._run(c, x, w, lens, h0, None, hidden, step, bias)

    def cell(self, cell: _Cell, x: str, state: list[str]) -> list[str]:
        return [cell.activated(0, cell.g.add(x, cell.product(state[0], cell.recurrent)))]

    def bind(self, c: Call) -> Kernel | None:
        return self._bind(c, "recurrent.rnn_f32", 0)


@op("GRU", since=22)
class GRU(_Recurrent):
    """Gated recurrent unit (Cho et al., 2014), gates in the order z, r, h:

        z = f(X Wz^T + H Rz^T + Wbz + Rbz)        r = f(X Wr^T + H Rr^T + Wbr + Rbr)
        h = g(X Wh^T + (r * H) Rh^T + Wbh + Rbh), or with linear_before_reset  g(X Wh^T + r * (H Rh^T + Rbh) + Wbh)
        H = (1 - z) * h + z * H

    X [T, N, I] (layout 1: [N, T, I]), W [D, 3H, I], R [D, 3H, H], B [D, 6H]; Y [T, D, N, H], Y_h [D, N, H]
    (layout 1: [N, T, D, H], [N, D, H])."""

    inputs = ("X", "W", "R", "B?", "sequence_lens?", "initial_h?")
    outputs = ("Y?", "Y_h?")
    dtypes = RNN.dtypes
    attrs = {**_Recurrent.attrs, "linear_before_reset": Attr("int", 0)}
    gates = 3
    defaults = ("Sigmoid", "Tanh")

    def reference(self, c: Call, x: np.ndarray, w: np.ndarray, r: np.ndarray, b: np.ndarray | None = None,
                  lens: np.ndarray | None = None, h0: np.ndarray | None = None) -> tuple[np.ndarray, ...]:  # fmt: skip
        x, w, r, b, h0 = _wide(x, w, r, b, h0)
        functions, hidden = self._functions(c), r.shape[2]
        before = bool(c["linear_before_reset"])
        b = np.zeros((len(w), 6 * hidden), x.dtype) if b is None else b
        bias, inner = b[:, : 3 * hidden] + b[:, 3 * hidden :], np.zeros_like(b[:, 5 * hidden :])
        if before:
            inner = b[:, 5 * hidden :]
            bias[:, 2 * hidden :] = b[:, 2 * hidden : 3 * hidden]

        def step(p: np.ndarray, h: np.ndarray, cell: np.ndarray | None, d: int) -> tuple[np.ndarray, None]:
            f, g = functions[d]
            z, reset = np.split(f(p[:, : 2 * hidden] + self.seen(h) @ r[d, : 2 * hidden].T), 2, axis=1)
            last = r[d, 2 * hidden :].T
            inside = reset * (self.seen(h) @ last + inner[d]) if before else self.seen(reset * h) @ last
            new = g(p[:, 2 * hidden :] + inside)
            return (1 - z) * new + z * h, None

        return self._run(c, x, w, lens, h0, None, hidden, step, bias)

    def input_bias(self, cell: _Cell) -> str | None:
        if cell.bias is None or not cell.c["linear_before_reset"]:
            return super().input_bias(cell)
        g, (of_input, of_state) = cell.g, cell.bias
        both, last = cell.split(of_state, 3, 0)[:2], g.expand(g.scalar(0, of_state), (cell.hidden,))
        return g.add(of_input, g.emit("Concat", [*both, last], {"axis": 0}))

    def cell(self, cell: _Cell, x: str, state: list[str]) -> list[str]:
        g, (h,) = cell.g, state
        weights = cell.split(cell.recurrent, 3, 0)
        at_z, at_r, at_h = cell.split(x, 3, 1)
        z = cell.activated(0, g.add(at_z, cell.product(h, weights[0])))
        reset = cell.activated(0, g.add(at_r, cell.product(h, weights[1])))
        if cell.c["linear_before_reset"]:
            bias = None if cell.bias is None else cell.split(cell.bias[1], 3, 0)[2]
            inside = g.mul(reset, cell.product(h, weights[2], bias))
        else:
            inside = cell.product(g.mul(reset, h), weights[2])
        new = cell.activated(1, g.add(at_h, inside))
        return [g.add(new, g.mul(z, g.sub(h, new)))]

    def bind(self, c: Call) -> Kernel | None:
        return self._bind(c, "recurrent.gru_f32", int(bool(c["linear_before_reset"])))


@op("LSTM", since=22)
class LSTM(_Recurrent):
    """Long short-term memory (Hochreiter and Schmidhuber, 1997) with peepholes P, gates in the order i, o, f, c:

        i = f(X Wi^T + H Ri^T + Pi * C + Wbi + Rbi)     f likewise, or 1 - i with input_forget
        C = f * C + i * g(X Wc^T + H Rc^T + Wbc + Rbc)
        o = f(X Wo^T + H Ro^T + Po * C + Wbo + Rbo)     H = o * h(C)

    X [T, N, I] (layout 1: [N, T, I]), W [D, 4H, I], R [D, 4H, H], B [D, 8H], P [D, 3H] (i, o, f); Y [T, D, N, H],
    Y_h and Y_c [D, N, H] (layout 1: [N, T, D, H], [N, D, H])."""

    inputs = ("X", "W", "R", "B?", "sequence_lens?", "initial_h?", "initial_c?", "P?")
    outputs = ("Y?", "Y_h?", "Y_c?")
    dtypes = {**RNN.dtypes, "initial_c": FLOATS, "P": FLOATS}
    attrs = {**_Recurrent.attrs, "input_forget": Attr("int", 0)}
    gates = 4
    defaults = ("Sigmoid", "Tanh", "Tanh")
    states = 2

    def reference(self, c: Call, x: np.ndarray, w: np.ndarray, r: np.ndarray, b: np.ndarray | None = None,
                  lens: np.ndarray | None = None, h0: np.ndarray | None = None, c0: np.ndarray | None = None,
                  p: np.ndarray | None = None) -> tuple[np.ndarray, ...]:  # fmt: skip
        x, w, r, b, h0, c0, p = _wide(x, w, r, b, h0, c0, p)
        functions, hidden = self._functions(c), r.shape[2]
        bias = np.zeros((len(w), 4 * hidden), x.dtype) if b is None else b[:, : 4 * hidden] + b[:, 4 * hidden :]
        p = np.zeros((len(w), 3 * hidden), x.dtype) if p is None else p

        def step(product: np.ndarray, state: np.ndarray, cell: np.ndarray, d: int) -> tuple[np.ndarray, np.ndarray]:
            f, g, h = functions[d]
            peep_i, peep_o, peep_f = np.split(p[d], 3)
            i, o, forget, new = np.split(product + self.seen(state) @ r[d].T, 4, axis=1)
            i = f(i + peep_i * cell)
            forget = 1 - i if c["input_forget"] else f(forget + peep_f * cell)
            cell = forget * cell + i * g(new)
            return f(o + peep_o * cell) * h(cell), cell

        return self._run(c, x, w, lens, h0, c0, hidden, step, bias)

    def cell(self, cell: _Cell, x: str, state: list[str]) -> list[str]:
        g, (h, kept) = cell.g, state
        i, o, f, new = cell.split(g.add(x, cell.product(h, cell.recurrent)), 4, 1)
        if cell.operands[7] is not None:
            peep_i, peep_o, peep_f = cell.split(cell.part(7), 3, 0)
            i, f = g.add(i, g.mul(peep_i, kept)), g.add(f, g.mul(peep_f, kept))
        i = cell.activated(0, i)
        forget = g.sub(g.scalar(1, i), i) if cell.c["input_forget"] else cell.activated(0, f)
        kept = g.add(g.mul(forget, kept), g.mul(i, cell.activated(1, new)))
        if cell.operands[7] is not None:
            o = g.add(o, g.mul(peep_o, kept))
        return [g.mul(cell.activated(0, o), cell.activated(2, kept)), kept]

    def bind(self, c: Call) -> Kernel | None:
        return self._bind(c, "recurrent.lstm_f32", int(bool(c["input_forget"])))
