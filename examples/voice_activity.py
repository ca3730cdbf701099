"""Marks the speech in a WAV file with silero-vad: one probability for each 32 ms, the network's state carried on.

python examples/voice_activity.py silero_vad.etm speech.wav
"""

from __future__ import annotations

import argparse
import wave
from collections.abc import Iterator

import numpy as np

import evort


def frames(samples: np.ndarray, rate: int) -> Iterator[np.ndarray]:
    """Windows of 32 ms, each after the last 4 ms of the one before: [1, 576] at 16 kHz, [1, 288] at 8 kHz."""
    size, context = rate * 32 // 1000, rate * 4 // 1000
    padded = np.concatenate([np.zeros(context, np.float32), samples, np.zeros(-len(samples) % size, np.float32)])
    for start in range(0, len(padded) - context, size):
        yield padded[None, start : start + context + size]


def speech_probabilities(session: evort.Session, samples: np.ndarray, rate: int) -> np.ndarray:
    """The probability of speech in each 32 ms. samples: float32 in -1..1 at 8000 or 16000 Hz."""
    state = np.zeros((2, 1, 128), np.float32)
    found = []
    for frame in frames(samples, rate):
        result = session.run({"input": np.ascontiguousarray(frame), "sr": np.array(rate), "state": state})
        state = result["stateN"]
        found.append(result["output"][0, 0])
    return np.array(found, np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="silero_vad as .etm")
    parser.add_argument("wav", help="a mono WAV file of 16 bits at 8 or 16 kHz")
    parser.add_argument("--threshold", type=float, default=0.5)
    args = parser.parse_args()
    with wave.open(args.wav) as file:
        rate = file.getframerate()
        if rate not in (8000, 16000) or file.getnchannels() != 1 or file.getsampwidth() != 2:
            parser.error("the file must be mono, 16 bits, at 8000 or 16000 Hz")
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.float32) / 32768
    for i, p in enumerate(speech_probabilities(evort.load(args.model, threads=1), samples, rate)):
        if p >= args.threshold:
            print(f"{i * 0.032:8.3f} s  speech {p:.2f}")


if __name__ == "__main__":
    main()
