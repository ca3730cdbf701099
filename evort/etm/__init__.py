"""The `.etm` file format: one model in one file, used in place from a memory map. docs/etm-format.md describes it.

    read   file or bytes -> File, whose `model` is checked and whose constants are views of the file
    write  Model -> file (atomically) or bytes; the same model gives the same bytes

Reading needs NumPy only; writing also needs the flatbuffers package.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from evort._kernels import SHARED_OBJECT
from evort.errors import EtmFormatError

__path__ += SHARED_OBJECT  # for _reader

from evort.etm._reader import VERSION, Header, parse  # noqa: E402
from evort.files import map_file  # noqa: E402
from evort.graph import Model  # noqa: E402

if TYPE_CHECKING:
    from evort._kernels.core import Mapping

__all__ = ["VERSION", "EtmFormatError", "File", "Header", "read", "write"]

Source = str | os.PathLike | bytes | bytearray | memoryview


class File:
    """A file that was read.

    model: the graph and its provenance. Its constants cannot be written; they keep the file's bytes alive, so they
      stay valid after `close`.
    header: versions, offsets, sizes, hash.
    path: where it was read from, or None for bytes.
    nbytes_mapped: bytes of the memory map, which processes that read the same file share; 0 for bytes.
    nbytes_copied: bytes of constants that are copies, since they are not stored as they are used: strings and
      elements of 4 or 2 bits (and all of a buffer that does not start at a multiple of 16).
    """

    __slots__ = ("header", "model", "nbytes_copied", "nbytes_mapped", "path")

    def __init__(self, header: Header, model: Model, path: str | None, nbytes_mapped: int, nbytes_copied: int):
        self.header = header
        self.model: Model | None = model
        self.path = path
        self.nbytes_mapped = nbytes_mapped
        self.nbytes_copied = nbytes_copied

    def close(self) -> None:
        """Drops the model. The file is unmapped when the last of its constants is gone."""
        self.model = None

    def __enter__(self) -> File:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"File({self.path or 'bytes'}, {self.header.file_size} bytes)"


def read(source: Source, *, checksum: bool = False, operators: bool = True, mapped: Mapping | None = None) -> File:
    """Reads a `.etm` file, given its path or its bytes, and checks all of it (but weights' values).

    checksum: also verify the checksum of each weight blob, which reads the whole file.
    operators: also check that evort has each node's operator and that its operands and attributes fit; tools that
      only look at a file may do without.
    mapped: a map of the file at that path, where there is one already.

    The file must not be changed in place while it is mapped (`write` replaces it instead). Raises EtmFormatError
    where the file is damaged or of a newer format, UnsupportedError for an operator that evort lacks, ShapeError for
    a node that its operator's definition forbids, and OSError where the file cannot be opened.
    """
    if isinstance(source, bytes | bytearray | memoryview):
        # Read-only, so that the arrays are, whatever the buffer is.
        buffer = memoryview(source).toreadonly()
        if not buffer.c_contiguous:
            raise TypeError("the bytes of an .etm file must lie contiguously")
        header, model, copied = parse(buffer, checksum, operators)
        return File(header, model, None, 0, copied)
    path = os.fspath(source)
    buffer = memoryview(map_file(path)[0] if mapped is None else mapped)
    try:
        header, model, copied = parse(buffer, checksum, operators)
    except EtmFormatError as error:
        raise EtmFormatError(f"{path}: {error}") from None
    return File(header, model, path, header.file_size, copied)


def write(model: Model, path: str | os.PathLike | None = None) -> bytes | None:
    """Writes a model to a file, or returns the file's bytes where `path` is None.

    The file appears complete or not at all: it is written beside `path`, read back and checked (operators excepted),
    and then renamed. Weights are written one after another from where they lie, so that memory does not hold the
    file. The same model gives the same bytes. Raises EtmFormatError for a model that no reader would take,
    TypeError for a value that the format has no place for.
    """
    from evort.etm.writer import write as write_model

    return write_model(model, path)
