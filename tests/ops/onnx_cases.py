"""ONNX's own backend node cases as nodes of evort, without the importer: for the tests of one operator family."""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper
from onnx.backend.test.loader import load_model_tests

from evort.ops.lowp import widen
from evort.types import STORAGE, DType, dtype_of
from tests.support import run_node


@cache
def _all() -> list[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return load_model_tests(kind="node")


def cases(*operators: str) -> list[Any]:
    """The cases whose model is one node of the given operators."""
    found = []
    for case in _all():
        model = case.model if case.model is not None else onnx.load(f"{case.model_dir}/model.onnx")
        nodes = [n for n in model.graph.node if n.op_type != "Constant"]
        if len(nodes) == 1 and nodes[0].op_type in operators:
            found.append((case, model, nodes[0]))
    return sorted(found, key=lambda found: found[0].name)


def stored(x: np.ndarray) -> np.ndarray:
    """An array in the NumPy dtype that holds its element type in evort."""
    storage = STORAGE[dtype_of(x)]
    if x.dtype == storage:
        return x
    subbyte = x.dtype.name in ("int4", "uint4", "int2", "uint2")
    return x.astype(storage) if subbyte or storage.kind == "O" else x.view(storage)


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """A node's attributes as evort holds them."""
    found = {}
    for a in node.attribute:
        value = onnx.helper.get_attribute_value(a)
        if isinstance(value, bytes):
            value = value.decode()
        elif isinstance(value, onnx.TensorProto):
            value = stored(numpy_helper.to_array(value))
        elif a.type in (onnx.AttributeProto.INTS, onnx.AttributeProto.FLOATS):
            value = list(value)
        found[a.name] = value
    return found


def check(case: tuple[Any, onnx.ModelProto, onnx.NodeProto], device: str) -> None:
    """Runs a case on a device and holds the results to the expected ones, with the case's own tolerances."""
    test, model, node = case
    with open_sets(test, model) as sets:
        for inputs, expected in sets:
            by_name = dict(zip((i.name for i in model.graph.input), inputs, strict=True))
            for constant in model.graph.node:
                if constant.op_type == "Constant":
                    by_name[constant.output[0]] = numpy_helper.to_array(constant.attribute[0].t)
            operands = [np.asarray(by_name[name]) if name else None for name in node.input]
            results = run_node(
                node.op_type,
                [None if x is None else stored(x) for x in operands],
                attributes(node),
                len(node.output),
                device=device,
                dtypes={i: dtype_of(x) for i, x in enumerate(operands) if x is not None},
            )
            named = [got for got, name in zip(results, node.output, strict=True) if name]
            for got, want in zip(named, expected, strict=True):
                want = np.asarray(want)
                assert got.shape == want.shape
                if want.dtype.kind == "f" and dtype_of(want) in (DType.FLOAT, DType.DOUBLE, DType.FLOAT16):
                    np.testing.assert_allclose(got, want, rtol=test.rtol, atol=test.atol)
                elif dtype_of(want) == DType.BFLOAT16:  # two units in the last place
                    np.testing.assert_allclose(widen(got, DType.BFLOAT16), want.astype(np.float32), rtol=2.0**-6)
                elif want.dtype.kind in "OSU":
                    assert got.astype(str).tolist() == want.astype(str).tolist()
                else:
                    np.testing.assert_array_equal(got, stored(want))


class open_sets:
    """The data sets of a case: a list of (inputs, expected outputs)."""

    def __init__(self, test: Any, model: onnx.ModelProto):
        self.test, self.model = test, model

    def __enter__(self) -> list[tuple[list[np.ndarray], list[np.ndarray]]]:
        if self.test.data_sets:
            return self.test.data_sets
        return [
            tuple(
                [numpy_helper.to_array(onnx.load_tensor(f"{self.test.model_dir}/test_data_set_0/{kind}_{i}.pb"))
                 for i in range(len(values))]
                for kind, values in (("input", self.model.graph.input), ("output", self.model.graph.output))
            )
        ]  # fmt: skip

    def __exit__(self, *exc: object) -> None:
        return None
