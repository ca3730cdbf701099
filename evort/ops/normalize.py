"""Normalizations: batch, instance, layer, group, RMS, Lp, local response, mean-variance.

Those that end in an affine map may carry an activation (evort.ops.activation), so that both are one pass.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from evort.ops.activation import activation_attrs, activation_ints_reals, apply_reference, check_activation
from evort.ops.base import REQUIRED, Attr, Call, Kernel, Op, op, wide
from evort.types import FLOATS, STORAGE, DType, Spec

if TYPE_CHECKING:
    from evort.ops.gradients import Gradients

_EPSILON = {"epsilon": Attr("float", 1e-5)}


def _floats(c: Call, *indices: int) -> bool:
    """Whether these inputs (where present) are float32, so that a driver takes them."""
    return all(c.ins[i].dtype == DType.FLOAT for i in indices if c.has(i))


def _channels(c: Call, *params: int) -> int:
    """The length of axis 1, which the inputs `params` must have too."""
    x = c.ins[0]
    if x.rank < 2:
        raise c.error("the input must have a batch and a channel axis")
    for i in params:
        if c.ins[i].shape != (x.shape[1],):
            raise c.error(f"input {i} must have shape ({x.shape[1]},): one number for each channel")
    return x.shape[1]


def _by_channel(param: np.ndarray, rank: int) -> np.ndarray:
    return wide(param).reshape(-1, *(1,) * (rank - 2))


def _mean(x: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    """The mean with kept dimensions; NaN (and no warning) for no elements."""
    return np.sum(x, axis=axes, keepdims=True) / np.float64(prod(x.shape[a] for a in axes))


def _standardized(x: np.ndarray, axes: tuple[int, ...], epsilon: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """((x - mean) / sqrt(var + epsilon), mean, 1 / sqrt(var + epsilon)), in float64."""
    x = wide(x)
    mean = _mean(x, axes)
    centred = x - mean
    inverse = 1.0 / np.sqrt(_mean(np.square(centred), axes) + epsilon)
    return centred * inverse, mean, inverse


@op("BatchNormalization", since=15)
class BatchNormalization(Op):
    """Y = (X - mean) / sqrt(var + epsilon) * scale + B for each channel (axis 1), with the given mean and variance.

    With `training_mode` by those of X itself, and running_x = input_x * momentum + x * (1 - momentum) are outputs
    (population variance). Ioffe and Szegedy, arXiv:1502.03167. A vector counts as one channel.
    """

    inputs = ("X", "scale", "B", "input_mean", "input_var")
    outputs = ("Y", "running_mean?", "running_var?")
    attrs = {**_EPSILON, "momentum": Attr("float", 0.9), "training_mode": Attr("int", 0), **activation_attrs()}
    untrained = (3, 4)
    dtypes = dict.fromkeys(inputs, FLOATS)
    inplace = ((0, 0),)

    def infer(self, c: Call) -> list[Spec | None]:
        x = c.ins[0]
        check_activation(c)
        if x.rank == 0:
            raise c.error("the input is a scalar")
        channels = 1 if x.rank == 1 else x.shape[1]
        for i in range(1, 5):
            if c.ins[i].shape != (channels,):
                raise c.error(f"input {i} must have shape ({channels},): one number for each channel")
        if not c["training_mode"]:
            if c.wants(1) or c.wants(2):
                raise c.error("running statistics are outputs only with training_mode = 1")
            return [c.like(0)]
        if x.size == 0:
            raise c.error("an empty batch has no statistics")
        return [c.like(0), *(Spec(c.ins[i + 2].dtype, (channels,)) if c.wants(i) else None for i in (1, 2))]

    def reference(self, c: Call, x, scale, bias, mean, var) -> Any:
        shaped = wide(x.reshape(1, 1, -1) if x.ndim == 1 else x)
        mean, var = wide(mean), wide(var)
        running = ()
        if c["training_mode"]:
            axes = (0, *range(2, shaped.ndim))
            found = np.mean(shaped, axis=axes), np.var(shaped, axis=axes)
            keep = c["momentum"]
            running = tuple(old * keep + new * (1 - keep) for old, new in zip((mean, var), found, strict=True))
            mean, var = found
        with np.errstate(all="ignore"):
            scale = _by_channel(wide(scale) / np.sqrt(var + c["epsilon"]), shaped.ndim)
            y = (shaped - _by_channel(mean, shaped.ndim)) * scale + _by_channel(bias, shaped.ndim)
            y = apply_reference(c, y.astype(x.dtype)).reshape(x.shape)
        return (y, *running)

    def bind(self, c: Call) -> Kernel | None:
        x = c.ins[0]
        if x.size == 0 or not _floats(c, *range(5)):
            return None
        act, params = activation_ints_reals(c)
        channels, inner = (1, x.size) if x.rank == 1 else (x.shape[1], prod(x.shape[2:]))
        if c["training_mode"]:
            ints = (x.size // (channels * inner), channels, inner, *act)
            return Kernel("train.batch_norm_f32", ints, (c["epsilon"], c["momentum"], *params))
        reals = (c["epsilon"], *params)
        return Kernel("normalize.batch_f32", (channels, inner, *act), reals, scratch=4 * channels)

    def gradient(self, g: Gradients, c: Call, dy: str, *_: str | None) -> list[str | None]:
        x, scale, _, mean, var = c.node.inputs
        rank = c.ins[0].rank
        if rank == 1:
            raise c.error("a batch of numbers without channels has no gradient in evort")
        if c["training_mode"]:
            attrs = {"epsilon": c["epsilon"]}
            return [*g.emit("BatchNormalizationGrad", [dy, x, scale], attrs, "evort", 3), None, None]
        # With given moments it is an affine map.
        column = (c.ins[0].shape[1], *(1,) * (rank - 2))
        inverse = g.emit("Reciprocal", [g.emit("Sqrt", [g.add(var, g.scalar(c["epsilon"], var))])])
        axes = [i for i in range(rank) if i != 1]
        slope = g.mul(scale, inverse)
        dx = g.mul(dy, g.reshape(slope, column)) if g.wants(0) else None
        db = g.sum(dy, axes, False) if g.wants(2) or g.wants(3) else None
        dmean = g.neg(g.mul(db, slope)) if g.wants(3) else None
        dscale = dvar = None
        if g.wants(1) or g.wants(4):
            standard = g.mul(g.sub(x, g.reshape(mean, column)), g.reshape(inverse, column))
            dscale = g.sum(g.mul(dy, standard), axes, False)
            dvar = g.mul(dscale, g.scale(g.mul(slope, inverse), -0.5)) if g.wants(4) else None
        return [dx, dscale, db, dmean, dvar]


@op("BatchNormalizationGrad", domain="evort")
class BatchNormalizationGrad(Op):
    """dX, dscale and dB of a BatchNormalization of X by its own moments (training_mode 1), which are found again."""

    inputs, outputs = ("dY", "X", "scale"), ("dX", "dscale", "dB")
    attrs = dict(_EPSILON)
    dtypes = dict.fromkeys(inputs, FLOATS)

    def infer(self, c: Call) -> list[Spec]:
        dy, x, scale = c.ins
        if x.rank < 2 or dy.shape != x.shape or scale.shape != (x.shape[1],) or x.size == 0:
            raise c.error("dY and X must have one shape, which is not empty, and scale a number for each channel")
        return [c.like(0), c.like(2), c.like(2)]

    def reference(self, c: Call, dy, x, scale) -> Any:
        axes, count = (0, *range(2, x.ndim)), x.size // x.shape[1]
        standard, _, inverse = _standardized(x, axes, c["epsilon"])
        dy = wide(dy)
        dscale, db = np.sum(dy * standard, axes), np.sum(dy, axes)
        rest = dy - _by_channel(db / count, x.ndim) - standard * _by_channel(dscale / count, x.ndim)
        return _by_channel(scale, x.ndim) * inverse * rest, dscale, db

    def bind(self, c: Call) -> Kernel | None:
        x = c.ins[1]
        if not _floats(c, 0, 1, 2):
            return None
        ints = (x.shape[0], x.shape[1], prod(x.shape[2:]))
        return Kernel("train.batch_norm_grad_f32", ints, (c["epsilon"],))


def standardized(g: Gradients, x: str, axes: tuple[int, ...], epsilon: float, centred: bool = True) -> tuple[str, str]:
    """((x - mean) / sqrt(var + epsilon), 1 / sqrt(var + epsilon)), as operators; not centred: of the mean of
    squares."""
    if centred:
        x = g.sub(x, g.mean(x, axes))
    root = g.emit("Sqrt", [g.add(g.mean(g.mul(x, x), axes), g.scalar(epsilon, x))])
    inverse = g.emit("Reciprocal", [root])
    return g.mul(x, inverse), inverse


def standardized_gradient(
    g: Gradients, dy: str, standard: str, inverse: str, axes: tuple[int, ...], centred: bool = True
) -> str:
    """The gradient in front of `standardized`."""
    rest = g.sub(dy, g.mul(standard, g.mean(g.mul(dy, standard), axes)))
    if centred:
        rest = g.sub(rest, g.mean(dy, axes))
    return g.mul(rest, inverse)


class _Grouped(Op):
    """Shared by InstanceNormalization (one channel a group) and GroupNormalization."""

    def groups(self, c: Call) -> int:
        raise NotImplementedError

    def infer(self, c: Call) -> list[Spec]:
        check_activation(c)
        channels, groups = _channels(c, 1, 2), self.groups(c)
        if groups < 0 or (groups == 0) != (channels == 0) or (groups and channels % groups):
            raise c.error(f"{channels} channels cannot be split into {groups} groups")
        return [c.like(0)]

    def reference(self, c: Call, x, scale, bias) -> np.ndarray:
        if x.size == 0:
            return x
        grouped = x.reshape(x.shape[0], self.groups(c), -1)
        with np.errstate(all="ignore"):
            y = _standardized(grouped, (2,), c["epsilon"])[0].reshape(x.shape)
            y = y * _by_channel(scale, x.ndim) + _by_channel(bias, x.ndim)
            return apply_reference(c, y.astype(x.dtype))

    def bind(self, c: Call) -> Kernel | None:
        x = c.ins[0]
        if x.size == 0 or not _floats(c, 0, 1, 2):
            return None
        act, params = activation_ints_reals(c)
        groups = self.groups(c)
        ints = (groups, x.shape[1] // groups, prod(x.shape[2:]), *act, DType.FLOAT, 0)
        return Kernel("normalize.group_f32", ints, (c["epsilon"], *params, 1.0))

    def gradient(self, g: Gradients, c: Call, dy: str) -> list[str | None]:
        x, scale = c.node.inputs[:2]
        dims, rank = c.ins[0].shape, c.ins[0].rank
        rows = (dims[0], self.groups(c), -(-prod(dims[1:]) // max(1, self.groups(c))))
        standard, inverse = standardized(g, g.reshape(x, rows), (2,), c["epsilon"])
        column, axes = (dims[1], *(1,) * (rank - 2)), [i for i in range(rank) if i != 1]
        dx = standardized_gradient(g, g.reshape(g.mul(dy, g.reshape(scale, column)), rows), standard, inverse, (2,))
        dscale = g.sum(g.mul(dy, g.reshape(standard, dims)), axes, False)
        return [g.reshape(dx, dims), dscale, g.sum(dy, axes, False)]


@op("InstanceNormalization", since=22)
class InstanceNormalization(_Grouped):
    """Y = (X - mean) / sqrt(var + epsilon) * scale + B with the moments of each instance and channel.

    Ulyanov, Vedaldi and Lempitsky, arXiv:1607.08022.
    """

    inputs, outputs = ("input", "scale", "B"), ("output",)
    attrs = {**_EPSILON, **activation_attrs()}
    dtypes = dict.fromkeys(inputs, FLOATS)
    inplace = ((0, 0),)  # a row's moments are taken before it is written

    def groups(self, c: Call) -> int:
        return c.ins[0].shape[1]


@op("GroupNormalization", since=21)
class GroupNormalization(_Grouped):
    """Y = (X - mean) / sqrt(var + epsilon) * scale + bias with the moments of each instance and group of channels.

    Wu and He, arXiv:1803.08494.
    """

    inputs, outputs = ("X", "scale", "bias"), ("Y",)
    attrs = {**_EPSILON, "num_groups": Attr("int", REQUIRED), "stash_type": Attr("int", 1), **activation_attrs()}
    dtypes = dict.fromkeys(inputs, FLOATS)
    inplace = ((0, 0),)

    def groups(self, c: Call) -> int:
        return c["num_groups"]


def _broadcasts(c: Call, index: int) -> None:
    """Raises where an input cannot be broadcast to X."""
    given, x = c.ins[index].shape, c.ins[0].shape
    if len(given) > len(x) or any(d not in (1, n) for d, n in zip(given[::-1], x[::-1], strict=False)):
        raise c.error(f"input {index} of shape {given} does not broadcast to {x}")


def _period(c: Call, index: int, n: int) -> int:
    """How many elements of X pass until a broadcast input repeats, where it is a dense run of at most `n`; else 0."""
    spec, x = c.ins[index], c.ins[0]
    shape = spec.shape
    while shape and shape[0] == 1:
        shape = shape[1:]
    if shape != x.shape[x.rank - len(shape) :] or not 0 < spec.size <= n or (spec.size == 1 and n > 1):
        return 0
    return spec.size


class _Trailing(Op):
    """Shared by LayerNormalization and RMSNormalization: moments over the axes from `axis` on."""

    def axes(self, c: Call) -> tuple[int, ...]:
        rank = c.ins[0].rank
        return tuple(range(c.axis(c["axis"], rank), rank))

    def stash(self, c: Call) -> DType:
        if c["stash_type"] not in (DType.FLOAT, DType.BFLOAT16):
            raise c.error(f"stash_type {c['stash_type']} is neither 1 (float) nor 16 (bfloat16)")
        return DType(c["stash_type"])

    def kernel(self, c: Call, centred: bool) -> Kernel | None:
        x = c.ins[0]
        if x.size == 0 or not _floats(c, 0, 1, 2):
            return None
        n = prod(x.shape[a] for a in self.axes(c))
        period = _period(c, 1, n)
        bias = _period(c, 2, n) if c.has(2) else 0
        if not period or (c.has(2) and (not bias or bias % period)):
            return None
        act, params = activation_ints_reals(c)
        return Kernel("normalize.layer_f32", (n, period, bias, int(centred), *act), (c["epsilon"], *params))

    def gradients(self, g: Gradients, c: Call, dy: str, centred: bool) -> list[str | None]:
        x, scale = c.node.inputs[:2]
        axes = self.axes(c)
        standard, inverse = standardized(g, x, axes, c["epsilon"], centred)
        dx = dscale = None
        if g.wants(0):
            dx = standardized_gradient(g, g.mul(dy, scale), standard, inverse, axes, centred)
        if g.wants(1):
            dscale = g.reduced_to(g.mul(dy, standard), c.ins[1].shape)
        return [dx, dscale, g.reduced_to(dy, c.ins[2].shape) if g.wants(2) else None]


@op("LayerNormalization", since=17)
class LayerNormalization(_Trailing):
    """Y = (X - Mean) * InvStdDev * Scale + B with the moments over the axes from `axis` on.

    Mean and InvStdDev = 1 / sqrt(var + epsilon) are optional outputs of type `stash_type`, with those axes of
    length 1. Ba, Kiros and Hinton, arXiv:1607.06450.
    """

    inputs, outputs = ("X", "Scale", "B?"), ("Y", "Mean?", "InvStdDev?")
    attrs = {"axis": Attr("int", -1), **_EPSILON, "stash_type": Attr("int", 1), **activation_attrs()}
    dtypes = {"X": FLOATS, "Scale": FLOATS, "B": FLOATS}
    inplace = ((0, 0),)

    def infer(self, c: Call) -> list[Spec | None]:
        check_activation(c)
        for i in (1, 2):
            if c.has(i):
                _broadcasts(c, i)
        axes, stash = self.axes(c), self.stash(c)
        moments = tuple(1 if i in axes else d for i, d in enumerate(c.ins[0].shape))
        return [c.like(0), *(Spec(stash, moments) if c.wants(i) else None for i in (1, 2))]

    def reference(self, c: Call, x, scale, bias=None) -> Any:
        with np.errstate(all="ignore"):
            y, mean, inverse = _standardized(x, self.axes(c), c["epsilon"])
            y = y * wide(scale)
            y = y if bias is None else y + wide(bias)
            return apply_reference(c, y.astype(x.dtype)), mean, inverse

    def bind(self, c: Call) -> Kernel | None:
        if any(s is not None and s.dtype != DType.FLOAT for s in c.outs):
            return None
        return self.kernel(c, True)

    def gradient(self, g: Gradients, c: Call, dy: str, *_: None) -> list[str | None]:
        return self.gradients(g, c, dy, True)


@op("RMSNormalization", since=23)
class RMSNormalization(_Trailing):
    """Y = X / sqrt(mean of X*X + epsilon) * scale, the mean over the axes from `axis` on.

    Zhang and Sennrich, arXiv:1910.07467.
    """

    inputs, outputs = ("X", "scale"), ("Y",)
    attrs = {"axis": Attr("int", -1), **_EPSILON, "stash_type": Attr("int", 1), **activation_attrs()}
    dtypes = {"X": FLOATS, "scale": FLOATS}
    inplace = ((0, 0),)

    def infer(self, c: Call) -> list[Spec]:
        check_activation(c)
        _broadcasts(c, 1)
        self.axes(c), self.stash(c)
        return [c.like(0, c.ins[1].dtype)]

    def reference(self, c: Call, x, scale) -> np.ndarray:
        with np.errstate(all="ignore"):
            wider = wide(x)
            y = wider / np.sqrt(_mean(np.square(wider), self.axes(c)) + c["epsilon"]) * wide(scale)
            return apply_reference(c, y.astype(scale.dtype))

    def bind(self, c: Call) -> Kernel | None:
        return self.kernel(c, False)

    def gradient(self, g: Gradients, c: Call, dy: str) -> list[str | None]:
        return self.gradients(g, c, dy, False)[:2]


@op("LpNormalization", since=22)
class LpNormalization(Op):
    """Y = X / (sum of |X|^p along `axis`)^(1/p) with p = 1 or 2; 0 where that is 0."""

    inputs, outputs = ("input",), ("output",)
    attrs = {"axis": Attr("int", -1), "p": Attr("int", 2)}
    dtypes = {"input": FLOATS}
    inplace = ((0, 0),)

    def infer(self, c: Call) -> list[Spec]:
        c.axis(c["axis"], c.ins[0].rank)
        if c["p"] not in (1, 2):
            raise c.error(f"p must be 1 or 2, not {c['p']}")
        return [c.like(0)]

    def reference(self, c: Call, x: np.ndarray) -> np.ndarray:
        with np.errstate(all="ignore"):
            wider = wide(x)
            if c["p"] == 1:
                norm = np.sum(np.abs(wider), axis=c["axis"], keepdims=True)
            else:
                norm = np.sqrt(np.sum(np.square(wider), axis=c["axis"], keepdims=True))
            return np.where(norm == 0, 0, wider / norm)

    def bind(self, c: Call) -> Kernel | None:
        x = c.ins[0]
        if x.size == 0 or x.dtype != DType.FLOAT:
            return None
        axis = c.axis(c["axis"], x.rank)
        return Kernel("normalize.norm_f32", (c["p"], x.shape[axis], prod(x.shape[axis + 1 :])))

    def gradient(self, g: Gradients, c: Call, dy: str) -> list[str | None]:
        x, y, axes = c.node.inputs[0], c.node.outputs[0], (c.axis(c["axis"], c.ins[0].rank),)
        norm = g.emit("ReduceL1" if c["p"] == 1 else "ReduceL2", [x, g.ints(*axes)])
        pull = g.emit("Sign", [x]) if c["p"] == 1 else y
        return [g.div(g.sub(dy, g.mul(pull, g.sum(g.mul(dy, y), axes))), norm)]


@op("LRN", since=13)
class LRN(Op):
    """Y = X / (bias + alpha / size * sum of X*X over `size` neighbouring channels)^beta.

    Krizhevsky, Sutskever and Hinton, "ImageNet Classification with Deep Convolutional Neural Networks" (2012).
    """

    inputs, outputs = ("X",), ("Y",)
    attrs = {
        "alpha": Attr("float", 1e-4),
        "beta": Attr("float", 0.75),
        "bias": Attr("float", 1.0),
        "size": Attr("int", REQUIRED),
    }
    dtypes = {"X": FLOATS}

    def infer(self, c: Call) -> list[Spec]:
        _channels(c)
        if c["size"] < 1:
            raise c.error(f"size must be at least 1, not {c['size']}")
        return [c.like(0)]

    def reference(self, c: Call, x: np.ndarray) -> np.ndarray:
        with np.errstate(all="ignore"):
            squares, channels, size = np.square(wide(x)), x.shape[1], c["size"]
            before, after = (size - 1) // 2, size // 2
            sums = np.zeros_like(squares)
            for k in range(channels):
                sums[:, k] = np.sum(squares[:, max(0, k - before) : k + after + 1], axis=1)
            return wide(x) / (c["bias"] + c["alpha"] / size * sums) ** c["beta"]

    def bind(self, c: Call) -> Kernel | None:
        x, size = c.ins[0], c["size"]
        if x.size == 0 or x.dtype != DType.FLOAT or size > 64 or c["bias"] <= 0 or c["alpha"] < 0:
            return None
        ints = (size, x.shape[1], prod(x.shape[2:]))
        return Kernel("normalize.lrn_f32", ints, (c["bias"], c["alpha"] / size, c["beta"]))

    def gradient(self, g: Gradients, c: Call, dy: str) -> list[str | None]:
        x, dims, size = c.node.inputs[0], c.ins[0].shape, c["size"]
        channels, before = dims[1], (size - 1) // 2
        at = np.arange(channels)
        near = ((at[None] >= at[:, None] - before) & (at[None] <= at[:, None] + size // 2)).astype(np.float64)
        rows = (dims[0], channels, prod(dims[2:]))
        flat, dflat = g.reshape(x, rows), g.reshape(dy, rows)
        sums = g.emit("MatMul", [g.constant(near.astype(STORAGE[c.ins[0].dtype])), g.mul(flat, flat)])
        base = g.add(g.scale(sums, c["alpha"] / size), g.scalar(c["bias"], flat))
        scale = g.emit("Pow", [base, g.scalar(-c["beta"], flat)])
        pull = g.emit(
            "MatMul",
            [g.constant(near.T.astype(STORAGE[c.ins[0].dtype])), g.div(g.mul(g.mul(dflat, flat), scale), base)],
        )
        dx = g.sub(g.mul(dflat, scale), g.scale(g.mul(flat, pull), 2 * c["alpha"] * c["beta"] / size))
        return [g.reshape(dx, dims)]


@op("MeanVarianceNormalization", since=13)
class MeanVarianceNormalization(Op):
    """Y = (X - mean) / (deviation + 1e-9), the moments over `axes`."""

    inputs, outputs = ("X",), ("Y",)
    attrs = {"axes": Attr("ints", [0, 2, 3])}
    dtypes = {"X": FLOATS}

    def infer(self, c: Call) -> list[Spec]:
        c.axes(c["axes"], c.ins[0].rank)
        return [c.like(0)]

    def reference(self, c: Call, x: np.ndarray) -> np.ndarray:
        axes = c.axes(c["axes"], x.ndim)
        with np.errstate(all="ignore"):
            wider = wide(x)
            centred = wider - _mean(wider, axes)
            return centred / (np.sqrt(_mean(np.square(centred), axes)) + 1e-9)

    def gradient(self, g: Gradients, c: Call, dy: str) -> list[str | None]:
        axes = c.axes(c["axes"], c.ins[0].rank)
        standard, inverse = standardized(g, c.node.inputs[0], axes, 0.0)
        return [standardized_gradient(g, dy, standard, inverse, axes)]
