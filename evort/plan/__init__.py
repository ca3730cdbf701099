"""Planning: which steps run, where each tensor lives, and what the arena must hold.

    Stage (nodes)  --trace-->  calls with concrete shapes  --storage-->  buffers and offsets  -->  Plan

A plan is made for concrete input shapes. Where a shape depends on a value that only running gives, the plan ends
there: a stage's `next` is planned when the value is known (see `_trace.pxi`; `_storage.pxi` is about memory).
"""

from evort.plan._planner import Bound, Buffer, Plan, Stage, Step, best_fit, build, constant_specs

__all__ = ["Bound", "Buffer", "Plan", "Stage", "Step", "best_fit", "build", "constant_specs"]
