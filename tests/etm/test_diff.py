"""What differs between two files is said, and nothing else."""

import json

import numpy as np
import pytest
from etm_support import SAMPLES, convolutional, guarded, nested, node, quantized

from evort import etm
from evort.errors import EtmFormatError
from evort.etm.diff import diff, diff_models
from evort.graph import Graph, Model, Tensor
from evort.types import DType


@pytest.mark.parametrize("name", SAMPLES)
def test_equal_files(name, tmp_path):
    etm.write(SAMPLES[name](), tmp_path / "a.etm")
    assert diff(tmp_path / "a.etm", etm.write(SAMPLES[name]())) == []
    assert diff(etm.read(tmp_path / "a.etm"), tmp_path / "a.etm") == []


def changed(make, change) -> list:
    a, b = make(), make()
    change(b)
    found = diff(etm.write(a), etm.write(b))
    assert [repr(d) for d in found] == [repr(d) for d in diff_models(a, b)]
    json.dumps([d.as_dict() for d in found])
    return found


def remove_last(graph: Graph) -> None:
    del graph.nodes[-1]
    graph.outputs = ["y4"]


@pytest.mark.parametrize(
    ("make", "change", "expected"),
    [
        (convolutional, lambda m: setattr(m, "producer", "x"), [("model", "producer", "evort tests", "x")]),
        (convolutional, lambda m: m.metadata.update(author="e"), [("metadata", "'author'", "é", "e")]),
        (convolutional, lambda m: m.opsets.pop(""), [("opset", "''", 21, None)]),
        (guarded, lambda m: m.bounds.update(n=(1, 4)), [("bounds of", "'n'", (0, 4), (1, 4))]),
        (guarded, lambda m: setattr(m, "golden", None), [("model", "golden", "Golden", None)]),
        (guarded, lambda m: setattr(m.golden, "tolerance", 0.5), [("golden", "tolerance", 1e-4, 0.5)]),
        (guarded, lambda m: m.golden.outputs.update(z=np.array(7)),
         [("golden outputs", "'z', 1 of 1 items, at worst item 0", 5, 7)]),
        (convolutional, lambda m: m.graph.nodes[0].attrs.update(i=7),
         [("node test.etm::Any 'layer0'", "attribute i", None, "7")]),
        (convolutional, lambda m: m.graph.nodes[0].attrs.update(f=1),
         [("node test.etm::Any 'layer0'", "attribute f", "1.0", "1")]),
        (convolutional, lambda m: m.graph.nodes[0].attrs.update({"is": [5, 6]}),
         [("node test.etm::Any 'layer0'", "attribute is", "[5, 5]", "[5, 6]")]),
        (convolutional, lambda m: m.graph.nodes[1].inputs.append(""),
         [("node test.etm::Any -> 'r0'", "inputs", ["y0"], ["y0", ""])]),
        (convolutional, lambda m: setattr(m.graph.tensors["image"], "shape", ("n", 1, 28, 28)),
         [("tensor 'image'", "shape", ("batch", 1, 28, 28), ("n", 1, 28, 28))]),
        (convolutional, lambda m: setattr(m.graph.tensors["image"], "dtype", DType.DOUBLE),
         [("tensor 'image'", "dtype", "FLOAT", "DOUBLE")]),
        (convolutional, lambda m: m.graph.add(Tensor("more", DType.FLOAT, ())),
         [("tensor 'more'", "only in one file", None, "Tensor('more', FLOAT, ())")]),
        (convolutional, lambda m: remove_last(m.graph), [
            ("graph 'classifier'", "outputs", ["r4"], ["y4"]),
            ("node test.etm::Any -> 'r4'", "only in one file", "test.etm::Any -> 'r4'", None)]),
        (nested, lambda m: m.graph.nodes[0].attrs["h"].nodes[0].attrs.update(i=1),
         [("test.etm::Any 'n0' h / node test.etm::Any 'n1'", "attribute i", None, "1")]),
        (nested, lambda m: m.graph.nodes[0].attrs.pop("g"),
         [("node test.etm::Any 'n0'", "attribute g", "graph 'level 1'", None)]),
        (quantized, lambda m: setattr(m.graph.tensors["a"], "quant", None),
         [("tensor 'a'", "quantization", "Quantization", None)]),
        (quantized, lambda m: setattr(m.graph.tensors["x"].quant, "range", None),
         [("tensor 'x'", "quantization range", (-1.0, 1.5), None)]),
    ],
)  # fmt: skip
def test_what_differs(make, change, expected):
    assert [(d.where, d.what, d.a, d.b) for d in changed(make, change)] == expected


def values(a: list, b: list, dtype: DType = DType.FLOAT, storage: type = np.float32):
    def model(items: list) -> Model:
        graph = Graph()
        array = np.array(items, storage)
        graph.add(Tensor("w", dtype, array.shape, array))
        return Model(graph)

    found = diff(etm.write(model(a)), etm.write(model(b)))
    return [(d.what, d.a, d.b, d.max_abs) for d in found]


def test_values():
    nan = float("nan")
    assert values([1, 2, 3, 4], [1, 2.5, 3, 2]) == [("data, 2 of 4 items, at worst item 3", 4.0, 2.0, 2.0)]
    assert values([nan, 1], [nan, 1]) == []
    assert values([0.0], [-0.0]) == [("data, 1 of 1 items, at worst item 0", 0.0, -0.0, 0.0)]
    assert values([nan, 0], [1, 5])[0][3] == float("inf")
    assert values([float("inf")], [1])[0][3] == float("inf")
    assert values([0, 255], [255, 255], DType.UINT8, np.uint8) == [
        ("data, 1 of 2 items, at worst item 0", 0, 255, 255.0)
    ]
    assert values(["a", "b"], ["a", "c"], DType.STRING, object)[0][:3] == (
        "data, 1 of 2 items, at worst item 1",
        "b",
        "c",
    )
    # bfloat16: 1.0 is 0x3F80, 2.0 is 0x4000
    assert values([0x3F80], [0x4000], DType.BFLOAT16, np.uint16)[0][3] == 1.0
    assert values([1, 2], [1, 2, 3])[0][:3] == ("shape", (2,), (3,))


def test_the_order_of_nodes():
    def model(order: list[int]) -> Model:
        graph = Graph()
        graph.nodes = [[node([], ["a"]), node([], ["b"])][i] for i in order]
        return Model(graph)

    found = diff_models(model([0, 1]), model([1, 0]))
    assert [(d.what, d.a, d.b) for d in found] == [("order of nodes", ["a", "b"], ["b", "a"])]


def test_another_layout_of_the_same_content():
    def model(names: str) -> Model:
        graph = Graph()
        for name in names:
            graph.add(Tensor(name, DType.FLOAT, ()))
        return Model(graph)

    found = diff(etm.write(model("ab")), etm.write(model("ba")))
    assert [d.what for d in found] == ["hash (the same content, laid out otherwise)"]


def test_damaged_weights_are_found():
    data = bytearray(etm.write(convolutional()))
    data[-5] ^= 1
    with pytest.raises(EtmFormatError, match="checksum"):
        diff(bytes(data), bytes(data))
