"""Products with weights of few bits: against float64 on the widened weights, and against onnxruntime's packing.

Tolerance: weights are exact in float32 up to the rounding of (q - zero) and of the product with the scale, and a sum of
k products in any order is off by gamma(k) * sum |x||w|, gamma(k) = k*eps/(1 - k*eps), eps = 2^-24; scales and zero
points in a block add a few roundings (8 are allowed). With accuracy_level 2 each x is rounded to within 1/65534 of the
largest of (at most) 16 neighbours, so each term may be off by |w| times that.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import compiled, drivers_of, import_onnxruntime, node_model, run_node

from evort._kernels import core
from evort.errors import EvortError
from evort.ops import lowp, nbits
from evort.ops.nbits import BITS, pack, unpack, widen
from evort.session import Session
from evort.types import DType

MS = "com.microsoft"


def gamma(k: int) -> float:
    eps = 2.0**-24
    return (k + 8) * eps / (1 - (k + 8) * eps)


def neighbours(x: np.ndarray, lane: int) -> np.ndarray:
    """The largest |x| of each run of `lane` columns, at every element."""
    k = x.shape[-1]
    wide = np.zeros((*x.shape[:-1], -(-k // lane) * lane))
    wide[..., :k] = np.abs(x)
    most = wide.reshape(*x.shape[:-1], -1, lane).max(-1)
    return np.repeat(most, lane, axis=-1)[..., :k]


def random_weights(rng, bits, block, n, k, zeros, narrow=False):
    """Packed weights, scales and zero points of the kind asked for: None, "packed" or "float"."""
    blocks = -(-k // block)
    q = pack(rng.integers(0, 1 << bits, (n, blocks * block)), bits).reshape(n, blocks, -1)
    scales = (rng.random((n, blocks)) + 0.1).astype(np.float16 if narrow else np.float32)
    if zeros == "packed":
        point = pack(rng.integers(0, 1 << bits, (n, blocks)), bits)
    else:
        point = (rng.random((n, blocks)) * (1 << bits)).astype(np.float32) if zeros else None
    return q, scales, point


def test_packing_is_dense_and_low_bits_first():
    assert pack(np.array([1, 2, 3]), 4).tolist() == [0x21, 0x03]
    assert pack(np.array([1, 2, 3, 0, 1]), 2).tolist() == [0b00111001, 1]
    assert pack(np.array([7, 0, 5, 1]), 3).tolist() == [0b01000111, 0b00000011]  # 5 = 101 lies across the bytes
    rng = np.random.default_rng(0)
    for bits in BITS:
        q = rng.integers(0, 1 << bits, (3, 5, 37)).astype(np.uint8)
        assert pack(q, bits).shape == (3, 5, -(-37 * bits // 8))
        np.testing.assert_array_equal(unpack(pack(q, bits), bits, 37), q)


def matmul(x, q, scales, zeros, bits, block, n, k, level=0, threads=1, **more):
    attrs = {"K": k, "N": n, "bits": bits, "block_size": block, "accuracy_level": level}
    inputs = [x, q, scales, zeros, None, more.get("bias"), more.get("z")]
    return run_node("MatMulNBits", inputs, attrs | more.get("attrs", {}), domain=MS, threads=threads,
                    constants=(1, 2, 3, 5))[0]  # fmt: skip


@pytest.mark.parametrize("isa", core.available_isas())
@settings(max_examples=120, deadline=None, derandomize=True)
@given(st.sampled_from(BITS), st.sampled_from([16, 32, 64, 128, 256]), st.integers(1, 9), st.integers(1, 50),
       st.one_of(st.integers(1, 70), st.sampled_from([511, 1056, 1290])), st.sampled_from([None, "packed", "float"]),
       st.booleans(), st.sampled_from([0, 2]), st.integers(1, 2))  # fmt: skip
def test_matmul(isa, bits, block, m, n, k, zeros, narrow, level, threads):
    rng = np.random.default_rng([bits, block, m, n, k])
    q, scales, points = random_weights(rng, bits, block, n, k, zeros, narrow)
    if (n + k) % 2:  # rows that end where their last weight does
        q = pack(unpack(q.reshape(n, -1), bits, k), bits)
    x = rng.standard_normal((m, k)).astype(np.float32)
    core.select_isa(isa)
    try:
        got = matmul(x, q, scales, points, bits, block, n, k, level, threads)
        if threads == 2:
            np.testing.assert_array_equal(got, matmul(x, q, scales, points, bits, block, n, k, level, 1))
    finally:
        core.select_isa()
    w = widen(q.reshape(n, -1), scales, points, bits, block, k).astype(np.float64)
    bound = gamma(k) * (np.abs(x).astype(np.float64) @ np.abs(w.T))
    # Zero points are taken off by a sum of their own, which may be as large as the middle of the range.
    middle = np.repeat(scales.astype(np.float64), block, axis=1)[:, :k] * (1 << bits)
    bound += gamma(k) * (np.abs(x) @ middle.T)
    if level:
        bound += (neighbours(x, 16) / 65534 * 1.001) @ np.abs(w.T)
    assert np.all(np.abs(got - x.astype(np.float64) @ w.T) <= bound)


def test_matmul_epilogue_and_batches():
    rng = np.random.default_rng(1)
    q, scales, points = random_weights(rng, 4, 32, 21, 75, "packed")
    for shape in ((1,), (3,), (2, 5), ()):
        x = rng.standard_normal((*shape, 75)).astype(np.float32)
        bias, z = rng.standard_normal(21).astype(np.float32), rng.standard_normal((*shape, 21)).astype(np.float32)
        inputs = [x, q, scales, points, None, bias, z]
        attrs = {"K": 75, "N": 21, "block_size": 32, "activation": "LeakyRelu", "activation_alpha": 0.25}
        model = node_model("MatMulNBits", inputs, attrs, domain=MS, constants=(1, 2, 3, 5))
        session = Session(model, threads=2)
        got = session.run({"in0": x, "in6": z})["out0"]
        assert drivers_of(session) == ["nbits.product"]
        want = Session(model, device="reference").run({"in0": x, "in6": z})["out0"]
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)  # sums of 75 numbers about 8: gamma(75)*600 < 1e-4


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("zeros", [None, "packed"])
@pytest.mark.parametrize("block", [16, 32, 128])
def test_matmul_as_onnxruntime(bits, zeros, block):
    ort = import_onnxruntime()
    from onnx import TensorProto, helper, numpy_helper

    n, k, m = 19, 144, 3
    rng = np.random.default_rng(2)
    q, scales, points = random_weights(rng, bits, block, n, k, zeros)
    x = rng.standard_normal((m, k)).astype(np.float32)
    names = ["a", "b", "s", "z"][: 4 if zeros else 3]
    node = helper.make_node("MatMulNBits", names, ["y"], domain=MS, K=k, N=n, bits=bits, block_size=block)
    arrays = {"b": q, "s": scales, "z": points}
    graph = helper.make_graph(
        [node], "g",
        [helper.make_tensor_value_info("a", TensorProto.FLOAT, [m, k])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [m, n])],
        [numpy_helper.from_array(v, name) for name, v in arrays.items() if v is not None],
    )  # fmt: skip
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 21), helper.make_opsetid(MS, 1)], ir_version=10
    )
    want = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"a": x})[0]
    got = matmul(x, q, scales, points, bits, block, n, k)
    w = widen(q.reshape(n, -1), scales, points, bits, block, k)
    assert np.all(np.abs(got - want) <= 4 * gamma(k) * (np.abs(x) @ np.abs(w.T) + 1))


def test_g_idx_runs_in_numpy():
    rng = np.random.default_rng(3)
    q, scales, points = random_weights(rng, 4, 16, 7, 48, "packed")
    x = rng.standard_normal((2, 48)).astype(np.float32)
    groups = (np.arange(48) // 16).astype(np.int32)
    attrs = {"K": 48, "N": 7, "block_size": 16}
    plain = run_node("MatMulNBits", [x, q, scales, points], attrs, domain=MS)[0]
    np.testing.assert_allclose(run_node("MatMulNBits", [x, q, scales, points, groups], attrs, domain=MS)[0], plain,
                               rtol=1e-4, atol=1e-4)  # fmt: skip
    other = groups[::-1].copy()
    w = unpack(q.reshape(7, -1), 4, 48).astype(np.float32)
    z = unpack(points, 4, 3).astype(np.float32)
    want = x @ ((w - z[:, other]) * scales[:, other]).T
    np.testing.assert_allclose(run_node("MatMulNBits", [x, q, scales, points, other], attrs, domain=MS)[0], want,
                               rtol=1e-4, atol=1e-4)  # fmt: skip


def test_rounded_activations_that_are_not_finite_or_tiny():
    rng = np.random.default_rng(4)
    q, scales, _ = random_weights(rng, 4, 32, 5, 64, None)
    x = np.zeros((1, 64), np.float32)
    np.testing.assert_array_equal(matmul(x, q, scales, None, 4, 32, 5, 64, 2), 0)
    x[0, 3] = 1e-40
    assert np.all(np.abs(matmul(x, q, scales, None, 4, 32, 5, 64, 2)) < 1e-30)
    for bad in (np.nan, np.inf):
        x[0, 40] = bad
        assert np.isnan(matmul(x, q, scales, None, 4, 32, 5, 64, 2)).all()
        assert not np.isfinite(matmul(x, q, scales, None, 4, 32, 5, 64, 0)).any()


CONVS = [
    # x, M, kernel, attributes
    ((1, 8, 9, 11), 6, (3, 3), {"pads": [1, 1, 1, 1]}),
    ((2, 16, 5, 6), 20, (1, 1), {}),
    ((1, 12, 17), 9, (5,), {"strides": [2], "dilations": [2]}),
    ((1, 4, 5, 6, 7), 3, (2, 3, 2), {"auto_pad": "SAME_UPPER"}),
    ((3, 12, 7, 7), 8, (3, 3), {"group": 4}),
    ((1, 6, 8, 8), 6, (3, 3), {"group": 6, "strides": [2, 1]}),
    ((1, 40, 30, 3), 50, (3, 1), {}),
]


@pytest.fixture(params=["as they are used", "beforehand"])
def widening(request, monkeypatch):
    """Convolutions widen their weights as they are used, or all of them first."""
    monkeypatch.setattr(nbits, "WIDENED_FROM", 1 if request.param == "beforehand" else 1 << 60)
    return request.param


@pytest.mark.parametrize("case", CONVS, ids=str)
@pytest.mark.parametrize("bits", BITS)
def test_conv(case, bits, widening):
    shape, m, kernel, attrs = case
    rng = np.random.default_rng(5)
    k, block = shape[1] // attrs.get("group", 1) * int(np.prod(kernel)), 32
    q, scales, points = random_weights(rng, bits, block, m, k, "packed" if m % 2 else None, narrow=bits == 3)
    x = rng.standard_normal(shape).astype(np.float32)
    w = widen(q.reshape(m, -1), scales, points, bits, block, k).reshape(m, -1, *kernel)
    if bits == 4:  # rows that end where their last weight does
        q = pack(unpack(q.reshape(m, -1), bits, k), bits)
    b = rng.standard_normal(m).astype(np.float32)
    conv_attrs = {**attrs, "kernel_shape": list(kernel)}
    want = run_node("Conv", [v.astype(np.float64) for v in (x, w, b)], conv_attrs, device="reference")[0]
    sizes = run_node(
        "Conv", [np.abs(x).astype(np.float64), np.abs(w).astype(np.float64)], conv_attrs, device="reference"
    )[0]
    z = rng.standard_normal(want.shape).astype(np.float32)
    slope = rng.random(m).astype(np.float32)
    bound = gamma(k) * (sizes + 3)
    packed = {**conv_attrs, "bits": bits, "block_size": block}
    for isa in core.available_isas():
        core.select_isa(isa)
        try:
            for threads in (1, 2):
                inputs = [x, q, scales, points, b]
                got = run_node("ConvNBits", inputs, packed, domain="evort", threads=threads, constants=(1, 2, 3, 4))[0]
                assert np.all(np.abs(got - want) <= bound)
                got = run_node("ConvNBits", [*inputs, z, slope], {**packed, "activation": "PRelu"}, domain="evort",
                               threads=threads, constants=(1, 2, 3, 4, 6))[0]  # fmt: skip
                real = want + z
                real = np.where(real < 0, real * slope.reshape(-1, *(1,) * len(kernel)), real)
                assert np.all(np.abs(got - real) <= bound * 1.01 + 1e-6)
        finally:
            core.select_isa()


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("zeros", [None, "packed"])
def test_gather(bits, zeros):
    rng = np.random.default_rng(6)
    n, k, block = 11, 80, 32
    blocks = -(-k // block)
    data = pack(rng.integers(0, 1 << bits, (n, k)), bits)
    scales = rng.random((n, blocks)).astype(np.float32)
    points = pack(rng.integers(0, 1 << bits, (n, blocks)), bits) if zeros else None
    indices = np.array([[0, 10, -1], [-11, 5, 5]], np.int64)
    w = widen(data, scales, points, bits, block, k)
    for isa in core.available_isas():
        core.select_isa(isa)
        try:
            for index in (indices, indices.astype(np.int32)):
                inputs, attrs = [data, index, scales, points], {"bits": bits, "block_size": block}
                got = run_node("GatherBlockQuantized", inputs, attrs, domain=MS, constants=(0, 2, 3))[0]
                np.testing.assert_allclose(got, w[index], rtol=1e-6, atol=1e-6)
        finally:
            core.select_isa()
    outside = np.array([3, 11, -12], np.int64)
    for device in ("cpu", "reference"):
        got = run_node("GatherBlockQuantized", [data, outside, scales, points], {"bits": bits, "block_size": block},
                       domain=MS, device=device)[0]  # fmt: skip
        np.testing.assert_allclose(got[0], w[3], rtol=1e-6, atol=1e-6)
        assert not got[1:].any()


NARROW = [np.float16, "bfloat16"]


def narrow(x: np.ndarray, dtype) -> tuple[np.ndarray, np.ndarray, DType]:
    """x in that type as it is stored, the numbers that this stands for, and the type."""
    if dtype == np.float16:
        return x.astype(np.float16), x.astype(np.float16).astype(np.float64), DType.FLOAT16
    stored = lowp.narrow(x, DType.BFLOAT16)
    return stored, lowp.widen(stored, DType.BFLOAT16).astype(np.float64), DType.BFLOAT16


@pytest.mark.parametrize("dtype", NARROW, ids=str)
@pytest.mark.parametrize("m", [1, 2, 3, 4, 9])
@pytest.mark.parametrize("trans", [0, 1])
@pytest.mark.parametrize("size", [(5, 7), (33, 600), (530, 70), (1, 1)])
def test_gemm_with_16_bit_weights(dtype, m, trans, size):
    n, k = size
    rng = np.random.default_rng(7)
    stored, w, kind = narrow(rng.standard_normal((n, k) if trans else (k, n)).astype(np.float32), dtype)
    w = w.T if trans else w
    x = rng.standard_normal((m, k)).astype(np.float32)
    bias = rng.standard_normal(n).astype(np.float32)
    bound = gamma(k) * (np.abs(x) @ np.abs(w) + np.abs(bias))
    attrs = {"transB": trans, "alpha": 0.5, "activation": "Relu"}
    for (got,) in compiled("nbits.product", "Gemm", [x, stored, bias], attrs, constants=(1, 2), dtypes={1: kind}):
        assert np.all(np.abs(got - np.maximum(0.5 * (x @ w) + bias, 0)) <= bound)
    if not trans:
        batch = x.reshape(m, 1, k)
        for (got,) in compiled("nbits.product", "MatMul", [batch, stored], dtypes={1: kind}, constants=(1,)):
            assert np.all(np.abs(got[:, 0] - x @ w) <= bound)


@pytest.mark.parametrize("dtype", NARROW, ids=str)
@pytest.mark.parametrize("case", CONVS[:5], ids=str)
def test_conv_with_16_bit_weights(dtype, case, widening):
    shape, m, kernel, attrs = case
    rng = np.random.default_rng(8)
    x = rng.standard_normal(shape).astype(np.float32)
    stored, w, kind = narrow(
        rng.standard_normal((m, shape[1] // attrs.get("group", 1), *kernel)).astype(np.float32), dtype
    )
    want = run_node("Conv", [x.astype(np.float64), w], attrs, device="reference")[0]
    sizes = run_node("Conv", [np.abs(x).astype(np.float64), np.abs(w)], attrs, device="reference")[0]
    bound = gamma(w[0].size) * sizes
    if widening == "beforehand":
        model = node_model("Conv", [x, stored], attrs, dtypes={1: kind}, constants=(1,))
        for isa in core.available_isas():
            core.select_isa(isa)
            try:
                session = Session(model, threads=2)
                (got,) = session.run({"in0": x}).values()
            finally:
                core.select_isa()
            assert np.all(np.abs(got - want) <= bound) and "nbits.convolution" not in drivers_of(session)
        return
    for (got,) in compiled("nbits.convolution", "Conv", [x, stored], attrs, dtypes={1: kind}, constants=(1,)):
        assert np.all(np.abs(got - want) <= bound)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("zeros", [None, "packed", "float"])
def test_widening_alone(bits, zeros):
    """As NumPy widens them, to a few roundings of q and of the zero point times the scale; large enough that it is not
    done while planning."""
    rng = np.random.default_rng(12)
    n, shape, block = 37, [37, 5, 3, 29], 32
    k = 5 * 3 * 29
    q, scales, points = random_weights(rng, bits, block, n, k, zeros)
    want = widen(q.reshape(n, -1), scales, points, bits, block, k).reshape(shape)
    for data in (q, pack(unpack(q.reshape(n, -1), bits, k), bits)):
        for isa in core.available_isas():
            core.select_isa(isa)
            try:
                attrs = {"bits": bits, "block_size": block, "shape": shape}
                got = run_node("WidenNBits", [data, scales, points], attrs, domain="evort", threads=2)[0]
            finally:
                core.select_isa()
            assert np.abs(got - want).max() <= 4 * 2.0**-24 * (2 << bits) * np.abs(scales.astype(np.float64)).max()
    with pytest.raises(EvortError, match="shape"):
        run_node(
            "WidenNBits", [q, scales, points], {"bits": bits, "block_size": block, "shape": [37, 0]}, domain="evort"
        )


@pytest.mark.parametrize("dtype", NARROW, ids=str)
def test_gather_widens(dtype):
    rng = np.random.default_rng(9)
    stored, w, kind = narrow(rng.standard_normal((9, 4, 5)).astype(np.float32), dtype)
    indices = np.array([8, -9, 0], np.int64)
    for (got,) in compiled(
        "nbits.gather", "Gather", [stored, indices], {"output_dtype": 1}, dtypes={0: kind}, constants=(0,)
    ):
        np.testing.assert_array_equal(got, w[indices])
    got = run_node("Gather", [stored, indices % 4], {"output_dtype": 1, "axis": 1}, dtypes={0: kind}, constants=(0,))[0]
    np.testing.assert_array_equal(got, w[:, indices % 4])
    with pytest.raises(EvortError):
        run_node("Gather", [stored, np.array([9])], {"output_dtype": 1}, dtypes={0: kind}, constants=(0,))


@pytest.mark.parametrize("change", [
    {"bits": 5}, {"block_size": 24}, {"block_size": 8}, {"block_size": 1 << 40}, {"K": 0}, {"K": -5}, {"N": 1 << 62},
    {"K": 33}, {"N": 8}, {"weight_prepacked": 1}, {"activation": "PRelu"},
])  # fmt: skip
def test_refuses(change):
    rng = np.random.default_rng(0)
    q, scales, _ = random_weights(rng, 4, 16, 7, 48, None)
    attrs = {"K": 48, "N": 7, "bits": 4, "block_size": 16, **change}
    with pytest.raises(EvortError, match="MatMulNBits"):
        run_node("MatMulNBits", [np.zeros((2, 48), np.float32), q, scales], attrs, domain=MS)


def test_conv_refuses():
    rng = np.random.default_rng(0)
    q, scales, _ = random_weights(rng, 4, 16, 7, 36, None)
    x = np.zeros((1, 4, 9, 9), np.float32)
    good = {"kernel_shape": [3, 3], "bits": 4, "block_size": 16}
    run_node("ConvNBits", [x, q, scales], good, domain="evort")
    for change in ({"kernel_shape": [3]}, {"kernel_shape": [3, 0]}, {"group": 3}, {"group": 2}, {"strides": [0, 1]}):
        with pytest.raises(EvortError, match="ConvNBits"):
            run_node("ConvNBits", [x, q, scales], {**good, **change}, domain="evort")


def test_weights_stay_where_they_are():
    """No copy of the weights: what a session adds to them is the scratch of one product."""
    rng = np.random.default_rng(0)
    q, scales, _ = random_weights(rng, 4, 32, 1024, 1024, None)
    x = np.zeros((8, 1024), np.float32)
    model = node_model(
        "MatMulNBits", [x, q, scales], {"K": 1024, "N": 1024, "block_size": 32}, domain=MS, constants=(1, 2)
    )
    session = Session(model, threads=1)
    session.run({"in0": x})
    assert session.memory().weights_copied <= q.nbytes + scales.nbytes
    assert session.memory().scratch < 300_000
