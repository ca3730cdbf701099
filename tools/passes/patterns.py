"""Helpers to recognise formulas: products and sums with constant factors and terms, seen as one."""

from __future__ import annotations

import math

from evort.graph import Node
from evort_tools.passes.edit import Edit


class Product:
    """A tensor as factor * product of tensors. nodes: those that compute it, the last first."""

    __slots__ = ("factor", "nodes", "tensors")

    def __init__(self, factor: float, tensors: list[str], nodes: list[Node]):
        self.factor = factor
        self.tensors = tensors
        self.nodes = nodes


def product(ed: Edit, name: str, inner: bool = True) -> Product:
    """Splits Mul, and Div by a number, into its factors. inner: `name` is an operand of a larger formula; it is only
    taken apart where nothing else reads it."""
    node = ed.producer(name, "Mul", "Div", "Neg")
    if node is None or node.attrs or (inner and not ed.single(name)) or not ed.is_real(name):
        return Product(1.0, [name], [])
    if node.op == "Neg":
        part = product(ed, node.inputs[0])
        return Product(-part.factor, part.tensors, [node, *part.nodes])
    a, b = node.inputs
    for x, other in ((a, b), (b, a)):
        number = ed.scalar(other, x)
        if number is None or (node.op == "Div" and (x is b or number == 0)):
            continue
        part = product(ed, x)
        return Product(part.factor * number if node.op == "Mul" else part.factor / number, part.tensors,
                       [node, *part.nodes])  # fmt: skip
    if node.op == "Div":
        return Product(1.0, [name], [])
    first, second = product(ed, a), product(ed, b)
    return Product(first.factor * second.factor, [*first.tensors, *second.tensors],
                   [node, *first.nodes, *second.nodes])  # fmt: skip


def offset(ed: Edit, name: str, inner: bool = True) -> tuple[float, str]:
    """Splits Add with a number, and Sub of one: (number, the rest)."""
    node = ed.producer(name, "Add", "Sub")
    if node is None or node.attrs or (inner and not ed.single(name)) or not ed.is_real(name):
        return 0.0, name
    a, b = node.inputs
    number = ed.scalar(b, a)
    if number is not None:
        return (number if node.op == "Add" else -number), a
    number = ed.scalar(a, b)
    if number is not None and node.op == "Add":
        return number, b
    return 0.0, name


def close(a: float, b: float) -> bool:
    """Whether two constants of a formula are the same, as 32-bit (or, for exporters that wrote few digits, 20-bit)
    numbers."""
    return math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-7)


def unary(ed: Edit, name: str, *ops: str) -> Node | None:
    """The node of one of these operators that computes `name`, where nothing else reads it."""
    node = ed.producer(name, *ops)
    return node if node is not None and ed.single(name) and not node.attrs.get("activation") else None
