"""What a session takes."""

from __future__ import annotations

from typing import Any


class Memory:
    """Bytes that a session takes.

    weights_mapped: constants used straight from the file's map (shared between processes); weights_copied: constants
    and packed weights in memory of their own; arena: of the largest plan; arenas: of all programs (one for each plan
    and each concurrent caller); scratch: the largest step's, part of the arena; lower_bound: what liveness alone
    demands of the largest plan's arena. buffers: the largest plan's arena over time.
    """

    __slots__ = ("arena", "arenas", "buffers", "lower_bound", "scratch", "steps", "weights_copied", "weights_mapped")

    def __init__(self, plans: list[Any], mapped: int, copied: int):
        self.weights_mapped = mapped
        self.weights_copied = copied
        largest = max((p.plan for p in plans), key=lambda plan: plan.arena_bytes, default=None)
        self.arena = largest.arena_bytes if largest else 0
        self.arenas = sum(p.plan.arena_bytes * p.made for p in plans)
        self.scratch = largest.scratch_bytes if largest else 0
        self.lower_bound = largest.lower_bound if largest else 0
        self.buffers = largest.buffers if largest else []
        self.steps = [s.call.node.label() for s in largest.steps] if largest else []

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        plain = ("weights_mapped", "weights_copied", "arena", "arenas", "scratch", "lower_bound")
        buffers = [
            {"tensors": b.names, "bytes": b.nbytes, "offset": b.offset, "start": b.start, "end": b.end}
            for b in self.buffers
        ]
        return {**{key: getattr(self, key) for key in plain}, "buffers": buffers}

    def __repr__(self) -> str:
        return (
            f"weights {self.weights_mapped:,} mapped + {self.weights_copied:,} copied, arena {self.arena:,} "
            f"(liveness demands {self.lower_bound:,}; scratch {self.scratch:,} of it)"
        )


__all__ = ["Memory"]
