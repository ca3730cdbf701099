"""The layers of the package: each module imports only those below it, and running a model loads nothing offline."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import evort

PACKAGE = Path(evort.__file__).parent

# types <- graph <- sparse <- ops <- quant <- {etm, plan, tuning, weights} <- backends <- runner
# <- {session, config, shadow, adaptive} <- train; a module may import from its own layer and from those before it. The
# compiled kernels stand apart: they import no Python layer.
LAYERS = [
    "_version",
    "errors files",
    "_kernels",
    "types",
    "graph",
    "sparse",
    "blas",
    "ops",
    "quant",
    "etm plan tuning weights",
    "backends",
    "runner",
    "session config shadow adaptive",
    "train",
]
RANK = {name: i for i, names in enumerate(LAYERS) for name in names.split()}


def imported(path: Path) -> set[str]:
    """Top-level evort modules that a file imports outside of TYPE_CHECKING blocks."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "evort":
            parts = node.module.split(".")
            found.update([parts[1]] if len(parts) > 1 else [alias.name for alias in node.names])
        elif isinstance(node, ast.Import):
            found.update(a.name.split(".")[1] for a in node.names if a.name.startswith("evort."))
    return found


def test_each_module_imports_only_what_is_below_it():
    wrong = []
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).parts
        own = parts[0].removesuffix(".py")
        if own == "__init__":
            continue
        for name in imported(path):
            if RANK.get(name, -1) > RANK[own]:
                wrong.append(f"{'/'.join(parts)} imports evort.{name}")
    assert not wrong


def test_runtime_imports_no_offline_package():
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [a.name for a in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            for name in names:
                assert name.split(".")[0] not in ("onnx", "onnxruntime", "evort_tools", "tools", "pycuda"), path


def test_running_a_model_loads_nothing_offline(tmp_path):
    import numpy as np
    from support import node_model

    from evort.etm import write

    path = tmp_path / "m.etm"
    write(node_model("Relu", [np.ones(3, np.float32)]), path)
    code = (
        "import sys, numpy as np, evort\n"
        f"s = evort.load({str(path)!r}); s(np.ones(3, np.float32))\n"
        "bad = [m for m in sys.modules if m.split('.')[0] in "
        "('onnx', 'evort_tools', 'tools', 'pycuda', 'flatbuffers', 'rich')"
        " or m.startswith(('evort.train', 'evort.ops.gradients'))]\n"
        "assert not bad, bad\n"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    subprocess.run([sys.executable, "-P", "-c", code], check=True, env=env)
