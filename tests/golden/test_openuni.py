"""OpenUni's texts, hidden states, losses and gradients against the original code."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from bounds import PASS, close, near, resized
from openuni_golden import Golden, load_golden
from torch import Tensor

from segros_train.backbones.common.dialogues import IGNORED, PADDING_ID
from segros_train.backbones.openuni.answering import greedy, next_token_loss, read_dialogues
from segros_train.backbones.openuni.flow import add_noise, masked_velocity_error, timesteps_of
from segros_train.backbones.openuni.model import position_ids
from segros_train.backbones.openuni.prompts import NO_CAPTION, Dialogue
from segros_train.backbones.openuni.state_dict import upstream_names
from segros_train.types import Turn

pytestmark = pytest.mark.usefixtures("in_float64")


@pytest.fixture(scope="module")
def golden(golden_set: Callable[[str], Path]) -> Golden:
    return load_golden(golden_set("openuni"))


def test_the_vision_tower_gives_the_recorded_embeddings(golden: Golden) -> None:
    model, images = golden.model, golden["a.pixel_values"]
    tower = model.lmm.model.vision_tower
    with torch.no_grad():
        given = model.vision_input(images)
        seen = model.see(images)
        hidden = tower(pixel_values=given).last_hidden_state
        embedded = tower.embeddings(given)
        other = model.lmm.model.get_image_features(golden["a.alt_input"]).pooler_output
    side = math.isqrt(hidden.shape[1] - 1)
    shuffled = model.lmm.model.pixel_shuffle(hidden[:, 1:].unflatten(1, (side, side)), scale_factor=0.5).flatten(1, 2)
    units = units_of(golden, images)
    close(given, golden["a.vit_input"], units=units)
    close(embedded[0] if isinstance(embedded, tuple) else embedded, golden["a.vit_embeddings"], units=units)
    close(hidden, golden["a.vit_last_hidden"], units=units)
    close(shuffled, golden["a.pixel_shuffle"], units=units)
    close(seen, golden["a.vit_embeds"], units=units)
    close(other, golden["a.alt_vit_embeds"])


def test_prompts_are_tokenised_as_recorded(golden: Golden) -> None:
    tokenizer, limit = golden.tokenizer, golden.model.config.max_text_tokens
    assert golden.numbered("b.t2i_prompt.")
    for number in golden.numbered("b.t2i_prompt."):
        prompt = tokenizer.caption(golden.text(f"b.t2i_prompt.{number}"), limit=limit, truncation="upstream")
        assert list(prompt.ids) == golden[f"b.t2i_ids.{number}"].tolist()
        assert list(prompt.ids) == tokenizer.ids(golden.text(f"b.t2i_text.{number}"))[:limit]
    assert list(tokenizer.request(NO_CAPTION).ids) == golden["b.cfg_ids"].tolist()
    num_image = golden["a.vit_embeds"].shape[1]
    for number in golden.numbered("b.i2i_prompt."):
        request = tokenizer.request(golden.text(f"b.i2i_prompt.{number}"), num_hints=num_image)
        assert list(request.ids) == golden[f"b.i2i_ids.{number}"].tolist()


def test_batches_of_prompts_hold_the_recorded_ids(golden: Golden) -> None:
    tokenizer = golden.tokenizer
    captions = [golden.text(f"b.t2i_prompt.{number}") for number in golden.numbered("b.t2i_prompt.")]
    empty = tokenizer.request(NO_CAPTION)
    pair = tokenizer.pad([tokenizer.caption(captions[0]), empty], device="cpu")
    many = tokenizer.pad([*map(tokenizer.caption, captions), *[empty] * len(captions)], device="cpu")
    for made, ids, mask in ((pair, "b.cond_ids", "b.cond_mask"), (many, "b.eval_ids", "b.eval_mask")):
        valid = golden[mask].bool()
        assert torch.equal(made.valid, valid)
        # Recorded batches are filled up with another id, which nothing attends to.
        assert torch.equal(made.ids[valid], golden[ids][valid])
        assert bool((made.ids[~valid] == PADDING_ID).all())


def test_queries_behind_padded_prompts_give_the_recorded_conditions(golden: Golden) -> None:
    model, valid = golden.model, golden["c.attention_mask"].bool()
    num_queries = model.config.num_queries
    full = torch.nn.functional.pad(valid, (0, num_queries), value=True)
    with torch.no_grad():
        embedded = model.embed_ids(golden["c.input_ids"])
        whole = torch.cat([embedded, model.meta_queries.expand(len(valid), -1, -1)], dim=1)
        hidden = model.language(
            inputs_embeds=whole, attention_mask=full.long(), position_ids=position_ids(full), use_cache=False
        ).last_hidden_state
        queried = model.query(model.read(embedded, valid))
        connected = model.connector(queried)
        conditions = model.condition(queried)
    assert torch.equal(full, golden["c.full_mask"].bool())
    assert torch.equal(position_ids(full), golden["c.position_ids"])
    close(whole, golden["c.inputs_embeds"])
    close(hidden[full], golden["c.llm_last_hidden"][full])
    close(queried, golden["c.query_hidden"])
    close(connected, golden["c.connector_out"])
    close(conditions, golden["c.prompt_embeds"])


def inputs(golden: Golden, path: str) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """Return ids, mask, images and latents of a recorded training path."""
    if path == "t2i":
        return golden["c.input_ids"], golden["c.attention_mask"].bool(), None, golden["d.latents"]
    ids, valid = golden["d.i2i_input_ids"], golden["d.i2i_attention_mask"].bool()
    return ids, valid, golden["a.pixel_values"], golden["d.i2i_latents"]


def units_of(golden: Golden, images: Tensor | None) -> int:
    """Return the units of a pass that reads images, which are resized before, or none."""
    return PASS if images is None else resized(max(images.shape[-1], golden["a.vit_input"].shape[-1]))


def aligned(ids: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Move padding from the left to the right, where this project has it."""
    order = (~valid).long().argsort(dim=1, stable=True)
    return ids.gather(1, order), valid.gather(1, order)


@pytest.mark.parametrize("path", ["t2i", "i2i"])
def test_a_training_step_has_the_recorded_loss_and_gradients(golden: Golden, path: str) -> None:
    model = golden.model
    ids, valid, images, latents = inputs(golden, path)
    units = units_of(golden, images)
    timesteps = timesteps_of(golden["d.u"].to(torch.float32))
    noisy = add_noise(latents, golden["d.noise"], timesteps / 1000)
    assert torch.equal(timesteps, golden[f"d.{path}.timesteps"])
    close(noisy, golden[f"d.{path}.noisy"])
    for row_ids, row_valid in ((ids, valid), aligned(ids, valid)):
        conditions = golden.conditions(row_ids, row_valid, images)
        close(conditions, golden[f"d.{path}.prompt_embeds"], units=units)
        velocity = model.velocity(noisy, conditions, timesteps)
        close(velocity, golden[f"d.{path}.velocity"], units=units)
        loss = masked_velocity_error(velocity, latents, golden["d.noise"])
        close(loss, golden[f"d.{path}.loss"], units=units)
        model.zero_grad(set_to_none=True)
        loss.backward()
        assert_gradients(golden, path, units=units)


def assert_gradients(golden: Golden, path: str, *, units: int) -> None:
    found = {name: p.grad for name, p in golden.model.named_parameters() if p.grad is not None}
    prefix = f"d.{path}.grad."
    recorded = {name.removeprefix(prefix): value for name, value in golden.tensors.items() if name.startswith(prefix)}
    assert recorded
    for name, gradient in recorded.items():
        close(found[name], gradient, units=units)
    meta = golden.record["meta"]
    norm = torch.stack([gradient.norm() for gradient in found.values()]).norm()
    assert float(norm) == near(meta[f"d.{path}.total_grad_norm"], units=units)
    assert len(found) == meta[f"d.{path}.n_params_with_grad"]


@pytest.mark.parametrize("path", ["t2i", "i2i"])
def test_a_loss_on_some_cells_is_the_mean_of_their_recorded_errors(golden: Golden, path: str) -> None:
    latents, noise = inputs(golden, path)[3], golden["d.noise"]
    errors = golden[f"d.{path}.sq_err_map"].flatten(1)
    velocity = golden[f"d.{path}.velocity"]
    target = torch.rand(errors.shape, generator=torch.Generator().manual_seed(0)) < 0.6
    target[:, 0] = True
    expected = torch.stack([row[kept].mean() for row, kept in zip(errors, target, strict=True)]).mean()
    close(masked_velocity_error(velocity, latents, noise, target), expected)
    every = torch.ones_like(target)
    close(masked_velocity_error(velocity, latents, noise, every), errors.mean())


def test_left_padded_prompts_with_an_image_have_the_recorded_positions_and_states(golden: Golden) -> None:
    ids, valid, images, _ = inputs(golden, "i2i")
    num_queries = golden.model.config.num_queries
    full = torch.nn.functional.pad(valid, (0, num_queries), value=True)
    assert torch.equal(position_ids(full), golden["d.i2i_position_ids"])
    with torch.no_grad():
        for row_ids, row_valid in ((ids, valid), aligned(ids, valid)):
            queried = golden.model.query(golden.model.read(golden.prompt(row_ids, images), row_valid))
            close(queried, golden["d.i2i_query_hidden"], units=units_of(golden, images))


def test_the_generator_gives_the_recorded_velocity_at_every_timestep(golden: Golden) -> None:
    probes = golden.numbered("d.probe.")
    if not probes:
        pytest.skip("the golden set has no probe")
    for number in probes:
        with torch.no_grad():
            steps = torch.full((len(golden["d.latents"]),), float(number))
            velocity = golden.model.velocity(golden["d.latents"], golden["c.prompt_embeds"], steps)
        close(velocity, golden[f"d.probe.{number}"])


def test_the_autoencoder_encodes_and_decodes_as_recorded(golden: Golden) -> None:
    model, images = golden.model, golden["a.pixel_values"]
    latents = model.encode_images(images)
    close(latents / model.config.autoencoder.scale, golden["f.encode"])
    close(latents, golden["f.latents"])
    close(model.decode_latents(golden["f.latents"]), golden["f.decode"])


def test_a_question_is_read_and_answered_as_recorded(golden: Golden) -> None:
    tokenizer, num_image = golden.tokenizer, golden["a.vit_embeds"].shape[1]
    question = tokenizer.question(golden.text("g.question"), num_image_tokens=[num_image])
    assert list(question.ids) == golden["g.input_ids"][0].tolist() == tokenizer.ids(golden.text("g.prompt"))
    model = golden.model
    seen = golden["a.vit_embeds"]
    asked = [Dialogue(tuple(row), (IGNORED,) * len(row)) for row in golden["g.input_ids"].tolist()]
    with torch.no_grad():
        states = read_dialogues(model, seen.flatten(0, 1), asked, image_id=tokenizer.image_id)
        logits = model.lmm.lm_head(states)
        recorded = golden["g.greedy_ids"]
        answers = greedy(
            model,
            seen.flatten(0, 1),
            asked,
            image_id=tokenizer.image_id,
            end_id=tokenizer.end_id,
            max_new_tokens=recorded.shape[1],
        )
    close(logits[:, -1], golden["g.logits_last"])
    close(logits[:, -golden["g.logits_tail"].shape[1] :], golden["g.logits_tail"])
    for row, answer in zip(recorded.tolist(), answers, strict=True):
        assert answer == (row[: row.index(tokenizer.end_id)] if tokenizer.end_id in row else row)


def test_the_loss_of_an_answer_is_the_recorded_one(golden: Golden) -> None:
    tokenizer, model = golden.tokenizer, golden.model
    num_image = golden["a.vit_embeds"].shape[1]
    dialogues = [
        Dialogue(tuple(ids), tuple(labels))
        for ids, labels in zip(golden["g.train_ids"].tolist(), golden["g.labels"].tolist(), strict=True)
    ]
    supervised = [label for label in dialogues[0].labels if label != IGNORED]
    answer = tokenizer.text(supervised)
    made = tokenizer.dialogue([Turn(golden.text("g.question"), answer)], num_image_tokens=num_image, limit=10_000)
    assert made == dialogues[0]
    with torch.no_grad():
        loss = next_token_loss(model, golden["a.vit_embeds"].flatten(0, 1), dialogues, image_id=tokenizer.image_id)
    close(loss, golden["g.loss"])


def test_the_tokens_of_a_caption_are_embedded_as_recorded(golden: Golden) -> None:
    ids = torch.tensor(golden.tokenizer.caption(golden.text("b.t2i_prompt.0")).ids)
    close(golden.model.embed_ids(ids), golden["g.text_embed_t2i0"])


def test_weights_return_to_the_names_and_values_they_were_read_with(golden: Golden, golden_set: Callable) -> None:
    from safetensors.torch import load_file

    recorded = load_file(golden_set("openuni") / "weights.safetensors")
    again = upstream_names(golden.model.state_dict())
    assert again.keys() == recorded.keys()
    assert all(torch.equal(again[key], value.float()) for key, value in recorded.items())
