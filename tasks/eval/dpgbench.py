"""DPG-Bench: all that a long prompt tells of, question by question."""

from segros_eval.benchmarks.base import EvalTask
from segros_eval.benchmarks.dpgbench.benchmark import DPGBench

DPG_BENCH = EvalTask(
    name="dpgbench",
    title="DPG-Bench",
    evaluator=DPGBench(),
    worlds=("photo", "shapes"),
    data="dpgbench",
    paper="Table 1",
)
