"""Training LeNet beside PyTorch: time of an epoch and peak memory, alternately, on the same threads and batches.

    python benchmarks/train.py [--threads 2] [--rounds 7] [--json FILE]      (needs torch: pip install torch==2.13.0)

Each engine is a process of its own that waits while the other one runs. A round is a tenth of an epoch (47 batches of
128 digits, made up); the best round of each counts. Peak memory is what a process needs beyond NumPy and the batches.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

BATCH, BATCHES, EPOCH = 128, 47, 468
ENGINES = ("evort", "torch")


def _batches() -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(0)
    return [(rng.random((BATCH, 1, 28, 28), np.float32), rng.integers(0, 10, BATCH)) for _ in range(BATCHES)]


def _evort(threads: int) -> Any:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
    from train_lenet import lenet

    from evort import train

    trainer = train.Trainer(lenet(0), train.CrossEntropy(), train.AdamW(1e-3), threads=threads)
    return lambda x, y: trainer.step((x, y))["loss"]


def _torch(threads: int) -> Any:
    import torch
    from torch import nn

    torch.set_num_threads(threads)
    model = nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10),
    )  # fmt: skip
    optimizer, loss_of = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.01), nn.CrossEntropyLoss()

    def step(x: np.ndarray, y: np.ndarray) -> float:
        optimizer.zero_grad()
        loss = loss_of(model(torch.from_numpy(x)), torch.from_numpy(y))
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return step


def work(engine: str, threads: int) -> None:
    """A child: a round for each line that comes in; says seconds, processor seconds and the last loss."""
    batches = _batches()
    bare = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step = {"evort": _evort, "torch": _torch}[engine](threads)
    for x, y in batches[:3]:
        step(x, y)
    print("ready", flush=True)
    for _ in sys.stdin:
        wall, spent = time.perf_counter(), time.process_time()
        for x, y in batches:
            loss = step(x, y)
        found = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - spent, "loss": loss}
        found["memory"] = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - bare) * 1024
        print(json.dumps(found), flush=True)


def measure(threads: int, rounds: int) -> dict[str, dict[str, float]]:
    """Seconds of an epoch (wall and processor) and bytes of peak memory, by engine."""
    children = {}
    for engine in ENGINES:
        command = [sys.executable, "-P", __file__, "--worker", engine, "--threads", str(threads)]
        children[engine] = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        if children[engine].stdout.readline().strip() != "ready":
            raise SystemExit(f"{engine} does not run here")
    seen: dict[str, list[dict[str, float]]] = {engine: [] for engine in ENGINES}
    for _ in range(rounds):
        for engine, child in children.items():
            child.stdin.write("go\n")
            child.stdin.flush()
            seen[engine].append(json.loads(child.stdout.readline()))
    for child in children.values():
        child.stdin.close()
        child.wait()
    return {
        engine: {
            "epoch_s": min(r["wall"] for r in found) * EPOCH / BATCHES,
            "epoch_cpu_s": min(r["cpu"] for r in found) * EPOCH / BATCHES,
            "memory": max(r["memory"] for r in found),
            "loss": found[-1]["loss"],
        }
        for engine, found in seen.items()
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--worker", choices=ENGINES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work(args.worker, args.threads)
        return 0
    found = measure(args.threads, args.rounds)
    if args.json:
        Path(args.json).write_text(json.dumps(found, indent=1))
    print(f"{'':18}{'epoch, s':>10}{'processor, s':>14}{'peak memory, MB':>17}")
    for engine, row in found.items():
        print(f"{engine:18}{row['epoch_s']:10.2f}{row['epoch_cpu_s']:14.2f}{row['memory'] / 1e6:17.1f}")
    mine, theirs = found["evort"], found["torch"]
    ratios = [mine[key] / theirs[key] for key in ("epoch_s", "epoch_cpu_s", "memory")]
    print(f"{'evort / torch':18}{ratios[0]:10.2f}{ratios[1]:14.2f}{ratios[2]:17.2f}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
