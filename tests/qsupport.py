"""Tests of quantized operators: results that must be the same everywhere, and those of onnxruntime."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto, helper
from support import drivers_of, import_onnxruntime, node_model, run_node

from evort._kernels import core
from evort.session import Session

TYPES = {"u8": np.uint8, "s8": np.int8, "s16": np.int16, "u16": np.uint16}


def everywhere(
    driver: str,
    op: str,
    inputs: list[np.ndarray | None],
    attrs: dict[str, Any] | None = None,
    domain: str = "com.microsoft",
    feeds: tuple[int, ...] = (0,),
    threads: tuple[int, ...] = (1, 2),
    device: str = "reference",
) -> np.ndarray:
    """The result of one node, by its reference; fails where the driver differs in a bit, on any instruction set.

    feeds: which inputs are fed; all others are constants."""
    want = run_node(op, inputs, attrs, domain=domain, device=device)[0]
    constants = tuple(i for i in range(len(inputs)) if i not in feeds)
    model = node_model(op, inputs, attrs, 1, domain, constants)
    try:
        for isa in core.available_isas():
            core.select_isa(isa)
            for n in threads:
                session = Session(model, threads=n)
                (got,) = session.run({f"in{i}": inputs[i] for i in feeds}).values()
                assert drivers_of(session) == [driver]
                np.testing.assert_array_equal(got, want, strict=True, err_msg=f"{isa}, {n} threads")
    finally:
        core.select_isa()
    return want


def steps(real: np.ndarray, unit: np.ndarray, zero_point: np.ndarray) -> np.ndarray:
    """Real numbers in steps of a quantized tensor, not rounded, within its bounds."""
    info = np.iinfo(zero_point.dtype)
    return np.clip(real / np.float64(unit) + zero_point, info.min, info.max)


def by_onnxruntime(
    op: str, inputs: list[np.ndarray | None], attrs: dict[str, Any] | None = None, domain: str = "com.microsoft"
) -> np.ndarray:
    """The result of one node by onnxruntime's kernel. Scales and zero points must be scalars."""
    runtime = import_onnxruntime()
    names = ["" if x is None else f"in{i}" for i, x in enumerate(inputs)]
    given = {name: np.asarray(x) for name, x in zip(names, inputs, strict=True) if x is not None}
    values = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)
        for name, x in given.items()
    ]
    kind = helper.np_dtype_to_tensor_dtype(next(x for x in inputs if x is not None and x.dtype.itemsize == 1).dtype)
    if op == "QLinearWhere":
        kind = helper.np_dtype_to_tensor_dtype(inputs[1].dtype)
    node = helper.make_node(op, names, ["y"], domain=domain, **(attrs or {}))
    graph = helper.make_graph([node], op, values, [helper.make_tensor_value_info("y", kind or TensorProto.UINT8, None)])
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    session = runtime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, given)[0]


def numbers(rng: np.random.Generator, dtype: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Integers of the whole range, the extremes among them."""
    info = np.iinfo(dtype)
    x = rng.integers(info.min, info.max + 1, shape).astype(dtype)
    if x.size:
        x.reshape(-1)[:: max(1, x.size // 3)] = rng.choice([info.min, info.max])
    return x


def scale(rng: np.random.Generator) -> np.ndarray:
    return np.array(rng.uniform(0.005, 0.1), np.float32)


def zero(rng: np.random.Generator, dtype: Any) -> np.ndarray:
    info = np.iinfo(dtype)
    return np.array(rng.choice([info.min, info.max, 0, rng.integers(info.min, info.max + 1)]), dtype)
