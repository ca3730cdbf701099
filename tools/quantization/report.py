"""The report of a quantization as one HTML page, which opens without a network."""

from __future__ import annotations

import html
import math
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from evort.graph import Model
from evort.session import Session
from evort.weights import with_floats
from evort_tools.bench import latency
from evort_tools.common import Progress, bytes_text, silent, write_atomically
from evort_tools.quantization import trials
from evort_tools.quantization.layers import Layer, compare, integer_range, used_share

if TYPE_CHECKING:
    from evort_tools.quantize import Result

_STYLE = """
body { font: 14px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 84em; padding: 0 1em; color: #1b2733; }
h1 { font-size: 1.5em; } h2 { font-size: 1.15em; margin-top: 2em; }
table { border-collapse: collapse; width: 100%; } td, th { padding: .3em .6em; border-bottom: 1px solid #dde3ea; }
th { text-align: left; background: #f3f6f9; position: sticky; top: 0; } td.n, th.n { text-align: right; }
td.n { font-variant-numeric: tabular-nums; } td.name { word-break: break-all; min-width: 10em; max-width: 22em; }
h1, p, td:first-child, td:last-child { overflow-wrap: anywhere; }
@media (max-width: 75em) { table { display: block; overflow-x: auto; } }
.bad { background: #fbe3e0; } .fair { background: #fdf3d8; } .note { color: #5a6978; }
svg text { font: 10px system-ui, sans-serif; fill: #5a6978; }
"""
# SQNR in dB below which a layer is marked.
BAD, FAIR = 15.0, 25.0
_BARS = 64  # of a histogram as drawn
_COMPARED = 8  # samples on which layers are


def page(
    title: str,
    summary: Sequence[tuple[str, str, str]],
    layers: Sequence[Layer],
    notes: Sequence[str] = (),
    float_layers: Mapping[str, str] | None = None,
    precisions: Sequence[Mapping[str, Any]] = (),
) -> str:
    """The page. summary: rows (what, before, after). notes: lines on the whole. float_layers: why a layer was kept in
    float, by name. precisions: rows of `Search.rows`, of a model in mixed precision."""
    rows = "".join(
        f"<tr><td>{_text(what)}</td><td class=n>{_text(a)}</td><td class=n>{_text(b)}</td></tr>"
        for what, a, b in summary
    )
    kept = "".join(
        f"<tr><td class=name>{_text(k)}</td><td>{_text(v)}</td></tr>" for k, v in (float_layers or {}).items()
    )
    parts = [
        f"<h1>{_text(title)}</h1>",
        *(f"<p class=note>{_text(note)}</p>" for note in notes),
        f"<table><tr><th>whole model<th class=n>before<th class=n>after</tr>{rows}</table>",
        *_precision_parts(precisions),
        "<h2>Where the error comes from</h2>",
        "<p class=note>Signal to quantization noise of each layer's output, in dB (more is better): the layer alone, "
        "fed with float tensors, and accumulated, with the error of all layers before it.</p>",
        chart(layers),
        "<h2>Layers</h2>",
        layer_table(layers),
    ]
    if kept:
        parts += ["<h2>Kept in float</h2>", f"<table><tr><th>layer<th>why</tr>{kept}</table>"]
    body = "\n".join(parts)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{_text(title)}</title>'
        f"<style>{_STYLE}</style></head><body>\n{body}\n</body></html>\n"
    )


# The columns that say what became of a layer in mixed precision, and whether they are numbers.
PRECISION_COLUMNS = (("layer", False), ("operator", False), ("precision", False), ("alone, dB", True), ("bytes", True),
                     ("ratio", True), ("µs", True), ("ratio", True))  # fmt: skip


def precision_cells(row: Mapping[str, Any]) -> list[str]:
    """A row of `Search.rows` as texts, one for each of PRECISION_COLUMNS."""
    chosen, size, us = row["precision"], row["bytes"], row["us"]
    noise, now = row["noise_alone"][chosen], size[chosen]
    real = row["us_float32"]
    return [
        row["name"],
        row["operator"],
        f"{chosen} (pinned)" if row["pinned"] else chosen,
        "exact" if not noise else f"{-10 * math.log10(noise):.1f}",
        bytes_text(now),
        f"{now / size['float32']:.2f}" if size["float32"] else "",
        "" if us is None else f"{us:.1f}",
        f"{us / real:.2f}" if us is not None and real else "",
    ]


def _precision_parts(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    if not rows:
        return []
    head = "".join(f"<th{' class=n' if numeric else ''}>{name}</th>" for name, numeric in PRECISION_COLUMNS)
    body = "".join(
        "<tr>"
        + "".join(
            f"<td class={'n' if numeric else 'name' if what == 'layer' else 'text'}>{_text(cell)}</td>"
            for cell, (what, numeric) in zip(precision_cells(row), PRECISION_COLUMNS, strict=True)
        )
        + "</tr>"
        for row in rows
    )
    note = "Alone: the SQNR of the model's outputs with only this layer in its precision. Times as the search predicts."
    return ["<h2>Precisions</h2>", f"<p class=note>{note}</p>", f"<table><tr>{head}</tr>{body}</table>"]


def write_report(
    source: Model,
    result: Result,
    title: str,
    path: str | os.PathLike[str],
    progress: Progress | None,
) -> list[Layer]:
    """Compares both models layer by layer, measures both, and writes the page, whole or not at all; returns what each
    layer costs."""
    options = result.options
    kind, judges = next(iter(result.judges.items()))
    samples = judges.head(min(_COMPARED, trials.trial_count(source, judges)))
    step = (progress or silent)("comparing layers", len(samples))
    real = result.plain or result.real
    found = compare(real, result.model, result.encodings, samples, options.threads, step, fitted=result.real.graph)
    rows = []
    for what, before, after in (("file", "source", "file"), ("constants", "weights_before", "weights_after")):
        if before in result.sizes and after in result.sizes:
            rows.append((what, bytes_text(result.sizes[before]), bytes_text(result.sizes[after])))
    feeds, measured = samples[0], []
    for model in (source, with_floats(result.model)[0]):
        session = Session(model, threads=options.threads or 1)
        spent = latency(session, feeds, 0.5)["p50_ms"]
        measured.append((bytes_text(session.memory().arena), f"{spent:.3f} ms"))
    rows += [("arena", measured[0][0], measured[1][0]), ("latency, median", measured[0][1], measured[1][1])]
    for which, judged in result.measured.items():
        for name, sqnr in judged["sqnr_db"].items():
            rows.append((f"output {name!r}: SQNR, {judged['samples']} {which}", "", f"{sqnr:.1f} dB"))
            if name in judged["worst_db"]:
                rows.append(("the worst of these", "", f"{judged['worst_db'][name]:.1f} dB"))
    if options.metric is not None and result.loss:
        reached = result.loss["float"] - result.loss["loss"]
        rows.append(("metric", f"{result.loss['float']:.6g}", f"{reached:.6g}"))
    notes = [f"Scheme {options.scheme}; compared on {len(samples)} {kind}."]
    if result.helpers:
        notes.append(f"Helpers that lowered the error: {', '.join(result.helpers)}.")
    notes += result.notes
    precisions = result.layers if options.scheme == "mixed" else ()
    write_atomically(path, page(title, rows, found, notes, result.kept, precisions).encode())
    return found


def layer_table(layers: Sequence[Layer]) -> str:
    """A row for each layer: errors, ranges, sizes, and a histogram with the ends of the integer range."""
    heads = ("layer", "operator", "alone dB", "accum. dB", "cosine", "integers reach", "values seen", "used", "clipped",
             "bytes before", "after", "distribution")  # fmt: skip
    numeric = range(2, 11)
    head = "".join(f"<th{' class=n' if i in numeric else ''}>{h}</th>" for i, h in enumerate(heads))
    return f"<table><tr>{head}</tr>{''.join(map(_row, layers))}</table>"


def _row(layer: Layer) -> str:
    alone = None if layer.alone is None else layer.alone.sqnr
    ends = integer_range(layer)
    cells = [
        (layer.name, "name"),
        (layer.op if layer.after in ("", layer.op) else f"{layer.op} as {layer.after}", ""),
        ("" if alone is None else _decibels(alone), f"n {_grade(alone)}"),
        (_decibels(layer.accumulated.sqnr), f"n {_grade(layer.accumulated.sqnr)}"),
        (f"{layer.accumulated.cosine:.5f}", "n"),
        ("float" if ends is None else f"{ends[0]:.4g} to {ends[1]:.4g}", "n"),
        (f"{layer.low:.4g} to {layer.high:.4g}", "n"),
        ("" if ends is None else f"{used_share(layer):.0%}", "n"),
        ("" if ends is None else f"{layer.clipped / max(1, layer.seen):.3%}", "n"),
        (bytes_text(layer.bytes_before), "n"),
        (bytes_text(layer.bytes_after), "n"),
    ]
    text = "".join(f'<td class="{kind}">{_text(value)}</td>' for value, kind in cells)
    return f"<tr>{text}<td>{histogram(layer)}</td></tr>"


def _grade(sqnr: float | None) -> str:
    return "" if sqnr is None or sqnr >= FAIR else "bad" if sqnr < BAD else "fair"


def _decibels(value: float) -> str:
    return "exact" if value == math.inf else f"{value:.1f}"


def histogram(layer: Layer, width: int = 160, height: int = 36) -> str:
    """A layer's values as an SVG; heights are logarithms of counts, red lines the ends of the integer range."""
    if layer.edges is None:
        return ""
    counts = np.log1p(layer.histogram.reshape(_BARS, -1).sum(1))
    low, high = layer.edges
    ends = integer_range(layer)
    left, right = (low, high) if ends is None else (min(low, ends[0]), max(high, ends[1]))
    span = right - left or 1.0

    def x(value: float) -> float:
        return (value - left) / span * width

    tall = counts / max(counts.max(), 1e-9) * (height - 2)
    step = (high - low) / _BARS
    points = [f"M{x(low):.1f} {height}"]
    for i, top in enumerate(tall):
        points.append(f"V{height - top:.1f}H{x(low + (i + 1) * step):.1f}")
    lines = "" if ends is None else "".join(
        f'<path d="M{min(max(x(e), 0.5), width - 0.5):.1f} 0V{height}" stroke="#c0392b"/>' for e in ends
    )  # fmt: skip
    return (
        f'<svg width="{width}" height="{height}" role="img" aria-label="histogram">'
        f'<path d="{"".join(points)}V{height}Z" fill="#8fb3d1"/>{lines}</svg>'
    )


def chart(layers: Sequence[Layer], width: int = 1100, height: int = 260) -> str:
    """SQNR of all layers, alone and accumulated, as an SVG."""
    shown = [layer for layer in layers if math.isfinite(layer.accumulated.sqnr)]
    if not shown:
        return "<p>No layer differs from the float model.</p>"
    top = max(10.0, *(_capped(v) for layer in shown for v in _values(layer)))
    top = 10 * math.ceil(top / 10)
    left, bottom = 36, 18
    step = (width - left) / len(shown)

    def y(value: float) -> float:
        return (height - bottom - 8) * (1 - max(0.0, _capped(value)) / top) + 12

    grid = "".join(
        f'<path d="M{left} {y(v):.1f}H{width}" stroke="#e3e8ee"/><text x="2" y="{y(v) + 3:.1f}">{v} dB</text>'
        for v in range(0, top + 1, 10)
    )
    marks = []
    line = []
    for i, layer in enumerate(shown):
        at = left + (i + 0.5) * step
        line.append(f"{'ML'[i > 0]}{at:.1f} {y(layer.accumulated.sqnr):.1f}")
        tip = f"{layer.name}: accumulated {_decibels(layer.accumulated.sqnr)} dB"
        if layer.alone is not None:
            tip += f", alone {_decibels(layer.alone.sqnr)} dB"
            base = y(layer.alone.sqnr)
            marks.append(
                f'<rect x="{at - 0.35 * step:.1f}" y="{base:.1f}" width="{0.7 * step:.1f}" height="{y(0) - base:.1f}" '
                f'fill="#bcd2e5"><title>{_text(tip)}</title></rect>'
            )
        marks.append(
            f'<circle cx="{at:.1f}" cy="{y(layer.accumulated.sqnr):.1f}" r="3" fill="#c0392b">'
            f"<title>{_text(tip)}</title></circle>"
        )
    return (
        f'<svg viewBox="0 0 {width} {height}" width="100%" role="img" aria-label="SQNR by layer">{grid}{"".join(marks)}'
        f'<path d="{"".join(line)}" fill="none" stroke="#c0392b"/></svg>'
        "<p class=note>Bars: the layer alone. Line: accumulated.</p>"
    )


def _values(layer: Layer) -> list[float]:
    return [layer.accumulated.sqnr] if layer.alone is None else [layer.accumulated.sqnr, layer.alone.sqnr]


def _capped(value: float) -> float:
    return min(value, 80.0)


def _text(value: Any) -> str:
    return html.escape(str(value))
