"""Which layers are faster in integers, and which stay in float for being slower: int8 must never make a model slower.

A layer alone does not tell: between two layers in float an integer one also quantizes what it reads, and what it gives
is float32 again. So nodes and the tensors between them are assigned together, at the least sum of

    node in float, node in integers           its time
    integer node with a float operand         what quantizing that costs it
    integer node that gives float32           what that costs it
    product in float                          what its weights take more room, at an exchange rate of bytes to time

A tensor is stored as integers only where who writes it and all who read it are in integers; light operators are in
integers only between others that are. All terms are of two variables and none gains where these differ, so the best
assignment is a minimum cut, found exactly. (Only that a light operator with several readers needs one in integers is no
term of two variables, and left out.)
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection, Hashable, Iterable, Mapping
from dataclasses import replace

from evort.graph import Model, Node
from evort_tools.common import Progress
from evort_tools.quantization import reduced, static
from evort_tools.quantization.data import Calibration, Sample, open_calibration
from evort_tools.quantization.integers import integer_model
from evort_tools.quantization.latency import BESIDE, Profile, measure, ratio
from evort_tools.quantization.qdq import total_bytes
from evort_tools.quantization.select import PRODUCTS, Selection, Z, is_table, moves, operand
from evort_tools.quantization.static import Settings

# Integers are preferred, for being smaller, where a layer takes at most this much longer; times scatter, too.
_TIE = 1.1
# What a share of the float model's weights is worth, in parts of the same share of its time: a layer that has a tenth
# of the weights stays in float where that wins more than a fortieth of the time.
_ROOM = 0.25
_CONFIRM = 4  # times that what was chosen is measured as a whole
_SCATTER = 1.03  # of such a measurement
WHOLE = "whole range"  # of weights, where those in int8 have a reduced one
# What a light operator spends on a side in float, in parts of its time, where that was not measured.
_SIDE = 0.25
# Light operators whose integer form reads nothing but integers.
_INTEGERS_ONLY = frozenset({"AveragePool", "GlobalAveragePool", "ReduceMean", "Resize", "Softmax"})

Key = Hashable


class Costs:
    """Microseconds of the nodes of a graph in float and in integers, and of what integers pay at sides in float.

    selection: all that can run in integers. The sides of a node are those of its tensors that are stored as integers
    when all of the selection is; what it pays at others is in its time already. factor: that integers take more than
    was measured layer by layer. room: what a share of the weights is worth, in parts of the same share of the time.
    """

    def __init__(self, selection: Selection, profile: Profile, factor: float = 1.0, room: float = 0.0):
        self.selection = selection
        self.profile = profile
        self.factor = factor
        self._per_byte = room * profile.total() / max(1, total_bytes(selection.graph))
        self.stored = _stored(selection)
        self._side: dict[str, float] = {}
        for node in selection.nodes:
            sides = [*self.reads(node), *(o for o in node.outputs if o in self.stored)]
            whole = self.integer(node)
            beside = factor * profile.of(node.outputs[0], BESIDE)
            extra = max(0.0, beside - whole) if math.isfinite(beside) else _SIDE * whole * len(sides)
            self._side[node.outputs[0]] = extra / len(sides) if sides and math.isfinite(extra) else 0.0

    def real(self, node: Node) -> float:
        """In float."""
        return self.profile.of(node.outputs[0], "float32")

    def integer(self, node: Node) -> float:
        """In integers; infinite where there is no such kernel."""
        return self.factor * self.profile.of(node.outputs[0], "int8")

    def room(self, node: Node) -> float:
        """What the bytes are worth that a node's constants take more in float32 than as int8."""
        constants = (self.selection.graph.constant(name) for name in node.inputs)
        return self._per_byte * 3 * sum(w.size for w in constants if w is not None and w.ndim > 1)

    def side(self, node: Node) -> float:
        """What an integer node pays for an operand or a result in float."""
        return self._side[node.outputs[0]]

    def reads(self, node: Node) -> list[str]:
        """The tensors that a node reads as integers when all are in integers; a residual costs no more in float."""
        z = operand(node, Z) if node.op in PRODUCTS else ""
        return [n for n in self.selection.data_inputs(node) if n in self.stored and n != z]

    def total(self, selection: Selection) -> float:
        """Microseconds of the model with the nodes of `selection`, a part of this one, in integers."""
        stored = _stored(selection)
        spent = 0.0
        for node in selection.graph.nodes:
            if not selection.integer(node):
                spent += self.real(node)
                continue
            sides = [*self.reads(node), *(o for o in node.outputs if o in self.stored)]
            spent += self.integer(node) + self.side(node) * sum(name not in stored for name in sides)
        return spent


def _stored(selection: Selection) -> set[str]:
    """The tensors that are stored as integers: those whose writer and readers are all in integers."""
    return {
        name
        for name in selection.activations
        if name in selection.writer
        and selection.integer(selection.writer[name])
        and name not in selection.graph.outputs
        and all(selection.integer(reader) for reader in selection.readers[name])
    }


def slower_in_integers(costs: Costs, floats: Mapping[str, str] | None = None) -> dict[str, str]:
    """{first output of a node: why it stays in float}, so that the model takes the least time and room, and no more
    time than in float. Between equals, and where the difference is in the noise of measuring, integers are taken.
    floats: what is in float for other reasons, which are among the result."""
    given = floats or {}
    all_real = sum(costs.real(node) for node in costs.selection.graph.nodes)
    for tie, room in ((_TIE, 1.0), (_TIE, 0.0), (1.0, 0.0)):
        found = _float_nodes(costs, tie, room, given)
        if costs.total(costs.selection.without(dict.fromkeys(found, ""))) <= all_real:
            break
    why = dict(given)
    for node in costs.selection.nodes:
        if node.outputs[0] in found and node.outputs[0] not in given:
            why[node.outputs[0]] = slower_than(costs.real(node), costs.integer(node))
    return why


def slower_than(real: float, integer: float) -> str:
    """Why a layer stays in float, by its microseconds so and in integers."""
    beside = "" if integer > real else ", and more beside layers in float"
    times = f"{integer:.1f} µs in integers" if math.isfinite(integer) else "no integer kernel"
    return f"faster in float: {real:.1f} µs; {times}{beside}"


def faster_alone(costs: Costs, node: Node) -> str:
    """Why a node that reads and gives float32 either way stays in float; "" where it does not."""
    real, integer = costs.real(node), costs.profile.of(node.outputs[0], "int8")
    return slower_than(real, integer) if integer / _TIE > real + costs.room(node) else ""


def costs_of(
    model: Model,
    data: Calibration,
    settings: Settings,
    profile: Profile | None,
    progress: Progress,
    others: Mapping[str, Model] | None = None,
) -> Costs:
    """What the layers of a model cost, by a profile or as measured here, on the first sample. others: models of other
    precisions to measure, too. Raises ValueError for another model's profile."""
    return _costs(model, *_calibrated(model, data, settings), settings, profile, progress, others)


def _calibrated(model: Model, data: Calibration, settings: Settings) -> tuple[Sample, static.Calibrated]:
    """The first sample, and ranges from it: times do not depend on them."""
    samples = data.head(1)
    return samples[0], static.calibrate(
        model, open_calibration(samples, model.graph), replace(settings, method="minmax")
    )


def _costs(
    model: Model,
    sample: Sample,
    found: static.Calibrated,
    settings: Settings,
    profile: Profile | None,
    progress: Progress,
    others: Mapping[str, Model] | None,
) -> Costs:
    if profile is None:
        makers = {f"{name}/alone": lambda made=made: made for name, made in (others or {}).items()}
        profile = measure(model, found, sample, settings.threads, makers, progress, settings.isas)
    profile.require(node.outputs[0] for node in model.graph.nodes)
    return Costs(found.selection, profile, room=_ROOM)


def decide(
    model: Model,
    data: Calibration,
    settings: Settings,
    profile: Profile | None,
    progress: Progress,
    others: Mapping[str, Model] | None = None,
    reduces: bool = False,
) -> tuple[Costs, dict[str, str]]:
    """What the layers of a model cost, and {first output: why} of those that stay in float for speed. others: as in
    `costs_of`. reduces: integers are measured with weights of a reduced range; what they take with the whole range is
    noted as a precision of its own, WHOLE.

    Without a profile layers are measured here, on the first sample; and then the whole model, with what was chosen:
    where that is slower than in float, more stays in float, and where all in integers is faster, nothing does. Raises
    ValueError for another model's profile.
    """
    sample, found = _calibrated(model, data, settings)
    timed = model
    if reduces:
        others = {**(others or {}), WHOLE: integer_model(model, found)[0]}
        timed, found = reduced.for_timing(model, found)
    costs = _costs(timed, sample, found, settings, profile, progress, others)
    if profile is not None:
        return costs, slower_in_integers(costs)
    step = progress("measuring the whole model", None)

    def share(some: static.Calibrated) -> float:
        """The time of the whole model, in parts of the float model's."""
        step()
        return ratio(model, integer_model(timed, some)[0], sample, settings.threads, settings.isas)

    for attempt in range(_CONFIRM):
        floats = slower_in_integers(costs)
        chosen = static.restricted(found, floats)
        if not any(node.op in PRODUCTS for node in chosen.selection.nodes):
            return costs, floats
        took = share(chosen)
        if took <= _SCATTER:
            # Layers were measured alone; some gain only beside others in integers.
            return costs, {} if floats and share(found) < min(took, 1.0) else floats
        # At first room still counts: on a busy machine a single measurement may be wrong.
        room = 0.0 if attempt else _ROOM
        costs = Costs(found.selection, costs.profile, costs.factor * took * _TIE, room)
    return costs, {n.outputs[0]: "the whole model is faster in float" for n in found.selection.nodes}


def saved_by_reducing(costs: Costs, floats: Collection[str]) -> dict[str, float]:
    """{first output: microseconds} that weights of a reduced range save products that are not in float."""
    saved = {}
    for node in costs.selection.nodes:
        name = node.outputs[0]
        spent, whole = costs.profile.of(name, "int8"), costs.profile.of(name, WHOLE)
        if node.op in PRODUCTS and name not in floats and spent < reduced.GAIN * whole < math.inf:
            saved[name] = whole - spent
    return saved


def slower_unreduced(costs: Costs, floats: Mapping[str, str], whole: Collection[str]) -> dict[str, str]:
    """What stays in float where these products' weights keep their whole range, {first output: why}."""
    for name in whole:
        costs.profile.times[name]["int8"] = costs.profile.times[name][WHOLE]
    return slower_in_integers(Costs(costs.selection, costs.profile, costs.factor, _ROOM), floats)


def slower(real: Model, changed: Model, found: static.Calibrated, data: Calibration, settings: Settings) -> bool:
    """Whether the integer model of `changed` is measured to take longer than the float model, on the first sample."""
    changed = integer_model(changed, found)[0]
    return ratio(real, changed, data.head(1)[0], settings.threads, settings.isas) > _SCATTER


def _float_nodes(costs: Costs, tie: float, room: float, given: Mapping[str, str]) -> set[str]:
    """The first outputs of the nodes on the float side of the minimum cut, those given among them; integers' times are
    divided by `tie`, what room is worth is multiplied by `room`."""
    selection = costs.selection
    cut = _Cut()
    for node in selection.nodes:
        name = node.outputs[0]
        integer = math.inf if name in given else costs.integer(node) / tie
        if is_table(node) and name not in given:
            integer = 0.0  # in integers for their size
        cut.edge("integer", ("node", name), costs.real(node) + room * costs.room(node))
        cut.edge(("node", name), "float", integer)
        if node.op not in PRODUCTS and not is_table(node):  # a light operator lies between integers
            readers = [r for result in node.outputs for r in selection.readers.get(result, ())]
            if len(readers) == 1:
                cut.edge(("node", name), ("node", readers[0].outputs[0]), math.inf)
            for source in selection.data_inputs(node):
                writer = selection.writer.get(source)
                if writer is not None and selection.integer(writer):
                    cut.edge(("node", name), ("node", writer.outputs[0]), math.inf)
        for source in costs.reads(node):
            cut.edge(
                ("node", name),
                ("tensor", source),
                math.inf if moves(node) or node.op in _INTEGERS_ONLY else costs.side(node),
            )
        for result in node.outputs:
            if result in costs.stored:
                cut.edge(("node", name), ("tensor", result), math.inf if moves(node) else costs.side(node))
                cut.edge(("tensor", result), ("node", name), math.inf)
                for reader in selection.readers[result]:
                    cut.edge(("tensor", result), ("node", reader.outputs[0]), math.inf)
    kept = cut.reached("integer", "float")
    return {node.outputs[0] for node in selection.nodes if ("node", node.outputs[0]) not in kept}


class _Cut:
    """A flow network; the minimum cut by shortest augmenting paths (Edmonds and Karp 1972)."""

    def __init__(self) -> None:
        self._room: dict[Key, dict[Key, float]] = {}

    def edge(self, start: Key, end: Key, capacity: float) -> None:
        """Adds capacity (infinite: never cut) from start to end."""
        out = self._room.setdefault(start, {})
        out[end] = out.get(end, 0.0) + capacity
        self._room.setdefault(end, {}).setdefault(start, 0.0)

    def reached(self, source: Key, sink: Key) -> set[Key]:
        """The side of the source: all that it still reaches when the flow to the sink is largest."""
        while True:
            before: dict[Key, Key] = {source: source}
            queue = deque([source])
            while queue and sink not in before:
                at = queue.popleft()
                for end, room in self._room.get(at, {}).items():
                    if room > 1e-9 and end not in before:
                        before[end] = at
                        queue.append(end)
            if sink not in before:
                return set(before)
            path = [sink]
            while path[-1] != source:
                path.append(before[path[-1]])
            steps: Iterable[tuple[Key, Key]] = list(zip(path[1:], path[:-1], strict=True))
            flow = min(self._room[a][b] for a, b in steps)
            for a, b in steps:
                self._room[a][b] -= flow
                self._room[b][a] += flow
