import io
import json
import logging
import pickle
import tarfile
from pathlib import Path

import datasets
import pytest
from PIL import Image

from segros_train.data.reading import DataError
from segros_train.data.sources.generation import HubImages, open_generation
from segros_train.data.sources.instruction import dialogue_turns, open_instruction
from segros_train.errors import PrerequisiteError
from segros_train.types import Turn

RED, BLUE = (200, 0, 0), (0, 0, 200)


def png(color: tuple[int, int, int], mode: str = "RGB") -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (12, 9), color).convert(mode).save(stream, "png")
    return stream.getvalue()


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))


def test_the_embedded_world_is_drawn_from_the_seed() -> None:
    first, again, other = (open_generation("shapes", seed=seed, limit=10) for seed in (3, 3, 4))
    assert len(first) == 10 and len(open_generation("shapes", seed=3)) > 100_000
    assert first[2].image.tobytes() == again[2].image.tobytes() != other[2].image.tobytes()
    dialogues = open_instruction("shapes", seed=3, limit=5)
    assert len(dialogues) == 5 and dialogues[0].dialogue[0].answer


def test_a_folder_gives_images_with_the_text_beside_them(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    for name, color in (("b.png", BLUE), ("deep/a.png", RED), ("mute.png", RED)):
        (tmp_path / name).write_bytes(png(color))
    (tmp_path / "b.txt").write_text("blue\n")
    (tmp_path / "deep/a.txt").write_text("red")
    source = open_generation(f"folder:{tmp_path}", seed=0)
    assert [
        (sample.item_id, sample.caption, sample.image.getpixel((0, 0))) for sample in map(source.__getitem__, (0, 1))
    ] == [
        ("b.png", "blue", BLUE),
        ("deep/a.png", "red", RED),
    ]
    assert len(source) == 2 and len(open_generation(f"folder:{tmp_path}", seed=0, limit=1)) == 1


def test_a_list_of_captions_decides_what_a_folder_holds(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(RED, "P"))
    (tmp_path / "captions.jsonl").write_text(json.dumps({"file": "a.png", "caption": "rouge"}) + "\n")
    source = open_generation(f"folder:{tmp_path}", seed=0)
    assert (len(source), source[0].caption, source[0].image.mode) == (1, "rouge", "RGB")


def test_a_list_without_captions_is_refused(tmp_path: Path) -> None:
    (tmp_path / "captions.jsonl").write_text('{"file": "a.png"}\n')
    with pytest.raises(PrerequisiteError, match=r"captions\.jsonl needs lines with file and caption"):
        open_generation(f"folder:{tmp_path}", seed=0)


def test_tar_files_are_indexed_and_read_one_sample_at_a_time(tmp_path: Path) -> None:
    write_tar(tmp_path / "00001.tar", {"x.png": png(BLUE), "x.txt": b"blue", "lonely.png": png(RED)})
    write_tar(tmp_path / "00000.tar", {"x.txt": "rosé ".encode(), "x.json": b"{}", "x.png": png(RED)})
    source = pickle.loads(pickle.dumps(open_generation(f"webdataset:{tmp_path}", seed=0)))
    samples = [source[index] for index in range(len(source))]
    assert [(sample.item_id, sample.caption) for sample in samples] == [
        ("00000.tar/x", "rosé"),
        ("00001.tar/x", "blue"),
    ]
    assert [sample.image.getpixel((0, 0)) for sample in samples] == [RED, BLUE]


def test_a_truncated_tar_file_is_named(tmp_path: Path) -> None:
    write_tar(tmp_path / "00000.tar", {"x.png": png(RED), "x.txt": b"red"})
    data = (tmp_path / "00000.tar").read_bytes()
    (tmp_path / "00000.tar").write_bytes(data[:300])
    with pytest.raises(PrerequisiteError, match=r"Cannot read .*00000.tar"):
        open_generation(f"webdataset:{tmp_path}", seed=0)


@pytest.mark.parametrize("column", ["prompt", "text"])
def test_a_hub_data_set_gives_image_and_prompt(column: str) -> None:
    rows = datasets.Dataset.from_dict(
        {"image": [{"bytes": png(RED), "path": None}, {"bytes": b"junk", "path": None}, None], column: ["r", "j", "n"]},
        features=datasets.Features({"image": datasets.Image(), column: datasets.Value("string")}),
    )
    source = HubImages.of(rows)
    assert (len(source), source[0].caption, source[0].image.getpixel((0, 0))) == (3, "r", RED)
    with pytest.raises(DataError, match="item '1'"):
        source[1]
    with pytest.raises(DataError, match="'2' has no image"):
        source[2]


def test_a_hub_item_without_a_caption_is_an_error_that_names_it() -> None:
    rows = datasets.Dataset.from_dict({"image": [{"bytes": png(RED), "path": None}], "prompt": [None]})
    with pytest.raises(DataError, match="Item '0' has no caption"):
        HubImages.of(rows.cast_column("image", datasets.Image()))[0]


def test_a_hub_data_set_without_captions_is_refused_with_its_columns() -> None:
    with pytest.raises(PrerequisiteError, match="it has label"):
        HubImages.of(datasets.Dataset.from_dict({"label": [1]}))


@pytest.mark.parametrize("damage", ["truncated", "not an image", "missing"])
def test_a_damaged_image_is_an_error_that_names_the_item(tmp_path: Path, damage: str) -> None:
    stream = io.BytesIO()
    Image.effect_noise((40, 40), 50).save(stream, "jpeg")
    data = {"truncated": stream.getvalue()[:-200], "not an image": b"hello"}.get(damage)
    (tmp_path / "captions.jsonl").write_text('{"file": "bad.png", "caption": "c"}\n')
    if data is not None:
        (tmp_path / "bad.png").write_bytes(data)
    with pytest.raises(DataError, match=r"image of item 'bad\.png'"):
        open_generation(f"folder:{tmp_path}", seed=0)[0]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("shape", "Did you mean 'shapes'"),
        ("folder:/no/such/place", "no folder /no/such/place"),
        ("webdataset:/no/such/place", "no folder"),
    ],
)
def test_an_unknown_or_missing_source_says_what_to_do(source: str, message: str) -> None:
    with pytest.raises(PrerequisiteError, match=message):
        open_generation(source, seed=0)


def test_an_empty_source_is_refused(tmp_path: Path) -> None:
    for kind in ("folder", "webdataset"):
        with pytest.raises(PrerequisiteError, match="holds no image with a caption"):
            open_generation(f"{kind}:{tmp_path}", seed=0)


HUMAN, GPT = "human", "gpt"


def talk(*turns: tuple[str, str]) -> list[dict[str, str]]:
    return [{"from": speaker, "value": value} for speaker, value in turns]


@pytest.mark.parametrize(
    ("conversation", "expected"),
    [
        (talk((HUMAN, "<image>\nWhat?"), (GPT, "A cat.")), (Turn("What?", "A cat."),)),
        (
            talk((HUMAN, "What?\n<image>"), (GPT, "A"), (HUMAN, "Why?"), (GPT, "B")),
            (Turn("What?", "A"), Turn("Why?", "B")),
        ),
        (talk((GPT, "Hello."), (GPT, "Again."), (HUMAN, "What?"), (GPT, "A")), (Turn("What?", "A"),)),
        (talk((HUMAN, "What?"), (GPT, "A"), (HUMAN, "And?")), (Turn("What?", "A"),)),
        (talk((GPT, "Hello.")), ()),
    ],
)
def test_a_conversation_becomes_turns(conversation: list[dict[str, str]], expected: tuple[Turn, ...]) -> None:
    assert dialogue_turns(conversation) == expected


def llava(folder: Path, records: list[object], *, images: str = "tuning_data") -> None:
    (folder / images / "coco").mkdir(parents=True)
    (folder / images / "coco" / "1.png").write_bytes(png(RED))
    (folder / "llava_v1_5_mix665k.json").write_text(json.dumps(records))


@pytest.mark.parametrize("images", ["tuning_data", "."])
def test_llava_keeps_rows_with_an_image_and_an_answer_and_counts_the_rest(
    tmp_path: Path, images: str, caplog: pytest.LogCaptureFixture
) -> None:
    asked = talk((HUMAN, "<image>\nWhat?"), (GPT, "A."))
    llava(
        tmp_path,
        [
            {"id": "7", "conversations": asked},
            {"id": "7", "image": "coco/1.png", "conversations": asked},
            {"id": "8", "image": "coco/1.png", "conversations": talk((GPT, "Hi."))},
            {"id": "7", "image": "coco/1.png", "conversations": asked},
        ],
        images=images,
    )
    with caplog.at_level(logging.INFO):
        source = open_instruction(f"llava:{tmp_path}", seed=0)
    samples = [source[index] for index in range(len(source))]
    assert [sample.item_id for sample in samples] == ["1:coco/1.png", "3:coco/1.png"]
    assert samples[0].dialogue == (Turn("What?", "A."),) and samples[0].image.getpixel((0, 0)) == RED
    assert "2 dialogues; left out 1 without image, 1 without an answered question" in caplog.text


@pytest.mark.parametrize("text", ["{}", "[1]", "[{", '[{"image": "a.png"}]', "[]"])
def test_a_foreign_llava_file_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "llava_v1_5_mix665k.json").write_text(text)
    with pytest.raises(PrerequisiteError, match="llava_v1_5_mix665k.json"):
        open_instruction(f"llava:{tmp_path}", seed=0)


def test_a_missing_llava_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(PrerequisiteError, match=r"Cannot read .*llava_v1_5_mix665k.json"):
        open_instruction(f"llava:{tmp_path}", seed=0)
