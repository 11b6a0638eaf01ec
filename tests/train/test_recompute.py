"""Recomputation changes memory, never a loss or gradient beyond the rounding of a sum."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from segros_train.backbones.common.recompute import residual_stream, run_blocks, sum_in_chunks


def gradients(loss: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    return list(torch.autograd.grad(loss, inputs))


def test_recomputed_blocks_draw_the_same_dropout_and_give_the_same_gradient() -> None:
    blocks = nn.ModuleList(nn.Sequential(nn.Linear(5, 5), nn.Dropout(0.5), nn.Tanh()) for _ in range(3)).double()
    x = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    found = []
    for recompute in (False, True):
        torch.manual_seed(0)
        loss = run_blocks(blocks, x, recompute=recompute).square().sum()
        found.append([loss.detach(), *gradients(loss, [x, *blocks.parameters()])])
    for plain, recomputed in zip(*found, strict=True):
        torch.testing.assert_close(recomputed, plain, rtol=0, atol=0)


@pytest.mark.parametrize("chunk", [1, 4, 10, 99])
@pytest.mark.parametrize("recompute", [False, True])
def test_a_sum_in_chunks_has_the_value_and_gradients_of_the_plain_sum(chunk: int, recompute: bool) -> None:
    head = nn.Linear(6, 11).double()
    states = torch.randn(10, 6, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(11, (10,))

    def loss(states: Tensor, labels: Tensor) -> Tensor:
        return nn.functional.cross_entropy(head(states), labels, reduction="sum")

    plain = loss(states, labels)
    chunked = sum_in_chunks(loss, states, labels, chunk=chunk, recompute=recompute)
    torch.testing.assert_close(chunked, plain, rtol=1e-12, atol=0)
    inputs = [states, *head.parameters()]
    for found, expected in zip(gradients(chunked, inputs), gradients(plain, inputs), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_a_recomputed_chunk_keeps_its_rows_alone() -> None:
    head, states = nn.Linear(8, 1000), torch.randn(64, 8, requires_grad=True)
    kept: list[int] = []

    def note(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        sum_in_chunks(lambda rows: head(rows).square().sum(), states, chunk=16)
    assert max(kept, default=0) <= 16 * 8


def test_the_residual_stream_takes_the_precision_of_autocast() -> None:
    x = torch.randn(2, 3)
    assert residual_stream(x) is x
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert residual_stream(x).dtype == torch.bfloat16
