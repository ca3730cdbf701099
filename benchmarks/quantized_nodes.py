"""Hold evort to onnxruntime, operator by operator, in models that onnxruntime quantized.

    python benchmarks/quantized_nodes.py                         # every real model and three synthetic ones, both forms
    python benchmarks/quantized_nodes.py ppocr_rec --forms qdq --list

Small steps decide between characters or files, so a whole model's outputs tell little: onnxruntime's own differ by 74
steps between its levels of optimization (ppocr_rec). Here every tensor of the quantized model is taken from
onnxruntime, which runs it as it is written (optimizations off). Then each quantized operator, with the pairs of
QuantizeLinear and DequantizeLinear around it, is a model of its own, which evort converts and runs on onnxruntime's
inputs; what it gives is compared with onnxruntime's, in steps of the output. Bar: one step, everywhere.

Exits with 1 where an operator is off by more.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper
from rich.console import Console
from rich.table import Table

from evort.session import Session
from evort_tools.convert import convert_model

Arrays = dict[str, np.ndarray]
QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
PRODUCTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
FORMS = ("qdq", "qoperator")
SYNTHETIC = ("syn_resnet18", "syn_mobilenet_v2", "syn_bert_mini")
SAMPLES = 6  # to calibrate with: the numbers need not be good ones here
FLOAT = 1e-4  # the error of an output that stays in float, in parts of its largest number


@dataclass
class Outcome:
    """One operator with what is around it. operators: its nodes that compute. steps: the largest difference of its
    quantized outputs, and how many of `values` differ by more than one; error: of its outputs in float, in parts of the
    largest. floats: its products that evort runs in float."""

    name: str
    operators: str
    steps: int = 0
    more: int = 0
    values: int = 0
    error: float = 0.0
    floats: int = 0

    @property
    def good(self) -> bool:
        return self.steps <= 1 and self.error <= FLOAT


def tensors_of(model: onnx.ModelProto, feeds: Arrays, names: list[str]) -> Arrays:
    """onnxruntime's values of some tensors of a model, run as it is written."""
    import onnxruntime

    typed = onnx.ModelProto()
    typed.CopyFrom(model)
    del typed.graph.output[:]
    typed.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(typed.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return dict(zip(names, session.run(None, feeds), strict=True))


def is_quantized(node: onnx.NodeProto) -> bool:
    """Whether an operator computes with integers by itself (QOperator form)."""
    return node.op_type.startswith(("QLinear", "QGemm", "QAttention")) or node.op_type.endswith("Integer")


def parts(model: onnx.ModelProto) -> Iterator[list[onnx.NodeProto]]:
    """The nodes of each part that is compared: in order, operators in float between pairs with those pairs; operators
    that are quantized by themselves, each alone. Parts without integers are left out."""
    graph = model.graph
    constants = {t.name for t in graph.initializer}
    writer: dict[str, onnx.NodeProto] = {}
    for node in graph.node:
        if node.op_type in (DEQUANTIZE, "Constant") and all(n in constants for n in node.input):
            constants.update(node.output)
        writer.update(dict.fromkeys(node.output, node))
    group: dict[int, int] = {}

    def root(i: int) -> int:
        while group[i] != i:
            i = group[i]
        return i

    place = {id(node): i for i, node in enumerate(graph.node)}
    inner = [n for n in graph.node if n.op_type not in (QUANTIZE, DEQUANTIZE) and not set(n.output) <= constants]
    group.update((place[id(node)], place[id(node)]) for node in inner)
    for node in inner:
        for name in node.input:
            before = writer.get(name)
            joined = before is not None and place[id(before)] in group
            if joined and not is_quantized(node) and not is_quantized(before):
                group[root(place[id(node)])] = root(place[id(before)])
    members: dict[int, set[int]] = {}
    for i in group:
        members.setdefault(root(i), set()).add(i)
    for node in graph.node:  # what quantizes an input, or changes a scale, stands alone
        if node.op_type == QUANTIZE:
            before = writer.get(node.input[0])
            at = root(place[id(before)]) if before is not None and place[id(before)] in group else place[id(node)]
            members.setdefault(at, set()).add(place[id(node)])
    for found in members.values():
        pending = list(found)
        while pending:  # the pairs and constants that the nodes read
            for name in graph.node[pending.pop()].input:
                before = writer.get(name)
                if before is not None and (before.op_type == DEQUANTIZE or name in constants):
                    at = place[id(before)]
                    if at not in found:
                        found.add(at)
                        pending.append(at)
        nodes = [graph.node[i] for i in sorted(found)]
        if any(n.op_type in (QUANTIZE, DEQUANTIZE) or is_quantized(n) for n in nodes):
            yield nodes


def alone(model: onnx.ModelProto, nodes: list[onnx.NodeProto], values: Arrays) -> tuple[onnx.ModelProto, Arrays]:
    """A model of some nodes, and what it is fed with: the values of what they read from others."""
    written = {name for node in nodes for name in node.output}
    used = {name for node in nodes for name in node.input if name}
    outside = {n for node in model.graph.node if node not in nodes for n in node.input}
    outside |= {value.name for value in model.graph.output}
    known = [t for t in model.graph.initializer if t.name in used]
    fed = {n: values[n] for n in sorted(used - written - {t.name for t in known})}
    ends = [n for node in nodes for n in node.output if n and (n not in used or n in outside)]
    ends = [n for n in ends if n in values and not (n in used and _is_pair(nodes, n))]
    graph = helper.make_graph(
        nodes, "part",
        [helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape) for n, v in fed.items()],
        [helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(values[n].dtype), values[n].shape)
         for n in ends], known,
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version), fed


def _is_pair(nodes: list[onnx.NodeProto], name: str) -> bool:
    """Whether a tensor is what a DequantizeLinear gives to nodes of the part."""
    return any(name in node.output and node.op_type == DEQUANTIZE for node in nodes)


def compared(model: onnx.ModelProto, nodes: list[onnx.NodeProto], values: Arrays) -> Outcome:
    """Runs a part by evort on onnxruntime's inputs, and compares the outputs."""
    part, fed = alone(model, nodes, values)
    converted = convert_model(part)
    got = Session(converted, threads=1).run(fed)
    names = [n.op_type for n in nodes if n.op_type not in (QUANTIZE, DEQUANTIZE, "Constant")]
    found = Outcome(part.graph.output[0].name, "+".join(dict.fromkeys(names)) or QUANTIZE)
    quantized = any(n.op_type == QUANTIZE for n in nodes) or any(map(is_quantized, nodes))
    if quantized:
        found.floats = sum(n.op in PRODUCTS and not n.domain for n in converted.graph.nodes)
    for name, y in got.items():
        want = values[name]
        if want.dtype.kind in "iu":
            off = np.abs(y.astype(np.int64) - want.astype(np.int64))
            found.steps = max(found.steps, int(off.max(initial=0)))
            found.more += int(np.count_nonzero(off > 1))
            found.values += off.size
        elif want.dtype.kind == "f":
            largest = float(np.abs(want).max(initial=0)) or 1.0
            found.error = max(found.error, float(np.abs(y - want).max(initial=0)) / largest)
    return found


def quantized(name: str, form: str, per_channel: bool) -> tuple[onnx.ModelProto, Arrays]:
    """A case's model as onnxruntime quantizes it, and a sample to test it on."""
    import calibration
    from _quantizers import model_of, prepare, samples, static_by_peer
    from onnxruntime import quantization as ort

    own, peer = model_of(name)
    known = calibration.known(name)
    seen = samples(name, SAMPLES, False, own) if known else [_inputs(name)]
    settings: dict[str, Any] = {
        "per_channel": per_channel, "activation_type": ort.QuantType.QUInt8, "weight_type": ort.QuantType.QInt8,
        "quant_format": ort.QuantFormat.QDQ if form == "qdq" else ort.QuantFormat.QOperator,
    }  # fmt: skip
    # onnxruntime leaves files in the working directory.
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        source, target = str(Path(folder) / "source.onnx"), str(Path(folder) / "quantized.onnx")
        onnx.save(peer, source)
        static_by_peer(prepare(source, Path(folder)), target, seen, settings)
        return onnx.load(target), samples(name, 1, True, own)[0] if known else seen[0]


def _inputs(name: str) -> Arrays:
    """The first inputs of a synthetic case."""
    import cases

    case = next(c for c in cases.synthetic_cases() if c.name == name)
    return next(iter(case.shapes.values()))()


def results_of(name: str, form: str) -> tuple[list[Outcome] | str, str]:
    """What became of a case's parts, or why there is no such model; and how it was quantized. onnxruntime writes models
    with scales by channel that it does not run itself (of weights that are reshaped): then with one for all."""
    why = ""
    for per_channel in (True, False):
        try:
            return outcomes(*quantized(name, form, per_channel)), form if per_channel else f"{form}, per tensor"
        except Exception as error:  # onnxruntime's quantizer, or onnxruntime itself, refuses some models
            why = why or f"{type(error).__name__}: {error}".replace("\n", " ")[:80]
    return why, form


def outcomes(model: onnx.ModelProto, feeds: Arrays) -> list[Outcome]:
    """Every part of a quantized model, compared."""
    found = list(parts(model))
    wanted = {n for nodes in found for node in nodes for n in (*node.input, *node.output) if n}
    written = {n for node in model.graph.node for n in node.output}
    values = {**feeds, **tensors_of(model, feeds, sorted(wanted & written))}
    return [compared(model, nodes, values) for nodes in found]


def row(name: str, form: str, found: list[Outcome] | str) -> tuple[str, ...]:
    if isinstance(found, str):
        return name, form, f"[dim]{found}[/]", "", "", "", ""
    steps = max((o.steps for o in found), default=0)
    differs = sum(o.more for o in found)
    error = max((o.error for o in found), default=0.0)
    worst = f"{steps}" if steps <= 1 else f"[red]{steps}[/]"
    floats = sum(o.floats for o in found)
    real = f"{error:.1e}" if error <= FLOAT else f"[red]{error:.1e}[/]"
    return name, form, str(len(found)), worst, f"{differs} of {sum(o.values for o in found)}", real, str(floats)


def main() -> None:
    import calibration
    import cases

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL", help="names of cases")
    parser.add_argument("--forms", default=",".join(FORMS), help=f"of {', '.join(FORMS)}")
    parser.add_argument("--list", action="store_true", help="each operator that is off by more than the bar")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    names = args.models or [c.name for c in cases.real_cases() if calibration.known(c.name)] + list(SYNTHETIC)
    logging.disable(logging.WARNING)
    table = Table(title="operators of models that onnxruntime quantized, each alone, against onnxruntime")
    for head in ("model", "form", "operators", "steps", "more than one", "floats, error", "products in float"):
        table.add_column(head, justify="left" if head in ("model", "form") else "right")
    results: dict[str, Any] = {}
    bad: list[str] = []
    console = Console() if sys.stdout.isatty() else Console(width=140)
    for name in names:
        for form in args.forms.split(","):
            found, how = results_of(name, form)
            table.add_row(*row(name, how, found))
            results[f"{name}/{form}"] = found if isinstance(found, str) else [asdict(o) for o in found]
            for outcome in () if isinstance(found, str) else found:
                if not outcome.good:
                    bad.append(f"{name} {form}: {outcome}")
    console.print(table)
    if args.list:
        for line in bad:
            console.print(line, markup=False)
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
