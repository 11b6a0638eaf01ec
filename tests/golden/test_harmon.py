"""Harmon against numbers recorded from the original code, at the tolerances they were checked with."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from segros_train.backbones.harmon.adapter import truncated_ratio, visible_indices
from segros_train.backbones.harmon.answering import greedy, next_token_loss, read
from segros_train.backbones.harmon.config import (
    DiffusionConfig,
    HarmonConfig,
    LanguageConfig,
    MarConfig,
    VaeConfig,
)
from segros_train.backbones.harmon.diffusion import NoiseStep, loss_terms, sampling_steps, training_steps
from segros_train.backbones.harmon.model import HarmonModel
from segros_train.backbones.harmon.prompts import Dialogue, Prompts
from segros_train.backbones.harmon.sampling import Draws, Iteration, Sampler, iterations
from segros_train.backbones.harmon.sequence import join, position_ids
from segros_train.backbones.harmon.transforms import to_images

IMAGE_SLOT = -200


def attention_levels(resolutions: list[int], vae: Mapping[str, Any]) -> tuple[int, ...]:
    """Translate resolutions of the nominal image into levels."""
    sides = [vae["nominal_resolution"] // 2**level for level in range(len(vae["ch_mult"]))]
    return tuple(level for level, side in enumerate(sides) if side in resolutions)


def vae_config(vae: Mapping[str, Any]) -> VaeConfig:
    return VaeConfig(
        embed_dim=vae["embed_dim"],
        ch=vae["ch"],
        ch_mult=tuple(vae["ch_mult"]),
        num_res_blocks=vae["num_res_blocks"],
        encoder_attention_levels=attention_levels(vae["enc_attn_resolutions"], vae),
        decoder_attention_levels=attention_levels(vae["dec_attn_resolutions"], vae),
    )


def mar_config(mar: Mapping[str, Any]) -> MarConfig:
    side = mar["img_size"] // mar["vae_stride"] // mar["patch_size"]
    return MarConfig(
        encoder_width=mar["encoder_embed_dim"],
        encoder_depth=mar["encoder_depth"],
        encoder_heads=mar["encoder_num_heads"],
        decoder_width=mar["decoder_embed_dim"],
        decoder_depth=mar["decoder_depth"],
        decoder_heads=mar["decoder_num_heads"],
        diffusion=DiffusionConfig(
            depth=mar["diffloss_d"],
            width=mar["diffloss_w"],
            num_sampling_steps=int(mar["num_sampling_steps"]),
            batch_mul=mar["diffusion_batch_mul"],
        ),
        base_grid=(side, side),
        buffer_size=mar["buffer_size"],
        mlp_ratio=mar["mlp_ratio"],
        mask_ratio_min=mar["mask_ratio_min"],
        attention_dropout=mar["attn_dropout"],
        projection_dropout=mar["proj_dropout"],
        num_classes=mar["class_num"],
    )


def harmon_config(values: Mapping[str, Any]) -> HarmonConfig:
    llm = values["llm"]
    language = LanguageConfig(
        hidden_size=llm["hidden_size"],
        intermediate_size=llm["intermediate_size"],
        num_layers=llm["num_hidden_layers"],
        num_heads=llm["num_attention_heads"],
        num_kv_heads=llm["num_key_value_heads"],
        vocab_size=llm["vocab_size"],
        max_positions=llm["max_position_embeddings"],
        rope_theta=llm["rope_theta"],
        rms_norm_eps=llm["rms_norm_eps"],
    )
    return HarmonConfig(
        llm=language,
        mar=mar_config(values["mar"]),
        vae=vae_config(values["vae"]),
        vae_scale=values["vae_scale"],
        grad_scale=values["grad_scale"],
    )


@dataclass(frozen=True)
class Golden:
    """The golden set: the model built from its weights, tensors by name, and what stands beside them."""

    model: HarmonModel
    tensors: Mapping[str, Tensor]
    record: Mapping[str, Any]

    def group(self, name: str) -> dict[str, Tensor]:
        """Return the tensors below a name."""
        return {key[len(name) + 1 :]: value for key, value in self.tensors.items() if key.startswith(f"{name}.")}

    @property
    def extra(self) -> Mapping[str, Any]:
        return self.record["extra"]

    def repeated(self, rows: Tensor) -> Tensor:
        """Split copy-major rows into [repetitions, rows, ...]."""
        return rows.unflatten(0, (self.model.config.mar.diffusion.batch_mul, -1))

    def embed(self, ids: Tensor) -> Tensor:
        return self.model.llm.model.embed_tokens(ids)

    def masked_loss(self, conditions: Tensor, latents: Tensor, given: Mapping[str, Tensor]) -> Tensor:
        """Return the loss over masked cells with the recorded timesteps and noise."""
        kept = given["mask"].flatten().bool()
        return self.model.mar.diffloss.loss(
            conditions.flatten(0, 1)[kept],
            latents.flatten(0, -2)[kept],
            timesteps=self.repeated(given["t"])[:, kept],
            noise=self.repeated(given["noise"])[:, kept],
        )

    def text_to_image_loss(self, given: Mapping[str, Tensor]) -> Tensor:
        """Return the loss from pixels and ids."""
        latents = self.model.encode_images(given["pixel_values"])
        visible = visible_indices(given["mask"].bool())
        text = self.embed(given["input_ids"])
        conditions = self.model.conditions(text, given["attention_mask"].bool(), latents, visible)
        return self.masked_loss(conditions, latents, given)

    def gradients(self, loss: Tensor) -> dict[str, Tensor | None]:
        """Return the gradient of every parameter by name."""
        self.model.zero_grad(set_to_none=True)
        loss.backward()
        return {name: parameter.grad for name, parameter in self.model.named_parameters()}


@pytest.fixture(scope="module")
def golden(golden_set: Callable[[str], Path]) -> Golden:
    folder = golden_set("harmon")
    model = HarmonModel(harmon_config(json.loads((folder / "config.json").read_text())))
    model.load_state_dict(load_file(folder / "weights.safetensors"))
    record = json.loads((folder / "cases.json").read_text())
    return Golden(model.eval(), load_file(folder / "cases.safetensors"), record)


def close(measured: Tensor, recorded: Tensor, *, tolerance: float) -> None:
    torch.testing.assert_close(measured, recorded, rtol=0, atol=tolerance)


@pytest.mark.golden_cases("harmon", "vae")
def test_the_autoencoder_encodes_and_decodes_as_recorded(golden: Golden, case: str) -> None:
    given = golden.group(f"vae.{case}")
    with torch.no_grad():
        mean, logvar = golden.model.vae.moments(given["image"])
        latents = golden.model.encode_images(given["image"])
        decoded = golden.model.decode_latents(given["latents"])
    close(mean, given["moments_mean"], tolerance=5e-6)
    close(logvar, given["moments_logvar"], tolerance=5e-6)
    close(latents, given["latents"], tolerance=5e-6)
    close(decoded, given["decoded"], tolerance=5e-5)
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
    close(encoded, given["x_enc"], tolerance=1e-5)
    close(image, given["z_enc"], tolerance=1e-5)


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
    close(changed, given["x_enc_residual"], tolerance=1e-5)
    close(decoded, given["z"], tolerance=1e-5)
    close(conditions, given["z"], tolerance=1e-5)


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
    close(rows.noise, given["row_mse"], tolerance=1e-5)
    close(rows.bound, given["row_vb"], tolerance=1e-5)
    close(rows.total, given["row_loss"], tolerance=1e-5)
    loss = golden.masked_loss(conditions, given["target"], given)
    gradients = golden.gradients(loss)
    close(loss, given["loss"], tolerance=1e-5)
    close(conditions.grad, given["grad_z"], tolerance=1e-6)
    name = "mar.diffloss.net.final_layer.linear.weight"
    close(gradients[name], given["grad_final_linear_weight"], tolerance=1e-6)


def test_the_first_and_the_last_timesteps_have_the_recorded_terms(golden: Golden) -> None:
    given = golden.group("diffloss_edge")
    head, t = golden.model.mar.diffloss, given["t"]
    step: NoiseStep[Tensor] = NoiseStep(*head.coefficients[t].unsqueeze(-1).unbind(1))
    with torch.no_grad():
        noisy = step.signal * given["x_start"] + step.noise * given["noise"]
        output = head.net(noisy, head.net.time_embed(t) + head.net.cond_embed(given["cond"]))
        terms = loss_terms(output, given["x_start"], noisy=noisy, noise=given["noise"], step=step, first=t == 0)
        rows = head.row_losses(given["cond"], given["x_start"], timesteps=t[None], noise=given["noise"][None])
    close(noisy, given["x_t"], tolerance=1e-5)
    close(output, given["model_out"], tolerance=1e-5)
    close(terms.bound, given["row_vb"], tolerance=1e-4)
    close(rows.noise, given["row_mse"], tolerance=1e-5)
    close(rows.bound, given["row_vb"], tolerance=1e-4)
    close(rows.total, given["row_loss"], tolerance=1e-4)


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
    close(loss, given["loss"], tolerance=1e-5)
    close(gradients["proj_in.0.weight"], given["grad_proj_in_0_weight"], tolerance=1e-6)
    close(gradients["mar.fake_latent"], given["grad_fake_latent"], tolerance=1e-6)
    for prefix, norm in golden.extra["t2i_loss.grad_norms"].items():
        assert norm_below(gradients, prefix) == (norm if norm is None else pytest.approx(norm, rel=1e-6, abs=1e-6))


def test_the_loss_with_visible_cells_has_the_recorded_gradient_of_every_parameter(golden: Golden) -> None:
    given = golden.group("t2i_loss_partial")
    loss = golden.text_to_image_loss(given)
    gradients = golden.gradients(loss)
    close(loss, given["loss"], tolerance=1e-5)
    full = {key.removeprefix("grad."): value for key, value in given.items() if key.startswith("grad.")}
    assert full
    for name, recorded in full.items():
        close(gradients[name], recorded, tolerance=1e-6)
    norms = golden.extra["t2i_loss_partial.grad_norms_all"]
    measured = {name: norm_below(gradients, name) for name in norms}
    assert measured == {
        name: norm if norm is None else pytest.approx(norm, rel=1e-6, abs=1e-6) for name, norm in norms.items()
    }


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
    close(sequence, given["llm_inputs_embeds"], tolerance=1e-5)
    assert torch.equal(layout.valid, given["llm_attention_mask"].bool())
    assert torch.equal(position_ids(layout.valid), given["llm_position_ids"])
    conditions = model.conditions(text, valid, latents, visible, hints=hints, slot=slot)
    loss = golden.masked_loss(conditions, latents, given)
    gradients = golden.gradients(loss)
    close(conditions, given["z"], tolerance=1e-5)
    close(loss, given["loss"], tolerance=1e-5)
    close(gradients["proj_in.0.weight"], given["grad_proj_in_0_weight"], tolerance=1e-6)


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
    close(image, given["z_enc"], tolerance=1e-5)
    close(logits[valid], given["logits_tail"][valid], tolerance=1e-5)
    close(loss, given["loss"], tolerance=1e-5)
    close(gradients["proj_in.0.weight"], given["grad_proj_in_0_weight"], tolerance=1e-6)


def test_answering_gives_the_recorded_tokens(golden: Golden) -> None:
    given = golden.group("i2t")
    description = golden.record["tensors"]["i2t.greedy_new_tokens"]["desc"]
    num_text = int(re.search(r"(\d+) text ids", description).group(1))
    (question,) = dialogues(given["input_ids"][:1])
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


@dataclass(frozen=True)
class Run:
    """A recorded sampling run of B images."""

    given: Mapping[str, Tensor]
    arguments: Mapping[str, Any]
    plan: tuple[Iteration, ...]
    orders: Tensor

    @property
    def num_images(self) -> int:
        return len(self.orders)

    def revealing(self) -> Iterator[tuple[int, Iteration]]:
        """Yield the iterations that reveal cells, with their numbers in the record."""
        return ((index, step) for index, step in enumerate(self.plan) if step.remaining < step.hidden)

    def predicted(self, step: Iteration) -> Tensor:
        return self.orders[:, step.remaining : step.hidden].sort(dim=1).values

    def noise(self, index: int) -> Tensor:
        """Return the recorded noise [B, K, 1 + S, C] of an iteration, conditional rows only."""
        start = self.given[f"iter{index}.init_noise"]
        steps = self.given[f"iter{index}.step_noise"][:, : len(start)]
        rows = torch.cat([start.unsqueeze(0), steps]).transpose(0, 1)
        return rows.unflatten(0, (self.num_images, -1))

    def draws(self) -> Draws:
        """Return all recorded noise by cell."""
        first = self.noise(0)
        noise = torch.full((*self.orders.shape, *first.shape[2:]), math.nan)
        for index, step in self.revealing():
            noise[torch.arange(self.num_images).unsqueeze(1), self.predicted(step)] = self.noise(index)
        return Draws(self.orders, noise)


def recorded_run(golden: Golden, case: str) -> Run:
    given = golden.group(f"sample.{case}")
    arguments = golden.extra[f"sample.{case}.args"]
    rows, num_cells = given["orders"].shape
    plan = iterations(
        num_cells, arguments["num_iter"], cfg_scale=arguments["cfg"], cfg_schedule=arguments["cfg_schedule"]
    )
    return Run(given, arguments, plan, given["orders"][: rows if arguments["cfg"] == 1.0 else rows // 2])


def sampler(golden: Golden, run: Run) -> Sampler:
    ids, valid = run.given["input_ids"], run.given["attention_mask"].bool()
    prompts = Prompts(ids, valid, torch.zeros_like(valid))
    return Sampler(golden.model, prompts, range(len(ids)), grid=tuple(run.arguments["image_shape"]))


@pytest.fixture
def without_gradient() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.mark.usefixtures("without_gradient")
@pytest.mark.golden_cases("harmon", "sample")
def test_every_iteration_follows_the_recorded_one(golden: Golden, case: str) -> None:
    run = recorded_run(golden, case)
    drawing = sampler(golden, run)
    assert [step.guidance for step in run.plan] == pytest.approx(run.arguments["cfg_per_iter"])
    for index, step in run.revealing():
        given = {
            key: run.given[f"iter{index}.{key}"] for key in ("mask_in", "tokens_in", "z_full", "z_pred", "sampled")
        }
        visible = visible_indices(given["mask_in"].bool())[: run.num_images]
        assert torch.equal(visible, run.orders[:, step.hidden :].sort(dim=1).values)
        cells = given["tokens_in"].flatten(1, 2)[: run.num_images]
        close(drawing.conditions(cells, visible), given["z_full"], tolerance=1e-5)
        predicted = run.predicted(step)
        recorded = torch.full_like(given["z_full"], math.nan)
        copies = len(recorded) // run.num_images
        places = predicted.repeat(copies, 1)
        recorded[torch.arange(len(recorded)).unsqueeze(1), places] = given["z_pred"].unflatten(0, places.shape)
        revealed = drawing.reveal(
            recorded,
            predicted,
            run.noise(index),
            guidance=step.guidance,
            temperature=run.arguments["temperature"],
        )
        close(revealed.flatten(0, 1), given["sampled"][: predicted.numel()], tolerance=2e-4)


@pytest.mark.usefixtures("without_gradient")
@pytest.mark.golden_cases("harmon", "sample")
def test_a_whole_run_ends_in_the_recorded_image(golden: Golden, case: str) -> None:
    run = recorded_run(golden, case)
    latents = sampler(golden, run).run(run.plan, run.draws(), temperature=run.arguments["temperature"])
    close(latents, run.given["final_latents"][: run.num_images], tolerance=2e-2)
    close(golden.model.decode_latents(latents), run.given["image"], tolerance=2e-2)


def indexed(tables: Mapping[str, Any], name: str) -> dict[int, float]:
    """Read an entry like `betas[0,1,500]` as values by index."""
    key = next(key for key in tables if key.startswith(f"{name}["))
    return dict(zip(map(int, key[len(name) + 1 : -1].split(",")), tables[key], strict=True))


def test_the_noise_schedules_hold_the_recorded_values(golden: Golden) -> None:
    tables = golden.extra["diffusion_tables"]
    steps = training_steps()
    assert len(steps) == tables["train_T"]
    betas, kept = indexed(tables, "betas"), indexed(tables, "alphas_cumprod")
    assert {index: math.exp(steps[index].log_beta) for index in betas} == pytest.approx(betas, rel=1e-12)
    assert {index: steps[index].signal ** 2 for index in kept} == pytest.approx(kept, rel=1e-12)
    timesteps, respaced = sampling_steps(len(tables["timestep_map_100"]))
    assert list(timesteps) == tables["timestep_map_100"]
    here, _ = sampling_steps(golden.model.config.mar.diffusion.num_sampling_steps)
    assert list(here) == tables["timestep_map_this_config"]
    betas = indexed(tables, "respaced_100_betas")
    assert {index: math.exp(respaced[index].log_beta) for index in betas} == pytest.approx(betas, rel=1e-12)


def test_iterations_hide_the_recorded_numbers_of_cells(golden: Golden) -> None:
    for name, lengths in golden.extra["mask_len_schedule"].items():
        num_cells, num_steps = map(int, re.fullmatch(r"N(\d+)_iter(\d+)", name).groups())
        assert [step.hidden for step in iterations(num_cells, num_steps)] == lengths[:-1]


def test_masking_ratios_follow_the_recorded_draws(golden: Golden) -> None:
    recorded = golden.extra["mask_ratio_rvs_numpy_seed0"]
    uniform = torch.from_numpy(np.random.RandomState(0).uniform(size=len(recorded)))
    ratios = truncated_ratio(uniform, minimum=golden.model.config.mar.mask_ratio_min)
    assert ratios.tolist() == pytest.approx(recorded, rel=1e-9)
