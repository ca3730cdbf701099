"""Element types of outputs from ONNX's schemas, for nodes whose shapes are not known."""

from __future__ import annotations

from collections.abc import Sequence

from onnx import defs

from evort.graph import Node
from evort.types import DType, dtype_of

_BY_NAME = {
    "tensor(float)": DType.FLOAT, "tensor(double)": DType.DOUBLE, "tensor(float16)": DType.FLOAT16,
    "tensor(bfloat16)": DType.BFLOAT16, "tensor(bool)": DType.BOOL, "tensor(string)": DType.STRING,
    "tensor(int8)": DType.INT8, "tensor(int16)": DType.INT16, "tensor(int32)": DType.INT32,
    "tensor(int64)": DType.INT64, "tensor(uint8)": DType.UINT8, "tensor(uint16)": DType.UINT16,
    "tensor(uint32)": DType.UINT32, "tensor(uint64)": DType.UINT64,
}  # fmt: skip

# Operators whose attribute names the output's element type, with the attribute and the type where it is absent (None:
# that of the first input).
_NAMED = {
    "Cast": ("to", None), "BitCast": ("to", None), "EyeLike": ("dtype", None), "RandomNormal": ("dtype", 1),
    "RandomUniform": ("dtype", 1), "RandomNormalLike": ("dtype", None), "RandomUniformLike": ("dtype", None),
    "Bernoulli": ("dtype", None), "Multinomial": ("dtype", 6), "HannWindow": ("output_datatype", 1),
    "HammingWindow": ("output_datatype", 1), "BlackmanWindow": ("output_datatype", 1),
    "MelWeightMatrix": ("output_datatype", 1),
}  # fmt: skip


def output_dtypes(node: Node, ins: Sequence[DType | None]) -> list[DType | None]:
    """The element type of each output; None where the schema does not tell it."""
    nothing: list[DType | None] = [None] * len(node.outputs)
    if not node.domain and node.op in _NAMED:
        key, default = _NAMED[node.op]
        named = node.attrs.get(key, default)
        return [DType(named)] if named is not None else list(ins[:1]) or nothing
    if not node.domain and node.op == "ConstantOfShape":
        value = node.attrs.get("value")
        return [DType.FLOAT if value is None else dtype_of(value)]
    if not defs.has(node.op, node.domain):
        return nothing
    schema = defs.get_schema(node.op, node.domain)
    bound: dict[str, DType] = {}
    for i, dtype in enumerate(ins):
        formal = schema.inputs[min(i, len(schema.inputs) - 1)] if schema.inputs else None
        if dtype is not None and formal is not None and formal.is_homogeneous:
            bound.setdefault(formal.type_str, dtype)
    allowed = {c.type_param_str: c.allowed_type_strs for c in schema.type_constraints}
    found: list[DType | None] = []
    for i in range(len(node.outputs)):
        formal = schema.outputs[min(i, len(schema.outputs) - 1)] if schema.outputs else None
        kinds = [] if formal is None else allowed.get(formal.type_str, [formal.type_str])
        if kinds and all(k.startswith("seq(") for k in kinds):
            found.append(DType.SEQUENCE)
        elif kinds and all(k.startswith("optional(") for k in kinds):
            found.append(DType.OPTIONAL)
        elif formal is not None and formal.is_homogeneous and formal.type_str in bound:
            found.append(bound[formal.type_str])
        else:
            found.append(_BY_NAME.get(kinds[0]) if len(kinds) == 1 else None)
    return found
