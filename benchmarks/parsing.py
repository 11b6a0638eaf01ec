"""How fast stored answers are read and scored: the time of 100,000 answers as a multiple of `json.loads` on the file.

    uv run python benchmarks/parsing.py [--answers N]

Answers are those of a chatty model: bare words, sentences, refusals, letters in brackets, numbers in text. Reading and
scoring takes what `segros` does after the last answer: verdicts, scores and aggregates. The bar is 20 times
`json.loads`; the program exits with 1 where a benchmark misses it.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from segros_eval.benchmarks.base import Sample, Tools
from segros_eval.benchmarks.vqa.gqa import GQA
from segros_eval.benchmarks.vqa.mme import MME
from segros_eval.benchmarks.vqa.mmmu import MMMU
from segros_eval.benchmarks.vqa.pope import POPE
from segros_eval.benchmarks.vqa.seed import SEED
from segros_eval.statistics.bootstrap import point_estimates

MOST = 20
YES_NO = ("Yes", "No", "yes.", "No, there is no dog in the image.", "The answer is yes", "I cannot tell.", "**Yes**")
WORDS = ("red", "a red circle", "Left.", "The man is on the left of the car.", "two", "I cannot tell.")
LETTERS = (
    "A",
    "(B)",
    "C. bacterium",
    "The correct option is (D) virus, since it is tiny.",
    "Answer: B",
    "None of them",
)
FREE = ("24", "x = 24", "The result is 1,000 dollars.\nTherefore the final answer is 1e3", "I think it is an apple.")


def main() -> None:
    """Time every benchmark and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--answers", type=int, default=100_000)
    wanted = parser.parse_args().answers
    slow = False
    for evaluator, forms in (
        (MME(), YES_NO),
        (POPE(), YES_NO),
        (GQA(), WORDS),
        (SEED(), LETTERS),
        (MMMU(), LETTERS + FREE),
    ):
        samples = asked(evaluator, wanted)
        lines = [
            json.dumps({"item_id": sample.item_id, "key": "0" * 64, "answer": answer})
            for sample, answer in zip(samples, cycle(forms), strict=False)
        ]
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "answers.jsonl"
            path.write_text("\n".join(lines) + "\n", encoding="utf-8")
            loading, records = timed(lambda path=path: [json.loads(line) for line in path.open(encoding="utf-8")])
        answers = [record["answer"] for record in records]
        scoring, scores = timed(lambda e=evaluator, s=samples, a=answers: e.score(s, a, Tools()))
        summing, _ = timed(lambda e=evaluator, s=scores: point_estimates(e.metrics, s))
        ratio = (scoring + summing) / loading
        slow |= ratio > MOST
        name = type(evaluator).__name__
        print(
            f"{name:5} {len(samples):,} answers: json.loads {loading:.2f} s, scoring {scoring:.2f} s, "
            f"summing up {summing:.2f} s, {ratio:.1f} times json.loads"
        )
    if slow:
        print(f"slower than {MOST} times json.loads")
        sys.exit(1)


def asked(evaluator: Any, count: int) -> list[Sample]:
    """Return at least `count` questions: whole sets of the embedded world, each about other pictures."""
    own = list(evaluator.samples("shapes", None, (0,)))
    return [
        Sample(f"{n}/{sample.item_id}", f"{n // len(own)}/{sample.cluster_id}", "answer", "", metadata=sample.metadata)
        for n, sample in enumerate(islice(cycle(own), count + -count % len(own)))
    ]


def timed(do: Any) -> tuple[float, Any]:
    """Return the shortest of three processor times in seconds, and what came out."""
    best, result = float("inf"), None
    for _ in range(3):
        began = time.process_time()
        result = do()
        best = min(best, time.process_time() - began)
    return best, result


if __name__ == "__main__":
    main()
