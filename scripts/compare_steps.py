"""Least times of the steps of libraries: `python scripts/compare_steps.py LIBRARY... [--seconds 40]`.

Compiled models run in turns on made-up inputs, each step timed, for so long. On a machine whose neighbours
slow it down for seconds, the least times are what is left to compare. Prints the sum of the least times of
each library, then its slowest steps; with two libraries, beside each step of the second what the step of
that label took in the first.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence

import numpy as np

from tcomp.runtime import Model, load
from tcomp.runtime.fill import fill


def least_times(models: Sequence[Model], seconds: float) -> list[dict[str, float]]:
    """By label, the least seconds of each step of every model, which are run at least once."""
    rng = np.random.default_rng(0)
    inputs = [
        {i.name: fill([int(d) for d in i.shape], i.dtype, rng=rng) for i in model.inputs} for model in models
    ]
    least: list[dict[str, float]] = [{} for _ in models]
    end = time.monotonic() + seconds
    while True:
        for model, arrays, found in zip(models, inputs, least, strict=True):
            seen: dict[str, int] = {}
            for step in model.profile(number=1, **arrays):
                seen[step.label] = again = seen.get(step.label, 0) + 1
                label = step.label if again == 1 else f"{step.label} ({again})"
                found[label] = min(found.get(label, step.seconds), step.seconds)
        if time.monotonic() >= end:
            return least


def lines(least: Mapping[str, float], before: Mapping[str, float], top: int) -> list[str]:
    """The `top` slowest steps in microseconds, behind what they took `before`."""
    shown = sorted(least, key=lambda label: -least[label])[:top]

    def micros(label: str) -> str:
        return f"{before[label] * 1e6:9.1f}" if label in before else f"{'':9}"

    return [f"{micros(label)} {least[label] * 1e6:9.1f}  {label}" for label in shown]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("libraries", nargs="+")
    parser.add_argument("--seconds", type=float, default=40.0)
    parser.add_argument("--top", type=int, default=10, help="steps of each library to print")
    arguments = parser.parse_args()
    models = [load(path) for path in arguments.libraries]
    least = least_times(models, arguments.seconds)
    for path, found in zip(arguments.libraries, least, strict=True):
        print(f"{path}: {sum(found.values()) * 1e6:.1f} us in {len(found)} steps")
        before = least[0] if len(least) == 2 and found is not least[0] else {}
        print(*lines(found, before, arguments.top), sep="\n")


if __name__ == "__main__":
    main()
