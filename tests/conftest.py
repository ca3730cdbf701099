"""Fixtures that several test files share."""

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

import evort

PACKAGE = Path(evort.__file__).parent

BUILD = """
from Cython.Build import cythonize
from setuptools import Extension, setup
kernels = {kernels!r}
include = [kernels, kernels + "/ukr"]
extension = Extension({name!r}, [{name!r} + ".pyx"], include_dirs=include, extra_compile_args=["-O1"])
setup(name={name!r}, script_args=["-q", "build_ext", "--inplace"],
      ext_modules=cythonize([extension], include_path=[{root!r}], quiet=True))
"""


@pytest.fixture(scope="session")
def native(tmp_path_factory) -> Callable[[str, str], ModuleType]:
    """native(name, source): a Cython module built outside the package, against the .pxd files and headers it ships."""

    def build(name: str, source: str) -> ModuleType:
        folder = tmp_path_factory.mktemp(name)
        (folder / f"{name}.pyx").write_text(source)
        script = BUILD.format(name=name, kernels=str(PACKAGE / "_kernels"), root=str(PACKAGE.parent))
        done = subprocess.run([sys.executable, "-P", "-c", script], cwd=folder, capture_output=True, text=True)
        built = list(folder.glob(f"{name}*.so"))
        assert built, done.stdout + done.stderr
        spec = importlib.util.spec_from_file_location(name, built[0])
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return build
