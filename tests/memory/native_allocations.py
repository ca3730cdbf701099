"""Count the calls that native libraries of a folder make to the allocator, without a preload or a special build.

A shared object calls `malloc` through a slot of its global offset table, which the dynamic linker fills in. While
`counting(folder)` is active, the slots of every loaded library below `folder` point to a function that counts and then
calls the real one. Only these libraries are watched: Python's and NumPy's own memory is what `tracemalloc` sees.
Works for ELF on 64-bit Linux with glibc (x86-64 and aarch64); elsewhere `supported()` is false.
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

_size, _address = ctypes.c_size_t, ctypes.c_void_p
_malloc_like = ctypes.CFUNCTYPE(_address, _size)
_two_sizes = ctypes.CFUNCTYPE(_address, _size, _size)
_realloc = ctypes.CFUNCTYPE(_address, _address, _size)
_posix_memalign = ctypes.CFUNCTYPE(ctypes.c_int, _address, _size, _size)
_mmap = ctypes.CFUNCTYPE(_address, _address, _size, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
_create = ctypes.CFUNCTYPE(ctypes.c_int, _address, _address, _address, _address)

# What is watched: the C prototype and which arguments multiply to the number of bytes.
WATCHED: dict[str, tuple[type, tuple[int, ...]]] = {
    "malloc": (_malloc_like, (0,)),
    "calloc": (_two_sizes, (0, 1)),
    "realloc": (_realloc, (1,)),
    "aligned_alloc": (_two_sizes, (1,)),
    "memalign": (_two_sizes, (1,)),
    "posix_memalign": (_posix_memalign, (2,)),
    "mmap": (_mmap, (1,)),
    "mmap64": (_mmap, (1,)),
    "pthread_create": (_create, ()),
}

PT_DYNAMIC, DT_PLTRELSZ, DT_STRTAB, DT_SYMTAB, DT_RELA, DT_RELASZ, DT_JMPREL = 2, 2, 5, 6, 7, 8, 23
SLOT_TYPES = {"x86_64": (6, 7), "aarch64": (1025, 1026)}  # R_*_GLOB_DAT, R_*_JUMP_SLOT
PAGE, PROT_READ, PROT_WRITE = os.sysconf("SC_PAGE_SIZE"), 1, 2


class _ProgramHeader(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("offset", ctypes.c_uint64),
        ("vaddr", ctypes.c_uint64),
        ("paddr", ctypes.c_uint64),
        ("filesz", ctypes.c_uint64),
        ("memsz", ctypes.c_uint64),
        ("align", ctypes.c_uint64),
    ]


class _Info(ctypes.Structure):
    _fields_ = [
        ("base", ctypes.c_uint64),
        ("name", ctypes.c_char_p),
        ("headers", ctypes.POINTER(_ProgramHeader)),
        ("count", ctypes.c_uint16),
    ]


class _Relocation(ctypes.Structure):
    _fields_ = [("offset", ctypes.c_uint64), ("info", ctypes.c_uint64), ("addend", ctypes.c_int64)]


class _Symbol(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_uint32),
        ("info", ctypes.c_uint8),
        ("other", ctypes.c_uint8),
        ("section", ctypes.c_uint16),
        ("value", ctypes.c_uint64),
        ("size", ctypes.c_uint64),
    ]


@dataclass
class Counts:
    """Calls and bytes by function name, and the libraries that were watched."""

    calls: dict[str, int] = field(default_factory=dict)
    bytes: int = 0
    libraries: list[str] = field(default_factory=list)

    @property
    def total(self) -> int:
        return sum(self.calls.values())


def supported() -> bool:
    """Whether this platform's libraries can be watched."""
    return sys.platform == "linux" and platform.machine() in SLOT_TYPES and platform.libc_ver()[0] == "glibc"


def _libraries(folder: Path) -> Iterator[tuple[str, int, int]]:
    """Path, load address and address of the dynamic section of every loaded library below `folder`."""
    found: list[tuple[str, int, int]] = []
    visitor = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(_Info), _size, _address)

    @visitor
    def visit(info: ctypes.POINTER(_Info), size: int, data: int | None) -> int:
        item = info.contents
        name = (item.name or b"").decode()
        if name and folder in Path(name).resolve().parents:
            found.extend(
                (name, item.base, item.base + item.headers[i].vaddr)
                for i in range(item.count)
                if item.headers[i].type == PT_DYNAMIC
            )
        return 0

    ctypes.CDLL(None).dl_iterate_phdr(visit, None)
    yield from found


def _slots(base: int, dynamic: int) -> Iterator[tuple[str, int]]:
    """Name and address of every slot of one library that holds the address of a watched function."""
    tags: dict[int, int] = {}
    words = ctypes.cast(dynamic, ctypes.POINTER(ctypes.c_uint64))
    at = 0
    while words[at]:  # DT_NULL ends the section
        tags[words[at]] = words[at + 1]
        at += 2
    tables = [
        (tags[start], tags[size]) for start, size in ((DT_RELA, DT_RELASZ), (DT_JMPREL, DT_PLTRELSZ)) if start in tags
    ]
    symbols = ctypes.cast(tags[DT_SYMTAB], ctypes.POINTER(_Symbol))
    for start, size in tables:
        entries = ctypes.cast(start, ctypes.POINTER(_Relocation))
        for i in range(size // ctypes.sizeof(_Relocation)):
            kind, index = entries[i].info & 0xFFFFFFFF, entries[i].info >> 32
            if kind in SLOT_TYPES[platform.machine()]:
                name = ctypes.string_at(tags[DT_STRTAB] + symbols[index].name).decode()
                if name in WATCHED:
                    yield name, base + entries[i].offset


def _write(slot: int, value: int) -> int:
    """Put `value` into a slot, whose page the linker may have made read-only; returns what was there."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mprotect(_address(slot & -PAGE), _size(PAGE), PROT_READ | PROT_WRITE):
        raise OSError(ctypes.get_errno(), "mprotect")
    cell = ctypes.c_uint64.from_address(slot)
    old, cell.value = cell.value, value
    return old


@contextmanager
def counting(folder: Path) -> Iterator[Counts]:
    """Count what the libraries below `folder` allocate inside the `with` block, in all threads."""
    if not supported():
        raise NotImplementedError("allocations of native libraries can be counted on 64-bit Linux with glibc only")
    counts, libc, hooks, patched = Counts(), ctypes.CDLL(None), {}, []

    def hook(name: str) -> ctypes._CFuncPtr:
        prototype, factors = WATCHED[name]
        real = prototype((name, libc))

        def count(*args: int | None) -> int | None:
            counts.calls[name] = counts.calls.get(name, 0) + 1
            amount = 1 if factors else 0
            for i in factors:
                amount *= args[i] or 0
            counts.bytes += amount
            return real(*args)

        return prototype(count)

    try:
        for path, base, dynamic in _libraries(folder.resolve()):
            counts.libraries.append(path)
            for name, slot in _slots(base, dynamic):
                if name not in hooks:
                    hooks[name] = hook(name)
                patched.append((slot, _write(slot, ctypes.cast(hooks[name], _address).value)))
        yield counts
    finally:
        for slot, old in patched:
            _write(slot, old)
