"""SEED-Bench: questions with four options in nine dimensions of pictures."""

from segros_eval.benchmarks.base import EvalTask
from segros_eval.benchmarks.vqa.seed import SEED

SEED_TASK = EvalTask(
    name="seed",
    title="SEED",
    evaluator=SEED(),
    worlds=("photo", "shapes"),
    data="seed",
    paper="Table 2",
)
