"""DPG-Bench: does an image show all that a long prompt tells of?

Every prompt has a graph of yes/no questions, which an answerer is asked about each image; the rules are in
`dpgbench_rules`. Two answerers stand behind one interface: mPLUG, which the benchmark means, and a vision language
model as a judge, whose numbers are another protocol and are labelled so. In the embedded world prompts and graphs
come from its own scenes, and its reader answers.

Source: TencentQQGYLab/ELLA@3c228f1 (dpg_bench).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from segros_eval.benchmarks.base import (
    WORLD_READER,
    Judge,
    JudgeReply,
    JudgeRequest,
    Metric,
    Need,
    Sample,
    Score,
    Tools,
    World,
)
from segros_eval.benchmarks.kinds import ImageBenchmark, check_counts
from segros_train.errors import PrerequisiteError

if TYPE_CHECKING:
    from segros_eval.benchmarks.dpgbench.rules import Answered, Question
    from segros_eval.benchmarks.folders import ImageFolder
    from segros_eval.statistics.tally import Entry, Floats, Tally, Totals

__all__ = ["PROMPTS_FILE", "QUESTIONS_FILE", "DPGBench"]

PROMPTS_FILE, QUESTIONS_FILE = "prompts.json", "dpg_bench.csv"
OVERALL = "overall"
JUDGE_TEMPLATE = "dpg-yes-no-v1"
JUDGE_TEXT = "{question} Answer with yes or no."

_OFFICIAL_PROMPTS = "dbd25cf7a72d1cf2115a3d6f232d01f01bb8f28c7da9dcc9ea91260512afe460"
_OFFICIAL_QUESTIONS = "98457fc9901943f51ff9a30367250fc292533bed"
_COMMIT = "3c228f1"


@dataclass(frozen=True)
class DPGBench(ImageBenchmark):
    """Score images by the questions of DPG-Bench.

    Attributes:
        rules: `"official"` keeps the official script's two faults (see `dpgbench_rules`), `"fixed"` mends them; the
            numbers of the other stand beside.
        answerer: `"mplug"`, the benchmark's own, or `"judge"`, which is not official.
        images_per_prompt: Draws of each prompt; cells that are read of a 2x2 grid.
        layout: How a folder holds images: `"grid"` for 2x2 grids `<item>.png`, `"files"` for single images
            `<item>_<k>.png` or `<item>.png`; `"auto"` takes a name without `_<k>` for a grid.
        judge_model: The judge, where one answers.
        judge_revision: Its revision; empty for what the server has.
        shapes_prompts: Prompts in the embedded world.
        prompts_sha256: Digest of the prompts' file; another file is another benchmark.
        questions_git_blob: Git's name of the table of questions; the same.
    """

    version: ClassVar[int] = 1

    rules: Literal["official", "fixed"] = "official"
    answerer: Literal["mplug", "judge"] = "mplug"
    images_per_prompt: int = 4
    layout: Literal["auto", "grid", "files"] = "auto"
    judge_model: str = "Qwen/Qwen2.5-VL-32B-Instruct"
    judge_revision: str = ""
    shapes_prompts: int = 40
    prompts_sha256: str = _OFFICIAL_PROMPTS
    questions_git_blob: str = _OFFICIAL_QUESTIONS

    def __post_init__(self) -> None:
        check_counts(self)

    @property
    def needs(self) -> tuple[Need, ...]:
        """The tool that answers."""
        return (self.answerer,)

    @property
    def protocol(self) -> str:
        """Name, commit, rules, and who answers where that is not mPLUG."""
        parts = [f"dpg-bench@{_COMMIT} {self.rules}"]
        if self.answerer == "judge":
            revision = f"@{self.judge_revision}" if self.judge_revision else ""
            parts.append(f"judged by {self.judge_model}{revision} with {JUDGE_TEMPLATE}, not official")
        for name, official in (("prompts_sha256", _OFFICIAL_PROMPTS), ("questions_git_blob", _OFFICIAL_QUESTIONS)):
            if getattr(self, name) != official:
                parts.append(f"{name}={getattr(self, name)}")
        return " ".join(parts)

    def protocol_in(self, world: World) -> str:
        """Return name, commit and rules, and who answers in a world."""
        return f"dpg-bench@{_COMMIT} {self.rules} judged by {WORLD_READER}" if world == "shapes" else self.protocol

    def prompt_ids(self, number: int, record: Mapping[str, Any]) -> tuple[str, str]:
        """Return the item's own name, twice."""
        return record["item_id"], record["item_id"]

    def prompts(self, world: World, data: Path | None) -> list[dict[str, Any]]:
        """Return the evaluation set: per item its id, prompt, questions, and whether it heads the official table.

        Args:
            world: `"photo"` reads the official files below `data`; `"shapes"` builds the embedded world's set.
            data: Folder of the official files.

        Raises:
            PrerequisiteError: If a file is missing or not the one of the protocol.
        """
        if world == "shapes":
            from segros_train.data.shapes.prompts import dense_prompts

            return dense_prompts(self.shapes_prompts)
        from segros_eval.benchmarks.dpgbench.rules import read_graphs

        prompts, table = self._checked(data)
        graphs = read_graphs(table)
        items = json.loads(prompts.read_text(encoding="utf-8"))
        texts = {name.removesuffix(".txt"): str(text).strip() for name, text in items.items()}
        if lacking := sorted(texts.keys() - graphs.keys()):
            raise PrerequisiteError(f"{table} has no questions about {len(lacking)} prompts, e.g. {lacking[0]}.")
        first = next(iter(graphs), None)
        return [_record(item, text, graphs[item], heads_table=item == first) for item, text in texts.items()]

    def folder_prompts(self, root: Path) -> Iterator[str]:
        """Yield the item ids that a folder's file names hold; the layout holds no prompts.

        Raises:
            PrerequisiteError: If the folder holds no image.
        """
        from segros_eval.benchmarks.dpgbench.folder import folder_items

        return folder_items(root)

    def read_folder(self, root: Path, world: World, data: Path | None, *, side_px: int | None = None) -> ImageFolder:
        """Read a folder in one of the official layouts against the evaluation set; see `dpgbench_folder`.

        Raises:
            PrerequisiteError: If the layout is not found, or the prompts are missing.
        """
        from segros_eval.benchmarks.dpgbench.folder import read_dpgbench_folder

        return read_dpgbench_folder(
            root,
            prompts=self.prompts(world, data),
            images_per_prompt=self.images_per_prompt,
            layout=self.layout,
            side_px=side_px,
        )

    def score(self, samples: Sequence[Sample], responses: Sequence[Any], tools: Tools) -> list[Score]:
        """Ask every question about every image.

        Args:
            samples: Samples with the prompt's record as metadata.
            responses: Per sample an image, the path of one, a cell of a grid, or None.
            tools: Needs the answerer, as judge.

        Raises:
            PrerequisiteError: If there is no answerer.
        """
        if tools.judge is None:
            raise PrerequisiteError(
                "DPG-Bench asks questions about images, and nothing was opened that answers them",
                "Open it with segros_eval.pipeline.tools.open_tools.",
            )
        from segros_eval.benchmarks.folders import response_fault

        faults = [response_fault(response) for response in responses]
        requests = {
            index: [self._request(response, question) for question in sample.metadata["questions"]]
            for index, (sample, response, fault) in enumerate(zip(samples, responses, faults, strict=True))
            if not fault
        }
        replies = _asked(tools.judge, requests)
        return [
            _unscored(sample, fault) if fault else self._scored(sample, replies[index])
            for index, (sample, fault) in enumerate(zip(samples, faults, strict=True))
        ]

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """`overall`, the five kinds and thirteen categories by `rules`, then by the other rules; in percent.

        Names of the other rules' numbers begin with theirs (`fixed_overall`). `fixed_zeroed_...` are the kinds after
        dependencies, which the official script does not print.
        """
        from segros_eval.benchmarks.dpgbench.rules import CATEGORIES, KINDS

        tallies = {"official": partial(_answers, True), "fixed": partial(_answers, False)}
        others = {"official": "fixed", "fixed": "official"}[self.rules]
        found = []
        for rules, prefix in ((self.rules, ""), (others, f"{others}_")):
            found.append(Metric(f"{prefix}overall", tallies[rules], partial(_share, OVERALL), clusters="prompt"))
            for level, names in (("kind", KINDS), ("category", CATEGORIES)):
                for name in names:
                    share = partial(_share, f"{level} {name}")
                    found.append(Metric(f"{prefix}{name.replace(' ', '')}", tallies[rules], share))
        zeroed = [
            Metric(f"fixed_zeroed_{one}", tallies["fixed"], partial(_share, f"zeroed kind {one}")) for one in KINDS
        ]
        return (*found, *zeroed)

    def _checked(self, data: Path | None) -> tuple[Path, Path]:
        """Return the official files, which are those of the protocol."""
        from segros_eval.benchmarks.fetch import PinnedFile, file_fault

        files = (
            PinnedFile(PROMPTS_FILE, "", sha256=self.prompts_sha256),
            PinnedFile(QUESTIONS_FILE, "", git_blob=self.questions_git_blob),
        )
        for file in files:
            fault = "no data folder was given" if data is None else file_fault(file, data)
            if fault is not None:
                place = file.name if data is None else str(data / file.name)
                raise PrerequisiteError(
                    f"DPG-Bench's official files are missing: {place}: {fault}",
                    "Get them with `segros data fetch "
                    "dpgbench`. Another version is a protocol of its own: name its digest with "
                    "--set dpgbench.prompts_sha256=... or dpgbench.questions_git_blob=...",
                )
        assert data is not None
        return data / PROMPTS_FILE, data / QUESTIONS_FILE

    def _request(self, image: Any, question: Mapping[str, Any]) -> JudgeRequest:
        if self.answerer == "mplug":
            return JudgeRequest(image, (question["text"],), "dpg-mplug", max_tokens=10)
        text = JUDGE_TEXT.format(question=question["text"])
        return JudgeRequest(image, (text,), JUDGE_TEMPLATE, max_tokens=4, choices=("yes", "no"))

    def _scored(self, sample: Sample, replies: Sequence[JudgeReply]) -> Score:
        from segros_eval.benchmarks.dpgbench.rules import YES, score_picture

        questions = sample.metadata["questions"]
        for question, reply in zip(questions, replies, strict=True):
            if reply.text is None:
                return _unscored(sample, f"question {question['id']}: {reply.reason}")
        texts = {question["id"]: reply.text for question, reply in zip(questions, replies, strict=True)}
        yes = {number: text == YES for number, text in texts.items()}
        graph = _graph(questions)
        heads = bool(sample.metadata.get("heads_table"))
        counted = score_picture(graph[heads and self.rules == "official" :], yes)
        # What the official rules cannot score is left out of their sums; the item still has the mended rules' value.
        counted = counted or score_picture(graph, yes)
        if not counted:
            return _unscored(sample, "a question depends on one that is not there")
        noes = [question["text"] for question in questions if not yes[question["id"]]]
        return Score(
            sample.item_id,
            sample.cluster_id,
            raw={"answers": [[question["id"], texts[question["id"]]] for question in questions]},
            parsed={
                "heads_table": heads,
                "questions": [
                    [question["id"], question["category"], list(question["parents"]), yes[question["id"]]]
                    for question in questions
                ],
            },
            status="scored",
            value=sum(counted.values()) / len(counted),
            reason="\n".join(f"not yes: {text}" for text in noes),
        )


def answered(score: Score) -> Answered:
    """Return the answers that a score holds."""
    from segros_eval.benchmarks.dpgbench.rules import Answered, Question

    rows = score.parsed["questions"]
    questions = tuple(Question(number, category, "", tuple(parents)) for number, category, parents, _ in rows)
    return Answered(score.cluster_id, questions, {row[0]: row[3] for row in rows}, score.parsed["heads_table"])


def _asked(judge: Judge, requests: Mapping[int, Sequence[JudgeRequest]]) -> dict[int, list[JudgeReply]]:
    """Ask all at once, so that the judge can share its work on a picture, and sort the replies by picture."""
    replies = iter(judge.ask([request for of_image in requests.values() for request in of_image]))
    return {index: [next(replies) for _ in of_image] for index, of_image in requests.items()}


def _record(item: str, prompt: str, graph: Sequence[Question], *, heads_table: bool) -> dict[str, Any]:
    questions = [
        {"id": one.id, "category": one.category, "text": one.text, "parents": list(one.parents)} for one in graph
    ]
    return {"item_id": item, "prompt": prompt, "questions": questions, "heads_table": heads_table}


def _graph(questions: Sequence[Mapping[str, Any]]) -> tuple[Question, ...]:
    from segros_eval.benchmarks.dpgbench.rules import Question

    return tuple(Question(one["id"], one["category"], one["text"], tuple(one["parents"])) for one in questions)


def _unscored(sample: Sample, reason: str) -> Score:
    return Score(sample.item_id, sample.cluster_id, None, None, "unscored", None, reason=reason)


def _answers(official: bool, scores: Sequence[Score]) -> Tally:
    """Sum up each prompt by some rules: its score, and the questions answered yes by level and category."""
    from segros_eval.benchmarks.dpgbench.rules import summarise
    from segros_eval.statistics.tally import tabulate

    files: dict[str, list[Score]] = {}
    for score in sorted((score for score in scores if score.value is not None), key=lambda score: score.item_id):
        files.setdefault(score.cluster_id, []).append(score)
    entries: list[Entry] = []
    for file, members in files.items():
        found = summarise(map(answered, members), drop_first_row=official, last_picture_only=official)
        if found.score is None:
            continue
        entries += [(file, (OVERALL, "sum"), found.score), (file, (OVERALL, "count"), 1.0)]
        for (level, name), (yes, asked) in found.counts.items():
            place = f"{level} {name}"
            entries += [(file, (place, "sum"), float(yes)), (file, (place, "count"), float(asked))]
    return tabulate(entries)


def _share(place: str, totals: Totals) -> Floats:
    from segros_eval.statistics.tally import group_mean

    return 100 * group_mean(totals, place)
