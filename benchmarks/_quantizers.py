"""One job of `quantization.py` in a fresh process: a model quantized by one tool in one way, and what came of it.

    measure(job)  starts it; this file run as a program does it, and prints one JSON line

Both tools get the same calibration samples and are judged on the same test samples, against evort's float32 results.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from _worker import environment

Arrays = dict[str, np.ndarray]
# Calibration samples, test samples: fewer of models that take long.
COUNTS = {"lenet": (200, 10000), "mnist_8": (200, 10000), "super_resolution_10": (12, 4), "halftone_v1": (6, 3),
          "lut3d_96": (8, 1), "ppocr_det": (8, 8), "ppocr_rec": (32, 64), "ppocr_cls": (64, 2000)}  # fmt: skip
USUAL = (64, 256)
MEMORY = 12 << 30  # bytes that a child may ask for: onnxruntime's entropy method keeps all activations


@dataclass(frozen=True)
class Way:
    """A tool and how it is called. `options`: evort's options; for onnxruntime `method` is its calibration's."""

    scheme: str
    tool: str
    method: str = ""
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        return " ".join(part for part in (self.scheme, self.tool, self.method) if part)


WAYS = (
    Way("static int8", "evort"),
    Way("static int8", "onnxruntime", "minmax"),
    Way("static int8", "onnxruntime", "entropy"),
    Way("static int8", "onnxruntime", "percentile"),
    Way("dynamic int8", "evort", options={"scheme": "dynamic"}),
    Way("dynamic int8", "onnxruntime", "dynamic"),
    Way("dynamic int16", "evort", options={"scheme": "dynamic", "bits": 16}),
    Way("int4 groups of 32", "evort", options={"scheme": "weight-only", "block": 32}),
    Way("int4 groups of 32", "onnxruntime", "nbits"),
    Way("float16 weights", "evort", options={"scheme": "weight-only", "bits": 16}),
)


@dataclass(frozen=True)
class Job:
    """What one process does: quantizes `case` by `way` into `file`, and tests the result."""

    case: str
    way: Way
    file: str
    timeout: float = 900


def measure(job: Job) -> dict[str, Any]:
    """Runs a job in its own process; {"error": ...} where it fails."""
    command = [sys.executable, __file__, json.dumps(asdict(job))]
    # onnxruntime leaves files in the working directory.
    with tempfile.TemporaryFile("w+") as errors, tempfile.TemporaryDirectory() as folder:
        try:
            done = subprocess.run(
                command, stdout=subprocess.PIPE, stderr=errors, text=True, timeout=job.timeout, env=environment(),
                cwd=folder,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return {"error": f"not done after {job.timeout:.0f} s"}
        errors.seek(0)
        lines = errors.read().strip().splitlines()
    if done.returncode:
        return {"error": (lines[-1] if lines else f"exit status {done.returncode}")[-300:]}
    return json.loads(done.stdout.splitlines()[-1])


# Quantizing


def model_of(name: str) -> tuple[Any, Any]:
    """A case's model as evort converts it, and as the other engines take it. What draws random numbers gets them as an
    input, so that results can be compared."""
    import cases

    case = next(c for c in (*cases.real_cases(), *cases.synthetic_cases()) if c.name == name)
    return tuple(noise_as_input(model) for model in (case.model(), case.peer_model()))


def noise_as_input(model: Any) -> Any:
    """RandomUniformLike(x) becomes an input `noise0` of x's shape (they have fixed shapes here)."""
    from onnx import helper, shape_inference

    drawn = [node for node in model.graph.node if node.op_type == "RandomUniformLike"]
    known = {v.name: v for v in shape_inference.infer_shapes(model).graph.value_info} if drawn else {}
    for i, node in enumerate(drawn):
        kind = known[node.output[0]].type.tensor_type
        shape = [d.dim_value for d in kind.shape.dim]
        model.graph.input.append(helper.make_tensor_value_info(f"noise{i}", kind.elem_type, shape))
        for reader in model.graph.node:
            reader.input[:] = [f"noise{i}" if n == node.output[0] else n for n in reader.input]
        model.graph.node.remove(node)
    return model


def samples(name: str, count: int, test: bool, model: Any) -> list[Arrays]:
    """Samples of a case, with noise where the model takes it."""
    import calibration

    rng = np.random.default_rng([9, test])
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in model.graph.input}
    noise = {n: shape for n, shape in shapes.items() if n.startswith("noise")}
    return [
        {**feeds, **{n: rng.random(shape, np.float32) for n, shape in noise.items()}}
        for feeds in calibration.samples(name, count, test)
    ]


def quantize(job: Job, own: Any, peer: Any, data: list[Arrays]) -> float | None:
    """Writes the quantized model to the job's file; returns the SQNR in dB that evort's tool tells its user."""
    if job.way.tool == "evort":
        import evort_tools

        weights_only = job.way.options.get("scheme", "static") != "static"
        given = None if weights_only and job.way.options.get("bits", 8) == 16 else data
        given = None if job.way.scheme.startswith("dynamic") else given
        told = evort_tools.quantize(own, job.file, given, **job.way.options).sqnr.values()
        return -10 * float(np.log10(np.mean([10 ** (-sqnr / 10) for sqnr in told]))) if told else None
    import onnx
    from onnxruntime import quantization as ort

    with tempfile.TemporaryDirectory() as folder:
        source = str(Path(folder) / "source.onnx")
        onnx.save(peer, source)
        if job.way.scheme.startswith("int4"):
            from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

            made = MatMulNBitsQuantizer(onnx.load(source), block_size=32, is_symmetric=True)
            made.process()
            onnx.save(made.model.model, job.file)
            return None
        prepared = prepare(source, Path(folder))
        if job.way.scheme.startswith("dynamic"):
            ort.quantize_dynamic(prepared, job.file, per_channel=True, weight_type=ort.QuantType.QInt8)
            return None
        methods = {"minmax": "MinMax", "entropy": "Entropy", "percentile": "Percentile"}
        settings = {
            "per_channel": True, "activation_type": ort.QuantType.QUInt8, "weight_type": ort.QuantType.QInt8,
            "calibrate_method": getattr(ort.CalibrationMethod, methods[job.way.method]),
        }  # fmt: skip
        static_by_peer(prepared, job.file, data, settings)
        return None


def static_by_peer(source: str, target: str, data: list[Arrays], settings: dict[str, Any]) -> None:
    """A model that onnxruntime quantizes, from file to file."""
    from onnxruntime import quantization as ort

    try:
        ort.quantize_static(source, target, Reader(data), **settings)
    except ValueError:  # it fails in a step of its own that can be left out (onnxruntime 1.32, magika)
        settings = {**settings, "extra_options": {"QDQDisableWeightAdjustForInt32Bias": True}}
        ort.quantize_static(source, target, Reader(data), **settings)


def prepare(source: str, folder: Path) -> str:
    """The model as onnxruntime's quantizer wants it: a new opset, shapes inferred, nodes fused; as far as it can."""
    import onnx
    from onnx import version_converter
    from onnxruntime import quantization as ort

    model = onnx.load(source)
    if next(o.version for o in model.opset_import if not o.domain) < 13:  # which have no scales by channel
        source = str(folder / "newer.onnx")
        onnx.save(version_converter.convert_version(model, 17), source)
    for skip in (False, True):
        try:
            ort.quant_pre_process(source, str(folder / "prepared.onnx"), skip_symbolic_shape=skip)
            return str(folder / "prepared.onnx")
        except Exception as error:  # its symbolic inference refuses some models
            print(f"quant_pre_process, skip_symbolic_shape={skip}: {error}", file=sys.stderr)
    return source


class Reader:
    """The samples as onnxruntime's calibration reads them."""

    def __init__(self, data: list[Arrays]):
        self._left = iter(data)

    def get_next(self) -> Arrays | None:
        return next(self._left, None)


# Judging


def runner(file: str, tool: str) -> Callable[[Arrays], list[np.ndarray]]:
    """What runs a file and gives its outputs in order."""
    if tool == "evort":
        import evort

        session = evort.load(file, threads=1)
        return lambda feeds: list(session.run(feeds).values())
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return lambda feeds: session.run(None, feeds)


def agreement(name: str) -> Callable[[np.ndarray], np.ndarray] | None:
    """What a model decides from its first output: labels, of which the share that agrees with float32 is counted."""
    if name in ("lenet", "mnist_8", "ppocr_cls", "magika", "syn_lenet", "syn_mobilenet", "syn_resnet18"):
        return lambda y: y.argmax(-1)
    if name == "ppocr_rec":  # each column of the picture has a character or none
        return lambda y: y.argmax(-1)
    if name == "ppocr_det":  # its postprocessing calls what is above 0.3 text
        return lambda y: y > 0.3
    if name == "silero_vad":
        return lambda y: y > 0.5
    return None


def judge(name: str, run: Callable[[Arrays], list[np.ndarray]], data: Iterator[Arrays], expected: list[Any]) -> dict:
    """SQNR (dB, of the mean noise over signal of the outputs), agreement, and of how many decisions."""
    from evort_tools.quantization.compare import Error

    decide, same, all_of = agreement(name), 0, 0
    errors: list[Error] = []
    for feeds, wanted in zip(data, expected, strict=True):
        got = run(feeds)
        for i, (y, z) in enumerate(zip(wanted, got, strict=True)):
            if i == len(errors):
                errors.append(Error())
            errors[i].add(y, np.asarray(z))
        if decide is not None:
            equal = decide(wanted[0]) == decide(got[0])
            same, all_of = same + int(np.count_nonzero(equal)), all_of + equal.size
    ratio = float(np.mean([e.ratio for e in errors]))
    sqnr = -10 * float(np.log10(max(ratio, 1e-20)))
    return {"sqnr": sqnr, "agreement": same / all_of if all_of else None, "decisions": all_of}


def mnist(run: Callable[[Arrays], list[np.ndarray]]) -> float:
    """LeNet's accuracy on the 10,000 test digits, in percent."""
    import calibration

    images, labels = calibration.mnist("t10k")
    good = 0
    for at in range(0, len(images), 100):
        got = run({"image": images[at : at + 100]})[0].argmax(1)
        good += int(np.count_nonzero(got == labels[at : at + 100]))
    return 100 * good / len(images)


def shipped_pictures(run: Callable[[Arrays], list[np.ndarray]]) -> list[float]:
    """PSNR in dB of lut3d_96 against the shipped CMYK pictures."""
    from cases import SHARED
    from PIL import Image

    found = []
    for index in (0, 2):
        folder = SHARED / "models" / "lut3d_96" / "images"
        rgb = np.asarray(Image.open(folder / f"input_{index}.jpg").convert("RGB"), np.float32) / 255
        out = run({"input0": np.ascontiguousarray(rgb.transpose(2, 0, 1)[None])})[0]
        got = (np.clip(out[0], 0, 1) * 255).astype(np.uint8).transpose(1, 2, 0)
        with Image.open(folder / f"output_{index}.tiff") as tiff:
            error = got.astype(np.float64) - np.asarray(tiff)
        found.append(10 * float(np.log10(255**2 / max(np.mean(error**2), 1e-9))))
    return found


def work(job: Job) -> dict[str, Any]:
    """The job itself; runs in the child."""
    from evort import etm
    from evort_tools.convert import Options, convert_model

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    own, peer = model_of(job.case)
    calibration, tests = COUNTS.get(job.case, USUAL)
    data = samples(job.case, calibration, False, own)
    start, busy = time.perf_counter(), time.process_time()
    told = quantize(job, own, peer, data)
    found: dict[str, Any] = {
        "told": told,
        "seconds": time.perf_counter() - start,
        "cpu_seconds": time.process_time() - busy,
    }
    del data
    gc.collect()
    real = Path(job.file).with_suffix(f".{os.getpid()}.float.etm")
    try:
        etm.write(convert_model(own, Options()), real)
        found["file"] = os.stat(job.file).st_size
        found["float_file"] = os.stat(real).st_size if job.way.tool == "evort" else len(peer.SerializeToString())
        test = samples(job.case, tests, True, own)
        reference = runner(str(real), "evort")
        run = runner(job.file, job.way.tool)
        found.update(judge(job.case, run, iter(test), [reference(feeds) for feeds in test]))
        if job.case == "lenet":
            found["accuracy"], found["float_accuracy"] = mnist(run), mnist(reference)
        if job.case == "lut3d_96":
            found["psnr"] = min(shipped_pictures(run))
    finally:
        real.unlink(missing_ok=True)
    return found


if __name__ == "__main__":
    results = os.dup(1)
    os.dup2(2, 1)  # tools that print do so on standard error
    given = json.loads(sys.argv[1])
    answer = work(Job(**{**given, "way": Way(**given["way"])}))
    os.write(results, (json.dumps(answer) + "\n").encode())
