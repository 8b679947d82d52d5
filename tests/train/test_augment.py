"""Augmentation keeps shapes and ranges, repeats with its seed, and does what each part says."""

import torch

from train import augment as module
from train.augment import crop_and_flip, middle, vary
from train.draws import BatchDraws
from train.parallel import Team


def draws(n: int, seed: int, team: Team | None = None) -> BatchDraws:
    return BatchDraws(torch.Generator().manual_seed(seed), n, team or Team())


def gradient(n: int = 64, size: int = 80) -> torch.Tensor:
    """Crops that are dark on the left and bright on the right."""
    return torch.linspace(0, 255, size).expand(n, 1, size, size)


def test_shapes_ranges_and_seed() -> None:
    first = vary(gradient(), 64, draws(64, 1))
    again = vary(gradient(), 64, draws(64, 1))
    other = vary(gradient(), 64, draws(64, 2))
    assert first.shape == (64, 1, 64, 64)
    assert first.min() >= 0
    assert first.max() <= 255
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_about_half_are_mirrored() -> None:
    crops = vary(gradient(400), 64, draws(400, 0))
    rises = crops[..., 48:].mean(dim=(1, 2, 3)) > crops[..., :16].mean(dim=(1, 2, 3))
    assert 0.4 < rises.float().mean() < 0.6


def test_moving_stays_near_the_middle() -> None:
    """A dot in the middle of the wide crop stays within the shift that is allowed."""
    crops = torch.zeros(100, 1, 80, 80)
    crops[:, :, 39:41, 39:41] = 255
    moved = module._move(crops, 64, draws(100, 0))
    weight = moved / moved.sum(dim=(2, 3), keepdim=True)
    steps = torch.arange(64.0)
    x = (weight.sum(dim=2) * steps).sum(dim=-1)
    assert (x - 31.5).abs().max() < 64 * module.SHIFT * 2 * 1.25
    assert x.std() > 1


def test_the_middle_is_what_annotation_would_cut() -> None:
    wide = torch.arange(80.0).expand(1, 1, 80, 80)
    assert middle(wide, 64)[0, 0, 0].tolist() == list(range(8, 72))


def test_coarsening_takes_detail_from_half() -> None:
    noise = torch.rand(64, 1, 64, 64, generator=torch.Generator().manual_seed(0)) * 255
    coarse = module._coarsen(noise, draws(64, 3))
    changed = (coarse != noise).flatten(1).any(dim=1)
    assert 20 <= changed.sum() <= 44
    assert coarse[changed].std() < noise.std()


def test_covering_hides_a_quarter_at_most_partly() -> None:
    crops = torch.full((400, 1, 64, 64), 300.0)  # brighter than any cover
    hidden = (module._cover(crops, draws(400, 0)) < 300).float().mean((1, 2, 3))
    assert 0.15 < (hidden > 0).float().mean() < 0.3
    assert hidden.max() <= 0.27


def test_the_papers_crop_and_flip() -> None:
    """Every crop is a window of its picture, mirrored or not; windows lie all over."""
    rng = torch.Generator().manual_seed(0)
    pictures = torch.randint(256, (200, 1, 12, 12), generator=rng, dtype=torch.uint8)
    crops = crop_and_flip(pictures, 8, draws(200, 0))
    assert crops.dtype == torch.uint8
    places, mirrored = set(), 0
    for picture, crop in zip(pictures, crops, strict=True):
        found = [
            (y, x, flips)
            for y in range(5) for x in range(5) for flips in (False, True)
            if torch.equal(crop.flip(-1) if flips else crop, picture[:, y : y + 8, x : x + 8])
        ]  # fmt: skip
        assert len(found) == 1
        places.add(found[0][:2])
        mirrored += found[0][2]
    assert len(places) == 25
    assert 70 < mirrored < 130


def test_processes_draw_what_one_would() -> None:
    noise = torch.rand(10, 1, 80, 80, generator=torch.Generator().manual_seed(0)) * 255
    for augment in (vary, crop_and_flip):
        whole = augment(noise, 64, draws(10, 5))
        for rank in range(2):
            team = Team(rank, 2)
            assert torch.equal(augment(noise[team.rows], 64, draws(10, 5, team)), whole[team.rows])
