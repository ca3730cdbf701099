"""The quantizer's options: one dataclass, from which the command line's flags and the keys of a TOML file are made."""

from __future__ import annotations

import argparse
import math
import os
import tomllib
from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields
from typing import Any

from evort._kernels.core import available_isas
from evort_tools.quantization.limits import latency_limit, size_limit
from evort_tools.quantization.metric import Drop

SCHEMES = ("static", "dynamic", "weight-only", "mixed")
PRECISIONS = ("float32", "float16", "int16", "int8", "int4")
SWITCH = ("auto", "on", "off")
GOAL = ("metric", "max_drop")  # what may be lost
MIXED_ONLY = ("max_size", "max_latency", "pin")
WEIGHTS = ("bits", "block", "zero_points", "rounding", "storage")  # what is asked of weights alone


def _option(default: Any, text: str, **more: Any) -> Any:
    """A field with its help text. more: `choices` (what the flag takes), `metavar`, `read` (from the flag's text),
    `also` (whether another value than the annotation says will do)."""
    return field(default=default, metadata={"help": text, **more})


def _floats(text: str) -> tuple[float, ...]:
    return tuple(float(t) for t in text.split(","))


def _names(text: str) -> tuple[str, ...]:
    return tuple(t.strip() for t in text.split(","))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _size(text: str) -> tuple[int, int]:
    height, _, width = text.lower().partition("x")
    return int(height), int(width or height)


@dataclass
class Options:
    """How to quantize. Each field is a flag of `evort quantize` and a key of its TOML file (`--config`)."""

    scheme: str = _option("static", "what becomes integers, and when ranges are found", choices=SCHEMES)
    method: str = _option(
        "auto",
        "how ranges are found from calibration data; auto takes, for each tensor, what harms the next layer least",
        choices=("auto", "minmax", "moving-average", "percentile", "entropy", "mse"),
    )
    activations: str = _option("uint8", "integers of activations", choices=("uint8", "int8", "int8-symmetric", "int16"))
    percentile: float = _option(99.99, "share of the values that the method percentile keeps, in percent", metavar="P")
    per_channel: bool = _option(True, "a scale for each output channel of weights")
    exclude: tuple[str, ...] = _option(
        (), "a node, tensor, operator or pattern (with * and ?) that stays in float (repeatable)", metavar="NAME"
    )
    equalize: str = _option(
        "auto",
        "cross-layer equalization: channels scaled so that the weights on either side use the integers alike; "
        "auto keeps it where it lowers the error on calibration samples",
        choices=SWITCH,
    )
    smooth: str = _option(
        "off", "SmoothQuant: the range of activations' channels goes over into the weights", choices=SWITCH
    )
    per_channel_activations: bool = _option(
        False, "a scale for each channel of activations, where what computes them can take it in (as --smooth with 1)"
    )
    wide_activations: str = _option(
        "auto",
        "16 bits for the few activations that harm the outputs most; auto where those have less than 35 dB",
        choices=SWITCH,
    )
    smooth_alpha: float = _option(0.5, "how much of that range goes over, from 0 to 1 (0.5)", metavar="A")
    clip_weights: str = _option(
        "off", "weights' outliers are clipped to where a channel's squared error is least", choices=SWITCH
    )
    adaround: str = _option("auto", "AdaRound: weights are rounded up or down for the layer's output", choices=SWITCH)
    reduce_range: str = _option(
        "auto",
        "static: weights a little smaller, so that products add up in 16 bits, which is faster with AVX2 without VNNI; "
        "auto for layers that are measured to gain, and at most a decibel of the outputs; on for all",
        choices=SWITCH,
    )
    bias_correction: str = _option(
        "auto", "what rounding the weights adds to a layer's output on average is taken off its bias", choices=SWITCH
    )
    attention: str = _option(
        "auto",
        "dynamic, static, mixed: products of attention in integers; auto where they are faster, on always",
        choices=SWITCH,
    )
    samples: int | None = _option(None, "the most calibration samples to use (all)", metavar="N")
    outliers: str = _option(
        "drop",
        "static, mixed, GPTQ: calibration samples that reach a hundred times further than half of them are left out "
        "where they are few (one in 20 at most), or kept",
        choices=("drop", "keep"),
    )
    hold_out: int = _option(
        8, "of 32 samples or more, one in N takes no part in calibration and measures the result (8); 0: none",
        metavar="N",
    )  # fmt: skip
    scale: float = _option(1 / 255, "images: what values are multiplied by (1/255)")
    mean: tuple[float, ...] = _option(
        (0.0,), "images: subtracted after scaling, by channel", read=_floats, metavar="M,M,M"
    )
    std: tuple[float, ...] = _option((1.0,), "images: divided by after that, by channel", read=_floats, metavar="S,S,S")
    size: tuple[int, int] | None = _option(
        None, "images: height and width to resize to, where the model leaves them open", read=_size, metavar="HxW"
    )
    bgr: bool = _option(False, "images: channels in the order blue, green, red")
    channels_last: bool = _option(False, "images: the model takes [N, H, W, C]")
    shape: tuple[str, ...] = _option(
        (), "use this shape for an input (as in evort convert; repeatable)", metavar="INPUT=1,3,H,W"
    )
    threads: int | None = _option(None, "threads to run and to measure the model with", metavar="N")
    prefer: str = _option(
        "speed",
        "speed leaves layers in float that are measured to be slower in integers (weight-only: has floats in memory "
        "where packed weights are slower); size does neither, and measures nothing",
        choices=("speed", "size"),
    )
    isa: tuple[str, ...] = _option(
        (), "instruction sets to measure with, such as avx2,avx512vnni, of those that this machine has: "
        "the file is for processors of each of them, and no slower than in float with any (the best one)",
        read=_names, metavar="NAME,NAME",
    )  # fmt: skip
    profile: str = _option(
        "", "a latency profile of the target (`evort profile MODEL --precisions -o FILE`), instead of measuring here: "
        "the same profile gives the same file", metavar="FILE.json",
    )  # fmt: skip
    metric: str | None = _option(  # in Python also the function itself
        None, "static, mixed: your own metric, a function in a Python file, which is run; more is better",
        also=callable, metavar="FILE.py:FUNCTION",
    )  # fmt: skip
    max_drop: str | None = _option(
        None, "static, mixed: the most that may be lost: 0.5%% of the float model's metric, 0.005 in its unit; without "
        "a metric of the outputs' root mean square, or 30dB; layers are undone until it holds",
        also=_is_number, metavar="DROP",
    )  # fmt: skip
    sensitivity: str = _option(
        "sqnr", "mixed: what tells how much a layer bears: the outputs' error on calibration samples, or the metric",
        choices=("sqnr", "metric"),
    )  # fmt: skip
    max_size: str | None = _option(
        None, "mixed: the most bytes of the file, such as 200kB, or 30%% of the float model's", also=_is_number,
        metavar="SIZE",
    )  # fmt: skip
    max_latency: str | None = _option(
        None, "mixed: the most time of a run, such as 2.5ms, or 60%% of the float model's", metavar="TIME"
    )
    pin: tuple[str, ...] = _option(
        (), "mixed: a layer or pattern and the precision that it must have (repeatable)", metavar="PATTERN=int8"
    )
    precisions: tuple[str, ...] = _option(
        PRECISIONS, "mixed: what to choose from (float32,float16,int16,int8,int4)", read=_names, metavar="P,P"
    )
    verify: bool = _option(True, "run the result on calibration samples and report its signal-to-noise ratio")
    bits: int | None = _option(
        None, "of weights: dynamic 8 or 16 (default 8), weight-only 2, 3, 4, 8 or 16 (default 4)", metavar="N"
    )
    block: int = _option(64, "weight-only: how many weights share a scale: 16, 32, 64 ... (64)", metavar="N")
    zero_points: bool = _option(False, "dynamic, weight-only: a zero point for each channel or group of weights")
    rounding: str = _option(
        "auto", "weight-only: to the nearest number, or GPTQ; auto takes GPTQ where there is calibration data",
        choices=("auto", "nearest", "gptq"),
    )  # fmt: skip
    adaptive: bool = _option(
        False, "static: levels of precision in the file, among which evort.load(..., adaptive=True) chooses"
    )
    adaptive_float: float = _option(
        0.25, "adaptive: float32 weights that may be kept for the highest level, in parts of the constants", metavar="S"
    )
    storage: str = _option("float16", "weight-only: what 16 bits are", choices=("float16", "bfloat16"))

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            choices = f.metadata.get("choices")
            if choices and value not in choices:
                raise ValueError(f"{f.name}: {value!r} is not one of {', '.join(choices)}")
            if isinstance(f.default, tuple) and not isinstance(value, tuple):
                setattr(self, f.name, tuple(value) if isinstance(value, list) else (value,))
        if self.samples is not None and self.samples < 1:
            raise ValueError(f"samples must be at least 1, not {self.samples}")
        if self.hold_out < 0 or self.hold_out == 1:
            raise ValueError(f"hold_out must be 0 or at least 2, not {self.hold_out}")
        numbers = (self.scale, *self.mean, *self.std)
        if not all(math.isfinite(number) for number in numbers) or 0 in self.std:
            raise ValueError(f"scale, mean and std must be finite and std not 0, not {', '.join(map(str, numbers))}")
        if self.size is not None and min(self.size) < 1:
            raise ValueError(f"size must be two positive numbers, height and width, not {list(self.size)}")
        self._check_limits()
        self._check_weights()
        if self.scheme == "dynamic":
            self._check_dynamic()
        if self.adaptive and self.scheme != "static":
            raise ValueError("adaptive is for the static scheme")
        if not 0 <= self.adaptive_float <= 4:
            raise ValueError(f"adaptive_float must be from 0 to 4, not {self.adaptive_float}")
        if not 0 <= self.smooth_alpha <= 1:
            raise ValueError(f"smooth_alpha must be from 0 to 1, not {self.smooth_alpha}")
        if not 50 <= self.percentile <= 100:
            raise ValueError(f"percentile must be from 50 to 100, not {self.percentile}")

    def _check_weights(self) -> None:
        """That nothing is asked of weights that the scheme does not have."""
        has = {"dynamic": ("bits", "zero_points"), "mixed": WEIGHTS[1:], "weight-only": WEIGHTS}.get(self.scheme, ())
        defaults = {f.name: f.default for f in fields(self)}
        for name in WEIGHTS:
            true = (name, self.bits, self.scheme) == ("bits", 8, "static")
            if name not in has and getattr(self, name) != defaults[name] and not true:
                raise ValueError(f"{name} is not for the {self.scheme} scheme; the weight-only scheme has it")
        if self.scheme == "dynamic" and self.bits == 16 and self.zero_points:
            raise ValueError("zero_points: weights of 16 bits have none; they are for 8 bits")

    def _check_dynamic(self) -> None:
        """Which activations there are beside which weights."""
        if self.bits == 16 and self.activations != "uint8":
            raise ValueError(
                f"activations {self.activations}: beside weights of 16 bits activations stay float32 in the dynamic "
                "scheme; for integers of 16 bits beside weights of 8 leave bits out"
            )
        if self.activations not in ("uint8", "int16"):
            raise ValueError(
                f"activations {self.activations}: in the dynamic scheme they are uint8, with the range of "
                "each run and a zero point, or int16"
            )

    def _check_limits(self) -> None:
        """What limits and precisions there may be, and which go together."""
        if self.max_size is not None:
            size_limit(self.max_size, 1)
        if self.max_latency is not None:
            latency_limit(self.max_latency, 1.0)
        if self.max_drop is not None:
            Drop(self.max_drop)
        elif self.metric is not None and self.sensitivity != "metric":
            raise ValueError("a metric needs a limit to hold: give max_drop, such as 0.5%")
        if self.sensitivity == "metric" and self.metric is None:
            raise ValueError("sensitivity by the metric needs one: give metric, such as my_metric.py:top1")
        only_timed = ("static", "mixed")
        only = {"static": GOAL, "mixed": (*GOAL, *MIXED_ONLY)}.get(self.scheme, ())
        for name in (*GOAL, *MIXED_ONLY):
            if getattr(self, name) and name not in only:
                raise ValueError(f"{name} is not for the {self.scheme} scheme; the mixed scheme has it")
        if self.profile and (self.scheme not in only_timed or (self.prefer == "size" and not self.max_latency)):
            raise ValueError("profile: nothing is chosen by latency with this scheme and what it prefers")
        if self.isa and self.profile:
            raise ValueError("isa is for what is measured here; a profile has been measured")
        missing = [isa for isa in self.isa if isa not in available_isas()]
        if missing:
            raise ValueError(f"isa: {missing[0]!r} is not one that this machine runs: {', '.join(available_isas())}")
        unknown = [p for p in self.precisions if p not in PRECISIONS]
        if unknown:
            raise ValueError(f"precisions: {unknown[0]!r} is not one of {', '.join(PRECISIONS)}")


def from_mapping(given: Mapping[str, Any], where: str = "options") -> Options:
    """Options from a dict, or the table that a TOML file is. Raises ValueError for unknown keys and wrong values."""
    known = {f.name: f for f in fields(Options)}
    unknown = [key for key in given if key not in known]
    if unknown:
        import difflib

        near = difflib.get_close_matches(unknown[0], known, 1)
        hint = f"; did you mean {near[0]}?" if near else f"; known: {', '.join(known)}"
        raise ValueError(f"{where}: there is no option {', '.join(map(repr, unknown))}{hint}")
    return Options(**{key: _value(known[key], value, where) for key, value in given.items()})


_ITEMS = {"str": lambda v: isinstance(v, str), "bool": lambda v: isinstance(v, bool), "float": _is_number,
          "int": lambda v: isinstance(v, int) and not isinstance(v, bool)}  # fmt: skip


def _value(f: Field, value: Any, where: str) -> Any:
    """An option's value as its annotation has it: text where the flag takes some, one item where there may be several.
    Raises ValueError for any other."""
    kind = str(f.type).removesuffix(" | None")
    if (value is None and f.default is None) or f.metadata.get("also", lambda v: False)(value):
        return value
    read, several = f.metadata.get("read"), kind.startswith("tuple")
    try:
        if read is not None and isinstance(value, str):
            return read(value)
    except ValueError:
        raise ValueError(f"{where}: {f.name} = {value!r}: write it like {f.metadata['metavar']}") from None
    items = list(value) if several and isinstance(value, list | tuple) else [value]
    fits = _ITEMS[kind.removeprefix("tuple[").split(",")[0].rstrip("]")]
    if not all(map(fits, items)) or (several and "..." not in kind and len(items) != kind.count(",") + 1):
        name = "a whole number" if kind == "int" else f.metadata.get("metavar", kind)
        like = repr(f.default) if f.default not in (None, ()) else name
        raise ValueError(f"{where}: {f.name} = {value!r} should be like {like}")
    return tuple(items) if several else value


def read_toml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The keys of a TOML file, those of a table [quantize] where there is one. Raises ValueError, OSError."""
    with open(path, "rb") as file:
        try:
            found = tomllib.load(file)
        except tomllib.TOMLDecodeError as error:
            raise ValueError(f"{path}: {error}") from None
    return found.get("quantize", found)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """A flag for each option; one that is not given leaves no attribute."""
    for f in fields(Options):
        flag = "--" + f.name.replace("_", "-")
        plain, more = f.default, dict(f.metadata)
        text = more.pop("help")
        read = more.pop("read", None)
        more.pop("also", None)
        if isinstance(plain, bool):
            parser.add_argument(
                flag, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS,
                help=text + (" (default)" if plain else ""),
            )  # fmt: skip
        elif plain == ():
            parser.add_argument(flag, action="append", default=argparse.SUPPRESS, help=text, **more)
        else:
            kind = read or (type(plain) if plain is not None else str if "str" in str(f.type) else int)
            note = f" (default: {plain})" if isinstance(plain, str) and plain else ""
            if not text.endswith(")"):
                text += note
            parser.add_argument(flag, type=kind, default=argparse.SUPPRESS, help=text, **more)


def from_arguments(args: argparse.Namespace, config: Mapping[str, Any]) -> Options:
    """Options from the flags given, and else from a TOML file's keys."""
    given = {f.name: getattr(args, f.name) for f in fields(Options) if hasattr(args, f.name)}
    return from_mapping({**config, **given}, "the command line and its configuration")
