"""Einsum: as batches of matrix products where it can be."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from evort.ops.base import REQUIRED, Attr, Call, Kernel, Op, op
from evort.ops.conv import same_dtype
from evort.ops.linear import Layout, merge
from evort.types import FLOATS, INTS, DType, Spec

if TYPE_CHECKING:
    from evort.ops.gradients import Gradients

_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


def _terms(c: Call) -> tuple[list[str], str]:
    """The subscripts of each operand of an Einsum and of its output, one letter an axis; an ellipsis is spelled out in
    digits, aligned at its end. Raises ShapeError."""
    left, arrow, right = c["equation"].replace(" ", "").partition("->")
    terms = left.split(",")
    if len(terms) != len(c.ins):
        raise c.error(f"the equation names {len(terms)} operands, but there are {len(c.ins)}")
    widest = 0
    found = []
    for term, spec in zip(terms, c.ins, strict=True):
        named = term.replace("...", "", 1)
        if not (named.isascii() and (named.isalpha() or not named)):
            raise c.error(f"the equation's term {term!r} is not made of letters and one ellipsis")
        extra = spec.rank - len(named)
        if extra < 0 or (extra and "..." not in term):
            raise c.error(f"the equation's term {term!r} does not fit an operand of rank {spec.rank}")
        widest = max(widest, extra)
        found.append((term, extra))
    if widest > 10:
        raise c.error("an ellipsis stands for more than 10 axes")
    digits = "0123456789"[:widest]
    full = [term.replace("...", digits[widest - extra :]) for term, extra in found]
    if arrow:
        named = right.replace("...", "", 1)
        if not (named.isascii() and (named.isalpha() or not named)) or len(set(named)) != len(named):
            raise c.error(f"the equation's output {right!r} is not made of distinct letters and one ellipsis")
        out = right.replace("...", digits)
        if not set(out) <= set("".join(full)):
            raise c.error(f"the equation's output {right!r} has letters that no operand has")
    else:
        every = "".join(full)
        out = digits + "".join(sorted(x for x in set(every) if x.isalpha() and every.count(x) == 1))
    return full, out


def _einsum_sizes(c: Call, terms: list[str]) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for term, spec in zip(terms, c.ins, strict=True):
        for letter, size in zip(term, spec.shape, strict=True):
            known = sizes.setdefault(letter, size)
            if known != size and letter.isdigit() and 1 in (known, size):
                sizes[letter] = max(known, size) if 0 not in (known, size) else 0
            elif known != size:
                raise c.error(f"subscript {letter!r} stands for both {known} and {size}")
    return sizes


def einsum_layout(terms: list[str], out: str, shapes: list[tuple[int, ...]], sizes: dict[str, int]) -> Layout | None:
    """A batch of products that computes an Einsum of two operands where they lie; None where there is none, such as
    with a diagonal, with a sum over an axis of one operand, or with axes that do not join to one."""
    if len(terms) != 2 or any(len(set(t)) != len(t) for t in terms):
        return None
    strides: list[dict[str, int]] = []
    for term, shape in zip([*terms, out], [*shapes, tuple(sizes[x] for x in out)], strict=True):
        length, found = 1, {}
        for letter, size in zip(reversed(term), reversed(shape), strict=True):
            found[letter] = length if size == sizes[letter] else 0
            length *= size
        strides.append(found)
    a, b, y = strides
    if any(x not in y and x not in b for x in terms[0]) or any(x not in y and x not in a for x in terms[1]):
        return None
    swapped = bool(out) and out[-1] in a and out[-1] not in b  # the result's columns are A's: it is B A
    if swapped:
        a, b = b, a
    real = [x for x in out if sizes[x] != 1]
    batch = [x for x in real if x in a and x in b]
    rows = [x for x in real if x in a and x not in b]
    columns = [x for x in real if x in b and x not in a]
    inner = [x for x in terms[0] if x in b and x not in y and sizes[x] != 1]

    def joined(letters: list[str], *operands: dict[str, int]) -> int:
        """How many of these axes, from the last on, make one axis in every operand."""
        count = min(1, len(letters))
        while count < len(letters):
            slow, fast = letters[-count - 1], letters[-count]
            if any(o[slow] != o[fast] * sizes[fast] for o in operands):
                break
            count += 1
        return count

    # Axes of rows or columns that do not join the last ones are batch axes, over which the other operand stays.
    batch += (apart := rows[: len(rows) - joined(rows, a, y)])
    rows = rows[len(apart) :]
    batch += (apart := columns[: len(columns) - joined(columns, b, y)])
    columns = columns[len(apart) :]
    if len(inner) != joined(inner, a, b) or (columns and y[columns[-1]] != 1):
        return None
    m, n, k = (math.prod(sizes[x] for x in group) for group in (rows, columns, inner))

    def step(letters: list[str], operand: dict[str, int]) -> int:
        return operand[letters[-1]] if letters else 1

    axes = [(sizes[x], a.get(x, 0), b.get(x, 0), y[x]) for x in batch]
    left, right = (step(rows, a), step(inner, a)), (step(inner, b), step(columns, b))
    return Layout(m, n, k, left, right, step(rows, y), merge(axes), swapped)


@op("Einsum", since=28)
class Einsum(Op):
    """Sums of products in Einstein's notation, as numpy.einsum. Two operands become a batch of matrix products where
    their axes allow it without moving data."""

    inputs, outputs = ("*Inputs",), ("Output",)
    dtypes = {"Inputs": FLOATS | INTS}
    attrs = {"equation": Attr("str", REQUIRED)}

    def infer(self, c: Call) -> list[Spec]:
        if not c.ins:
            raise c.error("no operands")
        same_dtype(c, *range(len(c.ins)))
        terms, out = _terms(c)
        sizes = _einsum_sizes(c, terms)
        return [Spec(c.ins[0].dtype, tuple(sizes[x] for x in out))]

    def reference(self, c: Call, *inputs: np.ndarray) -> np.ndarray:
        dtype = inputs[0].dtype
        wide = [x.astype(np.float32) if dtype == np.float16 else x for x in inputs]
        return np.asarray(np.einsum(c["equation"], *wide, optimize=len(wide) > 1)).astype(dtype, copy=False)

    def bind(self, c: Call) -> Kernel | None:
        if c.ins[0].dtype != DType.FLOAT:
            return None
        terms, out = _terms(c)
        layout = einsum_layout(terms, out, [s.shape for s in c.ins], _einsum_sizes(c, terms))
        return None if layout is None else layout.bind(c, (0,), (0.0, 0.0))

    def macs(self, c: Call) -> int:
        terms, _ = _terms(c)
        return math.prod(_einsum_sizes(c, terms).values()) * (len(terms) - 1)

    def gradient(self, g: Gradients, c: Call, dy: str) -> list[str | None]:
        terms, out = _terms(c)
        if any(len(set(term)) != len(term) for term in terms):
            return super().gradient(g, c, dy)  # a diagonal
        letters = dict(zip(sorted(set("".join(terms))), _LETTERS, strict=False))
        terms, out = ["".join(letters[x] for x in t) for t in terms], "".join(letters[x] for x in out)
        sizes = {x: d for t, s in zip(terms, c.ins, strict=True) for x, d in zip(t, s.shape, strict=True) if d != 1}
        found: list[str | None] = []
        for i, term in enumerate(terms):
            if not g.wants(i):
                found.append(None)
                continue
            others = [j for j in range(len(terms)) if j != i]
            reach = set(out).union(*(terms[j] for j in others))
            kept = "".join(x for x in term if x in reach)  # the others were summed over: their gradient is the same
            equation = ",".join([out, *(terms[j] for j in others)]) + "->" + kept
            d = g.emit("Einsum", [dy, *(c.node.inputs[j] for j in others)], {"equation": equation})
            d = g.reshape(d, tuple(dict(zip(kept, g.shape(d), strict=True)).get(x, 1) for x in term))
            full = tuple(sizes.get(x, 1) for x in term)
            found.append(g.reduced_to(g.expand(d, full), c.ins[i].shape))
        return found
