"""The tables of the paper as cells to run: which models, trained how, scored by what."""

from segros_eval.pipeline.paper import PaperTable

MIDJOURNEY = {
    "show-o-256": "midjourney-v6",
    "show-o-512": "midjourney-v6",
    "openuni-1.6b": "midjourney-v6",
    "openuni-3.6b": "midjourney-v6",
    "harmon-0.5b": "midjourney-v6",
}
DATA = {**MIDJOURNEY, "harmon-1.5b": "blip3o-60k"}
ABLATED = ("harmon-0.5b",)
ON_ABLATED = {"harmon-0.5b": "midjourney-v6"}
COMPOSITION = ("geneval", "dpgbench")

generation = PaperTable(
    name="table-1",
    table="generation",
    backbones=("show-o-256", "show-o-512", "openuni-1.6b", "openuni-3.6b", "harmon-0.5b", "harmon-1.5b"),
    train=("none", "sft", "reca", "segros"),
    evals=("geneval", "dpgbench", "compbench"),
    data=DATA,
    note="GenEval and DPG over 4 seeds, CompBench over one (paper section 8.3).",
)
understanding = PaperTable(
    name="table-2",
    table="understanding",
    backbones=("harmon-1.5b",),
    train=("none", "sft", "reca", "segros"),
    evals=("mme", "pope", "gqa", "mmmu", "seed"),
    data={"harmon-1.5b": "blip3o-60k"},
)
hint_ratio = PaperTable(
    name="hint-ratio",
    table="hint-ratio",
    backbones=ABLATED,
    train=("sft", "segros-hint-0", "segros-hint-10", "segros", "segros-hint-50", "segros-hint-70", "segros-hint-100"),
    evals=COMPOSITION,
    data=ON_ABLATED,
    note="Three of the paper's ratios are lost from our copy; ours are 10, 50 and 70%.",
)
text_filter = PaperTable(
    name="text-filter",
    table="text-filter",
    backbones=ABLATED,
    train=("segros-text-all", "segros-text-intra", "segros-text-inter", "segros"),
    evals=COMPOSITION,
    data=ON_ABLATED,
)
hint_context_swaps = PaperTable(
    name="hint-context-swaps",
    table="hint-context-swaps",
    backbones=ABLATED,
    train=("segros-bottom-top", "segros-bottom-bottom", "segros-top-top", "segros", "segros-random-context"),
    evals=COMPOSITION,
    data=ON_ABLATED,
    note="Random context is not in the paper.",
)
loss_targets = PaperTable(
    name="table-6",
    table="loss-targets",
    backbones=ABLATED,
    train=("sft", "segros", "drop-loss"),
    evals=COMPOSITION,
    data=ON_ABLATED,
)
noise_scale = PaperTable(
    name="table-8",
    table="noise-scale",
    backbones=("harmon-1.5b",),
    train=("none", "sft", "segros-noise-0", "segros", "segros-noise-1"),
    evals=COMPOSITION,
    data={"harmon-1.5b": "blip3o-60k"},
)
hint_transfer = PaperTable(
    name="table-9",
    table="hint-transfer",
    backbones=ABLATED,
    train=("sft", "reca", "reca-hint-30", "segros"),
    evals=COMPOSITION,
    data=ON_ABLATED,
)
compbench_categories = PaperTable(
    name="table-10",
    table="compbench-categories",
    backbones=("show-o-512", "harmon-1.5b", "openuni-3.6b"),
    train=("none", "segros"),
    evals=("compbench",),
    data={"show-o-512": "midjourney-v6", "harmon-1.5b": "blip3o-60k", "openuni-3.6b": "midjourney-v6"},
)
temperature = PaperTable(
    name="temperature",
    table="temperature",
    backbones=ABLATED,
    train=("segros-temperature-0.01", "segros", "segros-temperature-0.2", "segros-temperature-1"),
    evals=COMPOSITION,
    data=ON_ABLATED,
    note="Not in the paper: its temperature is lost from our copy.",
)
