"""Weight-only schemes: few bits in groups (round to nearest), float16 and bfloat16. Activations stay float32.

    model = weight_only(model, WeightOptions(bits=4, block=32))

MatMul, Gemm and Conv become MatMulNBits and ConvNBits, embeddings GatherBlockQuantized (evort/ops/nbits.py says how
they store weights), ConvTranspose reads what WidenNBits makes of its weights in each run; with 16 bits the operators
stay and take narrower weights, ConvTranspose what a Cast makes of them.

A layer is left as it is where that would not make it at least a fifth smaller (rows so short that scales weigh more);
and where it is a depthwise convolution: those hold few weights, and their own kernel is far faster than a product.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator

import numpy as np

from evort.graph import Model, Node
from evort.ops import lowp
from evort.ops.nbits import BITS, pack, widen
from evort.types import DType
from evort_tools.passes import graphs_of, names_of
from evort_tools.quantization.qdq import total_bytes
from evort_tools.quantization.weighted import Layer, node_like, rewrite

ROWS = 1 << 18  # weights that are quantized at a time, so that memory does not grow with the layer
SMALL_TABLE = 1 / 8  # of a model's weights, up to which an embedding has 8 bits
SHRINKS = np.linspace(1.0, 0.55, 19)


class WeightOptions:
    """How weights are stored.

    bits: 2, 3, 4 or 8, in groups; or 16. block: weights that share a scale, a power of two from 16 on. symmetric: the
    zero point is the middle of the range; else each group has one. search: try ranges that clip the largest weights,
    and keep what has the smallest squared error, group by group. half_scales: scales as float16, where those do; else
    float32.
    kind: with 16 bits, DType.FLOAT16 (weights beyond 65504, or none above 2^-17, make it bfloat16, layer by layer) or
    DType.BFLOAT16.
    exact: compute with activations as they are; else products of few rows may round them to 16 bits, which costs less
    than 2^-16 of the largest activation beside and is twice as fast. skip: names of layers to leave.
    """

    def __init__(
        self,
        bits: int = 4,
        block: int = 64,
        symmetric: bool = True,
        search: bool = True,
        half_scales: bool = True,
        kind: DType = DType.FLOAT16,
        exact: bool = False,
        skip: Callable[[str], bool] | None = None,
    ):
        if bits not in (*BITS, 16):
            raise ValueError(f"bits must be one of {', '.join(map(str, BITS))}, 16, not {bits}")
        if bits != 16 and (block < 16 or block & (block - 1)):
            raise ValueError(f"block must be a power of two and at least 16, not {block}")
        if kind not in (DType.FLOAT16, DType.BFLOAT16):
            raise ValueError(f"kind must be FLOAT16 or BFLOAT16, not {kind!r}")
        self.bits = bits
        self.block = block
        self.symmetric = symmetric
        self.search = search
        self.half_scales = half_scales
        self.kind = kind
        self.exact = exact
        self.skip = skip or (lambda name: False)


class Packed:
    """Weights [n, k] in groups: q uint8 [n, blocks * block], scales [n, blocks], zeros uint8 [n, blocks] or None."""

    __slots__ = ("bits", "block", "k", "q", "scales", "zeros")

    def __init__(self, q: np.ndarray, scales: np.ndarray, zeros: np.ndarray | None, bits: int, block: int, k: int):
        self.q, self.scales, self.zeros = q, scales, zeros
        self.bits, self.block, self.k = bits, block, k

    def data(self) -> np.ndarray:
        """As MatMulNBits takes them, without filling up the last group: [n, bytes]."""
        return pack(self.q[:, : self.k], self.bits)

    def points(self) -> np.ndarray | None:
        """The zero points, packed, or None."""
        return None if self.zeros is None else pack(self.zeros, self.bits)

    def floats(self) -> np.ndarray:
        """The numbers that they stand for, float32 [n, k]."""
        return widen(self.data(), self.scales, self.points(), self.bits, self.block, self.k)


def group_scales(
    groups: np.ndarray, bits: int, symmetric: bool, search: bool = True, half: bool = True,
    importance: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Scale (float32; of float16's precision with `half`) and zero point (float32, whole) of each group of weights.

    groups [..., block]. symmetric: the zero point is 2^(bits-1), and the weight of largest magnitude is put on the end
    of the range that has one number more, so scales may be negative. search: ranges that clip are tried too. importance
    [..., block]: of each weight's squared error. A group of zeros has scale 1.
    """
    levels, middle = (1 << bits) - 1, 1 << (bits - 1)
    lo, hi = np.minimum(groups.min(-1), 0), np.maximum(groups.max(-1), 0)
    ends = np.where(-lo > hi, lo, hi) / -middle if symmetric else (hi - lo) / levels
    best_scale = best_zero = best_error = None
    for shrink in SHRINKS if search else SHRINKS[:1]:
        # Of the symmetric ranges, one that reaches the largest magnitude on its short side is tried as well.
        for side in (1.0, -middle / max(1, middle - 1)) if symmetric and search else (1.0,):
            scale = (ends * (shrink * side)).astype(np.float32)
            if half:
                scale = np.clip(scale, -65504, 65504).astype(np.float16).astype(np.float32)
            scale = np.where(np.abs(scale) > np.finfo(np.float32).tiny, scale, np.float32(1))
            zero = (
                np.full_like(scale, middle)
                if symmetric
                else np.clip(np.rint(-lo * np.float32(shrink) / scale), 0, levels)
            )
            if not search:
                return scale, zero
            q = np.clip(np.rint(groups / scale[..., None]) + zero[..., None], 0, levels)
            error = ((q - zero[..., None]) * scale[..., None] - groups) ** 2
            error = (error if importance is None else error * importance).sum(-1)
            if best_error is None:
                best_scale, best_zero, best_error = scale, zero, error
            else:
                better = error < best_error
                best_scale = np.where(better, scale, best_scale)
                best_zero = np.where(better, zero, best_zero)
                best_error = np.where(better, error, best_error)
    return best_scale, best_zero


def halves_do(rows: np.ndarray, options: WeightOptions) -> bool:
    """Whether the scales of a layer's weights [n, k] are float16."""
    largest = max(-float(rows.min(initial=0.0)), float(rows.max(initial=0.0)))
    return options.half_scales and halves_hold(largest / (1 << options.bits - 1))


def halves_hold(largest: float) -> bool:
    """Whether float16 has eight bits or more of numbers up to `largest`."""
    return largest == 0 or 2.0**-17 <= largest <= 65504


def round_to_nearest(rows: np.ndarray, options: WeightOptions) -> Packed:
    """Weights [n, k] in groups along k, each rounded to the nearest number. Raises ValueError for weights that are not
    finite."""
    n, k = rows.shape
    bits, block = options.bits, options.block
    blocks = -(-k // block)
    q = np.empty((n, blocks * block), np.uint8)
    scales, zeros = np.empty((n, blocks), np.float32), np.empty((n, blocks), np.uint8)
    step = max(1, ROWS // (blocks * block))
    half = halves_do(rows, options)
    for at in range(0, n, step):
        part = np.zeros((min(step, n - at), blocks * block), np.float32)
        part[:, :k] = rows[at : at + step]
        if not np.isfinite(part).all():
            raise ValueError("weights hold NaN or infinity")
        groups = part.reshape(-1, blocks, block)
        scale, zero = group_scales(groups, bits, options.symmetric, options.search, half)
        whole = np.clip(np.rint(groups / scale[..., None]) + zero[..., None], 0, (1 << bits) - 1)
        end = at + len(part)
        q[at:end], scales[at:end], zeros[at:end] = whole.reshape(part.shape), scale, zero
    kind = np.float16 if half else np.float32
    return Packed(q, scales.astype(kind), None if options.symmetric else zeros, bits, block, k)


def stored_rows(layer: Layer) -> np.ndarray:
    """The weights as groups lie in them, [n, k]: a row for each output channel, of ConvTranspose for each input's."""
    if layer.node.op != "ConvTranspose":
        return layer.rows
    w = layer.graph.tensors[layer.weight].data
    return w.reshape(len(w), -1)


def pays(layer: Layer, options: WeightOptions) -> bool:
    """Whether a layer becomes at least a fifth smaller, and is no depthwise convolution."""
    k = stored_rows(layer).shape[1]
    grouped = layer.node.op == "Conv" and layer.node.attrs.get("group", 1) > 1
    if grouped and layer.graph.tensors[layer.weight].shape[1] == 1:
        return False
    if options.bits == 16:
        return True
    scale = (2 if options.half_scales else 4) + options.bits / 8
    return -(-k * options.bits // 8) + -(-k // options.block) * scale <= 0.8 * 4 * k


def small_tables(model: Model) -> set[str]:
    """The constants that embeddings, and nothing else, look up, and that are a small part of a model."""
    nodes = [node for graph in graphs_of(model.graph) for node in graph.nodes]
    tables = {node.inputs[0] for node in nodes if node.op == "Gather" and not node.domain}
    tables -= {name for node in nodes for name in node.inputs[(node.op == "Gather") :]}
    most = SMALL_TABLE * total_bytes(model.graph)
    constants = (t for graph in graphs_of(model.graph) for t in graph.tensors.values() if t.data is not None)
    return {t.name for t in constants if t.name in tables and t.data.nbytes <= most}


def for_layer(layer: Layer, options: WeightOptions, small: Collection[str]) -> WeightOptions:
    """The options that a layer is rounded with: a small table takes 8 bits, since what an embedding loses goes through
    all that follows, and nothing makes up for it."""
    if layer.node.op != "Gather" or options.bits >= 8 or layer.weight not in small:
        return options
    finer = copy.copy(options)
    finer.bits = 8
    return finer


def replaced(layer: Layer, packed: Packed, options: WeightOptions) -> list[Node] | None:
    """The nodes that compute a layer with packed weights; None where there is no operator for it."""
    node = layer.node
    attrs: dict[str, object] = {"bits": packed.bits, "block_size": packed.block}
    suffix = f"q{packed.bits}{'c' if layer.columns else 'r'}"
    points = packed.points()
    if node.op == "Gather":
        if packed.k * packed.bits % 8:
            return None
        data = layer.add(f"{suffix}:table", packed.data())
        scales = layer.add(f"{suffix}:table:scale", packed.scales.astype(np.float32))
        names = [data, layer.input(1), scales, "" if points is None else layer.add(f"{suffix}:zero", points)]
        return node_like(layer, "GatherBlockQuantized", names, attrs, "com.microsoft")
    if node.op not in ("MatMul", "Gemm", "Conv", "ConvTranspose"):
        return None
    names = [layer.input(0), layer.add(suffix, packed.data()), layer.add(f"{suffix}:scale", packed.scales),
             "" if points is None else layer.add(f"{suffix}:zero", points)]  # fmt: skip
    if node.op == "ConvTranspose":
        attrs["shape"] = list(layer.graph.tensors[layer.weight].shape)
        return _before(layer, "WidenNBits", names[1:], attrs, "evort")
    if node.op == "Conv":
        shape = layer.graph.tensors[layer.weight].shape
        attrs = {**node.attrs, **attrs, "kernel_shape": list(shape[2:])}
        return node_like(layer, "ConvNBits", [*names, layer.bias, layer.input(3), layer.input(4)], attrs, "evort")
    n = len(packed.q)
    attrs |= {"K": packed.k, "N": n, **layer.activation()}
    if not options.exact:
        attrs["accuracy_level"] = 2
    bias = layer.bias
    if bias and layer.graph.tensors[bias].shape == (1, n):
        bias = layer.add("bias", layer.graph.tensors[bias].data.reshape(n))
    return node_like(layer, "MatMulNBits", [*names, "", bias, layer.input(3)], attrs, "com.microsoft")


def _before(layer: Layer, op: str, inputs: list[str], attrs: dict[str, object], domain: str = "") -> list[Node]:
    """A layer that reads the weights which another node makes."""
    name = names_of(layer.graph).fresh(f"{layer.node.outputs[0]}/weights")
    widen = Node(op, inputs, [name], attrs, domain)
    while not widen.inputs[-1]:
        widen.inputs.pop()
    names = [layer.input(0), name, *layer.node.inputs[2:]]
    return [widen, *node_like(layer, layer.node.op, names, dict(layer.node.attrs))]


def narrowed(layer: Layer, kind: DType) -> tuple[list[Node], float] | None:
    """The layer with weights of 16 bits, and their signal-to-noise ratio; None where its operator takes none."""
    node, w = layer.node, layer.graph.tensors[layer.weight].data
    if node.op not in ("MatMul", "Gemm", "Conv", "ConvTranspose", "Gather"):
        return None
    if kind == DType.FLOAT16 and not halves_hold(float(np.abs(w).max(initial=0.0))):
        kind = DType.BFLOAT16
    value = w.astype(np.float16) if kind == DType.FLOAT16 else lowp.narrow(w, kind)
    got = value.astype(np.float32) if kind == DType.FLOAT16 else lowp.widen(value, kind)
    name = layer.add("f16" if kind == DType.FLOAT16 else "bf16", value, kind)
    if node.op == "ConvTranspose":
        return _before(layer, "Cast", [name], {"to": int(DType.FLOAT)}), snr(w, got)
    names = list(node.inputs)
    attrs = dict(node.attrs)
    if node.op == "Gather":
        names[0], attrs["output_dtype"] = name, int(DType.FLOAT)
    else:
        names[1] = name
    return node_like(layer, node.op, names, attrs), snr(w, got)


def weight_only(model: Model, options: WeightOptions, report: list[dict[str, object]] | None = None) -> Model:
    """A copy of a model whose weights take fewer bits. Each layer that changes is added to `report`: its name, and the
    signal-to-noise ratio of its weights in decibels (snr). Raises ValueError, naming the layer, for weights that are
    not finite."""

    small = small_tables(model)

    def replace(layer: Layer) -> list[Node] | None:
        how = for_layer(layer, options, small)
        if options.skip(layer.name) or not pays(layer, how):
            return None
        if options.bits == 16:
            half = narrowed(layer, options.kind)
            if half is not None and report is not None:
                report.append({"name": layer.name, "bits": 16, "snr": half[1]})
            return None if half is None else half[0]
        rows = stored_rows(layer)
        try:
            packed = round_to_nearest(rows, how)
        except ValueError as error:
            raise ValueError(f"{layer.name}: {error}") from None
        found = replaced(layer, packed, how)
        if found is not None and report is not None:
            report.append({"name": layer.name, "bits": how.bits, "snr": snr(rows, packed.floats())})
        return found

    return rewrite(model, replace)


def blocks(array: np.ndarray) -> Iterator[slice]:
    """Slices of the first axis, of some ROWS elements each."""
    step = max(1, ROWS * len(array) // max(1, array.size))
    return (slice(i, i + step) for i in range(0, len(array), step))


def snr(want: np.ndarray, got: np.ndarray | Callable[[slice], np.ndarray]) -> float:
    """10 log10 of the power of `want` over that of the difference; infinity where there is none. got: or what gives a
    slice of its first axis."""
    part_of = got if callable(got) else got.__getitem__
    noise = power = 0.0
    for part in blocks(want):  # what is made of all at once would be most of the tool's memory
        noise += float(((want[part] - part_of(part)) ** 2).sum(dtype=np.float64))
        power += float((want[part] ** 2).sum(dtype=np.float64))
    return float("inf") if noise == 0 else 10 * float(np.log10(max(power, 1e-300) / noise))
