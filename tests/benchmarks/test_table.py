"""The table of table.py from made-up figures: best peers, wrong results, ratios, bars."""

import json

import pytest
import table
from compare import FIGURES, STEPS_CPU, Row


def row(case, engine, ms, threads=1, difference=None, error="", peak=10.0):
    rounds = {figure: [] if error else [ms] * 3 for figure in FIGURES + STEPS_CPU}
    if not error:
        rounds["peak_mib"] = [peak]
    return Row(case, "1", threads, engine, error=error, difference=difference, rounds=rounds)


ROWS = [
    row("lenet", "evort", 2.0, peak=3.0),
    row("lenet", "onnxruntime", 4.0),
    row("lenet", "openvino", 5.0, difference=1e-6),
    row("lenet", "ncnn", 1.0, difference=0.5),  # fast, but wrong
    row("lenet", "mnn", 0, error="crashed"),
    row("lenet", "evort-int8", 3.0),
    row("lenet", "onnxruntime-int8", 8.0, difference=0.05),  # int8 differs, that is no error
    row("magika", "evort", 6.0),
    row("magika", "onnxruntime", 3.0),
    row("lenet", "evort", 1.0, threads=2),
]


def test_best_peer_and_ratios():
    lenet, magika = table.figures(ROWS, 1, "latency", cpu=False)
    assert lenet["best"] == {"evort": "onnxruntime", "evort-int8": "onnxruntime"}  # whose float32 beats its int8
    assert lenet["ratios"] == {"evort": 0.5, "evort-int8": 0.75}
    assert (lenet["cells"]["ncnn"], lenet["cells"]["mnn"], magika["cells"]["ncnn"]) == ("wrong", "fails", "-")
    assert magika["ratios"] == {"evort": 2.0}
    start = table.figures(ROWS, 1, "start", cpu=True)
    assert start[0]["cells"]["evort"] == "6"  # import, load and first answer


def test_summary_and_scaling():
    [real, integer] = table.summary(ROWS, 1, "latency", cpu=False)
    assert "geometric mean 1.00 of 2 models" in real and "magika 2.00" in real and "LeNet" not in real
    assert "never behind" in integer
    assert table.scaling(ROWS) == "speed-up by a second thread: LeNet 28x28 2.00"


def test_kept_figures_give_the_same_tables(tmp_path, monkeypatch, capsys):
    table.keep(ROWS, tmp_path / "t.json")
    kept = json.loads((tmp_path / "t.json").read_text())
    assert [Row(**r) for r in kept["rows"]] == ROWS
    monkeypatch.setattr("sys.argv", ["table.py", "--read", str(tmp_path / "t.json"), "--markdown", "-",
                                     "--plot", str(tmp_path / "t.png")])  # fmt: skip
    table.main()
    text = capsys.readouterr().out
    assert "| LeNet 28x28 | 2 | 0.50 | **4** | 5 | fails | wrong | 3 | 0.75 | 8 |" in text
    assert kept["about"] in text and (tmp_path / "t.png").stat().st_size > 1000
    monkeypatch.setattr("sys.argv", ["table.py", "--engines", "abacus"])
    with pytest.raises(SystemExit, match="abacus"):
        table.main()
