"""Checkpoints: parameters, moments, running statistics and counters, in one npz file, from which training goes on as
if it had not been interrupted."""

from __future__ import annotations

import io
import json
import os
import zipfile
from typing import TYPE_CHECKING

import numpy as np

from evort.errors import InputError
from evort.files import write_atomically

if TYPE_CHECKING:
    from evort.train.trainer import Trainer

_PROGRESS = "evort.train progress"


def write(path: str | os.PathLike[str], trainer: Trainer) -> None:
    arrays = {f"parameter:{name}": a for name, a in trainer.parameters.items()}
    arrays.update({f"state:{name}": a for name, a in trainer.state.items()})
    arrays[_PROGRESS] = np.array(json.dumps(trainer.progress_state()))
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    write_atomically(path, buffer.getvalue())


def read(path: str | os.PathLike[str], trainer: Trainer) -> None:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        progress = json.loads(str(arrays.pop(_PROGRESS)))
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{os.fspath(path)}: no checkpoint of evort's training ({error})") from None
    parameters = {n.removeprefix("parameter:"): a for n, a in arrays.items() if n.startswith("parameter:")}
    state = {n.removeprefix("state:"): a for n, a in arrays.items() if n.startswith("state:")}
    if {n: a.shape for n, a in parameters.items()} != {n: a.shape for n, a in trainer.parameters.items()}:
        raise InputError(f"{os.fspath(path)}: the checkpoint is of another model")
    for name, array in parameters.items():
        trainer.parameters[name][...] = array
    for name, array in state.items():
        if name in trainer.state:
            trainer.state[name][...] = array
        else:
            trainer.state[name] = np.ascontiguousarray(array)
    trainer.restore_progress(progress)


__all__ = ["read", "write"]
