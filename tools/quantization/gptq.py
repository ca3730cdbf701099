"""GPTQ: weights rounded one column after another, each error made up for by the columns that are not rounded yet.

    model = gptq(model, samples, WeightOptions(bits=4, block=32))

Source: E. Frantar, S. Ashkboos, T. Hoefler, D. Alistarh: "GPTQ: Accurate post-training quantization for generative
pre-trained transformers" (2022). The error that a layer's weights W cause in its outputs is tr(dW H dW^T), with H the
sum of x x^T over the inputs that calibration data gives it. Rounding column p with an error e changes the rest by
-e * U[p, p:] / U[p, p], with U the upper Cholesky factor of H's inverse.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from evort.graph import Graph, Model, Node
from evort.ops.base import Call, complete_attrs, find
from evort.ops.conv import conv_shapes
from evort.types import DType, Spec
from evort_tools.quantization.capture import Capture
from evort_tools.quantization.weighted import Layer, layer_of, rewrite
from evort_tools.quantization.weights import (
    Packed,
    WeightOptions,
    for_layer,
    group_scales,
    halves_do,
    pays,
    replaced,
    round_to_nearest,
    small_tables,
    snr,
    stored_rows,
)

LIMIT = 1 << 28  # bytes of Hessians that are collected in one pass over the data
COLUMNS = 128  # that are rounded before the rest is brought up to date
POSITIONS = 1024  # of a sample's convolution (or rows of its product) that count, evenly spread


class GptqOptions:
    """damping: of H's mean diagonal, added to its diagonal. act_order: columns in the order of falling diagonal of H,
    which helps where few inputs carry most; groups keep their columns, and their scales are then found beforehand."""

    def __init__(self, damping: float = 0.01, act_order: bool = True):
        if not damping > 0:
            raise ValueError(f"damping must be greater than 0, not {damping}")
        self.damping = damping
        self.act_order = act_order


class Hessian:
    """sum of x x^T, float64 [groups, k, k], over what a layer's inputs are in the samples seen so far.

    groups: of a convolution; each has inputs of its own. Memory does not grow with the samples.
    """

    def __init__(self, layer: Layer):
        self.node = layer.node
        self.shape = layer.graph.tensors[layer.weight].shape
        self.groups = int(layer.node.attrs.get("group", 1)) if layer.node.op == "Conv" else 1
        k = layer.rows.shape[1]
        self.sum = np.zeros((self.groups, k, k))
        self.count = 0

    def observe(self, x: np.ndarray) -> None:
        """Adds a sample's input."""
        rows = self._patches(x) if self.node.op == "Conv" else x.reshape(1, -1, x.shape[-1])
        step = -(-rows.shape[1] // POSITIONS)
        rows = rows[:, ::step].astype(np.float64)
        if np.isfinite(rows).all():
            self.sum += rows.swapaxes(1, 2) @ rows
            self.count += rows.shape[1]

    def _patches(self, x: np.ndarray) -> np.ndarray:
        """What each position of the kernel sees: [groups, positions, channels of a group * taps]."""
        node = Node("Conv", ["x", "w"], ["y"], {k: v for k, v in self.node.attrs.items() if not k.startswith("act")})
        specs = [Spec(DType.FLOAT, x.shape), Spec(DType.FLOAT, tuple(self.shape))]
        window, _ = conv_shapes(Call(node, complete_attrs(find("Conv"), node), specs), *specs)
        channels = x.shape[1] // self.groups
        x = x.reshape(x.shape[0], self.groups, channels, *x.shape[2:])
        seen = np.zeros((x.shape[0], self.groups, channels, *window.kernel, *window.out), np.float32)
        for tap, positions, elements in window.taps():
            seen[(slice(None), slice(None), slice(None), *tap, *positions)] = x[(..., *elements)]
        seen = seen.reshape(x.shape[0], self.groups, channels * int(np.prod(window.kernel)), -1)
        return seen.transpose(1, 0, 3, 2).reshape(self.groups, -1, seen.shape[2])


def quantize_rows(rows: np.ndarray, h: np.ndarray, options: WeightOptions, gptq: GptqOptions) -> Packed:
    """Weights [n, k] rounded with GPTQ for the Hessian h [k, k].

    Where h says nothing (no data reached the layer) this is rounding to nearest. Raises ValueError for weights that are
    not finite.
    """
    n, k = rows.shape
    if not np.isfinite(rows).all():
        raise ValueError("weights hold NaN or infinity")
    diagonal = np.diag(h).copy()
    if not diagonal.any():
        return round_to_nearest(rows, options)
    bits, block, levels = options.bits, options.block, (1 << options.bits) - 1
    blocks, half = -(-k // block), halves_do(rows, options)
    w = rows.astype(np.float64)
    dead = diagonal == 0  # inputs that are always zero
    h = h + np.diag(np.where(dead, diagonal.mean(), gptq.damping * diagonal.mean()))
    order = np.argsort(-diagonal, kind="stable") if gptq.act_order else np.arange(k)
    h = h[np.ix_(order, order)]
    lower = np.linalg.inv(np.linalg.cholesky(h))
    upper = np.linalg.cholesky(lower.T @ lower).T
    w = w[:, order]
    importance = np.zeros(blocks * block)
    importance[:k] = diagonal + 1e-3 * diagonal.mean()

    q = np.full((n, blocks * block), 1 << (bits - 1), np.uint8)
    scales, zeros = np.ones((n, blocks), np.float32), np.full((n, blocks), 1 << (bits - 1), np.float32)

    def set_scales(b: int, weights: np.ndarray) -> None:
        """The scales of a block from what its weights (columns in their own order) are now."""
        group = np.zeros((n, block), np.float32)
        group[:, : weights.shape[1]] = weights
        scales[:, b], zeros[:, b] = group_scales(
            group, bits, options.symmetric, options.search, half, importance[b * block : (b + 1) * block]
        )

    if gptq.act_order:
        for b in range(blocks):
            set_scales(b, rows[:, b * block : (b + 1) * block])
    for first in range(0, k, COLUMNS):
        last = min(first + COLUMNS, k)
        errors = np.zeros((n, last - first))
        for p in range(first, last):
            column = int(order[p])
            b = column // block
            if not gptq.act_order and column % block == 0:
                # Columns beyond those brought up to date still lack this block's errors.
                now = w[:, p : p + block].copy()
                if p + block > last and p > first:
                    now[:, last - p :] -= errors[:, : p - first] @ upper[first:p, last : p + block]
                set_scales(b, now)
            s, z = scales[:, b], zeros[:, b]
            whole = np.clip(np.rint(w[:, p] / s) + z, 0, levels)
            q[:, column] = whole
            error = (w[:, p] - (whole - z) * s) / upper[p, p]
            w[:, p:last] -= np.outer(error, upper[p, p:last])
            errors[:, p - first] = error
        w[:, last:] -= errors @ upper[first:last, last:]
    kind = np.float16 if half else np.float32
    return Packed(q, scales.astype(kind), None if options.symmetric else zeros.astype(np.uint8), bits, block, k)


def _wanted(graph: Graph, options: WeightOptions) -> list[Layer]:
    """The layers of a graph that GPTQ rounds, in order."""
    found = [layer_of(graph, node) for node in graph.nodes]
    return [
        x
        for x in found
        if x is not None and x.node.op in ("MatMul", "Gemm", "Conv") and pays(x, options) and not options.skip(x.name)
    ]


def _batches(layers: list[Layer]) -> list[list[Layer]]:
    """Neighbouring layers whose Hessians together take no more than LIMIT bytes."""
    batches: list[list[Layer]] = []
    size = 0
    for layer in layers:
        more = 8 * layer.rows.shape[1] ** 2 * int(layer.node.attrs.get("group", 1))
        if not batches or size + more > LIMIT:
            batches.append([])
            size = 0
        batches[-1].append(layer)
        size += more
    return batches


def gptq(
    model: Model,
    samples: Iterable[Mapping[str, np.ndarray]],
    options: WeightOptions,
    gptq: GptqOptions | None = None,
    report: list[dict[str, object]] | None = None,
) -> Model:
    """A copy of a model whose MatMul, Gemm and Conv weights are rounded with GPTQ; embeddings, ConvTranspose and
    layers in nested graphs to nearest.

    samples: {input name: array}, gone through once for each batch of layers (as many as LIMIT allows), with the layers
    before them rounded already. report: as in `weight_only`. Raises ValueError for 16 bits and for weights that are not
    finite.
    """
    if options.bits == 16:
        raise ValueError("GPTQ rounds to 8 bits or fewer; 16 are stored as they are")
    how = gptq or GptqOptions()
    current = model
    for batch in _batches(_wanted(model.graph, options)):
        hessians = {layer.node.outputs[0]: Hessian(layer) for layer in batch}
        by_input: dict[str, list[Hessian]] = {}
        for layer in batch:
            by_input.setdefault(layer.input(0), []).append(hessians[layer.node.outputs[0]])
        capture = Capture(current, by_input)
        for feeds in samples:
            for part in capture.parts(feeds):
                for name, value in part.items():
                    for hessian in by_input[name]:
                        hessian.observe(value)

        def replace(layer: Layer, found: dict[str, Hessian] = hessians) -> list[Node] | None:
            hessian = found.get(layer.node.outputs[0])
            if hessian is None:
                return None
            try:
                packed = _rounded(layer, hessian, options, how)
            except ValueError as error:
                raise ValueError(f"{layer.name}: {error}") from None
            if report is not None:
                report.append({"name": layer.name, "bits": options.bits, "snr": snr(layer.rows, packed.floats())})
            return replaced(layer, packed, options)

        current = rewrite(current, replace)

    small = small_tables(model)

    def nearest(layer: Layer) -> list[Node] | None:
        rounded, rows = for_layer(layer, options, small), stored_rows(layer)
        if options.skip(layer.name) or not pays(layer, rounded):
            return None
        packed = round_to_nearest(rows, rounded)
        if report is not None:
            report.append({"name": layer.name, "bits": rounded.bits, "snr": snr(rows, packed.floats())})
        return replaced(layer, packed, rounded)

    return rewrite(current, nearest)


def _rounded(layer: Layer, hessian: Hessian, options: WeightOptions, how: GptqOptions) -> Packed:
    """A layer's weights, group by group of a convolution."""
    parts = np.split(layer.rows, hessian.groups)
    found = [quantize_rows(w, h, options, how) for w, h in zip(parts, hessian.sum, strict=True)]
    zeros = None if options.symmetric else np.concatenate([p.zeros for p in found])
    q, scales = np.concatenate([p.q for p in found]), np.concatenate([p.scales for p in found])
    return Packed(q, scales, zeros, options.bits, options.block, layer.rows.shape[1])
