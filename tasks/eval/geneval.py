"""GenEval: objects, counts, colours and positions in drawn images."""

from segros_eval.benchmarks.base import EvalTask
from segros_eval.benchmarks.geneval.benchmark import GenEval

GENEVAL = EvalTask(
    name="geneval",
    title="GenEval",
    evaluator=GenEval(),
    worlds=("photo", "shapes"),
    data="geneval",
    paper="Table 1",
)
