"""Diffusion in closed form: the noise schedule, the one-step estimate of x0, and its inverse.

z is a noisy (or degraded) latent, x0 the clean one, epsilon the noise between them:
z = sqrt(alpha_bar) x0 + sqrt(1 - alpha_bar) epsilon (Ho et al. 2020, arXiv 2006.11239, eq. 4).
"""
# B batch, C latent channels, H height, W width

from __future__ import annotations

import torch


def alpha_bars(
    num_steps: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012
) -> torch.Tensor:
    """Return alpha_bar of every timestep, (num_steps,) float64, of the "scaled linear" schedule.

    sqrt(beta) grows linearly; the defaults are Stable Diffusion's (Rombach et al. 2022,
    arXiv 2112.10752). Entry 200, which HYPIR uses, is 0.7536917.
    """
    if num_steps < 1 or not 0 < beta_start <= beta_end < 1:
        raise ValueError(
            f"no noise schedule has num_steps={num_steps}, beta_start={beta_start}, "
            f"beta_end={beta_end}: num_steps is at least 1 and 0 < beta_start <= beta_end < 1"
        )
    roots = torch.linspace(beta_start**0.5, beta_end**0.5, num_steps, dtype=torch.float64)
    return torch.cumprod(1 - roots**2, dim=0)


def one_step_x0(
    z: torch.Tensor, epsilon: torch.Tensor, alpha_bar: float | torch.Tensor
) -> torch.Tensor:
    """Estimate x0 from z (B, C, H, W) and the predicted epsilon of the same shape.

    Ho et al. 2020, eq. 15. HYPIR (arXiv 2507.20590) applies it once to the latent of the degraded
    image, to which no noise is added. alpha_bar is a number or broadcasts against z.
    """
    return (z - (1 - alpha_bar) ** 0.5 * epsilon) / alpha_bar**0.5


def epsilon_for_x0(
    z: torch.Tensor, x0: torch.Tensor, alpha_bar: float | torch.Tensor
) -> torch.Tensor:
    """Return the epsilon with which `one_step_x0` maps z to the given x0: its inverse."""
    return (z - alpha_bar**0.5 * x0) / (1 - alpha_bar) ** 0.5
