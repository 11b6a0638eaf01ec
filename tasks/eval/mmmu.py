"""MMMU: exam questions of thirty subjects, with options or free answers."""

from segros_eval.benchmarks.base import EvalTask
from segros_eval.benchmarks.vqa.mmmu import MMMU

MMMU_TASK = EvalTask(
    name="mmmu",
    title="MMMU",
    evaluator=MMMU(),
    worlds=("photo", "shapes"),
    data="mmmu",
    paper="Table 2",
)
