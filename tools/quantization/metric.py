"""How much accuracy a model may lose: the user's own metric, or the error of the outputs on calibration samples.

A metric is a function of a file that the user names (`--metric my_metric.py:top1`), or any callable in Python:

    def top1(run):
        right = sum(run({"image": image})["logits"].argmax() == label for image, label in test_set())
        return right / len(test_set())

`run` takes {input: array} and returns {output: array}; it runs the float model once and then each model that is tried.
More is better: a metric of which less is better returns its negative. The file is the user's code, run as such because
they named it, with all that Python can do.
"""

from __future__ import annotations

import importlib.util
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from evort.graph import Model
from evort.session import Session
from evort_tools.quantization.compare import expected_outputs, output_errors, total_ratio

Run = Callable[[dict[str, Any]], dict[str, Any]]
Metric = Callable[[Run], float]


class Drop:
    """The most that may be lost. "0.5%": parts of what the float model reaches (without a metric, of the outputs'
    root mean square); "0.005": in the metric's own unit; "30dB": output SQNR, where there is no metric.

    Raises ValueError for other text, and for a negative number.
    """

    def __init__(self, text: str | float):
        found = re.fullmatch(r"\s*([0-9]*\.?[0-9]+(?:e-?[0-9]+)?)\s*(%|db)?\s*", str(text).lower())
        if found is None:
            raise ValueError(f"max_drop: {text!r} is no drop; write it like 0.5%, 0.005 or, without a metric, 30dB")
        self.number = float(found[1])
        self.unit = found[2] or ""
        if self.unit == "%":
            self.number /= 100


class Goal:
    """What quantized models are held against.

    limit: the most loss; inf for none. base: what the float model reaches. `loss` is in the metric's unit, or without
    one the error of the outputs on `samples` in parts of their root mean square.
    """

    def __init__(
        self,
        model: Model,
        metric: str | Metric | None,
        drop: Drop | None,
        samples: Sequence[Mapping[str, np.ndarray]],
        threads: int | None = None,
    ):
        self.metric = load(metric) if isinstance(metric, str | os.PathLike) else metric
        self._samples = samples
        self._expected = expected_outputs(model, samples, threads)
        self._threads = threads
        self.base = 0.0 if self.metric is None else self._measured(model)
        self.limit = math.inf
        if drop is not None and drop.unit == "db":
            if self.metric is not None:
                raise ValueError("max_drop in dB is of the outputs' SQNR: leave --metric out, or give it like 0.5%")
            self.limit = 10 ** (-drop.number / 20)
        elif drop is not None:
            relative = drop.unit == "%" and self.metric is not None
            self.limit = drop.number * abs(self.base) if relative else drop.number

    def ratio(self, model: Model) -> float:
        """Noise over signal of a model's outputs on the samples."""
        return total_ratio(output_errors(model, self._samples, self._expected, self._threads))

    def loss(self, model: Model) -> float:
        """What a model loses against the float one."""
        return math.sqrt(self.ratio(model)) if self.metric is None else self.base - self._measured(model)

    def holds(self, loss: float) -> bool:
        """Whether a loss is within the limit, to the rounding of float64."""
        return loss <= self.limit + 1e-12 * abs(self.base)

    def text(self, loss: float) -> str:
        """A loss in words."""
        if self.metric is None:
            return "no error" if not loss else f"{100 * loss:.3g} % of the outputs ({-20 * math.log10(loss):.1f} dB)"
        return f"{loss:.6g} of the metric's {self.base:.6g}"

    def _measured(self, model: Model) -> float:
        session = Session(model, threads=self._threads)
        try:
            value = float(self.metric(session.run))
        except Exception as error:
            raise ValueError(f"the metric failed: {type(error).__name__}: {error}") from error
        if not math.isfinite(value):
            raise ValueError(f"the metric gave {value}; it has to return a finite number, more for better")
        return value


def load(text: str | os.PathLike[str]) -> Metric:
    """The function that "FILE.py:function" names. Runs the file. Raises ValueError for what it does not hold, OSError
    where there is no such file."""
    path, _, name = os.fspath(text).rpartition(":")
    if not path or not name.isidentifier():
        raise ValueError(f"metric: {text!r} should be a file and a function in it, like my_metric.py:top1")
    if not os.path.isfile(path):
        raise FileNotFoundError(f"metric: {path}: there is no such file")
    spec = importlib.util.spec_from_file_location("evort_metric", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"metric: {path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ValueError(f"metric: {path} failed: {type(error).__name__}: {error}") from error
    function = getattr(module, name, None)
    if not callable(function):
        known = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        raise ValueError(f"metric: {path} has no function {name!r}; it has {', '.join(known) or 'none'}")
    return function
