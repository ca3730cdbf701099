"""Damaged and hostile files: each one reads as a sound model or raises an evort error, in little time and memory.

The metadata's hash alone would stop nearly every random change, so most of these files have it made right again:
then it is the checks of the reader that must hold.
"""

import struct
import time
import tracemalloc

import flatbuffers
import numpy as np
import pytest
from etm_support import DOMAIN, SAMPLES, Oracle, assemble, check_model, convolutional, parts, plain

from evort import etm
from evort.errors import EtmFormatError, EvortError
from evort.etm import writer
from evort.etm._generated import etm_generated as fb
from evort.graph import Graph, Model, Tensor
from evort.types import DType

SECONDS = 2.0  # for one file; they take less than a millisecond, but a test machine may be busy

FILES = {name: etm.write(make()) for name, make in SAMPLES.items()}


def attempt(data: bytes, checksum: bool = False) -> Model | None:
    """The model in a file, which must be sound, or None where the reader refuses it."""
    start = time.perf_counter()
    try:
        model = etm.read(data, checksum=checksum).model
    except EvortError as error:
        assert str(error)
        model = None
    assert time.perf_counter() - start < SECONDS
    if model is not None:
        check_model(model)
    return model


@pytest.mark.parametrize("name", FILES)
def test_every_truncation_is_refused(name):
    data, expected = FILES[name], plain(SAMPLES[name]())
    for length in range(0, len(data), max(1, len(data) // 2000)):
        assert attempt(data[:length]) is None
        found = attempt(data[:length] + bytes(len(data) - length), checksum=True)
        assert found is None or plain(found) == expected  # where only zeros were lost
    assert attempt(data + b"\0") is None


@pytest.mark.parametrize("name", FILES)
def test_changed_bytes_are_found_by_hash_and_checksums(name):
    """With checksum=True the result is the right one or an error: nothing that counts can change unnoticed."""
    data, expected = bytearray(FILES[name]), plain(SAMPLES[name]())
    rng = np.random.default_rng(0)
    for at in rng.permutation(len(data))[:1500].tolist():
        bit = 1 << int(rng.integers(8))
        data[at] ^= bit
        found = attempt(bytes(data), checksum=True)
        assert found is None or plain(found) == expected
        data[at] ^= bit


@pytest.mark.parametrize("name", FILES)
def test_changed_headers_are_found(name):
    for rehash in (False, True):
        for at in range(64):
            for bit in range(8):
                data = bytearray(FILES[name])
                data[at] ^= 1 << bit
                if rehash and at < 56:
                    data = resealed(data)
                assert attempt(bytes(data)) is None or rehash


def resealed(data: bytearray) -> bytearray:
    """The file with the hash that its header and the metadata that it names should have, where they can have one."""
    *_, at, length, _, _, _, _ = Oracle.HEADER.unpack_from(data)
    data[56:64] = struct.pack(
        "<Q", etm._reader.xxh64(bytes(data[at : at + length]), etm._reader.xxh64(bytes(data[:56])))
    )
    return data


@pytest.mark.parametrize("name", FILES)
def test_words_of_the_metadata_under_a_right_hash(name):
    """Each aligned word becomes 0, extremes and near misses: counts, offsets, indices, dimensions, places of blobs."""
    metadata, weights = parts(FILES[name])
    loaded = refused = 0
    step = 4 * max(1, len(metadata) // 2400)
    for at in range(0, len(metadata) - 3, step):
        word = struct.unpack_from("<I", metadata, at)[0]
        near = (word + 1, word - 1, word + 4, word - 4, word * 2, len(metadata) - at)
        for value in (0, 1, *near, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF):
            changed = bytearray(metadata)
            struct.pack_into("<I", changed, at, value & 0xFFFFFFFF)
            if attempt(assemble(bytes(changed), weights)) is None:
                refused += 1
            else:
                loaded += 1
    assert refused > 1000 and loaded > 100  # both outcomes occur: the files get past the hash


@pytest.mark.parametrize("name", FILES)
def test_bytes_of_the_metadata_under_a_right_hash(name):
    metadata, weights = parts(FILES[name])
    rng = np.random.default_rng(1)
    for _ in range(2500):
        changed = bytearray(metadata)
        for at in rng.integers(0, len(metadata), rng.integers(1, 5)).tolist():
            changed[at] = int(rng.integers(256))
        attempt(assemble(bytes(changed), weights), checksum=bool(rng.integers(2)))


@pytest.mark.parametrize("name", FILES)
def test_cut_and_shifted_metadata_under_a_right_hash(name):
    metadata, weights = parts(FILES[name])
    rng = np.random.default_rng(2)
    for _ in range(500):
        a, b, c = sorted(rng.integers(0, len(metadata), 3).tolist())
        for changed in (metadata[:b], metadata[:a] + metadata[b:], metadata[:b] + metadata[a:c] + metadata[c:]):
            attempt(assemble(changed, weights))
        attempt(assemble(metadata, weights[: int(rng.integers(len(weights) + 1))]))


def refuses(data: bytes, message: str, memory: int, **options: bool) -> None:
    """The reader refuses a file within the time, and allocates no more than `memory` bytes meanwhile."""
    tracemalloc.start()
    start = time.perf_counter()
    try:
        with pytest.raises(EtmFormatError, match=message):
            etm.read(data, **options)
        assert time.perf_counter() - start < SECONDS
        assert tracemalloc.get_traced_memory()[1] < memory
    finally:
        tracemalloc.stop()


class Hand:
    """A FlatBuffer made by hand, whose parts may be shared."""

    def __init__(self, strings: tuple[str, ...] = ("", "Any", DOMAIN, "g")):
        self.b = flatbuffers.Builder()
        self.strings = self.vector([self.b.CreateString(s) for s in strings])

    def vector(self, offsets: list[int]) -> int:
        self.b.StartVector(4, len(offsets), 4)
        for offset in reversed(offsets):
            self.b.PrependUOffsetTRelative(offset)
        return self.b.EndVector()

    def table(self, kind: str, **fields: int) -> int:
        getattr(fb, f"{kind}Start")(self.b)
        for key, value in fields.items():
            getattr(fb, f"{kind}Add{key}")(self.b, value)
        return getattr(fb, f"{kind}End")(self.b)

    def graph_with(self, node: int, times: int = 1) -> int:
        return self.table("Graph", Nodes=self.vector([node] * times))

    def node_with(self, graph: int) -> int:
        attribute = self.table("Attribute", Key=3, Type=fb.AttributeType.Graph, Graph=graph)
        return self.table("Node", Op=1, Domain=2, Attributes=self.vector([attribute]))

    def file(self, graph: int, strings: int | None = None) -> bytes:
        self.b.Finish(self.table("Model", Strings=strings or self.strings, Graph=graph), b"ETM1")
        return assemble(bytes(self.b.Output()))


def test_handmade_files_are_files():
    hand = Hand()
    found = etm.read(hand.file(hand.graph_with(hand.node_with(hand.table("Graph"))))).model
    assert found.graph.nodes[0].attrs["g"].nodes == []


def test_shared_tables_are_not_read_again_and_again():
    """16 graphs, each of which holds the next one 200 times: 200^16 nodes in 20 KB."""
    hand = Hand()
    graph = hand.table("Graph")
    for _ in range(16):
        graph = hand.graph_with(hand.node_with(graph), 200)
    refuses(hand.file(graph), "objects overlap, or refer to each other in a circle", 1 << 20)


def test_deep_nesting_does_not_exhaust_the_stack():
    hand = Hand()
    graph = hand.table("Graph")
    for _ in range(2_000):
        graph = hand.graph_with(hand.node_with(graph))
    refuses(hand.file(graph), "nested more than 16 deep", 2 << 20)


def test_a_string_that_is_shared_is_not_read_again_and_again():
    hand = Hand()
    long = hand.b.CreateString("x" * 100_000)
    strings = hand.vector([hand.b.CreateString("")] + [long] * 10_000)
    refuses(hand.file(hand.table("Graph"), strings), "Model.strings: objects overlap", 1 << 20)


def test_equal_names_are_refused():
    """They would let a name be written twice."""
    hand = Hand(("", "a", "a"))
    refuses(hand.file(hand.table("Graph")), "Model.strings: a string is there twice", 1 << 20)
    hand = Hand(("a",))
    refuses(hand.file(hand.table("Graph")), "the first string must be the empty one", 1 << 20)


@pytest.mark.parametrize(
    ("at", "words", "message"),
    [
        # The root table starts where the first word says; its vtable is as far before it as its own first word says.
        ("root", 0xFFFFFFFC, "Model: offset 4294967292 points nowhere"),
        ("root", 0, "Model: offset 0 points nowhere"),
        ("root", 6, "Model: offset 6 points nowhere"),
        ("table", 0x7FFFFFFF, "Model: its vtable lies outside the metadata"),
        ("table", 0x80000000, "Model: its vtable lies outside the metadata"),
        ("table", 0xFFFFFFFF, "Model: its vtable lies outside the metadata"),
        ("vtable", 0xFFFF0004, "65535 bytes run past the end"),
        ("vtable", 0x0008FFFE, "its vtable is malformed"),
        ("vtable", 0x00080002, "its vtable is malformed"),
        ("vtable", 0x00020008, "its vtable is malformed"),
        ("vtable", 0x0008000D, "its vtable is malformed"),
        ("strings", 0xFFFFFFFF, "Model.strings: 4294967295 items run past the end"),
        ("strings", 0x40000000, "Model.strings: 1073741824 items run past the end"),
    ],
)
def test_offsets_tables_and_counts(at, words, message):
    metadata = bytearray(parts(FILES["convolutional"])[0])
    root = struct.unpack_from("<I", metadata)[0]
    vtable = root - struct.unpack_from("<i", metadata, root)[0]
    strings = root + struct.unpack_from("<H", metadata, vtable + 4)[0]
    strings += struct.unpack_from("<I", metadata, strings)[0]
    struct.pack_into("<I", metadata, {"root": 0, "table": root, "vtable": vtable, "strings": strings}[at], words)
    refuses(assemble(bytes(metadata)), message, 1 << 20)


def test_the_identifier_is_checked():
    metadata, weights = parts(FILES["convolutional"])
    refuses(assemble(metadata[:4] + b"TFL3" + metadata[8:], weights), "identifier is b'TFL3', not b'ETM1'", 1 << 20)


class Places(writer._Blobs):
    """Gives each constant the place that the attack wants."""

    def __init__(self, places: list[tuple[int, int]], weights: bytes):
        super().__init__()
        self.wanted, self.weights = places, weights
        self.count = 0

    def add(self, array: np.ndarray, dtype: DType, where: str) -> tuple[int, int, int]:
        number, self.count = self.count, self.count + 1
        offset, length = self.wanted[number]
        return number, length, etm._reader.xxh64(self.weights[offset : offset + length])

    def places(self) -> dict[int, int]:
        return {number: offset for number, (offset, _) in enumerate(self.wanted)}


def with_places(tensors: list[Tensor], places: list[tuple[int, int]], weights: bytes) -> bytes:
    graph = Graph()
    for tensor in tensors:
        graph.add(tensor)
    return assemble(writer._Metadata(Model(graph), Places(places, weights)).finish(), weights)


def shaped(name: str, dtype: DType, shape: tuple[int, ...]) -> Tensor:
    """A constant that claims a shape; its own data do not count, since `Places` says where they are."""
    return Tensor(name, dtype, shape, np.broadcast_to(np.zeros((), np.int8), shape))


@pytest.mark.parametrize(
    ("shape", "dtype", "place", "message"),
    [
        ((16,), DType.FLOAT, (2**64 - 64, 64), "a blob at 18446744073709551552 of 128 bytes"),
        ((16,), DType.FLOAT, (0, 2**64 - 1), "a blob of 18446744073709551615 bytes runs past"),
        ((16,), DType.FLOAT, (128, 64), "a blob of 64 bytes runs past"),
        ((16,), DType.FLOAT, (192, 0), "a blob at 192 of 128 bytes"),
        ((16,), DType.FLOAT, (4, 64), "a blob at 4 of 128 bytes of weights .one of 64 bytes must be at a m"),
        ((1,), DType.FLOAT, (2, 4), "a blob at 2 of 128 bytes of weights .one of 4 bytes must be at a multiple of 4"),
        ((16,), DType.FLOAT, (0, 60), r"float\[16\] takes 64 bytes, not 60"),
        ((15,), DType.FLOAT, (0, 64), r"float\[15\] takes 60 bytes, not 64"),
        ((15,), DType.INT4, (0, 7), r"int4\[15\] takes 8 bytes, not 7"),
        ((2**50,), DType.FLOAT, (0, 64), r"takes 4503599627370496 bytes, not 64"),
        ((2**40,), DType.STRING, (0, 128), "1099511627776 strings do not fit into 128 bytes"),
        ((0,), DType.STRING, (0, 0), "0 strings do not fit into 0 bytes"),
        ((0,), DType.FLOAT, (0, 64), r"float\[0\] takes 0 bytes, not 64"),
    ],
)
def test_places_and_sizes_of_constants(shape, dtype, place, message):
    data = with_places([shaped("w", dtype, shape)], [place], bytes(128))
    refuses(data, f"Tensor.data: .*{message}|Tensor.data: {message}", 1 << 20)


@pytest.mark.parametrize(("size", "offset", "good"), [(4095, 8, True), (4096, 8, False), (4096, 64, True)])
def test_long_blobs_are_aligned_to_64(size, offset, good):
    data = with_places([shaped("w", DType.UINT8, (size,))], [(offset, size)], bytes(8192))
    if good:
        assert etm.read(data, operators=False).model.graph.tensors["w"].data.size == size
    else:
        refuses(data, "Tensor.data: .*one of 4096 bytes must be at a multiple of 64", 1 << 20)


def test_element_counts_that_overflow():
    """2^62 * 4 elements of 4 bytes are 0 bytes in 64 bits."""
    metadata = writer._Metadata(Model(Graph()), Places([], b"")).finish()
    assert etm.read(assemble(metadata)).model.graph.tensors == {}

    class Wide(writer._Metadata):
        def _dims(self, shape: tuple[int, ...]) -> int:
            return self._numbers([2**62, 4], np.int64)

    graph = Graph()
    graph.add(shaped("w", DType.FLOAT, ()))
    data = assemble(Wide(Model(graph), Places([(0, 0)], b"")).finish())
    refuses(data, "Tensor.shape: dimension 4611686018427387904 makes a tensor of more than", 1 << 20)


def test_overlapping_blobs_are_not_widened_again_and_again():
    """1000 int2 constants over the same megabyte would take 4 GB."""
    weights = bytes(1 << 20)
    tensors = [shaped(f"w{i}", DType.INT2, (4 * (len(weights) - 64 * i),)) for i in range(1000)]
    data = with_places(tensors, [(64 * i, len(weights) - 64 * i) for i in range(1000)], weights)
    refuses(data, "Tensor.data: blobs overlap", 8 << 20)


def test_overlapping_blobs_are_not_verified_again_and_again():
    weights = bytes(1 << 20)
    tensors = [shaped(f"w{i}", DType.UINT8, (len(weights) - 64 * i,)) for i in range(1000)]
    data = with_places(tensors, [(64 * i, len(weights) - 64 * i) for i in range(1000)], weights)
    etm.read(data)  # views cost nothing
    refuses(data, "Tensor.data: blobs overlap", 1 << 20, checksum=True)


def test_same_strings_of_another_count_are_refused():
    weights = struct.pack("<2Q", 0, 0) + bytes(48)
    data = with_places([shaped("a", DType.STRING, (1,)), shaped("b", DType.STRING, ())], [(0, 16)] * 2, weights)
    assert etm.read(data).model.graph.tensors["b"].data.shape == ()
    data = with_places([shaped("a", DType.STRING, (1,)), shaped("b", DType.STRING, (0,))], [(0, 16)] * 2, weights)
    refuses(data, "1 strings, where the shape asks for 0", 1 << 20)


def test_sane_use_of_the_sample_still_works():
    """The files above are refused for what was changed, not for how they are made."""
    data = with_places([shaped("w", DType.INT4, (15,))], [(64, 8)], bytes(128))
    assert etm.read(data, checksum=True).model.graph.tensors["w"].data.tolist() == [0] * 15
    assert plain(attempt(FILES["convolutional"])) == plain(convolutional())
