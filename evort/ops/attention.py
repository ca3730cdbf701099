"""Attention and rotary position embedding."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from evort.ops.base import Attr, Call, Kernel, Op, op
from evort.ops.conv import same_dtype
from evort.types import FLOATS, NUMERIC, STORAGE, DType, Spec

if TYPE_CHECKING:
    from evort.ops.gradients import Gradients

_INT64 = frozenset({DType.INT64})
_NUMPY = {DType.FLOAT: np.float32, DType.FLOAT16: np.float16, DType.DOUBLE: np.float64}


class Heads:
    """Sizes of an Attention: batch, query and key/value heads, queries, keys (new ones and past ones), the sizes of a
    query's and of a value's head."""

    __slots__ = ("batch", "head", "keys", "kv_heads", "past", "q_heads", "queries", "v_head")

    def __init__(self, c: Call, q: tuple[int, ...], k: tuple[int, ...], v: tuple[int, ...], past: int):
        if len({len(q), len(k), len(v)}) != 1 or len(q) not in (3, 4):
            raise c.error("Q, K and V must all have 3 axes or all have 4")
        if len(q) == 3:
            self.q_heads, self.kv_heads = c["q_num_heads"] or 0, c["kv_num_heads"] or 0
            if self.q_heads < 1 or self.kv_heads < 1:
                raise c.error("operands of 3 axes need q_num_heads and kv_num_heads")
            if q[2] % self.q_heads or k[2] % self.kv_heads or v[2] % self.kv_heads:
                raise c.error("the heads do not divide the hidden sizes")
            q, k, v = (
                (s[0], heads, s[1], s[2] // heads)
                for s, heads in ((q, self.q_heads), (k, self.kv_heads), (v, self.kv_heads))
            )
        for name, heads in (("q_num_heads", q[1]), ("kv_num_heads", k[1])):
            if c[name] not in (None, heads):
                raise c.error(f"{name} {c[name]} is not the number of heads, {heads}")
        self.batch, self.q_heads, self.queries, self.head = q
        self.kv_heads, self.keys, self.v_head, self.past = k[1], k[2], v[3], past
        if k != (self.batch, self.kv_heads, self.keys, self.head) or v[:3] != k[:3]:
            raise c.error("Q, K and V do not fit each other")
        if self.kv_heads == 0 or self.q_heads % self.kv_heads:
            raise c.error(f"{self.kv_heads} key heads do not divide {self.q_heads} query heads")

    @property
    def total(self) -> int:
        """Keys, with those of the past."""
        return self.past + self.keys


@op("Attention", since=25)
class Attention(Op):
    """Y = softmax(cap(scale * Q K^T) + bias) V for each head (Vaswani et al., 2017), with fewer key/value heads than
    query heads where wanted, causal and sliding-window masks, and a cache of past keys and values.

    Q [B, Hq, S, E], K [B, Hkv, T, E], V [B, Hkv, T, Ev], Y [B, Hq, S, Ev]; or with heads in the last axis, Q
    [B, S, Hq * E] and so on. past_key, past_value [B, Hkv, P, E or Ev]; present_key, present_value
    [B, Hkv, P + T, E or Ev]. attn_mask broadcasts to [B, Hq, S, P + T]: bool (true takes part) or added; where its last
    axis is shorter, the keys beyond do not take part. nonpad_kv_seqlen [B]: how many keys count. A query without keys
    gives zeros."""

    inputs = ("Q", "K", "V", "attn_mask?", "past_key?", "past_value?", "nonpad_kv_seqlen?")
    outputs = ("Y", "present_key?", "present_value?", "qk_matmul_output?")
    dtypes = {
        **dict.fromkeys(("Q", "K", "V", "past_key", "past_value"), FLOATS),
        "attn_mask": NUMERIC | {DType.BOOL},
        "nonpad_kv_seqlen": _INT64,
    }
    attrs = {
        "is_causal": Attr("int", 0),
        "kv_num_heads": Attr("int"),
        "left_window_size": Attr("int", -1),
        "q_num_heads": Attr("int"),
        "qk_matmul_output_mode": Attr("int", 0),
        "right_window_size": Attr("int", -1),
        "scale": Attr("float"),
        "softcap": Attr("float", 0.0),
        "softmax_precision": Attr("int"),
    }

    @staticmethod
    def _heads(c: Call) -> Heads:
        past = c.ins[4].shape[2] if c.has(4) and c.ins[4].rank == 4 else 0
        return Heads(c, c.ins[0].shape, c.ins[1].shape, c.ins[2].shape, past)

    def infer(self, c: Call) -> list[Spec | None]:
        same_dtype(c, 0, 1, 4)
        same_dtype(c, 2, 5)
        h = self._heads(c)
        if c.has(4) != c.has(5):
            raise c.error("past_key and past_value come together")
        for i, size in ((4, h.head), (5, h.v_head)):
            if c.has(i) and c.ins[i].shape != (h.batch, h.kv_heads, h.past, size):
                raise c.error(f"{self.inputs[i].strip('?')} must have shape {[h.batch, h.kv_heads, h.past, size]}")
        if c.has(6) and (c.has(4) or c.ins[6].shape != (h.batch,)):
            raise c.error(f"nonpad_kv_seqlen must have shape [{h.batch}], and no past_key beside it")
        if c.has(3):
            mask = c.ins[3].shape
            whole = (h.batch, h.q_heads, h.queries)
            if not 1 <= len(mask) <= 4 or mask[-1] > h.total:
                raise c.error(f"attn_mask does not broadcast to {[*whole, h.total]}")
            if any(m not in (1, w) for m, w in zip(mask[-2::-1], whole[::-1], strict=False)):
                raise c.error(f"attn_mask does not broadcast to {[*whole, h.total]}")
        if min(c["left_window_size"], c["right_window_size"]) < -1:
            raise c.error("window sizes must be at least -1")
        if c["qk_matmul_output_mode"] not in (0, 1, 2, 3):
            raise c.error(f"qk_matmul_output_mode {c['qk_matmul_output_mode']} must be 0, 1, 2 or 3")
        if c["softmax_precision"] not in (None, DType.FLOAT, DType.FLOAT16, DType.DOUBLE, DType.BFLOAT16):
            raise c.error(f"softmax_precision {c['softmax_precision']} is no float type")
        if c["scale"] is not None and not c["scale"] >= 0:
            raise c.error(f"scale {c['scale']} must be at least 0")
        whole = (h.batch, h.q_heads, h.queries)
        y = (*whole, h.v_head) if c.ins[0].rank == 4 else (h.batch, h.queries, h.q_heads * h.v_head)
        outs = [
            Spec(c.ins[0].dtype, y),
            Spec(c.ins[1].dtype, (h.batch, h.kv_heads, h.total, h.head)),
            Spec(c.ins[2].dtype, (h.batch, h.kv_heads, h.total, h.v_head)),
            Spec(c.ins[0].dtype, (*whole, h.total)),
        ]
        return [spec if c.wants(i) else None for i, spec in enumerate(outs[: len(c.node.outputs)])]

    def reference(self, c: Call, q: np.ndarray, k: np.ndarray, v: np.ndarray, mask: np.ndarray | None = None,
                  past_key: np.ndarray | None = None, past_value: np.ndarray | None = None,
                  lens: np.ndarray | None = None) -> tuple[np.ndarray, ...]:  # fmt: skip
        out_dtype, rank = q.dtype, q.ndim
        h = Heads(c, q.shape, k.shape, v.shape, 0 if past_key is None else past_key.shape[2])
        dtype = np.dtype(np.float64) if out_dtype == np.float64 else np.dtype(np.float32)
        if rank == 3:
            q = q.reshape(h.batch, h.queries, h.q_heads, h.head).swapaxes(1, 2)
            k = k.reshape(h.batch, h.keys, h.kv_heads, h.head).swapaxes(1, 2)
            v = v.reshape(h.batch, h.keys, h.kv_heads, h.v_head).swapaxes(1, 2)
        if past_key is not None:
            k, v = np.concatenate([past_key, k], axis=2), np.concatenate([past_value, v], axis=2)
        scale = 1 / math.sqrt(h.head) if c["scale"] is None and h.head else c["scale"] or 0.0

        def rounded(x: np.ndarray) -> np.ndarray:
            """As the operator's own element type would have it."""
            return x.astype(out_dtype).astype(dtype)

        root = out_dtype.type(math.sqrt(scale))
        q, k_scaled = rounded(q * root), rounded(k * root)
        group = h.q_heads // h.kv_heads
        # Query head i reads key/value head i // group.
        grouped = q.reshape(h.batch, h.kv_heads, group, h.queries, h.head)
        scores = rounded(grouped @ k_scaled[:, :, None].swapaxes(-1, -2))
        scores = raw = scores.reshape(h.batch, h.q_heads, h.queries, h.total)
        with np.errstate(all="ignore"):
            if c["softcap"] > 0:
                scores = rounded(dtype.type(c["softcap"]) * np.tanh(scores / dtype.type(c["softcap"])))
            capped = scores
            bias = np.broadcast_to(self._bias(c, h, mask, lens, dtype), scores.shape)
            scores = biased = rounded(scores + bias)
            precision = c["softmax_precision"]
            within = _NUMPY[DType(precision)] if precision in _NUMPY else out_dtype.type
            weights = _softmax(scores.astype(within), np.isneginf(bias).all(axis=-1, keepdims=True))
        weights = rounded(weights)
        y = weights.reshape(h.batch, h.kv_heads, group, h.queries, h.total) @ v.astype(dtype)[:, :, None]
        y = y.reshape(h.batch, h.q_heads, h.queries, h.v_head)
        if rank == 3:
            y = y.swapaxes(1, 2).reshape(h.batch, h.queries, h.q_heads * h.v_head)
        shown = (raw, capped, biased, weights)[c["qk_matmul_output_mode"]]
        return y.astype(out_dtype), k, v, shown.astype(out_dtype)

    @staticmethod
    def _bias(c: Call, h: Heads, mask: np.ndarray | None, lens: np.ndarray | None, dtype: np.dtype,
              windows: bool = True) -> np.ndarray:  # fmt: skip
        """What is added to the scores, to be broadcast to [B, Hq, S, P + T]; -inf where a key does not take part.
        windows: whether the causal one and those of the attributes count."""
        bias = np.zeros((1, 1, h.queries, h.total), dtype)
        if mask is not None:
            if mask.dtype == np.bool_:
                mask = np.where(mask, dtype.type(0), dtype.type(-np.inf))
            short = h.total - mask.shape[-1]
            widths = [(0, 0)] * (mask.ndim - 1) + [(0, short)]
            bias = bias + np.pad(mask.astype(dtype), widths, constant_values=-np.inf)
        key = np.arange(h.total)
        # Where query 0 stands among the keys, for each batch or for all.
        start = np.array([h.past]) if lens is None else lens - h.queries
        ahead = key - (start[:, None, None, None] + np.arange(h.queries)[:, None])
        allowed = np.ones((1, 1, 1, 1), np.bool_) if lens is None else key < lens[:, None, None, None]
        if not windows:
            return bias
        if c["is_causal"]:
            allowed = allowed & (ahead <= 0)
        if c["left_window_size"] >= 0:
            allowed = allowed & (-ahead <= c["left_window_size"])
        if c["right_window_size"] >= 0:
            allowed = allowed & (ahead <= c["right_window_size"])
        return bias + np.where(allowed, dtype.type(0), dtype.type(-np.inf))

    def bind(self, c: Call) -> Kernel | None:
        h = self._heads(c)
        mask = c.ins[3] if c.has(3) else None
        if c.ins[0].dtype != DType.FLOAT or c.ins[2].dtype != DType.FLOAT or c.wants(3):
            return None
        if c["softmax_precision"] not in (None, DType.FLOAT) or min(h.head, h.v_head, h.total, h.queries) == 0:
            return None
        if mask is not None and mask.dtype not in (DType.BOOL, DType.FLOAT):
            return None
        from evort._kernels import attention

        strides, kind, mask_keys = (0, 0, 0), 0, 0
        if mask is not None:
            shape = (1,) * (4 - mask.rank) + mask.shape
            mask_keys, kind = shape[3], 1 if mask.dtype == DType.BOOL else 2
            steps = (math.prod(shape[1:]), math.prod(shape[2:]), shape[3])
            strides = tuple(0 if d == 1 else step for d, step in zip(shape, steps, strict=False))
        # A window wider than any model is none.
        left, right = (-1 if c[name] >= 1 << 32 else c[name] for name in ("left_window_size", "right_window_size"))
        slot = attention.thread_scratch(h.queries, h.total, h.head, h.v_head)
        ints = (
            h.batch, h.q_heads, h.kv_heads, h.queries, h.keys, h.past, h.head, h.v_head, int(c.ins[0].rank == 3),
            int(c["is_causal"] != 0), left, right, kind, *strides, mask_keys, slot,
        )  # fmt: skip
        scale = 1 / math.sqrt(h.head) if c["scale"] is None else c["scale"]
        return Kernel("attention.attention", ints, (scale, c["softcap"]), scratch=slot * c.threads)

    def lower(self, g: Gradients, c: Call) -> list[str | None]:
        """Products, a softmax, and masks that are added. Raises ShapeError for the masked scores as an output."""
        if c.wants(3) and c["qk_matmul_output_mode"] == 2:
            raise c.error("scores with their mask (qk_matmul_output_mode 2) cannot be trained")
        h, (q, k, v) = self._heads(c), c.node.inputs[:3]
        group, flat = h.q_heads // h.kv_heads, c.ins[0].rank == 3

        def heads(x: str, rows: int, count: int, size: int) -> str:
            """[B, heads, rows, size]."""
            return g.transpose(g.reshape(x, (h.batch, rows, count, size)), [0, 2, 1, 3]) if flat else x

        q = heads(q, h.queries, h.q_heads, h.head)
        k, v = heads(k, h.keys, h.kv_heads, h.head), heads(v, h.keys, h.kv_heads, h.v_head)
        if c.has(4):
            past_key, past_value = c.node.inputs[4:6]
            k, v = (g.emit("Concat", pair, {"axis": 2}) for pair in ((past_key, k), (past_value, v)))
        # Query head i reads key/value head i // group.
        q = g.reshape(q, (h.batch, h.kv_heads, group, h.queries, h.head))
        wide_k = g.reshape(k, (h.batch, h.kv_heads, 1, h.total, h.head))
        wide_v = g.reshape(v, (h.batch, h.kv_heads, 1, h.total, h.v_head))
        scale = 1 / math.sqrt(h.head) if c["scale"] is None else c["scale"]
        scores = raw = g.scale(g.emit("MatMul", [q, g.swapped(wide_k)]), scale)
        if c["softcap"] > 0:
            scores = g.scale(g.emit("Tanh", [g.scale(scores, 1 / c["softcap"])]), c["softcap"])
        capped, seen = scores, None
        masks = self._masks(g, c, h)
        if masks:
            bias = g.total(masks)
            # A query without keys gives zeros.
            seen = g.emit("Greater", [g.emit("ReduceMax", [bias, g.ints(-1)]), g.scalar(_hidden(c) / 2, bias)])
            scores = g.add(g.reshape(scores, (h.batch, h.q_heads, h.queries, h.total)), bias)
        precision = c["softmax_precision"]
        weights = g.emit("Softmax", [scores if precision is None else g.cast(scores, DType(precision))])
        weights = g.cast(weights, c.ins[0].dtype)
        if seen is not None:
            weights = g.mask(seen, weights)
        grouped = g.reshape(weights, (h.batch, h.kv_heads, group, h.queries, h.total))
        y = g.reshape(g.emit("MatMul", [grouped, wide_v]), (h.batch, h.q_heads, h.queries, h.v_head))
        if flat:
            y = g.reshape(g.transpose(y, [0, 2, 1, 3]), (h.batch, h.queries, h.q_heads * h.v_head))
        shown = (raw, capped, None, weights)[c["qk_matmul_output_mode"]]
        if c.wants(3):
            shown = g.reshape(shown, (h.batch, h.q_heads, h.queries, h.total))
        return [y, k, v, shown]

    def _masks(self, g: Gradients, c: Call, h: Heads) -> list[str]:
        """What is added to the scores [B, Hq, S, P + T], each to be broadcast: 0, or `_hidden` where a key does not
        take part."""
        dtype = np.dtype(STORAGE[c.ins[0].dtype])
        lens = c.node.inputs[6] if c.has(6) else None
        # Windows and the end of short masks are known, but for those that follow from lengths.
        short = np.zeros((1, 1, 1, c.ins[3].shape[-1]), dtype) if c.has(3) else None
        bias = self._bias(c, h, short, None, dtype, windows=lens is None)
        masks = [g.constant(np.maximum(bias, dtype.type(_hidden(c))))] if np.any(bias) else []
        if c.has(3):
            mask = c.node.inputs[3]
            like = g.scalar(0, c.node.inputs[0])
            low = g.scalar(_hidden(c), like)
            if c.ins[3].dtype == DType.BOOL:
                mask = g.emit("Where", [mask, like, low])
            else:
                mask = g.emit("Max", [g.cast(mask, c.ins[0].dtype), low])
            pads = [0] * (2 * c.ins[3].rank)
            pads[-1] = h.total - c.ins[3].shape[-1]
            masks.append(g.emit("Pad", [mask, g.ints(*pads)]) if pads[-1] else mask)
        if lens is not None:
            masks.append(self._lengths(g, c, h, lens))
        return masks

    @staticmethod
    def _lengths(g: Gradients, c: Call, h: Heads, lens: str) -> str:
        """[B, 1, S or 1, T]: keys below the lengths, and the windows, whose queries stand at the end of the keys."""
        like = c.node.inputs[0]
        dtype = STORAGE[c.ins[0].dtype]
        lens = g.reshape(g.cast(lens, c.ins[0].dtype), (h.batch, 1, 1, 1))
        key = np.arange(h.total)
        rules = [("Less", g.constant(key.astype(dtype)), lens)]
        # How far a key is ahead of a query: key - (lens - queries + query).
        ahead = g.sub(g.constant((key - np.arange(h.queries)[:, None] + h.queries).astype(dtype)), lens)
        if c["is_causal"]:
            rules.append(("LessOrEqual", ahead, g.scalar(0, ahead)))
        if c["left_window_size"] >= 0:
            rules.append(("GreaterOrEqual", ahead, g.scalar(-c["left_window_size"], ahead)))
        if c["right_window_size"] >= 0:
            rules.append(("LessOrEqual", ahead, g.scalar(c["right_window_size"], ahead)))
        allowed = [g.emit(op, [a, b]) for op, a, b in rules]
        while len(allowed) > 1:
            allowed = [g.emit("And", allowed[:2]), *allowed[2:]]
        return g.emit("Where", [allowed[0], g.scalar(0, like), g.scalar(_hidden(c), like)])

    def macs(self, c: Call) -> int:
        h = self._heads(c)
        return h.batch * h.q_heads * h.queries * h.total * (h.head + h.v_head)


def _hidden(c: Call) -> float:
    """What stands for -infinity in the masks of training: so large that no score matters, and three add up."""
    return float(np.finfo(STORAGE[c.ins[0].dtype]).min) / 8


def _softmax(x: np.ndarray, empty: np.ndarray) -> np.ndarray:
    """Softmax over the last axis; zeros in the rows that are `empty`."""
    top = x.max(axis=-1, keepdims=True, initial=-np.inf)
    e = np.exp(x - np.where(np.isneginf(top), 0, top))
    total = e.sum(axis=-1, keepdims=True)
    return np.where(empty, 0, e / np.where(total == 0, 1, total))


@op("RotaryEmbedding", since=23)
class RotaryEmbedding(Op):
    """Rotary position embedding (Su et al., 2021): rotates pairs of elements of each head by an angle that depends on
    the position. X [B, H, S, E], or [B, S, H * E] with num_heads; cos_cache, sin_cache [P, R/2] with position_ids
    [B, S] into P, else [B, S, R/2]; R is rotary_embedding_dim, or E where that is 0. Pairs are (i, i + R/2), or
    neighbours where interleaved. float64 is an extension of evort."""

    inputs, outputs = ("X", "cos_cache", "sin_cache", "position_ids?"), ("Y",)
    dtypes = {**dict.fromkeys(("X", "cos_cache", "sin_cache"), FLOATS), "position_ids": _INT64}
    untrained = (1, 2)
    attrs = {"interleaved": Attr("int", 0), "num_heads": Attr("int"), "rotary_embedding_dim": Attr("int", 0)}
    inplace = ()

    def _sizes(self, c: Call, x: tuple[int, ...]) -> tuple[int, int, int, int, int]:
        """(batch, heads, positions, head size, rotated size)."""
        if len(x) == 4:
            batch, heads, steps, head = x
        elif len(x) == 3:
            heads = c["num_heads"] or 0
            if heads < 1 or x[2] % heads:
                raise c.error(f"num_heads must divide the hidden size {x[2]}")
            batch, steps, head = x[0], x[1], x[2] // heads
        else:
            raise c.error("X must have 3 or 4 axes")
        rotated = c["rotary_embedding_dim"] or head
        if not 0 <= rotated <= head or rotated % 2:
            raise c.error(f"rotary_embedding_dim {rotated} must be even and at most {head}")
        return batch, heads, steps, head, rotated

    def infer(self, c: Call) -> list[Spec]:
        same_dtype(c, 0, 1, 2)
        batch, _, steps, _, rotated = self._sizes(c, c.ins[0].shape)
        cache = c.ins[1].shape
        if c.ins[2].shape != cache:
            raise c.error("cos_cache and sin_cache must have one shape")
        if c.has(3):
            if c.ins[3].shape != (batch, steps) or len(cache) != 2 or cache[1] != rotated // 2:
                raise c.error(f"position_ids must be [{batch}, {steps}] and the caches [P, {rotated // 2}]")
        elif cache != (batch, steps, rotated // 2):
            raise c.error(f"without position_ids the caches must be [{batch}, {steps}, {rotated // 2}]")
        return [c.like(0)]

    def bind(self, c: Call) -> Kernel | None:
        if c.ins[0].dtype != DType.FLOAT:
            return None
        x = c.ins[0].shape
        _, heads, steps, head, rotated = self._sizes(c, x)
        rows = c.ins[1].shape[0] if c.has(3) else 0
        ints = (steps, heads, head, rotated, int(len(x) == 3), int(c["interleaved"] != 0), rows)
        return Kernel("attention.rotary", ints)

    def reference(self, c: Call, x: np.ndarray, cos: np.ndarray, sin: np.ndarray,
                  positions: np.ndarray | None = None) -> np.ndarray:  # fmt: skip
        batch, heads, steps, head, rotated = self._sizes(c, x.shape)
        if positions is not None:
            if positions.size and not 0 <= positions.min() <= positions.max() < len(cos):
                raise c.error(f"position_ids must lie in [0, {len(cos)})")
            cos, sin = cos[positions], sin[positions]
        wide = x.astype(np.promote_types(x.dtype, np.float32))
        if x.ndim == 3:
            wide = wide.reshape(batch, steps, heads, head)
            cos, sin = cos[:, :, None], sin[:, :, None]
        else:
            cos, sin = cos[:, None], sin[:, None]
        half = rotated // 2
        first, second = (slice(0, rotated, 2), slice(1, rotated, 2)) if c["interleaved"] else (
            slice(0, half), slice(half, rotated))  # fmt: skip
        y = wide.copy()
        a, b = wide[..., first], wide[..., second]
        y[..., first] = cos * a - sin * b
        y[..., second] = sin * a + cos * b
        return y.reshape(x.shape).astype(x.dtype, copy=False)

    def gradient(self, g: Gradients, c: Call, dy: str) -> list[str | None]:
        """Of X: turned back. The caches are not trained."""
        _, cos, sin, *positions = c.node.inputs
        return [g.replay("RotaryEmbedding", c, [dy, cos, g.neg(sin), *positions]), None, None, None]
