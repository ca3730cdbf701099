"""Calibration data: one sample at a time, from npz or npy files, folders, arrays in memory or any iterable.

A sample is {input name: array}, shaped as the model takes it. Arrays in files are keyed by input name and hold samples
along their first axis: an array of the input's rank is cut into batches of the model's own size (1 where that is
open), one of a rank more is indexed. An input without dimensions may be given once for all samples. Files are read
sample by sample, so that memory does not grow with them.
"""

from __future__ import annotations

import os
import tempfile
import zipfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from evort.errors import EvortError
from evort.graph import Graph, Tensor
from evort.types import STORAGE, DType

IMAGES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".gif"})
Sample = dict[str, np.ndarray]
_FAR = 100.0  # times the median reach of samples, beyond which one is pointed out


class CalibrationError(EvortError, ValueError):
    """Calibration data that cannot be used; the message says what is wrong with which sample and what to do."""


class Images:
    """How images become inputs: resized to `size` (height, width; the model's own where None), channels RGB or `bgr`,
    multiplied by `scale`, minus `mean`, divided by `std` (one number, or one for each channel)."""

    def __init__(
        self,
        scale: float = 1 / 255,
        mean: Sequence[float] = (0.0,),
        std: Sequence[float] = (1.0,),
        size: tuple[int, int] | None = None,
        bgr: bool = False,
        channels_last: bool = False,
    ):
        self.scale = scale
        self.mean = mean
        self.std = std
        self.size = size
        self.bgr = bgr
        self.channels_last = channels_last

    def read(self, path: str | os.PathLike[str], tensor: Tensor) -> np.ndarray:
        """An image as an input of shape [1, C, H, W] (or [1, H, W, C]). Raises CalibrationError."""
        from PIL import Image, UnidentifiedImageError

        shape = tensor.shape
        if shape is None or len(shape) != 4:
            raise CalibrationError(f"input {tensor.name!r} takes {_dims(shape)}, not an image: give arrays instead")
        channels, height, width = (shape[3], *shape[1:3]) if self.channels_last else shape[1:]
        size = self.size or ((height, width) if isinstance(height, int) and isinstance(width, int) else None)
        try:
            with Image.open(path) as image:
                image = image.convert("L" if channels == 1 else "RGB")
                if size is not None:
                    image = image.resize((size[1], size[0]), Image.Resampling.BILINEAR)
                pixels = np.atleast_3d(np.asarray(image))
        except (UnidentifiedImageError, OSError) as error:
            raise CalibrationError(f"{path}: cannot be read as an image ({error})") from None
        for what, numbers in (("mean", self.mean), ("std", self.std)):
            if len(numbers) not in (1, pixels.shape[2]):
                raise CalibrationError(f"{what} has {len(numbers)} numbers, the input {pixels.shape[2]} channels")
        if self.bgr:
            pixels = pixels[:, :, ::-1]
        if tensor.dtype != DType.UINT8:
            pixels = (pixels * np.float32(self.scale) - np.asarray(self.mean, np.float32)) / np.asarray(
                self.std, np.float32
            )
        if not self.channels_last:
            pixels = pixels.transpose(2, 0, 1)
        return np.ascontiguousarray(pixels[None], STORAGE[tensor.dtype])


class Calibration:
    """Samples of a model's inputs; iterating over it starts again from the first.

    Each sample is checked as it comes: a CalibrationError names the sample and the input where one is missing,
    unknown, of a wrong dtype or shape, or holds NaN or infinity. `len()` is the number of samples, known after the
    first pass where the source does not tell; `count` is None until then.

    order: which samples, by their place, `head` gives first; None for evenly spread ones.
    """

    def __init__(self, graph: Graph, start: Callable[[], Iterator[Any]], count: int | None, limit: int | None = None):
        """start: gives an iterator of samples, each {name: array} or an array for the only input. limit: the most
        samples to use."""
        self.inputs = {name: graph.tensors[name] for name in graph.inputs}
        self._start = start
        self._limit = limit
        self._part: Callable[[int], bool] = lambda number: True
        self.count = count if limit is None or count is None else min(count, limit)
        self.order: list[int] | None = None

    def __iter__(self) -> Iterator[Sample]:
        count = 0
        for number, given in enumerate(self._start()):
            if self._limit is not None and number >= self._limit:
                break
            if self._part(number):
                yield self._checked(given, number)
                count += 1
        if not count:
            raise CalibrationError("the calibration data is empty: give at least one sample (a few hundred are good)")
        self.count = count

    def __len__(self) -> int:
        if self.count is None:
            for _ in self:
                pass
        return self.count

    def split(self, every: int) -> tuple[Calibration, Calibration]:
        """(all samples but each `every`-th, these), for data of `every` samples or more."""
        held = {place for place in range(len(self)) if place % every == every - 1}
        return self.without(held), self._view(held)

    def some(self, most: int) -> Calibration:
        """Up to `most` samples, evenly spread; the data itself where that is all."""
        return self if len(self) <= most else self._view(set(self.spread(most)))

    def _view(self, places: set[int]) -> Calibration:
        """The samples at some places."""
        view = Calibration(Graph(""), self.__iter__, len(places))
        view.inputs = self.inputs
        view._part = places.__contains__
        return view

    def spread(self, most: int) -> list[int]:
        """The places of up to `most` samples: evenly spread over all where their number is known, else the first."""
        if self.count is None or self.count <= most:
            return list(range(most if self.count is None else self.count))
        return sorted({round(i * (self.count - 1) / max(1, most - 1)) for i in range(most)})

    def head(self, most: int) -> list[Sample]:
        """Up to `most` samples: the first of `order` where that is known, else evenly spread ones."""
        wanted = self.spread(most) if self.order is None or (self.count or 0) <= most else self.order[:most]
        found: dict[int, Sample] = {}
        for number, sample in enumerate(self):
            if number in wanted:
                found[number] = sample
            if len(found) >= len(wanted):
                break
        return [found[number] for number in wanted if number in found]

    def oddities(self) -> tuple[dict[str, float], dict[int, str]]:
        """({input of floats that is one number throughout: that number}, {place of a sample that reaches a hundred
        times further than half of all: what is odd about it})."""
        floats = [n for n, t in self.inputs.items() if t.dtype in (DType.FLOAT, DType.DOUBLE) and t.shape != ()]
        ends: dict[str, list[tuple[float, float]]] = {name: [] for name in floats}
        for sample in self:
            for name in floats:
                value = sample[name]
                ends[name].append((float(value.min(initial=np.inf)), float(value.max(initial=-np.inf))))
        constant = {name: pairs[0][0] for name, pairs in ends.items() if len({e for pair in pairs for e in pair}) == 1}
        far: dict[int, str] = {}
        for name, pairs in ends.items():
            reach = [max(-a, b) for a, b in pairs]
            usual = float(np.median(reach))
            for place, r in enumerate(reach):
                if r > _FAR * usual > 0:
                    far.setdefault(place, f"input {name!r} reaches {r:g}, where half of them stay below {usual:g}")
        return constant, far

    def without(self, places: Collection[int]) -> Calibration:
        """All samples but those at some places."""
        return self._view(set(range(len(self))).difference(places))

    def _checked(self, given: Any, number: int) -> Sample:
        names = list(self.inputs)
        if not isinstance(given, Mapping):
            if len(names) != 1:
                raise CalibrationError(
                    f"sample {number} is {type(given).__name__}; the model has {len(names)} inputs, so give a dict of "
                    f"arrays by name: {', '.join(names)}"
                )
            given = {names[0]: given}
        unknown = [str(name) for name in given if name not in self.inputs]
        missing = [name for name in names if name not in given]
        if unknown or missing:
            what = [f"has {', '.join(map(repr, unknown))}"] * bool(unknown)
            what += [f"lacks {', '.join(map(repr, missing))}"] * bool(missing)
            takes = ", ".join(f"{n} {_dims(t.shape)}" for n, t in self.inputs.items())
            raise CalibrationError(f"sample {number} {' and '.join(what)}; the model's inputs are {takes}")
        return {name: self._array(np.asarray(given[name]), self.inputs[name], number) for name in names}

    @staticmethod
    def _array(array: np.ndarray, tensor: Tensor, number: int) -> np.ndarray:
        where = f"sample {number}, input {tensor.name!r}"
        storage = STORAGE.get(tensor.dtype)
        if array.dtype != storage:
            # Data is often kept as float64, or as bytes; integers that an input takes must be exact.
            kinds = array.dtype.kind, storage.kind
            if kinds[0] not in "fiub" or kinds[1] not in "fiu" or (kinds[0] == "f") > (kinds[1] == "f"):
                raise CalibrationError(f"{where} is {array.dtype}; the model takes {storage}")
            converted = array.astype(storage)
            if kinds[1] in "iu" and not np.array_equal(converted, array):
                raise CalibrationError(f"{where} holds numbers that {storage} does not")
            array = converted
        shape = tensor.shape
        if shape is not None:
            good = len(shape) == array.ndim and all(
                not isinstance(want, int) or want == got for want, got in zip(shape, array.shape, strict=False)
            )
            if not good:
                raise CalibrationError(f"{where} has shape {list(array.shape)}; the model takes {_dims(shape)}")
        if 0 in array.shape:
            raise CalibrationError(f"{where} has no elements (shape {list(array.shape)})")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            bad = "NaN" if np.isnan(array).any() else "infinity"
            raise CalibrationError(f"{where} holds {bad}: ranges cannot be found from it, so leave the sample out")
        return np.ascontiguousarray(array).reshape(array.shape)


def open_calibration(source: Any, graph: Graph, images: Images | None = None, limit: int | None = None) -> Calibration:
    """Calibration data from a path (npz, npy, a folder of images, npy or npz files), a dict of arrays, an array for
    the only input, a callable that gives an iterator, or any iterable of samples.

    An iterator that can be read only once is copied to a temporary file as it is read, so that a second pass works.
    images: how a folder's images become inputs. limit: the most samples to use. Raises CalibrationError.
    """
    if isinstance(source, Calibration):
        return source
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        if not path.exists():
            raise CalibrationError(f"{path}: there is no such file or folder")
        if path.is_dir():
            return _folder(path, graph, images or Images(), limit)
        if path.suffix == ".npz":
            return _npz(path, graph, limit)
        if path.suffix == ".npy":
            return _npy(path, _only_input(graph, str(path)), graph, limit)
        raise CalibrationError(f"{path}: calibration data is an .npz or .npy file, or a folder of images")
    if isinstance(source, np.ndarray):
        source = {_only_input(graph, "an array"): source}
    if isinstance(source, Mapping):
        return _arrays({name: np.asarray(value) for name, value in source.items()}, graph, limit)
    if callable(source):
        return Calibration(graph, lambda: iter(source()), None, limit)
    if isinstance(source, Iterable):
        once = iter(source)
        if once is source:
            return Calibration(graph, _Spool(once, limit).replay, None, limit)
        count = len(source) if hasattr(source, "__len__") else None
        return Calibration(graph, lambda: iter(source), count, limit)
    raise CalibrationError(f"calibration data cannot be read from {type(source).__name__}")


def _dims(shape: Sequence[Any] | None) -> str:
    return "any shape" if shape is None else "[" + ", ".join(str(d) or "?" for d in shape) + "]"


def _only_input(graph: Graph, what: str) -> str:
    if len(graph.inputs) != 1:
        raise CalibrationError(f"{what} is for one input; the model has {', '.join(graph.inputs)}: give an npz file")
    return graph.inputs[0]


class _Cut:
    """How one array is cut into samples: `count` of them (None: the same for all), `step` rows each; 0: indexed."""

    def __init__(self, name: str, shape: tuple[int, ...], graph: Graph):
        tensor = graph.tensors.get(name) if name in graph.inputs else None
        if tensor is None:
            raise CalibrationError(f"the data has an array {name!r}; the model's inputs are {', '.join(graph.inputs)}")
        declared = tensor.shape
        self.step = 1
        if declared is not None and len(declared) + 1 == len(shape):
            self.step = 0
        elif declared is not None and len(declared) != len(shape):
            raise CalibrationError(
                f"the array {name!r} has shape {list(shape)}; samples of {_dims(declared)} along its first axis were "
                "expected"
            )
        elif declared and isinstance(declared[0], int):
            self.step = declared[0]
        self.count: int | None = None
        if shape:
            self.count = shape[0] // max(1, self.step)
            if shape[0] and not self.count:
                raise CalibrationError(f"the array {name!r} has {shape[0]} rows; one sample has {self.step}")


def _common(cuts: Mapping[str, _Cut]) -> int:
    counts = {name: cut.count for name, cut in cuts.items() if cut.count is not None}
    if not counts:
        return 1
    if len(set(counts.values())) > 1:
        text = ", ".join(f"{name}: {count}" for name, count in counts.items())
        raise CalibrationError(f"the arrays hold different numbers of samples ({text})")
    return next(iter(counts.values()))


def _arrays(arrays: Mapping[str, np.ndarray], graph: Graph, limit: int | None) -> Calibration:
    cuts = {name: _Cut(name, array.shape, graph) for name, array in arrays.items()}
    count = _common(cuts)

    def start() -> Iterator[Sample]:
        for i in range(count):
            yield {name: _part(array, cuts[name], i) for name, array in arrays.items()}

    return Calibration(graph, start, count, limit)


def _part(array: np.ndarray, cut: _Cut, i: int) -> np.ndarray:
    if cut.count is None:
        return array
    return np.asarray(array[i] if not cut.step else array[i * cut.step : (i + 1) * cut.step])


def _npz(path: Path, graph: Graph, limit: int | None) -> Calibration:
    """The samples of an npz file, read as a stream, compressed or not."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = {entry.removesuffix(".npy"): entry for entry in archive.namelist()}
            heads = {}
            for name, entry in entries.items():
                with archive.open(entry) as file:
                    heads[name] = _header(file)
    except (zipfile.BadZipFile, ValueError, OSError) as error:
        raise CalibrationError(f"{path}: is no npz file of plain arrays ({error})") from None
    cuts = {name: _Cut(name, shape, graph) for name, (shape, _, _) in heads.items()}
    count = _common(cuts)

    def start() -> Iterator[Sample]:
        with zipfile.ZipFile(path) as archive, ExitStack() as stack:
            files = {name: stack.enter_context(archive.open(entry)) for name, entry in entries.items()}
            streams = {name: _rows(files[name], name, *heads[name], cuts[name]) for name in heads}
            for _ in range(count):
                yield {name: next(stream) for name, stream in streams.items()}

    return Calibration(graph, start, count, limit)


def _npy(path: Path, name: str, graph: Graph, limit: int | None) -> Calibration:
    """The samples of an npy file for one input, read as a stream."""
    try:
        with open(path, "rb") as file:
            head = _header(file)
    except ValueError as error:
        raise CalibrationError(f"{path}: is no npy file of a plain array ({error})") from None
    cut = _Cut(name, head[0], graph)
    count = _common({name: cut})

    def start() -> Iterator[Sample]:
        with open(path, "rb") as file:
            rows = _rows(file, path.name, *head, cut)
            for _ in range(count):
                yield {name: next(rows)}

    return Calibration(graph, start, count, limit)


def _header(file: Any) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(file)
    if dtype.hasobject:
        raise ValueError("it holds Python objects")
    return shape, fortran, dtype


def _rows(
    file: Any, what: str, shape: tuple[int, ...], fortran: bool, dtype: np.dtype, cut: _Cut
) -> Iterator[np.ndarray]:
    """The samples of an array in npy form, one after the other. Raises CalibrationError for a file that ends early."""
    if fortran or cut.count is None:  # not in the order of samples, or only one
        whole = np.lib.format.read_array(file, allow_pickle=False)
        for i in range(cut.count or 1):
            yield _part(whole, cut, i)
        while cut.count is None:
            yield whole
        return
    _header(file)
    part = shape[1:] if not cut.step else (cut.step, *shape[1:])
    wanted = int(np.prod(part, dtype=np.int64)) * dtype.itemsize
    for _ in range(cut.count):
        data = file.read(wanted)
        if len(data) < wanted:
            raise CalibrationError(f"the array {what!r} ends before its last sample")
        yield np.frombuffer(data, dtype).reshape(part)


def _folder(path: Path, graph: Graph, images: Images, limit: int | None) -> Calibration:
    files = sorted(p for p in path.rglob("*") if p.suffix.lower() in IMAGES or p.suffix in (".npy", ".npz"))
    if not files:
        raise CalibrationError(f"{path}: the folder holds no images, .npy or .npz files")
    plain = any(p.suffix != ".npz" for p in files)
    tensor = graph.tensors[_only_input(graph, str(path))] if plain else None

    def start() -> Iterator[Any]:
        for file in files:
            if file.suffix == ".npz":
                yield from _npz(file, graph, None)
            elif file.suffix == ".npy":
                yield from _npy(file, tensor.name, graph, None)
            else:
                yield images.read(file, tensor)

    return Calibration(graph, start, None if any(p.suffix in (".npy", ".npz") for p in files) else len(files), limit)


class _Spool:
    """Replays an iterator: what was read of it is kept in a temporary file."""

    def __init__(self, source: Iterator[Any], limit: int | None):
        self._source: Iterator[Any] | None = source
        self._left = limit
        self._file = tempfile.TemporaryFile(prefix="evort-calibration-")  # noqa: SIM115 (closed with this object)
        self._ends: list[tuple[list[str] | None, int]] = []

    def replay(self) -> Iterator[Any]:
        position = 0
        for names, end in list(self._ends):
            self._file.seek(position)
            arrays = [np.load(self._file, allow_pickle=False) for _ in names or [""]]
            yield arrays[0] if names is None else dict(zip(names, arrays, strict=True))
            position = end
        while self._source is not None and (self._left is None or self._left > 0):
            try:
                sample = next(self._source)
            except StopIteration:
                self._source = None
                return
            names = list(sample) if isinstance(sample, Mapping) else None
            self._file.seek(0, os.SEEK_END)
            for value in [sample] if names is None else sample.values():
                np.save(self._file, np.asarray(value), allow_pickle=False)
            self._ends.append((names, self._file.tell()))
            if self._left is not None:
                self._left -= 1
            yield sample
