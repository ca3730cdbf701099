"""Older forms of operators mean what they meant: the rules against onnxruntime, and that none is missing."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from onnx import defs, helper
from support import import_onnxruntime
from tools_support import imported, node, onnx_model, ops_of, run

from evort.errors import ConversionError
from evort.ops.base import REQUIRED, registered
from evort_tools.importer.canonical import RULES, rule_for
from evort_tools.importer.importer import OLDEST_OPSET

ort = import_onnxruntime()

RNG = np.random.default_rng(7)


def f32(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def check(op, opset, inputs, attrs=None, outputs=1, constants=()):
    """Runs one node in an old form by onnxruntime, and its newest form by evort's references."""
    inputs = [np.asarray(x) for x in inputs]
    names = [f"x{i}" for i in range(len(inputs))]
    outs = [f"y{i}" for i in range(outputs)]
    given = {n: x for i, (n, x) in enumerate(zip(names, inputs, strict=True)) if i not in constants}
    model = onnx_model(
        [node(op, names, outs, **(attrs or {}))],
        {n: (x.dtype.type, x.shape) for n, x in given.items()},
        outs,
        {names[i]: inputs[i] for i in constants},
        opset,
    )
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    expected = session.run(None, given)
    found, shapes = imported(model)
    assert not shapes.problems
    for name, want, got in zip(outs, expected, run(found, given), strict=True):
        assert got.dtype == want.dtype
        # Elementary functions differ by a few units of the last place between the two.
        np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-6)
        shape = shapes.shape(name)
        assert shape is None or shape == want.shape
    return found


X = f32(2, 3, 4, 5)
MATRIX = f32(4, 6)

CASES = [
    ("Squeeze", 11, [f32(1, 3, 1, 2)], {"axes": [0, -2]}),
    ("Squeeze", 7, [f32(1, 3, 1, 2)], {}),
    ("Unsqueeze", 11, [MATRIX], {"axes": [0, -1]}),
    *(
        (f"Reduce{kind}", opset, [X], attrs)
        for kind in ("L1", "L2", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")
        for opset, attrs in ((7, {"axes": [1, 3], "keepdims": 0}), (11, {"axes": [-2]}), (12, {}))
    ),
    ("ReduceMean", 17, [X], {"axes": [0, 2]}),
    ("ReduceLogSum", 11, [np.abs(X)], {"axes": [1]}),
    ("Slice", 9, [X], {"starts": [0, -3], "ends": [1, 1000], "axes": [1, 2]}),
    ("Slice", 7, [X], {"starts": [1, 0, 0], "ends": [2, 2, -1]}),
    ("Pad", 10, [X], {"pads": [0, 1, 2, 0, 0, 0, 3, 1], "value": 1.5}),
    ("Pad", 7, [X], {"pads": [0, 0, 1, 2, 0, 0, 2, 1], "mode": "reflect"}),
    ("Pad", 7, [X.astype(np.float64)], {"pads": [0, 0, 1, 2, 0, 0, 2, 1], "value": 0.25}),
    ("Pad", 13, [X, np.array([0, 0, 1, 2, 0, 0, 2, 1]), np.float32(3)], {}),
    ("Clip", 7, [X], {"min": -0.5}),
    ("Clip", 10, [X], {"min": -0.5, "max": 0.25}),
    ("Clip", 7, [X], {}),
    ("Upsample", 7, [X], {"scales": [1.0, 1.0, 2.0, 3.0], "mode": "nearest"}),
    ("Upsample", 7, [X], {"scales": [1.0, 1.0, 2.0, 3.0], "mode": "linear"}),
    ("GridSample", 16, [X, (RNG.random((2, 6, 7, 2)) * 2.4 - 1.2).astype(np.float32)], {"mode": "bilinear"}),
    ("GridSample", 16, [X, (RNG.random((2, 6, 7, 2)) * 1.8 - 0.9).astype(np.float32)], {"mode": "nearest"}),
    ("GridSample", 16, [X, (RNG.random((2, 6, 7, 2)) * 2 - 1).astype(np.float32)], {"mode": "bicubic"}),
    *((op, 11, [X], {"axis": axis}) for op in ("Softmax", "LogSoftmax") for axis in (0, 1, 2, 3, -1)),
    *((op, 7, [MATRIX], {}) for op in ("Softmax", "LogSoftmax", "Hardmax")),
    ("Softmax", 12, [f32(2, 7, 1, 1)], {}),
    ("Hardmax", 11, [X], {"axis": 2}),
    ("Scatter", 9, [MATRIX, np.array([[1, 0, 2], [3, 1, 0]]), f32(2, 3)], {"axis": 0}),
    ("RoiAlign", 10, [X, np.array([[0, 0, 3, 3], [1, 0, 4, 2.5]], np.float32), np.array([0, 1])],
     {"output_height": 2, "output_width": 3, "sampling_ratio": 2, "spatial_scale": 0.9}),
    ("Gemm", 7, [f32(3, 4), f32(4, 5), f32(5)], {}),
    ("AveragePool", 7, [X], {"kernel_shape": [2, 2], "pads": [1, 0, 1, 0], "count_include_pad": 1}),
    ("MaxPool", 8, [X], {"kernel_shape": [2, 2], "strides": [2, 2], "auto_pad": "SAME_UPPER"}),
    ("LpPool", 11, [X], {"kernel_shape": [2, 3], "p": 2}),
    ("Flatten", 9, [X], {"axis": 2}),
    ("DepthToSpace", 10, [f32(1, 8, 2, 3)], {"blocksize": 2}),
    ("Shape", 13, [X], {}),
    ("Range", 11, [np.float32(1), np.float32(9), np.float32(2.5)], {}),
    ("Reshape", 13, [X, np.array([0, -1])], {}),
    ("ArgMax", 11, [X], {"axis": 2}),
    ("BatchNormalization", 7, [X, f32(3), f32(3), f32(3), np.abs(f32(3)) + 0.5], {"epsilon": 1e-3}),
    ("BatchNormalization", 9, [X, f32(3), f32(3), f32(3), np.abs(f32(3)) + 0.5], {}),
    ("GroupNormalization", 18, [f32(2, 6, 4), f32(3), f32(3)], {"num_groups": 3}),
    ("PRelu", 7, [X, f32(3, 1, 1)], {}),
    ("Cast", 9, [X], {"to": 7}),
    ("QuantizeLinear", 10, [X, np.float32(0.05), np.uint8(120)], {}),
    ("ScatterElements", 11, [MATRIX, np.array([[1, 0, 2]]), f32(1, 3)], {}),
    ("GatherND", 11, [X, np.array([[0, 1], [1, 2]])], {}),
    ("OneHot", 9, [np.array([0, 2, 5]), np.array([4]), np.array([-1.0, 2.0], np.float32)], {}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("op", "opset", "inputs", "attrs"), CASES, ids=[f"{c[0]}-{c[1]}-{i}" for i, c in enumerate(CASES)]
)
def test_old_form_equals_onnxruntime(op, opset, inputs, attrs):
    # With the other operands as constants, shapes can be inferred from them; without, some cannot.
    check(op, opset, inputs, attrs, constants=tuple(range(1, len(inputs))))
    check(op, opset, inputs, attrs)


@pytest.mark.parametrize("opset", [7, 11])
def test_split(opset):
    check("Split", opset, [X], {"axis": 3, "split": [1, 4]}, 2)
    check("Split", opset, [X], {"axis": 2}, 2)
    check("Split", 13, [X], {"axis": 2}, 4)
    check("Split", 13, [X, np.array([1, 2])], {"axis": 1}, 2, constants=(1,))


@pytest.mark.parametrize("opset", [7, 10, 11])
def test_top_k(opset):
    if opset < 10:
        check("TopK", opset, [MATRIX], {"k": 3}, 2)
    else:
        check("TopK", opset, [MATRIX, np.array([2])], {"axis": 0}, 2, constants=(1,))


@pytest.mark.parametrize("opset", [7, 10, 12])
def test_dropout_passes_its_input_on(opset):
    found = check("Dropout", opset, [X], {} if opset >= 12 else {"ratio": 0.25})
    assert ops_of(found) == ["Dropout"]


def test_dropout_mask_of_opset_7_has_the_data_type():
    model = onnx_model([node("Dropout", ["x"], ["y", "mask"])], {"x": (np.float32, [2, 3])}, ["y", "mask"], opset=7)
    x = f32(2, 3)
    y, mask = run(imported(model)[0], {"x": x})
    np.testing.assert_array_equal(y, x)
    np.testing.assert_array_equal(mask, np.ones((2, 3), np.float32))
    assert mask.dtype == np.float32


@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize("scales", [(1, 1, 2, 2), (1, 1, 0.5, 0.6), (1, 1, 2, 0.6), (1, 1, 1.3, 2.7)])
@pytest.mark.parametrize("known", [True, False])
def test_resize_10(mode, scales, known):
    check("Resize", 10, [X, np.array(scales, np.float32)], {"mode": mode}, constants=(1,) if known else ())


@pytest.mark.parametrize("nearest", ["floor", "round_prefer_floor"])
def test_resize_11_half_pixel_for_nn(nearest):
    """The coordinate mode that opset 13 dropped; onnxruntime still has it."""
    empty = np.zeros(0, np.float32)
    attrs = {"coordinate_transformation_mode": "tf_half_pixel_for_nn", "nearest_mode": nearest}
    for sizes in ([2, 3, 8, 10], [2, 3, 3, 4], [2, 3, 5, 7]):
        check("Resize", 11, [X, empty, empty, np.array(sizes)], attrs, constants=(1, 2, 3))


def test_resize_11_refuses_what_no_newer_form_says():
    attrs = {"coordinate_transformation_mode": "tf_half_pixel_for_nn", "nearest_mode": "ceil"}
    model = onnx_model([node("Resize", ["x", "", "s"], ["y"], name="up", **attrs)], {"x": (np.float32, X.shape)},
                       constants={"s": np.array([1, 1, 2, 2], np.float32)}, opset=11)  # fmt: skip
    with pytest.raises(ConversionError, match=r"up.*tf_half_pixel_for_nn"):
        imported(model)


def test_upsample_9_takes_its_scales_as_an_input():
    check("Upsample", 9, [X, np.array([1, 1, 2, 3], np.float32)], {"mode": "nearest"}, constants=(1,))


def test_batch_normalization_without_spatial_statistics():
    """Opset 7 with spatial=0: statistics for each element, by the formula (onnxruntime dropped the attribute)."""
    constants = {"s": f32(3, 4), "b": f32(3, 4), "m": f32(3, 4), "v": np.abs(f32(3, 4)) + np.float32(0.5)}
    model = onnx_model([node("BatchNormalization", ["x", *constants], ["y"], spatial=0, epsilon=1e-3)],
                       {"x": (np.float32, [2, 3, 4])}, constants=constants, opset=7)  # fmt: skip
    x = f32(2, 3, 4)
    scale, bias, mean, variance = constants.values()
    expected = (x - mean) / np.sqrt(variance + np.float32(1e-3)) * scale + bias
    np.testing.assert_allclose(run(imported(model)[0], {"x": x})[0], expected, rtol=1e-5, atol=1e-6)


def test_batch_normalization_refuses_training_outputs_that_are_read():
    constants = {n: np.ones(3, np.float32) for n in "sbmv"}
    nodes = [node("BatchNormalization", ["x", *constants], ["y", "mean", "var"], name="bn")]
    shape = {"x": (np.float32, [2, 3, 4])}
    with pytest.raises(ConversionError, match=r"bn.*training outputs"):
        imported(onnx_model(nodes, shape, ["y", "mean"], constants, opset=9))
    assert ops_of(imported(onnx_model(nodes, shape, ["y"], constants, opset=9))[0]) == ["BatchNormalization"]


@pytest.mark.parametrize("backward", [0, 1])
def test_scan_8_is_batched(backward):
    """Scan of opset 8: axis 0 is the batch, axis 1 the sequence. Running sums, and their doubles as they go."""
    body = helper.make_graph(
        [node("Add", ["state", "item"], ["sum"]), node("Add", ["sum", "sum"], ["twice"])],
        "body",
        [helper.make_tensor_value_info(n, 1, [2]) for n in ("state", "item")],
        [helper.make_tensor_value_info(n, 1, [2]) for n in ("sum", "twice")],
    )
    scan = node("Scan", ["", "h", "x"], ["last", "all"], num_scan_inputs=1, directions=[backward], body=body)
    shapes = {"h": (np.float32, [3, 2]), "x": (np.float32, [3, 5, 2])}
    model = onnx_model([scan], shapes, ["last", "all"], opset=8)
    h, x = f32(3, 2), f32(3, 5, 2)
    last, everything = run(imported(model)[0], {"h": h, "x": x})
    sums = h[:, None] + np.cumsum(x[:, ::-1] if backward else x, axis=1)
    np.testing.assert_allclose(last, sums[:, -1], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(everything, 2 * sums, rtol=1e-5, atol=1e-6)


def test_opsets_before_7_and_after_the_newest_are_refused():
    for opset, hint in ((6, "oldest that converts is 7"), (defs.onnx_opset_version() + 1, "knows up to")):
        model = onnx_model([node("Relu", ["x"], ["y"])], {"x": (np.float32, [2])}, opset=opset)
        with pytest.raises(ConversionError, match=hint):
            imported(model)


def test_default_attributes_are_left_out():
    """Those that the exporter wrote and those that it left out give one graph, so that equal nodes can be merged."""
    for alpha, kept in ((0.01, {}), (0.25, {"alpha": 0.25})):
        model = onnx_model([node("LeakyRelu", ["x"], ["y"], alpha=alpha)], {"x": (np.float32, [2])})
        assert imported(model)[0].graph.nodes[0].attrs == kept


# Completeness

OPERATORS = sorted((domain, name) for domain, name in registered() if domain in ("", "ai.onnx.ml"))
SCHEMAS: dict[tuple[str, str], list[defs.OpSchema]] = {}
for _schema in defs.get_all_schemas_with_history():
    SCHEMAS.setdefault((_schema.domain, _schema.name), []).append(_schema)


def _versions(domain: str, name: str) -> list[defs.OpSchema]:
    """The schemas that a model of opset 7 or newer may refer to, oldest first."""
    schemas = sorted(SCHEMAS.get((domain, name), ()), key=lambda s: s.since_version)
    oldest = 1 if domain else OLDEST_OPSET
    first = max((i for i, s in enumerate(schemas) if s.since_version <= oldest), default=0)
    return schemas[first:]


def _default(attribute: defs.OpSchema.Attribute) -> object:
    value = attribute.default_value
    return helper.get_attribute_value(value) if value.ByteSize() else None


def _differences(old: defs.OpSchema, new: defs.OpSchema) -> list[str]:
    """Why a node of the old form would mean something else, or nothing, in the new one."""
    found = []
    for key, attribute in old.attributes.items():
        now = new.attributes.get(key)
        if now is None:
            found.append(f"attribute {key} is gone")
        elif now.type != attribute.type or _default(now) != _default(attribute):
            found.append(f"attribute {key} changed")
    found += [f"attribute {k} is new" for k, a in new.attributes.items() if a.required and k not in old.attributes]
    option = defs.OpSchema.FormalParameterOption
    for what in ("inputs", "outputs"):
        for before, now in itertools.zip_longest(getattr(old, what), getattr(new, what)):
            if now is None:
                found.append(f"{what}: {before.name} is gone")
            elif before is None:
                if what == "inputs" and now.option != option.Optional:
                    found.append(f"{what}: {now.name} is new")
            elif before.option != now.option and now.option != option.Optional:
                found.append(f"{what}: {now.name} changed")
    return found


@pytest.mark.parametrize(("domain", "name"), OPERATORS, ids=lambda v: v or "onnx")
def test_every_older_version_is_the_same_or_has_a_rule(domain, name):
    versions = _versions(domain, name)
    for schema, following in itertools.pairwise(versions):
        if rule_for(domain, name, following.since_version - 1) is None:
            assert not _differences(schema, versions[-1]), f"{name}-{schema.since_version}"


def test_operators_that_are_gone_have_rules():
    """Upsample and Scatter are in no newest opset, but in models of opset 7 and 9."""
    for name in ("Upsample", "Scatter"):
        assert all(rule_for("", name, opset) for opset in (7, 9))


@pytest.mark.parametrize(("domain", "name"), sorted(RULES), ids=lambda v: v or "onnx")
def test_rules_end_where_a_schema_begins(domain, name):
    """A rule's `before` is the version that changed the form (or 99, for what holds in all)."""
    starts = {s.since_version for s in SCHEMAS[domain, name]}
    assert all(before == 99 or before in starts for before, _ in RULES[domain, name])


@pytest.mark.parametrize(("domain", "name"), OPERATORS, ids=lambda v: v or "onnx")
def test_definitions_have_the_newest_schema(domain, name):
    """Attributes and their defaults are those of ONNX, but for evort's extensions."""
    versions = _versions(domain, name)
    if not versions or versions[-1].deprecated:
        assert (domain, name) not in SCHEMAS or versions[-1].deprecated
        return
    schema, definition = versions[-1], registered()[domain, name]
    # Types as attributes, and sparse ones, are those of Constant and Optional, which the importer takes apart.
    assert set(definition.attrs) >= set(schema.attributes) - {"type", "sparse_value"}
    for key, own in definition.attrs.items():
        attribute = schema.attributes.get(key)
        if attribute is None:
            continue
        assert (own.default is REQUIRED) == attribute.required, key
        default = _default(attribute)
        if default is None or own.default in (None, REQUIRED):
            assert default is None or own.default is not REQUIRED, key
        elif isinstance(default, float):
            assert own.default == pytest.approx(default, rel=1e-6), key
        else:
            assert own.default == (default.decode() if isinstance(default, bytes) else default), key


def test_scales_along_an_axis_of_one():
    """As onnxruntime's quantizer writes biases; the reference implementation refuses them."""
    x, scale = np.arange(3, dtype=np.int32)[None], np.array([1, 2, 4], np.float32)
    node = helper.make_node("DequantizeLinear", ["x", "s"], ["y"], axis=0)
    model = onnx_model([node], {"x": (np.int32, (1, 3))}, ["y"], {"s": scale})
    np.testing.assert_array_equal(run(imported(model)[0], {"x": x})[0], [[0, 2, 8]])
