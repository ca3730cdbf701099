"""Which tensors share memory, and where each piece of memory lies in the arena.

1. Every tensor starts as a block of its own: the arena, or outside it (a constant, an input).
2. Views (Reshape, contiguous Slice, Split) join the block of the tensor that they look into: no copy, no step.
3. The inputs of a Concat whose parts are contiguous move into the Concat's block: their producers write there.
4. An output may take over the block of an input that dies at the step (element by element operators, residual adds).
5. A block that is exactly a graph output becomes the caller's buffer.
6. What is left in the arena gets its offset by size-first best fit over lifetimes (`executor.best_fit`).

Lifetimes count steps: a block lives from the first step that writes any part of it to the last that reads any.
"""

from __future__ import annotations

import numpy as np

from evort._kernels.executor import ARENA, CONST, INPUT, OUTPUT, best_fit
from evort.ops.base import Call, Op

ALIGN = 64


class Block:
    """A piece of memory. kind and index: as in `executor.Program`. start, end: its first and last step.
    members: (tensor, byte offset, bytes, step that defines it)."""

    __slots__ = ("end", "index", "kind", "members", "nbytes", "offset", "start")

    def __init__(self, kind: int, index: int, nbytes: int, start: int):
        self.kind = kind
        self.index = index
        self.nbytes = nbytes
        self.start = start
        self.end = start
        self.offset = 0
        self.members: list[tuple[str, int, int, int]] = []


class Storage:
    """Assigns blocks. where[name] = (block, byte offset, bytes)."""

    def __init__(self) -> None:
        self.where: dict[str, tuple[Block, int, int]] = {}

    def add(self, name: str, kind: int, index: int, nbytes: int, step: int) -> None:
        """A tensor with a block of its own, first written at `step` (-1: before the plan runs)."""
        block = Block(kind, index, nbytes, step)
        block.members.append((name, 0, nbytes, step))
        self.where[name] = (block, 0, nbytes)

    def alias(self, name: str, source: str, offset: int, nbytes: int, step: int) -> None:
        """A tensor that is part of another, from `offset` bytes into it."""
        block, at, _ = self.where[source]
        block.members.append((name, at + offset, nbytes, step))
        self.where[name] = (block, at + offset, nbytes)

    def use(self, name: str, step: int) -> None:
        """Notes that a step reads a tensor."""
        block = self.where[name][0]
        block.end = max(block.end, step)

    def merge(self, name: str, target: str, offset: int) -> None:
        """Moves the whole block of `name` into the block of `target`, `offset` bytes into that tensor."""
        source = self.where[name][0]
        block, at, _ = self.where[target]
        at += offset
        if at == 0 and source.nbytes == block.nbytes and len(source.members) > len(block.members):
            # The same bytes either way: move the fewer members, so that long chains stay linear.
            source, block = block, source
        for member, inner, nbytes, step in source.members:
            block.members.append((member, at + inner, nbytes, step))
            self.where[member] = (block, at + inner, nbytes)
        block.start = min(block.start, source.start)
        block.end = max(block.end, source.end)

    def whole(self, name: str) -> Block | None:
        """The arena block that a tensor fills exactly, or None."""
        block, at, nbytes = self.where[name]
        return block if block.kind == ARENA and at == 0 and nbytes == block.nbytes else None

    def place_parts(self, definition: Op, c: Call) -> None:
        """Step 3 for one node: moves inputs into their place in output 0."""
        parts = definition.placement(c)
        if not parts:
            return
        out = c.node.outputs[0]
        for index, offset in parts.items():
            name = c.node.inputs[index]
            block = self.whole(name)
            target = self.where[out][0]
            if block is None or block is target or target.kind != ARENA or c.ins[index].nbytes == 0:
                continue
            self.merge(name, out, offset)

    def take_over(self, definition: Op, c: Call, step: int) -> None:
        """Step 4 for one node: lets an output take the block of an input that dies here."""
        for out_index, in_index in definition.inplace:
            if in_index >= len(c.ins) or c.ins[in_index] is None or not c.wants(out_index):
                continue
            a, b = c.ins[in_index], c.outs[out_index]
            if a.shape != b.shape or a.nbytes != b.nbytes or b.nbytes == 0:
                continue
            name, out = c.node.inputs[in_index], c.node.outputs[out_index]
            block = self.whole(name)
            target, at, _ = self.where[out]
            if block is None or block is target or block.end > step or target.kind != ARENA:
                continue
            # A driver of many operands reads them one after another: one that comes twice must stay whole.
            if len(c.node.inputs) > 2 and c.node.inputs.count(name) > 1:
                continue
            # Another operand in the same block is safe only where it is the very same elements.
            others = (n for i, n in enumerate(c.node.inputs) if n and i != in_index)
            if any(self.where[n][0] is block and n != name for n in others):
                continue
            # Nothing that lies in the output's bytes may have been written before.
            if any(o < at + b.nbytes and at < o + size and s < step for _, o, size, s in target.members):
                continue
            self.merge(name, out, 0)
            return

    def blocks(self) -> list[Block]:
        """The distinct blocks, in order of first appearance."""
        return list({id(block): block for block, _, _ in self.where.values()}.values())


def assign(blocks: list[Block], scratch: list[tuple[int, int]]) -> tuple[int, list[int], int]:
    """Offsets for the arena blocks and for scratch buffers, given as (step, bytes).

    Returns the arena's bytes, the scratch offsets, and the bytes that liveness alone demands (the most that is alive
    at one step): no placement can need less.
    """
    live = [b for b in blocks if b.kind == ARENA and b.nbytes]
    sizes = [_aligned(b.nbytes) for b in live] + [_aligned(n) for _, n in scratch]
    starts = [max(b.start, 0) for b in live] + [s for s, _ in scratch]
    ends = [b.end for b in live] + [s for s, _ in scratch]
    if not sizes:
        return 0, [], 0
    offsets = np.zeros(len(sizes), np.int64)
    total = best_fit(np.array(sizes, np.int64), np.array(starts, np.int64), np.array(ends, np.int64), offsets)
    for block, offset in zip(live, offsets, strict=False):
        block.offset = int(offset)
    demand = np.zeros(max(ends) + 2, np.int64)
    np.add.at(demand, starts, sizes)
    np.subtract.at(demand, np.array(ends) + 1, sizes)
    return total, [int(o) for o in offsets[len(live) :]], int(demand.cumsum().max())


def _aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGN) * ALIGN


__all__ = ["ALIGN", "ARENA", "CONST", "INPUT", "OUTPUT", "Block", "Storage", "assign"]
