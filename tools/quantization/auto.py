"""Chooses, tensor by tensor, the range that harms the operators behind it least.

For each tensor all methods of `ranges` propose a range. The operators that read the tensor are run alone, on what
calibration samples give them, once as they are and once for each proposal; the proposal whose results differ least
wins. So a range that looks bad in the tensor itself (clipped outliers) wins where it is good for the layer's output.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

import numpy as np

from evort.graph import Graph, Model, Node, Tensor
from evort.session import Session
from evort.types import DType
from evort_tools.quantization.capture import Capture
from evort_tools.quantization.compare import Error
from evort_tools.quantization.encodings import Encoding
from evort_tools.quantization.select import UNARY, Selection

Proposals = list[Encoding]
# Operators whose results at a place of an image depend on what is near it.
_LOCAL = UNARY | {"Add", "Mul", "Concat"}
_WINDOW = 1 << 18  # elements of an operand from which a part of images is enough
_SIDE = 32  # at least of such a part
_GOLDEN = 0.618034


class Probe:
    """One operator run alone: its computed operands are inputs, `x` the first of all."""

    def __init__(
        self, model: Model, selection: Selection, node: Node, weights: Mapping[str, Encoding], threads: int | None
    ):
        graph = Graph(node.name)
        self.inputs: list[str] = []
        self.x = node.inputs[0]
        for name in dict.fromkeys(n for n in node.inputs if n):
            tensor = model.graph.tensors.get(name)
            if tensor is not None and tensor.data is not None:
                data = weights[name].fake(tensor.data) if name in weights else tensor.data
                graph.add(Tensor(name, tensor.dtype, data.shape, data))
            else:
                graph.add(Tensor(name, selection.shapes.dtype(name) or DType.FLOAT, None))
                self.inputs.append(name)
        graph.inputs = list(self.inputs)
        graph.outputs = [o for o in node.outputs if o][:1]
        graph.nodes = [node]
        plain = (t.data.size == 1 for t in graph.tensors.values() if t.data is not None)
        self._local = not node.domain and (node.op == "Conv" or (node.op in _LOCAL and all(plain)))
        self._session = Session(Model(graph, model.opsets), threads=threads)

    def run(self, feeds: Mapping[str, np.ndarray]) -> np.ndarray:
        return next(iter(self._session.run(dict(feeds)).values()))

    def window(self, values: Mapping[str, np.ndarray], number: int) -> dict[str, np.ndarray]:
        """The operands in `values`; of large images a part, as good as the whole to tell errors by: another one for
        each number."""
        given = {name: values[name] for name in self.inputs}
        spaces = {value.shape[2:] for value in given.values()}
        largest = max((value.size for value in given.values()), default=0)
        if not self._local or len(spaces) != 1 or largest <= _WINDOW:
            return given
        (space,) = spaces
        share = (_WINDOW / largest) ** (1 / max(1, len(space)))
        cut = []
        for size in space:
            part = min(size, max(_SIDE, math.ceil(size * share)))
            start = int((size - part) * ((number + 1) * _GOLDEN % 1))
            cut.append(slice(start, start + part))
        return {name: np.ascontiguousarray(value[:, :, *cut]) for name, value in given.items()}


def choose(
    model: Model,
    selection: Selection,
    proposals: Mapping[str, Proposals],
    weights: Mapping[str, Encoding],
    samples: Iterable[Mapping[str, np.ndarray]],
    threads: int | None = None,
    progress: Callable[[], None] | None = None,
) -> dict[str, Encoding]:
    """The best proposal for each group of tensors, by its root.

    proposals: encodings by root of a group, best guess first (it stays where two are equal). weights: the encodings of
    weights, with which the operators are run.
    """
    probes: dict[int, Probe] = {}
    uses: list[_Use] = []
    for root, names in selection.groups().items():
        if len(proposals.get(root, ())) > 1:
            read = dict.fromkeys((name, node) for name in names for node, _ in selection.uses(name))
            for name, node in read:
                if id(node) not in probes:
                    probes[id(node)] = Probe(model, selection, node, weights, threads)
                uses.append(_Use(root, name, probes[id(node)], proposals[root]))
    groups = [use.probe.inputs for use in uses]
    capture = Capture(model, (name for group in groups for name in group), threads)
    for number, feeds in enumerate(samples):
        for place, values in capture.together(feeds, groups):
            uses[place].add(values, number)
        if progress is not None:
            progress()
    chosen = {root: found[0] for root, found in proposals.items()}
    for root in dict.fromkeys(use.root for use in uses):
        totals = [sum(ratios) for ratios in zip(*(use.ratios() for use in uses if use.root == root), strict=True)]
        chosen[root] = proposals[root][int(np.argmin(totals))]
    return chosen


class _Use:
    """An operand of an operator, and the error of its result with each proposal."""

    def __init__(self, root: str, name: str, probe: Probe, proposals: Proposals):
        self.root = root
        self.probe = probe
        self._name = name
        self._errors = [(encoding, Error()) for encoding in proposals]

    def add(self, values: Mapping[str, np.ndarray], number: int) -> None:
        """Takes the `number`-th sample's values."""
        given = self.probe.window(values, number)
        expected = self.probe.run(given)
        for encoding, error in self._errors:
            error.add(expected, self.probe.run({**given, self._name: encoding.fake(given[self._name])}))

    def ratios(self) -> list[float]:
        """Noise over signal with each proposal."""
        return [error.ratio for _, error in self._errors]
