"""Every equation by hand: with temperature 1 / ln 3 a softmax weighs a cosine c as 3 ** c."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from segros_train import equations

BASE_3 = 1 / math.log(3)


@pytest.fixture
def text() -> Tensor:
    """Three tokens along x, y and x, of lengths that normalisation must remove."""
    return torch.tensor([[[2.0, 0.0], [0.0, 0.5], [7.0, 0.0]]])


@pytest.fixture
def image() -> Tensor:
    """Three patches along x, y and against x."""
    return torch.tensor([[[3.0, 0.0], [0.0, 1.0], [-4.0, 0.0]]])


def valid(*row: int) -> Tensor:
    return torch.tensor([row], dtype=torch.bool)


def close(found: Tensor, expected: list) -> None:
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-6, atol=1e-7)


def test_a_token_attends_to_tokens_of_its_direction(text: Tensor) -> None:
    attention = equations.intra_modal_attention(text, valid(1, 1, 1), BASE_3)
    close(attention, [[[3 / 7, 1 / 7, 3 / 7], [1 / 5, 3 / 5, 1 / 5], [3 / 7, 1 / 7, 3 / 7]]])


def test_a_special_token_neither_attends_nor_is_attended_to(text: Tensor) -> None:
    attention = equations.intra_modal_attention(text, valid(1, 1, 0), BASE_3)
    close(attention, [[[3 / 4, 1 / 4, 0.0], [1 / 4, 3 / 4, 0.0], [0.0, 0.0, 0.0]]])


def test_a_token_gains_no_affinity_from_itself(text: Tensor) -> None:
    attention = equations.intra_modal_attention(text, valid(1, 1, 1), BASE_3)
    close(equations.intra_modal_affinity(attention, valid(1, 1, 1)), [[22 / 35, 2 / 7, 22 / 35]])


def test_affinity_counts_only_the_attention_of_caption_tokens() -> None:
    attention = torch.full((1, 3, 3), 0.25)
    close(equations.intra_modal_affinity(attention, valid(1, 1, 0)), [[0.25, 0.25, 0.0]])


def test_a_patch_attends_to_tokens_of_its_direction(image: Tensor, text: Tensor) -> None:
    attention = equations.inter_modal_attention(image, text, valid(1, 1, 1), BASE_3)
    close(attention, [[[3 / 7, 1 / 7, 3 / 7], [1 / 5, 3 / 5, 1 / 5], [1 / 5, 3 / 5, 1 / 5]]])


def test_a_token_gathers_the_attention_of_the_whole_image(image: Tensor, text: Tensor) -> None:
    attention = equations.inter_modal_attention(image, text, valid(1, 1, 1), BASE_3)
    close(equations.inter_modal_affinity(attention), [[29 / 35, 47 / 35, 29 / 35]])


def test_importance_adds_the_two_affinities_on_one_scale() -> None:
    intra, inter = torch.tensor([[1.0, 3.0, 2.0, 99.0]]), torch.tensor([[40.0, 20.0, 40.0, -99.0]])
    close(equations.importance(intra, inter, valid(1, 1, 1, 0)), [[1.0, 1.0, 1.5, 0.0]])


def test_a_constant_affinity_leaves_the_other_to_decide() -> None:
    inter = torch.tensor([[4.0, 2.0, 3.0]])
    close(equations.importance(torch.full((1, 3), 0.7), inter, valid(1, 1, 1)), [[1.0, 0.0, 0.5]])


@pytest.mark.parametrize(
    ("ratio", "kept"),
    [(0.0, [0, 0, 1, 0, 0]), (0.4, [0, 0, 1, 0, 0]), (0.5, [1, 0, 1, 0, 0]), (1.0, [1, 1, 1, 1, 0])],
)
def test_the_share_of_kept_tokens_is_floored_and_at_least_one(ratio: float, kept: list[int]) -> None:
    importance = torch.tensor([[0.8, 0.1, 1.9, 0.4, 2.0]])
    found = equations.discriminative_tokens(importance, valid(1, 1, 1, 1, 0), ratio)
    assert found.tolist() == valid(*kept).tolist()


def test_equally_important_tokens_are_kept_from_the_left() -> None:
    found = equations.discriminative_tokens(torch.ones(1, 5), valid(0, 1, 1, 1, 1), 0.5)
    assert found.tolist() == valid(0, 1, 1, 0, 0).tolist()


def test_four_tenths_of_five_tokens_are_two() -> None:
    found = equations.discriminative_tokens(torch.arange(5.0).unsqueeze(0), valid(1, 1, 1, 1, 1), 0.4)
    assert found.tolist() == valid(0, 0, 0, 1, 1).tolist()


def test_a_token_attends_to_patches_of_its_direction(text: Tensor, image: Tensor) -> None:
    attention = equations.grounding_attention(text[:, :2], image, BASE_3)
    close(attention, [[[9 / 13, 3 / 13, 1 / 13], [1 / 5, 3 / 5, 1 / 5]]])


def test_only_kept_tokens_ground_a_patch(text: Tensor, image: Tensor) -> None:
    attention = equations.grounding_attention(text, image, BASE_3)
    close(equations.grounding_scores(attention, valid(1, 0, 0)), [[9 / 13, 3 / 13, 1 / 13]])
    close(equations.grounding_scores(attention, valid(1, 1, 0)), [[9 / 13 + 1 / 5, 3 / 13 + 3 / 5, 1 / 13 + 1 / 5]])


def test_the_map_without_noise_is_the_scaled_scores() -> None:
    scores = torch.tensor([[9.0, 3.0, 1.0]])
    close(equations.perturbed_grounding_map(scores, 0.0, torch.rand(1, 3)), [[1.0, 0.25, 0.0]])


def test_the_noise_of_the_map_is_uniform_up_to_its_scale() -> None:
    scores = torch.tensor([[9.0, 3.0, 1.0]]).repeat(20_000, 1)
    uniform = torch.rand(scores.shape, generator=torch.Generator().manual_seed(0))
    noise = equations.perturbed_grounding_map(scores, 0.5, uniform) - torch.tensor([1.0, 0.25, 0.0])
    assert noise.min() >= -1e-6
    assert noise.max() <= 0.5 + 1e-6
    assert noise.mean().item() == pytest.approx(0.25, abs=0.002)
    assert noise.var().item() == pytest.approx(0.25 / 12, rel=0.02)


def test_the_objective_adds_the_weighted_understanding_loss() -> None:
    t2i, i2t = torch.tensor(2.0), torch.tensor(3.0)
    assert equations.joint_objective(t2i, i2t, 0.5).item() == 3.5


def test_a_weight_of_zero_takes_no_part_of_the_understanding_loss() -> None:
    assert equations.joint_objective(torch.tensor(2.0), None, 0.0).item() == 2.0
    assert equations.joint_objective(torch.tensor(2.0), torch.tensor(torch.nan), 0.0).item() == 2.0


def test_a_weighted_understanding_loss_must_be_given() -> None:
    with pytest.raises(ValueError, match="weight 1.0"):
        equations.joint_objective(torch.tensor(2.0), None, 1.0)


def test_a_target_code_costs_the_logarithm_of_its_probability() -> None:
    logits = torch.log(torch.tensor([[0.5, 0.25, 0.25], [0.2, 0.2, 0.6]])) + torch.tensor([[3.0], [-2.0]])
    close(equations.masked_token_nll(logits, torch.tensor([0, 2])), [-math.log(0.5), -math.log(0.6)])


def test_a_masked_code_becomes_the_code_of_the_mask() -> None:
    codes = torch.tensor([[4, 5, 6], [7, 8, 9]])
    found = equations.corrupted_latents(codes, valid(0, 1, 0).expand(2, 3), 99)
    assert found.tolist() == [[4, 99, 6], [7, 99, 9]]


def test_masked_cells_show_the_mask_embedding_and_pass_it_gradient() -> None:
    embedding = torch.tensor([9.0, 8.0], requires_grad=True)
    latents = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]])
    found = equations.corrupted_latents(latents, valid(0, 1, 1), embedding)
    assert found.tolist() == [[[1.0, 2.0], [9.0, 8.0], [9.0, 8.0]]]
    found.sum().backward()
    assert embedding.grad is not None
    assert embedding.grad.tolist() == [2.0, 2.0]


def test_the_noise_error_of_a_target_cell_is_the_mean_over_channels() -> None:
    noise, predicted = torch.tensor([[1.0, 2.0], [1.0, 1.0]]), torch.tensor([[1.0, 4.0], [0.0, 4.0]])
    close(equations.masked_noise_error(noise, predicted), [2.0, 5.0])
