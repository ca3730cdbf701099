"""Files appear whole or not at all, hold what the format promises, and are the same each time."""

import hashlib
import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from etm_support import SAMPLES, Oracle, convolutional, plain

from evort import etm
from evort.errors import EtmFormatError
from evort.etm import writer
from evort.graph import Graph, Model, Node, Quantization, Tensor
from evort.types import DType

# A file of format 1.0, byte for byte: a later writer may make other bytes only with another version number, or where
# CHANGELOG.md says so.
GOLDEN = (
    "89 45 54 4d 01 00 01 00 00 00 00 00 00 00 00 00 40 00 00 00 00 00 00 00 f0 01 00 00 00 00 00 00 "
    "40 02 00 00 00 00 00 00 08 00 00 00 00 00 00 00 48 02 00 00 00 00 00 00 32 28 ed 15 67 5c 9d 1b "
    "0c 00 00 00 45 54 4d 31 00 00 00 00 3e ff ff ff a4 00 00 00 ac 00 00 00 0a 00 00 00 c0 00 00 00 "
    "04 00 00 00 0b 00 00 00 84 00 00 00 78 00 00 00 6c 00 00 00 60 00 00 00 50 00 00 00 44 00 00 00 "
    "34 00 00 00 28 00 00 00 1c 00 00 00 10 00 00 00 04 00 00 00 01 00 00 00 70 00 00 00 01 00 00 00 "
    "76 00 00 00 01 00 00 00 6b 00 00 00 01 00 00 00 67 00 00 00 04 00 00 00 47 65 6d 6d 00 00 00 00 "
    "01 00 00 00 79 00 00 00 06 00 00 00 74 72 61 6e 73 42 00 00 01 00 00 00 77 00 00 00 01 00 00 00 "
    "6e 00 00 00 01 00 00 00 78 00 00 00 00 00 00 00 00 00 00 00 01 00 00 00 08 00 00 00 09 00 00 00 "
    "01 00 00 00 00 00 00 00 15 00 00 00 00 00 0e 00 18 00 14 00 10 00 0c 00 08 00 04 00 0e 00 00 00 "
    "24 00 00 00 10 00 00 00 14 00 00 00 84 00 00 00 07 00 00 00 01 00 00 00 05 00 00 00 01 00 00 00 "
    "01 00 00 00 01 00 00 00 14 00 00 00 10 00 14 00 10 00 00 00 00 00 0c 00 08 00 04 00 10 00 00 00 "
    "24 00 00 00 0c 00 00 00 10 00 00 00 06 00 00 00 01 00 00 00 05 00 00 00 02 00 00 00 01 00 00 00 "
    "03 00 00 00 01 00 00 00 10 00 00 00 00 00 0a 00 18 00 14 00 07 00 08 00 0a 00 00 00 00 00 00 02 "
    "01 00 00 00 00 00 00 00 00 00 00 00 04 00 00 00 02 00 00 00 5c 00 00 00 10 00 00 00 0c 00 24 00 "
    "20 00 00 00 04 00 08 00 0c 00 00 00 20 00 00 00 00 00 00 00 00 00 00 00 08 00 00 00 00 00 00 00 "
    "ef 22 1b 06 ca 68 ba 54 03 00 00 00 02 00 00 00 01 00 00 00 00 00 00 00 02 00 00 00 00 00 00 00 "
    "00 00 00 00 00 00 0a 00 0c 00 08 00 00 00 04 00 0a 00 00 00 08 00 00 00 01 00 00 00 02 00 00 00 "
    "fd ff ff ff ff ff ff ff 02 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 "
    "00 00 80 3f 00 00 00 c0"
)


def small() -> Model:
    graph = Graph("g")
    graph.add(Tensor("x", DType.FLOAT, ("n", 2)))
    graph.add(Tensor("w", DType.FLOAT, (1, 2), np.array([[1, -2]], np.float32)))
    graph.inputs, graph.outputs = ["x"], ["y"]
    graph.nodes = [Node("Gemm", ["x", "w"], ["y"], {"transB": 1})]
    return Model(graph, {"": 21}, {"k": "v"}, "p")


def test_golden_bytes():
    assert etm.write(small()).hex(" ") == GOLDEN


def test_the_worked_example_of_the_documentation():
    """Each line that shows bytes shows those of the file (but the dots)."""
    data, shown = etm.write(small()), 0
    text = (Path(__file__).parents[2] / "docs" / "etm-format.md").read_text()
    for at, line in re.findall(r"^ {1,2}([0-9a-f]{2,3})  ((?:(?:[0-9a-f]{2}|\.{2,3})(?: |$))+)", text, re.M):
        for i, byte in enumerate(line.split()):
            if "." not in byte:
                assert data[int(at, 16) + i] == int(byte, 16), (at, line)
                shown += 1
    assert shown > 400


@pytest.mark.parametrize("name", SAMPLES)
def test_the_same_model_gives_the_same_bytes(name):
    """Also in another process, whose hash seed differs."""
    code = (
        f"from etm_support import SAMPLES; from evort import etm; import hashlib;"
        f"print(hashlib.sha256(etm.write(SAMPLES[{name!r}]())).hexdigest())"
    )
    env = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": os.pathsep.join(sys.path)}
    other = subprocess.run(
        [sys.executable, "-P", "-c", code], env=env, capture_output=True, text=True, check=True
    ).stdout
    assert other.strip() == hashlib.sha256(etm.write(SAMPLES[name]())).hexdigest()


def test_order_of_dictionaries_does_not_matter():
    a, b = small(), small()
    a.metadata, b.metadata = {"x": "1", "y": "2"}, {"y": "2", "x": "1"}
    a.graph.nodes[0].attrs, b.graph.nodes[0].attrs = {"p": 1, "q": 2}, {"q": 2, "p": 1}
    assert etm.write(a) == etm.write(b)


def test_blobs_are_aligned_and_equal_ones_are_shared():
    graph = Graph()
    values = np.arange(5, dtype=np.int16)
    for name, array in {"a": values, "b": values + 1, "c": values.copy(), "d": values[::-1][::-1]}.items():
        graph.add(Tensor(name, DType.INT16, (5,), array))
    graph.add(Tensor("bits", DType.BFLOAT16, (5,), values.view(np.uint16)))  # the same bytes mean something else
    data = etm.write(Model(graph))
    tensors = [Oracle(data).root.Graph().Tensors(i) for i in range(5)]
    offsets = [t.Data().Offset() for t in tensors]
    assert offsets == [0, 16, 0, 0, 32]  # multiples of 8
    assert Oracle(data).weights_at % 64 == 0


def test_short_blobs_come_behind_long_ones():
    graph = Graph()
    sizes = {"one": 4, "long": 4100, "two": 4095, "other": 33, "longer": 4096, "last": 40, "empty": 0}
    for number, (name, size) in enumerate(sizes.items()):
        graph.add(Tensor(name, DType.UINT8, (size,), np.full(size, number + 1, np.uint8)))
    data = etm.write(Model(graph))
    places = {name: Oracle(data).root.Graph().Tensors(i).Data().Offset() for i, name in enumerate(sizes)}
    assert places == {
        "long": 0, "longer": 4160, "two": 8256, "other": 12352, "last": 12392, "one": 12432, "empty": 12436
    }  # fmt: skip
    assert etm.read(data).header.weights_length == 12436
    for name, tensor in etm.read(data, checksum=True).model.graph.tensors.items():
        assert np.array_equal(tensor.data, graph.tensors[name].data)


@pytest.mark.parametrize(("floats", "alignment"), [(1000, 64), (300_000, 4096)])
def test_large_weights_start_on_a_page(floats, alignment):
    graph = Graph()
    graph.add(Tensor("w", DType.FLOAT, (floats,), np.ones(floats, np.float32)))
    at = etm.read(etm.write(Model(graph))).header.weights_offset
    assert at % alignment == 0
    assert at < 2 * alignment + 512  # and no more padding than that


def test_small_models_make_small_files():
    model = convolutional()
    weights = sum(t.data.nbytes for t in model.graph.tensors.values() if t.data is not None)
    # 10 nodes with 34 names, 12 tensors: about 2.5 KB of metadata.
    assert len(etm.write(model)) < weights + 3 * 1024


def test_views_are_stored_as_their_values():
    graph = Graph()
    base = np.arange(24, dtype=np.float32).reshape(4, 6)
    arrays = {"t": base.T, "strided": base[::2, 1::2], "scalar": base[1, 1, ...]}
    for name, array in arrays.items():
        array = np.asarray(array)
        graph.add(Tensor(name, DType.FLOAT, array.shape, array))
    found = etm.read(etm.write(Model(graph))).model.graph.tensors
    for name, array in arrays.items():
        assert found[name].data.dtype == np.float32
        np.testing.assert_array_equal(found[name].data, array)


class Broken(Exception):
    pass


def test_a_failure_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "m.etm"
    etm.write(small(), path)
    old = path.read_bytes()

    def parts(*args):
        yield b"half a file"
        raise Broken

    with monkeypatch.context() as patch:
        patch.setattr(writer, "_parts", parts)
        with pytest.raises(Broken):
            etm.write(convolutional(), path)
    assert path.read_bytes() == old
    bad = small()
    bad.graph.outputs = ["nothing"]
    with pytest.raises(EtmFormatError, match=r"Graph\.outputs.*'nothing' is never computed"):
        etm.write(bad, path)
    assert path.read_bytes() == old
    assert os.listdir(tmp_path) == ["m.etm"]


def test_a_killed_writer_leaves_the_old_file(tmp_path):
    path = tmp_path / "m.etm"
    etm.write(small(), path)
    old = path.read_bytes()
    code = (
        "import os, sys; from etm_support import convolutional; from evort import etm; from evort.etm import writer\n"
        "os.fsync = lambda fd: os._exit(9)\n"  # as late as it can happen
        "etm.write(convolutional(), sys.argv[1])"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-P", "-c", code, path], env=env)
    assert done.returncode == 9
    assert path.read_bytes() == old
    etm.write(convolutional(), path)
    assert plain(etm.read(path).model) == plain(convolutional())


def test_replacing_a_mapped_file_does_not_disturb_its_reader(tmp_path):
    path = tmp_path / "m.etm"
    etm.write(small(), path)
    file = etm.read(path, operators=False)
    etm.write(convolutional(), path)
    assert file.model.graph.tensors["w"].data.tolist() == [[1, -2]]


@pytest.mark.skipif(os.name != "posix", reason="permissions are POSIX's")
def test_permissions_follow_the_umask(tmp_path):
    mask = os.umask(0o027)
    try:
        etm.write(small(), tmp_path / "m.etm")
    finally:
        os.umask(mask)
    assert stat.S_IMODE(os.stat(tmp_path / "m.etm").st_mode) == 0o640


def test_writing_through_a_link_keeps_the_link(tmp_path):
    etm.write(small(), tmp_path / "m.etm")
    (tmp_path / "link").symlink_to("m.etm")
    etm.write(convolutional(), tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert plain(etm.read(tmp_path / "m.etm").model) == plain(convolutional())


def test_memory_does_not_hold_the_file(tmp_path):
    """64 MB of weights that lie in a file: the writer needs no array of their size, nor of one of them."""
    code = """
import resource, sys
import numpy as np
from evort import etm
from evort.graph import Graph, Model, Tensor
from evort.types import DType
graph = Graph()
for i in range(16):
    w = np.memmap(sys.argv[1], np.float32, "r", shape=(1 << 20,), offset=i << 22)
    graph.add(Tensor(f"w{i}", DType.FLOAT, w.shape, np.asarray(w)))
from evort.etm import writer
etm.write(Model(Graph()))
import tracemalloc
tracemalloc.start()
etm.write(Model(graph), sys.argv[2])
print(tracemalloc.get_traced_memory()[1])
"""
    with open(tmp_path / "weights", "wb") as file:
        for i in range(16):
            file.write(bytes([i]) * (1 << 22))
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, tmp_path / "weights", tmp_path / "m.etm"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 2 << 20
    assert etm.read(tmp_path / "m.etm").header.weights_length == 64 << 20


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda g: g.add(Tensor("w", DType.FLOAT, (2,), np.zeros(2))), "held as float32, not float64"),
        (lambda g: g.add(Tensor("w", DType.FLOAT, (3,), np.zeros(2, np.float32))), "shape"),
        (lambda g: g.add(Tensor("w", DType.INT4, (2,), np.array([0, 8], np.int8))), "outside int4"),
        (lambda g: g.add(Tensor("w", DType.FLOAT, (-1,))), "no shape"),
        (lambda g: g.nodes[0].attrs.update(transB=2**63), "int64|bad number"),
        (lambda g: g.nodes[0].attrs.update(transB=[2**63]), "int64"),
        (lambda g: g.nodes[0].attrs.update(transB=[1, "a"]), "a list of int, str"),
        (lambda g: g.nodes[0].attrs.update(transB={}), "no attribute of dict"),
        (lambda g: g.nodes[0].inputs.__setitem__(0, "\ud800"), "UTF-8"),
        (lambda g: g.nodes[0].inputs.__setitem__(0, None), "should be a str"),
        (lambda g: g.add(Tensor("q", DType.INT8, (1,), quant=Quantization("odd", 8, np.ones(1)))), "scheme 'odd'"),
    ],
)
def test_what_has_no_place_in_the_format_is_refused(change, message):
    model = small()
    change(model.graph)
    with pytest.raises(TypeError, match=message):
        etm.write(model)
