"""What several test modules share: models of one node, ways to run them, and where the real models are."""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from evort._kernels import core
from evort.graph import Graph, Model, Node, Tensor
from evort.session import Session
from evort.types import DType, dtype_of

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"


@cache
def _imports(module: str) -> bool:
    """Whether a child process can import a module: where an extension is not made for the processor (onnxruntime
    under QEMU), importing it ends the process."""
    return subprocess.run([sys.executable, "-c", f"import {module}"], capture_output=True).returncode == 0


def import_onnxruntime(module: str = "onnxruntime") -> ModuleType:
    """onnxruntime, or a module of it, to compare results with. Skips the test, or the tests of the module that asks,
    where it cannot be imported."""
    if not _imports(module):
        pytest.skip(f"{module} is what results are compared with, and cannot be imported", allow_module_level=True)
    return import_module(module)


def node_model(
    op: str,
    inputs: list[np.ndarray | None],
    attrs: dict[str, Any] | None = None,
    outputs: int = 1,
    domain: str = "",
    constants: tuple[int, ...] = (),
    dtypes: dict[int, DType] | None = None,
) -> Model:
    """A model of one node. constants: which inputs are constants; dtypes: element types that NumPy does not tell."""
    graph = Graph(op)
    names = []
    for i, x in enumerate(inputs):
        if x is None:
            names.append("")
            continue
        name = f"in{i}"
        dtype = (dtypes or {}).get(i) or dtype_of(x)
        graph.add(Tensor(name, dtype, x.shape, x if i in constants else None))
        if i not in constants:
            graph.inputs.append(name)
        names.append(name)
    graph.outputs = [f"out{i}" for i in range(outputs)]
    graph.nodes = [Node(op, names, list(graph.outputs), attrs, domain, "node")]
    return Model(graph)


def run_node(
    op: str,
    inputs: list[np.ndarray | None],
    attrs: dict[str, Any] | None = None,
    outputs: int = 1,
    domain: str = "",
    *,
    device: str = "cpu",
    threads: int = 1,
    constants: tuple[int, ...] = (),
    dtypes: dict[int, DType] | None = None,
) -> list[Any]:
    """Runs one node through a session; returns its outputs."""
    model = node_model(op, inputs, attrs, outputs, domain, constants, dtypes)
    session = Session(model, threads=threads, device=device)
    feeds = {f"in{i}": x for i, x in enumerate(inputs) if x is not None and i not in constants}
    results = session.run(feeds)
    return [results[name] for name in model.graph.outputs]


def compiled(
    driver: str,
    op: str,
    inputs: list[np.ndarray | None],
    attrs: dict[str, Any] | None = None,
    outputs: int = 1,
    constants: tuple[int, ...] = (),
    threads: tuple[int, ...] = (1, 2),
    dtypes: dict[int, DType] | None = None,
) -> list[list[np.ndarray]]:
    """The outputs of one node by its compiled driver, for each instruction set and number of threads.

    dtypes: element types that NumPy does not tell. Fails where another driver, or NumPy, runs it.
    """
    results = []
    model = node_model(op, inputs, attrs, outputs, constants=constants, dtypes=dtypes)
    feeds = {f"in{i}": x for i, x in enumerate(inputs) if x is not None and i not in constants}
    try:
        for isa in core.available_isas():
            core.select_isa(isa)
            for n in threads:
                session = Session(model, threads=n)
                got = session.run(feeds)
                assert drivers_of(session) == [driver]
                results.append([got[name] for name in model.graph.outputs])
    finally:
        core.select_isa()
    return results


def by_reference(
    op: str,
    inputs: list[np.ndarray | None],
    attrs: dict[str, Any] | None = None,
    outputs: int = 1,
) -> list[np.ndarray]:
    """The outputs by the operator's NumPy reference, with float operands widened to float64."""
    wide = [x.astype(np.float64) if x is not None and x.dtype == np.float32 else x for x in inputs]
    return run_node(op, wide, attrs, outputs, device="reference")


def drivers_of(session: Session) -> list[str]:
    """The driver of each step of a session's plans ("numpy" where the reference runs)."""
    return [step.driver for plan in session.plans() for step in plan.steps]


def make_model(
    nodes: list[Node],
    inputs: dict[str, tuple[DType, tuple[int | str, ...]]],
    outputs: list[str],
    constants: dict[str, np.ndarray] | None = None,
) -> Model:
    """A model from its parts."""
    return Model(make_graph(nodes, inputs, outputs, constants))


def make_graph(
    nodes: list[Node],
    inputs: dict[str, tuple[DType, tuple[int | str, ...]]],
    outputs: list[str],
    constants: dict[str, np.ndarray] | None = None,
    name: str = "test",
) -> Graph:
    """A graph from its parts."""
    graph = Graph(name)
    graph.nodes, graph.inputs, graph.outputs = nodes, list(inputs), outputs
    for key, (dtype, shape) in inputs.items():
        graph.add(Tensor(key, dtype, shape))
    for key, value in (constants or {}).items():
        graph.add(Tensor(key, dtype_of(value), value.shape, value))
    return graph
