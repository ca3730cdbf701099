"""Recurrent layers: RNN, GRU, LSTM, in one or both directions."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from evort.ops.activation import sigmoid, softplus
from evort.ops.base import Attr, Call, Kernel, Op, op
from evort.ops.conv import same_dtype
from evort.types import FLOATS, DType, Spec

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

Function = Callable[[np.ndarray], np.ndarray]
# f(x, h, c, direction) -> (h, c): one step, for the products x of the inputs with the weights.
StepFunction = Callable[[np.ndarray, np.ndarray, np.ndarray | None, int], tuple[np.ndarray, np.ndarray | None]]


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
        names, count = self._names(c), len(self.defaults)
        if len(names) != count * self._ways(c):
            raise c.error(f"activations has {len(names)} names; {count * self._ways(c)} are needed")
        given = [list(c["activation_alpha"] or ()), list(c["activation_beta"] or ())]
        clip = c["clip"]
        found = []
        for name in names:
            if name not in _FUNCTIONS:
                raise c.error(f"unknown activation {name!r}; known: {', '.join(_FUNCTIONS)}")
            defaults, function = _FUNCTIONS[name]
            params = [v.pop(0) if v else default for default, v in zip(defaults, given, strict=False)]
            found.append(_clipped(function, params, clip))
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

    def _bind(self, c: Call, driver: str, flag: int) -> Kernel | None:
        """A driver where the activation functions are the default ones. flag: what else the cell does."""
        x, r = c.ins[0], c.ins[2]
        if x.dtype != DType.FLOAT or self._names(c) != [name.lower() for name in self.defaults] * self._ways(c):
            return None
        from evort._kernels.recurrent import recurrent_scratch

        steps, batch = x.shape[:2] if c["layout"] == 0 else x.shape[1::-1]
        sizes = (steps, batch, x.shape[2], r.shape[2])
        direction = ("forward", "reverse", "bidirectional").index(c["direction"])
        clip = math.inf if c["clip"] is None else c["clip"]
        scratch = recurrent_scratch(*sizes, self.gates, c.threads)
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

    def bind(self, c: Call) -> Kernel | None:
        return self._bind(c, "recurrent.lstm_f32", int(bool(c["input_forget"])))
