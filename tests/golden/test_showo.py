"""Show-o's tokenizer of images, prompts, masks, losses and gradients against the original code."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from bounds import close, near
from PIL import Image
from showo_golden import Golden, load_golden
from torch import Tensor

from segros_train.backbones.common.dialogues import IGNORED, Dialogue
from segros_train.backbones.showo.answering import greedy, read
from segros_train.backbones.showo.layout import drawing_layout, reading_mask
from segros_train.backbones.showo.sampling import num_hidden, to_images
from segros_train.backbones.showo.transforms import CropForClip, CropToSquare

pytestmark = pytest.mark.usefixtures("in_float64")


@pytest.fixture(scope="module")
def golden(golden_set: Callable[[str], Path]) -> Golden:
    return load_golden(golden_set("showo"))


def test_images_become_the_recorded_codes(golden: Golden) -> None:
    given = golden.group("a")
    prepare = CropToSquare(golden.sizes["resolution"])
    raw = sorted(name for name in given if name.startswith("raw_"))
    pixels = torch.stack([prepare(Image.fromarray(given[name].numpy())) for name in raw])
    close(pixels, given["pixel_values"])
    with torch.no_grad():
        z = golden.model.vq.latents(given["pixel_values"])
    close(z, given["z"])
    assert torch.equal(golden.model.vq.quantised(z), given["z_q"])
    assert torch.equal(golden.model.encode_images(pixels).flatten(1), given["indices"])


def test_codes_become_the_recorded_images_at_any_shape(golden: Golden) -> None:
    given = golden.group("a")
    decoded = golden.model.decode_codes(given["indices"].unflatten(1, (golden.side, golden.side)))
    close(decoded, given["decoded"])
    levels = np.stack([np.asarray(image, np.int64) for image in to_images(decoded)])
    assert abs(levels - given["decoded_uint8"].numpy()).max() <= 1
    stride = golden.model.config.vq.stride_px
    rows, columns = (extent // stride for extent in given["rect_decoded"].shape[2:])
    rectangle = golden.model.decode_codes(given["rect_indices"].unflatten(1, (rows, columns)))
    close(rectangle, given["rect_decoded"])


def test_the_quantiser_has_the_recorded_losses(golden: Golden) -> None:
    quantiser, entropy = golden.model.vq.losses(golden.group("a")["z"])
    assert float(quantiser) == near(golden.values["a.quantizer_loss"])
    assert float(entropy) == near(golden.values["a.entropy_loss"])


def bordered(golden: Golden, body: list[int], image: Tensor, *, width: int) -> Tensor:
    """Return a drawing row: the prompt padded on the left, then the image between its borders."""
    special = golden.tokenizer.special
    row = [special["pad"]] * (width - len(body)) + body + [special["soi"], *image.tolist(), special["eoi"]]
    return torch.tensor(row)


def test_captions_become_the_recorded_prompts(golden: Golden) -> None:
    given, tokenizer, limit = golden.group("b"), golden.tokenizer, golden.limit
    texts = golden.values["b.texts"]
    assert [tokenizer.ids(text) for text in texts] == golden.values["b.text_ids"]
    dropped = (given["cond_dropout_draws"] < golden.sizes["cond_dropout_prob"]).tolist()
    special, mask_id = tokenizer.special, golden.model.config.mask_id
    for row, (text, drop) in enumerate(zip(texts, dropped, strict=True)):
        body = tokenizer.request("" if drop else text, limit=limit)
        ids = bordered(golden, body, given["image_input_ids"][row], width=limit)
        labels = bordered(golden, body, given["image_labels"][row], width=limit)
        assert torch.equal(ids, given["t2i_ids"][row])
        assert torch.equal(labels.masked_fill(labels == special["pad"], IGNORED), given["t2i_labels"][row])
        blank = torch.full_like(given["image_input_ids"][row], mask_id)
        asked = bordered(golden, tokenizer.request(text, limit=limit), blank, width=limit)
        assert torch.equal(asked, given["t2i_gen_ids"][row])
    empty = bordered(golden, tokenizer.request("", limit=limit), blank, width=limit)
    assert torch.equal(empty.expand_as(given["uncond_ids"]), given["uncond_ids"])


def test_texts_become_the_recorded_rows_of_language_modelling_and_reading(golden: Golden) -> None:
    given, tokenizer = golden.group("b"), golden.tokenizer
    special, pad = tokenizer.special, tokenizer.special["pad"]
    length = given["lm_ids"].shape[1]
    for row, text in enumerate(golden.values["b.texts"]):
        ids = tokenizer.sentence(text, limit=length)
        fill = length - len(ids)
        assert [*ids, *[pad] * fill] == given["lm_ids"][row].tolist()
        assert [*ids, *[IGNORED] * fill] == given["lm_labels"][row].tolist()
        head = [special["mmu"], special["soi"], *given["mmu_image_ids"][row].tolist(), special["eoi"]]
        tail = tokenizer.reading(text, limit=golden.limit - 1)
        fill = golden.limit - 1 - len(tail)
        assert [*head, *tail, *[pad] * fill] == given["mmu_ids"][row].tolist()
        assert [IGNORED] * len(head) + tail + [IGNORED] * fill == given["mmu_labels"][row].tolist()


@pytest.mark.parametrize("name", ["t2i", "lm", "mmu"])
def test_masks_from_offsets_equal_the_recorded_ones(golden: Golden, name: str) -> None:
    given = golden.group("b")
    recorded, ids = given[f"{name}_mask"].bool(), given[f"{name}_ids"]
    if name == "t2i":
        valid = ids[:, : golden.limit] != golden.tokenizer.special["pad"]
        layout = drawing_layout(valid, golden.num_cells + 2)
        assert torch.equal(layout.positions, torch.arange(ids.shape[1]).expand_as(ids))
        assert torch.equal(layout.mask("native"), recorded)
        assert torch.equal(layout.mask("paper"), recorded)
    else:
        last = golden.num_cells + 3 if name == "mmu" else 0
        mask = reading_mask(ids.shape[1], first=0, last=last, device=ids.device)
        assert torch.equal(mask.expand_as(recorded), recorded)


def test_training_hides_the_recorded_cells(golden: Golden) -> None:
    given = golden.group("b.mask")
    ratio = torch.cos(given["draw_t"] * (torch.pi * 0.5)).clamp(golden.sizes["min_masking_rate"])
    close(ratio, given["prob"])
    count = num_hidden(ratio, golden.num_cells)
    masked = given["draw_perm"].argsort(dim=-1) < count.unsqueeze(1)
    assert torch.equal(given["image_ids"].masked_fill(masked, golden.model.config.mask_id), given["input_ids"])
    assert torch.equal(given["image_ids"].masked_fill(~masked, IGNORED), given["labels"])


def mixed(golden: Golden) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Return the states and labels of the recorded mixed batch, with its tensors."""
    given = golden.group("c")
    ids = given["input_ids"]
    positions = torch.arange(ids.shape[1]).unsqueeze(0)
    states = golden.model.hidden(golden.model.embed(ids), positions, mask=given["mask"].bool())
    return states, given["labels"], given


def losses(golden: Golden) -> dict[str, Tensor]:
    """Return the three losses of the mixed batch, each over the rows that the recording gives to its task."""
    states, labels, _ = mixed(golden)
    drawn, texts, asked = (golden.rows("c.input_ids")[task] for task in ("t2i", "lm", "mmu"))
    model, image = golden.model, slice(golden.limit, None)
    return {
        "t2i": model.nll(states[drawn, image], labels[drawn, image]),
        "lm": model.next_token_nll(states[texts], labels[texts]),
        "mmu": model.next_token_nll(states[asked], labels[asked]),
    }


def test_a_mixed_batch_has_the_recorded_logits_and_losses(golden: Golden) -> None:
    states, labels, given = mixed(golden)
    drawn = golden.rows("c.input_ids")["t2i"]
    with torch.no_grad():
        logits = golden.model.logits(states)
        found = losses(golden)
    image = slice(golden.limit + 1, -1)
    close(logits[drawn, image], given["logits_t2i_image"])
    close(logits[:, -1], given["logits_last"])
    close(logits[:, golden.columns("c.logits_text")], given["logits_text"])
    for name, loss in found.items():
        assert float(loss) == near(golden.values[f"c.loss_{name}"])
    code_states, code_labels = states[drawn, image], labels[drawn, image]
    alone = float(golden.model.nll(code_states, code_labels).detach())
    assert alone == near(golden.values["c.derived.loss_t2i_masked_only_fullvocab"])
    kept = code_labels != IGNORED
    codes = golden.model.code_logits(code_states[kept])
    targets = code_labels[kept] - golden.model.config.image_offset
    within = torch.nn.functional.cross_entropy(codes, targets).detach()
    assert float(within) == near(golden.values["c.derived.loss_t2i_masked_only_codebook"])


def test_the_joint_loss_has_the_recorded_gradients(golden: Golden) -> None:
    golden.model.zero_grad(set_to_none=True)
    total = sum(weight * loss for weight, loss in zip(golden.values["c.coef"], losses(golden).values(), strict=True))
    assert isinstance(total, Tensor)
    assert float(total.detach()) == near(golden.values["c.loss_total"])
    total.backward()
    gradients = {name: parameter.grad for name, parameter in golden.model.named_parameters()}
    for name, norm in golden.values["c.grad_l2"].items():
        found = gradients[name]
        assert found is not None
        assert float(found.norm()) == near(norm), name
    for name, recorded in golden.group("c.grad").items():
        found = gradients[name]
        assert found is not None
        close(found, recorded)


def test_codes_are_read_and_answered_as_recorded(golden: Golden) -> None:
    given, special = golden.group("d.vq"), golden.tokenizer.special
    ids = given["input_ids"][0].tolist()
    question = golden.tokenizer.question(golden.question(ids), tower=False)
    codes = torch.tensor(ids[len(question.head) : len(question.head) + golden.num_cells])
    assert ids == [*question.head, *codes.tolist(), *question.tail]
    mask = reading_mask(len(ids), first=0, last=ids.index(special["eoi"]) + 1, device=codes.device)
    assert torch.equal(mask, given["mask"].bool())
    with torch.no_grad():
        image = golden.model.embed(codes.unsqueeze(0))
        states = read(golden.model, image, [question], everything=True)
        shown = given["logits"].shape[1]
        close(golden.model.logits(states[:, -shown:]), given["logits"])
        limit = len(given["greedy"])
        answered = greedy(golden.model, image, [question], end_id=-1, max_new_tokens=limit, everything=True)
    assert answered == [given["greedy"].tolist()]
    ended = greedy(golden.model, image, [question], end_id=golden.tokenizer.end_id, max_new_tokens=9, everything=True)
    if given["greedy"][-1] == golden.tokenizer.end_id:
        assert ended == [given["greedy"][:-1].tolist()]


def test_a_photograph_reaches_the_tower_as_recorded(golden: Golden) -> None:
    given = golden.group("d.clip")
    size = golden.sizes["clip"]["image_size"]
    pixels = CropForClip(size)(Image.fromarray(given["raw"].numpy()))
    levels = ((pixels + 1) * 127.5).round().byte()
    assert torch.equal(levels, given["pixel_values_u8"][0])


def test_features_are_read_and_answered_as_recorded(golden: Golden) -> None:
    given, model = golden.group("d.clip"), golden.model
    pixels = given["pixel_values_u8"].float() / 127.5 - 1
    with torch.no_grad():
        features = model.clip_features(pixels)
        image = model.mm_projector(features)
    every = -(-features.shape[1] // given["features"].shape[1])
    close(features[:, ::every], given["features"])
    close(image[:, ::every], given["projected"])
    ids = given["input_ids"][0].tolist()
    start = ids.index(golden.tokenizer.special["soi"]) + 1
    question = golden.tokenizer.question(golden.question(ids[start:]), tower=True)
    assert tuple(ids[start:]) == question.tail
    dialogue = Dialogue(tuple(ids[:start]), tuple(ids[start:]))
    with torch.no_grad():
        states = read(model, image, [dialogue], everything=False)
        close(model.logits(states[:, golden.columns("d.clip.logits")]), given["logits"])
        answered = greedy(model, image, [dialogue], end_id=-1, max_new_tokens=len(given["greedy"]), everything=False)
    assert answered == [given["greedy"].tolist()]
