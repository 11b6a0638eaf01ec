"""`segros list`, `doctor` and `explain`: what there is, what works here, what a method sees."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from segros_eval.cli.console import Tasks, declared, emit, out, write_document
from segros_train.errors import PrerequisiteError, chosen

if TYPE_CHECKING:
    from PIL.Image import Image

    from segros_eval.pipeline.catalog import Catalog

__all__ = ["doctor", "explain", "show_list"]

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")]


def show_list(tasks: Tasks = None, as_json: AsJson = False) -> None:
    """List methods, backbones, evaluators, data, recipes and tables."""

    catalog = declared(tasks)
    sections = _sections(catalog)
    if as_json:
        write_document({title.lower(): dict(rows) for title, rows in sections})
        return
    console = out()
    for title, rows in sections:
        if rows:
            console.print(_listing(title, rows), soft_wrap=True)
    console.print(Text(f"Declared in {_listed(catalog.sources)}", style="dim"), soft_wrap=True)


def _sections(catalog: Catalog) -> list[tuple[str, list[tuple[str, str]]]]:
    main = set(catalog.main_methods)
    return [
        ("Methods", [(name, task.title) for name, task in catalog.methods.items() if name in main]),
        ("Ablations", [(name, task.title) for name, task in catalog.methods.items() if name not in main]),
        (
            "Backbones",
            [
                (name, f"{card.title}, {card.image_size_px} px, world {card.world}")
                for name, card in catalog.backbones.items()
            ],
        ),
        (
            "Evaluators",
            [(name, f"{task.title}, world {' or '.join(task.worlds)}") for name, task in catalog.evaluators.items()],
        ),
        ("Data", [(name, f"{card.generation}, world {card.world}") for name, card in catalog.data.items()]),
        (
            "Recipes",
            [
                (name, f"{recipe.optimizer_steps:,} updates of {recipe.accumulation} x {recipe.batch_size} samples")
                for name, recipe in catalog.recipes.items()
            ],
        ),
        (
            "Benchmark files",
            [(name, data.summary) for name, data in catalog.benchmarks.items()],
        ),
        ("Tables", [(name, table.table) for name, table in catalog.tables.items()]),
    ]


def _listing(title: str, rows: Iterable[tuple[str, str]]) -> Text:
    lines = [Text(title, style="bold")]
    lines += [Text.assemble(f"  {name:<26}", (facts, "dim")) for name, facts in rows]
    return Text("\n").join(lines)


def _listed(folders: Iterable[Path]) -> str:
    return ", ".join(map(str, folders))


def doctor(
    runs: Annotated[Path, typer.Option("--out", help="Folder of run folders.")] = Path("runs"),
    tasks: Tasks = None,
    as_json: AsJson = False,
) -> None:
    """Tell what this machine has: versions, devices, disk, weights and data."""
    from segros_eval.pipeline.preflight import existing, missing_data, missing_weights
    from segros_eval.pipeline.provenance import software
    from segros_train.files import segros_home

    catalog = declared(tasks)
    weights = {name: [str(problem) for problem in missing_weights(card)] for name, card in catalog.backbones.items()}
    data = {name: [str(problem) for problem in missing_data(card)] for name, card in catalog.data.items()}
    document = {
        **software(),
        "device": _devices(),
        "disk_free_gib": round(shutil.disk_usage(existing(runs)).free / 2**30, 1),
        "home": str(segros_home()),
        "weights": weights,
        "data": data,
    }
    if as_json:
        write_document(document)
        return
    console = out()
    facts = {**document["versions"], "device": document["device"], "free disk": f"{document['disk_free_gib']} GiB"}
    facts |= {
        "commit": document["commit"] or "none",
        "fetched files": document["home"],
        "tasks": _listed(catalog.sources),
    }
    console.print(_listing("This machine", [(name, str(value)) for name, value in facts.items()]), soft_wrap=True)
    for title, found in (("Weights", weights), ("Training data", data)):
        console.print(Text(title, style="bold"))
        for name, problems in found.items():
            mark = ("  missing  ", "bold red") if problems else ("  ready    ", "green")
            console.print(Text.assemble(mark, name))
            for problem in problems:
                console.print(Text(f"           {problem}", style="dim"), soft_wrap=True)


def _devices() -> str:
    import torch

    if not torch.cuda.is_available():
        return f"cpu, {torch.get_num_threads()} threads"
    found = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return ", ".join(f"{device.name} ({device.total_memory / 2**30:.0f} GiB)" for device in found)


def explain(
    backbone: Annotated[str, typer.Option("--backbone", help="Name of a backbone.")],
    image: Annotated[Path, typer.Option("--image", help="An image file.")],
    caption: Annotated[str, typer.Option("--caption", help="Its caption.")],
    file: Annotated[Path, typer.Option("--out", help="The PNG to write.")] = Path("map.png"),
    method: Annotated[str, typer.Option("--method", help="A method with a grounding map.")] = "segros",
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of crop, masking ratio and noise.")] = 0,
    device: Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")] = "auto",
    tasks: Tasks = None,
) -> None:
    """Draw what a method makes of an image: grounding map, kept tokens, hints, corrupted input."""
    from segros_eval.pipeline.preflight import check_device
    from segros_eval.pipeline.ranks import local_device
    from segros_eval.reporting.explain import explain as draw
    from segros_train.backbones import loading
    from segros_train.files import atomic_write

    catalog = declared(tasks)
    card = chosen("backbone", backbone, catalog.backbones)
    decides = chosen("method", method, catalog.methods).method
    if decides is None:
        raise PrerequisiteError(f"Method {method!r} trains nothing, so there is nothing to explain.")
    if problems := list(check_device(device)):
        raise PrerequisiteError.of(problems)
    picture = _read(image)
    model = loading.load(card, device=local_device() if device == "auto" else device).eval()
    drawn = draw(model, picture, caption, decides, seed=seed)
    with atomic_write(file) as temporary:
        drawn.save(temporary, format="PNG")
    emit(f"written  {file}")


def _read(path: Path) -> Image:
    from segros_eval.benchmarks.images import UnreadableImageError, read_image

    try:
        return read_image(path)
    except UnreadableImageError as error:
        raise PrerequisiteError(
            f"--image: {error}",
            "Name a whole PNG, JPEG or WebP file.",
        ) from error
