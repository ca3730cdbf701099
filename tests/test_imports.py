"""The layers of the package: each module imports only those below it, and running a model loads nothing offline."""

from __future__ import annotations

import ast
import os
import py_compile
import subprocess
import sys
from pathlib import Path

import pytest
from support import ROOT

import evort
from evort import _kernels

PACKAGE = Path(evort.__file__).parent

# types <- graph <- sparse <- ops <- quant <- {etm, plan, tuning, weights} <- {backends, inputs} <- runner
# <- {session, config, shadow, adaptive} <- train; a module may import from its own layer and from those before it. The
# compiled kernels stand apart: they import no Python layer; a kept plan needs what is right above them only.
LAYERS = [
    "_version",
    "errors",
    "_kernels",
    "files",
    "types",
    "graph",
    "sparse",
    "blas",
    "ops",
    "quant",
    "etm plan tuning weights",
    "backends inputs memory",
    "runner",
    "cache session config shadow adaptive",
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


# Notes what import statements look for, once `Watch` is put first in sys.meta_path.
WATCH = """
import sys, numpy as np
class Watch:
    def find_spec(name, path=None, target=None):
        found.append(name)
found = []
"""


def printed(code: str, *arguments: str) -> str:
    """What a process of its own prints that runs the code, where all bytecode is there."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    env.pop("PYTHONDONTWRITEBYTECODE", None)
    command = [sys.executable, "-P", "-c", code, *arguments]
    subprocess.run(command, check=True, env=env, stdout=subprocess.DEVNULL)  # which writes what is missing
    return subprocess.run(command, check=True, env=env, stdout=subprocess.PIPE, text=True).stdout


@pytest.mark.parametrize("kept", [False, True])
def test_what_every_start_needs_is_preloaded(tmp_path, kept):
    """No module of evort but the first ones is found by an import statement, where bytecode is there; and with a plan
    that is kept, nothing of graphs, operators and planning is imported at all."""
    lenet = Path(__file__).parent.parent / "models" / "lenet.etm"
    code = WATCH + (
        "sys.meta_path.insert(0, Watch)\n"
        "import evort\n"
        f"evort.load({str(lenet)!r}, threads=1, cache={str(tmp_path / 'plans') if kept else None!r})(\n"
        "    np.zeros((1, 1, 28, 28), np.float32))\n"
        "print(*[name for name in found if name.startswith('evort.')])\n"
        "print(*[name for name in sys.modules if name.startswith('evort.')])\n"
    )
    found, modules = (line.split() for line in printed(code).splitlines())
    assert found == ["evort._kernels", "evort._kernels.core"]
    if kept:
        own, families = ["cache", "executor", "files", "session"], ["conv", "gemm", "linear", "pooling"]
        assert sorted(name.split(".")[-1] for name in modules) == sorted(["_kernels", "core", *own, *families])


def test_families_come_with_what_they_import():
    """What `_NEEDS` and setup.py's table name is what modules import, so that no import statement has to find it."""
    code = WATCH + (
        "import evort\n"
        "evort.session.import_planning()\n"
        "sys.meta_path.insert(0, Watch)\n"
        "from evort import _kernels, ops\n"
        "for name in sys.argv[1].split():\n"
        "    getattr(_kernels, name)\n"
        "for name in ops.base.registered():\n"
        "    pass\n"
        "print(*[name for name in found if name.startswith(('evort._kernels', 'evort.ops'))])\n"
    )
    kernels = [path.stem for path in (ROOT / "evort" / "_kernels").glob("*.pyx")]
    assert printed(code, " ".join(kernels)).split() == []


def test_no_module_of_that_name():
    with pytest.raises(ImportError, match="no_such_family"):
        from evort._kernels import no_such_family
    with pytest.raises(ImportError, match="no_such_family"):
        from evort.ops import no_such_family  # noqa: F401
    assert not hasattr(_kernels, "__no_such__")


@pytest.mark.parametrize("module", ["evort", "evort.train", "evort.etm", "evort.ops.qconv"])
def test_threads_that_load_and_import_at_once_wait_for_each_other(module):
    """Where there are threads, modules come by import statements. Half of the threads load a model, the others import
    what has modules of packages that loading imports, too."""
    lenet = Path(__file__).parent.parent / "models" / "lenet.etm"
    code = (
        "import importlib, sys, threading, numpy as np, evort\n"
        "sys.setswitchinterval(1e-6)\n"
        "errors, start = [], threading.Barrier(8)\n"
        "def work(i):\n"
        "    try:\n"
        "        start.wait()\n"
        "        if i % 2:\n"
        "            importlib.import_module(sys.argv[1])\n"
        f"        evort.load({str(lenet)!r}, threads=1)(np.zeros((1, 1, 28, 28), np.float32))\n"
        "    except BaseException as error:\n"
        "        errors.append(repr(error))\n"
        "threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]\n"
        "[t.start() for t in threads]; [t.join() for t in threads]\n"
        "assert not errors, errors\n"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    env.pop("PYTHONDONTWRITEBYTECODE", None)
    for _ in range(3):
        subprocess.run([sys.executable, "-P", "-c", code, module], check=True, env=env)


def test_bytecode_of_another_source_is_not_preloaded(tmp_path, monkeypatch):
    monkeypatch.setattr(_kernels, "_ROOT", f"{tmp_path}/")
    source = tmp_path / "made_up.py"
    source.write_text("value = 1\n")
    kept = Path(py_compile.compile(str(source), invalidation_mode=py_compile.PycInvalidationMode.TIMESTAMP))
    module, code = _kernels._kept("evort.made_up")
    exec(code, module.__dict__)
    assert (module.value, module.__file__, module.__spec__.cached) == (1, str(source), str(kept))

    def refused():
        with pytest.raises((OSError, ValueError, EOFError, TypeError)):
            _kernels._kept("evort.made_up")
        _kernels.preload(("evort.errors", "evort.made_up"))
        assert "evort.made_up" not in sys.modules

    os.utime(source, (1, 1))
    refused()
    py_compile.compile(str(source))
    kept.write_bytes(kept.read_bytes()[:20])
    refused()
    kept.unlink()
    refused()
