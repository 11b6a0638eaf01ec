"""A method of one's own: name it with `--tasks`."""

from segros_train.method import TrainTask

from ..random_hints import RandomHints

random_hints = TrainTask(name="random-hints", title="Random hints", method=RandomHints())
