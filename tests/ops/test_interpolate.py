"""Resize, GridSample, RoiAlign, AffineGrid and the 3-D lookup table: ONNX's cases, the drivers against ONNX's reference
implementation and against formulas in float64, on every instruction set, with one thread and two."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper
from onnx.reference import ReferenceEvaluator
from onnx_cases import check_node, node_cases
from support import drivers_of, node_model, run_node

from evort._kernels import core
from evort.errors import ExecutionError, ShapeError
from evort.session import Session

CASES = node_cases("Resize Upsample GridSample AffineGrid RoiAlign")
few = settings(max_examples=80, deadline=None, derandomize=True)
isas = st.sampled_from(core.available_isas())
# Values are in [-1, 1]. An output sums at most 100 products in float32 whose weights' magnitudes sum to at most 1.4 an
# axis, 2.7 for three; rounding then stays below 100 * 2.7 * 2**-24 = 1.6e-5, and coordinates, rounded to 2**-24 of an
# axis of at most 64, move a value by at most 4e-6 of the steepest slope.
ATOL = 3e-5


@pytest.mark.parametrize("device", ["reference", "cpu"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_onnx_case(case, device):
    check_node(case, device)


def onnx_run(op, inputs, attrs):
    """The node on ONNX's reference implementation."""
    names = ["" if x is None else f"in{i}" for i, x in enumerate(inputs)]
    node = helper.make_node(op, names, ["y"], **attrs)
    infos = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)
        for n, x in zip(names, inputs, strict=True)
        if n
    ]
    graph = helper.make_graph([node], "g", infos, [onnx.ValueInfoProto(name="y")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)])
    (y,) = ReferenceEvaluator(model).run(None, {n: x for n, x in zip(names, inputs, strict=True) if n})
    return y


def drive(op, inputs, attrs, driver, isa, threads=1, constants=(), domain=""):
    """The node on its driver."""
    core.select_isa(isa)
    try:
        session = Session(node_model(op, inputs, attrs, 1, domain, constants), threads=threads)
        feeds = {f"in{i}": x for i, x in enumerate(inputs) if x is not None and i not in constants}
        got = session.run(feeds)["out0"]
        if got.size:
            assert drivers_of(session) == [driver]
        return got
    finally:
        core.select_isa()


def image(shape, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(dtype)


COORDINATES = ("half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric")
NEAREST = ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")


@st.composite
def resizes(draw, modes):
    """(input, scales or None, sizes or None, attributes) over one to three resized axes among up to five."""
    rank = draw(st.integers(1, 5))
    count = draw(st.integers(1, min(3, rank)))
    axes = sorted(draw(st.lists(st.integers(0, rank - 1), min_size=count, max_size=count, unique=True)))
    shape = tuple(draw(st.integers(1, 9 if i in axes else 3)) for i in range(rank))
    mode = draw(st.sampled_from(modes))
    attrs = {"mode": mode, "axes": axes, "coordinate_transformation_mode": draw(st.sampled_from(COORDINATES))}
    if mode == "nearest":
        attrs["nearest_mode"] = draw(st.sampled_from(NEAREST))
    else:
        attrs["antialias"] = draw(st.integers(0, 1))
        attrs["exclude_outside"] = draw(st.integers(0, 1))
    if mode == "cubic":
        attrs["cubic_coeff_a"] = draw(st.sampled_from([-0.75, -0.5]))
    if draw(st.booleans()):
        # Eighths are exact in float32, so that ONNX's and evort's output sizes and ties are the same.
        scales = np.array([draw(st.integers(1, 32)) / 8 for _ in axes], np.float32)
        return image(shape), scales, None, attrs
    sizes = np.array([draw(st.integers(1, 20)) for _ in axes], np.int64)
    if mode == "nearest" and attrs["coordinate_transformation_mode"] == "align_corners":
        attrs["coordinate_transformation_mode"] = "asymmetric"  # ONNX's output width, scale * size, breaks the ties
    return image(shape), None, sizes, attrs


def place(o, size, out, scale, how):
    """Where output element o lies, exactly."""
    half = Fraction(1, 2)
    width = scale * size
    if how == "align_corners":
        return Fraction(0) if width == 1 else Fraction(o) * (size - 1) / (width - 1)
    if how == "asymmetric":
        return o / scale
    if how == "pytorch_half_pixel" and width == 1:
        return -half
    shift = Fraction(size, 2) * (1 - out / width) if how == "half_pixel_symmetric" else 0
    return shift + (o + half) / scale - half


def resize_matrix(size, out, scale, attrs):
    """[out, size]: the filter at the distance of every input element, those beyond the border counted to it."""
    stretch = float(min(scale, 1)) if attrs["antialias"] else 1.0
    matrix = np.zeros((out, size))
    reach = int(np.ceil(2 / stretch)) + 2
    at = np.arange(-reach - size, 2 * size + reach)
    for o in range(out):
        x = place(o, size, out, scale, attrs["coordinate_transformation_mode"])
        d = np.abs(at - float(x)) * stretch
        if attrs["mode"] == "linear":
            weights = np.maximum(1 - d, 0)
        else:
            a = attrs["cubic_coeff_a"]
            weights = np.where(d <= 1, (a + 2) * d**3 - (a + 3) * d**2 + 1, a * (d**3 - 5 * d**2 + 8 * d - 4))
            weights[d >= 2] = 0
        if attrs["exclude_outside"]:
            weights[(at < 0) | (at >= size)] = 0
        total = weights.sum()
        if (attrs["exclude_outside"] or attrs["antialias"]) and total != 0:
            weights = weights / total
        np.add.at(matrix[o], np.clip(at, 0, size - 1), weights)
    return matrix


@few
@given(resizes(["linear", "cubic"]), isas, st.sampled_from([1, 2]))
def test_resize_linear_and_cubic(case, isa, threads):
    x, scales, sizes, attrs = case
    want = x.astype(np.float64)
    for i, axis in enumerate(attrs["axes"]):
        size = x.shape[axis]
        scale = Fraction(float(scales[i])) if sizes is None else Fraction(int(sizes[i]), size)
        if scale != 1:
            matrix = resize_matrix(size, int(scale * size), scale, attrs)
            want = np.moveaxis(np.tensordot(matrix, want, (1, axis)), 0, axis)
    if sizes is None:  # with sizes, ONNX's reference rounds the scale and then misses neighbours at exact places
        np.testing.assert_allclose(onnx_run("Resize", [x, None, scales, sizes], attrs), want, rtol=0, atol=ATOL)
    for device in ("reference", "cpu"):
        core.select_isa(isa)
        inputs = [x, None, scales, sizes]
        (got,) = run_node("Resize", inputs, attrs, device=device, threads=threads, constants=(2, 3))
        core.select_isa()
        np.testing.assert_allclose(got, want, rtol=0, atol=ATOL)


@few
@given(resizes(["nearest"]), st.sampled_from([np.float32, np.uint8, np.int8, np.float64, np.complex128, bool]), isas)
def test_resize_nearest_moves_any_type(case, dtype, isa):
    x, scales, sizes, attrs = case
    x = (x * 100).astype(dtype)
    want = onnx_run("Resize", [x.real.astype(np.float64), None, scales, sizes], attrs)
    for device in ("reference", "cpu"):
        core.select_isa(isa)
        (got,) = run_node("Resize", [x, None, scales, sizes], attrs, device=device, constants=(2, 3))
        core.select_isa()
        assert got.dtype == dtype
        np.testing.assert_array_equal(got.real.astype(np.float64), want)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("isa", core.available_isas())
@pytest.mark.parametrize("mode", ["linear", "cubic"])
@pytest.mark.parametrize("scales", [(1, 1, 2, 2), (1, 1, 0.3, 0.7), (1, 1, 3.3, 0.4), (1, 2, 2, 1), (2, 1, 1, 2)])
def test_resize_on_its_driver(scales, mode, isa, threads):
    """Large enough for two threads; against the float64 reference, which the test above holds to ONNX's."""
    x, factors = image((2, 5, 61, 67)), np.array(scales, np.float32)
    (want,) = run_node("Resize", [x, None, factors], {"mode": mode}, device="reference", constants=(2,))
    got = drive("Resize", [x, None, factors], {"mode": mode}, "interpolate.resize", isa, threads, (2,))
    np.testing.assert_allclose(got, want, rtol=0, atol=ATOL)


@pytest.mark.parametrize("isa", core.available_isas())
@pytest.mark.parametrize("antialias", [0, 1])
def test_resize_of_volumes(isa, antialias):
    x, sizes = image((1, 2, 9, 11, 13)), np.array([1, 2, 14, 5, 20], np.int64)
    attrs = {"mode": "linear", "antialias": antialias}
    want = onnx_run("Resize", [x, None, None, sizes], attrs)
    got = drive("Resize", [x, None, None, sizes], attrs, "interpolate.resize", isa, 2, (3,))
    np.testing.assert_allclose(got, want, rtol=0, atol=ATOL)


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("roi", [(0.125, 0.25, 0.875, 0.75), (-0.5, 0.375, 0.625, 1.25), (0.75, 0.875, 0.25, 0.125)])
@pytest.mark.parametrize("sizes", [(3, 4), (7, 6), (1, 1)])
def test_resize_of_regions(mode, roi, sizes):
    x, region, wanted = image((2, 1, 5, 6)), np.array(roi, np.float32), np.array(sizes, np.int64)
    attrs = {
        "mode": mode, "axes": [2, 3], "coordinate_transformation_mode": "tf_crop_and_resize",
        "extrapolation_value": 10.0,
    }  # fmt: skip
    want = onnx_run("Resize", [x, region, None, wanted], attrs)
    for device in ("reference", "cpu"):
        (got,) = run_node("Resize", [x, region, None, wanted], attrs, device=device, constants=(1, 3))
        np.testing.assert_allclose(got, want, rtol=0, atol=ATOL)


@pytest.mark.parametrize("policy", ["stretch", "not_larger", "not_smaller"])
def test_resize_keeps_the_aspect_ratio(policy):
    x, sizes = image((1, 2, 4, 6)), np.array([7, 8], np.int64)
    attrs = {"mode": "linear", "axes": [2, 3], "keep_aspect_ratio_policy": policy}
    want = onnx_run("Resize", [x, None, None, sizes], attrs)
    (got,) = run_node("Resize", [x, None, None, sizes], attrs, constants=(3,))
    np.testing.assert_allclose(got, want, rtol=0, atol=ATOL)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int32, np.float16, np.float64])
def test_resize_of_other_types_runs_in_the_reference(dtype):
    x = (image((1, 1, 5, 5)) * 100).astype(dtype)
    scales = np.array([1, 1, 1.5, 2], np.float32)
    want = onnx_run("Resize", [x, None, scales], {"mode": "cubic"})
    (got,) = run_node("Resize", [x, None, scales], {"mode": "cubic"}, constants=(2,))
    assert got.dtype == dtype
    # ONNX's reference has the cubic weights in float32.
    np.testing.assert_allclose(got, want, rtol=1e-3 if dtype == np.float16 else 1e-5)


@pytest.mark.parametrize("isa", core.available_isas())
def test_resize_spreads_nan_and_infinity_no_further_than_the_windows(isa):
    x = image((1, 1, 12, 12))
    x[0, 0, 3, 4], x[0, 0, 8, 8] = np.nan, np.inf
    scales = np.array([1, 1, 1.7, 1.7], np.float32)
    (want,) = run_node("Resize", [x, None, scales], {"mode": "linear"}, device="reference", constants=(2,))
    got = drive("Resize", [x, None, scales], {"mode": "linear"}, "interpolate.resize", isa, 1, (2,))
    np.testing.assert_allclose(got, want, rtol=0, atol=ATOL)
    assert 0 < np.isnan(got).sum() < 20 and np.isfinite(got).sum() > 380 - 40


def test_resize_to_the_same_size_is_a_view():
    x = image((1, 2, 3, 4))
    session = Session(node_model("Resize", [x, None, np.ones(4, np.float32)], {"mode": "cubic"}, constants=(2,)))
    np.testing.assert_array_equal(session.run({"in0": x})["out0"], x)
    assert set(drivers_of(session)) <= {"executor.copy"}


@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_upsample(mode):
    x, scales = image((1, 2, 3, 4)), np.array([1, 1, 2, 3], np.float32)
    attrs = {"mode": mode, "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    want = onnx_run("Resize", [x, None, scales], attrs)
    for device in ("cpu", "reference"):
        (got,) = run_node("Upsample", [x, scales], {"mode": mode}, device=device, constants=(1,))
        np.testing.assert_allclose(got, want, rtol=0, atol=ATOL)


@st.composite
def samplings(draw):
    """(X, grid, attributes): points in and around the image, some exactly on its borders and corners."""
    rank = draw(st.integers(1, 3))
    dims = tuple(draw(st.integers(1, 6)) for _ in range(rank))
    out = tuple(draw(st.integers(1, 4)) for _ in range(rank))
    n, channels = draw(st.integers(1, 2)), draw(st.sampled_from([1, 3, 4, 6]))
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    grid = rng.uniform(-2.5, 2.5, (n, *out, rank)).astype(np.float32)
    exact = rng.random(grid.shape) < 0.3
    grid[exact] = rng.choice(np.float32([-1, 1, 0, 0.5, -2]), exact.sum())
    attrs = {
        "mode": draw(st.sampled_from(["nearest", "linear", "cubic"])),
        "padding_mode": draw(st.sampled_from(["zeros", "border", "reflection"])),
        "align_corners": draw(st.integers(0, 1)),
    }
    if attrs["padding_mode"] == "reflection" and attrs["align_corners"]:
        dims = tuple(max(d, 2) for d in dims)  # ONNX's reference divides by the distance of the borders
    return image((n, channels, *dims), 1), grid, attrs


@few
@given(samplings(), isas, st.sampled_from([1, 2]))
def test_grid_sample(case, isa, threads):
    x, grid, attrs = case
    want = onnx_run("GridSample", [x, grid], attrs)
    (reference,) = run_node("GridSample", [x, grid], attrs, device="reference")
    np.testing.assert_allclose(reference, want, rtol=0, atol=ATOL)
    got = drive("GridSample", [x, grid], attrs, "interpolate.grid_sample", isa, threads)
    np.testing.assert_allclose(got, want, rtol=0, atol=ATOL)


@pytest.mark.parametrize("isa", core.available_isas())
@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("channels", [5, 16, 19])
def test_grid_sample_of_many_points_and_channels(isa, mode, channels):
    x, grid = image((2, channels, 21, 17)), image((2, 45, 50, 2), 2) * 1.2
    (want,) = run_node("GridSample", [x, grid], {"mode": mode}, device="reference")
    for threads in (1, 2):
        got = drive("GridSample", [x, grid], {"mode": mode}, "interpolate.grid_sample", isa, threads)
        np.testing.assert_allclose(got, want, rtol=0, atol=ATOL)


@pytest.mark.parametrize("isa", core.available_isas())
@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
def test_grid_sample_at_wild_points(isa, padding, mode):
    """NaN, infinite and huge coordinates read nothing outside, on one element and on more."""
    wild = np.float32([np.nan, np.inf, -np.inf, 1e30, -1e30, 3e9, -3e9, 1e5])
    grid = np.stack(np.meshgrid(wild, wild), -1)[None]
    for dims in ((1, 1), (4, 5)):
        x = image((1, 2, *dims))
        for align in (0, 1):
            attrs = {"mode": mode, "padding_mode": padding, "align_corners": align}
            got = drive("GridSample", [x, grid], attrs, "interpolate.grid_sample", isa)
            assert np.isfinite(got).all()
            if padding != "reflection":  # far away, rounding decides between the reflected elements
                (want,) = run_node("GridSample", [x, grid], attrs, device="reference")
                np.testing.assert_allclose(got, want, rtol=0, atol=ATOL)


@pytest.mark.parametrize("isa", core.available_isas())
def test_taps_outside_do_not_multiply_infinity_by_zero(isa):
    x = np.full((1, 1, 2, 2), np.inf, np.float32)
    grid = np.float32([[[[-3, -3], [3, 0]]]])
    got = drive("GridSample", [x, grid], {}, "interpolate.grid_sample", isa)
    assert (got == 0).all()


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.float64, np.float16])
def test_grid_sample_of_other_types_runs_in_the_reference(dtype):
    x, grid = (image((1, 2, 4, 4)) * 100).astype(dtype), image((1, 3, 3, 2), 2)
    (got,) = run_node("GridSample", [x, grid], {"mode": "nearest"})
    assert got.dtype == dtype
    np.testing.assert_array_equal(got, onnx_run("GridSample", [x, grid], {"mode": "nearest"}))


def looked_up(table, pixels, bin_size):
    """The formula of the lookup table, in float64, indices and fractions clamped to the table."""
    table, pixels = table.astype(np.float64), pixels.astype(np.float64)
    last = table.shape[1] - 1
    index = np.floor(pixels / bin_size)
    fraction = np.mod(pixels, bin_size) / bin_size
    fraction = np.where(index < 0, 0, np.where(index >= last, 0, fraction))
    low = np.clip(index, 0, last).astype(int)
    high = np.minimum(low + 1, last)
    total = np.zeros((pixels.shape[0], table.shape[0], *pixels.shape[2:]))
    for r in (0, 1):
        for g in (0, 1):
            for b in (0, 1):
                at = [np.where(k, high[:, i], low[:, i]) for i, k in enumerate((r, g, b))]
                weights = [fraction[:, i] if k else 1 - fraction[:, i] for i, k in enumerate((r, g, b))]
                total += np.moveaxis(table[:, at[2], at[1], at[0]], 0, 1) * np.prod(weights, 0)[:, None]
    return total


def look_up(table, pixels, bin_size, isa, threads=1):
    n, _, h, w = pixels.shape
    out = np.zeros((n, table.shape[0], h, w), np.float32)
    side = table.shape[1]
    sizes = [np.array(v, np.int64) for v in (w, h, n)]
    inputs = [table, pixels, out, np.int32([side]), np.int32([side**3]), np.float32([bin_size]), *sizes]
    constants = (0, 3, 4, 5, 6, 7, 8)
    return drive("tri_forward", inputs, {}, "interpolate.lookup_table", isa, threads, constants, "cus_ops")


@few
@given(
    st.integers(1, 6), st.sampled_from([2, 3, 9, 33]), st.integers(1, 2), st.integers(1, 70), isas, st.integers(1, 2)
)  # fmt: skip
def test_lookup_table(channels, side, n, width, isa, threads):
    table = image((channels, side, side, side))
    pixels = (image((n, 3, 3, width), 3) + 1) / 2
    pixels.reshape(-1)[:4] = [0, 1, 0.5, 1 / 255]
    bin_size = np.float32(1.000001 / (side - 1))
    want = looked_up(table, pixels, float(bin_size))
    np.testing.assert_allclose(look_up(table, pixels, bin_size, isa, threads), want, rtol=0, atol=ATOL)
    (got,) = run_node(
        "tri_forward", [table, pixels, None, None, None, np.float32([bin_size])], domain="cus_ops", device="reference"
    )
    np.testing.assert_allclose(got, want, rtol=0, atol=ATOL)


@pytest.mark.parametrize("isa", core.available_isas())
@pytest.mark.parametrize("side", [1, 2, 5])
def test_lookup_table_at_wild_values(isa, side):
    wild = np.float32([-1, -1e-30, -np.inf, np.nan, 2, 1e30, np.inf, 0.5])
    pixels = np.stack(np.meshgrid(wild, wild, wild)).reshape(1, 3, 8, 64)
    table = image((4, side, side, side))
    got = look_up(table, pixels, 0.25, isa)
    tame = np.where(np.isnan(pixels), -1, np.clip(pixels, -1, 2))
    np.testing.assert_allclose(got, looked_up(table, tame, 0.25), rtol=0, atol=ATOL)


@pytest.mark.parametrize("bin_size", [0, -1, np.nan, np.inf])
def test_lookup_table_refuses_a_bin_size(bin_size):
    inputs = [image((1, 2, 2, 2)), image((1, 3, 1, 1)), None, None, None, np.float32([bin_size])]
    for device in ("cpu", "reference"):
        with pytest.raises(ExecutionError, match="tri_forward"):
            run_node("tri_forward", inputs, domain="cus_ops", device=device)


@few
@given(
    st.integers(1, 20), st.integers(1, 4), st.integers(1, 5), st.integers(0, 3), st.sampled_from(["avg", "max"]),
    st.sampled_from(["half_pixel", "output_half_pixel"]), isas, st.integers(0, 1000),
)  # fmt: skip
def test_roi_align(channels, height, width, ratio, mode, how, isa, seed):
    rng = np.random.default_rng(seed)
    x = image((2, channels, 7, 9), seed)
    rois = rng.uniform(-4, 22, (3, 4)).astype(np.float32)
    rois[:2, 2:] = rois[:2, :2] + rng.uniform(0, 9, (2, 2))  # the third may be upside down
    batch = np.array([0, 1, 0])
    attrs = {
        "output_height": height, "output_width": width, "sampling_ratio": ratio, "mode": mode, "spatial_scale": 0.5,
        "coordinate_transformation_mode": how,
    }  # fmt: skip
    want = onnx_run("RoiAlign", [x, rois, batch], attrs)
    got = drive("RoiAlign", [x, rois, batch], attrs, "interpolate.roi_align", isa)
    np.testing.assert_allclose(got, want, rtol=0, atol=ATOL)
    (got,) = run_node("RoiAlign", [x, rois, batch], attrs, device="reference")
    np.testing.assert_allclose(got, want, rtol=0, atol=ATOL)


@pytest.mark.parametrize("device", ["cpu", "reference"])
def test_roi_align_refuses_bad_regions_and_images(device):
    x = image((1, 2, 4, 4))
    for rois, batch in (
        ([[0, 0, 2, 2]], [1]), ([[0, 0, 2, 2]], [-1]), ([[0, 0, np.nan, 2]], [0]), ([[0, -np.inf, 1, 2]], [0]),
        ([[0, 0, 1e9, 1]], [0]),
    ):  # fmt: skip
        with pytest.raises(ExecutionError, match="RoiAlign"):
            run_node("RoiAlign", [x, np.float32(rois), np.array(batch)], {"sampling_ratio": 0}, device=device)


@pytest.mark.parametrize("threads", [1, 2])
def test_roi_align_with_threads(threads):
    x, rng = image((2, 18, 30, 30)), np.random.default_rng(0)
    corners = rng.uniform(0, 20, (40, 2))
    rois = np.concatenate([corners, corners + rng.uniform(1, 12, (40, 2))], 1).astype(np.float32)
    batch = rng.integers(0, 2, 40)
    attrs = {"output_height": 7, "output_width": 7, "sampling_ratio": 2}
    (want,) = run_node("RoiAlign", [x, rois, batch], attrs, device="reference")
    got = drive("RoiAlign", [x, rois, batch], attrs, "interpolate.roi_align", core.isa(), threads)
    np.testing.assert_allclose(got, want, rtol=0, atol=ATOL)


@pytest.mark.parametrize("align", [0, 1])
@pytest.mark.parametrize("dims", [(3, 4), (2, 7), (2, 3, 4), (5, 2, 2)])
def test_affine_grid(align, dims):
    theta = image((2, len(dims), len(dims) + 1))
    size = np.array([2, 1, *dims], np.int64)
    want = onnx_run("AffineGrid", [theta, size], {"align_corners": align})
    for device in ("cpu", "reference"):
        (got,) = run_node("AffineGrid", [theta, size], {"align_corners": align}, device=device, constants=(1,))
        # Computed in float64, rounded once; ONNX's points are sums of rounded steps.
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-6)


def test_affine_grid_of_one_point_is_its_centre():
    theta, size = image((1, 2, 3)), np.array([1, 1, 1, 1], np.int64)
    for device in ("cpu", "reference"):
        (got,) = run_node("AffineGrid", [theta, size], {"align_corners": 1}, device=device, constants=(1,))
        np.testing.assert_allclose(got, theta[:, :, 2].reshape(1, 1, 1, 2))


X = np.zeros((1, 2, 3, 4), np.float32)


def real(*values):
    return np.array(values, np.float32)


def ints(*values):
    return np.array(values, np.int64)


@pytest.mark.parametrize(
    ("op", "inputs", "attrs"),
    [
        ("Resize", [X], {}),
        ("Resize", [X, None, real(1, 1, 2, 2), ints(1, 2, 3, 4)], {}),
        ("Resize", [X, None, real(1, 1, 2)], {}),
        ("Resize", [X, None, real(1, 1, 2, 0)], {}),
        ("Resize", [X, None, real(1, 1, 2, -1)], {}),
        ("Resize", [X, None, real(1, 1, 2, np.nan)], {}),
        ("Resize", [X, None, real(1, 1, 2, 1e30)], {}),
        ("Resize", [X, None, None, ints(1, 2, 3, 2**40)], {}),
        ("Resize", [X, None, None, ints(1, 2, 3, -1)], {}),
        ("Resize", [X, None, real(2)], {"axes": [4]}),
        ("Resize", [X, None, real(2, 2)], {"axes": [1, -3]}),
        ("Resize", [X, None, real(1, 1, 2, 2)], {"mode": "area"}),
        ("Resize", [X, None, real(1, 1, 2, 2)], {"nearest_mode": "round"}),
        ("Resize", [X, None, real(1, 1, 2, 2)], {"coordinate_transformation_mode": "tf_half_pixel"}),
        ("Resize", [X, None, real(1, 1, 2, 2)], {"coordinate_transformation_mode": "tf_crop_and_resize"}),
        ("Resize", [X, None, None, ints(1, 2, 3, 4)], {"keep_aspect_ratio_policy": "larger"}),
        ("Resize", [X, None, real(1, 1, 2, 2)], {"antialias": 1}),
        ("Resize", [X.astype(bool), None, real(1, 1, 2, 2)], {"mode": "linear"}),
        ("Resize", [X[..., :0], None, None, ints(1, 2, 3, 4)], {}),
        ("GridSample", [X, np.zeros((1, 2, 2, 3), np.float32)], {}),
        ("GridSample", [X, np.zeros((2, 2, 2, 2), np.float32)], {}),
        ("GridSample", [X[..., :0], np.zeros((1, 2, 2, 2), np.float32)], {}),
        ("GridSample", [X, np.zeros((1, 2, 2, 2), np.float32)], {"mode": "bilinear"}),
        ("GridSample", [X, np.zeros((1, 2, 2, 2), np.float32)], {"padding_mode": "wrap"}),
        ("AffineGrid", [X[0], ints(2, 1, 3)], {}),
        ("AffineGrid", [X[0, :, :2, :3], ints(2, 1, -3, 3)], {}),
        ("AffineGrid", [X[0, :, :2, :3], ints(2, 1, 3, 3, 3)], {}),
        ("RoiAlign", [X, np.zeros((2, 4), np.float32), ints(0)], {}),
        ("RoiAlign", [X, np.zeros((1, 4), np.float32), ints(0)], {"output_height": 0}),
        ("RoiAlign", [X, np.zeros((1, 4), np.float32), ints(0)], {"sampling_ratio": -1}),
        ("RoiAlign", [X, np.zeros((1, 4), np.float32), ints(0)], {"mode": "sum"}),
        ("tri_forward", [X, X[:, :1], None, None, None, real(1)], {}),
        ("tri_forward", [X[:, :, :2, :2], X[:, :1], None, None, None, real(1)], {}),
        ("tri_forward", [np.zeros((1, 2, 2, 2), np.float32), np.zeros((1, 3, 1, 1)), None, None, None, real(1)], {}),
        ("tri_forward", [np.zeros((1, 2, 2, 2), np.float32), X[:, [0, 0, 0]], None, ints(3), None, real(1)], {}),
    ],
)
def test_what_an_operator_forbids_is_refused(op, inputs, attrs):
    domain = "cus_ops" if op == "tri_forward" else ""
    constants = tuple(i for i in range(1, len(inputs)) if inputs[i] is not None)
    for device in ("cpu", "reference"):
        with pytest.raises(ShapeError, match=op):
            run_node(op, inputs, attrs, domain=domain, constants=constants, device=device)
