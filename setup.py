"""Build script: the compiled kernels, and `tools/` installed as the package `evort_tools`.

Environment variables:
  EVORT_DEBUG_BUILD=1  bounds checks, debug symbols, address and undefined-behaviour sanitizers
"""

import ast
import os
import platform
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError
from setuptools.modified import newer_group

ROOT = Path(__file__).parent
KERNELS = "evort/_kernels"
CORE = "evort._kernels.core"
DEBUG = os.environ.get("EVORT_DEBUG_BUILD") == "1"

# No -march: one build serves every machine. Wider instruction sets are per-file target pragmas in ukr/*.c,
# chosen at run time. -fno-math-errno and -fno-trapping-math change no result; they only allow vectorisation.
# -fwrapv makes integer overflow wrap, as ONNX's integer arithmetic does.
CFLAGS = ["-O3", "-fno-math-errno", "-fno-trapping-math", "-fwrapv", "-fvisibility=hidden", "-Wno-unused-function"]
CFLAGS += ["-pthread"]
# Loops that are vectorised, without a second, narrower loop for what is left of each: a fifth smaller than with -O3.
LOOP_CFLAGS = ["-O2", "-ftree-vectorize"]
LOOP_GCC = ["-fvect-cost-model=dynamic", "--param=vect-epilogues-nomask=0"]
# The micro-kernels are compiled once for each instruction set. Of what -O3 adds, these are what they gain from.
UKR_CFLAGS = [*LOOP_CFLAGS, "-fpeel-loops", "-funswitch-loops", "-fsplit-loops"]
UKR_GCC = [*LOOP_GCC, "-fversion-loops-for-strides"]
# What runs at load, checks arguments, or only calls micro-kernels: -O3 makes it larger, not faster.
SMALL = {"_records", "blas", "etm._reader", "plan._planner"} | {
    f"_kernels.{name}"
    for name in (
        "attention", "blas", "conv", "core", "dynamic", "executor", "follow", "gemm", "interpolate", "linear", "nbits",
        "normalize", "qconv", "qdepthwise", "qelementwise", "qgemm", "qlinear", "qnhwc", "qnormalize", "qsample",
        "quantize", "qwindow", "recurrent", "reduce", "sparse",
    )
}  # fmt: skip
# What has loops of its own beside micro-kernels.
LOOPS = {f"_kernels.{name}" for name in ("gather", "layout", "pooling", "random", "search", "train")}
LDFLAGS = ["-pthread"]
if DEBUG:
    CFLAGS += ["-O1", "-g", "-fsanitize=address,undefined", "-fno-omit-frame-pointer"]
    LDFLAGS += ["-fsanitize=address,undefined"]
else:
    CFLAGS += ["-g0", "-fno-asynchronous-unwind-tables"]
    # One segment of code and constants: fewer pages for a file of 20 kB, and fewer maps.
    LDFLAGS += ["-Wl,-s", "-Wl,-z,noseparate-code"] if platform.system() == "Linux" else []

# The modules of evort._kernels, a few others (`linked`) and all hand-written C are in one shared object, that of
# evort._kernels.core: there is one dispatch state and one thread pool, and one file to map and to relocate
# (evort/_kernels/__init__.py).
HEADERS = sorted(str(p.relative_to(ROOT)) for ext in ("h", "inc") for p in (ROOT / KERNELS).rglob(f"*.{ext}"))
PORTABLE = f"{KERNELS}/ukr/scalar.c"
CORE_C = [f"{KERNELS}/pool.c", f"{KERNELS}/ukr/dispatch.c", PORTABLE]
# The tables of one architecture: that which is compiled for, which cross-compilers set by _PYTHON_HOST_PLATFORM.
TABLES = {"x86_64": ("avx2", "avx512", "avx512vnni"), "aarch64": ("neon", "neon_dotprod", "neon_i8mm")}
ISAS = TABLES.get(sysconfig.get_platform().rpartition("-")[2], ())
CORE_C += [f"{KERNELS}/ukr/{isa}.c" for isa in ISAS]


def linked() -> set[str]:
    """Modules of other packages than evort._kernels that are linked into its shared object."""
    for node in ast.parse((ROOT / KERNELS / "__init__.py").read_text()).body:
        match node:
            case ast.Assign([ast.Name("LINKED")], value):
                return set(ast.literal_eval(value))
    raise RuntimeError(f"{KERNELS}/__init__.py has no LINKED")


def write_operator_index() -> None:
    """Writes evort/ops/_index.py: which module defines an operator, so that `find` imports that one only, and which
    modules that one imports, so that they come the quick way as well.

    Read from the `@op("Name", domain="...")` decorators, and from calls `register(..., "Name", ...)` and of a module's
    own registering functions, `_unary("Name", ...)`; nobody keeps the table by hand.
    """
    index: dict[tuple[str, str], str] = {}
    imports: dict[str, list[str]] = {}
    for path in sorted((ROOT / "evort" / "ops").glob("*.py")):
        imports[path.stem] = []
        for node in ast.parse(path.read_text()).body:
            match node:
                case ast.ImportFrom("evort.ops", names):
                    imports[path.stem] += [alias.name for alias in names]
                case ast.ImportFrom(str(module)) if module.startswith("evort.ops."):
                    imports[path.stem].append(module.removeprefix("evort.ops."))
                case ast.Expr(ast.Call(ast.Name(id), [ast.Constant(str(name)), *_])) if id.startswith("_"):
                    index["", name] = path.stem
                case ast.Expr(ast.Call(ast.Name("register"), [_, ast.Constant(str(name)), *_])):
                    index["", name] = path.stem
            for call in node.decorator_list if isinstance(node, ast.ClassDef) else ():
                if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "op":
                    domain = next((k.value.value for k in call.keywords if k.arg == "domain"), "")
                    index[domain, call.args[0].value] = path.stem
    rows: dict[str, list[str]] = {}
    for (domain, name), module in sorted(index.items()):
        rows.setdefault(module, []).append(f"{domain}::{name}")

    def below(module: str, found: dict[str, None]) -> dict[str, None]:
        """Adds the modules that one imports, each after its own, and last itself."""
        for name in imports[module]:
            if name not in found:
                below(name, found)
        found[module] = None
        return found

    needs = {module: [*below(module, {})][:-1] for module in imports}
    text = '"""The operators (domain::name) of each family, and what modules import; written by setup.py."""\n'
    for table, found in (("FAMILIES", rows), ("NEEDS", needs)):
        lines = [f'    "{module}": "{" ".join(names)}",\n' for module, names in sorted(found.items()) if names]
        text += f"\n{table} = {{\n{''.join(lines)}}}\n"
    target = ROOT / "evort" / "ops" / "_index.py"
    if not target.is_file() or target.read_text() != text:
        target.write_text(text)


def extensions() -> list[Extension]:
    """One extension for each .pyx of the package."""
    found = []
    for pyx in sorted((ROOT / "evort").rglob("*.pyx")):
        path = pyx.relative_to(ROOT).as_posix()
        sources = [path, *(CORE_C if path == f"{KERNELS}/core.pyx" else [])]
        name = path.removesuffix(".pyx").replace("/", ".")
        found.append(
            Extension(
                name,
                sources,
                include_dirs=[KERNELS, f"{KERNELS}/ukr"],
                depends=HEADERS,
                extra_link_args=LDFLAGS,
                language="c",
            )
        )
    return found


class BuildExt(build_ext):
    """Compiles with all cores and says what is missing when a compiler is."""

    def finalize_options(self):
        import numpy
        from Cython.Build import cythonize

        for extension in self.distribution.ext_modules:
            extension.include_dirs.append(numpy.get_include())  # for those that cimport numpy
        self.distribution.ext_modules = cythonize(
            self.distribution.ext_modules,
            nthreads=0,
            build_dir="build/cython",
            compiler_directives={
                "language_level": 3,
                "boundscheck": DEBUG,
                "wraparound": False,
                "cdivision": True,
                "initializedcheck": DEBUG,
                "embedsignature": True,
                "embedsignature.format": "clinic",  # what inspect.signature reads of functions that are built in
                # Functions without Cython's own function type, classes that nobody pickles without the code to do so:
                # a third of the size of a small module.
                "binding": False,
                "auto_pickle": False,
            },
        )
        super().finalize_options()
        self.parallel = self.parallel or os.cpu_count()

    def build_extensions(self):
        others = linked()
        kernels = [e for e in self.extensions if e.name.startswith("evort._kernels.") or e.name in others]
        core = next(e for e in kernels if e.name == CORE)
        self.gcc = self.takes(UKR_GCC)
        core.extra_objects = self.objects(kernels)
        core.sources, core.depends = [], [*core.depends, *core.extra_objects]
        self.extensions[:] = [core, *(e for e in self.extensions if e not in kernels)]
        for extension in self.extensions:
            extension.extra_compile_args = [*CFLAGS, *self.own_flags(extension.name)]
        super().build_extensions()
        # What an older checkout built here and setuptools would pack as well: modules that are linked into core now.
        made = {Path(self.get_ext_fullpath(e.name)).resolve() for e in self.extensions}
        for path in Path(self.build_lib, "evort").rglob("*.so"):
            if path.resolve() not in made:
                path.unlink()

    def objects(self, extensions: list[Extension]) -> list[str]:
        """The object files of all sources, each compiled with the flags of its extension where it is out of date."""

        def compiled(extension: Extension, source: str) -> str:
            target = self.compiler.object_filenames([source], output_dir=self.build_temp)[0]
            if self.force or newer_group([source, *extension.depends], target):
                flags = [*CFLAGS, *self.own_flags(extension.name, source)]
                options = {"include_dirs": extension.include_dirs, "extra_postargs": flags}
                self.compiler.compile([source], output_dir=self.build_temp, depends=extension.depends, **options)
            return target

        jobs = [(extension, source) for extension in extensions for source in extension.sources]
        with ThreadPoolExecutor(self.parallel) as pool:
            return list(pool.map(compiled, *zip(*jobs, strict=True)))

    def own_flags(self, name: str, source: str = "") -> list[str]:
        """How a source of an extension is optimized, where that is not -O3."""
        if DEBUG:
            return []
        if source == PORTABLE and "avx2" in ISAS:  # which runs where even AVX2 is not there
            return LOOP_CFLAGS + LOOP_GCC * self.gcc
        if source in CORE_C:
            return UKR_CFLAGS + UKR_GCC * self.gcc
        name = name.removeprefix("evort.")
        return ["-Os"] if name in SMALL else LOOP_CFLAGS + LOOP_GCC * self.gcc if name in LOOPS else []

    def takes(self, flags: list[str]) -> bool:
        """Whether the compiler knows flags."""
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / "empty.c"
            source.write_text("typedef int empty;\n")
            try:
                self.compiler.compile([str(source)], folder, extra_postargs=["-Werror", *flags])
            except CompileError:
                return False
        return True

    def run(self):
        try:
            super().run()
        except Exception as error:
            raise RuntimeError(
                f"evort's kernels did not build: {error}\n"
                "They need a C11 compiler (Debian: apt install gcc python3-dev). Set CC to choose another compiler."
            ) from error


write_operator_index()
setup(
    packages=[
        *find_packages(include=["evort", "evort.*"]),
        "evort_tools",
        *(f"evort_tools.{name}" for name in find_packages("tools")),
    ],
    # Without models/, which is a sixth of what the package would weigh: `evort demo` finds it in the source tree.
    package_dir={"evort_tools": "tools"},
    package_data={
        "evort": ["py.typed", "**/*.pyi", "**/*.pxd", "**/*.h", "**/*.inc", "**/*.fbs"],
    },
    # Of the headers, those that a .pxd needs: what the micro-kernels consist of stays in the source distribution.
    exclude_package_data={
        "": ["*.c", "*.pyx"],
        "evort": [f"_kernels/ukr/{name}.h" for name in ("*_body", "bodies", "blas1", "gemm_*", "pool_along")],
    },
    include_package_data=False,
    ext_modules=extensions(),
    cmdclass={"build_ext": BuildExt},
    zip_safe=False,
)
