"""Training data (the paper's two sets, and the embedded world) and the official files of benchmarks."""

from segros_eval.fetch import BenchmarkData, PinnedFile
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
geneval = BenchmarkData(
    name="geneval",
    files=(
        PinnedFile(
            name="evaluation_metadata.jsonl",
            url="https://raw.githubusercontent.com/djghosh13/geneval/main/prompts/evaluation_metadata.jsonl",
            sha256="5c48e0813e812e3c373fa5c8ed07a8f0a483be30272b4427b0559c8048e67c13",
        ),
        PinnedFile(
            name="object_names.txt",
            url="https://raw.githubusercontent.com/djghosh13/geneval/main/prompts/object_names.txt",
            sha256="608f6a0e5c8ca1c7a92b818430141fe268c85b7930b50f4160f1d65893b5bacd",
        ),
    ),
    licence="MIT",
)
