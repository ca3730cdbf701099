"""The compiled kernels: a module for each family, all of them linked into the shared object of `core` (setup.py).

One file is mapped, relocated and bound to Python's symbols once, which takes less time and memory than thirty do. The
entry of `__path__` is that file, and the finder below says of every module that it is there: Python's own loader calls
the `PyInit_` function that has a module's name. Of the other compiled modules, what each start needs is in it as well.
"""

import sys
from importlib.machinery import EXTENSION_SUFFIXES, ExtensionFileLoader, ModuleSpec
from os.path import exists

# Modules of other packages in the shared object. Their packages add `SHARED_OBJECT` to their `__path__`.
LINKED = ("evort._records", "evort.etm._reader", "evort.plan._planner")


class _Finder:
    """Finds modules in a shared object: a path entry finder (importlib.abc.PathEntryFinder), as folders have."""

    def __init__(self, file: str):
        self.file = file

    def find_spec(self, name: str, target: object = None) -> ModuleSpec | None:
        if name not in LINKED and not name.startswith("evort._kernels."):
            return None
        spec = ModuleSpec(name, ExtensionFileLoader(name, self.file), origin=self.file)
        spec.has_location = True
        return spec


SHARED_OBJECT: list[str] = []  # its path, where it was built
for _suffix in EXTENSION_SUFFIXES:
    _file = f"{__path__[0]}/core{_suffix}"
    if exists(_file):
        sys.path_importer_cache[_file] = _Finder(_file)
        __path__ = SHARED_OBJECT = [_file]
        break
