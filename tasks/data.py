"""Training data (the paper's two sets, and the embedded world) and the official files of benchmarks."""

from segros_eval.benchmarks.fetch import BenchmarkData, HubFiles, PinnedFile, Sheet
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
        PinnedFile(
            name="mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco_20220504_001756-743b7d99.pth",
            url="https://download.openmmlab.com/mmdetection/v2.0/mask2former/"
            "mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco/"
            "mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco_20220504_001756-743b7d99.pth",
            sha256="743b7d99",
        ),
        PinnedFile(
            name="ViT-L-14.pt",
            url="https://openaipublic.azureedge.net/clip/models/"
            "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836/ViT-L-14.pt",
            sha256="b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836",
        ),
    ),
    licence="MIT",
)
dpgbench = BenchmarkData(
    name="dpgbench",
    files=(
        PinnedFile(
            name="prompts.json",
            url="https://raw.githubusercontent.com/HorizonWind2004/reconstruction-alignment/main/Benchmark/dpgbench/"
            "prompts.json",
            sha256="dbd25cf7a72d1cf2115a3d6f232d01f01bb8f28c7da9dcc9ea91260512afe460",
        ),
        PinnedFile(
            name="dpg_bench.csv",
            url="https://raw.githubusercontent.com/TencentQQGYLab/ELLA/main/dpg_bench/dpg_bench.csv",
            git_blob="98457fc9901943f51ff9a30367250fc292533bed",
        ),
        PinnedFile(
            name="vocab.txt",
            url="https://modelscope.cn/models/damo/mplug_visual-question-answering_coco_large_en/resolve/v1.0.0/vocab.txt",
        ),
        PinnedFile(
            name="config_bert.json",
            url="https://modelscope.cn/models/damo/mplug_visual-question-answering_coco_large_en/resolve/v1.0.0/config_bert.json",
        ),
        PinnedFile(
            name="config.yaml",
            url="https://modelscope.cn/models/damo/mplug_visual-question-answering_coco_large_en/resolve/v1.0.0/config.yaml",
        ),
        PinnedFile(
            name="pytorch_model.bin",
            url="https://modelscope.cn/models/damo/mplug_visual-question-answering_coco_large_en/resolve/v1.0.0/pytorch_model.bin",
        ),
    ),
    licence="Apache-2.0",
)
compbench = BenchmarkData(
    name="compbench",
    files=(
        PinnedFile(
            name="val_comp.json",
            url="https://raw.githubusercontent.com/WayneJin0918/SRUM/main/val_comp.json",
            sha256="2b11f966a1d4f800150c0b4770c271bf5bd5b759f70ce6a6df72833db6432bfa",
        ),
        PinnedFile(
            name="color_val.txt",
            url="https://raw.githubusercontent.com/Karine-Huang/T2I-CompBench/main/examples/dataset/color_val.txt",
            sha256="1634259756dbc77d13093d907d414480080ec9790a8c97ad09efaea7b2534f2d",
        ),
        PinnedFile(
            name="shape_val.txt",
            url="https://raw.githubusercontent.com/Karine-Huang/T2I-CompBench/main/examples/dataset/shape_val.txt",
            sha256="37e1a276906c7ea9516cbd7ac8501be896006c0c17ca7344f260562834455bae",
        ),
        PinnedFile(
            name="texture_val.txt",
            url="https://raw.githubusercontent.com/Karine-Huang/T2I-CompBench/main/examples/dataset/texture_val.txt",
            sha256="fbb5363515b4a28009e360afaaaf389d2dd2289e50dbb0c6ef4ea0c7fe4f3d4f",
        ),
        PinnedFile(
            name="spatial_val.txt",
            url="https://raw.githubusercontent.com/Karine-Huang/T2I-CompBench/main/examples/dataset/spatial_val.txt",
            sha256="8707a1d7e42ce3002d95363cf55f74bd043c843ae27108f5125aaaa7840ca988",
        ),
        PinnedFile(
            name="3d_spatial_val.txt",
            url="https://raw.githubusercontent.com/Karine-Huang/T2I-CompBench/main/examples/dataset/3d_spatial_val.txt",
            sha256="c9953597315f36a5fcb41291bb19bdc6ab5f64a0fa760d691b4854a73f5d1fe9",
        ),
        PinnedFile(
            name="numeracy_val.txt",
            url="https://raw.githubusercontent.com/Karine-Huang/T2I-CompBench/main/examples/dataset/numeracy_val.txt",
            sha256="dad8df141604b70ba7554bec724e3db0a80023680769b5c514854ea2d2527bbe",
        ),
        PinnedFile(
            name="non_spatial_val.txt",
            url="https://raw.githubusercontent.com/Karine-Huang/T2I-CompBench/main/examples/dataset/non_spatial_val.txt",
            sha256="04c56cc9ac441dc9ea6c5157652058bd1635b5308526dd31bb29a1caab9a758d",
        ),
        PinnedFile(
            name="complex_val.txt",
            url="https://raw.githubusercontent.com/Karine-Huang/T2I-CompBench/main/examples/dataset/complex_val.txt",
            sha256="1b808018b8d9916db3d47d5aa2ef18377a3549a56901a474156f799824cdf3b4",
        ),
    ),
    licence="Apache-2.0 (val_comp.json), MIT (the rest)",
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
