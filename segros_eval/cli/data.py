"""`segros data` and `segros export`: files that come in and go out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.text import Text

from segros_eval.cli.console import FAILED, Tasks, declared, emit, err, out
from segros_train.errors import PrerequisiteError, chosen, unknown_name
from segros_train.files import atomic_write, read_jsonl

if TYPE_CHECKING:
    from segros_eval.benchmarks.fetch import BenchmarkData
    from segros_eval.pipeline.catalog import Catalog

__all__ = ["check", "data", "encode", "export", "fetch"]

data = typer.Typer(no_args_is_help=True, help="Fetch and check the files of benchmarks; encode training images.")
Name = Annotated[str, typer.Argument(help="Name of a benchmark, or all.")]


@data.command("fetch")
def fetch(name: Name, tasks: Tasks = None) -> None:
    """Fetch a benchmark's official files and check their digests."""
    from segros_eval.benchmarks.fetch import fetch_file, fetch_hub, file_fault, home_of

    for benchmark in _benchmarks(name, declared(tasks)):
        if benchmark.hub is not None:
            with err().status(f"{benchmark.hub.repo}: fetching"):
                commit = fetch_hub(benchmark.hub, home_of(benchmark))
            emit(f"fetched   {home_of(benchmark)} ({benchmark.hub.repo} at {commit})")
        for file in benchmark.files:
            if file_fault(file, home_of(benchmark)) is None:
                emit(f"there     {home_of(benchmark) / file.name}")
                continue
            with err().status(f"{file.name}: connecting") as status:
                count = _Count(lambda total, file=file: status.update(f"{file.name}: {total / 2**20:.1f} MiB"))
                path = fetch_file(file, home_of(benchmark), advance=count)
            emit(f"fetched   {path}")


@data.command("check")
def check(name: Name = "all", tasks: Tasks = None) -> None:
    """Tell whether a benchmark's files are there and are what the protocol means, every row and picture included."""
    from segros_eval.benchmarks.fetch import file_fault, home_of

    faulty, catalog = False, declared(tasks)
    for benchmark in _benchmarks(name, catalog):
        if benchmark.hub is not None:
            faulty |= _questions_faulty(benchmark, catalog)
        for file in benchmark.files:
            fault = file_fault(file, home_of(benchmark))
            faulty |= fault is not None
            mark = ("ok        ", "green") if fault is None else (f"{fault}  ", "bold red")
            out().print(Text.assemble(mark, str(home_of(benchmark) / file.name)), soft_wrap=True)
    if faulty:
        err().print("Fetch what is missing with `segros data fetch`.")
        raise typer.Exit(FAILED)


def _questions_faulty(benchmark: BenchmarkData, catalog: Catalog) -> bool:
    """Tell what is wrong with a benchmark of questions, and whether anything is."""
    from segros_eval.benchmarks.fetch import home_of
    from segros_eval.benchmarks.vqa.check import check_questions

    folder = home_of(benchmark)
    asking = [task for task in catalog.evaluators.values() if task.data == benchmark.name]
    with err().status(f"{benchmark.name}: reading") as status:
        count = _Count(lambda total: status.update(f"{benchmark.name}: {total:,} questions read"))
        found = [check_questions(task, benchmark, folder, advance=count) for task in asking]
    faults = list(dict.fromkeys(fault for one in found for fault in one.faults))
    for fault in faults:
        out().print(Text.assemble((f"{benchmark.name}  ", "bold red"), fault), soft_wrap=True)
    if not faults:
        number = sum(one.num_questions for one in found)
        commit = next((f", commit {one.commit}" for one in found if one.commit), "")
        out().print(Text.assemble(("ok        ", "green"), f"{folder} ({number:,} questions{commit})"), soft_wrap=True)
    return bool(faults)


@data.command("encode")
def encode(
    backbone: Annotated[str, typer.Argument(help="Name of a backbone with frozen parts.")],
    name: Annotated[str | None, typer.Option("--data", help="Training data in place of the backbone's.")] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", help="Encode the first images only; the others are computed in training.")
    ] = None,
    device: Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")] = "auto",
    tasks: Tasks = None,
) -> None:
    """Compute what frozen parts make of training images once, cropped alike, for trainings with --latents."""
    from segros_eval.pipeline.keys import latents_folder
    from segros_eval.pipeline.preflight import check_device, missing_data, missing_weights
    from segros_eval.pipeline.ranks import local_device
    from segros_eval.pipeline.runner import DATA_SEED
    from segros_train.backbones import loading as backbones
    from segros_train.data.latent_cache import encode as encode_images
    from segros_train.data.sources.generation import open_generation
    from segros_train.files import located

    catalog = declared(tasks)
    card = chosen("backbone", backbone, catalog.backbones)
    images = chosen("data", name or card.data, catalog.data)
    problems = [*check_device(device), *missing_weights(card), *missing_data(images, dialogues=False)]
    if problems:
        raise PrerequisiteError.of(problems)
    source = open_generation(located(images.generation), seed=DATA_SEED, limit=limit)
    folder = latents_folder(card, images)
    model = backbones.load(card, device=local_device() if device == "auto" else device)
    with err().status(f"{card.name}: {len(source):,} images") as status:
        count = _Count(lambda done: status.update(f"{card.name}: {done:,} of {len(source):,} images"))
        encode_images(
            model,
            source,
            folder,
            precision=catalog.recipes[card.recipe].precision,
            advance=count,
        )
    emit(f"written   {folder} ({len(source)} images)")


class _Count:
    """Add up and tell the sum."""

    def __init__(self, tell: Any) -> None:
        self.tell, self.total = tell, 0

    def __call__(self, num_more: int) -> None:
        self.total += num_more
        self.tell(self.total)


def _benchmarks(name: str, catalog: Catalog) -> list[BenchmarkData]:
    known = catalog.benchmarks
    if name == "all":
        return list(known.values())
    if name not in known:
        raise unknown_name("benchmark", name, (*known, "all"))
    return [known[name]]


def export(
    source: Annotated[Path, typer.Argument(help="A checkpoint (upstream) or a run folder (geneval).")],
    fmt: Annotated[
        Literal["upstream", "geneval"],
        typer.Option("--format", help="upstream: weights under upstream's names. geneval: images as its scripts."),
    ] = "upstream",
    to: Annotated[Path | None, typer.Option("--to", help="File (upstream) or folder (geneval) to write.")] = None,
    tasks: Tasks = None,
) -> None:
    """Write weights or images in the form that the upstream projects read."""
    if fmt == "upstream":
        _export_weights(source, to, declared(tasks))
    else:
        _export_images(source, to or source / "geneval", declared(tasks))


def _export_weights(source: Path, to: Path | None, catalog: Catalog) -> None:
    from safetensors.torch import save_file

    from segros_eval.pipeline.checkpoints import backbone_of, checkpoint_in
    from segros_train.backbones import loading as backbones

    checkpoint = checkpoint_in(source)
    card = chosen("backbone", backbone_of(checkpoint), catalog.backbones)
    backbone = backbones.load(card, source=checkpoint)
    state = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in backbone.upstream_state().items()}
    target = to or Path(f"{backbone.card.name}-upstream.safetensors")
    with atomic_write(target) as temporary:
        save_file(state, temporary)
    emit(f"written   {target}")


def _export_images(run: Path, to: Path, catalog: Catalog) -> None:
    from segros_eval.benchmarks.geneval.folder import write_geneval_folder
    from segros_eval.pipeline.store import read_result
    from segros_train.files import segros_home

    place = run / "evals" / "geneval"
    result = read_result(place / "result.json")
    task = catalog.evaluators["geneval"]
    asked = task.evaluator.samples(result.world, segros_home() / "data" / "geneval", result.seeds)
    drawn = {item["item_id"]: item for item in read_jsonl(place / "items.jsonl") if item.get("image")}
    images = [
        (sample, place / drawn[sample.item_id]["image"])
        for sample in asked
        if sample.item_id in drawn and drawn[sample.item_id]["prompt"] == sample.prompt
    ]
    if len(images) < len(drawn):
        raise PrerequisiteError(
            f"{run} was drawn for other prompts than {task.title} now asks: {len(images)} of {len(drawn)} agree",
            "Draw it again, or export with the declarations it was made with.",
        )
    write_geneval_folder(to, images)
    emit(f"written   {to} ({len(images)} images)")
