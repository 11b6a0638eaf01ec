"""The ablations of the paper, each one field away from Ours, and two that it leaves open.

The row that equals Ours in each table (hint ratio 0.3, both affinities, top hints with bottom context,
noise 0.5, temperature 0.07) is `segros`, and the loss targets of Table 6 are `sft`, `segros` and
`drop-loss`; they are not declared again. Attention stays the paper's throughout, without hints too, so
that one thing changes at a time.
"""

from functools import partial

from segros_train.methods.reca import Reca
from segros_train.methods.segros import SeGroS
from segros_train.types import TrainTask

variant = partial(TrainTask, attention="paper")

# Of the paper's six ratios 0, 0.3 and 1 can be told from its text; 0.1, 0.5 and 0.7 fill the sweep.
hint_ratio = (
    variant(name="segros-hint-0", title="Ours, no hints", method=SeGroS(hint_ratio=0.0)
        paper="Table 5 (hint ratio)"),
    variant(name="segros-hint-10", title="Ours, 10% hints", method=SeGroS(hint_ratio=0.1)
        paper="Table 5 (hint ratio)"),
    variant(name="segros-hint-50", title="Ours, 50% hints", method=SeGroS(hint_ratio=0.5)
        paper="Table 5 (hint ratio)"),
    variant(name="segros-hint-70", title="Ours, 70% hints", method=SeGroS(hint_ratio=0.7)
        paper="Table 5 (hint ratio)"),
    variant(name="segros-hint-100", title="Ours, 100% hints", method=SeGroS(hint_ratio=1.0)
        paper="Table 5 (hint ratio)"),
)

text_filter = (
    variant(name="segros-text-all", title="Ours, no text filter", method=SeGroS(intra=False, inter=False)
        paper="Table 5 (text filter)"),
    variant(name="segros-text-intra", title="Ours, intra-modal filter", method=SeGroS(inter=False)
        paper="Table 5 (text filter)"),
    variant(name="segros-text-inter", title="Ours, inter-modal filter", method=SeGroS(intra=False)
        paper="Table 5 (text filter)"),
)

swaps = (
    variant(name="segros-bottom-top", title="Ours, bottom hints, top context", method=SeGroS(hints="bottom", visible="top")
        paper="Table 5 (hint/context swaps)"),
    variant(name="segros-bottom-bottom", title="Ours, bottom hints, bottom context", method=SeGroS(hints="bottom")
        paper="Table 5 (hint/context swaps)"),
    variant(name="segros-top-top", title="Ours, top hints, top context", method=SeGroS(visible="top")
        paper="Table 5 (hint/context swaps)"),
)

noise_scale = (
    variant(name="segros-noise-0", title="Ours, no noise", method=SeGroS(noise_scale=0.0)
        paper="Table 8"),
    variant(name="segros-noise-1", title="Ours, noise 1.0", method=SeGroS(noise_scale=1.0)
        paper="Table 8"),
)

# Not in the paper: hints alone, without the grounded corrupted input.
random_context = (
    variant(name="segros-random-context", title="Ours, random context", method=SeGroS(visible="random")),
)

# Not in the paper: how much its lost value matters.
temperature = (
    variant(name="segros-temperature-0.01", title="Ours, temperature 0.01", method=SeGroS(temperature=0.01)),
    variant(name="segros-temperature-0.2", title="Ours, temperature 0.2", method=SeGroS(temperature=0.2)),
    variant(name="segros-temperature-1", title="Ours, temperature 1", method=SeGroS(temperature=1.0)),
)

hint_transfer = TrainTask(
    name="reca-hint-30", title="Reca + SeGroS hint filtering", method=Reca(hint_ratio=0.3), paper="Table 9"
)
