"""Removes channels from a graph: cuts every constant that has a part of them, in a copy of the model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from evort.graph import Model, Tensor
from evort_tools.pruning.channels import Channels, Space
from evort_tools.pruning.patterns import Pattern
from evort_tools.quantization.qdq import copy_model


def saliency(space: Space, weights: Mapping[str, np.ndarray]) -> dict[int, float]:
    """What matters of each channel: the importance of the weights that make it, added up. weights: that of each
    weight's elements, of the constant's shape."""
    found = {}
    for channel in space.channels:
        rows = space.rows[channel]
        found[channel] = float(sum(np.take(weights[name], index, axis=axis).sum() for name, axis, index in rows))
    return found


def least(space: Space, scores: Mapping[int, float], pattern: Pattern, share: float) -> list[int]:
    """The channels of a space to remove: `share` of them, the least important; whole groups of neighbours where the
    pattern says so. One, or one group, stays."""
    size = min(pattern.block[0], len(space.channels))
    groups = [space.channels[i : i + size] for i in range(0, len(space.channels), size)] if size else []
    spare = 0 if len(space.channels) < space.count else 1
    # Pinned channels count among those that stay.
    count = min(round(share * space.count / max(1, size)), max(0, len(groups) - spare))
    order = sorted(range(len(groups)), key=lambda i: (sum(scores[c] for c in groups[i]) / len(groups[i]), -i))
    return sorted(c for i in order[:count] for c in groups[i])


def separated(model: Model) -> Model:
    """A copy of a model in which every node has float constants of its own, so that they can be cut apart. (Equal
    biases become one when a model is converted; a file holds equal constants once in any case.)"""
    new = copy_model(model)
    graph = new.graph
    seen = set(graph.outputs)
    for node in graph.nodes:
        for sub in node.subgraphs():
            seen.update(sub.free_names())
    for number, node in enumerate(graph.nodes):
        for i, name in enumerate(node.inputs):
            tensor = graph.tensors.get(name) if name else None
            if tensor is None or tensor.data is None or tensor.data.dtype.kind != "f":
                continue
            if name in seen:
                own = Tensor(f"{name}/{number}.{i}", tensor.dtype, tensor.shape, tensor.data)
                node.inputs[i] = graph.add(own)
            seen.add(name)
    return new


def remove(model: Model, analysis: Channels, spaces: Iterable[Space], channels: Iterable[int]) -> Model:
    """A copy of a model without these channels."""
    gone, cuts = set(channels), {}
    for space in spaces:
        for channel in space.channels:
            if channel in gone:
                for place, indices in space.places[channel].items():
                    cuts.setdefault(place, set()).update(indices)
    new = copy_model(model)
    graph = new.graph
    sizes: dict[str, int] = {}
    for (name, axis), indices in cuts.items():
        tensor = graph.tensors[name]
        keep = np.setdiff1d(np.arange(tensor.data.shape[axis]), sorted(indices))
        data = np.ascontiguousarray(np.take(tensor.data, keep, axis=axis))
        graph.add(Tensor(name, tensor.dtype, data.shape, data))
    for node in graph.nodes:
        if node.op == "Conv" and node.attrs.get("group", 1) > 1 and (node.inputs[1], 0) in cuts:
            w = graph.constant(node.inputs[1])
            if w.shape[1] == 1 and analysis.graph.constant(node.inputs[1]).shape[0] == node.attrs["group"]:
                node.attrs = {**node.attrs, "group": w.shape[0]}
    for shape, result in analysis.flattened.items():
        kept = [c for c in analysis.tensors[result][1].tolist() if analysis.find(c) not in gone]
        sizes[shape] = len(kept)
    for name, size in sizes.items():
        value = graph.constant(name).copy()
        value[1] = size
        graph.add(Tensor(name, graph.tensors[name].dtype, value.shape, value))
    # What is known of values between nodes is no longer true.
    ends = {*graph.inputs, *graph.outputs}
    graph.tensors = {n: t for n, t in graph.tensors.items() if t.data is not None or n in ends}
    return new


__all__ = ["least", "remove", "saliency", "separated"]
