"""Files that are there whole or not at all."""

from __future__ import annotations

import contextlib
import os


def write_atomically(path: str | os.PathLike[str], data: bytes) -> None:
    """Writes beside the file's place first, then renames. Raises OSError."""
    target = os.path.realpath(path)
    temporary = f"{target}.{os.urandom(6).hex()}.tmp"
    try:
        with open(temporary, "xb") as file:
            file.write(data)
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


__all__ = ["write_atomically"]
