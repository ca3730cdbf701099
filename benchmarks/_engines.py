"""The engines that `compare.py` runs: how each converts, loads and runs a model, in its own best setting.

An engine is prepared once by the driver (`prepare` turns the ONNX file into what the engine loads) and then used by a
worker in a fresh process: `start` imports it, `load` opens the model, `run` answers one request with arrays in and out.
Nothing heavy is imported before `start`, so that a worker can time the import and measure its memory.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

Arrays = dict[str, Any]  # str -> numpy.ndarray


class Engine:
    """One inference engine; subclasses are bound to their name in `ENGINES`."""

    module = ""  # what `start` imports
    needs: tuple[str, ...] = ()  # further modules, for `prepare`
    own_model = False  # True: takes the original ONNX file, False: the peers' (see cases.Case.peer_model)

    @classmethod
    def missing(cls) -> list[str]:
        """Modules that would have to be installed first."""
        return [m for m in (cls.module, *cls.needs) if m and importlib.util.find_spec(m) is None]

    def prepare(self, onnx_file: Path, feeds: Arrays) -> Path:
        """The file to load, made once and outside the measurement."""
        return onnx_file

    def start(self) -> None:
        self.api = __import__(self.module)

    def load(self, file: str, threads: int, feeds: Arrays) -> None:
        raise NotImplementedError

    def run(self, feeds: Arrays) -> Arrays:
        raise NotImplementedError


class Bare(Engine):
    """No engine: the NumPy process against which memory is counted."""

    def start(self) -> None:
        pass

    def load(self, file: str, threads: int, feeds: Arrays) -> None:
        pass

    def run(self, feeds: Arrays) -> Arrays:
        return {}


class Evort(Engine):
    """evort, from an `.etm` file that is memory-mapped."""

    module = "evort"
    needs = ("evort_tools",)
    own_model = True

    def prepare(self, onnx_file: Path, feeds: Arrays) -> Path:
        from evort_tools import convert

        file = onnx_file.with_suffix(".etm")
        if not file.exists():
            convert(onnx_file, file)
        return file

    def load(self, file: str, threads: int, feeds: Arrays) -> None:
        self.session = self.api.load(file, threads=threads, cache=self.cache(file))

    def cache(self, file: str) -> Path | None:
        """The folder of plans that are kept from one process to the next."""
        return None

    def run(self, feeds: Arrays) -> Arrays:
        return self.session.run(feeds)


def calibration_samples(onnx_file: Path, count: int = 16) -> list[Arrays]:
    """Inputs to calibrate the case of this file with: of its kind where `calibration.py` knows it, else seeded."""
    import calibration
    import numpy as np

    import models

    name = onnx_file.name.partition(".")[0]
    if calibration.known(name):
        return list(calibration.samples(name, count))
    return [models.MODELS[name.removeprefix("syn_")].example(np.random.default_rng(i)) for i in range(count)]


class EvortInt8(Evort):
    """evort with weights and activations of 8 bits, as `evort quantize` makes them from samples."""

    def prepare(self, onnx_file: Path, feeds: Arrays) -> Path:
        from evort_tools import quantize

        file = onnx_file.with_suffix(".int8.etm")
        if not file.exists():
            quantize(onnx_file, file, calibration_samples(onnx_file))
        return file


class EvortKept(Evort):
    """evort with the plan that an earlier process has kept."""

    def cache(self, file: str) -> Path:
        return Path(file).parent / "plans"


class EvortInt8Kept(EvortKept, EvortInt8):
    """The same in int8."""


class OnnxRuntime(Engine):
    """onnxruntime with its defaults: every graph optimization, memory arena on, threads spin while they wait."""

    module = "onnxruntime"
    spin = True
    arena = True

    def load(self, file: str, threads: int, feeds: Arrays) -> None:
        options = self.api.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        options.enable_cpu_mem_arena = options.enable_mem_pattern = self.arena
        options.add_session_config_entry("session.intra_op.allow_spinning", "1" if self.spin else "0")
        self.session = self.api.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        self.names = [output.name for output in self.session.get_outputs()]

    def run(self, feeds: Arrays) -> Arrays:
        return dict(zip(self.names, self.session.run(self.names, feeds), strict=True))


class OnnxRuntimeNoSpin(OnnxRuntime):
    """onnxruntime whose idle threads sleep: better where cores are shared."""

    spin = False


class OnnxRuntimeLean(OnnxRuntime):
    """onnxruntime set for least memory: no arena, no memory pattern, no spinning."""

    spin = arena = False


def quantized_by_onnxruntime(onnx_file: Path) -> Path:
    """The model with QuantizeLinear and DequantizeLinear around what onnxruntime's tool quantizes (uint8 activations,
    int8 weights by channel): what onnxruntime and OpenVINO run in integers."""
    file = onnx_file.with_suffix(".qdq.onnx")
    if file.exists():
        return file
    from onnxruntime import quantization as tool
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(tool.CalibrationDataReader):
        def __init__(self) -> None:
            self.left = iter(calibration_samples(onnx_file))

        def get_next(self) -> Arrays | None:
            return next(self.left, None)

    import onnx.version_converter

    model = onnx.load(onnx_file)
    if max(o.version for o in model.opset_import if o.domain == "") < 13:  # whose DequantizeLinear has one scale
        onnx_file = onnx_file.with_suffix(".17.onnx")
        onnx.save(onnx.version_converter.convert_version(model, 17), onnx_file)
    clean = onnx_file.with_suffix(".clean.onnx")
    try:
        quant_pre_process(str(onnx_file), str(clean))
    except Exception:  # its symbolic shape inference knows fewer operators than onnxruntime
        quant_pre_process(str(onnx_file), str(clean), skip_symbolic_shape=True)
    types = {"activation_type": tool.QuantType.QUInt8, "weight_type": tool.QuantType.QInt8}
    try:
        tool.quantize_static(str(clean), str(file), Reader(), per_channel=True, **types)
    except ValueError:  # which it raises for some models by channel
        tool.quantize_static(str(clean), str(file), Reader(), per_channel=False, **types)
    return file


class OnnxRuntimeInt8(OnnxRuntime):
    """onnxruntime, quantized by its own tool: u8s8."""

    def prepare(self, onnx_file: Path, feeds: Arrays) -> Path:
        return quantized_by_onnxruntime(onnx_file)


class OpenVino(Engine):
    """OpenVINO's CPU plugin in latency mode at float32 precision, one stream; it keeps what it compiled."""

    module = "openvino"

    def load(self, file: str, threads: int, feeds: Arrays) -> None:
        config = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "CACHE_DIR": str(Path(file).parent / "openvino"),
        }
        self.request = self.api.Core().compile_model(file, "CPU", config).create_infer_request()

    def run(self, feeds: Arrays) -> Arrays:
        results = self.request.infer(feeds, share_inputs=True)
        return {port.any_name: value for port, value in results.items()}


class OpenVinoInt8(OpenVino):
    """OpenVINO on the model that onnxruntime's tool quantized."""

    needs = ("onnxruntime",)

    def prepare(self, onnx_file: Path, feeds: Arrays) -> Path:
        return quantized_by_onnxruntime(onnx_file)


class OpenVinoNncf(OpenVino):
    """OpenVINO on the model that its own tool quantized (NNCF: symmetric weights by channel, its choice of what)."""

    needs = ("nncf",)

    def prepare(self, onnx_file: Path, feeds: Arrays) -> Path:
        file = onnx_file.with_suffix(".nncf.xml")
        if file.exists():
            return file
        import nncf
        import onnx
        import openvino

        operators = {node.op_type for node in onnx.load(onnx_file, load_external_data=False).graph.node}
        samples = calibration_samples(onnx_file)
        model = openvino.Core().read_model(onnx_file)
        model.reshape({name: list(value.shape) for name, value in samples[0].items()})
        model = nncf.quantize(
            model,
            nncf.Dataset(samples),
            preset=nncf.QuantizationPreset.PERFORMANCE,
            subset_size=len(samples),
            model_type=nncf.ModelType.TRANSFORMER if "Softmax" in operators and "Conv" not in operators else None,
        )
        openvino.save_model(model, file, compress_to_fp16=False)
        return file


class Mnn(Engine):
    """MNN through its module interface at float32 precision."""

    module = "MNN"

    def prepare(self, onnx_file: Path, feeds: Arrays) -> Path:
        file = onnx_file.with_suffix(".mnn")
        if not file.exists():
            # MNN's own command would install a package of its log service into this environment first.
            convert = "import sys, _tools; _tools.mnnconvert(sys.argv)"
            names = ["--modelFile", onnx_file, "--MNNModel", file]
            subprocess.run(
                [sys.executable, "-c", convert, "-f", "ONNX", *names, "--bizCode", "evort"],
                check=True,
                capture_output=True,
                timeout=300,
            )
        return file

    def start(self) -> None:
        import MNN.expr
        import MNN.nn

        self.expr, self.nn = MNN.expr, MNN.nn

    def load(self, file: str, threads: int, feeds: Arrays) -> None:
        self.runtime = self.nn.create_runtime_manager(({"backend": "CPU", "numThread": threads, "precision": "high"},))
        self.net = self.nn.load_module_from_file(file, [], [], runtime_manager=self.runtime)
        info = self.net.get_info()
        self.ins, self.outs = info["inputNames"], info["outputNames"]

    def run(self, feeds: Arrays) -> Arrays:
        def variable(value: Any) -> Any:
            kind = self.expr.float if value.dtype == "float32" else self.expr.int  # MNN has no int64
            plain = value if value.dtype == "float32" else value.astype("int32")
            return self.expr.const(plain, list(value.shape), self.expr.NCHW, kind)

        xs = [variable(feeds[name]) for name in self.ins]
        return {name: y.read().copy() for name, y in zip(self.outs, self.net.forward(xs), strict=True)}


class Ncnn(Engine):
    """ncnn at float32 storage, converted by pnnx for the very shape it is measured at (its graphs are static)."""

    module = "ncnn"
    needs = ("pnnx",)

    def prepare(self, onnx_file: Path, feeds: Arrays) -> Path:
        shapes = ["x".join(map(str, value.shape)) for value in feeds.values()]
        folder = onnx_file.parent / f"{onnx_file.stem}.ncnn.{'_'.join(shapes)}"
        file = folder / "model.ncnn.param"
        if not file.exists():
            folder.mkdir(exist_ok=True)
            shutil.copyfile(onnx_file, folder / "model.onnx")
            kinds = {"float32": "f32", "int64": "i64", "int32": "i32"}
            sizes = ",".join(f"[{','.join(map(str, v.shape))}]{kinds[str(v.dtype)]}" for v in feeds.values())
            spec = importlib.util.find_spec("pnnx")
            tool = Path(next(iter(spec.submodule_search_locations))) / "pnnx"  # importing the package would need torch
            subprocess.run(
                [tool, "model.onnx", f"inputshape={sizes}", "fp16=0"],
                cwd=folder,
                check=True,
                capture_output=True,
                timeout=300,
            )
        return file

    def load(self, file: str, threads: int, feeds: Arrays) -> None:
        self.net = self.api.Net()
        self.net.opt.num_threads = threads
        self.net.opt.use_fp16_packed = self.net.opt.use_fp16_storage = self.net.opt.use_fp16_arithmetic = False
        if self.net.load_param(file) or self.net.load_model(file.replace(".param", ".bin")):
            raise RuntimeError(f"ncnn cannot load {file}")
        self.ins, self.outs = list(self.net.input_names()), list(self.net.output_names())

    def run(self, feeds: Arrays) -> Arrays:
        """ncnn's matrices have no batch axis: every sample is a run of its own."""
        import numpy as np

        samples = [
            self._run_one([value[i] for value in feeds.values()]) for i in range(len(next(iter(feeds.values()))))
        ]
        return {name: np.stack(values) for name, values in zip(self.outs, zip(*samples, strict=True), strict=True)}

    def _run_one(self, sample: list[Any]) -> list[Any]:
        with self.net.create_extractor() as extractor:
            for name, value in zip(self.ins, sample, strict=True):
                extractor.input(name, self.api.Mat(value))
            results = []
            for name in self.outs:
                status, mat = extractor.extract(name)
                if status:
                    raise RuntimeError(f"ncnn cannot compute {name}")
                results.append(mat.numpy().copy())
        return results


ENGINES: dict[str, type[Engine]] = {
    "bare": Bare,
    "evort": Evort,
    "evort-int8": EvortInt8,
    "evort-kept": EvortKept,
    "evort-int8-kept": EvortInt8Kept,
    "onnxruntime": OnnxRuntime,
    "onnxruntime-nospin": OnnxRuntimeNoSpin,
    "onnxruntime-lean": OnnxRuntimeLean,
    "onnxruntime-int8": OnnxRuntimeInt8,
    "openvino": OpenVino,
    "openvino-int8": OpenVinoInt8,
    "openvino-nncf": OpenVinoNncf,
    "mnn": Mnn,
    "ncnn": Ncnn,
}
