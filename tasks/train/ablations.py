"""The ablations of the paper, each one or two fields away from Ours, and two that it leaves open.

The row that equals Ours in each table (hint ratio 0.3, both affinities, top hints with bottom context,
noise 0.5, temperature 0.07) is `segros`, and the loss targets of Table 6 are `sft`, `segros` and
`drop-loss`; they are not declared again. Attention stays the paper's throughout, without hints too, so
that one thing changes at a time.
"""

from functools import partial

from segros_train.method import TrainTask
from segros_train.methods.reca import Reca
from segros_train.methods.segros import SeGroS

variant = partial(TrainTask, attention="paper")

# Of the paper's six ratios 0, 0.3 and 1 can be told from its text; 0.1, 0.5 and 0.7 fill the sweep.
of_ratios = partial(variant, paper="Table 5 (hint ratio)")
hint_ratio = (
    of_ratios(name="segros-hint-0", title="Ours, no hints", method=SeGroS(hint_ratio=0.0)),
    of_ratios(name="segros-hint-10", title="Ours, 10% hints", method=SeGroS(hint_ratio=0.1)),
    of_ratios(name="segros-hint-50", title="Ours, 50% hints", method=SeGroS(hint_ratio=0.5)),
    of_ratios(name="segros-hint-70", title="Ours, 70% hints", method=SeGroS(hint_ratio=0.7)),
    of_ratios(name="segros-hint-100", title="Ours, 100% hints", method=SeGroS(hint_ratio=1.0)),
)

of_filters = partial(variant, paper="Table 5 (text filter)")
text_filter = (
    of_filters(name="segros-text-all", title="Ours, no text filter", method=SeGroS(intra=False, inter=False)),
    of_filters(name="segros-text-intra", title="Ours, intra-modal filter", method=SeGroS(inter=False)),
    of_filters(name="segros-text-inter", title="Ours, inter-modal filter", method=SeGroS(intra=False)),
)

# Named by the end of the map that gives the hints, then by the one that gives the visible context.
of_swaps = partial(variant, paper="Table 5 (hint/context swaps)")
swaps = (
    of_swaps(
        name="segros-bottom-top",
        title="Ours, bottom hints, top context",
        method=SeGroS(hints="bottom", visible="top"),
    ),
    of_swaps(name="segros-bottom-bottom", title="Ours, bottom hints", method=SeGroS(hints="bottom")),
    of_swaps(name="segros-top-top", title="Ours, top context", method=SeGroS(visible="top")),
)

of_noise = partial(variant, paper="Table 8")
noise_scale = (
    of_noise(name="segros-noise-0", title="Ours, no noise", method=SeGroS(noise_scale=0.0)),
    of_noise(name="segros-noise-1", title="Ours, noise 1.0", method=SeGroS(noise_scale=1.0)),
)

hint_transfer = TrainTask(
    name="reca-hint-30", title="Reca + SeGroS hint filtering", method=Reca(hint_ratio=0.3), paper="Table 9"
)

# Not in the paper: the hints alone, and how much the lost temperature matters.
random_context = variant(name="segros-random-context", title="Ours, random context", method=SeGroS(visible="random"))
temperature = (
    variant(name="segros-temperature-0.01", title="Ours, temperature 0.01", method=SeGroS(temperature=0.01)),
    variant(name="segros-temperature-0.2", title="Ours, temperature 0.2", method=SeGroS(temperature=0.2)),
    variant(name="segros-temperature-1", title="Ours, temperature 1", method=SeGroS(temperature=1.0)),
)
