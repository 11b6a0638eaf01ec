"""What a training step of Harmon keeps, and that keeping less changes no loss or gradient."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from harmon_tiny import NUM_CELLS, changed, generation_batch, instruction_batch, masks, rng, tiny_harmon
from steps import t2i_loss
from torch import Tensor, nn

from segros_train.backbone import Conditioning
from segros_train.backbones.harmon.adapter import Harmon
from segros_train.types import Checkpointing, Supervision

CAPTIONS = ("a red circle", "a big blue square .")
DIALOGUES = ((("is it red ?", "yes"),), (("what ?", "a circle"),))
EVERY_HINT = torch.arange(NUM_CELLS).expand(2, -1)
SUPERVISIONS = {
    "sft": Supervision(caption=True, masked=masks(2, 12)),
    "reca": Supervision(caption=False, hints=EVERY_HINT, masked=masks(2, 12)),
    "segros": Supervision(caption=True, hints=EVERY_HINT[:, ::3], masked=masks(2, 12), target=masks(2, 12)),
}
LOSSES: dict[str, Callable[[Harmon], Tensor]] = {
    name: lambda harmon, supervision=supervision: t2i_loss(harmon, generation_batch(*CAPTIONS), supervision)
    for name, supervision in SUPERVISIONS.items()
} | {"answers": lambda harmon: harmon.i2t_loss(instruction_batch(*DIALOGUES))}


@pytest.fixture(params=LOSSES)
def loss(request: pytest.FixtureRequest) -> Callable[[Harmon], Tensor]:
    return LOSSES[request.param]


def training(tmp_path: Path, checkpointing: Checkpointing, *, dropout: float = 0.0) -> Harmon:
    """Return a model in train mode whose diffusion head takes chunks of five rows."""
    harmon = tiny_harmon(tmp_path, changed(projection_dropout=dropout, attention_dropout=dropout)).train()
    harmon.configure(Conditioning(text_dropout=0.0))
    harmon.set_checkpointing(checkpointing)
    harmon.model.mar.diffloss.chunk = 5
    return harmon


def in_float64(harmon: Harmon) -> Harmon:
    """Put all but the autoencoder into float64, which reads its latents."""
    for part in (harmon.model.llm, harmon.model.mar, harmon.model.proj_in, harmon.model.proj_out):
        part.double()
    encode = harmon.model.encode_images
    harmon.model.encode_images = lambda images: encode(images).double()  # type: ignore[method-assign]
    return harmon


@pytest.mark.parametrize("checkpointing", ["blocks", "all"])
def test_recomputation_changes_neither_loss_nor_gradients_whatever_is_dropped_out(
    tmp_path: Path, loss: Callable[[Harmon], Tensor], checkpointing: Checkpointing
) -> None:
    found = []
    for mode in ("none", checkpointing):
        harmon = in_float64(training(tmp_path, mode, dropout=0.3))
        torch.manual_seed(1)
        value = loss(harmon)
        value.backward()
        gradients = {name: part.grad for name, part in harmon.named_parameters() if part.grad is not None}
        assert value.dtype == torch.float64
        found.append({"loss": value.detach(), **gradients})
    kept, recomputed = found
    assert kept.keys() == recomputed.keys()
    assert all(bool(value.count_nonzero()) for name, value in kept.items() if "diffloss" in name)
    for name, value in kept.items():
        torch.testing.assert_close(recomputed[name], value, rtol=1e-9, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("chunk", [1, 3, 7, 99])
def test_the_diffusion_loss_in_chunks_has_the_value_and_gradients_of_the_mean_over_rows(
    tmp_path: Path, chunk: int
) -> None:
    head = tiny_harmon(tmp_path).model.mar.diffloss.double()
    head.recompute, head.chunk = True, chunk
    conditions = torch.randn(7, head.net.cond_embed.in_features, dtype=torch.float64, generator=rng()).requires_grad_()
    cells = torch.randn(7, head.net.input_proj.in_features, generator=rng(1))
    # The first timestep has a loss of its own.
    timesteps = torch.tensor([[0, 999, 5, 0, 1, 250, 998], [7, 0, 500, 500, 1, 2, 3]])
    given = {"timesteps": timesteps, "noise": torch.randn(2, *cells.shape, generator=rng(2))}
    plain = head.row_losses(conditions, cells, **given).total.mean()
    chunked = head.loss(conditions, cells, **given)
    torch.testing.assert_close(chunked, plain, rtol=1e-12, atol=0)
    inputs = [conditions, *head.parameters()]
    for one, other in zip(torch.autograd.grad(chunked, inputs), torch.autograd.grad(plain, inputs), strict=True):
        assert bool(other.count_nonzero())
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def kept_bytes(loss: Callable[[], Tensor], model: nn.Module) -> int:
    """Return the bytes that the graph of a loss holds, weights left out."""
    weights = {part.untyped_storage().data_ptr() for part in model.parameters()}
    held: dict[int, Tensor] = {}

    def note(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            held[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        value = loss()
    assert value.requires_grad
    return sum(tensor.untyped_storage().nbytes() for tensor in held.values())


@pytest.mark.parametrize("name", ["segros", "answers"])
def test_each_degree_of_recomputation_keeps_less(tmp_path: Path, name: str) -> None:
    sizes = []
    for mode in ("none", "blocks", "all"):
        harmon = training(tmp_path, mode)
        # So small a model keeps mostly the table of its thousand timesteps.
        table = kept_bytes(harmon.model.mar.diffloss._training_times, harmon) if name == "segros" else 0
        sizes.append(kept_bytes(lambda harmon=harmon: LOSSES[name](harmon), harmon) - table)
    none, blocks, everything = sizes
    assert blocks < none / 2
    assert everything < blocks if name == "segros" else everything == blocks


def test_the_choice_can_be_taken_back(tmp_path: Path) -> None:
    sizes = []
    for modes in (("none",), ("all", "none")):
        harmon = training(tmp_path, modes[0])
        harmon.set_checkpointing(modes[-1])
        sizes.append(kept_bytes(lambda harmon=harmon: LOSSES["segros"](harmon), harmon))
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize("checkpointing", ["none", "all"])
def test_residual_streams_are_bf16_through_every_block_under_autocast(
    tmp_path: Path, loss: Callable[[Harmon], Tensor], checkpointing: Checkpointing
) -> None:
    harmon = training(tmp_path, checkpointing, dropout=0.3)
    mar, seen = harmon.model.mar, set()
    streams = {
        "language model": harmon.model.llm.model.layers,
        "encoder": mar.encoder_blocks,
        "decoder": mar.decoder_blocks,
        "diffusion head": mar.diffloss.net.res_blocks,
    }
    for name, blocks in streams.items():
        for index, block in enumerate(blocks):

            def note(_: nn.Module, given: tuple[Tensor, ...], output: Tensor, place: str = f"{name} {index}") -> None:
                seen.update((place, tensor.dtype) for tensor in (*given, output) if tensor.is_floating_point())

            block.register_forward_hook(note)
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(harmon)
    value.backward()
    read = {"language model", "encoder"} | ({"decoder", "diffusion head"} if loss is not LOSSES["answers"] else set())
    assert {place.rpartition(" ")[0] for place, _ in seen} == read
    assert {dtype for _, dtype in seen} == {torch.bfloat16}
    assert value.dtype == torch.float32


def test_images_are_encoded_a_few_at_a_time_as_all_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_harmon(tmp_path).model
    images = generation_batch(*CAPTIONS, "a red square").images
    at_once = model.encode_images(images)
    monkeypatch.setattr("segros_train.backbones.harmon.model.PIXELS_AT_ONCE", 2 * 16 * 16)
    torch.testing.assert_close(model.encode_images(images), at_once, rtol=0, atol=1e-5)
