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

def blob_alignment(length: int) -> int: ...
def xxh64(data: bytes | bytearray | memoryview, seed: int = 0) -> int: ...
def parse(buffer: bytes | bytearray | memoryview, checksum: bool, operators: bool) -> tuple[Header, Model, int]: ...
