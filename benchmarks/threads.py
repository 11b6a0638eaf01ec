"""Measure how much slower harmon-tiny draws beside two busy processes than alone, with spinning and passive threads.

Usage: `python benchmarks/threads.py [ROUNDS]`. Every measurement is a process of its own, since a runtime reads its
settings once; alone and beside take turns, and the best of the rounds counts, so that other work on the machine moves
the ratio little. Prints seconds an image (one by one), and the ratio, which `segros` (passive) keeps at 2 or less.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time

from segros_eval.cli.app import PASSIVE_THREADS
from segros_eval.pipeline.catalog import load_catalog

NUM_BUSY = 2
NUM_IMAGES = 4
NUM_ROUNDS = 3
BUSY = "while True: pass"


def draw() -> float:
    """Return the seconds that one image takes, drawn one by one, in this process."""
    from segros_train.backbones import loading

    card = load_catalog().backbones["harmon-tiny"]
    backbone = loading.load(card)
    backbone.eval()
    prompts = ["a photo of a red circle"]
    list(backbone.generate(prompts, seeds=[0], settings=card.settings))
    began = time.perf_counter()
    for seed in range(NUM_IMAGES):
        list(backbone.generate(prompts, seeds=[seed], settings=card.settings))
    return (time.perf_counter() - began) / NUM_IMAGES


def measured(*, passive: bool, num_busy: int) -> float:
    """Draw in a new process beside `num_busy` busy ones."""
    own = {name: value for name, value in os.environ.items() if name not in PASSIVE_THREADS}
    busy = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(num_busy)]
    try:
        command = [sys.executable, __file__, "--draw"]
        environment = own | (PASSIVE_THREADS if passive else {})
        return float(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)
    finally:
        for process in busy:
            process.kill()
            process.wait()


def main() -> None:
    """Print seconds and ratios."""
    if sys.argv[1:] == ["--draw"]:
        sys.stdout.write(f"{draw()}\n")
        return
    rounds = range(int(sys.argv[1]) if len(sys.argv) > 1 else NUM_ROUNDS)
    for passive in (False, True):
        pairs = [[measured(passive=passive, num_busy=number) for number in (0, NUM_BUSY)] for _ in rounds]
        alone, beside = (min(pair[place] for pair in pairs) for place in (0, 1))
        name = "passive " if passive else "spinning"
        sys.stdout.write(
            f"{name}  alone {alone:.3f} s/image, beside {NUM_BUSY} busy processes {beside:.3f}, "
            f"ratio {beside / alone:.2f}; load of the machine {os.getloadavg()[0]:.1f}\n"
        )
        sys.stdout.flush()


if __name__ == "__main__":
    main()
