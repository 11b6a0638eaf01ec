"""How to fine-tune each backbone: Table 7 of the paper, and the recipes of the embedded world.

The paper's "steps" of Harmon are upstream's iterations, one micro-batch of one task each: four of them (two t2i, two
i2t) make an update. 3K iterations at accumulation 2 are 750 updates of 2 micro-steps, a micro-step here being one
t2i and one i2t micro-batch. Warm-up and the horizon of the cosine (500 and 50,000 iterations) are divided alike.

Show-o's steps are updates. RecA, whose set-up the paper follows, warms up for 1000 of them towards a cosine of a
million, so that the rate of 5e-7 stays what it is; it clips no gradient.
"""

from dataclasses import replace

from segros_train.types import Recipe

harmon_05b = Recipe(
    optimizer_steps=750,
    accumulation=2,
    batch_size=96,
    learning_rate=1e-5,
    warmup_steps=125,
    schedule_steps=12_500,
    weight_decay=0.01,
    betas=(0.9, 0.95),
    i2t_weight=1.0,
)

harmon_tiny = Recipe(
    optimizer_steps=80,
    batch_size=32,
    learning_rate=1e-4,
    warmup_steps=10,
    weight_decay=0.01,
    betas=(0.9, 0.95),
    i2t_weight=1.0,
    i2t_batch_size=8,
)

# OpenUni. The paper's 5K steps are upstream's iterations, one micro-batch each, sixteen of which make an update, so
# 312 updates; the warm-up of 50 iterations is 3 updates. The language model is frozen: no i2t loss.
openuni_16b = Recipe(
    optimizer_steps=312,
    accumulation=16,
    batch_size=42,
    learning_rate=1e-5,
    warmup_steps=3,
    weight_decay=0.01,
    betas=(0.9, 0.95),
    i2t_weight=0.0,
)
openuni_tiny = replace(
    openuni_16b, optimizer_steps=80, accumulation=1, batch_size=32, learning_rate=1e-4, warmup_steps=10
)

show_o_256 = Recipe(
    optimizer_steps=5000,
    accumulation=5,
    batch_size=4,
    learning_rate=5e-7,
    warmup_steps=1000,
    schedule_steps=1_000_000,
    weight_decay=0.01,
    betas=(0.9, 0.999),
    clip_norm=1e9,
    i2t_weight=1.0,
)
show_o_tiny = Recipe(
    optimizer_steps=80,
    batch_size=32,
    learning_rate=1e-4,
    warmup_steps=10,
    weight_decay=0.01,
    betas=(0.9, 0.999),
    i2t_weight=1.0,
    i2t_batch_size=8,
)

RECIPES = {
    "harmon-0.5b": harmon_05b,
    "harmon-1.5b": replace(harmon_05b, optimizer_steps=1250, batch_size=48),
    "harmon-tiny": harmon_tiny,
    "openuni-1.6b": openuni_16b,
    "openuni-3.6b": replace(openuni_16b, batch_size=20),
    "openuni-tiny": openuni_tiny,
    "show-o-256": show_o_256,
    "show-o-512": replace(show_o_256, accumulation=20, batch_size=2, default_hint_ratio=0.4),
    "show-o-tiny": show_o_tiny,
}
