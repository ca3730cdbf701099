"""Files: mapped into memory, and written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterable

from evort._kernels.core import Mapping


def map_file(path: str) -> tuple[Mapping, os.stat_result]:
    """A read-only memory map of a file, and what the system says of it.

    Raises EtmFormatError for what is no regular file or has no bytes, OSError where it cannot be opened.
    """
    # Opening a pipe would wait for its other end.
    fd = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_size == 0:
            from evort.errors import EtmFormatError

            what = "the file is empty" if stat.S_ISREG(status.st_mode) else "not a regular file"
            raise EtmFormatError(f"{path}: {what}")
        return Mapping(fd, status.st_size), status
    finally:
        os.close(fd)


def write_atomically(path: str | os.PathLike[str], data: bytes | Iterable[bytes | memoryview]) -> None:
    """Writes beside the file's place first, then renames. data: the bytes, or parts of them in turn. Raises OSError."""
    target = os.path.realpath(path)
    temporary = f"{target}.{os.urandom(6).hex()}.tmp"
    try:
        with open(temporary, "xb") as file:
            file.writelines([data] if isinstance(data, bytes) else data)
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


__all__ = ["map_file", "write_atomically"]
