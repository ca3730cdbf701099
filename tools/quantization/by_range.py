"""Layers beside the static scheme's integers that have the dynamic scheme's form: they read and give float32.

An embedding's rows are widened as they are gathered. An LSTM or GRU goes through its own state again and again, whose
range is best seen as it runs; in attention each query, key and column of values has a range of its own. A product
between operators in float quantizes what it reads in any case: with the range of the run at hand nothing is cut off
that calibration has not seen, and where values seldom reach far, steps are finer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from fnmatch import fnmatchcase

import numpy as np

from evort.graph import Graph, Model, Node
from evort.types import BITS, DType
from evort_tools.quantization.auto import Probe
from evort_tools.quantization.capture import Capture, specs_of
from evort_tools.quantization.compare import Error
from evort_tools.quantization.data import Sample
from evort_tools.quantization.dynamic import DynamicOptions, dynamic
from evort_tools.quantization.encodings import Encoding
from evort_tools.quantization.improve import restored
from evort_tools.quantization.integers import integer_model
from evort_tools.quantization.metric import Goal
from evort_tools.quantization.placement import Costs, faster_alone
from evort_tools.quantization.select import is_product
from evort_tools.quantization.static import Calibrated, restricted
from evort_tools.quantization.trials import Judge
from evort_tools.quantization.widen import multiply_adds

BY_RANGE = frozenset({"Attention", "Gather", "LSTM", "GRU"})
# Multiply-adds, in all and for each number that is read, from which finding the range costs next to nothing.
_LEAST_WORK, _LEAST_USE = 1 << 18, 64
# The noise that products by range may have over that of calibrated ranges, which cut off what calibration has not seen.
_CLEARLY = 1.1
UNDONE = "the model would lose more than it may"


def is_by_range(node: Node) -> bool:
    """Whether a node is an embedding, a recurrent layer or attention, as far as its operator tells."""
    return node.op in BY_RANGE and not node.domain


def layers_by_range(graph: Graph) -> list[Node]:
    """The layers of this kind of a graph, nested ones left out: their weights, where they have any, are constants, and
    finite."""

    def fits(name: str) -> bool:
        tensor = graph.tensors.get(name)
        floats = tensor is not None and tensor.data is not None and tensor.dtype == DType.FLOAT
        return floats and bool(np.isfinite(tensor.data).all())

    def weights(node: Node) -> list[str]:
        return [] if node.op == "Attention" else node.inputs[:1] if node.op == "Gather" else node.inputs[1:3]

    return [node for node in graph.nodes if is_by_range(node) and all(map(fits, weights(node)))]


def products_by_range(
    model: Model, found: Calibrated, judge: Judge, threads: int | None = None, skip: Collection[str] = ()
) -> list[str]:
    """The first outputs of the products that read and give float32 among what is in integers, and whose results on the
    judge's samples are at least as good with the range of each run as with the calibrated one. None, where the whole
    model's outputs are clearly closer with calibrated ranges, for which weights and biases of `model` were fitted, to
    those of the judge's, the float model before that. skip: the first outputs of products that are left as they are."""
    products = [name for name in _good_alone(model, found, judge.samples, threads) if name not in skip]
    if not products:
        return products

    def noise(chosen: list[str]) -> float:
        rest = restricted(found, dict.fromkeys(chosen, ""))
        made, _ = integer_model(restored(model, rest), rest)
        return judge.of_integers(in_integers(made, "off", (), chosen))

    return products if noise(products) <= _CLEARLY * noise([]) else []


def _good_alone(model: Model, found: Calibrated, samples: Sequence[Sample], threads: int | None) -> list[str]:
    """The products whose own results are no worse."""
    selection = found.selection
    writer, probes = selection.writer, dict[str, Probe]()
    weights = {name: found.encodings[name] for name in selection.weights}
    macs = multiply_adds(model, samples[0])
    sizes = {name: spec.size for name, spec in specs_of(model.graph, samples[0]).items()}
    known = {node.outputs[0] for node in _dynamic(model, is_product).graph.nodes if node.domain}
    for node in filter(is_product, selection.nodes):
        x, y = node.inputs[0], node.outputs[0]
        inner = (writer.get(x), *selection.readers.get(y, ()))
        if y not in known or node.inputs[1] not in selection.weights:
            continue
        if any(other is not None and selection.integer(other) for other in inner) or BITS[found.encodings[x].dtype] > 8:
            continue
        if macs.get(y, 0) < max(_LEAST_WORK, _LEAST_USE * sizes.get(x, math.inf)):
            continue
        probes[y] = Probe(model, selection, node, weights, threads)
    errors = _errors(model, found, probes, samples, threads)
    return [y for y, (calibrated, of_run) in errors.items() if of_run.ratio <= calibrated.ratio]


def _errors(
    model: Model, found: Calibrated, probes: Mapping[str, Probe], samples: Sequence[Sample], threads: int | None
) -> dict[str, tuple[Error, Error]]:
    """The errors of products' results with their calibrated ranges, and with those of each sample."""
    errors = {name: (Error(), Error()) for name in probes}
    names, groups = list(probes), [probe.inputs for probe in probes.values()]
    capture = Capture(model, (name for group in groups for name in group), threads)
    for number, feeds in enumerate(samples if probes else ()):
        for place, values in capture.together(feeds, groups):
            name, probe = names[place], probes[names[place]]
            x = values[probe.x]
            own = Encoding.of_range(min(0.0, x.min()), max(0.0, x.max()), DType.UINT8)
            given = probe.window(values, number)
            expected = probe.run(given)
            for error, encoding in zip(errors[name], (found.encodings[probe.x], own), strict=True):
                error.add(expected, probe.run({**given, probe.x: encoding.fake(given[probe.x])}))
    return errors


def _dynamic(model: Model, wanted: Callable[[Node], bool], attention: str = "off") -> Model:
    """A copy of a model with the dynamic scheme's form of the nodes wanted."""
    names = {node.name or node.outputs[0] for node in model.graph.nodes if wanted(node)}
    options = DynamicOptions(skip=lambda name: name not in names, attention=attention)
    return dynamic(model, options, nested=False)


def in_integers(model: Model, attention: str, skip: Collection[str] = (), products: Collection[str] = ()) -> Model:
    """A copy of a model with integers in all layers of this kind that have such a form. attention: as in
    `DynamicOptions`. skip, products: the first outputs of layers to leave, and of products to take, too."""
    known = {node.outputs[0] for node in layers_by_range(model.graph)}.difference(skip).union(products)
    return _dynamic(model, lambda node: node.outputs[0] in known, attention)


def converted(
    model: Model,
    exclude: Collection[str],
    costs: Costs | None,
    goal: Goal | None,
    attention: str,
    products: Collection[str] = (),
) -> tuple[Model, list[dict[str, object]], dict[str, str]]:
    """A model whose layers of this kind are integers; what changed ({name, operator} of each), and {label: why} of what
    stays in float.

    exclude: names and patterns of nodes that are left alone. costs: where they are given, what is slower so stays in
    float. goal: what the model made must hold, where there is one; else all stay in float. products: the first outputs
    of products that are to take the range of each run. attention: as in `DynamicOptions`.
    """
    kept: dict[str, str] = {}
    skipped: set[str] = set()
    layers = layers_by_range(model.graph)
    for node in layers:
        forced = node.op == "Attention" and attention == "on"
        why = "" if costs is None or forced else faster_alone(costs, node)
        if any(fnmatchcase(text, p) for p in exclude for text in (node.name, node.op, *node.outputs) if text):
            why = "excluded"
        if node.op == "Attention" and attention == "off":
            why = "attention is off"
        if why:
            kept[node.label()] = why
            skipped.add(node.outputs[0])
    layers += [node for node in model.graph.nodes if node.outputs[0] in products]
    made = in_integers(model, attention, skipped, products)
    left = _unchanged(layers, made)
    changed = [node for node in layers if id(node) not in left]
    if changed and goal is not None and not goal.holds(goal.loss(made)):
        return model, [], {**kept, **{node.label(): UNDONE for node in changed}}
    kept |= {n.label(): "it has no integer form" for n in layers if id(n) in left and n.label() not in kept}
    return made, [{"name": n.name or n.outputs[0], "operator": n.op} for n in changed], kept


def _unchanged(layers: list[Node], made: Model) -> set[int]:
    now = {tuple(node.outputs): node.op for node in made.graph.nodes}
    return {id(node) for node in layers if now[tuple(node.outputs)] == node.op}
