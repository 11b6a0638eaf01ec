"""MME: yes/no questions in fourteen categories of perception and cognition."""

from segros_eval.benchmarks.base import EvalTask
from segros_eval.benchmarks.vqa.mme import MME

MME_TASK = EvalTask(
    name="mme",
    title="MME",
    evaluator=MME(),
    worlds=("photo", "shapes"),
    data="mme",
    paper="Table 2",
)
