"""Attention in integers: in which schemes and where, what it costs in accuracy, and how it is chosen."""

from __future__ import annotations

import numpy as np
import pytest
from support import make_model

import evort_tools
from evort.graph import Model, Node
from evort.session import Session
from evort.types import DType
from evort_tools.quantization.dynamic import MIN_QUERIES, DynamicOptions, dynamic
from evort_tools.quantization.latency import Profile
from evort_tools.quantization.weights import snr

FAST = {"method": "minmax", "equalize": "off", "adaround": "off", "bias_correction": "off", "wide_activations": "off"}
HEADS, SIZE, WIDTH = 3, 32, 96


def block(size: int = SIZE, heads: int = HEADS, **attrs: object) -> Model:
    """y = Attention(x Wq, x Wk, x Wv) Wo, x [N, L, 96]."""
    rng = np.random.default_rng(0)
    width = size * heads
    attrs = {"q_num_heads": heads, "kv_num_heads": heads, **attrs}
    nodes = [Node("MatMul", ["x", f"w{name}"], [name], name=f"to_{name}") for name in "qkv"]
    nodes += [
        Node("Attention", ["q", "k", "v"], ["a"], attrs, name="attend"),
        Node("MatMul", ["a", "wo"], ["y"], name="out"),
    ]
    shapes = {"wq": (WIDTH, width), "wk": (WIDTH, width), "wv": (WIDTH, width), "wo": (width, 20)}
    constants = {n: (rng.standard_normal(s) / np.sqrt(s[0])).astype(np.float32) for n, s in shapes.items()}
    return make_model(nodes, {"x": (DType.FLOAT, ("N", "L", WIDTH))}, ["y"], constants)


def samples(count: int, length: int = 70) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(1)
    return [{"x": rng.standard_normal((1, length, WIDTH)).astype(np.float32)} for _ in range(count)]


def attend(model: Model) -> Node:
    (node,) = (n for n in model.graph.nodes if n.name == "attend")
    return node


def test_the_dynamic_scheme() -> None:
    real = block()
    made = dynamic(real, DynamicOptions())
    assert attend(made).op == "DynamicQuantizeAttention" and attend(made).attrs["min_queries"] == MIN_QUERIES
    (feeds,) = samples(1)
    want, got = (Session(m).run(feeds)["y"] for m in (real, made))
    assert snr(want, got) > 30
    products = dynamic(real, DynamicOptions(attention="off"))
    assert attend(products).op == "Attention"
    # Its products are no more noise than those of the weights around it.
    assert snr(want, got) > snr(want, Session(products).run(feeds)["y"]) - 3


@pytest.mark.parametrize(
    ("model", "how", "least"),
    [
        (block(), {"attention": "off"}, None),
        (block(), {"attention": "on"}, 0),
        (block(), {"bits": 16}, None),
        (block(), {"activations": 16}, None),
        (block(), {"skip": lambda name: name == "attend"}, None),
        (block(size=16), {}, None),
        (block(size=16), {"attention": "on"}, 0),
        (block(softmax_precision=11), {"attention": "on"}, None),
        (block(is_causal=1, softcap=3.0, left_window_size=9), {}, MIN_QUERIES),
    ],
)
def test_where_it_is_in_integers(model, how, least) -> None:
    made = attend(dynamic(model, DynamicOptions(**how)))
    assert (made.op, made.attrs.get("min_queries")) == (("Attention", None) if least is None else
                                                        ("DynamicQuantizeAttention", least))  # fmt: skip


def test_scores_as_an_output_stay_in_float() -> None:
    model = block()
    attend(model).outputs += ["", "", "scores"]
    model.graph.outputs.append("scores")
    assert attend(dynamic(model, DynamicOptions(attention="on"))).op == "Attention"


def test_the_static_scheme() -> None:
    real = block()
    result = evort_tools.quantize(real, calib=samples(8), prefer="size", **FAST)
    assert [n.op for n in result.model.graph.nodes] == [
        *["QLinearMatMul"] * 3,
        "DynamicQuantizeAttention",
        "QLinearMatMul",
    ]
    assert not result.kept
    feeds = samples(9)[-1]
    want, got = (Session(m).run(feeds)["y"] for m in (real, result.model))
    assert snr(want, got) > 28
    result = evort_tools.quantize(real, calib=samples(4), prefer="size", exclude=("attend",), **FAST)
    assert attend(result.model).op == "Attention" and result.kept == {"Attention 'attend'": "excluded"}


def test_it_stays_in_float_where_that_is_faster(tmp_path) -> None:
    real = block()
    nodes = {n.outputs[0]: (n.label(), n.op) for n in real.graph.nodes}
    times = {n.outputs[0]: {"float32": 10.0, "int8": 30.0 if n.op == "Attention" else 5.0} for n in real.graph.nodes}
    Profile(times, nodes, {}, {}).write(tmp_path / "p.json")
    for how, operator in (({}, "Attention"), ({"attention": "on"}, "DynamicQuantizeAttention")):
        result = evort_tools.quantize(real, calib=samples(4), profile=str(tmp_path / "p.json"), **FAST, **how)
        assert attend(result.model).op == operator


def test_the_mixed_scheme() -> None:
    real = block()
    result = evort_tools.quantize(real, calib=samples(8), scheme="mixed", prefer="size", pin=("attend=int8",), **FAST)
    assert attend(result.model).op == "DynamicQuantizeAttention"
    row = next(row for row in result.layers if row["name"] == "attend")
    assert row["precision"] == "int8" and row["bytes"] == {"float32": 0, "int8": 0}
    assert 0 < row["noise_alone"]["int8"] < 0.03
