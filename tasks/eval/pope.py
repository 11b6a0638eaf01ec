"""POPE: yes/no questions about objects that are in the picture and that are not."""

from segros_eval.benchmarks.base import EvalTask
from segros_eval.benchmarks.vqa.pope import POPE

POPE_TASK = EvalTask(
    name="pope",
    title="POPE",
    evaluator=POPE(),
    worlds=("photo", "shapes"),
    data="pope",
    paper="Table 2",
)
