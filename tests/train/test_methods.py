"""What each method shows, hides and scores."""

from __future__ import annotations

import runpy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from steps import draws_of
from torch import Generator, Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from segros_train import equations
from segros_train.draws import Draws
from segros_train.masking import indices_to_mask, resample_scores
from segros_train.method import Method, TrainTask
from segros_train.methods.grounding import GroundingOptions, grounding
from segros_train.methods.reca import Reca
from segros_train.methods.segros import SeGroS
from segros_train.methods.sft import SFT
from segros_train.types import Embeddings, Supervision

ROOT = Path(__file__).parent.parent.parent
GRID = (6, 6)
NUM = 36


def seed(value: int = 0, size: int = 3) -> Draws:
    return draws_of(size, value)


def world(*, latent_grid: tuple[int, int] = GRID, size: int = 3) -> Embeddings:
    """Random captions of 7, 5 and 3 tokens after one special token, and random images."""
    rng = Generator().manual_seed(11)
    lengths = torch.tensor([7, 5, 3])[:size].unsqueeze(1)
    places = torch.arange(8)
    return Embeddings(
        text=torch.randn(size, 8, 16, generator=rng),
        text_valid=(places >= 1) & (places <= lengths),
        image=torch.randn(size, NUM, 16, generator=rng),
        image_grid=GRID,
        latent_grid=latent_grid,
    )


def at(ratio: float, size: int = 3) -> Tensor:
    return torch.full((size,), ratio)


def masked(supervision: Supervision) -> Tensor:
    assert supervision.masked is not None
    return supervision.masked


def hint_mask(supervision: Supervision) -> Tensor:
    assert supervision.hints is not None
    return indices_to_mask(supervision.hints, NUM)


def declared() -> list[TrainTask]:
    """Return every train task of `tasks/train` that this part declares."""
    values: list[object] = []
    for name in ("methods", "ablations"):
        for value in runpy.run_path(str(ROOT / "tasks" / "train" / f"{name}.py")).values():
            values += value if isinstance(value, tuple) else [value]
    return [value for value in values if isinstance(value, TrainTask)]


@pytest.mark.parametrize("task", [task for task in declared() if task.method], ids=lambda task: task.name)
@pytest.mark.parametrize("latent_grid", [GRID, (4, 4), (9, 8)], ids=str)
@pytest.mark.parametrize("ratio", [None, 0.2, 0.85, 1.0])
def test_every_declared_method_gives_a_valid_supervision(
    task: TrainTask, latent_grid: tuple[int, int], ratio: float | None
) -> None:
    assert isinstance(task.method, Method)
    supervision = task.method.supervise(world(latent_grid=latent_grid), None if ratio is None else at(ratio), seed())
    supervision.check(num_visual=NUM, num_cells=latent_grid[0] * latent_grid[1])
    for mask in (supervision.masked, supervision.target):
        assert mask is None or mask.any(dim=-1).all()


def test_declarations_import_no_torch() -> None:
    code = (
        "import runpy, sys\n"
        "for name in ('methods', 'ablations'): runpy.run_path(f'tasks/train/{name}.py')\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_the_five_methods_carry_the_names_and_attention_of_the_paper() -> None:
    found = {task.name: (task.title, task.attention) for task in declared()}
    assert (
        found.items()
        >= {
            "none": ("w/o SFT", "native"),
            "sft": ("SFT", "native"),
            "reca": ("Reca", "native"),
            "segros": ("Ours", "paper"),
            "drop-loss": ("Ours (drop-loss)", "paper"),
        }.items()
    )


def test_no_two_declared_methods_are_the_same() -> None:
    tasks = declared()
    assert len({task.name for task in tasks}) == len(tasks)
    assert len({(task.method, task.attention) for task in tasks}) == len(tasks)


def test_fine_tuning_shows_the_caption_and_hides_the_native_share() -> None:
    supervision = SFT().supervise(world(latent_grid=(5, 5)), torch.tensor([0.2, 0.5, 1.0]), seed())
    assert supervision.caption
    assert supervision.hints is None
    assert supervision.target is None
    assert masked(supervision).sum(-1).tolist() == [5, 13, 25]


@pytest.mark.parametrize("method", [SFT(), Reca()])
def test_a_backbone_that_masks_nothing_is_left_alone(method: Method) -> None:
    assert method.supervise(world(), None, seed()).masked is None


def test_reca_shows_the_whole_image_and_no_caption() -> None:
    supervision = Reca().supervise(world(), at(0.7), seed())
    assert not supervision.caption
    assert supervision.hints is not None
    assert supervision.hints.tolist() == [list(range(NUM))] * 3
    assert masked(supervision).sum(-1).tolist() == [26] * 3


def test_filtered_reca_shows_the_hints_of_segros_and_masks_at_random() -> None:
    filtered = Reca(hint_ratio=0.3).supervise(world(), at(0.7), seed())
    ours = SeGroS().supervise(world(), at(0.7), seed())
    assert not filtered.caption
    assert torch.equal(hint_mask(filtered), hint_mask(ours))
    assert not torch.equal(masked(filtered), masked(ours))


def test_hints_are_the_best_grounded_patches_and_context_the_worst() -> None:
    method = SeGroS()
    ranking = grounding(world(), method, draws=seed()).perturbed
    supervision = method.supervise(world(), at(0.8), seed())
    for row in range(3):
        order = ranking[row].argsort(descending=True).tolist()
        assert hint_mask(supervision)[row].nonzero().flatten().tolist() == sorted(order[:10])
        assert masked(supervision)[row].nonzero().flatten().tolist() == sorted(order[:29])


@pytest.mark.parametrize("ratio", [0.3, 0.31, 0.7, 0.999, 1.0])
def test_no_hint_is_visible_while_the_hint_share_is_masked(ratio: float) -> None:
    supervision = SeGroS().supervise(world(), at(ratio), seed())
    assert not (hint_mask(supervision) & ~masked(supervision)).any()


def test_no_hint_is_visible_even_where_the_map_is_flat() -> None:
    flat = replace(world(), image=torch.ones(3, NUM, 16))
    supervision = SeGroS(noise_scale=0.0).supervise(flat, at(0.7), seed())
    assert not (hint_mask(supervision) & ~masked(supervision)).any()


def test_rows_may_be_masked_at_different_ratios() -> None:
    supervision = SeGroS().supervise(world(), torch.tensor([0.1, 0.5, 0.95]), seed())
    assert masked(supervision).sum(-1).tolist() == [4, 18, 35]


def test_a_backbone_without_a_schedule_takes_the_loss_on_a_fixed_top_share() -> None:
    method = SeGroS(unscheduled_masking_ratio=0.5)
    supervision = method.supervise(world(), None, seed())
    assert torch.equal(masked(supervision), masked(method.supervise(world(), at(0.5), seed())))


def test_swapped_ends_show_and_hide_the_other_half_of_the_map() -> None:
    half = at(0.5)
    ours = SeGroS(hint_ratio=0.5).supervise(world(), half, seed())
    swapped = SeGroS(hint_ratio=0.5, hints="bottom", visible="top").supervise(world(), half, seed())
    assert torch.equal(hint_mask(swapped), ~hint_mask(ours))
    assert torch.equal(masked(swapped), ~masked(ours))


def test_random_context_leaves_the_hints_and_masks_without_the_map() -> None:
    ours = SeGroS().supervise(world(), at(0.7), seed())
    found = SeGroS(visible="random").supervise(world(), at(0.7), seed())
    assert torch.equal(hint_mask(found), hint_mask(ours))
    assert masked(found).sum(-1).tolist() == [26] * 3
    assert (hint_mask(found) & ~masked(found)).any()


def test_a_hint_ratio_of_zero_shows_no_hints_and_keeps_the_mask() -> None:
    found = SeGroS(hint_ratio=0.0).supervise(world(), at(0.7), seed())
    assert found.hints is None
    assert torch.equal(masked(found), masked(SeGroS().supervise(world(), at(0.7), seed())))


def test_drop_loss_changes_the_target_alone_and_takes_it_on_the_hints() -> None:
    ours = SeGroS().supervise(world(), at(0.7), seed())
    found = replace(SeGroS(), drop_loss=True).supervise(world(), at(0.7), seed())
    assert torch.equal(hint_mask(found), hint_mask(ours))
    assert torch.equal(masked(found), masked(ours))
    assert ours.target is None
    assert found.target is not None
    assert torch.equal(found.target, hint_mask(found))


@pytest.mark.parametrize("ratio", [0.05, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("latent_grid", [GRID, (4, 4), (9, 8)], ids=str)
def test_the_drop_loss_target_is_never_empty_and_lies_within_the_mask(
    ratio: float, latent_grid: tuple[int, int]
) -> None:
    found = SeGroS(drop_loss=True).supervise(world(latent_grid=latent_grid), at(ratio), seed())
    assert found.target is not None
    assert found.target.any(-1).all()
    assert not (found.target & ~masked(found)).any()


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        (GroundingOptions(), "both"),
        (GroundingOptions(inter=False), "intra"),
        (GroundingOptions(intra=False), "inter"),
    ],
)
def test_the_text_filter_ranks_tokens_by_the_affinities_in_use(options: GroundingOptions, kept: str) -> None:
    seen = world(size=1)
    found = grounding(seen, options, draws=seed(size=1))

    def scaled(affinity: Tensor) -> Tensor:
        inside = affinity[seen.text_valid]
        return (inside - inside.min()) / (inside.max() - inside.min())

    parts = {"intra": scaled(found.intra), "inter": scaled(found.inter)}
    ranking = parts["intra"] + parts["inter"] if kept == "both" else parts[kept]
    assert set(found.keep[seen.text_valid].nonzero().flatten().tolist()) == set(ranking.topk(2).indices.tolist())


def test_without_either_affinity_every_caption_token_is_kept() -> None:
    found = grounding(world(), GroundingOptions(intra=False, inter=False), draws=seed())
    assert torch.equal(found.keep, world().text_valid)
    assert not found.importance.any()


def test_grids_that_agree_share_one_map_and_others_draw_their_own() -> None:
    shared = grounding(world(), GroundingOptions(), draws=seed())
    assert shared.cells is shared.perturbed
    apart = grounding(world(latent_grid=(3, 3)), GroundingOptions(), draws=seed())
    assert torch.equal(apart.perturbed, shared.perturbed)
    assert apart.cells.shape == (3, 9)
    resampled = equations.min_max(resample_scores(apart.scores, GRID, (3, 3)))
    own = seed().uniform("grounding map over cells", 9)
    torch.testing.assert_close(apart.cells, resampled + 0.5 * own)


def test_the_map_of_latent_cells_follows_the_map_of_the_image() -> None:
    seen = world(latent_grid=(3, 3), size=1)
    # The caption points at the lower right quarter of the image.
    image = seen.image.clone()
    corner = [row * 6 + column for row in range(3, 6) for column in range(3, 6)]
    image[:, corner] = seen.text[:, 1:8].mean(1, keepdim=True)
    supervision = SeGroS(noise_scale=0.0).supervise(replace(seen, image=image), at(0.11, 1), seed(size=1))
    assert masked(supervision).nonzero()[:, 1].tolist() == [8]


def test_without_noise_the_supervision_does_not_depend_on_the_draws() -> None:
    method = SeGroS(noise_scale=0.0)
    one, other = (method.supervise(world(), at(0.7), seed(value)) for value in (1, 2))
    assert torch.equal(hint_mask(one), hint_mask(other))
    assert torch.equal(masked(one), masked(other))


def test_noise_varies_the_regions_from_step_to_step() -> None:
    one, other = (SeGroS().supervise(world(), at(0.7), seed(value)) for value in (1, 2))
    assert not torch.equal(hint_mask(one), hint_mask(other))


def test_the_same_draws_give_the_same_supervision() -> None:
    one, other = (SeGroS().supervise(world(), at(0.7), seed(5)) for _ in range(2))
    assert torch.equal(hint_mask(one), hint_mask(other))
    assert torch.equal(masked(one), masked(other))


def test_no_gradient_reaches_the_embeddings() -> None:
    seen = world()
    watched = replace(seen, text=seen.text.requires_grad_(), image=seen.image.requires_grad_())
    assert not grounding(watched, SeGroS(), draws=seed()).perturbed.requires_grad


@pytest.mark.parametrize(
    ("method", "fields"),
    [
        (SeGroS, {"hint_ratio": 1.2}),
        (SeGroS, {"text_ratio": -0.1}),
        (SeGroS, {"temperature": 0.0}),
        (SeGroS, {"noise_scale": -1.0}),
        (SeGroS, {"noise_scale": float("nan")}),
        (SeGroS, {"hints": "random"}),
        (SeGroS, {"visible": "left"}),
        (SeGroS, {"unscheduled_masking_ratio": 2.0}),
        (SeGroS, {"drop_loss": True, "visible": "random"}),
        (SeGroS, {"drop_loss": True, "hint_ratio": 0.0}),
        (Reca, {"hint_ratio": 0.0}),
        (Reca, {"temperature": -1.0}),
    ],
)
def test_a_field_out_of_range_is_refused_by_name(method: type, fields: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(fields))):
        method(**fields)


@pytest.mark.parametrize("method", [SFT(), Reca(), Reca(hint_ratio=0.3), SeGroS(), SeGroS(drop_loss=True)])
@pytest.mark.parametrize("latent_grid", [GRID, (4, 4)], ids=str)
def test_a_method_never_waits_for_the_device(method: Method, latent_grid: tuple[int, int]) -> None:
    # Fake tensors have shapes and no values: reading one, as a wait for the device does, raises.
    with FakeTensorMode(allow_non_fake_inputs=True):
        seen = world(latent_grid=latent_grid)
        with pytest.raises(DataDependentOutputException):
            seen.image.sum().item()
        supervision = method.supervise(seen, at(0.7), seed())
    assert supervision.masked is not None
    assert supervision.masked.shape == (3, latent_grid[0] * latent_grid[1])
