"""The mixed scheme: each layer in the precision that the user's limits leave it, by its sensitivity and its cost.

found = mixed(model, data, options, settings, helpers, progress)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

from evort.graph import Model
from evort.session import Session
from evort_tools.common import Progress, tried_inputs
from evort_tools.passes import graphs_of
from evort_tools.quantization import improve, latency, placement, trials
from evort_tools.quantization.data import Calibration, open_calibration
from evort_tools.quantization.improve import Helpers
from evort_tools.quantization.latency import Profile
from evort_tools.quantization.limits import latency_limit, size_limit
from evort_tools.quantization.metric import Drop, Goal
from evort_tools.quantization.nested import has_nested
from evort_tools.quantization.options import PRECISIONS, Options
from evort_tools.quantization.placement import Costs
from evort_tools.quantization.precisions import layers_of, pins_of, static_int8, variants
from evort_tools.quantization.qdq import own_constants
from evort_tools.quantization.search import Candidate, Search, sensitivities
from evort_tools.quantization.select import PRODUCTS
from evort_tools.quantization.static import Calibrated, Settings

DEFAULT = "30dB"  # the drop where the user gives no limit at all
_SAMPLES = 16  # on which sensitivities are measured


NestedInt8 = Callable[[Model], tuple[Model, dict[str, str]]]


class Mixed:
    """A model in mixed precision. model: with the choice; real: the float model that it was made of; found: what
    calibration found for what is int8, None where nothing is; layers: rows for tables (`Search.rows`); helpers: those
    that were kept; profile: the times that were gone by, None without; us, us_float: predicted; goal, loss: what was
    held, and what is lost; notes: for the user; kept: {label: why} of products that have no other precision.
    kept: the same of those in nested graphs in int8."""

    def __init__(
        self, model: Model, real: Model, found: Calibrated | None, search: Search, best: Candidate,
        helpers: dict[str, float], kept: Mapping[str, str],
    ):  # fmt: skip
        self.model = model
        self.real = real
        self.found = found
        self.layers = search.rows(best.chosen)
        self.helpers = helpers
        self.profile: Profile | None = None if search.costs is None else search.costs.profile
        self.us, self.us_float = best.us, search.float_us
        self.goal, self.loss = search.goal, best.loss
        self.notes = search.notes
        integer = any(p == "int8" and not layer.timed for layer, p in zip(search.layers, best.chosen, strict=True))
        self.kept = {**_kept(search), **(kept if integer else {})}


def mixed(
    model: Model, data: Calibration, options: Options, settings: Settings, helpers: Helpers, progress: Progress,
    nested_int8: NestedInt8,
) -> Mixed:  # fmt: skip
    """Finds the precisions of a model's layers and applies them; the model given stays as it is. nested_int8: gives a
    model with its nested graphs in integers, and {label: why} of what stays in float there.

    Raises ValueError for limits that cannot be held, pins that fit nothing, and options that do not go together.
    """
    wanted = options.precisions
    model = own_constants(model)
    settings = replace(settings, exclude=())  # what is excluded is pinned to float32
    before = replace(helpers, adaround="off", bias="off")
    real, found, kept = model, None, {}
    if "int8" in wanted or any(pin.endswith("=int8") for pin in options.pin):
        real, found, kept = improve.quantize(model, data, settings, before, progress)
    step = progress("rounding weights", None)
    names = {*wanted, *(pin.rpartition("=")[2] for pin in options.pin)}
    models = variants(real, sorted(names), options, improve.Fitting(data))
    step()
    unmade: dict[str, str] = {}
    if "int8" in models and has_nested(real.graph):
        models["int8"], unmade = nested_int8(models["int8"])
    layers = layers_of(real, found, models)
    pins = pins_of(real.graph, layers, options.pin, options.exclude)
    costs = _costs(model, data, options, settings, models, progress)
    drop = options.max_drop
    if drop is None and options.max_size is None and options.max_latency is None:
        drop = DEFAULT
    samples, _ = improve.halves(data, min(_SAMPLES, trials.trial_count(model, data)))
    goal = Goal(model, options.metric, None if drop is None else Drop(drop), samples, options.threads)
    count = sum(len(layer.bytes) - 1 for layer in layers)
    by_metric = options.sensitivity == "metric"
    step = progress("finding out what layers bear", count)
    noise, losses = sensitivities(real, found, models, layers, goal, by_metric, step)
    search = Search(real, found, models, layers, noise, losses, costs, goal, pins, wanted)
    search.limit(
        math.inf if options.max_size is None else size_limit(options.max_size, search.float_bytes),
        math.inf if options.max_latency is None else latency_limit(options.max_latency, search.float_us),
    )
    best = search.run(progress)
    return _fitted(search, best, data, settings, helpers, kept, unmade, progress)


def measure_profile(
    model: Model, shapes: Mapping[str, tuple[int, ...]], threads: int | None, progress: Progress
) -> Profile:
    """Times the layers of a float model in all precisions that they have, on random inputs of these shapes: what
    `Options.profile` takes. Raises ValueError for shapes that do not fit."""
    feeds = tried_inputs(Session(model), dict(shapes))
    data = open_calibration([feeds], model.graph)
    models = variants(model, PRECISIONS, Options())
    return placement.costs_of(model, data, Settings(threads=threads), None, progress, models).profile


def _costs(
    model: Model, data: Calibration, options: Options, settings: Settings, models: Mapping[str, Model],
    progress: Progress,
) -> Costs | None:  # fmt: skip
    """What layers take, from the profile or measured; None where only the size counts."""
    if options.prefer == "size" and options.max_latency is None:
        return None
    given = latency.read(options.profile) if options.profile else None
    return placement.costs_of(model, data, settings, given, progress, models)


def _fitted(
    search: Search, best: Candidate, data: Calibration, settings: Settings, helpers: Helpers, kept: dict[str, float],
    unmade: Mapping[str, str], progress: Progress,
) -> Mixed:  # fmt: skip
    """The result, with the helpers that fit int8 layers' weights and biases where these lower the loss."""
    plain = Mixed(best.model, search.real, best.found, search, best, kept, unmade)
    if best.found is None or helpers.adaround == helpers.bias == "off":
        return plain
    ratios = search.found.ratios
    integer = static_int8(search.layers, best.chosen)
    floats = {n.outputs[0]: "" for n in search.found.selection.nodes if n.op in PRODUCTS}
    floats = {name: "" for name in floats if name not in integer}
    method = min(ratios, key=ratios.get) if ratios else settings.method
    how = replace(settings, method=method, floats=floats)
    after = replace(helpers, equalize="off", smooth="off", clip="off")
    real, found, more = improve.quantize(search.real, data, how, after, progress)
    if not more:
        return plain
    candidate = search.fitted(best.chosen, real, found)
    forced = "on" in (helpers.adaround, helpers.bias)
    if candidate.bytes > search.max_bytes or not (candidate.loss < best.loss or forced):
        return plain
    if not search.goal.holds(candidate.loss):
        return plain
    return Mixed(candidate.model, real, candidate.found, search, candidate, {**kept, **more}, unmade)


def _kept(search: Search) -> dict[str, str]:
    """{label: why} of the products that have no other precision than float32."""
    known = {out for layer in search.layers for out in layer.outputs}
    rest = [node for node in search.real.graph.nodes if node.outputs[0] not in known]
    rest += [inner for node in rest for sub in node.subgraphs() for g in graphs_of(sub) for inner in g.nodes]
    return {n.label(): "it has no other precision" for n in rest if n.op in PRODUCTS and not n.domain}
