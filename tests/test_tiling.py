"""Tiling: weights, cover, batches of tiles, what travels with them, when pictures are tiled."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from darkroom import data, tiling
from darkroom.config import load_config
from darkroom.recipes import build
from small_runs import sections


def batch_of(height: int, width: int, count: int = 2) -> data.Batch:
    lq = torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(0))
    prompts = [f"prompt {n}" for n in range(count)]
    return data.Batch(lq, lq, prompts, [""] * count, [""] * count, list(range(count)))


@pytest.mark.parametrize("size", [1, 2, 5, 16, 17])
@pytest.mark.parametrize("multiple", [1, 8, 16])
def test_padding_reflects_as_numpy_does(size, multiple):
    image = torch.arange(3.0 * 4 * size).reshape(1, 3, 4, size)
    padded = tiling.pad_to_multiple(image, multiple)
    extra = [(0, 0), (0, 0), (0, -4 % multiple), (0, -size % multiple)]
    np.testing.assert_array_equal(padded, np.pad(image.numpy(), extra, mode="reflect"))


@pytest.mark.parametrize(("size", "tile", "overlap"), [(100, 32, 0.5), (33, 32, 0.25), (64, 64, 0)])
def test_tiles_cover_a_side_with_the_overlap_asked_for(size, tile, overlap):
    starts = tiling.starts(size, tile, overlap)
    assert starts[0] == 0 and starts[-1] + tile == size
    assert all(b - a <= tile * (1 - overlap) + 1 for a, b in zip(starts, starts[1:], strict=False))


def test_tiles_see_only_multiples_and_agree_with_the_whole_away_from_their_rims():
    blur = torch.nn.functional.avg_pool2d
    sizes = set()

    def restore(batch):
        sizes.add(tuple(batch.lq.shape[-2:]))
        return blur(torch.nn.functional.pad(batch.lq, (1, 1, 1, 1), mode="reflect"), 3, 1)

    batch = batch_of(90, 61)
    whole = tiling.restore_whole(restore, batch, 8)
    assert whole.shape == batch.lq.shape
    tiled = tiling.restore_tiled(restore, batch, 8, 35, 0.5)
    assert all(h % 8 == 0 and w % 8 == 0 for h, w in sizes)
    assert (tiled - whole).abs().max() < 0.05  # the rims of tiles have the least weight


def test_only_pictures_larger_than_a_tile_are_tiled(tmp_path):
    sides = []

    def restore(batch):
        sides.append(max(batch.lq.shape[-2:]))
        return batch.lq

    batch = batch_of(64, 96)
    for tile, expected in ((None, 96), ("auto", 96), (128, 96), (32, 32)):
        sides.clear()
        section = load_config(**sections(tmp_path, **{"restore.tile": tile})).restore
        found = tiling.restore_native(restore, batch, 8, section)
        assert set(sides) == {expected}
        torch.testing.assert_close(found, batch.lq, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [1, 2, 7, 64, 512, 1024])
def test_the_weights_are_a_gaussian_about_the_exact_middle_and_never_0(size):
    weights = tiling.gaussian_weights(size)
    assert weights.dtype == torch.float32
    assert torch.equal(weights, weights.flip(0))
    corner = weights[0] * weights[0]
    assert corner > 1e-12 and corner >= torch.finfo(torch.float32).tiny
    place = (np.arange(size) - (size - 1) / 2) / size
    np.testing.assert_allclose(weights, np.exp(-(place**2) / 0.02), rtol=1e-6)


@pytest.mark.parametrize(("height", "width"), [(77, 103), (40, 41), (39, 200), (41, 8)])
@pytest.mark.parametrize("overlap", [0, 0.25, 0.5, 0.8])
def test_a_pointwise_network_gives_the_same_tiled_or_whole(height, width, overlap):
    def restore(batch):
        return (batch.lq**2 + 0.1) / (1 + batch.lq)

    batch = batch_of(height, width)
    whole = tiling.restore_whole(restore, batch, 8)
    for tile_batch in (1, 3):
        tiled = tiling.restore_tiled(restore, batch, 8, 40, overlap, tile_batch)
        torch.testing.assert_close(tiled, whole, rtol=0, atol=1e-5)


@pytest.mark.parametrize("overlap", [0, 0.3, 0.5])
def test_a_constant_picture_stays_constant_up_to_its_corners(overlap):
    batch = batch_of(150, 131)
    batch = replace(batch, lq=torch.full_like(batch.lq, 0.37))
    tiled = tiling.restore_tiled(lambda b: b.lq, batch, 8, 64, overlap, 4)
    torch.testing.assert_close(tiled, batch.lq, rtol=0, atol=1e-6)
    assert torch.isfinite(tiled).all()


def test_the_middle_of_a_tile_counts_more_than_its_rim():
    # each tile returns its own number: at a tile's middle its number must prevail
    calls = iter(range(100))

    def restore(batch):
        return torch.full_like(batch.lq, float(next(calls)))

    tiled = tiling.restore_tiled(restore, batch_of(64, 160), 8, 64, 0.5, 1)
    lefts = tiling.starts(160, 64, 0.5)
    for number, left in enumerate(lefts):
        at_middle = tiled[0, 0, 32, left + 32]
        assert abs(at_middle - number) < 0.05
        assert 0 <= at_middle <= len(lefts) - 1


def test_the_result_does_not_depend_on_how_many_tiles_go_together(tmp_path):
    config = load_config(**sections(tmp_path, **{"model.recipe": "regression", "loss.gan": 0}))
    recipe = build(config)
    with torch.no_grad():
        for parameter in recipe.network.parameters():
            parameter += 0.02 * torch.randn(
                parameter.shape, generator=torch.Generator().manual_seed(1)
            )

    def restore(batch):
        return recipe.restore(batch, seed=0).image

    batch = batch_of(90, 130)
    one = tiling.restore_tiled(restore, batch, recipe.multiple, 48, 0.5, 1)
    assert (one - batch.lq).abs().max() > 1e-2  # the network does something
    for tile_batch in (2, 5, 64):
        many = tiling.restore_tiled(restore, batch, recipe.multiple, 48, 0.5, tile_batch)
        torch.testing.assert_close(many, one, rtol=0, atol=1e-6)


def test_tiles_take_prompts_and_draws_along_and_have_noise_of_their_own():
    batch = batch_of(60, 100)
    batch = replace(batch, draws={"gain": torch.tensor([[1.0], [2.0]])}, positions=[4, 9])

    def restore(part):
        assert len(part) == len(part.prompts) == len(part.positions) == len(part.images)
        assert part.prompts[:2] == batch.prompts
        noise = torch.stack(
            [
                torch.rand(part.lq.shape[1:], generator=data.torch_rng(3, position))
                for position in part.positions
            ]
        )
        gains = torch.tensor([1.0 + int(prompt[-1]) for prompt in part.prompts])
        torch.testing.assert_close(part.draws["gain"][:, 0], gains)
        return noise * gains[:, None, None, None]

    found = [tiling.restore_tiled(restore, batch, 4, 40, 0.5, n) for n in (1, 3)]
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-6)
    assert 0.95 < found[0][0].max() <= 1 < found[0][1].max() <= 2
    corners = found[0][0, :, :10, :10], found[0][0, :, -10:, -10:]
    assert not torch.allclose(*corners)


def test_restoration_never_sees_the_target():
    batch = replace(batch_of(40, 40), gt=torch.full((2, 3, 40, 40), 5.0))
    seen = []

    def restore(part):
        seen.append(float(part.gt.max()))
        return part.lq

    tiling.restore_whole(restore, batch, 16)
    tiling.restore_tiled(restore, batch, 16, 32, 0.5)
    assert max(seen) <= 1


def test_what_a_recipe_takes_whole_decides_what_auto_tiles(tmp_path):
    section = load_config(**sections(tmp_path)).restore
    assert section.tile == "auto"
    shapes = []

    def restore(batch):
        shapes.append(tuple(batch.lq.shape))
        return batch.lq

    batch = batch_of(100, 160, count=1)
    for auto_tile in (tiling.AUTO_TILE, 127):  # 127² = 16129 is more than 100 x 160
        shapes.clear()
        tiling.restore_native(restore, batch, 8, section, auto_tile)
        assert shapes == [(1, 3, 104, 160)]
    shapes.clear()
    found = tiling.restore_native(restore, batch, 8, section, 96, 4)
    assert {shape[-2:] for shape in shapes} == {(48, 48)}
    assert max(shape[0] for shape in shapes) == 4
    assert max(n * h * w for n, _, h, w in shapes) <= 96**2
    torch.testing.assert_close(found, batch.lq, rtol=0, atol=1e-6)


def test_a_tile_below_what_the_network_takes_is_refused():
    with pytest.raises(ValueError, match=r"restore.tile is 8; this model takes at least 16 pixels"):
        tiling.restore_tiled(lambda b: b.lq, batch_of(40, 40), 16, 8, 0.5)
