"""The quantized matrix product against int64 NumPy, and its epilogue against float32 NumPy, bit for bit: every
instruction set, one and two threads, extremes of all types."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evort._kernels import core
from evort.ops.activation import ACTIVATIONS

SOURCE = """
# cython: language_level=3
from evort._kernels.core cimport EV_BIAS_COLUMN, EV_BIAS_NONE, EV_BIAS_ROW
from evort._kernels.qgemm cimport ev_qgemm, qgemm_batch, qgemm_init, qgemm_scratch
from libc.stdint cimport int32_t, int64_t, uint8_t, uintptr_t
from libc.string cimport memcpy

ctypedef struct Panels:
    const char *b
    int64_t rs, cs, size

cdef void pack(const void *ctx, int64_t p0, int64_t kc, int64_t j0, int64_t nc, void *dst) noexcept nogil:
    cdef const Panels *w = <const Panels *> ctx
    cdef char *out = <char *> dst
    cdef int64_t j, p, i
    for j in range(0, nc, 16):
        for p in range(kc):
            for i in range(16):                 # columns past nc: rubbish
                if j + i < nc:
                    memcpy(out, w.b + ((p0 + p) * w.rs + (j0 + j + i) * w.cs) * w.size, w.size)
                else:
                    out[0] = 77
                out += w.size

cdef const void *at(x) except? NULL:
    cdef uintptr_t address = 0 if x is None else x.ctypes.data
    return <const void *> address

AXIS = {None: EV_BIAS_NONE, "row": EV_BIAS_ROW, "column": EV_BIAS_COLUMN}

def product(dict o, int threads=1):
    cdef ev_qgemm g
    cdef Panels w
    a, b, c = o["a"], o["b"], o["c"]
    cdef int64_t m = a.shape[-2], k = a.shape[-1], n = b.shape[-1]
    types = o["types"]                          # of a, b, c and the residual; what float32 operands become
    qgemm_init(&g, m, n, k, at(a), types[0], at(b), types[1], <void *> at(c), types[2])
    g.a.rs, g.a.cs = a.strides[-2] // a.itemsize, a.strides[-1] // a.itemsize
    g.b.rs, g.b.cs = b.strides[-2] // b.itemsize, b.strides[-1] // b.itemsize
    g.ldc = c.strides[-2] // c.itemsize
    g.a.as_type, g.b.as_type = o["as_types"]
    g.a.scale, g.b.scale = o["in_scales"]
    g.a.zero, g.b.zero = at(o["a_zero"]), at(o["b_zero"])
    g.a.zero_step, g.b.zero_step = len(o["a_zero"]) > 1, len(o["b_zero"]) > 1
    if o.get("packs"):
        w.b, w.rs, w.cs, w.size = <const char *> at(b), g.b.rs, g.b.cs, b.itemsize
        g.pack, g.pack_ctx, g.b.data = pack, &w, NULL
    g.presum, g.weights_in_b = o.get("presum", 0), o.get("weights_in_b", False)
    g.q.scale, g.q.scale_axis, g.q.factor = <const float *> at(o["scale"]), AXIS[o["scale_axis"]], o["factor"]
    bias, z, slope = o.get("bias"), o.get("z"), o.get("slope")
    if bias is not None:
        g.q.bias, g.q.bias_type, g.q.bias_axis = at(bias), o["bias_type"], AXIS[o["bias_axis"]]
    if z is not None:
        g.q.residual, g.q.residual_type, g.q.ldr = at(z), types[3], z.strides[-2] // z.itemsize
        g.q.residual_zero, g.q.residual_scale = o["z_zero"], o["z_scale"]
    g.q.slope = <const float *> at(slope)
    g.q.activation, g.q.a, g.q.b = o["activation"]
    g.q.y_scale, g.q.y_zero = o["y_scale"], o["y_zero"]
    if "range" in o:
        g.q.lo, g.q.hi = o["range"]
    g.q.alpha, g.q.beta = o.get("alpha", 1), o.get("beta", 0)
    cdef int64_t count = c.shape[0] if c.ndim == 3 else 1, sa = 0, sb = 0, sc = 0
    if c.ndim == 3:
        sa = a.strides[0] // a.itemsize if a.ndim == 3 else 0
        sb = b.strides[0] // b.itemsize if b.ndim == 3 else 0
        sc = c.strides[0] // c.itemsize
    wide = 5 in types[:2] or 5 in o["as_types"]
    as_it_lies = types[1] in (2, 3) and (g.b.rs == 1 or g.b.cs == 1)
    need = qgemm_scratch(count, m, n, k, threads, g.pack != NULL, wide, as_it_lies)
    memory = o["memory"](need)
    g.threads, g.scratch = threads, <void *> at(memory)
    with nogil:
        qgemm_batch(&g, count, sa, sb, sc)
    assert (memory[need:] == 0x5A).all(), "written past the scratch memory"
"""

BYTES = (np.int8, np.uint8)
TYPE = {np.dtype(x): i for x, i in ((np.float32, 1), (np.uint8, 2), (np.int8, 3), (np.int16, 5), (np.int32, 6))}


@pytest.fixture(scope="module")
def client(native):
    return native("qgemm_client", SOURCE)


def memory(size):
    """`size` bytes aligned to 64, full of rubbish, and a canary behind them."""
    raw = np.full(size + 192, 0x5A, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size + 64]


def array(rng, dtype, shape, extreme, order=0):
    info = np.iinfo(dtype)
    if extreme:
        x = rng.choice(np.array([info.min, info.min + 1, 0, info.max], dtype), shape)
    else:
        x = rng.integers(info.min, info.max, shape, dtype, endpoint=True)
    if order == 1:
        return np.swapaxes(np.ascontiguousarray(np.swapaxes(x, -1, -2)), -1, -2)
    if order == 2:
        wide = np.zeros((*shape[:-1], shape[-1] + 3), dtype)
        wide[..., :-3] = x
        return wide[..., :-3]
    return x


def defaults(a, b, c, **more):
    """What `product` needs, with nothing but the sums asked for."""
    as_types = more.pop("as_types", (0, 0))
    o = {
        "a": a, "b": b, "c": c, "as_types": as_types, "in_scales": (1.0, 1.0),
        "a_zero": np.zeros(1, np.int64), "b_zero": np.zeros(1, np.int64),
        "scale": np.ones(1, np.float32), "scale_axis": None, "factor": 1.0, "activation": (0, 0.0, 0.0),
        "y_scale": 1.0, "y_zero": 0, "memory": memory,
    }  # fmt: skip
    o.update(more)
    z = o.get("z")
    o["types"] = (TYPE[a.dtype], TYPE[b.dtype], TYPE[c.dtype], 0 if z is None else TYPE[z.dtype])
    return o


def every_way(client, o, threads=(1, 2)):
    """The result on every instruction set and number of threads; they must be the same bits."""
    kept = None
    old = o["c"].copy()
    active = core.isa()
    try:
        for name in core.available_isas():
            core.select_isa(name)
            for count in threads:
                o["c"][...] = old
                client.product(o, count)
                if kept is None:
                    kept = o["c"].copy()
                np.testing.assert_array_equal(kept.view(np.uint8), np.ascontiguousarray(o["c"]).view(np.uint8))
    finally:
        core.select_isa(active)
    return kept


sizes = st.one_of(st.integers(1, 8), st.integers(9, 70))
depths = st.one_of(st.integers(0, 40), st.sampled_from([63, 64, 65, 495, 496, 497, 700, 1100]))


@settings(max_examples=80, deadline=None, derandomize=True)
@given(st.data())
def test_sums_are_exact(client, data):
    draw = data.draw
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    m, n, k = draw(sizes), draw(sizes), draw(depths)
    a_type, b_type = draw(st.sampled_from([np.int8, np.uint8])), draw(st.sampled_from([np.int8, np.uint8]))
    which = draw(st.integers(0, 5))  # one in six: 16 bits by 8
    if which == 0:
        a_type = np.int16
    elif which == 1:
        b_type = np.int16
    extreme = draw(st.booleans())
    a = array(rng, a_type, (m, k), extreme, draw(st.integers(0, 2)))
    b = array(rng, b_type, (k, n), extreme, draw(st.integers(0, 2)))
    each = which > 1 and draw(st.booleans())
    a_zero = array(rng, a_type, (m if each else 1,), extreme)
    b_zero = array(rng, b_type, (n if each else 1,), extreme)
    bias_axis = draw(st.sampled_from(["row", "column", None]))
    bias = rng.integers(-(10**6), 10**6, m if bias_axis == "row" else n).astype(np.int32)
    alpha, beta = draw(st.sampled_from([(1, 0), (-3, 2), (1, 1)]))
    c = rng.integers(-100, 100, (m, n + draw(st.integers(0, 3)))).astype(np.int32)[:, :n]
    o = defaults(a, b, c, a_zero=a_zero, b_zero=b_zero, bias=None if bias_axis is None else bias, bias_axis=bias_axis,
                 bias_type=6, alpha=alpha, beta=beta, packs=draw(st.booleans()))  # fmt: skip
    sums = (a.astype(np.int64) - a_zero.astype(np.int64).reshape(-1, 1)) @ (b.astype(np.int64) - b_zero)
    want = alpha * sums + beta * c.astype(np.int64)
    if bias_axis:
        want = want + (bias.reshape(-1, 1) if bias_axis == "row" else bias)
    got = every_way(client, o)
    np.testing.assert_array_equal(got, want.astype(np.int32))


def finished(o, sums):
    """The epilogue in NumPy float32, as qgemm.pxd defines it."""
    number, alpha, beta = o["activation"]
    c, z, bias = o["c"], o.get("z"), o.get("bias")

    def along(v, axis):
        return v.reshape(-1, 1) if axis == "row" else v

    f32 = np.float32
    float_bias = bias is not None and o["bias_type"] == 1
    if bias is not None and not float_bias:
        sums = sums + along(bias, o["bias_axis"])
        sums = sums.astype(np.int32) if sums.dtype == np.int32 else sums
    scale = f32(o["factor"]) * along(o["scale"], o["scale_axis"])
    integer = c.dtype != np.float32
    with np.errstate(all="ignore"):
        if integer and z is None and not float_bias and number in (0, 1, 2):
            r = sums.astype(f32) * (scale / f32(o["y_scale"]))
            clamp = {0: None, 1: (0.0, np.inf), 2: (alpha, beta)}[number]
        else:
            r = sums.astype(f32) * scale
            if float_bias:
                r = r + along(bias, o["bias_axis"])
            if z is not None and z.dtype == np.float32:
                r = r + z
            elif z is not None:
                r = r + (z.astype(np.int32) - o["z_zero"]).astype(f32) * f32(o["z_scale"])
            if number == 11:
                r = np.where(r < 0, o["slope"].reshape(-1, 1) * r, r)
            elif number:
                name = next(n for n, a in ACTIVATIONS.items() if a.id == number)
                r = ACTIVATIONS[name].reference(r, f32(alpha), f32(beta))
            clamp = None
            if not integer:
                return r
            r = r / f32(o["y_scale"])
        info = np.iinfo(c.dtype)
        low, high = o.get("range", (info.min, info.max))
        y = np.rint(r).astype(np.float64) + o["y_zero"]
        y = np.where(np.isnan(y), low, y)
        if clamp:
            lo, hi = (float(np.rint(f32(v) / f32(o["y_scale"]))) + o["y_zero"] for v in clamp)
            y = np.minimum(np.maximum(y, lo), hi)
        return np.clip(y, low, high).astype(c.dtype)


def epilogue_case(data):
    """A product whose sums take any int32 value (K = 0 and a bias), or are those of a real product."""
    draw = data.draw
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    wide = draw(st.integers(0, 3)) == 0
    m, n, k = draw(sizes), draw(sizes), draw(st.sampled_from([0, 0, 5, 30, 600]))
    a = array(rng, np.int16 if wide else np.int8, (m, k), draw(st.booleans()))
    b = array(rng, np.int8, (k, n), draw(st.booleans()))
    sums = a.astype(np.int64) @ b.astype(np.int64)
    y_type = draw(st.sampled_from([np.uint8, np.int8, np.int16, np.float32]))
    z_type = draw(st.sampled_from([None, np.uint8, np.int8, np.int16, np.float32]))
    z = None
    if z_type is np.float32:
        z = rng.normal(0, 100, (m, n + 2)).astype(np.float32)[:, :n]
    elif z_type is not None:
        z = array(rng, z_type, (m, n), draw(st.booleans()))
    bias_axis = draw(st.sampled_from(["row", "column"]))
    length = m if bias_axis == "row" else n
    bias = rng.integers(-(2**31), 2**31, length).astype(np.int32)
    if draw(st.booleans()):
        bias = rng.normal(0, 100, length).astype(np.float32) if draw(st.booleans()) else bias >> 20
    scale_axis = draw(st.sampled_from(["row", "column", None]))
    # Powers of two give ties, by the score where the sums are small.
    scale = 2.0 ** rng.integers(-22, 1, {"row": m, "column": n, None: 1}[scale_axis])
    if draw(st.booleans()):
        scale = scale * rng.uniform(0.5, 1, scale.shape)
    exact = [0, 1, 2, 3, 6, 7, 11]  # activations without exp
    info = np.iinfo(y_type) if y_type is not np.float32 else np.iinfo(np.int8)
    o = defaults(
        a, b, np.zeros((m, n + 1), y_type)[:, :n], z=z, z_zero=int(rng.integers(-128, 128)), z_scale=0.3,
        bias=bias, bias_type=TYPE[bias.dtype], bias_axis=bias_axis, scale=scale.astype(np.float32),
        scale_axis=scale_axis, factor=draw(st.sampled_from([1.0, 0.25, 0.0371])), slope=rng.normal(size=m).astype("f"),
        activation=(draw(st.sampled_from(exact)), *draw(st.sampled_from([(-1.5, 2.5), (0.1, 0.5)]))),
        y_scale=draw(st.sampled_from([1.0, 0.5, 0.013])), y_zero=int(rng.integers(info.min, info.max + 1)),
    )  # fmt: skip
    return o, sums if wide else sums.astype(np.int32)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.data())
def test_epilogue_is_the_same_bits_as_numpy(client, data):
    o, sums = epilogue_case(data)
    got, want = every_way(client, o, (1,)), finished(o, sums)
    np.testing.assert_array_equal(got, want)


def test_rounding_of_a_million_sums(client):
    """Every int32 in steps, ties in plenty: K = 0, the bias is the sum."""
    rng = np.random.default_rng(1)
    n = 1 << 20
    values = np.concatenate([np.arange(-(1 << 18), 1 << 18), rng.integers(-(2**31), 2**31, n - (1 << 19))])
    bias = values.astype(np.int32)
    for y_type, scale, zero in ((np.uint8, 2.0**-10, 3), (np.int8, 2.0**-11, -7), (np.int16, 0.37, 100)):
        o = defaults(np.zeros((1, 0), np.int8), np.zeros((0, n), np.int8), np.zeros((1, n), y_type), bias=bias,
                     bias_type=6, bias_axis="column", factor=scale, y_zero=zero)  # fmt: skip
        info = np.iinfo(y_type)
        want = np.clip(
            np.rint(bias.astype(np.float32) * np.float32(scale)).astype(np.float64) + zero, info.min, info.max
        )
        np.testing.assert_array_equal(every_way(client, o)[0], want.astype(y_type))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.data())
def test_float_operands_are_quantized_as_they_are_read(client, data):
    draw = data.draw
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    m, n, k = draw(sizes), draw(sizes), draw(depths)
    as_type = draw(st.sampled_from([np.uint8, np.int8, np.int16]))
    info = np.iinfo(as_type)
    zero = array(rng, as_type, (1,), draw(st.booleans()))
    scale = np.float32(draw(st.sampled_from([0.5, 0.031])))
    of_a = draw(st.booleans())
    x = rng.normal(0, 60 * scale, (m, k) if of_a else (k, n)).astype(np.float32)
    x = np.where(rng.random(x.shape) < 0.5, np.round(x / scale * 2) / 2 * scale, x).astype(np.float32)  # ties
    special = rng.random(x.shape) < 0.05
    x[special] = rng.choice(np.float32([np.inf, -np.inf, np.nan, 1e30]), special.sum())
    with np.errstate(all="ignore"):
        q = np.rint(x / scale).astype(np.float64) + zero
        q = np.clip(np.where(np.isnan(q), info.min, q), info.min, info.max).astype(np.int64)
    w = array(rng, np.int8, (k, n) if of_a else (m, k), True)
    pair = (x, w) if of_a else (w, x)
    zeros = (zero, np.zeros(1, np.int8)) if of_a else (np.zeros(1, np.int8), zero)
    as_types = (TYPE[np.dtype(as_type)], 0) if of_a else (0, TYPE[np.dtype(as_type)])
    o = defaults(*pair, np.zeros((m, n), np.int32), as_types=as_types, in_scales=(scale, scale), a_zero=zeros[0],
                 b_zero=zeros[1])  # fmt: skip
    want = (q - int(zero[0])) @ w.astype(np.int64) if of_a else w.astype(np.int64) @ (q - int(zero[0]))
    np.testing.assert_array_equal(every_way(client, o), want.astype(np.int32))


@pytest.mark.parametrize("shared", ["a", "b", "neither"])
def test_batches(client, shared):
    rng = np.random.default_rng(3)
    count, m, n, k = 5, 9, 21, 40
    a = array(rng, np.uint8, (m, k) if shared == "a" else (count, m, k), False)
    b = array(rng, np.int8, (k, n) if shared == "b" else (count, k, n), False)
    z = array(rng, np.int8, (count, m, n), False)
    a_zero, b_zero = np.uint8([130]), array(rng, np.int8, (n,), False)
    o = defaults(a, b, np.zeros((count, m, n), np.float32), a_zero=a_zero, b_zero=b_zero, z=z, z_zero=3, z_scale=0.5)
    want = (a.astype(np.int64) - 130) @ (b.astype(np.int64) - b_zero) + (z - 3.0) * 0.5
    np.testing.assert_array_equal(every_way(client, o, (1, 2, 3)), want.astype(np.float32))


@pytest.mark.parametrize("k", [496, 65536])
@pytest.mark.parametrize("a_value, b_value", [(-128, -128), (127, -128), (255, -128), (255, 127), (255, 255), (0, 255)])
@pytest.mark.parametrize("b_last", [False, True])
def test_extremes_of_any_depth(client, k, a_value, b_value, b_last):
    """One value all over: the largest sums that there are. 255 * 255 * 65536 wraps around."""
    m, n = (8, 3) if b_last else (1, 17)
    a = np.full((m, k), a_value, np.int8 if a_value < 128 and a_value else np.uint8)
    b = np.full((k, n), b_value, np.int8 if b_value < 128 else np.uint8)
    b = np.asfortranarray(b) if b_last else b
    want = np.full((m, n), a_value * b_value * k).astype(np.int32)
    np.testing.assert_array_equal(every_way(client, defaults(a, b, np.zeros((m, n), np.int32)), (2,)), want)


def test_int16_sums_do_not_wrap(client):
    k = 65536
    a, b = np.full((1, k), -32768, np.int16), np.full((k, 1), -128, np.int8)
    o = defaults(a, b, np.zeros((1, 1), np.float32), factor=0.5)
    assert every_way(client, o)[0, 0] == 32768.0 * 128 * k / 2


def provable(rng, lines, k, s, full):
    """int8 weights [lines, k] for which `presum` = s holds; `full`: up to its limit, wherever that can be."""
    w = np.zeros((lines, -(-k // (4 * s)), s, 2, 2), np.int64)  # group, quad, half of a quad, element
    lanes = w.transpose(0, 1, 3, 2, 4).reshape(-1, 2 * s)  # what one 16-bit lane adds up
    for sign, top in ((1, 128), (-1, 128)):
        share = rng.dirichlet(np.ones(2 * s) * (0.1 if full else 1), len(lanes))
        part = np.floor(share * (top + 0.999 if full else top * rng.random((len(lanes), 1)))).astype(np.int64)
        free = rng.random(lanes.shape) < 0.5 if sign > 0 else lanes == 0
        lanes = np.where(free, sign * part, lanes)
    if full:  # the limit itself, in one element and spread
        lanes[::3] = 0
        lanes[::3, 0] = 127
        lanes[::3, 1] = 1
        lanes[1::3] = 0
        lanes[1::3, -1] = -128
    w = lanes.reshape(lines, -1, 2, s, 2).transpose(0, 1, 3, 2, 4).reshape(lines, -1)[:, :k]
    return np.clip(w, -128, 127).astype(np.int8)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(st.data())
def test_presum_is_exact_up_to_the_limit_of_its_proof(client, data):
    draw = data.draw
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    m, n = draw(st.integers(2, 40)), draw(st.integers(2, 40))
    k = draw(st.one_of(st.integers(0, 70), st.sampled_from([1023, 1024, 1025, 2100])))
    s, in_b = draw(st.sampled_from([1, 2, 4])), draw(st.booleans())
    w = provable(rng, n if in_b else m, k, s, draw(st.booleans()))
    for lane in (0, 1):  # the proof, as qgemm.pxd states it
        groups = np.pad(w.astype(int), ((0, 0), (0, -k % (4 * s)))).reshape(len(w), -1, s, 2, 2)[:, :, :, lane]
        assert (np.maximum(groups, 0).sum((2, 3)) <= 128).all() and (np.minimum(groups, 0).sum((2, 3)) >= -128).all()
    x_type = draw(st.sampled_from([np.uint8, np.int8]))
    info = np.iinfo(x_type)
    x = array(rng, x_type, (m, k) if in_b else (k, n), False, draw(st.integers(0, 2)))
    if draw(st.booleans()):
        x = np.full_like(x, info.max)
    zero = array(rng, x_type, (1,), draw(st.booleans()))
    none = np.zeros(1, np.int8)
    a, b = (x, w.T if draw(st.booleans()) else np.ascontiguousarray(w.T)) if in_b else (w, x)
    centred = x.astype(np.int64) - int(zero[0])
    want = centred @ w.T.astype(np.int64) if in_b else w.astype(np.int64) @ centred
    bias = rng.integers(-999, 999, n).astype(np.int32)
    o = defaults(a, b, np.zeros((m, n), np.int32), presum=s, weights_in_b=in_b, packs=not in_b and draw(st.booleans()))
    o |= {"a_zero": zero if in_b else none, "b_zero": none if in_b else zero}
    o |= {"bias": bias, "bias_type": 6, "bias_axis": "column"}
    np.testing.assert_array_equal(every_way(client, o), (want + bias).astype(np.int32))


def test_presum_is_not_taken_without_its_conditions(client):
    """Weights with a zero point, or activations with one for each row, go the exact way."""
    rng = np.random.default_rng(0)
    a, b = array(rng, np.uint8, (9, 50), True), array(rng, np.int8, (50, 20), True)
    for a_zero, b_zero in ((np.uint8([3]), np.int8([1])), (array(rng, np.uint8, (9,), False), np.int8([0]))):
        o = defaults(a, b, np.zeros((9, 20), np.int32), a_zero=a_zero, b_zero=b_zero, presum=4, weights_in_b=True)
        want = (a.astype(int) - a_zero.astype(int)[:, None]) @ (b.astype(int) - b_zero)
        np.testing.assert_array_equal(every_way(client, o), want)


def test_presum_quantizes_float_operands(client):
    rng = np.random.default_rng(0)
    w = provable(rng, 20, 70, 2, True)
    x = rng.normal(0, 1, (9, 70)).astype(np.float32)
    for kind, zero in ((np.uint8, 128), (np.int8, -3)):
        info = np.iinfo(kind)
        q = np.clip(np.rint(x / np.float32(0.02)) + zero, info.min, info.max).astype(int)
        o = defaults(x, np.ascontiguousarray(w.T), np.zeros((9, 20), np.int32), as_types=(TYPE[np.dtype(kind)], 0),
                     in_scales=(0.02, 1.0), a_zero=np.array([zero], kind), presum=2, weights_in_b=True)  # fmt: skip
        np.testing.assert_array_equal(every_way(client, o), (q - zero) @ w.T.astype(int))


@pytest.mark.parametrize("shape", [(1, 5000, 100), (5000, 1, 100), (1, 70, 9000), (70, 1, 9000)])
def test_one_row_or_column(client, shape):
    """Beyond the blocks in which vectors are taken."""
    m, n, k = shape
    rng = np.random.default_rng(0)
    for order, extreme, (of_a, of_b) in itertools.product((0, 1), (False, True), itertools.product(BYTES, BYTES)):
        a, b = array(rng, of_a, (m, k), extreme, order), array(rng, of_b, (k, n), extreme, order)
        a_zero, b_zero = array(rng, of_a, (m,), extreme), array(rng, of_b, (n,), extreme)
        o = defaults(a, b, np.zeros((m, n), np.int32), a_zero=a_zero, b_zero=b_zero)
        want = (a.astype(int) - a_zero.astype(int)[:, None]) @ (b.astype(int) - b_zero.astype(int))
        np.testing.assert_array_equal(every_way(client, o), want)
