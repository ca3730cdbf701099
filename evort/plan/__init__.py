"""Planning: which steps run, where each tensor lives, and what the arena must hold.

    Stage (nodes)  --trace-->  calls with concrete shapes  --storage-->  buffers and offsets  -->  Plan

A plan is made for concrete input shapes. Where a shape depends on a value that only running gives, the plan ends
there: a stage's `next` is planned when the value is known (see `_trace.pxi`; `_storage.pxi` is about memory).
"""

from evort._kernels import SHARED_OBJECT

__path__ += SHARED_OBJECT  # for _planner

from evort.plan._planner import Bound, Buffer, Plan, Stage, Step, best_fit, build, constant_specs  # noqa: E402

__all__ = ["Bound", "Buffer", "Plan", "Stage", "Step", "best_fit", "build", "constant_specs"]
