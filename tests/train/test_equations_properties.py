"""What holds of Eqs. (3) to (12) for any caption and any image."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from steps import draws_of
from torch import Tensor

from segros_train import equations
from segros_train.methods.grounding import GroundingMap, GroundingOptions, grounding
from segros_train.types import Embeddings

quiet = GroundingOptions(noise_scale=0.0)
often = settings(max_examples=40, deadline=None, derandomize=True)


@dataclass(frozen=True)
class World:
    """A random batch: captions of unequal lengths, special tokens in front, padding behind."""

    lengths: tuple[int, ...]
    grid: tuple[int, int]
    seed: int

    def seen(self) -> Embeddings:
        rng = torch.Generator().manual_seed(self.seed)
        size, longest, width = len(self.lengths), max(self.lengths), 8
        text = torch.randn(size, longest + 2, width, generator=rng)
        places = torch.arange(longest + 2)
        valid = (places >= 1) & (places <= torch.tensor(self.lengths).unsqueeze(1))
        image = torch.randn(size, self.grid[0] * self.grid[1], width, generator=rng)
        return Embeddings(text, valid, image, self.grid, (self.grid[0] + 1, self.grid[1] + 2))


worlds = st.builds(
    World,
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=4).map(tuple),
    grid=st.tuples(st.integers(1, 6), st.integers(2, 6)),
    seed=st.integers(0, 2**31),
)


def map_of(seen: Embeddings, options: GroundingOptions = quiet) -> GroundingMap:
    return grounding(seen, options, draws=draws_of(len(seen.text)))


def assert_same(found: GroundingMap, expected: GroundingMap, length: int | None = None) -> None:
    for field in fields(GroundingMap):
        one, other = getattr(found, field.name), getattr(expected, field.name)
        if field.name in ("intra", "inter", "importance", "keep") and length is not None:
            one = one[:, :length]
        if field.name == "keep":
            assert torch.equal(one, other)
        else:
            # Sums over padded rows are taken in another order; scaled maps magnify that by at most their range.
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@often
@given(worlds)
def test_attention_rows_of_the_caption_sum_to_one(world: World) -> None:
    seen = world.seen()
    intra = equations.intra_modal_attention(seen.text, seen.text_valid, 0.07).sum(-1)
    torch.testing.assert_close(intra, seen.text_valid.float())
    inter = equations.inter_modal_attention(seen.image, seen.text, seen.text_valid, 0.07)
    torch.testing.assert_close(inter.sum(-1), torch.ones(inter.shape[:2]))
    assert not inter.masked_select(~seen.text_valid.unsqueeze(1)).any()
    grounded = equations.grounding_attention(seen.text, seen.image, 0.07)
    torch.testing.assert_close(grounded.sum(-1), torch.ones(grounded.shape[:2]))


@often
@given(worlds)
def test_affinities_and_scores_conserve_the_attention_they_gather(world: World) -> None:
    seen = world.seen()
    found = map_of(seen)
    attention = equations.intra_modal_attention(seen.text, seen.text_valid, quiet.temperature)
    kept_by_tokens_themselves = attention.diagonal(dim1=1, dim2=2).sum(-1)
    lengths = seen.text_valid.sum(-1).float()
    torch.testing.assert_close(found.intra.sum(-1) + kept_by_tokens_themselves, lengths)
    torch.testing.assert_close(found.inter.sum(-1), torch.full_like(lengths, seen.image.shape[1]))
    torch.testing.assert_close(found.scores.sum(-1), found.keep.sum(-1).float())


@often
@given(worlds)
def test_scaled_values_span_zero_to_one_and_keep_their_order(world: World) -> None:
    found = map_of(world.seen())
    assert torch.equal(found.normalised.amin(-1), torch.zeros(len(found.scores)))
    varies = found.scores.amax(-1) - found.scores.amin(-1) > equations.EQUAL * found.scores.amax(-1)
    torch.testing.assert_close(found.normalised.amax(-1), varies.float())
    assert torch.equal(found.normalised[varies].argmax(-1), found.scores[varies].argmax(-1))
    assert found.importance.min() >= 0
    assert found.importance.max() <= 2 + 1e-6


@often
@given(worlds, st.integers(1, 5))
def test_padding_a_prompt_changes_nothing(world: World, extra: int) -> None:
    seen = world.seen()
    padding = 100 * torch.ones(len(seen.text), extra, seen.text.shape[2])
    padded = replace(
        seen,
        text=torch.cat([seen.text, padding], dim=1),
        text_valid=torch.nn.functional.pad(seen.text_valid, (0, extra)),
    )
    found = map_of(padded)
    assert_same(found, map_of(seen), length=seen.text.shape[1])
    assert not found.keep[:, seen.text.shape[1] :].any()


@often
@given(worlds)
def test_what_special_tokens_and_padding_hold_changes_nothing(world: World) -> None:
    seen = world.seen()
    other = torch.where(seen.text_valid.unsqueeze(-1), seen.text, seen.image[:, :1])
    assert_same(map_of(replace(seen, text=other)), map_of(seen))


@often
@given(worlds)
def test_permuting_a_batch_permutes_its_map(world: World) -> None:
    seen = world.seen()
    order = torch.randperm(len(seen.text), generator=torch.Generator().manual_seed(world.seed))
    permuted = replace(seen, text=seen.text[order], text_valid=seen.text_valid[order], image=seen.image[order])
    expected = map_of(seen)
    assert_same(map_of(permuted), GroundingMap(*(getattr(expected, f.name)[order] for f in fields(GroundingMap))))


@often
@given(worlds)
def test_a_batch_of_unequal_lengths_equals_one_by_one(world: World) -> None:
    seen = world.seen()
    together = map_of(seen)
    for row, length in enumerate(world.lengths):
        places = slice(0, length + 1)
        alone = replace(
            seen,
            text=seen.text[row : row + 1, places],
            text_valid=seen.text_valid[row : row + 1, places],
            image=seen.image[row : row + 1],
        )
        row_of = GroundingMap(*(getattr(together, f.name)[row : row + 1] for f in fields(GroundingMap)))
        assert_same(row_of, map_of(alone), length=length + 1)


@often
@given(worlds, st.floats(0, 1))
def test_a_special_token_is_never_kept_and_a_caption_always_keeps_one(world: World, ratio: float) -> None:
    seen = world.seen()
    # The most tempting special tokens there are: copies of the image itself.
    tempting = torch.where(seen.text_valid.unsqueeze(-1), seen.text, seen.image.mean(1, keepdim=True))
    keep = map_of(replace(seen, text=tempting), replace(quiet, text_ratio=ratio)).keep
    assert not (keep & ~seen.text_valid).any()
    assert keep.any(-1).all()


@often
@given(worlds, st.floats(0.01, 100))
def test_the_length_of_an_embedding_does_not_count(world: World, scale: float) -> None:
    seen = world.seen()
    assert_same(map_of(replace(seen, text=seen.text * scale, image=seen.image / scale)), map_of(seen))


@often
@given(worlds)
def test_an_image_of_one_colour_has_a_flat_map(world: World) -> None:
    seen = world.seen()
    flat = map_of(replace(seen, image=seen.image[:, :1].expand_as(seen.image)))
    assert not flat.normalised.any()
    assert not flat.cells.any()


@often
@given(worlds)
def test_an_empty_caption_keeps_nothing_and_has_a_flat_map(world: World) -> None:
    seen = world.seen()
    empty = map_of(replace(seen, text_valid=torch.zeros_like(seen.text_valid)))
    for field in fields(GroundingMap):
        assert not getattr(empty, field.name).any(), field.name


@often
@given(worlds)
def test_bf16_inputs_are_computed_in_float32(world: World) -> None:
    seen = world.seen()
    narrow = replace(seen, text=seen.text.bfloat16(), image=seen.image.bfloat16())
    widened = replace(seen, text=narrow.text.float(), image=narrow.image.float())
    found = map_of(narrow)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = map_of(narrow)
    for field in fields(GroundingMap):
        value = getattr(found, field.name)
        assert value.dtype == (torch.bool if field.name == "keep" else torch.float32)
        assert torch.equal(value, getattr(map_of(widened), field.name)), field.name
        assert torch.equal(value, getattr(under_autocast, field.name)), field.name


def test_bf16_losses_are_computed_in_float32() -> None:
    rng = torch.Generator().manual_seed(0)
    logits, noise, predicted = (torch.randn(6, 5, generator=rng).bfloat16() for _ in range(3))
    codes = torch.randint(5, (6,), generator=rng)

    def losses(logits: Tensor, noise: Tensor, predicted: Tensor) -> list[Tensor]:
        return [equations.masked_token_nll(logits, codes), equations.masked_noise_error(noise, predicted)]

    for found, expected in zip(
        losses(logits, noise, predicted), losses(logits.float(), noise.float(), predicted.float()), strict=True
    ):
        assert found.dtype == torch.float32
        assert torch.equal(found, expected)
