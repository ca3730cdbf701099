import numpy as np

from evort.graph import Model

MAGIC: bytes
VERSION: tuple[int, int]
FEATURES: frozenset[str]
IDENTIFIER: bytes
ALIGNMENT: int
LIMITS: dict[str, int]

class Header:
    version: tuple[int, int]
    oldest: tuple[int, int]
    flags: int
    metadata_offset: int
    metadata_length: int
    weights_offset: int
    weights_length: int
    file_size: int
    hash: int

class Mapping:
    """A file mapped into memory, to be read (a buffer)."""

    def __init__(self, fd: int, size: int) -> None: ...
    def __buffer__(self, flags: int) -> memoryview: ...

def release(array: np.ndarray) -> None: ...
def blob_alignment(length: int) -> int: ...
def xxh64(data: bytes | bytearray | memoryview, seed: int = 0) -> int: ...
def parse(buffer: bytes | bytearray | memoryview, checksum: bool, operators: bool) -> tuple[Header, Model, int]: ...
