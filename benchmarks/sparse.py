"""Measure pruned models beside dense ones: a ResNet-18 with random weights, in int8 and float32.

    python benchmarks/sparse.py                          # processor time, one thread, 224 x 224
    python benchmarks/sparse.py --patterns 4x1,16x1 --size 112 --isa avx2 --json sparse.json

Weights are pruned at once (accuracy is not what is measured here) to --sparsity, the first convolution excepted. Dense
and pruned take turns, a run each; the table shows medians over the rounds for the whole network, least times for its
pruned convolutions alone, and the ratio dense / pruned. "smaller" is a network that was made with the channels that
channel pruning leaves. Results of pruned models are compared with those of the same weights stored dense before
anything is timed."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import numpy as np

from evort._kernels import core
from evort.graph import Model
from evort.session import Session
from evort.train import layers as L
from evort_tools.passes import lower
from evort_tools.prune import prune
from evort_tools.pruning.weights import dense
from evort_tools.quantization.options import Options
from evort_tools.quantize import quantize_model

STAGES = (64, 128, 256, 512)
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}


def resnet18(size: int, share: float = 1.0) -> Model:
    """ResNet-18 (He et al., 2015) with BatchNormalization folded; `share` of the channels in every layer."""
    build = L.Builder(seed=1, name="resnet18")
    width = [max(1, round(c * share)) for c in STAGES]
    x = build.input("image", (1, 3, size, size))
    x = L.MaxPool(3, stride=2, padding=1)(L.Conv2d(3, width[0], 7, stride=2, padding=3)(x).relu())
    channels = width[0]
    for i, out in enumerate(width):
        for block in range(2):
            stride = 2 if i and not block else 1
            y = L.Conv2d(channels, out, 3, stride=stride, padding=1)(x).relu()
            y = L.Conv2d(out, out, 3, padding=1)(y)
            trunk = x if stride == 1 and channels == out else L.Conv2d(channels, out, 1, stride=stride)(x)
            x, channels = (y + trunk).relu(), out
    model = build.model(scores=L.Linear(channels, 1000)(L.Flatten()(L.GlobalAvgPool()(x))))
    lower(model)
    return model


def convolutions(session: Session, feeds: dict[str, np.ndarray]) -> float:
    """Seconds in the convolutions of one run, the first excepted, which is not pruned."""
    total = 0
    for plan, spent in session.profile(feeds):
        times = [int(t) for step, t in zip(plan.steps, spent, strict=False) if "Conv" in step.call.node.op]
        total += sum(times[1:])
    return total / 1e9


def take_turns(a: Session, b: Session, feeds: dict[str, np.ndarray], rounds: int, clock: str) -> list[float]:
    """Median seconds of a run of each, and the least of the convolutions of each (wall time)."""
    now = CLOCKS[clock]
    spent: list[list[float]] = [[], [], [], []]
    for _ in range(rounds):
        for i, session in enumerate((a, b)):
            start = now()
            session.run(feeds)
            spent[i].append(now() - start)
            spent[2 + i].append(convolutions(session, feeds))
    return [*(statistics.median(s) for s in spent[:2]), *map(min, spent[2:])]


def row(what: str, names: tuple[str, str], models: tuple[Model, Model], feeds: dict[str, np.ndarray],
        args: argparse.Namespace) -> dict[str, object]:  # fmt: skip
    sessions = [Session(m, threads=args.threads) for m in models]
    for session in sessions:
        session.run(feeds)
    first, second, conv_first, conv_second = take_turns(*sessions, feeds, args.rounds, args.clock)
    return {
        "pattern": what, "type": names[0], "beside": names[1], "ms": 1e3 * second, "beside_ms": 1e3 * first,
        "ratio": first / second, "convolutions_ratio": conv_first / conv_second,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patterns", default="4x1,8x1,16x1,1x4,1:4,2:4,channels")
    parser.add_argument("--sparsity", type=float, default=0.75, help="of blocks (0.75)")
    parser.add_argument("--types", default="int8,float32")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--clock", choices=CLOCKS, default="cpu")
    parser.add_argument("--isa", choices=core.available_isas())
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    if args.isa:
        core.select_isa(args.isa)
    source = resnet18(args.size)
    rng = np.random.default_rng(0)
    feeds = {"image": rng.random((1, 3, args.size, args.size), np.float32)}
    batch = (feeds["image"], np.zeros(1, np.int64))
    rows = []
    print(f"{args.isa or core.available_isas()[0]}, {args.threads} thread(s), {args.size} x {args.size}, {args.clock}")
    print(f"{'pattern':>10} {'type':>8} {'beside':>8} {'ms':>8} {'beside':>8} {'ratio':>6} {'conv':>6}")
    for pattern in args.patterns.split(","):
        for kind in args.types.split(","):
            share = args.sparsity if "x" in pattern else None
            quantize = "static" if kind == "int8" else None
            pruned = prune(source, None, pattern, share, data=batch, quantize=quantize, threads=args.threads).model
            if pattern.startswith(("channels", "groups")):
                beside = resnet18(args.size, 0.5)
                if quantize:
                    beside = quantize_model(beside, {"image": feeds["image"]}, Options(prefer="size")).model
                names = (kind, "smaller")
            else:
                beside, names = dense(pruned), (kind, "dense")
                for name, value in Session(beside, threads=1).run(feeds).items():
                    got = Session(pruned, threads=1).run(feeds)[name]
                    if not np.allclose(got, value, rtol=1e-3, atol=1e-3 * np.abs(value).max()):
                        raise SystemExit(f"{pattern}: results differ")
            rows.append(found := row(pattern, names, (beside, pruned), feeds, args))
            print(f"{pattern:>10} {kind:>8} {names[1]:>8} {found['ms']:8.2f} {found['beside_ms']:8.2f} "
                  f"{found['ratio']:6.2f} {found['convolutions_ratio']:6.2f}", flush=True)  # fmt: skip
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump({"options": vars(args), "rows": rows}, file, indent=1)


if __name__ == "__main__":
    main()
