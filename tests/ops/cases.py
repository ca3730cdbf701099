"""ONNX's own test cases of single operators, and what checks them."""

from __future__ import annotations

import importlib
import warnings
from typing import Any

import numpy as np
import onnx
from onnx.backend.test.case.test_case import TestCase

from evort._kernels import core
from evort.ops.lowp import widen
from evort.session import Session
from evort.types import FROM_NUMPY, STORAGE, SUBBYTE, DType, dtype_of
from tests.support import drivers_of, node_model, run_node


def node_cases(modules: str, ops: str) -> list[TestCase]:
    """The cases of one node each, for operators `ops`, that `onnx.backend.test.case.node.<module>` define.

    Only those modules are imported: generating all cases takes most of a minute. Cases of older forms that differ,
    which only the importer knows, are left out.
    """
    import onnx.backend.test.case.node as node

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for module in modules.split():
            importlib.import_module(f"onnx.backend.test.case.node.{module}")
    names = set(ops.split())
    found = {c.name: c for c in node._NodeTestCases if len(c.model.graph.node) == 1}
    found = [c for c in found.values() if c.model.graph.node[0].op_type in names]
    found = [c for c in found if not c.name.endswith("opset19")]
    missing = names - {c.model.graph.node[0].op_type for c in found}
    assert not missing, f"no cases of {missing}"
    return found


def _attribute(a: onnx.AttributeProto) -> Any:
    value = onnx.helper.get_attribute_value(a)
    if isinstance(value, bytes):
        return value.decode()
    return [v.decode() if isinstance(v, bytes) else v for v in value] if isinstance(value, list) else value


def _array(x: Any) -> np.ndarray:
    return onnx.numpy_helper.to_array(x) if isinstance(x, onnx.TensorProto) else np.asarray(x)


def _stored(x: np.ndarray) -> np.ndarray:
    """In the storage dtype: 4- and 2-bit integers widened, other types that NumPy lacks as their bits."""
    if x.dtype in FROM_NUMPY or x.dtype.kind in "US":
        return x
    dtype = dtype_of(x)
    return x.astype(STORAGE[dtype]) if dtype in SUBBYTE - {DType.FLOAT4E2M1} else x.view(STORAGE[dtype])


def check_case(case: TestCase, device: str) -> None:
    """Runs a case and compares with what it expects, within its own tolerance, dtypes and shapes included."""
    node = case.model.graph.node[0]
    assert all(node.output), "absent outputs before present ones are not covered here"
    for inputs, expected in case.data_sets:
        feeds = iter(map(_array, inputs))
        given = [next(feeds) if name else None for name in node.input]
        dtypes = {i: dtype_of(x) for i, x in enumerate(given) if x is not None}
        got = run_node(
            node.op_type,
            [None if x is None else _stored(x) for x in given],
            {a.name: _attribute(a) for a in node.attribute},
            len(node.output),
            node.domain,
            device=device,
            dtypes=dtypes,
        )
        for y, want in zip(got, expected, strict=True):
            want = _array(want)
            assert y.dtype == STORAGE[dtype_of(want)] and y.shape == want.shape
            if dtype_of(want) == DType.BFLOAT16:
                y, want = widen(y, DType.BFLOAT16), want.astype(np.float32)
            elif want.dtype not in FROM_NUMPY:
                want = _stored(want)
            if want.dtype.kind in "OUS":
                assert y.tolist() == want.tolist()
            else:
                np.testing.assert_allclose(y, want, rtol=case.rtol, atol=case.atol)


def compiled(
    driver: str,
    op: str,
    inputs: list[np.ndarray | None],
    attrs: dict[str, Any] | None = None,
    outputs: int = 1,
    constants: tuple[int, ...] = (),
    threads: tuple[int, ...] = (1, 2),
    dtypes: dict[int, DType] | None = None,
) -> list[list[np.ndarray]]:
    """The outputs of one node by its compiled driver, for each instruction set and number of threads.

    dtypes: element types that NumPy does not tell. Fails where another driver, or NumPy, runs it.
    """
    results = []
    model = node_model(op, inputs, attrs, outputs, constants=constants, dtypes=dtypes)
    feeds = {f"in{i}": x for i, x in enumerate(inputs) if x is not None and i not in constants}
    try:
        for isa in core.available_isas():
            core.select_isa(isa)
            for n in threads:
                session = Session(model, threads=n)
                got = session.run(feeds)
                assert drivers_of(session) == [driver]
                results.append([got[name] for name in model.graph.outputs])
    finally:
        core.select_isa()
    return results


def by_reference(
    op: str,
    inputs: list[np.ndarray | None],
    attrs: dict[str, Any] | None = None,
    outputs: int = 1,
) -> list[np.ndarray]:
    """The outputs by the operator's NumPy reference, with float operands widened to float64."""
    wide = [x.astype(np.float64) if x is not None and x.dtype == np.float32 else x for x in inputs]
    return run_node(op, wide, attrs, outputs, device="reference")
