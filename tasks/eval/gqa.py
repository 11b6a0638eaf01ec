"""GQA: questions about a scene, answered in a word."""

from segros_eval.benchmarks.base import EvalTask
from segros_eval.benchmarks.vqa.gqa import GQA

GQA_TASK = EvalTask(
    name="gqa",
    title="GQA",
    evaluator=GQA(),
    worlds=("photo", "shapes"),
    data="gqa",
    paper="Table 2",
)
