"""GQA: questions about a scene, answered in a word."""

from segros_eval.evaluators import EvalTask
from segros_eval.evaluators.gqa import GQA

GQA_TASK = EvalTask(
    name="gqa",
    title="GQA",
    evaluator=GQA(),
    kind="answer",
    worlds=("photo", "shapes"),
    data="gqa",
    paper="Table 2",
)
