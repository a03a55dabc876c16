"""Noise schedule and one-step formulas against published numbers, diffusers and identities."""

import pytest
import torch
from darkroom import diffusion


@pytest.mark.parametrize(
    ("timestep", "alpha_bar"),
    [(100, 0.894223), (150, 0.827811), (200, 0.7536917), (250, 0.673792), (300, 0.590501)],
)
def test_alpha_bar_has_the_values_of_stable_diffusion(timestep, alpha_bar):
    assert diffusion.alpha_bars()[timestep].item() == pytest.approx(alpha_bar, abs=1e-6)


def test_the_one_step_coefficients_are_those_of_hypir():
    alpha_bar = float(diffusion.alpha_bars()[200])
    assert 1 / alpha_bar**0.5 == pytest.approx(1.1518691, abs=1e-6)
    assert ((1 - alpha_bar) / alpha_bar) ** 0.5 == pytest.approx(0.5716663, abs=1e-6)


def test_x0_and_the_schedule_equal_diffusers():
    from darkroom.torchvision_ops import ensure_torchvision

    ensure_torchvision()
    schedulers = pytest.importorskip("diffusers.schedulers")
    scheduler = schedulers.DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False
    )
    reference = scheduler.alphas_cumprod.double()
    torch.testing.assert_close(diffusion.alpha_bars(), reference, rtol=1e-5, atol=0)
    generator = torch.Generator().manual_seed(0)
    z, epsilon = torch.randn(2, 2, 4, 8, 8, generator=generator)
    expected = scheduler.step(epsilon, 200, z, generator=generator).pred_original_sample
    found = diffusion.one_step_x0(z, epsilon, float(diffusion.alpha_bars()[200]))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_epsilon_for_x0_inverts_one_step_x0():
    generator = torch.Generator().manual_seed(0)
    z, x0 = torch.randn(2, 3, 4, 8, 8, generator=generator, dtype=torch.float64)
    alpha_bar = diffusion.alpha_bars()[torch.tensor([50, 200, 999])].view(3, 1, 1, 1)
    epsilon = diffusion.epsilon_for_x0(z, x0, alpha_bar)
    torch.testing.assert_close(diffusion.one_step_x0(z, epsilon, alpha_bar), x0)
    torch.testing.assert_close(alpha_bar**0.5 * x0 + (1 - alpha_bar) ** 0.5 * epsilon, z)


def test_an_impossible_schedule_is_refused():
    with pytest.raises(ValueError, match="beta_start=0.1, beta_end=0.01"):
        diffusion.alpha_bars(beta_start=0.1, beta_end=0.01)
