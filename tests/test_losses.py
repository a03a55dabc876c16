"""Losses against closed forms and the reference package; gradients, precision and fake tensors."""

import math

import pytest
import torch
from darkroom import autocast, losses, metrics, perceptual
from torch._subclasses.fake_tensor import FakeTensorMode

PIXEL_AND_SSIM = ("l2", "l1", "charbonnier", "ssim")


@pytest.fixture
def pair():
    generator = torch.Generator().manual_seed(1)
    target = torch.rand(2, 3, 32, 40, generator=generator)
    noise = 0.1 * torch.randn(2, 3, 32, 40, generator=generator)
    return (target + noise).clamp(0, 1), target


@pytest.mark.parametrize("name", PIXEL_AND_SSIM)
def test_a_loss_is_one_number_an_image_and_does_not_mix_the_batch(name, pair):
    prediction, target = pair
    together = losses.LOSSES[name](prediction, target)
    apart = [losses.LOSSES[name](p[None], t[None]) for p, t in zip(*pair, strict=True)]
    assert together.shape == (2,)
    torch.testing.assert_close(together, torch.cat(apart), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", PIXEL_AND_SSIM)
def test_every_loss_has_a_gradient_that_points_downhill(name, pair):
    prediction, target = pair
    prediction.requires_grad_(True)
    before = losses.LOSSES[name](prediction, target)
    (gradient,) = torch.autograd.grad(before.sum(), prediction)
    assert gradient.abs().sum() > 0
    step = 1e-3 * gradient / gradient.abs().max()
    after = losses.LOSSES[name](prediction.detach() - step, target)
    assert (after < before).all()


def test_the_ssim_gradient_is_the_finite_difference(pair):
    prediction, target = (x[:1, :, :16, :16].double() for x in pair)
    window = autocast.off(prediction)  # double goes through the same code as float
    with window, pytest.MonkeyPatch.context() as patch:
        patch.setattr(losses, "_pair", lambda a, b: (a, b))
        assert torch.autograd.gradcheck(
            lambda x: losses.ssim(x, target), prediction.requires_grad_(True), atol=1e-6
        )


def test_pixel_losses_have_their_closed_forms():
    prediction, target = torch.full((1, 3, 4, 4), 0.75), torch.full((1, 3, 4, 4), 0.25)
    assert losses.l2(prediction, target).item() == pytest.approx(0.25)
    assert losses.l1(prediction, target).item() == pytest.approx(0.5)
    assert losses.charbonnier(prediction, target).item() == pytest.approx(math.hypot(0.5, 1e-3))
    assert losses.charbonnier(target, target).item() == pytest.approx(1e-3)


def test_ssim_loss_is_one_minus_the_metric_where_nothing_is_rounded(pair):
    expected = 1 - metrics.ssim_y(*pair, round_8bit=False)
    torch.testing.assert_close(losses.ssim(*pair).double(), expected, rtol=0, atol=2e-6)


def test_ssim_loss_reads_the_value_range(pair):
    prediction, target = pair
    wide = losses.ssim(prediction * 2 - 1, target * 2 - 1, value_range=(-1, 1))
    torch.testing.assert_close(wide, losses.ssim(prediction, target), rtol=0, atol=1e-6)
    assert losses.ssim(target, target).abs().max() < 1e-6


def test_ssim_loss_refuses_images_below_its_window():
    small = torch.zeros(1, 3, 10, 64)
    with pytest.raises(ValueError, match=r"at least 11x11 pixels, these are 10x64"):
        losses.ssim(small, small)


def test_a_loss_refuses_images_of_different_shapes():
    with pytest.raises(ValueError, match=r"\(1, 3, 8, 8\) and target \(1, 3, 8, 9\)"):
        losses.l2(torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 9))


@pytest.mark.parametrize("name", PIXEL_AND_SSIM)
def test_losses_stay_in_float32_under_autocast(name, pair):
    expected = losses.LOSSES[name](*pair)
    with torch.autocast("cpu", torch.bfloat16):
        found = losses.LOSSES[name](*pair)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_undecided_logits_cost_ln_2_a_level():
    logits = [torch.zeros(3, 1, s, s) for s in (32, 16, 8)] + [torch.zeros(3, 1)]
    four = torch.full((3,), 4 * math.log(2))
    torch.testing.assert_close(losses.gan_generator(logits), four)
    torch.testing.assert_close(losses.gan_discriminator(logits, logits), 2 * four)
    assert four[0].item() == pytest.approx(2.7726, abs=1e-4)


def test_the_smoothed_target_has_its_floor_at_2_0016():
    best = math.log(0.8 / 0.2)  # sigmoid(best) = 0.8
    logits = [torch.full((1, 1, s, s), best) for s in (4, 2, 1)] + [torch.full((1, 1), best)]
    assert losses.gan_generator(logits).item() == pytest.approx(2.0016, abs=1e-4)
    nudged = [x + 0.1 for x in logits]
    assert losses.gan_generator(nudged) > losses.gan_generator(logits)


def test_levels_are_summed_and_their_pixels_averaged():
    generator = torch.Generator().manual_seed(0)
    logits = [torch.randn(2, 1, s, s, generator=generator) for s in (6, 3)]
    expected = sum(
        -(0.8 * x.sigmoid().log() + 0.2 * (-x).sigmoid().log()).mean((1, 2, 3)) for x in logits
    )
    torch.testing.assert_close(losses.gan_generator(logits), expected)
    fake = sum(-(-x).sigmoid().log().mean((1, 2, 3)) for x in logits)
    torch.testing.assert_close(losses.gan_discriminator(logits, logits), expected + fake)


def test_every_loss_runs_and_differentiates_under_fake_tensors():
    with FakeTensorMode():
        prediction = torch.rand(2, 3, 32, 32, requires_grad=True)
        target = torch.rand(2, 3, 32, 32)
        for loss in losses.LOSSES.values():
            value = loss(prediction, target)
            assert value.shape == (2,)
            (gradient,) = torch.autograd.grad(value.sum(), prediction)
            assert gradient.shape == prediction.shape


@pytest.mark.parametrize("name", ["lpips", "vgg"])
def test_a_perceptual_loss_without_its_file_says_where_it_belongs(name, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    loss = losses.Perceptual(losses.LOSSES[name].build)
    place = tmp_path / "hub" / "checkpoints" / "vgg16-397923af.pth"
    with pytest.raises(perceptual.WeightsMissing, match="put it at") as caught:
        loss(torch.zeros(1, 3, 32, 32), torch.zeros(1, 3, 32, 32))
    assert str(place) in str(caught.value)


def test_a_perceptual_loss_refuses_a_file_with_another_content(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    place = tmp_path / "hub" / "checkpoints" / "vgg16-397923af.pth"
    place.parent.mkdir(parents=True)
    place.write_bytes(b"not the weights")
    with pytest.raises(perceptual.WeightsMissing, match="damaged or another file"):
        losses.Perceptual(losses.lpips.build)(torch.zeros(1, 3, 32, 32), torch.zeros(1, 3, 32, 32))


@pytest.fixture(scope="module")
def lpips_networks():
    """Our LPIPS and the lpips package's, with the same random trunk and the published heads."""
    from darkroom.torchvision_ops import ensure_torchvision

    ensure_torchvision()
    package = pytest.importorskip("lpips")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        reference = package.LPIPS(net="vgg", pnet_rand=True, verbose=False).eval()
    ours = perceptual.LPIPS(pretrained=False)
    weights = {k.rpartition(".")[0].rpartition(".")[2] + "." + k.rpartition(".")[2]: v
               for k, v in reference.net.state_dict().items()}  # fmt: skip
    ours.trunk.features.load_state_dict(weights)
    path = perceptual.lpips_heads().require("LPIPS")
    heads = torch.load(path, map_location="cpu", weights_only=True)
    for level in range(5):
        getattr(ours, f"head{level}").copy_(heads[f"lin{level}.model.1.weight"])
    return ours, reference


def test_lpips_equals_the_lpips_package_on_the_same_trunk(lpips_networks, pair):
    ours, reference = lpips_networks
    x, y = (image * 2 - 1 for image in pair)
    with torch.no_grad():
        expected = reference(x, y).flatten()
        found = ours(x, y)
    assert expected.min() > 0
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


def test_lpips_has_a_finite_gradient_also_on_black_images(lpips_networks):
    ours, _ = lpips_networks
    black = torch.full((1, 3, 32, 32), -1.0, requires_grad=True)
    for target in (torch.full((1, 3, 32, 32), -1.0), torch.zeros(1, 3, 32, 32)):
        (gradient,) = torch.autograd.grad(ours(black, target).sum(), black)
        assert gradient.isfinite().all()
    assert gradient.abs().sum() > 0


def test_building_a_network_leaves_the_global_random_state_alone():
    before = torch.random.get_rng_state()
    perceptual.FeatureDistance(pretrained=False)
    assert torch.equal(before, torch.random.get_rng_state())
