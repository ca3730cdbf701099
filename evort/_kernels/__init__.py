"""The compiled kernels: a module for each family, all of them linked into the shared object of `core` (setup.py).

One file is mapped, relocated and bound to Python's symbols once, which takes less time and memory than thirty do. The
entry of `__path__` is that file, and the finder below says of every module that it is there: Python's own loader calls
the `PyInit_` function that has a module's name. Of the other compiled modules, what each start needs is in it as well.

`preload` is for all of evort: it stands here since this is the first module that runs.
"""

import _imp
import sys
from _io import FileIO
from _thread import _count as threads_started
from importlib import import_module
from importlib._bootstrap_external import MAGIC_NUMBER  # importlib.util, which has it too, is not loaded yet
from importlib.machinery import EXTENSION_SUFFIXES, ExtensionFileLoader, ModuleSpec, SourceFileLoader
from marshal import loads
from os import stat
from os.path import exists
from types import CodeType, ModuleType

# Modules of other packages in the shared object. Their packages add `SHARED_OBJECT` to their `__path__`.
LINKED = ("evort._records", "evort.etm._reader", "evort.plan._planner")
# Modules that others take functions of (`cimport`), in the order in which they are made.
_NEEDS = {
    "attention": ("gemm",),
    "blas": ("gemm", "qgemm", "nbits"),
    "conv": ("gemm",),
    "dynamic": ("qwindow", "qconv", "gemm", "qgemm", "qnhwc"),
    "linear": ("gemm",),
    "nbits": ("gemm",),
    "qconv": ("qwindow",),
    "qdepthwise": ("qwindow",),
    "qelementwise": ("elementwise",),
    "qgemm": ("gemm",),
    "qlinear": ("gemm", "linear", "qgemm"),
    "qnhwc": ("qwindow",),
    "quantize": ("elementwise",),
    "recurrent": ("gemm", "qgemm", "qwindow", "qconv", "qnhwc", "dynamic"),
    "sparse": ("gemm", "qgemm", "qwindow"),
}


def _linked_spec(name: str, file: str) -> ModuleSpec:
    """The specification of a module in the shared object."""
    spec = ModuleSpec(name, ExtensionFileLoader(name, file), origin=file)
    spec.has_location = True
    return spec


class _Finder:
    """Finds modules in a shared object: a path entry finder (importlib.abc.PathEntryFinder), as folders have."""

    def __init__(self, file: str):
        self.file = file

    def find_spec(self, name: str, target: object = None) -> ModuleSpec | None:
        if name not in LINKED and not name.startswith("evort._kernels."):
            return None
        return _linked_spec(name, self.file)


_ROOT = __path__[0].removesuffix("_kernels")
_MOST = 1 << 16  # bytes of bytecode
SHARED_OBJECT: list[str] = []  # its path, where it was built
for _suffix in EXTENSION_SUFFIXES:
    _file = f"{__path__[0]}/core{_suffix}"
    if exists(_file):
        sys.path_importer_cache[_file] = _Finder(_file)
        __path__ = SHARED_OBJECT = [_file]
        break


def __getattr__(name: str) -> ModuleType:
    """The module of that name, imported when `from evort._kernels import name` asks for it first."""
    if name.startswith("__"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    full = f"{__name__}.{name}"
    try:
        preload((full,))
        return import_module(full)  # which waits where another thread imports it
    except ImportError as error:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r} ({error})") from error


def preload(names: tuple[str, ...]) -> None:
    """Imports modules of evort, each of which comes after those that it imports; a package's name ends in a dot.

    Import statements do the same, but looking for a module, locking and making it takes Python as long as running it
    does. Sources must have the bytecode that Python keeps of them: where one has none or is newer, nothing is done
    here, and import statements find, compile and keep them as ever. So they do where other threads might import the
    same; while `evort` itself is imported, those wait.
    """
    modules = sys.modules
    if sys.flags.optimize or sys.pycache_prefix:  # bytecode is elsewhere
        return
    if threads_started() and not getattr(modules["evort"].__spec__, "_initializing", False):
        return
    made: list[tuple[ModuleType, CodeType | None]] = []
    try:
        for name in dict.fromkeys([full for given in names for full in _with_needs(given)]):
            if name.rstrip(".") in modules:
                continue
            made.append(_linked(name) if name in LINKED or name.startswith("evort._kernels.") else _kept(name))
    except (OSError, ValueError, EOFError, TypeError):
        return
    for module, code in made:
        name = module.__name__
        if name in modules:  # an import statement of one before was first
            continue
        module.__spec__._initializing = False  # which import statements ask for, slowly where it is not there
        modules[name] = module
        try:
            if code is None:
                _imp.exec_dynamic(module)
            else:
                exec(code, module.__dict__)
        except BaseException:
            del modules[name]
            raise
    for module, _ in made:
        parent, _, name = module.__name__.rpartition(".")
        setattr(modules[parent], name, modules[module.__name__])


def _with_needs(name: str) -> tuple[str, ...]:
    """A module, and before it those that it takes functions of."""
    package, _, family = name.rpartition(".")
    needs = _NEEDS.get(family, ()) if package == "evort._kernels" else ()
    return (*[f"{package}.{need}" for need in needs], name)


def _linked(name: str) -> tuple[ModuleType, None]:
    """A module of the shared object, to be run."""
    spec = _linked_spec(name, SHARED_OBJECT[0])
    module = _imp.create_dynamic(spec)
    module.__spec__ = spec
    return module, None


def _kept(name: str) -> tuple[ModuleType, CodeType]:
    """A module with a source, and its code. Raises ValueError where the bytecode is not of this source, and OSError."""
    package = name.endswith(".")
    name = name.rstrip(".")
    file = _ROOT + name[6:].replace(".", "/")
    folder, _, stem = (f"{file}/__init__" if package else file).rpartition("/")
    source, kept = f"{folder}/{stem}.py", f"{folder}/__pycache__/{stem}.{sys.implementation.cache_tag}.pyc"
    status = stat(source)
    stamp = int(status.st_mtime).to_bytes(8, "little")[:4] + status.st_size.to_bytes(8, "little")[:4]
    with FileIO(kept) as file:
        bytecode = file.read(_MOST)
    if len(bytecode) == _MOST or bytecode[:16] != MAGIC_NUMBER + bytes(4) + stamp:  # as importlib checks it
        raise ValueError(f"{kept} is not the bytecode of {source}")
    code = loads(memoryview(bytecode)[16:])
    module = ModuleType(name)
    spec = ModuleSpec(name, SourceFileLoader(name, source), origin=source, is_package=package)
    spec.has_location, spec.cached = True, kept
    module.__spec__, module.__loader__, module.__file__, module.__cached__ = spec, spec.loader, source, kept
    module.__package__ = spec.parent
    if package:
        module.__path__ = spec.submodule_search_locations = [folder]
    return module, code
