"""How files are read: maps, versions, and each rule that docs/etm-format.md makes."""

import gc
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from etm_support import DOMAIN, SAMPLES, all_types, assemble, convolutional, guarded, node, parts, plain, quantized
from hypothesis import given, settings
from hypothesis import strategies as st

import evort
from evort import etm
from evort._kernels.core import release
from evort.errors import EtmFormatError, EvortError, ShapeError, UnsupportedError
from evort.etm._reader import LIMITS, blob_alignment, xxh64
from evort.graph import Graph, Model, Node, Quantization, Sparsity, Tensor
from evort.ops.base import check_arity, complete_attrs, find
from evort.types import STORAGE, DType


def constant(data: np.ndarray, dtype: DType = DType.FLOAT, **more: object) -> Model:
    """A model of one constant."""
    graph = Graph()
    graph.add(Tensor("w", dtype, more.pop("shape", data.shape), data, **more))
    graph.outputs = ["w"]
    return Model(graph)


def test_xxh64_of_published_vectors():
    """From the specification's sanity checks (xxhash 3.5 gives the same)."""
    assert xxh64(b"") == 0xEF46DB3751D8E999
    assert xxh64(b"a") == 0xD24EC4F1A98C6E5B
    assert xxh64(b"abc") == 0x44BC2CF5AD770999
    assert xxh64(bytes(range(33))) == 0xC535D1ACAFB8EAD
    assert xxh64(bytes(range(64))) == 0xF7C67301DB6713F0
    assert xxh64(bytes(range(100))) == 0x6AC1E58032166597
    assert xxh64(bytes(range(101)), 7) == 0xE878E9791DBC64FA


def test_constants_lie_in_the_map(tmp_path):
    path = tmp_path / "m.etm"
    etm.write(convolutional(), path)
    os.chmod(path, 0o444)
    file = etm.read(path)
    assert (file.nbytes_mapped, file.nbytes_copied) == (path.stat().st_size, 0)
    for tensor in file.model.graph.tensors.values():
        if tensor.data is not None:
            assert not tensor.data.flags.owndata and not tensor.data.flags.writeable
            assert tensor.data.__array_interface__["data"][0] % blob_alignment(tensor.data.nbytes) == 0
            with pytest.raises(ValueError, match="read-only"):
                tensor.data[...] = 0


def test_the_map_outlives_the_file_while_an_array_uses_it(tmp_path):
    etm.write(constant(np.arange(4, dtype=np.float32)), tmp_path / "m.etm")
    file = etm.read(tmp_path / "m.etm")
    array = file.model.graph.tensors["w"].data
    file.close()
    del file
    (tmp_path / "m.etm").unlink()
    gc.collect()
    assert array.tolist() == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="cannot set WRITEABLE"):
        array.flags.writeable = True


@pytest.mark.skipif(not os.path.exists("/proc/self/smaps"), reason="needs Linux's account of memory maps")
def test_processes_share_the_map(tmp_path):
    """The file's pages are not private to the process, and only those that were touched are in memory."""
    path = tmp_path / "m.etm"
    etm.write(constant(np.ones(1 << 20, np.float32)), path)
    file = etm.read(path)
    file.model.graph.tensors["w"].data[:1024].sum()
    entry = Path("/proc/self/smaps").read_text().split(str(path), 1)[1]
    fields = dict(line.split(":", 1) for line in entry.splitlines()[1:20])
    assert fields["Private_Dirty"].split() == ["0", "kB"]
    assert file.model is not None


def resident(path) -> int:
    """Bytes of a mapped file that are in memory."""
    entry = Path("/proc/self/smaps").read_text().split(str(path), 1)[1]
    return 1024 * int(next(line for line in entry.splitlines() if line.startswith("Rss:")).split()[1])


@pytest.mark.skipif(not os.path.exists("/proc/self/smaps"), reason="needs Linux's account of memory maps")
def test_weights_that_were_copied_leave_memory(tmp_path):
    w = np.arange(1 << 20, dtype=np.float32)
    etm.write(constant(w), tmp_path / "m.etm")
    data = etm.read(tmp_path / "m.etm").model.graph.tensors["w"].data
    np.testing.assert_array_equal(data, w)
    assert resident(tmp_path / "m.etm") >= w.nbytes
    release(data.reshape(1024, -1)[512:])
    assert resident(tmp_path / "m.etm") <= w.nbytes // 2 + (1 << 17)
    release(data)
    assert resident(tmp_path / "m.etm") <= 1 << 17
    np.testing.assert_array_equal(data, w)  # read from the file again
    release(data[::2])
    release(w)  # lies in no file
    np.testing.assert_array_equal(data, w)


def test_arrays_outlive_the_file(tmp_path):
    etm.write(constant(np.arange(4, dtype=np.float32)), tmp_path / "m.etm")
    with etm.read(tmp_path / "m.etm") as file:
        array = file.model.graph.tensors["w"].data
    assert file.model is None
    os.unlink(tmp_path / "m.etm")
    assert array.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_bytes_are_not_copied(kind):
    data = kind(etm.write(convolutional()))
    file = etm.read(data)
    assert (file.nbytes_mapped, file.nbytes_copied) == (0, 0)
    start = np.frombuffer(data, np.uint8).__array_interface__["data"][0]
    array = file.model.graph.tensors["w1"].data
    assert 0 < array.__array_interface__["data"][0] - start < len(data)
    assert not array.flags.writeable
    assert plain(file.model) == plain(convolutional())


def test_a_misaligned_buffer_is_copied():
    data = etm.write(convolutional())
    file = etm.read(memoryview(b"x" + data)[1:])
    assert file.nbytes_copied == len(data)
    assert plain(file.model) == plain(convolutional())
    with pytest.raises(TypeError, match="contiguous"):
        etm.read(memoryview(data)[::2])


def test_copies_are_counted():
    assert etm.read(etm.write(constant(np.ones(7, np.int8), DType.INT4))).nbytes_copied == 7
    model = constant(np.array(["abc", "é"], object), DType.STRING)
    assert etm.read(etm.write(model)).nbytes_copied == 3 * 8 + 5  # the blob's bytes: ends and texts
    twice = constant(np.ones(7, np.int8), DType.INT4)
    twice.graph.add(Tensor("v", DType.INT4, (7, 1), np.ones((7, 1), np.int8)))
    assert etm.read(etm.write(twice)).nbytes_copied == 7


def test_reading_imports_no_flatbuffers():
    code = "import sys, evort.etm; evort.etm.read(sys.stdin.buffer.read()); sys.exit('flatbuffers' in sys.modules)"
    graph = Graph()
    graph.add(Tensor("w", DType.FLOAT, (), np.zeros((), np.float32)))
    done = subprocess.run([sys.executable, "-P", "-c", code], input=etm.write(Model(graph)))
    assert done.returncode == 0


def test_what_is_no_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        etm.read(tmp_path / "missing.etm")
    with pytest.raises((EtmFormatError, OSError), match=r"regular|directory"):
        etm.read(tmp_path)
    (tmp_path / "empty.etm").touch()
    with pytest.raises(EtmFormatError, match=r"empty\.etm: the file is empty"):
        etm.read(tmp_path / "empty.etm")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(EtmFormatError, match="not a regular file"):
            etm.read(tmp_path / "pipe")


METADATA, WEIGHTS = parts(etm.write(convolutional()))


def test_assembled_files_are_files():
    assert plain(etm.read(assemble(METADATA, WEIGHTS)).model) == plain(convolutional())


def test_newer_minor_versions_are_read():
    assert etm.read(assemble(METADATA, WEIGHTS, version=(1, 255))).header.version == (1, 255)
    assert etm.read(assemble(METADATA, WEIGHTS, flags=0x80000000)).header.flags == 0x80000000


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": (2, 0), "oldest": (1, 0)}, r"byte 4: the file has format 2\.0 .*Install a newer evort"),
        ({"version": (1, 1), "oldest": (1, 1)}, r"byte 4: .* needs a reader of at least 1\.1; this one reads 1\.0"),
        ({"version": (0, 9), "oldest": (0, 9)}, r"byte 4: there is no format 0\.9"),
        ({"flags": 1}, "byte 8: flags 0x1"),
        ({"file_size": 64}, "byte 48: the file should have 64 bytes"),
        ({"metadata_offset": 0}, "byte 16"),
        ({"metadata_offset": 72}, "byte 16"),
        ({"metadata_offset": 2**63}, "byte 16"),
        ({"metadata_length": 2**64 - 1}, "byte 24"),
        ({"metadata_length": 0}, "byte 24"),
        ({"weights_offset": 64}, "byte 32"),
        ({"weights_offset": 2**64 - 64}, "byte 32"),
        ({"weights_length": 2**64 - 1}, "byte 40"),
        ({"weights_length": len(WEIGHTS) + 1}, "byte 40"),
    ],
)
def test_headers_that_are_refused(change, message):
    # The hash must be that of the bytes that the header names, where it names any.
    fields = {"metadata_offset": 64, "metadata_length": len(METADATA)} | change
    with pytest.raises(EtmFormatError, match=message):
        etm.read(assemble(METADATA, WEIGHTS, **fields))


def test_magic_and_hash():
    data = bytearray(etm.write(convolutional()))
    data[0] ^= 1
    with pytest.raises(EtmFormatError, match=r"byte 0: .* is not the magic number"):
        etm.read(data)
    data[0] ^= 1
    data[12] ^= 1  # reserved, but hashed
    with pytest.raises(EtmFormatError, match="byte 56: the hash"):
        etm.read(data)
    with pytest.raises(EtmFormatError, match="63 bytes is too short"):
        etm.read(bytes(63))


def test_checksums_find_changed_weights(tmp_path):
    path = tmp_path / "m.etm"
    etm.write(convolutional(), path)
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)
    etm.read(path)
    with pytest.raises(EtmFormatError, match=r"m\.etm: byte \d+, Tensor\.data: the checksum of bytes \d+ to \d+"):
        etm.read(path, checksum=True)


def test_required_features():
    # A file of the sample's kind whose only string beside "" is asked for as a feature.
    import flatbuffers

    from evort.etm._generated import etm_generated as fb

    b = flatbuffers.Builder()
    texts = [b.CreateString(""), b.CreateString("teleport")]
    fb.ModelStartStringsVector(b, 2)
    for text in reversed(texts):
        b.PrependUOffsetTRelative(text)
    strings = b.EndVector()
    features = b.CreateNumpyVector(np.array([1], np.uint32))
    fb.GraphStart(b)
    graph = fb.GraphEnd(b)
    fb.ModelStart(b)
    fb.ModelAddStrings(b, strings)
    fb.ModelAddGraph(b, graph)
    fb.ModelAddRequiredFeatures(b, features)
    b.Finish(fb.ModelEnd(b), b"ETM1")
    with pytest.raises(EtmFormatError, match=r"Model\.required_features: the file needs 'teleport'"):
        etm.read(assemble(bytes(b.Output())))


def edges(inputs, outputs, nodes, constants=()) -> Model:
    graph = Graph()
    for name in {*inputs, *constants}:
        data = np.zeros(1, np.float32) if name in constants else None
        graph.add(Tensor(name, DType.FLOAT, (1,), data))
    graph.inputs, graph.outputs = list(inputs), list(outputs)
    graph.nodes = [n if isinstance(n, Node) else node(*n) for n in nodes]
    return Model(graph)


def branch(outputs, nodes, **more) -> Graph:
    return edges(more.get("inputs", []), outputs, nodes, more.get("constants", ())).graph


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (edges(["x"], ["z"], [(["y"], ["z"]), (["x"], ["y"])]), r"Node\.inputs: .*Any -> 'z' reads 'y', which nothing"),
        (edges(["x"], ["y"], [(["y"], ["y"])]), r"reads 'y'"),
        (edges(["x"], ["y"], [(["x"], ["y"]), (["x"], ["y"])]), r"Node\.outputs: 'y' is defined already"),
        (edges(["x"], ["x"], [(["x"], ["x"])]), r"'x' is defined already"),
        (edges(["x", "x"], [], []), r"Graph\.inputs: 'x' is defined already"),
        (edges(["x"], [], [], ["x"]), r"Graph\.inputs: 'x' is defined already"),
        (edges([""], [], []), r"the empty name cannot be defined"),
        (edges([], [], [], [""]), r"the empty name cannot be defined"),
        (edges(["x"], [""], []), r"Graph\.outputs: output '' is never computed"),
        (edges([], [], [node([], ["y"], g=branch([], [(["z"], ["w"])])), node([], ["z"])]), r"reads 'z'"),
        (edges([], ["w"], [node([], ["y"], g=branch([], [([], ["w"])]))]), r"output 'w' is never computed"),
        (edges(["x"], [], [node([], ["y"], g=branch([], [([], ["x"])]))]), r"'x' is defined already"),
        (edges(["x"], [], [node([], ["y"], g=branch([], [], inputs=["x"]))]), r"'x' is defined already"),
        (edges(["x"], [], [node([], ["y"], g=branch([], [], constants=["x"]))]), r"'x' is defined already"),
        (edges([], [], [node([], ["y"], g=branch(["y"], []))]), r"output 'y' is never computed"),
        (edges([], [], [Node("", [], ["y"])]), r"Node\.op: a node has no operator"),
    ],
)
def test_graph_edges_that_are_refused(model, message):
    with pytest.raises(EtmFormatError, match=message):
        etm.write(model)  # which reads back what it writes


def test_names_end_with_their_graph():
    """Two branches, and what comes after them, may use one name."""
    inner = branch(["t"], [(["x"], ["t"])])
    model = edges(["x"], ["t"], [node([], ["y"], g=inner, h=inner), (["y"], ["t"])])
    assert plain(etm.read(etm.write(model)).model) == plain(model)


def test_inputs_need_a_tensor():
    model = edges(["x"], [], [])
    del model.graph.tensors["x"]
    with pytest.raises(EtmFormatError, match=r"Graph\.inputs: input 'x' is not among the graph's tensors"):
        etm.write(model)


def test_nesting_is_limited():
    def nested(depth: int) -> Model:
        graph = Graph()
        for _ in range(depth):
            outer = Graph()
            outer.nodes = [node([], ["y"], g=graph)]
            graph = outer
        return Model(graph)

    etm.write(nested(LIMITS["nesting"]))
    with pytest.raises(EtmFormatError, match="nested more than 16 deep"):
        etm.write(nested(LIMITS["nesting"] + 1))


def test_counts_are_limited():
    long = edges([], [], [node([""] * (LIMITS["operands"] + 1), ["y"])])
    with pytest.raises(EtmFormatError, match=r"Node\.inputs: 65537 items; the limit is 65536"):
        etm.write(long)
    many = edges([], [], [Node("Any", [], ["y"], {f"a{i}": i for i in range(257)}, DOMAIN)])
    with pytest.raises(EtmFormatError, match=r"Node\.attributes: 257 attributes; the limit is 256"):
        etm.write(many)
    deep = Graph()
    deep.add(Tensor("x", DType.FLOAT, (1,) * 65))
    with pytest.raises(EtmFormatError, match=r"Tensor\.shape: rank 65; the limit is 64"):
        etm.write(Model(deep))
    huge = Graph()
    huge.add(Tensor("x", DType.FLOAT, (2**31, 0, 2**31)))
    with pytest.raises(EtmFormatError, match=r"Tensor\.shape: dimension 2147483648 makes a tensor of more than"):
        etm.write(Model(huge))


def scale(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


ONES = np.ones((4, 6), np.int8)


@pytest.mark.parametrize(
    ("quant", "message"),
    [
        (Quantization("per_tensor", 8, scale(0.0)), r"scale 0 is 0\.0, not finite and above 0"),
        (Quantization("per_tensor", 8, scale(-1.0)), "scale 0"),
        (Quantization("per_tensor", 8, scale(float("nan"))), "scale 0 is nan"),
        (Quantization("per_tensor", 8, scale(float("inf"))), "scale 0 is inf"),
        (Quantization("per_tensor", 8, np.ones(1)), "scales must be float32"),
        (Quantization("per_tensor", 8, scale(1, 1)), "2 scales, where .* needs 1"),
        (Quantization("per_axis", 8, scale(1, 1), axis=0), "2 scales, where .* needs 4"),
        (Quantization("grouped", 8, np.ones((4, 2), np.float32), axis=1, group=4), None),
        (Quantization("grouped", 8, np.ones((4, 2), np.float32), axis=1, group=2), "8 scales, where .* needs 12"),
        (Quantization("grouped", 8, np.ones((4, 2), np.float32), axis=1), "groups of no item"),
        (Quantization("per_axis", 8, scale(1), axis=2), r"axis 2 is outside a tensor of shape \(4, 6\)"),
        (Quantization("per_axis", 8, scale(1), axis=-1), "axis -1"),
        (Quantization("per_tensor", 0, scale(1)), "0 bits"),
        (Quantization("per_tensor", 9, scale(1)), "9 bits in an element of type INT8"),
        (Quantization("per_tensor", 4, scale(1), np.array([8], np.int8)), "zero point 0 is 8, outside -8 to 7"),
        (Quantization("per_tensor", 8, scale(1), np.array([-129], np.int16)), "outside -128 to 127"),
        (Quantization("per_tensor", 8, scale(1), np.array([2**64 - 1], np.uint64)), "zero point 0"),
        (Quantization("per_tensor", 8, scale(1), np.array([0.0])), "zero points must be integers"),
        (Quantization("per_tensor", 8, scale(1), np.array([0, 0], np.int8)), "of the scales' shape"),
        (Quantization("per_tensor", 8, scale(1), range=(1.0, 0.0)), "is no range"),
        (Quantization("per_tensor", 8, scale(1), range=(0.0, float("inf"))), "is no range"),
    ],
)
def test_quantization_is_checked(quant, message):
    model = constant(ONES, DType.INT8, quant=quant)
    if message is None:
        etm.write(model)
        return
    with pytest.raises(EtmFormatError, match=message):
        etm.write(model)


def test_counts_of_scales_wait_for_symbolic_dimensions():
    graph = Graph()
    for i, shape in enumerate([None, ("n", 3)]):
        for j, scheme in enumerate(["per_axis", "grouped"]):
            quant = Quantization(scheme, 8, np.ones(5, np.float32), axis=0, group=j)
            graph.add(Tensor(f"{i}{j}", DType.FLOAT, shape, quant=quant))
    assert plain(etm.read(etm.write(Model(graph))).model) == plain(Model(graph))


def sparse(kind, block, indices, stored, shape=(4, 6), index_type=DType.UINT8, fill=1) -> Model:
    data = np.full(stored, fill, np.int8)
    indices = np.array(indices, STORAGE[index_type])
    return constant(data, DType.INT8, shape=shape, sparsity=Sparsity(kind, block, indices, index_type))


def zeros(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.uint8)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (sparse("n:m", (4, 3), zeros(4, 8), (4, 8)), r"Sparsity.block: 4 of 3"),
        (sparse("n:m", (0, 3), zeros(4, 0), (4, 0)), r"\(0, 3\) must be numbers from 1 to 256"),
        (sparse("n:m", (1, 257), zeros(4, 1), (4, 1)), "must be numbers from 1 to 256"),
        (sparse("n:m", (1,), zeros(4, 2), (4, 2)), "1 numbers, where 2 are needed"),
        (sparse("n:m", (1, 1), zeros(), (), ()), r"in a tensor of shape \(\)"),
        (sparse("n:m", (1, 3), zeros(4, 2), (4, 2), index_type=DType.INT8), "must be uint2, uint4 or uint8, not int8"),
        (sparse("n:m", (1, 3), zeros(2, 4), (4, 2)), r"must have shape \[4, 2\], not \[2, 4\]"),
        (sparse("n:m", (1, 4), zeros(4, 1), (4, 1)), r"must have shape \[4, 2\]"),
        (sparse("n:m", (1, 3), np.full((4, 2), 3), (4, 2)), "index 0 is 3, after -1 and of 3"),
        (sparse("n:m", (1, 3), np.full((4, 2), 3), (4, 2), index_type=DType.UINT2), "index 0 is 3, after -1 and of 3"),
        (sparse("n:m", (2, 3), np.ones((4, 4)), (4, 4)), "index 1 is 1, after 1"),
        (sparse("n:m", (1, 3), zeros(4, 2), (4, 6)), "takes 8 bytes, not 24"),
        (sparse("n:m", (1, 4), np.full((4, 2), 2), (4, 2)), "an item outside of the tensor"),
        (sparse("block", (2,), [0], (1, 2)), "1 numbers, where 2 are needed"),
        (sparse("block", (2, 0), [0], (1, 2, 0)), "must be numbers"),
        (sparse("block", (257, 1), [0], (1, 257, 1)), "must be numbers"),
        (sparse("block", (2, 3), [4], (1, 2, 3)), "index 0 leads past the last of 4 blocks"),
        (sparse("block", (2, 3), [0, 3], (2, 2, 3)), "index 1 leads past"),
        (sparse("block", (2, 3), [255, 0], (1, 2, 3)), "index 0 leads past"),
        (sparse("block", (2, 3), [[0]], (1, 2, 3)), "must be a vector"),
        (sparse("block", (2, 3), [0], (1, 2, 3), index_type=DType.INT32), "not int32"),
        (sparse("block", (2, 3), [0], (2, 2, 3)), "takes 6 bytes, not 12"),
        (sparse("block", (2, 4), [1], (1, 2, 4)), "an item outside of the tensor"),
        (sparse("block", (3, 2), [3], (1, 3, 2)), "an item outside of the tensor"),
        (sparse("block", (1, 1), [0], (1, 1, 1), (1 << 20, 1 << 20)), "at least one in 1024 must be there"),
        (sparse("block", (1, 1), [], (0, 1, 1), (1024, 1)), "at least one in 1024 must be there"),
    ],
)
def test_sparsity_is_checked(model, message):
    with pytest.raises(EtmFormatError, match=message):
        etm.write(model)


@pytest.mark.parametrize(
    "model",
    [
        sparse("n:m", (2, 4), [[0, 1, 0, 1], [2, 3, 0, 1]] * 2, (4, 4), index_type=DType.UINT2),
        sparse("block", (2, 4), [0, 1], (2, 2, 4), index_type=DType.UINT2),
        sparse("block", (3, 4), [15, 0], (1, 3, 4), (6, 32), index_type=DType.UINT4),
        sparse("block", (3, 4), [1, 0], (2, 3, 4), fill=0),
        sparse("block", (2, 3), [], (0, 2, 3)),
        sparse("block", (2, 3), [3, 255], (1, 2, 3), (300, 6)),
    ],
)
def test_sparse_constants_are_read(model):
    read = etm.read(etm.write(model)).model
    assert plain(read) == plain(model)
    evort.load(etm.write(model)).run({})


def test_what_no_kernel_reads_is_not_run():
    """The format has other layouts; until kernels do, loading such a file is an error."""
    with pytest.raises(UnsupportedError, match="in layout 'nhwc'"):
        evort.load(etm.write(constant(ONES, DType.INT8, layout="nhwc")))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.bounds.update(n=(5, 4)), "Symbol: 5 to 4 are no sizes"),
        (lambda m: m.bounds.update(n=(-1, 4)), "Symbol: -1 to 4 are no sizes"),
        (lambda m: m.bounds.update({"": (1, 4)}), "Model.symbols: a name is empty or there twice"),
        (lambda m: m.golden.inputs.pop("x"), "Golden.inputs: must have each of x, k, t once"),
        (lambda m: m.golden.outputs.update(w=np.zeros(1)), "Golden.outputs: must have each of y, z, x once"),
        (
            lambda m: m.golden.inputs.update(x=np.zeros((2, 4), np.float32)),
            r"Golden.inputs: float32\[2, 4\] does not fit",
        ),
        (lambda m: m.golden.inputs.update(x=np.zeros((2, 3))), r"Golden.inputs: float64\[2, 3\] does not fit"),
        (lambda m: m.golden.outputs.update(y=np.zeros(2, np.uint16)), r"Golden.outputs: uint16\[2\] does not fit"),
        (lambda m: setattr(m.golden, "tolerance", -1e-9), "Golden.tolerance: -1e-09 is no tolerance"),
        (lambda m: setattr(m.golden, "tolerance", float("nan")), "Golden.tolerance: nan is no tolerance"),
    ],
)
def test_bounds_and_golden_data_are_checked(change, message):
    model = guarded()
    etm.write(model)
    change(model)
    with pytest.raises(EtmFormatError, match=message):
        etm.write(model)


def test_truth_values_are_checked():
    metadata, _ = parts(etm.write(constant(np.zeros(3, bool), DType.BOOL)))
    etm.read(assemble(metadata, b"\0\1\1"))
    with pytest.raises(EtmFormatError, match=r"Tensor\.data: a truth value is neither 0 nor 1"):
        etm.read(assemble(metadata, b"\0\2\1"))


@pytest.mark.parametrize(
    ("ends", "text", "message"),
    [
        ((0, 3, 5), b"abc\xc3\xa9", None),
        ((1, 3, 5), b"abcde", "does not start at 0"),
        ((0, 3, 2), b"abcde", "string 1 ends at 2, outside 3 to 5"),
        ((0, 3, 6), b"abcde", "string 1 ends at 6"),
        ((0, 3, 2**64 - 1), b"abcde", "string 1 ends at"),
        ((0, 3, 4), b"abcde", "1 bytes follow the last string"),
        ((0, 4, 5), b"abc\xc3\xa9", "string 0 is no valid UTF-8"),
    ],
)
def test_strings_are_checked(ends, text, message):
    metadata, _ = parts(etm.write(constant(np.array(["abc", "de"], object), DType.STRING)))
    data = assemble(metadata, struct.pack("<3Q", *ends) + text)
    if message is None:
        assert etm.read(data).model.graph.tensors["w"].data.tolist() == ["abc", "é"]
        return
    with pytest.raises(EtmFormatError, match=message):
        etm.read(data)


def test_operators_are_checked():
    def strict(inputs=("x", "x"), outputs=("y",), **attrs: object) -> bytes:
        return etm.write(edges(["x"], [], [Node("Strict", list(inputs), list(outputs), attrs, DOMAIN)]))

    etm.read(strict(k=[1]))
    etm.read(strict(k=[], axis=2, mode="z"))  # an empty list is one of any kind
    etm.read(strict(("x", "x", ""), ("y", ""), k=[1]))
    for data, message in [
        (strict(), "attribute 'k' is missing"),
        (strict(k=[1.5]), "attribute 'k' must be of kind ints"),
        (strict(k=[1], axis=1.0), "attribute 'axis' must be of kind int"),
        (strict(k=[1], other=1), "unknown attribute other"),
        (strict(("x",), k=[1]), "1 inputs, expected 2 to 3"),
        (strict(("x", ""), k=[1]), "input B is missing"),
        (strict(("x",) * 4, k=[1]), "4 inputs"),
        (strict(outputs=(), k=[1]), "0 outputs, expected 1 to 2"),
        (strict(outputs=("y", "z", "w"), k=[1]), "3 outputs"),
    ]:
        with pytest.raises(ShapeError, match=message):
            etm.read(data)
        etm.read(data, operators=False)
    with pytest.raises(UnsupportedError, match=r"test\.etm::Stric -> 'y': .*did you mean Strict"):
        etm.read(etm.write(edges([], [], [Node("Stric", [], ["y"], {}, DOMAIN)])))


ATTRS = st.fixed_dictionaries(
    {},
    optional={
        "k": st.sampled_from([[1], [], [1.0], ["a"], 1]), "axis": st.sampled_from([1, 1.0, "a", [1]]),
        "mode": st.sampled_from(["a", 1]), "body": st.just(1) | st.builds(Graph), "x": st.just(1),
    },
)  # fmt: skip


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from(["x", ""]), max_size=4), st.integers(0, 3), ATTRS)
def test_the_fast_check_of_operators_decides_as_the_slow_one(inputs, n_outputs, attrs):
    n = Node("Strict", inputs, [f"y{i}" for i in range(n_outputs)], attrs, DOMAIN)
    data = etm.write(edges(["x"], [], [n]))

    def slow() -> None:
        check_arity(find("Strict", DOMAIN), n)
        complete_attrs(find("Strict", DOMAIN), n)

    outcomes = []
    for check in (slow, lambda: etm.read(data)):
        try:
            check()
            outcomes.append(None)
        except EvortError as error:
            outcomes.append((type(error), str(error).split(" object at ")[0]))
    assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize("name", SAMPLES)
def test_reading_leaves_nothing_behind(name):
    """Reading many times keeps no memory."""
    import tracemalloc

    data = etm.write(SAMPLES[name]())
    for _ in range(3):
        etm.read(data)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(20):
            etm.read(data)
        assert tracemalloc.get_traced_memory()[0] - before < 4096
    finally:
        tracemalloc.stop()


def test_samples_are_what_they_claim():
    """The samples have what the tests above and of hostile files want of them."""
    assert {t.dtype for t in all_types().graph.tensors.values()} == set(DType)
    assert {t.quant.scheme for t in quantized().graph.tensors.values() if t.quant} == {
        "per_tensor",
        "per_axis",
        "grouped",
    }
