"""Training data (the paper's two sets, and the embedded world) and the official files of benchmarks."""

from segros_eval.fetch import BenchmarkData, HubFiles, PinnedFile, Sheet
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
mme = BenchmarkData(
    name="mme",
    hub=HubFiles(repo="lmms-lab/MME", patterns=("data/test-*.parquet",)),
    sheet=Sheet(name="MME.tsv", md5="b36b43c3f09801f5d368627fb92187c3"),
    licence="for research only",
)
pope = BenchmarkData(
    name="pope",
    hub=HubFiles(repo="lmms-lab/POPE", patterns=("data/test-*.parquet",)),
    sheet=Sheet(name="POPE.tsv", md5="c12f5acb142f2ef1f85a26ba2fbe41d5"),
    licence="MIT; pictures of COCO",
)
gqa = BenchmarkData(
    name="gqa",
    hub=HubFiles(
        repo="lmms-lab/GQA",
        patterns=("testdev_balanced_instructions/*.parquet", "testdev_balanced_images/*.parquet"),
    ),
    sheet=Sheet(name="GQA_TestDev_Balanced.tsv", md5="99b62f22e224d9b2f32dcbe41359d1c9"),
)
mmmu = BenchmarkData(
    name="mmmu",
    hub=HubFiles(repo="lmms-lab/MMMU", patterns=("data/validation-*.parquet",)),
    sheet=Sheet(name="MMMU_DEV_VAL.tsv", md5="585e8ad75e73f75dcad265dfd0417d64"),
    licence="Apache-2.0",
)
seed = BenchmarkData(
    name="seed",
    hub=HubFiles(repo="lmms-lab/SEED-Bench", patterns=("data/test-*.parquet",)),
    sheet=Sheet(name="SEEDBench_IMG.tsv", md5="68017231464752261a2526d6ca3a10c0"),
    licence="CC BY-NC 4.0",
)
