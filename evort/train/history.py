"""What an epoch gave: rows of numbers, as CSV, JSON or a plot."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

from evort.files import write_atomically


class History:
    """rows: a dictionary for each epoch: epoch, step, loss, accuracy, val_loss, ..., lr, seconds."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def write(self, path: str) -> None:
        """Writes a .csv or .json file. Raises ValueError for another name, OSError."""
        if path.endswith(".json"):
            text = json.dumps(self.rows, indent=1) + "\n"
        elif path.endswith(".csv"):
            columns = list(dict.fromkeys(key for row in self.rows for key in row))
            out = io.StringIO()
            writer = csv.DictWriter(out, columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.rows)
            text = out.getvalue()
        else:
            raise ValueError(f"a log is a .csv or a .json file, not {path!r}")
        write_atomically(path, text.encode())

    def plot(self, path: str) -> None:
        """Draws loss, and accuracy where there is one, over epochs. Needs matplotlib (the extra `plot`)."""
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
        from matplotlib.ticker import MaxNLocator

        metrics = [m for m in ("loss", "accuracy") if any(m in row for row in self.rows)]
        figure, axes = pyplot.subplots(1, len(metrics), figsize=(5 * len(metrics), 3.6), squeeze=False)
        for metric, ax in zip(metrics, axes[0], strict=True):
            for key, label in ((metric, "training"), (f"val_{metric}", "validation")):
                points = [(row["epoch"], row[key]) for row in self.rows if key in row]
                if points:
                    ax.plot(*zip(*points, strict=True), marker="o", markersize=3, label=label)
            ax.set_xlabel("epoch")
            ax.set_title(metric)
            ax.xaxis.set_major_locator(MaxNLocator(integer=True))
            ax.grid(alpha=0.3)
            ax.legend()
        figure.tight_layout()
        buffer = io.BytesIO()
        figure.savefig(buffer, dpi=120, format=path.rpartition(".")[2] or "png")
        pyplot.close(figure)
        write_atomically(path, buffer.getvalue())


__all__ = ["History"]
