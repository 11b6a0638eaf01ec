"""Harmon's encodings, losses and gradients against the original code."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from bounds import close, near
from harmon_golden import Golden, load_golden
from torch import Tensor

from segros_train.backbones.common.dialogues import IGNORED, Dialogue
from segros_train.backbones.harmon.adapter import visible_indices
from segros_train.backbones.harmon.answering import greedy, next_token_loss, read
from segros_train.backbones.harmon.diffusion import NoiseStep, loss_terms
from segros_train.backbones.harmon.sequence import join, position_ids
from segros_train.backbones.harmon.transforms import to_images
from segros_train.masking import truncated_normal_ratio

IMAGE_SLOT = -200

pytestmark = pytest.mark.usefixtures("in_float64")


@pytest.fixture(scope="module")
def golden(golden_set: Callable[[str], Path]) -> Golden:
    return load_golden(golden_set("harmon"))


@pytest.mark.golden_cases("harmon", "vae")
def test_the_autoencoder_encodes_and_decodes_as_recorded(golden: Golden, case: str) -> None:
    given = golden.group(f"vae.{case}")
    with torch.no_grad():
        mean, logvar = golden.model.vae.moments(given["image"])
        latents = golden.model.encode_images(given["image"])
        decoded = golden.model.decode_latents(given["latents"])
    close(mean, given["moments_mean"])
    close(logvar, given["moments_logvar"])
    close(latents, given["latents"])
    close(decoded, given["decoded"])
    if "decoded_uint8" in given:
        images = np.stack([np.asarray(image) for image in to_images(given["decoded"])])
        assert np.array_equal(images.transpose(0, 3, 1, 2), given["decoded_uint8"].numpy())


@pytest.mark.golden_cases("harmon", "mar_encoder")
def test_the_encoder_reads_visible_cells_at_any_grid_as_recorded(golden: Golden, case: str) -> None:
    given = golden.group(f"mar_encoder.{case}")
    latents = given["latents"]
    visible = visible_indices(given["mask"].bool()) if "mask" in given else None
    with torch.no_grad():
        positions = golden.model.mar.positions((latents.shape[1], latents.shape[2]))
        encoded = golden.model.mar.encode(latents.flatten(1, 2), visible, positions)
        image = golden.model.to_language(encoded)
    close(encoded, given["x_enc"])
    close(image, given["z_enc"])


@pytest.mark.golden_cases("harmon", "t2i_forward")
def test_text_and_visible_cells_give_the_recorded_conditions(golden: Golden, case: str) -> None:
    given = golden.group(f"t2i_forward.{case}")
    model, latents = golden.model, given["latents"]
    visible, valid = visible_indices(given["mask"].bool()), given["attention_mask"].bool()
    with torch.no_grad():
        text = golden.embed(given["input_ids"])
        _, layout = join(text, valid, given["z_enc"])
        encoded = given["x_enc"]
        changed = model.from_language(encoded, given["llm_hidden_image"])
        positions = model.mar.positions((latents.shape[1], latents.shape[2]))
        decoded = model.mar.decode(given["x_enc_residual"], visible, positions)
        conditions = model.conditions(text, valid, latents, visible)
    assert torch.equal(position_ids(layout.valid), given["position_ids"])
    assert torch.equal(layout.valid, given["full_attention_mask"].bool())
    close(changed, given["x_enc_residual"])
    close(decoded, given["z"])
    close(conditions, given["z"])


def test_the_diffusion_loss_has_the_recorded_terms_and_gradients(golden: Golden) -> None:
    given = golden.group("diffloss")
    head = golden.model.mar.diffloss
    conditions = given["z"].clone().requires_grad_()
    rows = head.row_losses(
        conditions.flatten(0, 1),
        given["target"].flatten(0, 1),
        timesteps=golden.repeated(given["t"]),
        noise=golden.repeated(given["noise"]),
    )
    close(rows.noise, given["row_mse"])
    close(rows.bound, given["row_vb"])
    close(rows.total, given["row_loss"])
    loss = golden.masked_loss(conditions, given["target"], given)
    gradients = golden.gradients(loss)
    close(loss, given["loss"])
    close(conditions.grad, given["grad_z"])
    name = "mar.diffloss.net.final_layer.linear.weight"
    close(gradients[name], given["grad_final_linear_weight"])


def test_the_first_and_the_last_timesteps_have_the_recorded_terms(golden: Golden) -> None:
    given = golden.group("diffloss_edge")
    head, t = golden.model.mar.diffloss, given["t"]
    step: NoiseStep[Tensor] = NoiseStep(*head.coefficients[t].unsqueeze(-1).unbind(1))
    with torch.no_grad():
        noisy = step.signal * given["x_start"] + step.noise * given["noise"]
        output = head.net(noisy, head.net.time_embed(t) + head.net.cond_embed(given["cond"]))
        terms = loss_terms(output, given["x_start"], noisy=noisy, noise=given["noise"], step=step, first=t == 0)
        rows = head.row_losses(given["cond"], given["x_start"], timesteps=t[None], noise=given["noise"][None])
    close(noisy, given["x_t"])
    close(output, given["model_out"])
    close(terms.bound, given["row_vb"])
    close(rows.noise, given["row_mse"])
    close(rows.bound, given["row_vb"])
    close(rows.total, given["row_loss"])


def norm_below(gradients: Mapping[str, Tensor | None], prefix: str) -> float | None:
    found = [
        gradient
        for name, gradient in gradients.items()
        if gradient is not None and (name == prefix or name.startswith(f"{prefix}."))
    ]
    return math.sqrt(sum(float(gradient.double().square().sum()) for gradient in found)) if found else None


def test_the_loss_from_pixels_has_the_recorded_gradients(golden: Golden) -> None:
    given = golden.group("t2i_loss")
    loss = golden.text_to_image_loss(given)
    gradients = golden.gradients(loss)
    close(loss, given["loss"])
    close(gradients["proj_in.0.weight"], given["grad_proj_in_0_weight"])
    close(gradients["mar.fake_latent"], given["grad_fake_latent"])
    norms = golden.extra("t2i_loss.grad_norms")
    assert norms
    for prefix, norm in norms.items():
        assert norm_below(gradients, prefix) == (norm if norm is None else near(norm))


def test_the_loss_with_visible_cells_has_the_recorded_gradient_of_every_parameter(golden: Golden) -> None:
    given = golden.group("t2i_loss_partial")
    loss = golden.text_to_image_loss(given)
    gradients = golden.gradients(loss)
    close(loss, given["loss"])
    full = {key.removeprefix("grad."): value for key, value in given.items() if key.startswith("grad.")}
    assert full
    for name, recorded in full.items():
        close(gradients[name], recorded)
    norms = golden.extra("t2i_loss_partial.grad_norms_all")
    measured = {name: norm_below(gradients, name) for name in norms}
    assert measured == {name: norm if norm is None else near(norm) for name, norm in norms.items()}


def test_a_reconstruction_reads_the_recorded_sequence_and_gives_its_loss(golden: Golden) -> None:
    given = golden.group("recon")
    model, ids = golden.model, given["input_ids"]
    slot = int((ids[0] == IMAGE_SLOT).nonzero())
    kept = [index for index in range(ids.shape[1]) if index != slot]
    text, valid = golden.embed(ids[:, kept]), given["attention_mask"][:, kept].bool()
    latents = model.encode_images(given["pixel_values"])
    visible, hints = visible_indices(given["mask"].bool()), model.whole_image(latents)
    positions = model.mar.positions((latents.shape[1], latents.shape[2]))
    image = model.to_language(model.mar.encode(latents.flatten(1, 2), visible, positions))
    sequence, layout = join(text, valid, image, hints=hints, slot=slot)
    close(sequence, given["llm_inputs_embeds"])
    assert torch.equal(layout.valid, given["llm_attention_mask"].bool())
    assert torch.equal(position_ids(layout.valid), given["llm_position_ids"])
    conditions = model.conditions(text, valid, latents, visible, hints=hints, slot=slot)
    loss = golden.masked_loss(conditions, latents, given)
    gradients = golden.gradients(loss)
    close(conditions, given["z"])
    close(loss, given["loss"])
    close(gradients["proj_in.0.weight"], given["grad_proj_in_0_weight"])


def dialogues(ids: Tensor) -> list[Dialogue]:
    """Cut rows of ids at their image slots."""
    cut = []
    for row in ids:
        slots = (row == IMAGE_SLOT).nonzero().squeeze(1)
        head, tail = row[: int(slots[0])], row[int(slots[-1]) + 1 :]
        cut.append(Dialogue(tuple(head.tolist()), tuple(tail.tolist())))
    return cut


def test_reading_an_image_gives_the_recorded_logits_loss_and_gradient(golden: Golden) -> None:
    given = golden.group("i2t")
    model = golden.model
    image = model.whole_image(model.encode_images(given["pixel_values"]))
    states = read(model, image, dialogues(given["input_ids"]))
    tail = given["logits_tail"].shape[1]
    valid = given["attention_mask"][:, -tail:].bool()
    logits = model.llm.lm_head(states[:, -tail:])
    loss = next_token_loss(model, states, given["labels"])
    gradients = golden.gradients(loss)
    close(image, given["z_enc"])
    close(logits[valid], given["logits_tail"][valid])
    close(loss, given["loss"])
    close(gradients["proj_in.0.weight"], given["grad_proj_in_0_weight"])


def test_answering_gives_the_recorded_tokens(golden: Golden) -> None:
    given = golden.group("i2t")
    (question,) = dialogues(given["input_ids"][:1])
    first_label = int((given["labels"][0] != IGNORED).nonzero()[0])
    num_text = first_label - (given["labels"].shape[1] - len(question.tail))
    recorded = given["greedy_new_tokens"]
    with torch.no_grad():
        image = golden.model.whole_image(golden.model.encode_images(given["pixel_values"][:1]))
        tokens = greedy(
            golden.model,
            image,
            [Dialogue(question.head, question.tail[:num_text])],
            end_id=-1,
            max_new_tokens=recorded.shape[1],
        )
    assert tokens == recorded.tolist()


def test_masking_ratios_follow_the_recorded_draws(golden: Golden) -> None:
    recorded = golden.extra("mask_ratio_rvs_numpy_seed0")
    uniform = torch.from_numpy(np.random.RandomState(0).uniform(size=len(recorded)))
    ratios = truncated_normal_ratio(uniform, minimum=golden.model.config.mar.mask_ratio_min)
    assert ratios.tolist() == pytest.approx(recorded, rel=1e-9)
