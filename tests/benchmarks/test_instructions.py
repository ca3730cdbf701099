"""What the guard of instruction counts does with its table. CI counts with `benchmarks/instructions.py --check`."""

import json
import sys

import instructions
import pytest

HERE = "gcc 12.2.0, cpython 3.11, numpy 2.4, x86_64"
TABLE = {
    "gcc 9.1, cpython 3.11, numpy 2.4, aarch64": {"scalar run": 5},
    HERE: {"avx2 run a": 1_000_000, "avx2 import": 1},
}


def test_reference_column():
    assert instructions.reference(TABLE, HERE) == (HERE, True)
    assert instructions.reference(TABLE, HERE.replace("12.2", "15")) == (HERE, False)
    assert instructions.reference(TABLE, HERE.replace("x86_64", "riscv64")) == ("", False)
    assert instructions.reference(TABLE, HERE.replace("gcc", "clang")) == ("", False)


def test_growth_is_found_and_noise_is_not():
    recorded = TABLE[HERE]
    edge = int(instructions.limit(1_000_000, True))
    assert instructions.grown({"avx2 run a": edge, "avx2 import": 1}, recorded, True) == []
    [line] = instructions.grown({"avx2 run a": edge + 1, "avx2 import": 1}, recorded, True)
    assert "run a" in line and "+0.57%" in line
    [line] = instructions.grown({"avx2 run b": 5}, recorded, True)
    assert "--update" in line
    # By another compiler: only compiled code counts, within what compilers differ by.
    assert instructions.grown({"avx2 run a": edge + 1, "avx2 import": 9_999_999}, recorded, False) == []
    assert len(instructions.grown({"avx2 run a": 9_999_999, "avx2 import": 1}, recorded, False)) == 1


@pytest.mark.parametrize(
    "option, value, status", [("--check", 1_000_000, 0), ("--check", 2_000_000, 1), ("", 2_000_000, 0)]
)
def test_exit_codes(monkeypatch, tmp_path, capsys, option, value, status):
    monkeypatch.setattr(instructions, "TABLE", tmp_path / "table.json")
    monkeypatch.setattr(instructions, "column", lambda: HERE)
    monkeypatch.setattr(instructions, "measure", lambda repeat: ({"avx2 run a": value}, {}))
    instructions.TABLE.write_text(json.dumps(TABLE))
    monkeypatch.setattr(sys, "argv", ["instructions.py", *option.split()])
    assert instructions.main() == status
    assert ("+100.00%" in capsys.readouterr().err) == (value > 1_000_000)
    monkeypatch.setattr(sys, "argv", ["instructions.py", "--update"])
    assert instructions.main() == 0
    assert json.loads(instructions.TABLE.read_text())[HERE] == {"avx2 run a": value}


def test_absent_tools_are_told_and_fail_nothing_but_a_measurement(monkeypatch, capsys):
    monkeypatch.setattr(instructions.shutil, "which", lambda name: None)
    monkeypatch.setattr(sys, "argv", ["instructions.py", "--check"])
    assert instructions.main() == 0
    assert "apt install valgrind" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["instructions.py"])
    assert instructions.main() == 1
