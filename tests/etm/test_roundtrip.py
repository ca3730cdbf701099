"""What is written is what is read, by evort's reader and by FlatBuffers' own code."""

import numpy as np
import pytest
from etm_support import DOMAIN, SAMPLES, Oracle, node, plain, random_array
from hypothesis import given, settings
from hypothesis import strategies as st

from evort import etm
from evort.graph import Graph, Model, Node, Quantization, Tensor
from evort.types import STORAGE, DType

NAMES = st.text(st.characters(codec="utf-8"), min_size=1, max_size=8)
SIZES = st.integers(0, 2**63 - 1)
INT64 = st.integers(-(2**63), 2**63 - 1)
FLOATS = st.floats(allow_nan=False)
TEXTS = st.text(st.characters(codec="utf-8"), max_size=6)
DIMS = st.integers(0, 3)


@st.composite
def arrays(draw, dtypes=tuple(STORAGE)) -> tuple[DType, np.ndarray]:
    dtype = draw(st.sampled_from(dtypes))
    shape = tuple(draw(st.lists(DIMS, max_size=4)))
    return dtype, random_array(np.random.default_rng(draw(st.integers(0, 2**32))), dtype, shape)


@st.composite
def quantizations(draw, shape: tuple[int, ...]) -> Quantization:
    scheme = draw(st.sampled_from(["per_tensor", "per_axis", "grouped"] if shape else ["per_tensor"]))
    axis = draw(st.integers(0, len(shape) - 1)) if shape else 0
    group = draw(st.integers(1, 4)) if scheme == "grouped" else 0
    counts = {"per_tensor": (), "per_axis": shape[axis : axis + 1]}.get(scheme)
    if counts is None:
        counts = (*shape[:axis], -(-shape[axis] // group), *shape[axis + 1 :])
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    kind = draw(st.sampled_from([None, np.int8, np.int32]))
    zero_point = kind and rng.integers(-128, 128, counts).astype(kind)
    bounds = draw(st.none() | st.tuples(FLOATS, FLOATS).filter(lambda b: np.isfinite(b).all()).map(sorted).map(tuple))
    return Quantization(scheme, 8, rng.uniform(1e-30, 1, counts).astype(np.float32), zero_point, axis, group, bounds)


@st.composite
def graphs(draw, outer: tuple[str, ...] = (), taken: tuple[str, ...] = (), depth: int = 0) -> Graph:
    graph = Graph(draw(TEXTS))
    names = draw(st.lists(NAMES.filter(lambda n: n not in outer + taken), unique=True, min_size=1, max_size=8))
    visible = list(outer)
    while names and draw(st.booleans()):
        name = names.pop()
        if draw(st.booleans()):
            dtype, array = draw(arrays())
            quant = draw(st.none() | quantizations(array.shape)) if dtype in (DType.INT8, DType.FLOAT) else None
            graph.add(Tensor(name, dtype, array.shape, array, quant))
        else:
            shape = draw(st.none() | st.lists(DIMS | TEXTS, max_size=3).map(tuple))
            graph.add(Tensor(name, draw(st.sampled_from(list(DType))), shape, layout=draw(TEXTS)))
            graph.inputs.append(name)
        visible.append(name)
    while names:
        attrs = {
            "i": draw(INT64), "f": draw(FLOATS), "s": draw(TEXTS), "is": draw(st.lists(INT64, max_size=3)),
            "fs": draw(st.lists(FLOATS, max_size=3)), "ss": draw(st.lists(TEXTS, max_size=3)),
            # A plain array's dtype is all that an attribute says of its element type.
            "t": draw(arrays([d for d in STORAGE if d <= DType.COMPLEX128]))[1],
        }  # fmt: skip
        if depth < 2:
            attrs["g"] = draw(graphs(tuple(visible), (*taken, *names), depth + 1))
        attrs = {key: value for key, value in attrs.items() if draw(st.booleans())}
        inputs = draw(st.lists(st.sampled_from([*visible, ""]), max_size=4))
        outputs = [names.pop() for _ in range(draw(st.integers(1, len(names))))]
        graph.nodes.append(Node("Any", inputs, [*outputs, ""], attrs, DOMAIN, draw(TEXTS)))
        visible += outputs
    if visible:
        graph.outputs = draw(st.lists(st.sampled_from(visible), max_size=3))
    return graph


TABLES = st.dictionaries(TEXTS, TEXTS, max_size=3)
BOUNDS = st.dictionaries(NAMES, st.tuples(SIZES, SIZES).map(sorted).map(tuple), max_size=2)
MODELS = st.builds(
    Model, graphs(), st.dictionaries(TEXTS, st.integers(0, 2**32 - 1), max_size=2), TABLES, TEXTS, BOUNDS
)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(MODELS)
def test_any_model_comes_back(model):
    data = etm.write(model)
    expected = plain(model)
    assert Oracle(data).plain() == expected
    file = etm.read(data, checksum=True)
    assert plain(file.model) == expected
    assert etm.write(file.model) == data


@pytest.mark.parametrize("name", SAMPLES)
def test_samples_come_back_from_a_file(name, tmp_path):
    model = SAMPLES[name]()
    etm.write(model, tmp_path / "m.etm")
    data = (tmp_path / "m.etm").read_bytes()
    assert data == etm.write(model)
    assert Oracle(data).plain() == plain(model)
    assert plain(etm.read(tmp_path / "m.etm", checksum=True).model) == plain(model)


@pytest.mark.parametrize("dtype", STORAGE)
@pytest.mark.parametrize("shape", [(), (0,), (1,), (2,), (3,), (5, 7), (2, 0, 3), (1,) * 32])
def test_constants_of_each_type(dtype, shape):
    array = random_array(np.random.default_rng(0), dtype, shape)
    graph = Graph()
    graph.add(Tensor("c", dtype, shape, array))
    graph.outputs = ["c"]
    found = etm.read(etm.write(Model(graph))).model.graph.tensors["c"]
    assert (found.dtype, found.shape, found.data.dtype) == (dtype, shape, STORAGE[dtype])
    assert found.data.tolist() == array.tolist() if dtype == DType.STRING else found.data.tobytes() == array.tobytes()
    assert not found.data.flags.writeable


def test_int_and_float_and_absent_and_empty_differ():
    attrs = {"i": 1, "f": 1.0, "s": "", "is": [1], "fs": [1.0], "ss": [""]}
    graph = Graph()
    graph.nodes = [node([], ["y"], **attrs), node(["y"], ["z"], **{"is": [], "fs": [], "ss": []})]
    found = etm.read(etm.write(Model(graph))).model.graph
    assert found.nodes[0].attrs == attrs
    assert {k: type(v) for k, v in found.nodes[0].attrs.items()} == {k: type(v) for k, v in attrs.items()}
    assert type(found.nodes[0].attrs["is"][0]) is int and type(found.nodes[0].attrs["fs"][0]) is float
    assert found.nodes[1].attrs == {"is": [], "fs": [], "ss": []}
    kinds = [Oracle(etm.write(Model(graph))).root.Graph().Nodes(1).Attributes(i).Type() for i in range(3)]
    assert kinds == [6, 7, 8]  # floats, ints, strings, in the order of the keys


def test_ml_dtypes_attributes_are_stored_as_what_they_are():
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="ml_dtypes comes with onnx, in the tools extra")
    graph = Graph()
    values = np.array([1, -2, 0.5])
    graph.nodes = [
        node([], ["y"], t=values.astype(ml_dtypes.bfloat16)),
        node([], ["z"], t=np.array([1, -8, 3], ml_dtypes.int4)),
    ]
    found = etm.read(etm.write(Model(graph))).model.graph.nodes
    assert found[0].attrs["t"].view(ml_dtypes.bfloat16).tolist() == values.tolist()
    assert found[1].attrs["t"].tolist() == [1, -8, 3]
