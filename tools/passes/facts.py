"""What inference knows of one tensor, and the sizes that it samples symbolic dimensions with."""

from __future__ import annotations

from typing import Any

import numpy as np

from evort.types import DType, Spec

_ODD = (3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79, 83, 89, 97, 101, 103, 107, 109,
        113, 127, 131, 137, 139, 149, 151, 157, 163, 167, 173, 179, 181, 191, 193, 197, 199, 211, 223)  # fmt: skip
# Sizes in one sample: (factor, where in _ODD the first symbol's multiplier is). The last sample is all ones: the only
# size that some models allow a dimension that they call symbolic.
_SAMPLES = ((32, 0), (32, 4), (16, 2), (8, 5), (4, 9), (2, 14), (1, 20), (0, 0))
SAMPLES = len(_SAMPLES)
ALL = tuple(range(SAMPLES))


def sizes(index: int) -> list[int]:
    """The sizes of the model's index-th symbol, one for each sample; no two symbols have the same in a sample."""
    return [factor * _odd(start + index) if factor else 1 for factor, start in _SAMPLES]


def _odd(index: int) -> int:
    return _ODD[index] if index < len(_ODD) else _ODD[-1] + 2 * (index - len(_ODD) + 1)


class Fact:
    """What is known of one tensor.

    shapes, values: one item for each sample, or a single one where all are alike; None where unknown. opaque_shape,
    opaque_value: nothing may be concluded from samples that agree. natural: no element of its value is negative.
    live: the samples in which no rule has failed on the way to it.
    """

    __slots__ = ("dtype", "live", "natural", "opaque_shape", "opaque_value", "shapes", "values")

    def __init__(self, dtype: DType | None, shapes: list[Any] | None = None, values: list[Any] | None = None):
        self.dtype = dtype
        self.shapes = shapes
        self.values = values
        self.opaque_shape = False
        self.opaque_value = False
        self.natural = False
        self.live = ALL

    def varies(self) -> bool:
        """Whether its shape or value may differ from sample to sample."""
        return self.shapes is None or len(self.shapes) > 1 or (self.values is not None and len(self.values) > 1)

    def shape(self, sample: int) -> tuple[int, ...]:
        return self.shapes[sample if len(self.shapes) > 1 else 0]

    def value(self, sample: int) -> np.ndarray | None:
        return None if self.values is None else self.values[sample if len(self.values) > 1 else 0]

    def spec(self, sample: int) -> Spec:
        return Spec(self.dtype, self.shape(sample), self.value(sample))
