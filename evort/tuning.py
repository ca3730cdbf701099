"""Kernels that were measured to be best for a layer, on the processor at hand: what `evort tune` writes into a file's
metadata, and the planner follows.

A file may have several such records, one for each processor, under the key `evort.tuning.` and the processor's name
(`cpu_name`). A record is text, a line for each layer: the name of its first output, the shape of that, and the driver,
with tabs between them. Lines that start with `#` say how it was measured.

    # threads 1, evort 0.1.0
    conv1 <tab> 1x64x112x112 <tab> conv.direct_f32

Records of other processors are not looked at. Of one for this processor, what does not apply changes nothing: lines for
other shapes, and drivers that this version of evort does not have or that do not take the layer, of which there the
choice is the cost model's. `evort inspect` shows which those are.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Mapping

from evort._kernels import core

PREFIX = "evort.tuning."

Tuned = dict[tuple[str, tuple[int, ...]], str]  # driver by the name and shape of a layer's first output


def cpu_name() -> str:
    """This processor, with the instruction set in use: "AMD EPYC 25/17, avx512vnni" (model name, family/model), or
    "ARM 0x41/0xd0c, neon_dotprod" (implementer/part); what the environment variable EVORT_CPU says, where it is set."""
    given = os.environ.get("EVORT_CPU")
    if given:
        return given
    facts: dict[str, str] = {}
    try:
        with open("/proc/cpuinfo", "rb", buffering=0) as file:
            for line in file.read(4096).decode("utf-8", "replace").splitlines():
                key, _, value = line.partition(":")
                facts.setdefault(key.strip(), value.strip())
    except OSError:
        pass  # other systems than Linux
    if "model name" in facts:
        name = f"{facts['model name']} {facts.get('cpu family', '?')}/{facts.get('model', '?')}"
    elif "CPU part" in facts:
        name = f"ARM {facts.get('CPU implementer', '?')}/{facts['CPU part']}"
    else:
        name = platform.machine()
    return f"{name}, {core.isa()}"


def parse(text: str) -> Tuned:
    """What a record says; lines that are none are left out."""
    found: Tuned = {}
    for line in text.splitlines():
        parts = line.split("\t")
        if len(parts) == 3 and all(d.isdecimal() for d in parts[1].split("x") if parts[1]):
            found[parts[0], tuple([int(d) for d in parts[1].split("x") if d])] = parts[2]
    return found


def render(tuned: Tuned, notes: Iterable[str]) -> str:
    """The record's text. Layers whose names have tabs or line breaks cannot be in it."""
    lines = [f"# {note}" for note in notes]
    for (name, shape), kernel in tuned.items():
        if name.isprintable():
            lines.append(f"{name}\t{'x'.join(map(str, shape))}\t{kernel}")
    return "\n".join(lines)


def records(metadata: Mapping[str, str]) -> dict[str, str]:
    """A file's records by the name of the processor."""
    return {key[len(PREFIX) :]: text for key, text in metadata.items() if key.startswith(PREFIX)}


def for_this_cpu(metadata: Mapping[str, str]) -> Tuned | None:
    """The kernels to use here, or None where the file has no record for this processor."""
    found = records(metadata)
    text = found.get(cpu_name()) if found else None
    return parse(text) if text else None


__all__ = ["PREFIX", "Tuned", "cpu_name", "for_this_cpu", "parse", "records", "render"]
