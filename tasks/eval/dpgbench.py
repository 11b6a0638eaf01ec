"""DPG-Bench: all that a long prompt tells of, question by question."""

from segros_eval.evaluators import EvalTask
from segros_eval.evaluators.dpgbench import DPGBench

DPG_BENCH = EvalTask(
    name="dpgbench",
    title="DPG-Bench",
    evaluator=DPGBench(),
    kind="image",
    worlds=("photo", "shapes"),
    data="dpgbench",
    paper="Table 1",
)
