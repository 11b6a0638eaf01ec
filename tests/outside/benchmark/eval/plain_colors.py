"""A benchmark of one's own, of photographs alone: name it with `--tasks`."""

from segros_eval.benchmarks.base import EvalTask

from ..plain_colors import PlainColors

plain_colors = EvalTask(name="plain-colors", title="Plain colours", evaluator=PlainColors(), worlds=("photo",))
