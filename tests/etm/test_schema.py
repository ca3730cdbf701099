"""The schema, the code made from it and evort's own tables agree."""

import re
import subprocess
import sys
from pathlib import Path

from evort.etm._generated import etm_generated as fb
from evort.types import DType

ROOT = Path(__file__).parents[2]


def test_generated_code_matches_the_schema():
    done = subprocess.run([sys.executable, ROOT / ".ci" / "etm_schema.py"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_element_types_are_those_of_evort():
    mine = {name.upper(): value for name, value in vars(fb.DType).items() if not name.startswith("_")}
    assert mine.pop("UNDEFINED") == 0
    assert mine == {d.name: int(d) for d in DType}


def test_slots_of_the_reader_are_those_that_flatbuffers_uses():
    """The generated readers look fields up at the offsets that the compiled reader has."""
    text = (ROOT / "evort" / "etm" / "_schema.pxd").read_text()
    slots = {name: int(value) for name, value in re.findall(r"(\w+_AT_\w+) = (\d+)", text)}
    source = Path(fb.__file__).read_text()
    seen = 0
    for table, body in re.findall(r"^class (\w+)\(object\):\n(.*?)(?=^class |^def |\Z)", source, re.M | re.S):
        for method, at in re.findall(r"def (\w+)\(self(?:, j)?\):\n        o = .*Offset\((\d+)\)", body):
            name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", f"{table}At{method}").upper()
            if name in slots:
                assert slots[name] == int(at), name
                seen += 1
    assert seen == len(slots)
