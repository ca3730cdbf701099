"""Quantized models that follow a stream, whose ranges drift with light, gain or wear.

    session = evort.load("camera.int8.etm", adaptive=True)
    for frame in camera:
        result = session(frame)          # ranges follow; precision rises where a frame is difficult

    options ->  AdaptiveSession  --has-->  Stream  --has-->  Lane (one per level and input shapes)
                 tensors.py: which scales        stream.py: state, control      a program with scales of its own
                 levels.py: other precisions

- **Ranges.** Kernels note the smallest and largest real result before they cut it off, as they finish each tile
  (`ev_call.range`); a moving average with hysteresis and outlier rejection (`_kernels/follow.pyx`) decides when the
  scale of a tensor changes. Between two runs its scale, its zero point and the biases that depend on them are written
  anew; weights never change. A float input of the model is read once for its range.
- **Precision.** The file names levels (metadata `adaptive`, written by `evort quantize --adaptive`): which tensors are
  int16 in place of int8, and which layers compute in float32. All levels share the file's weights. A run that was cut
  off too much is repeated at the next level, within the latency budget.
- **State** is a stream's own: a few numbers for each tensor; `Stream.state()`, `restore`, `reset`.
"""

from evort.adaptive.session import AdaptiveSession
from evort.adaptive.stream import Adaptive, Stream

__all__ = ["Adaptive", "AdaptiveSession", "Stream"]
