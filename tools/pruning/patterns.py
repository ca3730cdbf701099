"""Patterns of zeros, and the masks that make them.

A weight is seen as a matrix [rows, columns]: output channels (columns of a Gemm's B) by everything that is added up for
one of them. "4x1" are blocks of 4 rows and one column.
"""

from __future__ import annotations

import re

import numpy as np

from evort.sparse import LARGEST

WHOLE = ("channels", "groups")


class Pattern:
    """What is zero together.

    kind: "n:m" (of every m consecutive weights of a row, n stay), "block", or "channels" and "groups": whole output
    channels, by themselves or `block[0]` neighbours together, which are removed from the graph.
    """

    __slots__ = ("block", "kind")

    def __init__(self, kind: str, block: tuple[int, int]):
        self.kind = kind
        self.block = block

    @classmethod
    def parse(cls, text: str) -> Pattern:
        """From "2:4", "4x1", "channels", "groups" or "groups:16". Raises ValueError."""
        if text == "channels":
            return cls(text, (1, 0))
        found = re.fullmatch(r"groups(?::([0-9]+))?", text)
        if found:
            size = int(found[1] or 8)
            if size < 1:
                raise ValueError("groups of no channel")
            return cls("groups", (size, 0))
        found = re.fullmatch(r"([0-9]+)([:x])([0-9]+)", text)
        if found is None:
            raise ValueError(
                f"{text!r} is no pattern: write it like 2:4, 1:4, 4x1, 8x1, 16x1, 1x4, channels or groups:8"
            )
        a, b = int(found[1]), int(found[3])
        if not (1 <= a <= LARGEST and 1 <= b <= LARGEST) or (found[2] == ":" and a >= b):
            raise ValueError(f"{text}: both numbers must be from 1 to {LARGEST}, and n less than m")
        return cls("n:m" if found[2] == ":" else "block", (a, b))

    @property
    def whole(self) -> bool:
        """Whether channels are removed, rather than zeros stored."""
        return self.kind in WHOLE

    def target(self, sparsity: float | None) -> float:
        """The share of zeros to reach. Raises ValueError where the pattern does not allow it."""
        if self.kind == "n:m":
            share = 1 - self.block[0] / self.block[1]
            if sparsity is not None and abs(sparsity - share) > 1e-6:
                raise ValueError(f"{self} has a sparsity of {share:g}; leave --sparsity out")
            return share
        sparsity = 0.5 if sparsity is None and self.whole else 0.75 if sparsity is None else sparsity
        if not 0 <= sparsity < 1:
            raise ValueError(f"a sparsity of {sparsity:g} is not from 0 to less than 1")
        return sparsity

    def mask(self, saliency: np.ndarray, share: float) -> np.ndarray:
        """Which weights stay (bool, of saliency's shape [rows, columns]), where `share` of them are to be zero; those
        go whose mean saliency over a block is least."""
        rows, columns = saliency.shape
        r, c = self.block if self.kind == "block" else (1, self.block[1])
        full = np.zeros((-(-rows // r) * r, -(-columns // c) * c), np.float64)
        full[:rows, :columns] = saliency
        blocks = full.reshape(full.shape[0] // r, r, full.shape[1] // c, c)
        if self.kind == "block":
            inside = np.zeros_like(full)
            inside[:rows, :columns] = 1
            # The mean, so that blocks at the edge are not at a disadvantage.
            keep = _best(blocks.sum(axis=(1, 3)) / inside.reshape(blocks.shape).sum(axis=(1, 3)), share)
            mask = np.broadcast_to(keep[:, None, :, None], blocks.shape)
        else:
            # Groups are cut to n one after another, those first that lose least, until the share is reached.
            n, m = self.block
            rank = np.argsort(np.argsort(-blocks, axis=3, kind="stable"), axis=3)
            loss = np.where(rank < n, 0, blocks).sum(axis=(1, 3))
            mask = (rank < n) | _best(loss, share / (1 - n / m))[:, None, :, None]
        return mask.reshape(full.shape)[:rows, :columns]

    def __str__(self) -> str:
        if self.kind == "channels":
            return self.kind
        if self.kind == "groups":
            return f"groups:{self.block[0]}"
        return (":" if self.kind == "n:m" else "x").join(map(str, self.block))


def _best(scores: np.ndarray, share: float) -> np.ndarray:
    """All but the `share` of items with the least scores; of equal ones the later go."""
    count = round(share * scores.size)
    keep = np.ones(scores.size, bool)
    order = np.lexsort((-np.arange(scores.size), scores.reshape(-1)))
    keep[order[:count]] = False
    return keep.reshape(scores.shape)


__all__ = ["WHOLE", "Pattern"]
