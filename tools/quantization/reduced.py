"""Weights of a reduced range, so that sums of products fit 16 bits: faster where a processor multiplies bytes by
`vpmaddubsw` (AVX2, without VNNI).

    wanted = candidates(model, found)                          # products for which there is such a kernel
    model, found = choose(model, found, saved, trial, ...)     # those that save time and lose little

That instruction adds two products of an unsigned and a signed byte in 16 bits, where it saturates; with weights that
use all of 8 bits only widened operands are exact, at two thirds of the speed. Here weights are rounded so that nothing
can overflow, whatever the activations are (the attribute `presum` of QLinearConv and QLinearMatMul, which the pass
proves from the integers): in each group of 4 * presum successive ones of an output channel the positive at k % 4 in
{0, 1} add up to at most 128, and so do the negative ones and those at k % 4 in {2, 3}.

All of a channel's weights in 7 bits, as other quantizers reduce ranges, satisfy that for presum 1, at 6 dB of their
precision. But large weights are few: what counts is how far a group's sum comes. So each channel's scale grows by as
little as makes the squared error least, and the groups that are still too large are brought down to their nearest point
within: 1 to 3 dB for presum 1, 2 to 6 for 2. What that changes of a layer's output on average is taken off its bias.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from evort._kernels import core, qnhwc
from evort.graph import Model, Tensor
from evort.types import DType
from evort_tools.passes.integer_products import LIMIT, summed
from evort_tools.quantization import bias, trials
from evort_tools.quantization.encodings import Encoding
from evort_tools.quantization.equalize import readers_of
from evort_tools.quantization.latency import selected
from evort_tools.quantization.qdq import copy_model, total_bytes
from evort_tools.quantization.static import Calibrated
from evort_tools.quantization.weighted import Layer, layer_of

if TYPE_CHECKING:
    from evort_tools.quantization.improve import Trial

PRESUMS = (2, 1)  # best first
GROWTH = 2 ** (np.arange(9) / 4)  # of scales
GAIN = 0.95  # of its time, at most, that a layer takes whose weights are worth it
LOSS = 1.25  # times the noise of the outputs, at most: a decibel
_ROWS = 1 << 20  # weights that are fitted at a time

Weights = dict[str, tuple[np.ndarray, Encoding]]


def fits(model: Model, isas: tuple[str, ...]) -> bool:
    """Whether with any of these instruction sets (by default that in use) sums of 16 bits are faster; not for models so
    large that more of their weights should not be held."""
    if total_bytes(model.graph) > trials.LARGE:
        return False
    for isa in isas or (core.isa(),):
        with selected(isa):
            if core.channels_last() and qnhwc.wide():
                return True
    return False


def within(real: np.ndarray, presum: int) -> np.ndarray:
    """The integers (float32) nearest to numbers [n, k] of which no group adds up to more than LIMIT."""
    n, k = real.shape
    run = 4 * presum
    groups = -(-k // run)
    padded = np.zeros((n, groups * run), np.float32)
    padded[:, :k] = real
    lanes = padded.reshape(n, groups, presum, 2, 2).transpose(0, 1, 3, 2, 4).reshape(-1, 2 * presum)
    q = np.rint(lanes).clip(-127, 127)
    for sign in (1, -1):
        over = np.flatnonzero(np.maximum(q * sign, 0).sum(axis=1) > LIMIT)
        part, want = q[over] * sign, lanes[over] * sign
        excess = np.maximum(part, 0).sum(axis=1) - LIMIT
        while (left := np.flatnonzero(excess > 0)).size:
            # The step down that adds the least to the squared error.
            cost = np.where(part[left] > 0, want[left] - part[left], np.inf)
            part[left, cost.argmin(axis=1)] -= 1
            excess[left] -= 1
        q[over] = part * sign
    q = q.reshape(n, groups, 2, presum, 2).transpose(0, 1, 3, 2, 4).reshape(n, -1)
    return np.ascontiguousarray(q[:, :k])


def fit_rows(
    rows: np.ndarray, scale: np.ndarray, presum: int, growths: np.ndarray = GROWTH
) -> tuple[np.ndarray, np.ndarray]:
    """(integers [n, k] as float32, scales float32 [n]) for weights [n, k] in the order in which they are summed.

    scale: [n], of the whole range. growths: what it may be multiplied by.
    """
    n, k = rows.shape
    best_q, best_scale = np.zeros((n, k), np.float32), np.array(scale, np.float32)
    step = max(1, _ROWS // max(1, k))
    for at in range(0, n, step):
        part, error = rows[at : at + step], np.full(len(rows[at : at + step]), np.inf)
        for growth in growths:
            grown = (scale[at : at + step] * growth).astype(np.float32)
            q = within(part / grown[:, None], presum)
            got = np.square(q * grown[:, None] - part).sum(axis=1, dtype=np.float64)
            better = np.flatnonzero(got < error)
            best_q[at + better], best_scale[at + better] = q[better], grown[better]
            error = np.minimum(error, got)
    return best_q, best_scale


def candidates(model: Model, found: Calibrated) -> dict[str, Layer]:
    """{first output: layer} of the products in integers whose kernels take such weights: dense ones of 8 bits, of a
    multiple of eight channels, whose weights nothing else reads."""
    readers = readers_of(model.graph)
    layers: dict[str, Layer] = {}
    for node in found.selection.nodes:
        layer = layer_of(model.graph, node) if node.op in ("Conv", "Gemm", "MatMul") else None
        encoding = None if layer is None else found.encodings.get(layer.weight)
        x = found.encodings.get(found.selection.activations.get(node.inputs[0], node.inputs[0]))
        if encoding is None or encoding.dtype != DType.INT8 or len(readers[layer.weight]) != 1:
            continue
        if x is not None and x.dtype == DType.INT16:
            continue
        w = model.graph.constant(layer.weight)
        if node.op != "Conv" or (node.attrs.get("group", 1) == 1 and w.shape[1] % (4 * PRESUMS[0]) == 0):
            layers[node.outputs[0]] = layer
    return layers


def fitted(layer: Layer, encoding: Encoding, presum: int, growths: np.ndarray = GROWTH) -> tuple[np.ndarray, Encoding]:
    """A layer's weights, rounded, as the model has them, and their encoding."""
    w = layer.graph.constant(layer.weight)
    rows = summed(w) if layer.node.op == "Conv" else layer.rows
    scale = np.broadcast_to(encoding.scale.reshape(-1), (len(rows),))
    if encoding.axis is None:  # one for all channels
        flat, scale = fit_rows(np.ascontiguousarray(rows, np.float32).reshape(1, -1), scale[:1], presum, growths[-1:])
        q = flat.reshape(rows.shape)
    else:
        q, scale = fit_rows(np.ascontiguousarray(rows, np.float32), scale, presum, growths)
    real = q * scale[:, None]
    if layer.node.op == "Conv":
        real = np.moveaxis(real.reshape(len(w), *w.shape[2:], w.shape[1]), -1, 1)
    real = real.T if layer.columns else real.reshape(w.shape)
    grown = scale.reshape(encoding.scale.shape)
    zero = np.zeros(grown.shape, encoding.zero_point.dtype)
    return np.ascontiguousarray(real, np.float32), replace_scale(encoding, grown, zero)


def replace_scale(old: Encoding, scale: np.ndarray, zero: np.ndarray) -> Encoding:
    """The encoding with another scale."""
    return Encoding(old.dtype, scale, zero, old.axis, narrow=True, method="weights, of reduced range")


def with_weights(
    model: Model, found: Calibrated, weights: Weights, biases: Mapping[str, np.ndarray]
) -> tuple[Model, Calibrated]:
    """A copy of a model with other weights ({name: (values, encoding)}), and what is added to biases by the output."""
    changed = copy_model(model)
    for name, (value, _) in weights.items():
        changed.graph.add(Tensor(name, DType.FLOAT, value.shape, value))
    bias.add_to_biases(changed.graph, biases)
    encodings = {**found.encodings, **{name: encoding for name, (_, encoding) in weights.items()}}
    return changed, replace(found, encodings=encodings)


def for_timing(model: Model, found: Calibrated) -> tuple[Model, Calibrated]:
    """The model with all candidates reduced, roughly: as fast as it gets."""
    layers = candidates(model, found)
    growths = np.float32([2.0 * PRESUMS[0]])
    weights = {x.weight: fitted(x, found.encodings[x.weight], PRESUMS[0], growths) for x in layers.values()}
    return with_weights(model, found, weights, {})


def choose(
    model: Model,
    plain: Model,
    found: Calibrated,
    saved: Mapping[str, float] | None,
    trial: Trial,
    threads: int | None,
    progress: Callable[[str, int | None], Callable[[], None]],
) -> tuple[Model, Calibrated]:
    """The model with weights of reduced range, where that is worth it; which, and what it costs, is noted.

    plain: the model before helpers rounded weights. saved: {first output: microseconds}; what the outputs lose together
    stays within LOSS, and layers that lose much for what they save give up presum 2 for 1 or for none. None: all that
    can be, whatever it costs.
    """
    layers = {o: x for o, x in candidates(plain, found).items() if saved is None or o in saved}
    if not layers:
        return model, found
    step = progress("reducing weights", None)
    made: dict[int, tuple[Weights, dict[str, np.ndarray]]] = {}  # by the layers' outputs
    now = {x.weight: found.encodings[x.weight] for x in layers.values()}
    weights_now = {name: (encoding.fake(model.graph.constant(name)), encoding) for name, encoding in now.items()}
    whole = with_weights(model, found, weights_now, {})[0]  # what biases are right for

    def some(presums: Mapping[str, int]) -> tuple[Model, Calibrated]:
        weights: Weights = {}
        biases: dict[str, np.ndarray] = {}
        for presum in set(presums.values()):
            if presum not in made:
                by_layer = {o: fitted(x, found.encodings[x.weight], presum) for o, x in layers.items()}
                rounded = with_weights(model, found, {layers[o].weight: w for o, w in by_layer.items()}, {})[0].graph
                encodings = {layers[o].weight: encoding for o, (_, encoding) in by_layer.items()}
                nodes = [node for node in model.graph.nodes if node.outputs[0] in layers]
                changes = bias.corrections(whole, nodes, encodings, trial.fitting, threads, None, rounded)
                made[presum] = by_layer, changes
                step()
            chosen = [o for o in layers if presums.get(o) == presum]
            weights |= {layers[o].weight: made[presum][0][o] for o in chosen}
            biases |= {o: made[presum][1][o] for o in chosen if o in made[presum][1]}
        return with_weights(model, found, weights, biases)

    def noise(presums: Mapping[str, int]) -> float:
        changed, other = some(presums)
        step()
        return trial.ratio(changed, other.encodings)

    before = trial.ratio(model, found.encodings)
    presums = dict.fromkeys(layers, PRESUMS[0])
    after = noise(presums)
    if saved is not None and after > LOSS * before:
        added = {o: max(0.0, noise({o: PRESUMS[0]}) - before) for o in layers}
        order = sorted(layers, key=lambda o: added[o] / saved[o], reverse=True)
        for part in (8, 4, 2, 1, 0.5, 0.25):  # noise seldom adds up
            smaller = _within_budget(order, added, part * (LOSS - 1) * before)
            if smaller != presums:
                presums, after = smaller, noise(smaller) if smaller else before
            if after <= LOSS * before:
                break
        else:
            presums = {}
    if not presums:
        return model, found
    changed, other = some(presums)
    decibels = (-10 * np.log10(max(r, 1e-30)) for r in (after, before))
    note = "{} products have weights of a reduced range, for sums of 16 bits: {:.1f} dB on trial samples for {:.1f}"
    return changed, replace(other, reduced=presums, notes=[*found.notes, note.format(len(presums), *decibels)])


def _within_budget(order: list[str], added: Mapping[str, float], budget: float) -> dict[str, int]:
    """{layer: presum} of those whose noise together is within a budget; the first in `order` give up most. Noise of
    presum 1 is about a quarter of that of 2."""
    share = dict.fromkeys(order, 1.0)
    for part in (0.25, 0.0):
        for o in order:
            if sum(added[x] * share[x] for x in order) > budget:
                share[o] = part
    return {o: PRESUMS[0] if share[o] == 1 else PRESUMS[1] for o in order if share[o] > 0}
