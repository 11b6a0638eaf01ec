"""MMMU: exam questions of thirty subjects, with options or free answers."""

from segros_eval.evaluators import EvalTask
from segros_eval.evaluators.mmmu import MMMU

MMMU_TASK = EvalTask(
    name="mmmu",
    title="MMMU",
    evaluator=MMMU(),
    kind="answer",
    worlds=("photo", "shapes"),
    data="mmmu",
    paper="Table 2",
)
