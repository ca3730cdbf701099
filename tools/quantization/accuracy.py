"""Accuracy-aware static quantization: the worst layers are undone, made float again, until the target holds.

Layers are ordered by the error that each causes alone in the model's outputs. How many of the worst have to go is found
by doubling and then halving, so that the metric is measured a few times, not once for each layer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from evort.graph import Model
from evort_tools.common import Progress
from evort_tools.quantization import static
from evort_tools.quantization.improve import restored
from evort_tools.quantization.integers import integer_model
from evort_tools.quantization.metric import Goal
from evort_tools.quantization.placement import Costs, slower_in_integers
from evort_tools.quantization.qdq import fake_quantized
from evort_tools.quantization.select import PRODUCTS
from evort_tools.quantization.static import Calibrated


def alone(real: Model, found: Calibrated, layers: list[str], goal: Goal, step: Callable[[], None]) -> dict[str, float]:
    """{first output of a product: noise over signal of the model's outputs with this layer alone in integers}."""
    ratios = {}
    for layer in layers:
        others = {name: "" for name in layers if name != layer}
        ratios[layer] = goal.ratio(fake_quantized(real, static.restricted(found, others).encodings))
        step()
    return ratios


def undo(
    real: Model, found: Calibrated, goal: Goal, costs: Costs | None, progress: Progress
) -> tuple[Model, Model, Calibrated, float]:
    """Makes as few layers float as the goal needs.

    costs: what layers cost, so that those that are then slower beside them go to float, too. Returns (the integer
    model, the float model that it is made of, what calibration found for what is in integers, the loss).
    """
    model, left = integer_model(real, found)
    loss = goal.loss(model)
    if goal.holds(loss):
        return model, real, left, loss
    layers = [node.outputs[0] for node in found.selection.nodes if node.op in PRODUCTS]
    ratios = alone(real, found, layers, goal, progress("finding the worst layers", len(layers)))
    worst = sorted(layers, key=lambda layer: -ratios[layer])
    step = progress("undoing the worst layers", None)

    def attempt(count: int) -> tuple[Model, Model, Calibrated, float]:
        floats: Mapping[str, str] = dict.fromkeys(worst[:count], f"undone: {goal.text(loss)} was lost")
        if costs is not None:
            kept = {n.outputs[0] for n in found.selection.nodes}
            given = {n.outputs[0]: "" for n in costs.selection.nodes if n.outputs[0] not in kept}
            floats = {n: w for n, w in slower_in_integers(costs, {**given, **floats}).items() if n not in given}
        chosen = static.restricted(found, floats)
        own = restored(real, chosen)
        made, chosen = integer_model(own, chosen)
        step()
        return made, own, chosen, goal.loss(made)

    fails, holds = 0, 1
    best = attempt(holds)
    while not goal.holds(best[3]) and holds < len(worst):
        fails, holds = holds, min(2 * holds, len(worst))
        best = attempt(holds)
    while holds - fails > 1:
        middle = (fails + holds) // 2
        tried = attempt(middle)
        if goal.holds(tried[3]):
            best, holds = tried, middle
        else:
            fails = middle
    if not goal.holds(best[3]):
        raise ValueError(
            f"max_drop: the limit is {goal.text(goal.limit)}, but even with all layers in float the loss is "
            f"{goal.text(best[3])}: is the metric the same from run to run?"
        )
    return best
