"""Fuzzes the reader of `.etm` files: mutates files under a right hash, and checks what still reads.

    python fuzz/fuzz_etm.py [--seconds 60] [--seed 0] [FILE.etm ...]

The mutations know what metadata consist of. (A coverage-guided fuzzer such as atheris sees nothing of a reader that is
compiled by gcc.) Build with EVORT_DEBUG_BUILD=1 to have reads outside of a file found as well. The file that was being
read when the fuzzer stopped, by an error or by a crash, is left as fuzz-failure.etm.
"""

import argparse
import random
import struct
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from etm_support import SAMPLES, assemble, check_model, parts

from evort import etm
from evort.errors import EvortError

FAILURE = Path("fuzz-failure.etm")
SECONDS = 5.0  # more than this for one file of some kilobytes is a failure
WORDS = (0, 1, 2, 4, 8, 0x7F, 0x80, 0xFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFC, 0xFFFFFFFF)


def read(data: bytes, checksum: bool) -> bool:
    """Reads a file; whether it was taken. Raises AssertionError where the reader breaks a promise."""
    start = time.perf_counter()
    try:
        model = etm.read(data, checksum=checksum).model
    except EvortError:
        model = None
    assert time.perf_counter() - start < SECONDS, "reading took too long"
    if model is not None:
        check_model(model)
    return model is not None


def mutate(metadata: bytearray, rng: random.Random) -> None:
    """Some changes of the kinds that find mistakes in readers of offsets and counts."""
    for _ in range(rng.choice((1, 1, 1, 2, 4, 8))):
        at = rng.randrange(len(metadata) - 8)
        kind = rng.randrange(6)
        if kind == 0:
            metadata[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            struct.pack_into("<I", metadata, at & ~3, rng.choice(WORDS))
        elif kind == 2:
            word = struct.unpack_from("<I", metadata, at & ~3)[0]
            struct.pack_into("<I", metadata, at & ~3, (word + rng.choice((-8, -4, -1, 1, 4, 8))) & 0xFFFFFFFF)
        elif kind == 3:
            struct.pack_into("<H", metadata, at & ~1, rng.choice((0, 2, 4, 6, 8, 255, 0x7FFF, 0xFFFE, 0xFFFF)))
        elif kind == 4:  # one place becomes another
            size, other = rng.choice((2, 4, 8)), rng.randrange(len(metadata) - 8) & ~3
            metadata[at & ~3 : (at & ~3) + size] = metadata[other : other + size]
        else:
            struct.pack_into("<q", metadata, at & ~7, rng.choice((0, -1, 64, 2**31, 2**62, -(2**63), 2**63 - 1)))


def run(seeds: list[bytes], seconds: float, seed: int) -> None:
    rng = random.Random(seed)
    end, count, taken = time.monotonic() + seconds, 0, 0
    with open(FAILURE, "wb", buffering=0) as current:
        while time.monotonic() < end:
            metadata, weights = parts(rng.choice(seeds))
            changed = bytearray(metadata)
            mutate(changed, rng)
            data = assemble(bytes(changed), weights)
            current.seek(0)
            current.write(data)
            current.truncate()
            taken += read(data, rng.random() < 0.5)
            count += 1
    FAILURE.unlink()
    print(f"{count} files, {taken} of them taken, no failure (seed {seed})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", type=Path, help="files to start from (default: the tests' samples)")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    seeds = [path.read_bytes() for path in args.files] or [etm.write(make()) for make in SAMPLES.values()]
    run(seeds, args.seconds, args.seed)


if __name__ == "__main__":
    main()
