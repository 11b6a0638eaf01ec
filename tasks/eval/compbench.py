"""T2I-CompBench: attributes, relations and numbers with the right objects, scored by a judge."""

from segros_eval.benchmarks.base import EvalTask
from segros_eval.benchmarks.compbench.benchmark import CompBench

COMP_BENCH = EvalTask(
    name="compbench",
    title="CompBench",
    evaluator=CompBench(),
    worlds=("photo", "shapes"),
    data="compbench",
    paper="Tables 1 and 10",
)
