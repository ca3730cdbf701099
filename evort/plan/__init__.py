"""Planning: which steps run, where each tensor lives, and what the arena must hold.

    Stage (nodes)  --trace-->  calls with concrete shapes  --storage-->  buffers and offsets  -->  Plan

A plan is made for concrete input shapes. Where a shape depends on a value that only running gives, the plan ends
there: a stage's `next` is planned when the value is known (see `evort.plan.trace`).
"""

from evort.plan.plan import Buffer, Plan, Step, build
from evort.plan.trace import Stage, Trace, trace

__all__ = ["Buffer", "Plan", "Stage", "Step", "Trace", "build", "trace"]
