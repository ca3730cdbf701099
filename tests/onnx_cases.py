"""ONNX's own test cases: their data, how results are held to them, and single nodes without the importer."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import defs, numpy_helper
from onnx.backend.test.case.test_case import TestCase
from support import run_node

from evort.ops.lowp import widen
from evort.types import FLOAT8, STORAGE, SUBBYTE_INTS, DType, dtype_of
from evort_tools.importer.canonical import rule_for

# Element types of which NumPy holds the bits. One unit in bfloat16's last place is at most 2^-7 of a number; for the
# others, whose units are larger, a tolerance of two of those demands equality.
BITS_ONLY = FLOAT8 | {DType.BFLOAT16, DType.FLOAT4E2M1}
BITS_RTOL = 2.0**-6


def model_of(case: TestCase) -> onnx.ModelProto:
    return case.model if case.model is not None else onnx.load(Path(case.model_dir) / "model.onnx")


def plain(value: Any) -> Any:
    """A test value as NumPy array, list or None."""
    if isinstance(value, onnx.TensorProto):
        return numpy_helper.to_array(value)
    if isinstance(value, onnx.SequenceProto):
        return numpy_helper.to_list(value)
    if isinstance(value, onnx.OptionalProto):
        return numpy_helper.to_optional(value)
    if isinstance(value, list):
        return [plain(v) for v in value]
    return None if value is None else np.asarray(value)


def stored(x: np.ndarray) -> np.ndarray:
    """An array in the NumPy dtype that holds its element type in evort."""
    dtype = dtype_of(x)
    storage = STORAGE[dtype]
    if x.dtype == storage:
        return x
    return x.astype(storage) if dtype in SUBBYTE_INTS or dtype == DType.STRING else x.view(storage)


def data_sets(case: TestCase, model: onnx.ModelProto) -> Iterator[tuple[dict[str, Any], list[Any]]]:
    """(inputs by name, expected outputs) of each data set of a case."""
    constants = {t.name for t in model.graph.initializer}
    inputs = [i for i in model.graph.input if i.name not in constants]
    for given, expected in case.data_sets or ():
        yield dict(zip((x.name for x in inputs), map(plain, given), strict=True)), [plain(y) for y in expected]
    if case.data_sets is None:
        for folder in sorted(Path(case.model_dir).glob("test_data_set_*")):
            feeds = {x.name: _read(folder / f"input_{i}.pb", x.type) for i, x in enumerate(inputs)}
            yield feeds, [_read(folder / f"output_{i}.pb", y.type) for i, y in enumerate(model.graph.output)]


def _read(path: Path, kind: onnx.TypeProto) -> Any:
    proto = onnx.TensorProto()
    if kind.HasField("sequence_type"):
        proto = onnx.SequenceProto()
    elif kind.HasField("optional_type"):
        proto = onnx.OptionalProto()
    proto.ParseFromString(path.read_bytes())
    return plain(proto)


def compare(expected: Any, got: Any, case: TestCase) -> None:
    """Holds a result to the expected one, with the case's own tolerances; dtype and shape included."""
    if expected is None or got is None:
        assert expected is got, f"{got} instead of {expected}"
        return
    if isinstance(expected, list):
        assert isinstance(got, list) and len(got) == len(expected)
        for e, g in zip(expected, got, strict=True):
            compare(e, g, case)
        return
    dtype = dtype_of(expected)
    assert got.shape == expected.shape, f"shape {got.shape} instead of {expected.shape}"
    assert got.dtype == STORAGE[dtype], f"{got.dtype} instead of {STORAGE[dtype]}"
    if dtype == DType.STRING:
        assert got.astype(str).tolist() == expected.astype(str).tolist()
    elif dtype in BITS_ONLY:
        np.testing.assert_allclose(widen(got, dtype), expected.astype(np.float32), rtol=BITS_RTOL, atol=case.atol)
    elif expected.dtype.kind in "fc":
        # float16: two units in the last place, where the suite's 1e-3 is less than that.
        rtol = max(case.rtol, 2**-9) if dtype == DType.FLOAT16 else case.rtol
        np.testing.assert_allclose(got, expected, rtol=rtol, atol=case.atol)
    else:
        np.testing.assert_array_equal(got, stored(expected))


def node_cases(*operators: str) -> list[TestCase]:
    """The cases of one node (and constants) on tensors, in the newest form of one of the operators (names, or several
    in a text with spaces between), by name.

    Only the modules that mention an operator are imported: making all cases takes half a minute.
    """
    import onnx.backend.test.case.node as node

    names = set(" ".join(operators).split())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for path in sorted(Path(node.__file__).parent.glob("*.py")):
            text = path.read_text(encoding="utf-8")
            if path.stem != "__init__" and any(f'"{name}"' in text for name in names):
                importlib.import_module(f"{node.__name__}.{path.stem}")
    found = {}
    for case in node._NodeTestCases:
        nodes = _operations(case)
        tensors = all(i.type.HasField("tensor_type") for i in case.model.graph.input)
        if tensors and len(nodes) == 1 and nodes[0].op_type in names and _newest(case.model, nodes[0]):
            found[case.name] = case
    missing = names - {_operations(case)[0].op_type for case in found.values()}
    assert not missing, f"no cases of {missing}"
    return [found[name] for name in sorted(found)]


def _operations(case: TestCase) -> list[onnx.NodeProto]:
    return [n for n in case.model.graph.node if n.op_type != "Constant"]


def _newest(model: onnx.ModelProto, node: onnx.NodeProto) -> bool:
    """Whether the importer would treat the node as one of the newest opset."""
    opset = next(o.version for o in model.opset_import if o.domain == node.domain)
    rules = (rule_for(node.domain, node.op_type, o) for o in (opset, defs.onnx_opset_version()))
    return len(set(rules)) == 1


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
        elif a.type == onnx.AttributeProto.STRINGS:
            value = [v.decode() for v in value]
        found[a.name] = value
    return found


def check_node(case: TestCase, device: str) -> None:
    """Runs a case of one node on a device, and holds the results to the expected ones."""
    (node,) = _operations(case)
    constants = {n.output[0]: numpy_helper.to_array(n.attribute[0].t) for n in case.model.graph.node
                 if n.op_type == "Constant"}  # fmt: skip
    for feeds, expected in data_sets(case, case.model):
        values = {**constants, **feeds}
        operands = [values[name] if name else None for name in node.input]
        results = run_node(
            node.op_type,
            [None if x is None else stored(x) for x in operands],
            attributes(node),
            len(node.output),
            node.domain,
            device=device,
            dtypes={i: dtype_of(x) for i, x in enumerate(operands) if x is not None},
        )
        for got, want in zip((y for y, name in zip(results, node.output, strict=True) if name), expected, strict=True):
            compare(want, got, case)
