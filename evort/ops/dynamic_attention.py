"""Attention whose products run in integers, by the ranges that queries, keys, values and weights turn out to have."""

from __future__ import annotations

import math

import numpy as np

from evort.ops.attention import Attention, Heads
from evort.ops.base import Attr, Call, Kernel, Op, op
from evort.types import DType, Spec

_FLOAT = frozenset({DType.FLOAT})
MAX_KEYS = 65536  # sums of so many products of 255 by 127 fit int32
# 64 thresholds, which any few successive keys have well spread.
_SPREAD = np.array([(int(f"{i:06b}"[::-1], 2) + 0.5) / 64 for i in range(64)], np.float32)


def _symmetric(x: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """x as integers in [-127, 127], and the scales along an axis; NaN or infinity makes the scale no number either."""
    most = np.abs(x).max(axis, keepdims=True, initial=np.float32(0))
    inverse = np.float32(127) / most
    inverse = np.where(np.isfinite(inverse) & np.isfinite(most), inverse, np.float32(0))
    return np.nan_to_num(np.rint(x * inverse), posinf=0, neginf=0).astype(np.int64), most / np.float32(127)


@op("DynamicQuantizeAttention", domain="evort")
class DynamicQuantizeAttention(Attention):
    """ONNX's Attention in float32 with both products in integers (as in SageAttention, Zhang et al. 2024, and
    INT-FlashAttention, Chen et al. 2024):

        Q, K       int8, a scale for each query and each key: largest magnitude / 127
        scores     exact sums * (Q's scale * scale) * K's scale, in float32; softcap and masks as they are
        weights    uint8: exp(score - the row's largest) in units of 1/255, rounded; those below 1 are rounded up where
                   1 - the weight is at most a threshold that goes with the key's number, so that many small ones
                   together are what they should be
        V          int8, a scale for each column of a head, over all of its keys
        Y          exact sums * V's scale / the sum of the row's weights

    What a NaN takes part in is NaN. `min_queries`: with fewer queries (for a key/value head, those of all heads that
    share it), and with more than 65536 keys, the products are Attention's, in float32: each key and value would be read
    and rounded for few products. There is no qk_matmul_output."""

    outputs = ("Y", "present_key?", "present_value?")
    dtypes = {
        **Attention.dtypes,
        **dict.fromkeys(("Q", "K", "V", "past_key", "past_value"), _FLOAT),
        "attn_mask": frozenset({DType.BOOL, DType.FLOAT}),
    }
    attrs = {
        **{k: v for k, v in Attention.attrs.items() if k not in ("qk_matmul_output_mode", "softmax_precision")},
        "min_queries": Attr("int", 64),
    }
    lower = Op.lower

    def _plain(self, c: Call) -> Call:
        """The node as Attention sees it."""
        attrs = {key: attr.default for key, attr in Attention.attrs.items()}
        attrs |= {key: value for key, value in c.attrs.items() if key in attrs}
        call = Call(c.node, attrs, c.ins, c.threads)
        call.outs = c.outs
        return call

    def infer(self, c: Call) -> list[Spec | None]:
        if c["min_queries"] < 0:
            raise c.error(f"min_queries {c['min_queries']} must be at least 0")
        return super().infer(self._plain(c))

    @staticmethod
    def _in_float(c: Call, h: Heads) -> bool:
        return h.queries * (h.q_heads // h.kv_heads) < c["min_queries"] or h.total > MAX_KEYS

    def reference(self, c: Call, q: np.ndarray, k: np.ndarray, v: np.ndarray, mask: np.ndarray | None = None,
                  past_key: np.ndarray | None = None, past_value: np.ndarray | None = None,
                  lens: np.ndarray | None = None) -> tuple[np.ndarray, ...]:  # fmt: skip
        plain, given = self._plain(c), (q, k, v, mask, past_key, past_value, lens)
        h = Heads(c, q.shape, k.shape, v.shape, 0 if past_key is None else past_key.shape[2])
        if self._in_float(c, h):
            return super().reference(plain, *given)[:3]
        flat = q.ndim == 3
        if flat:
            q, k, v = (
                x.reshape(h.batch, x.shape[1], heads, -1).swapaxes(1, 2)
                for x, heads in ((q, h.q_heads), (k, h.kv_heads), (v, h.kv_heads))
            )
        if past_key is not None:
            k, v = np.concatenate([past_key, k], axis=2), np.concatenate([past_value, v], axis=2)
        scale = np.float32(1 / math.sqrt(h.head) if c["scale"] is None and h.head else c["scale"] or 0.0)
        group = h.q_heads // h.kv_heads
        with np.errstate(all="ignore"):
            (q8, q_scale), (k8, k_scale), (v8, v_scale) = _symmetric(q, 3), _symmetric(k, 3), _symmetric(v, 2)
            k8, k_scale, v8, v_scale = (x.repeat(group, 1) for x in (k8, k_scale, v8, v_scale))
            sums = np.matmul(q8, k8.swapaxes(2, 3)).astype(np.float32)
            scores = sums * ((q_scale * scale) * k_scale.swapaxes(2, 3))
            if c["softcap"] > 0:
                cap = np.float32(c["softcap"])
                scores = np.tanh(scores / cap) * cap
            bias = self._bias(plain, h, mask, lens, np.dtype(np.float32))
            scores = np.where(np.isneginf(bias), -np.inf, scores + bias).astype(np.float32)
            most = scores.max(3, keepdims=True)
            e = np.exp(scores - np.where(np.isneginf(most), np.float32(0), most))
            e = e * np.float32(255)
            weights = np.floor(e + np.where(e < 1, _SPREAD[np.arange(h.total) % 64], np.float32(0.5)))
            total = weights.sum(3, keepdims=True)
            share = np.where(total == 0, np.float32(0), np.float32(1) / total).astype(np.float32)
            sums = np.matmul(np.nan_to_num(weights).astype(np.int64), v8).astype(np.float32)
            y = sums * (share * v_scale)
        if flat:
            y = y.swapaxes(1, 2).reshape(h.batch, h.queries, h.q_heads * h.v_head)
        return y, k, v

    def bind(self, c: Call) -> Kernel | None:
        h = self._heads(c)
        found = super().bind(self._plain(c))
        if found is None or self._in_float(c, h):
            return found
        from evort._kernels import attention

        how, slot, head_bytes = attention.packing(h.queries, h.total, h.head, h.v_head)
        scratch = h.batch * h.kv_heads * head_bytes + slot * c.threads
        return Kernel("attention.dynamic", (*found.ints[:-1], slot, *how), found.reals, scratch)
