"""Weights of few bits with float activations: MatMulNBits, ConvNBits, GatherBlockQuantized with 2, 3, 4 or 8 bits in
blocks, WidenNBits for what else reads such weights; and how Conv, Gemm and MatMul run with weights of float16 or
bfloat16.

    weight = (q - zero point) * scale          a scale and a zero point for each `block_size` weights of a row

A row (of an output column or channel) is one stream of bits, little-endian: number p of the row takes the bits
[bits*p, bits*(p+1)) of it. For 2, 4 and 8 bits that is onnxruntime's packing, low bits first; 3 bits are as dense,
8 weights in 3 bytes. Rows are filled up to whole blocks, or (an extension of evort, with weights of two axes, [rows,
ceil(K*bits/8)]) end where their last weight does. Zero points are packed alike, or given as floats; where there
are none, they are 2^(bits-1). Scales may be float16 beside float32 activations, which onnxruntime does not have: a
block of 32 weights of 4 bits then takes 18 bytes.

Sources: the operators of the domain com.microsoft of onnxruntime 1.32, of the same names; ConvNBits and WidenNBits are
evort's own.
"""

from __future__ import annotations

import math

import numpy as np

from evort.graph import Graph, Node
from evort.ops.activation import activation_attrs, activation_ints_reals, activation_params, apply_reference
from evort.ops.base import REQUIRED, Attr, Call, Kernel, Op, op
from evort.ops.conv import conv_attrs, conv_shapes, conv_window, convolve, expect, finish, same_dtype
from evort.types import DType, Spec

BITS = (2, 3, 4, 8)
WIDENED_FROM = 32  # positions of a convolution from which its weights are widened beforehand
_LIMIT = 1 << 31  # of K and N
_FLOATS = frozenset({DType.FLOAT, DType.FLOAT16, DType.BFLOAT16})
_BYTES = frozenset({DType.UINT8})


def pack(q: np.ndarray, bits: int) -> np.ndarray:
    """q [..., n] of whole numbers in [0, 2^bits), as bytes [..., ceil(n*bits/8)]."""
    q = np.ascontiguousarray(q, np.uint8)
    if bits == 8:
        return q
    planes = np.unpackbits(q[..., None], axis=-1, count=bits, bitorder="little")
    return np.packbits(planes.reshape(*q.shape[:-1], q.shape[-1] * bits), axis=-1, bitorder="little")


def unpack(data: np.ndarray, bits: int, count: int) -> np.ndarray:
    """The first `count` numbers of each row of bytes [..., m], as uint8 [..., count]."""
    if bits == 8:
        return data[..., :count]
    planes = np.unpackbits(data, axis=-1, count=count * bits, bitorder="little")
    return np.packbits(planes.reshape(*data.shape[:-1], count, bits), axis=-1, bitorder="little")[..., 0]


def widen(q: np.ndarray, scales: np.ndarray, zeros: np.ndarray | None, bits: int, block: int, k: int) -> np.ndarray:
    """The weights [n, k] in float32. q [n, bytes]; scales [n, blocks]; zeros [n, bytes] or, of a float type,
    [n, blocks]."""
    blocks = -(-k // block)
    numbers = unpack(q, bits, k).astype(np.float32)
    if zeros is None:
        numbers -= np.float32(1 << (bits - 1))
    else:
        point = unpack(zeros, bits, blocks) if zeros.dtype == np.uint8 else zeros
        numbers -= np.repeat(point.astype(np.float32), block, axis=1)[:, :k]
    return numbers * np.repeat(scales.astype(np.float32), block, axis=1)[:, :k]


def _check_packing(c: Call, n: int, k: int, first: int) -> None:
    """Raises ShapeError unless inputs `first` to first+2 are packed weights, scales and zero points of [n, k]."""
    bits, block = c["bits"], c["block_size"]
    if bits not in BITS:
        raise c.error(f"bits must be one of {', '.join(map(str, BITS))}, not {bits}")
    if not (0 < k < _LIMIT and 0 < n < _LIMIT):
        raise c.error(f"{n} rows of {k} weights: both must be at least 1 and less than 2**31")
    if not 16 <= block < _LIMIT or block & (block - 1):
        raise c.error(f"block_size must be a power of two and at least 16, not {block}")
    blocks = -(-k // block)
    if c.ins[first].rank == 2:
        expect(c, first, (n, -(-k * bits // 8)), "the packed weights")
    else:
        expect(c, first, (n, blocks, block * bits // 8), "the packed weights")
    if c.ins[first + 1].shape not in ((n, blocks), (n * blocks,)):
        raise c.error(f"the scales must have shape [{n}, {blocks}]")
    if c.has(first + 2):
        zeros = c.ins[first + 2]
        columns = -(-blocks * bits // 8) if zeros.dtype == DType.UINT8 else blocks
        if zeros.shape not in ((n, columns), (n * columns,)):
            raise c.error(f"the zero points must have shape [{n}, {columns}]")


def _widened(c: Call, n: int, k: int, q: np.ndarray, scales: np.ndarray, zeros: np.ndarray | None) -> np.ndarray:
    rows = (None if v is None else v.reshape(n, -1) for v in (q, scales, zeros))
    return widen(*rows, c["bits"], c["block_size"], k)


@op("MatMulNBits", domain="com.microsoft")
class MatMulNBits(Op):
    """Y = activation(A W^T + bias + Z). A [..., K]; W [N, K] packed as B [N, ceil(K/block_size), block_size*bits/8],
    with scales [N, blocks] and zero_points, packed [N, ceil(blocks*bits/8)] or floats [N, blocks]; g_idx [K]
    (deprecated there): the block that each column belongs to; bias [N]. Z and Y [..., N]. Z, the activation, 3 bits,
    and scales that are narrower than A are extensions of evort.

    accuracy_level 2 (float16), 3 (bfloat16) or 4 (int8), each the least that will do, lets the driver round A to 16
    bits where it has few rows, with a scale for each 16 columns or fewer: every term is then off by at most
    max |A| / 65534 * |weight|, that of these columns. NaN comes out where one of them is not finite."""

    inputs, outputs = ("A", "B", "scales", "zero_points?", "g_idx?", "bias?", "Z?"), ("Y",)
    dtypes = {
        "A": _FLOATS,
        "B": _BYTES,
        "scales": _FLOATS,
        "zero_points": _FLOATS | _BYTES,
        "g_idx": frozenset({DType.INT32}),
        "bias": _FLOATS,
        "Z": _FLOATS,
    }
    attrs = {
        "K": Attr("int", REQUIRED),
        "N": Attr("int", REQUIRED),
        "accuracy_level": Attr("int", 0),
        "bits": Attr("int", 4),
        "block_size": Attr("int", REQUIRED),
        "weight_prepacked": Attr("int", 0),
        **activation_attrs(),
    }
    inplace = ((0, 6),)

    def infer(self, c: Call) -> list[Spec]:
        a, k, n = c.ins[0], c["K"], c["N"]
        if c["weight_prepacked"]:
            raise c.error("weights that are packed for a GPU cannot be read; export them with weight_prepacked=0")
        _check_packing(c, n, k, 1)
        same_dtype(c, 0, 5, 6)
        if a.rank < 1 or a.shape[-1] != k:
            raise c.error(f"A must have {k} columns")
        expect(c, 5, (n,), "bias")
        expect(c, 6, (*a.shape[:-1], n), "Z")
        if c.has(4) and c.ins[4].shape != (k,):
            raise c.error(f"g_idx must have shape [{k}]")
        activation_params(c)
        if c["activation"] == "PRelu":
            raise c.error("activation PRelu is for Conv only")
        return [Spec(a.dtype, (*a.shape[:-1], n))]

    def reference(self, c: Call, a: np.ndarray, q: np.ndarray, scales: np.ndarray, zeros: np.ndarray | None = None,
                  groups: np.ndarray | None = None, bias: np.ndarray | None = None,
                  z: np.ndarray | None = None) -> np.ndarray:  # fmt: skip
        n, k = c["N"], c["K"]
        if groups is None:
            w = _widened(c, n, k, q, scales, zeros)
        else:
            blocks = -(-k // c["block_size"])
            if ((groups < 0) | (groups >= blocks)).any():
                raise c.error(f"g_idx names blocks outside [0, {blocks})")
            w = unpack(q.reshape(n, -1), c["bits"], k).astype(np.float32)
            ones = np.ones((n, blocks), np.float32)
            points = widen(np.zeros((n, blocks), np.uint8), ones, None if zeros is None else zeros.reshape(n, -1),
                           c["bits"], 1, blocks)  # fmt: skip
            w = (w + points[:, groups]) * scales.astype(np.float32).reshape(n, -1)[:, groups]
        y = a.astype(np.float32) @ w.T
        for term in (bias, z):
            y = y if term is None else y + term
        return apply_reference(c, y.astype(np.float32, copy=False)).astype(a.dtype, copy=False)

    def bind(self, c: Call) -> Kernel | None:
        a, n, k, block = c.ins[0], c["N"], c["K"], c["block_size"]
        if a.dtype != DType.FLOAT or c.has(4):
            return None
        from evort._kernels import nbits

        number, reals = activation_ints_reals(c)
        m = math.prod(a.shape[:-1])
        rounded = int(c["accuracy_level"] >= 2)
        scratch = nbits.product_scratch(m, n, k, -(-k // block) * block, c.threads)
        return Kernel("nbits.product", (*number, m, n, k, c["bits"], block, 0, 5, 6, rounded), (*reals, 1.0), scratch)

    def macs(self, c: Call) -> int:
        return c.outs[0].size * c["K"]


def bind_product(c: Call, m: int, n: int, k: int, columns: bool, alpha: float = 1.0) -> Kernel:
    """The driver of Gemm and MatMul with weights of 16 bits, W [n, k] or, in columns, [k, n]; inputs 2 and 3 are a bias
    [n] and Z."""
    from evort._kernels import nbits

    number, reals = activation_ints_reals(c)
    ints = (*number, m, n, k, 16, 0, int(columns), 2, 3, 0)
    return Kernel("nbits.product", ints, (*reals, alpha), nbits.product_scratch(m, n, k, 0, c.threads))


def widened_graph(c: Call, names: tuple[str, ...], widen: Node, attrs: dict[str, object]) -> Graph:
    """A convolution whose operands have these names, of which `widen` makes "wide", the float weights."""
    there = {name for i, name in enumerate(names) if c.has(i)}
    rest = names[1 + len(widen.inputs) :]
    graph = Graph("widened")
    graph.inputs, graph.outputs = list(names), ["y"]
    widen.inputs = [name if name in there else "" for name in widen.inputs]
    conv = Node("Conv", [names[0], "wide", *(name if name in there else "" for name in rest)], ["y"], attrs)
    graph.nodes = [widen, conv]
    return graph


def bind_convolution(c: Call, weights: Spec, bits: int, block: int, bias_at: int) -> Kernel | None:
    """The driver of a convolution whose weights (of that shape) are widened as they are used; None where there is none.
    bits: 16 for weights of that size; bias_at: the index of the inputs B, Z and slope."""
    window, out = conv_shapes(c, c.ins[0], weights)
    place = window.ints()
    if not place:
        return None
    from evort._kernels import nbits

    number, reals = activation_ints_reals(c)
    group, taps = c["group"], math.prod(window.kernel)
    plain = taps == 1 and set(window.strides) == {1} and window.out == window.image
    sizes = (out.shape[1] // group, math.prod(window.out), weights.shape[1] * taps)
    scratch = nbits.convolution_scratch(out.shape[0] * group, *sizes, c.threads)
    return Kernel("nbits.convolution", (*number, group, *place, bits, block, bias_at, int(plain)), reals, scratch)


@op("ConvNBits", domain="evort")
class ConvNBits(Op):
    """Conv with weights of few bits: Y = activation(X * W + B + Z). X [N, C, D...]; W [M, C/group, kernel_shape...],
    each output channel a row of K = C/group * taps weights, packed as [M, ceil(K/block_size), block_size*bits/8] with
    scales [M, blocks] and zero_points as in MatMulNBits; B [M], slope [M] (of PRelu), Z and Y [N, M, D'...]."""

    inputs, outputs = ("X", "W", "scales", "zero_points?", "B?", "Z?", "slope?"), ("Y",)
    dtypes = {
        "X": frozenset({DType.FLOAT}),
        "W": _BYTES,
        "scales": _FLOATS,
        "zero_points": _FLOATS | _BYTES,
        **dict.fromkeys(("B", "Z", "slope"), frozenset({DType.FLOAT})),
    }
    attrs = {
        **conv_attrs(),
        "kernel_shape": Attr("ints", REQUIRED),
        "bits": Attr("int", 4),
        "block_size": Attr("int", REQUIRED),
        **activation_attrs(),
    }
    inplace = ((0, 5),)

    @staticmethod
    def weights(c: Call) -> Spec:
        """The weights' specification as they would be unpacked. Raises ShapeError."""
        x, group, kernel = c.ins[0], c["group"], c["kernel_shape"]
        if c.ins[1].rank < 2 or x.rank < 3 or len(kernel) != x.rank - 2:
            raise c.error("X must be [N, C, D1, ...], W packed, and kernel_shape one size for each D")
        if group < 1 or x.shape[1] % group or any(not 0 < k < _LIMIT for k in kernel):
            raise c.error(f"group {group} or kernel_shape {kernel} does not fit {x.shape[1]} channels")
        return Spec(DType.FLOAT, (c.ins[1].shape[0], x.shape[1] // group, *kernel))

    def infer(self, c: Call) -> list[Spec]:
        weights = self.weights(c)
        _check_packing(c, weights.shape[0], math.prod(weights.shape[1:]), 1)
        _, out = conv_shapes(c, c.ins[0], weights)
        channels = (out.shape[1],)
        expect(c, 4, channels, "B")
        expect(c, 5, out.shape, "Z")
        expect(c, 6, channels, "slope")
        activation_params(c)
        if (c["activation"] == "PRelu") != c.has(6):
            raise c.error("activation PRelu and the input slope come together")
        return [out]

    def reference(self, c: Call, x: np.ndarray, q: np.ndarray, scales: np.ndarray, zeros: np.ndarray | None = None,
                  b: np.ndarray | None = None, z: np.ndarray | None = None,
                  slope: np.ndarray | None = None) -> np.ndarray:  # fmt: skip
        shape = self.weights(c).shape
        w = _widened(c, shape[0], math.prod(shape[1:]), q, scales, zeros).reshape(shape)
        window = conv_window(c, x.shape[2:], shape[2:], c["auto_pad"])
        return finish(c, convolve(x, w, window, c["group"]), x.dtype, b, z, slope)

    def expand(self, c: Call) -> Graph | None:
        """Where each weight is used at many positions, all are widened first: the convolution is then the fast one."""
        weights = self.weights(c)
        _, out = conv_shapes(c, c.ins[0], weights)
        if out.size // out.shape[1] < WIDENED_FROM:
            return None
        attrs = dict(c.node.attrs)
        packing = {key: attrs.pop(key) for key in ("bits", "block_size") if key in attrs}
        widen = Node("WidenNBits", ["w", "scales", "zeros"], ["wide"], {**packing, "shape": weights.shape}, "evort")
        return widened_graph(c, ("x", "w", "scales", "zeros", "b", "z", "slope"), widen, attrs)

    def bind(self, c: Call) -> Kernel | None:
        return bind_convolution(c, self.weights(c), c["bits"], c["block_size"], 4)

    def macs(self, c: Call) -> int:
        return c.outs[0].size * math.prod(self.weights(c).shape[1:])


@op("WidenNBits", domain="evort")
class WidenNBits(Op):
    """The float32 weights Y of a shape [N, ...] that packed ones stand for: W [N, ceil(K/block_size),
    block_size*bits/8], scales [N, blocks] and zero_points as in MatMulNBits, K the product of the other axes. once: of
    constants loading a file makes floats (evort/weights.py), rather than each run."""

    inputs, outputs = ("W", "scales", "zero_points?"), ("Y",)
    dtypes = {"W": _BYTES, "scales": _FLOATS, "zero_points": _FLOATS | _BYTES}
    attrs = {
        "bits": Attr("int", 4),
        "block_size": Attr("int", REQUIRED),
        "shape": Attr("ints", REQUIRED),
        "once": Attr("int", 0),
    }

    def infer(self, c: Call) -> list[Spec]:
        shape = c["shape"]
        if not shape or min(shape) < 1:
            raise c.error(f"shape must have at least one axis, and sizes of 1 or more, not {shape}")
        _check_packing(c, shape[0], math.prod(shape[1:]), 0)
        return [Spec(DType.FLOAT, tuple(shape))]

    def reference(self, c: Call, q: np.ndarray, scales: np.ndarray, zeros: np.ndarray | None = None) -> np.ndarray:
        shape = c["shape"]
        return _widened(c, shape[0], math.prod(shape[1:]), q, scales, zeros).reshape(shape)

    def bind(self, c: Call) -> Kernel | None:
        return Kernel("nbits.widen_all", (math.prod(c["shape"][1:]), c["bits"], c["block_size"]))


@op("GatherBlockQuantized", domain="com.microsoft")
class GatherBlockQuantized(Op):
    """Gather of weights of few bits: output = widened data[indices], zeros for an index outside. data uint8 [R, ...,
    K*bits/8], packed along the last axis; scales [R, ..., ceil(K/block_size)]; zero_points packed alike; output
    [*indices, ..., K] in the scales' type. gather_axis must be 0 and quantize_axis the last, as for onnxruntime's uint8
    data."""

    inputs, outputs = ("data", "indices", "scales", "zero_points?"), ("output",)
    dtypes = {
        "data": _BYTES,
        "indices": frozenset({DType.INT32, DType.INT64}),
        "scales": _FLOATS,
        "zero_points": _BYTES,
    }
    attrs = {
        "bits": Attr("int", 4),
        "block_size": Attr("int", 128),
        "gather_axis": Attr("int", 0),
        "quantize_axis": Attr("int", 1),
    }

    @staticmethod
    def columns(c: Call) -> int:
        """K. Raises ShapeError where the operands do not fit each other."""
        data, scales, bits, block = c.ins[0], c.ins[2], c["bits"], c["block_size"]
        if bits not in BITS:
            raise c.error(f"bits must be one of {', '.join(map(str, BITS))}, not {bits}")
        if not 16 <= block < _LIMIT or block & (block - 1):
            raise c.error(f"block_size must be a power of two and at least 16, not {block}")
        rank = data.rank
        if rank < 2 or c.axis(c["gather_axis"], rank) != 0 or c.axis(c["quantize_axis"], rank) != rank - 1:
            raise c.error("data must have at least two axes, gather_axis must be the first and quantize_axis the last")
        k = data.shape[-1] * 8 // bits
        if k * bits != data.shape[-1] * 8:
            raise c.error(f"rows of {data.shape[-1]} bytes are no whole number of {bits}-bit weights")
        blocks = -(-k // block)
        if scales.shape != (*data.shape[:-1], blocks):
            raise c.error(f"scales must have shape {[*data.shape[:-1], blocks]}")
        expect(c, 3, (*data.shape[:-1], -(-blocks * bits // 8)), "zero_points")
        return k

    def infer(self, c: Call) -> list[Spec]:
        k = self.columns(c)
        return [Spec(c.ins[2].dtype, (*c.ins[1].shape, *c.ins[0].shape[1:-1], k))]

    def reference(self, c: Call, data: np.ndarray, indices: np.ndarray, scales: np.ndarray,
                  zeros: np.ndarray | None = None) -> np.ndarray:  # fmt: skip
        k, n = self.columns(c), data.shape[0]
        good = (indices >= -n) & (indices < n)
        if n == 0:
            return np.zeros(c.outs[0].shape, scales.dtype)
        picked = [None if v is None else v[np.where(good, indices, 0)] for v in (data, scales, zeros)]
        rows = [None if v is None else v.reshape(-1, v.shape[-1]) for v in picked]
        out = widen(*rows, c["bits"], c["block_size"], k).reshape(c.outs[0].shape)
        return (out * good.reshape(*good.shape, *(1,) * (data.ndim - 1))).astype(scales.dtype)

    def bind(self, c: Call) -> Kernel | None:
        if c.ins[2].dtype != DType.FLOAT or c.ins[0].rank != 2:
            return None
        ints = (c.ins[0].shape[0], self.columns(c), c["bits"], c["block_size"], 0)
        return Kernel("nbits.gather", ints, inputs=(0, 2, 1, 3))
