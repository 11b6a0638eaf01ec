"""Training data: the paper's two sets, and the embedded world."""

from segros_train.types import DataCard

shapes = DataCard(
    name="shapes",
    world="shapes",
    generation="shapes",
    instruction="shapes",
    notes="Procedural; a pure function of seed and index.",
)
midjourney_v6 = DataCard(
    name="midjourney-v6",
    world="photo",
    generation="hub:brivangl/midjourney-v6-llava",
    instruction="llava:LLaVA-Instruct-150K",
    notes="The paper cites CortexLM/midjourney-v6; RecA, whose set-up it follows, trains on this copy of it.",
)
blip3o_60k = DataCard(
    name="blip3o-60k",
    world="photo",
    generation="webdataset:BLIP3o-60k",
    instruction="llava:LLaVA-Instruct-150K",
    notes="Holds about 7,000 to 10,000 captions in GenEval's templates: GenEval after it is contaminated.",
)
