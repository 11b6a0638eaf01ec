"""mPLUG, the answerer that DPG-Bench means, from its published checkpoint and without modelscope.

A picture is encoded once for all its questions, and the questions of a picture are answered together; upstream does
both anew for every question. Answers are the same: beam search with five beams, in float32.

Source: modelscope 1.40.2, pipelines and models of damo/mplug_visual-question-answering_coco_large_en.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import Compose, InterpolationMode, Normalize, Resize, ToTensor

from segros_eval.benchmarks.base import JudgeReply, JudgeRequest
from segros_eval.benchmarks.dpgbench.mplug.files import FILES, WEIGHTS, missing_mplug, mplug_folder
from segros_eval.benchmarks.dpgbench.mplug.layers import Memory, MplugConfig, MplugNetwork
from segros_eval.benchmarks.fetch import held_to_first_copy
from segros_eval.benchmarks.folders import GridCell, read_response
from segros_train.errors import PrerequisiteError
from segros_train.files import file_sha256
from segros_train.weight_files import read_weight_file

__all__ = ["Mplug", "beam_search", "config_of", "from_published", "open_mplug"]

START, END = 101, 102
LENGTH_POWER = 0.6
MEAN, DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
QUESTIONS_AT_ONCE = 16


class Mplug:
    """Answer questions about pictures in a word or two: a `Judge`."""

    def __init__(self, network: MplugNetwork, vocabulary: Path, *, record: Mapping[str, Any] | None = None) -> None:
        """Take a loaded network.

        Args:
            network: In evaluation mode, on its device.
            vocabulary: BERT's list of word pieces.
            record: What it is, for a result's provenance.
        """
        from transformers import BertTokenizer

        self.network = network
        self.device = next(network.parameters()).device
        self.record = dict(record or {})
        self._tokenizer = BertTokenizer(str(vocabulary), do_lower_case=True)
        side = network.config.image_px
        self._transform = Compose(
            [Resize((side, side), InterpolationMode.BICUBIC), ToTensor(), Normalize(MEAN, DEVIATION)]
        )

    def ask(self, requests: Sequence[JudgeRequest]) -> list[JudgeReply]:
        """Return the answer to the last turn of each request, in order."""
        by_image: dict[Any, list[int]] = {}
        for place, request in enumerate(requests):
            named = isinstance(request.image, (Path, GridCell))
            by_image.setdefault(request.image if named else id(request.image), []).append(place)
        replies: dict[int, JudgeReply] = {}
        for places in by_image.values():
            image = read_response(requests[places[0]].image)
            if isinstance(image, str):
                replies |= {place: JudgeReply(None, image) for place in places}
                continue
            answers = self.answer(image, [requests[place].turns[-1] for place in places])
            replies |= {place: JudgeReply(text) for place, text in zip(places, answers, strict=True)}
        return [replies[place] for place in range(len(requests))]

    @torch.inference_mode()
    def answer(self, image: Image.Image, questions: Sequence[str]) -> list[str]:
        """Return the answer to each question about a picture.

        Args:
            image: Upright RGB picture.
            questions: Any number.
        """
        pixels = self._transform(image)[None].to(self.device)
        seen = self.network.encode_image(pixels)
        answers: list[str] = []
        for start in range(0, len(questions), QUESTIONS_AT_ONCE):
            tokens, valid = self._tokens(questions[start : start + QUESTIONS_AT_ONCE])
            states, there = self.network.encode(seen.expand(len(tokens), -1, -1), tokens, valid)
            found = beam_search(self.network, self.network.memory(states), there)
            answers += [str(self._tokenizer.decode(one, skip_special_tokens=True)) for one in found]
        return answers

    def _tokens(self, questions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return token ids and where there are any, both [B, L]; L is fixed, so that a batch changes nothing."""
        encoded = self._tokenizer(
            [question.lower() for question in questions],
            padding="max_length",
            truncation=True,
            max_length=self.network.config.max_question_tokens,
            return_tensors="pt",
        )
        return encoded["input_ids"].to(self.device), encoded["attention_mask"].bool().to(self.device)


def beam_search(network: MplugNetwork, memory: Memory, valid: Tensor) -> list[list[int]]:
    """Return the best answer to each of B questions as token ids, START and END included.

    Every step keeps the beginnings with the best log-probability over a penalty that grows with length. A question is
    done when its best beginning has just ended; the answer is the best of all that had ended by then. A beginning that
    has ended without being the best goes on like any other, as upstream.

    Args:
        network: Gives the next token.
        memory: What it attends to, of B questions.
        valid: [B, S] bool, where there is something to attend to.
    """
    config = network.config
    size, beams, device = len(valid), config.num_beams, valid.device
    tokens = torch.full((size, beams, 1), START, device=device)
    sums = torch.tensor([0.0] + [-torch.inf] * (beams - 1), device=device).repeat(size, 1)
    open_questions = torch.arange(size, device=device)
    ended: list[list[tuple[float, list[int]]]] = [[] for _ in range(size)]
    for step in range(config.max_answer_tokens):
        logs = network.next_logits(tokens, memory, valid).float().log_softmax(-1)
        if step < config.min_answer_tokens:
            logs[..., END] = -1e20
        penalty = ((5 + step + 1) / 6) ** LENGTH_POWER
        ranked = ((sums[..., None] + logs) / penalty).flatten(1)
        scores, places = ranked.topk(beams)
        sums = scores * penalty
        origins, newest = places // logs.shape[-1], places % logs.shape[-1]
        tokens = torch.cat([tokens.take_along_dim(origins[..., None], 1), newest[..., None]], -1)
        is_ended = (newest == END) | (step + 1 == config.max_answer_tokens)
        is_done = is_ended[:, 0]
        # Those of a finished question all count, whether they have ended or not.
        for row, beam in (is_ended | is_done[:, None]).nonzero().tolist():
            ended[int(open_questions[row])].append((float(scores[row, beam]), tokens[row, beam].tolist()))
        going = (~is_done).nonzero().flatten()
        if not len(going):
            break
        tokens, sums, valid, open_questions = tokens[going], sums[going], valid[going], open_questions[going]
        memory = [(keys[going], values[going]) for keys, values in memory]
    return [max(answers, key=lambda one: one[0])[1] for answers in ended]


def open_mplug(device: str | None = None) -> Mplug:
    """Load the published model.

    Args:
        device: Torch device; None for the best there is.

    Raises:
        PrerequisiteError: If a file is missing, damaged or of another network.
    """
    absent = missing_mplug()
    if absent is not None:
        raise PrerequisiteError(
            f"DPG-Bench's official answerer is missing: {absent} does not exist",
            "Get it with `segros data fetch "
            "dpgbench`, or let a judge answer, which is not official: --set dpgbench.answerer=judge.",
        )
    folder = mplug_folder()
    digests = {name: held_to_first_copy(folder / name, file_sha256(folder / name)) for name in FILES}
    weights = folder / WEIGHTS
    content = read_weight_file(weights, remedy="Fetch it again with `segros data fetch dpgbench`.")
    network = MplugNetwork(config_of(folder)).eval().requires_grad_(False)
    try:
        network.load_state_dict(from_published(content))
    except (RuntimeError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise PrerequisiteError(
            f"{weights} is damaged or another model: {error}",
            "Fetch it again with `segros data fetch dpgbench`.",
        ) from error
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    record = {"name": "mplug", "weights": digests[WEIGHTS], "device": device}
    return Mplug(network.to(device), folder / "vocab.txt", record=record)


def config_of(folder: Path) -> MplugConfig:
    """Read the sizes from the published configuration.

    Raises:
        PrerequisiteError: If it is of a network that this one is not.
    """
    import yaml

    whole = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    bert = json.loads((folder / "config_bert.json").read_text(encoding="utf-8"))
    if bert.get("encoder_width", bert["hidden_size"]) != bert["hidden_size"] or bert.get("hidden_act") != "gelu":
        raise PrerequisiteError(
            f"{folder} holds an mPLUG of another make: encoder_width or hidden_act is not supported."
        )
    given = {
        "image_px": whole.get("image_res"),
        "patch_px": whole.get("clip_vision_patch_size"),
        "vision_width": whole.get("clip_vision_width"),
        "vision_layers": whole.get("clip_vision_layers"),
        "num_beams": whole.get("beam_size"),
        "min_answer_tokens": whole.get("min_length"),
        "max_answer_tokens": whole.get("max_length"),
        "width": bert["hidden_size"],
        "num_heads": bert["num_attention_heads"],
        "ffn_width": bert["intermediate_size"],
        "vocab_size": bert["vocab_size"],
        "max_positions": bert["max_position_embeddings"],
        "text_layers": bert["text_encoder_layers"],
        "num_layers": bert["num_hidden_layers"],
        "fusion_layers": bert["fusion_layers"],
        "stride_layer": bert.get("stride_layer", 100),
        "decode_layers": bert["text_decode_layers"],
        "norm_eps": bert["layer_norm_eps"],
    }
    return dataclasses.replace(MplugConfig(), **{name: value for name, value in given.items() if value is not None})


def from_published(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the tensors of a published checkpoint that the network has, under its names.

    Copies of a moving average, CLIP's text tower and a projection that is not used are left out.
    """
    for wrapper in ("model", "module"):
        content = content.get(wrapper, content)
    state = {name.replace("model.", ""): tensor for name, tensor in content.items()}
    parts = ("text_encoder.", "fusion_encoder.", "text_decoder.", "visn_fc.", "visn_layer_norm.")
    unused = ("position_ids", "text_decoder.cls.predictions.bias", "visual_encoder.visual.proj")
    return {
        name: tensor
        for name, tensor in state.items()
        if name.startswith((*parts, "visual_encoder.visual.")) and not name.endswith(unused)
    }
