"""Golden data: inputs kept in a file with the outputs that they must give, which prove an installation."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from evort.errors import ConversionError, InputError
from evort.graph import Golden, Model
from evort.ops.base import find
from evort.session import Session
from evort.types import FLOAT8, STORAGE, DType
from evort_tools.passes import graphs_of

_WIDENED = FLOAT8 | {DType.BFLOAT16, DType.FLOAT4E2M1}


def record(model: Model, arrays: Mapping[str, np.ndarray], tolerance: float) -> Golden:
    """Golden data for a model.

    arrays: each input, and those outputs that are known from elsewhere (such as the framework that the model was
    trained with); the other outputs come from the NumPy meaning of the operators. Raises InputError for arrays that
    do not fit, ConversionError where a result cannot be repeated, or where evort's kernels miss the tolerance.
    """
    if not (np.isfinite(tolerance) and tolerance >= 0):
        raise InputError(f"a tolerance is finite and not negative, not {tolerance}")
    problems = [
        f"{node.label()} draws random numbers without a seed, so its results cannot be golden"
        for graph in graphs_of(model.graph)
        for node in graph.nodes
        if not find(node.op, node.domain).deterministic and "seed" not in node.attrs
    ]
    problems += [
        f"{name!r} is no tensor, so it cannot be golden"
        for name in model.graph.inputs + model.graph.outputs
        if name in model.graph.tensors and model.graph.tensors[name].dtype not in STORAGE
    ]
    if problems:
        raise ConversionError(problems)
    reference = Session(model, threads=1, device="reference")
    names = [v.name for v in reference.outputs]
    feeds = {name: array for name, array in arrays.items() if name not in names or name in model.graph.inputs}
    given = {name: arrays[name] for name in names if name in arrays and name not in feeds}
    expected = reference.run(feeds) if len(given) < len(set(names)) else {}
    session = Session(model, threads=1)
    results = session.run(feeds)
    inputs = {v.name: np.ascontiguousarray(feeds[v.name], STORAGE[v.dtype]) for v in session.inputs}
    golden = Golden(inputs, {name: given.get(name, expected.get(name)) for name in names}, tolerance)
    problems = [
        f"output {name!r} is wrong by {error:.3g} of its largest magnitude, {tolerance:.3g} are allowed: "
        + ("the expected output is not this model's" if name in given else "give a larger --tolerance")
        for name, error in errors(session, golden, results).items()
        if not error <= tolerance
    ]
    if problems:
        raise ConversionError(problems)
    return golden


def errors(session: Session, golden: Golden, results: Mapping[str, np.ndarray]) -> dict[str, float]:
    """For each output of the session how far it is from the expected one: the largest absolute difference over the
    largest finite expected magnitude for floats; for other types 0 where they are equal. Infinity for another shape or
    type, and where NaN or infinity do not meet their like."""
    return {v.name: _error(results[v.name], golden.outputs[v.name], v.dtype) for v in session.outputs}


def _error(got: np.ndarray, want: np.ndarray, dtype: DType) -> float:
    if got.shape != want.shape or got.dtype != want.dtype:
        return np.inf
    if dtype in _WIDENED:
        from evort.ops.lowp import widen

        got, want = widen(got, dtype), widen(want, dtype)
    if got.dtype.kind not in "fc":
        return 0.0 if np.array_equal(got, want) else np.inf
    wide = np.complex128 if got.dtype.kind == "c" else np.float64
    got, want = got.astype(wide), want.astype(wide)
    finite = np.isfinite(want)
    if not np.array_equal(got[~finite], want[~finite], equal_nan=True) or not np.isfinite(got[finite]).all():
        return np.inf
    magnitude = np.abs(want[finite]).max(initial=0.0)
    return float(np.abs(got[finite] - want[finite]).max(initial=0.0) / (magnitude or 1.0))
