"""T2I-CompBench: does an image keep attributes, relations and numbers with the right objects?

A judge scores each image against its prompt from 0 to 100. The default protocol is the one that RecA's numbers come
from (`srum-2025-11`); it averages a reply that cannot be read as -1, which is reported beside (`strict_...`), while
the headline leaves such replies out and counts them. Eight categories; the overall is their unweighted mean.

Source: WayneJin0918/SRUM@a53ba18 (CompBench_eval); Karine-Huang/T2I-CompBench@1b70949 (examples/dataset).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
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
    from segros_eval.benchmarks.folders import ImageFolder
    from segros_eval.statistics.tally import Floats, Tally, Totals

__all__ = ["CompBench"]

SRUM_FILE = "val_comp.json"
SRUM_SHA256 = "2b11f966a1d4f800150c0b4770c271bf5bd5b759f70ce6a6df72833db6432bfa"
VAL_SHA256 = {
    "color": "1634259756dbc77d13093d907d414480080ec9790a8c97ad09efaea7b2534f2d",
    "shape": "37e1a276906c7ea9516cbd7ac8501be896006c0c17ca7344f260562834455bae",
    "texture": "fbb5363515b4a28009e360afaaaf389d2dd2289e50dbb0c6ef4ea0c7fe4f3d4f",
    "spatial": "8707a1d7e42ce3002d95363cf55f74bd043c843ae27108f5125aaaa7840ca988",
    "non_spatial": "04c56cc9ac441dc9ea6c5157652058bd1635b5308526dd31bb29a1caab9a758d",
    "numeracy": "dad8df141604b70ba7554bec724e3db0a80023680769b5c514854ea2d2527bbe",
    "3d_spatial": "c9953597315f36a5fcb41291bb19bdc6ab5f64a0fa760d691b4854a73f5d1fe9",
    "complex": "1b808018b8d9916db3d47d5aa2ef18377a3549a56901a474156f799824cdf3b4",
}
STRICT_FAILURE = -1.0
"""What upstream averages for a reply that it cannot read. Source: SRUM, CompBench_eval/calculate_mean.py."""


@dataclass(frozen=True)
class CompBench(ImageBenchmark):
    """Score images against compositional prompts with a judge.

    Attributes:
        rules: `"srum-2025-11"` (2,670 rows, one text for all categories) or `"compbench-mllm-v1"` (2,400 prompts, a
            description first and the category's own rubric; noun phrases by a rule of ours, not spaCy's).
        images_per_prompt: Draws of each prompt.
        judge_model: The judge.
        judge_revision: Its revision; empty for what the server has.
        shapes_prompts_per_category: Most prompts of each category in the embedded world.
    """

    version: ClassVar[int] = 1

    rules: Literal["srum-2025-11", "compbench-mllm-v1"] = "srum-2025-11"
    images_per_prompt: int = 1
    judge_model: str = "Qwen/Qwen2.5-VL-32B-Instruct"
    judge_revision: str = ""
    shapes_prompts_per_category: int = 20

    def __post_init__(self) -> None:
        check_counts(self)

    @property
    def needs(self) -> tuple[Need, ...]:
        """The judge."""
        return ("judge",)

    @property
    def protocol(self) -> str:
        """Name of the rules, and the judge."""
        revision = f"@{self.judge_revision}" if self.judge_revision else ""
        return f"{self.rules} judged by {self.judge_model}{revision}"

    def protocol_in(self, world: World) -> str:
        """Return the name of the rules, and who judges in a world."""
        return f"{self.rules} judged by {WORLD_READER}" if world == "shapes" else self.protocol

    def prompt_ids(self, number: int, record: Mapping[str, Any]) -> tuple[str, str]:
        """Return the row's own number, and its prompt: rows of one prompt share their images."""
        return record["question_id"], record["prompt"]

    def prompts(self, world: World, data: Path | None) -> list[dict[str, Any]]:
        """Return the evaluation set: `prompt`, `category` and `question_id` of each row.

        Args:
            world: `"photo"` reads the official files below `data`; `"shapes"` builds the embedded world's set.
            data: Folder of the official files.

        Raises:
            PrerequisiteError: If a file is missing or not the one of the protocol.
        """
        if world == "shapes":
            from segros_train.data.shapes.prompts import compositional_prompts

            return compositional_prompts(self.shapes_prompts_per_category)
        if self.rules == "srum-2025-11":
            rows = json.loads(_checked(data, SRUM_FILE, SRUM_SHA256).read_text(encoding="utf-8"))
            return [
                {"prompt": row["Question"], "category": row["Category"], "question_id": row["Question_id"]}
                for row in rows
            ]
        return [
            {"prompt": line.split("\t")[0].strip(), "category": category, "question_id": f"{category}-{number}"}
            for category, digest in VAL_SHA256.items()
            for number, line in enumerate(
                _checked(data, f"{category}_val.txt", digest).read_text(encoding="utf-8").splitlines(), start=1
            )
            if line.strip()
        ]

    def folder_prompts(self, root: Path) -> Iterator[str]:
        """Yield the prompts that a folder's file names hold.

        Raises:
            PrerequisiteError: If the layout is not found.
        """
        from segros_eval.benchmarks.compbench.folder import folder_prompts

        return folder_prompts(root)

    def read_folder(self, root: Path, world: World, data: Path | None, *, side_px: int | None = None) -> ImageFolder:
        """Read a folder in the official layout against the evaluation set; see `compbench_folder`.

        Raises:
            PrerequisiteError: If the layout is not found, or the prompts are missing.
        """
        from segros_eval.benchmarks.compbench.folder import read_compbench_folder

        return read_compbench_folder(
            root, prompts=self.prompts(world, data), images_per_prompt=self.images_per_prompt, side_px=side_px
        )

    def score(self, samples: Sequence[Sample], responses: Sequence[Any], tools: Tools) -> list[Score]:
        """Let the judge score images.

        Args:
            samples: Samples with the row as metadata.
            responses: Per sample an image, the path of one, or None; what is missing, unreadable or judged in a reply
                that cannot be read is unscored.
            tools: Needs the judge.

        Raises:
            PrerequisiteError: If there is no judge.
        """
        if tools.judge is None:
            raise PrerequisiteError(
                "T2I-CompBench is scored by a judge, and none was opened",
                "Open one with segros_eval.pipeline.tools.open_tools.",
            )
        from segros_eval.benchmarks.folders import response_fault

        faults = [response_fault(response) for response in responses]
        good = [
            (sample, response) for sample, response, fault in zip(samples, responses, faults, strict=True) if not fault
        ]
        judge = self._judge_srum if self.rules == "srum-2025-11" else self._judge_mllm
        judged = iter(judge(good, tools))
        return [
            _unscored(sample, fault) if fault else next(judged) for sample, fault in zip(samples, faults, strict=True)
        ]

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """`overall` and the eight categories over the replies that could be read, then strictly; in percent.

        A category whose images are asked for and have no score has no value, and neither has then the overall, which
        is the mean of the categories that are asked for: the embedded world asks for five of the eight.
        """
        from segros_eval.statistics.tally import item_tally, percent

        read, strict = item_tally(percent, stratified=False), item_tally(_strict_mark, stratified=False)
        return (*_metrics("", read, "prompt"), *_metrics("strict_", strict, ""))

    def _judge_srum(self, good: Sequence[tuple[Sample, Any]], tools: Tools) -> list[Score]:
        from segros_eval.benchmarks.compbench.rules import parse_srum, srum_text

        assert tools.judge is not None
        requests = [JudgeRequest(image, (srum_text(sample.prompt),), self.rules) for sample, image in good]
        replies = tools.judge.ask(requests)
        return [
            _judged(sample, [reply], None if reply.text is None else parse_srum(reply.text))
            for (sample, _), reply in zip(good, replies, strict=True)
        ]

    def _judge_mllm(self, good: Sequence[tuple[Sample, Any]], tools: Tools) -> list[Score]:
        from segros_eval.benchmarks.compbench.rules import SCORE_SCHEMA, describe_text, product_score, rubric_texts

        assert tools.judge is not None
        first = [(describe_text(sample.metadata["category"]),) for sample, _ in good]
        told = tools.judge.ask(
            [
                JudgeRequest(image, turn, self.rules, max_tokens=160)
                for (_, image), turn in zip(good, first, strict=True)
            ]
        )
        requests, owners = [], []
        for place, ((sample, image), (opening,), said) in enumerate(zip(good, first, told, strict=True)):
            for text in rubric_texts(sample.metadata["category"], sample.prompt) if said.text is not None else ():
                answers = (said.text or "",)
                requests.append(
                    JudgeRequest(image, (opening, text), self.rules, answers, max_tokens=64, schema=SCORE_SCHEMA)
                )
                owners.append(place)
        replies: dict[int, list[JudgeReply]] = {}
        marks: dict[int, list[int]] = {}
        for place, (reply, mark) in zip(owners, _marked(tools.judge, requests), strict=True):
            replies.setdefault(place, []).append(reply)
            marks.setdefault(place, []).extend([] if mark is None else [mark])
        scores = []
        for place, (sample, _) in enumerate(good):
            given, whole = replies.get(place, [told[place]]), marks.get(place, [])
            scores.append(_judged(sample, given, product_score(whole) if len(whole) == len(given) else None))
        return scores


def _marked(judge: Judge, requests: Sequence[JudgeRequest]) -> list[tuple[JudgeReply, int | None]]:
    """Ask for scores in the demanded form, and once more as free text where a reply is not in it."""
    from segros_eval.benchmarks.compbench.rules import parse_free_score, parse_json_score

    marked = [(reply, parse_json_score(reply.text or "")) for reply in judge.ask(requests)]
    unread = [place for place, (_, mark) in enumerate(marked) if mark is None]
    freely = judge.ask([replace(requests[place], schema=None) for place in unread]) if unread else []
    for place, reply in zip(unread, freely, strict=True):
        marked[place] = (reply, parse_free_score(reply.text or ""))
    return marked


def _judged(sample: Sample, replies: Sequence[JudgeReply], mark: float | None) -> Score:
    """Return the score of a judged image; `mark` is on the scale of 0 to 100, None where the replies have none."""
    group = _group(sample)
    silent = [reply.reason for reply in replies if reply.text is None]
    if silent:
        return _unscored(sample, f"the judge gave no answer: {silent[0]}")
    texts = [reply.text for reply in replies]
    raw = {"replies": texts}
    if mark is None or not 0 <= mark <= 100:
        reason = "unparsed reply: no score" if mark is None else f"unparsed reply: score {mark} is not within 0 to 100"
        return Score(sample.item_id, sample.cluster_id, raw, mark, "unscored", None, reason=reason, group=group)
    return Score(sample.item_id, sample.cluster_id, raw, mark, "scored", mark / 100, reason="", group=group)


def _unscored(sample: Sample, reason: str) -> Score:
    return Score(sample.item_id, sample.cluster_id, None, None, "unscored", None, reason=reason, group=_group(sample))


def _group(sample: Sample) -> str:
    from segros_eval.benchmarks.compbench.rules import group_of

    return group_of(sample.metadata["category"])


def _strict_mark(score: Score) -> float | None:
    """Return an image's mark, where a reply that cannot be read counts as upstream's; None without any reply."""
    if score.raw is None:
        return None
    return STRICT_FAILURE if score.parsed is None else float(score.parsed)


def _metrics(prefix: str, tally: Callable[[Sequence[Score]], Tally], clusters: str) -> Iterator[Metric]:
    from segros_eval.benchmarks.compbench.rules import CATEGORIES

    yield Metric(f"{prefix}overall", tally, _overall, clusters=clusters)
    for name in CATEGORIES:
        yield Metric(f"{prefix}{name}", tally, partial(_category, name), groups=_groups(name), clusters=clusters)


def _groups(category: str) -> tuple[str, ...]:
    from segros_eval.benchmarks.compbench.rules import COMPLEX_GROUPS

    return tuple(sorted(COMPLEX_GROUPS)) if category == "complex" else (category,)


def _category(name: str, totals: Totals) -> Floats:
    from segros_eval.statistics.tally import mean_of_groups

    return mean_of_groups(totals, [group for group in _groups(name) if (group, "count") in totals])


def _overall(totals: Totals) -> Floats:
    from segros_eval.benchmarks.compbench.rules import CATEGORIES
    from segros_eval.statistics.tally import ratio

    asked = {group for group, _ in totals}
    means = [_category(name, totals) for name in CATEGORIES if asked.intersection(_groups(name))]
    return ratio(sum(means, 0.0), len(means))


def _checked(data: Path | None, name: str, sha256: str) -> Path:
    """Return an official file, which is the one of the protocol."""
    from segros_eval.benchmarks.fetch import PinnedFile, file_fault

    fault = "no data folder was given" if data is None else file_fault(PinnedFile(name, "", sha256), data)
    if data is None or fault is not None:
        raise PrerequisiteError(
            f"T2I-CompBench's official files are missing: {name if data is None else data / name}: {fault}",
            "Get them with `segros data fetch compbench`.",
        )
    return data / name
