"""Batches: from arrays in a seeded order, or from any iterable."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from evort.errors import InputError

Batch = tuple[np.ndarray, ...]
Transform = Callable[..., Batch]


class Batches:
    """Mini-batches of arrays that have their samples along axis 0.

    arrays: the model's inputs in its order, then the targets. An epoch's order depends on the seed and the epoch
    alone, so that training that is resumed sees what it would have seen. transform: called with (rng, *batch) for each
    batch, returns the batch to use (augmentation, scaling); the generator is seeded by seed, epoch and batch.
    drop_last: leaves out a last batch that is smaller than the others (a second plan is made for it otherwise).
    """

    def __init__(
        self,
        *arrays: np.ndarray,
        batch_size: int = 32,
        shuffle: bool = True,
        seed: int = 0,
        drop_last: bool = False,
        transform: Transform | None = None,
    ):
        if not arrays or len({len(a) for a in arrays}) != 1:
            raise InputError(f"the arrays must have as many samples each; they have {[len(a) for a in arrays]}")
        if batch_size < 1 or (drop_last and batch_size > len(arrays[0])):
            raise InputError(f"a batch size of {batch_size} does not fit {len(arrays[0])} samples")
        self.arrays, self.batch_size, self.shuffle, self.seed = arrays, batch_size, shuffle, seed
        self.drop_last, self.transform = drop_last, transform

    def __len__(self) -> int:
        n = len(self.arrays[0])
        return n // self.batch_size if self.drop_last else -(-n // self.batch_size)

    @property
    def samples(self) -> int:
        return len(self) * self.batch_size if self.drop_last else len(self.arrays[0])

    def epoch(self, number: int) -> Iterator[Batch]:
        """The batches of an epoch."""
        n = len(self.arrays[0])
        order = np.random.default_rng((self.seed, number)).permutation(n) if self.shuffle else np.arange(n)
        for i in range(len(self)):
            pick = order[i * self.batch_size : (i + 1) * self.batch_size]
            batch = tuple(a[pick] for a in self.arrays)
            if self.transform is not None:
                batch = self.transform(np.random.default_rng((self.seed, number, i)), *batch)
            yield batch

    def __iter__(self) -> Iterator[Batch]:
        return self.epoch(0)


def read_idx(path: str | os.PathLike[str]) -> np.ndarray:
    """An IDX file, the container of MNIST, plain or gzip, as an array of bytes.

    Raises InputError where it is none; OSError where it cannot be read.
    """
    raw = Path(path).read_bytes()
    try:
        if raw[:2] == b"\x1f\x8b":
            raw = gzip.decompress(raw)
        if raw[:3] != b"\0\0\x08":
            raise ValueError("its first bytes are not those of an IDX file of bytes")
        rank = raw[3]
        shape = np.frombuffer(raw, ">u4", rank, 4).astype(np.int64)
        return np.frombuffer(raw, np.uint8, offset=4 + 4 * rank).reshape(shape)
    except (ValueError, IndexError, EOFError, gzip.BadGzipFile) as error:
        raise InputError(f"{os.fspath(path)}: no IDX file ({error})") from None


def mnist(folder: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """The four arrays of MNIST (or of a set in its form) from a folder with its IDX files, gzip or plain: train_images
    uint8 [N, 28, 28], train_labels uint8 [N], test_images, test_labels.

    Raises InputError, naming what is missing.
    """
    found, missing = {}, []
    names = {
        "train_images": "train-images-idx3-ubyte", "train_labels": "train-labels-idx1-ubyte",
        "test_images": "t10k-images-idx3-ubyte", "test_labels": "t10k-labels-idx1-ubyte",
    }  # fmt: skip
    for key, name in names.items():
        stems = (name, name.replace("-idx", ".idx"))
        path = next((p for s in stems for p in (Path(folder) / s, Path(folder) / f"{s}.gz") if p.is_file()), None)
        if path is None:
            missing.append(name)
        else:
            found[key] = read_idx(path)
    if missing:
        raise InputError(f"{os.fspath(folder)} lacks {', '.join(missing)} (each plain, or with .gz): MNIST's IDX files")
    return found


def shifted_digits(most: int = 2) -> Transform:
    """A transform for uint8 images [N, H, W] and labels: images moved together by up to `most` pixels each way (the rim
    comes back on the other side; a digit's is empty), as float32 [N, 1, H, W] in 0..1."""

    def transform(rng: np.random.Generator, images: np.ndarray, labels: np.ndarray) -> Batch:
        if most:
            images = np.roll(images, rng.integers(-most, most + 1, 2), (1, 2))
        return images[:, None].astype(np.float32) / np.float32(255), labels

    return transform


__all__ = ["Batch", "Batches", "mnist", "read_idx", "shifted_digits"]
