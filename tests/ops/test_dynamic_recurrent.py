"""LSTM and GRU with 8-bit weights: the driver against the reference, and against onnxruntime.

The reference multiplies in float32 what the driver multiplies in integers, so a state may come to lie on the other side
of a rounding: one step of the state's range (at most 2/255) times a weight, and that again in later steps. Gates are
contractions, so that 0.02 covers a few such steps; most elements agree to float32's accuracy, which the median tells.
"""

import numpy as np
import pytest
from support import drivers_of, import_onnxruntime, node_model, run_node

from evort._kernels import core
from evort.errors import EvortError
from evort.session import Session

MS = "com.microsoft"


def operands(rng, op, ways, steps, batch, inputs, hidden, per_column, zeros, extras):
    gates = 4 if op == "LSTM" else 3
    x = rng.standard_normal((steps, batch, inputs)).astype(np.float32)
    w, r = (rng.integers(-127, 128, (ways, k, gates * hidden)).astype(np.int8) for k in (inputs, hidden))
    many = (ways, gates * hidden) if per_column else (ways,)
    scales = [(rng.random(many) * 0.004 + 0.001).astype(np.float32) for _ in range(2)]
    points = [rng.integers(-20, 20, many).astype(np.int8) if zeros else None for _ in range(2)]
    b = rng.standard_normal((ways, 2 * gates * hidden)).astype(np.float32) * 0.1
    lens = rng.integers(1, steps + 1, batch).astype(np.int32) if extras else None
    state = [rng.standard_normal((ways, batch, hidden)).astype(np.float32) if extras else None for _ in range(2)]
    p = rng.standard_normal((ways, 3 * hidden)).astype(np.float32) * 0.1 if extras else None
    middle = [state[0], state[1], p] if op == "LSTM" else [state[0]]
    return [x, w, r, b, lens, *middle, scales[0], points[0], scales[1], points[1]]


CASES = [
    ("LSTM", "forward", 1, {}), ("LSTM", "bidirectional", 3, {"input_forget": 1}), ("GRU", "reverse", 2, {}),
    ("GRU", "bidirectional", 3, {"linear_before_reset": 1}), ("LSTM", "reverse", 4, {"clip": 0.7}),
    ("GRU", "forward", 1, {"linear_before_reset": 1}),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("per_column", [True, False])
def test_as_the_reference(case, per_column):
    op, direction, batch, attrs = case
    rng = np.random.default_rng(batch)
    ways = 2 if direction == "bidirectional" else 1
    inputs = operands(rng, op, ways, 6, batch, 10, 7, per_column, not per_column, batch > 2)
    attrs = {**attrs, "direction": direction, "hidden_size": 7}
    domain, name = (MS if op == "LSTM" else "evort"), f"DynamicQuantize{op}"
    outputs = 3 if op == "LSTM" else 2
    constants = (1, 2, 3, *range(len(inputs) - 4, len(inputs)))
    model = node_model(name, inputs, attrs, outputs, domain, constants)
    feeds = {f"in{i}": x for i, x in enumerate(inputs) if x is not None and i not in constants}
    want = Session(model, device="reference").run(feeds)
    for isa in core.available_isas():
        core.select_isa(isa)
        try:
            for threads in (1, 2):
                session = Session(model, threads=threads)
                got = session.run(feeds)
                assert drivers_of(session) == [f"recurrent.{op.lower()}_f32"]
                for key, value in want.items():
                    difference = np.abs(got[key] - value)
                    assert difference.max() < 0.02 and np.median(difference) < 1e-5
        finally:
            core.select_isa()
    # And it approximates the float operator.
    at = len(inputs) - 4
    real = []
    for q, i in ((inputs[1], at), (inputs[2], at + 2)):
        centre = q.astype(np.float32) - (0 if inputs[i + 1] is None else inputs[i + 1].reshape(ways, 1, -1))
        real.append((centre * inputs[i].reshape(ways, 1, -1)).swapaxes(1, 2).astype(np.float32))
    plain = run_node(op, [inputs[0], *real, *inputs[3:at]], attrs, outputs, device="reference")
    for value, exact in zip(want.values(), plain, strict=True):
        assert np.abs(value - exact).max() < 0.06


def test_lstm_as_onnxruntime():
    ort = import_onnxruntime()
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(9)
    inputs = operands(rng, "LSTM", 1, 5, 2, 12, 8, True, False, False)
    # Its 8-bit products saturate on machines like these where weights take more than 7 bits.
    inputs[1], inputs[2] = inputs[1] // 2, inputs[2] // 2
    inputs[9] = inputs[11] = np.zeros((1, 32), np.int8)
    names = [f"i{i}" if x is not None else "" for i, x in enumerate(inputs)]
    node = helper.make_node("DynamicQuantizeLSTM", names, ["y", "h", "c"], domain=MS, hidden_size=8)
    graph = helper.make_graph(
        [node], "g", [helper.make_tensor_value_info("i0", TensorProto.FLOAT, inputs[0].shape)],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in "yhc"],
        [numpy_helper.from_array(x, n) for n, x in zip(names[1:], inputs[1:], strict=True) if x is not None],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(MS, 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    peer = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    want = peer.run(None, {"i0": inputs[0]})
    got = run_node("DynamicQuantizeLSTM", inputs, {"hidden_size": 8}, 3, MS, constants=tuple(range(1, 12)))
    for a, b in zip(got, want, strict=True):
        assert a.shape == b.shape
        assert np.abs(a - b).max() < 0.02 and np.median(np.abs(a - b)) < 1e-3  # its sigmoid is an approximation


@pytest.mark.parametrize("change", [
    {1: np.zeros((1, 10, 27), np.int8)}, {2: np.zeros((1, 7), np.int8)}, {8: np.ones((1, 27), np.float32)},
    {9: np.zeros((2,), np.int8)}, {11: np.zeros((1,), np.uint8)}, {3: np.zeros((1, 55), np.float32)},
])  # fmt: skip
def test_refuses(change):
    inputs = operands(np.random.default_rng(0), "LSTM", 1, 2, 1, 10, 7, True, False, False)
    for i, value in change.items():
        inputs[i] = value
    with pytest.raises(EvortError, match="LSTM"):
        run_node("DynamicQuantizeLSTM", inputs, {}, 3, MS)
