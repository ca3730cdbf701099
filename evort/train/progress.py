"""Progress bars of a training, by rich; nothing where they are not wanted."""

from __future__ import annotations

from typing import Any


class Bars:
    """A bar for the epoch that runs, with its means so far, and a line for each that is done."""

    def __init__(self, wanted: bool, epochs: int):
        self.epochs = epochs
        self._bars: Any = None
        if wanted:
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            self._bars = Progress(
                TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
                TextColumn("{task.fields[means]}"),
            )  # fmt: skip
        self._task: Any = None

    def __enter__(self) -> Bars:
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bars is not None:
            self._bars.stop()

    def begin(self, epoch: int, batches: int | None, done: int) -> None:
        if self._bars is not None:
            text = f"epoch {epoch + 1} of {self.epochs}"
            self._task = self._bars.add_task(text, total=batches, completed=done, means="")

    def step(self, means: dict[str, float]) -> None:
        if self._bars is not None:
            self._bars.update(self._task, advance=1, means=_text(means))

    def epoch(self, row: dict[str, Any]) -> None:
        if self._bars is not None:
            self._bars.remove_task(self._task)
            means = {k: v for k, v in row.items() if k.endswith(("loss", "accuracy"))}
            self._bars.console.print(f"epoch {row['epoch']:3d}  {_text(means)}  {row['seconds']:.1f} s")


def _text(means: dict[str, float]) -> str:
    return "  ".join(f"{k} {v:.2%}" if k.endswith("accuracy") else f"{k} {v:.4f}" for k, v in means.items())


__all__ = ["Bars"]
