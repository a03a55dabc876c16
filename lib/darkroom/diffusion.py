"""Diffusion in closed form: the noise schedule, the one-step estimate of x0, and its inverse.

z is a noisy (or degraded) latent, x0 the clean one, epsilon the noise between them:
z = sqrt(alpha_bar) x0 + sqrt(1 - alpha_bar) epsilon (Ho et al. 2020, arXiv 2006.11239, eq. 4).
"""
# B batch, C latent channels, H height, W width

from __future__ import annotations

import torch


def alpha_bars(
    num_steps: int = 1000,
    beta_start: float = 0.00085,
    beta_end: float = 0.012,
    kind: str = "scaled_linear",
) -> torch.Tensor:
    """Return alpha_bar of every timestep, (num_steps,) float64, of a noise schedule.

    In "scaled_linear" sqrt(beta) grows linearly; the defaults are Stable Diffusion's (Rombach et
    al. 2022, arXiv 2112.10752). Entry 200, which HYPIR uses, is 0.7536917. In "linear" beta grows
    linearly (Ho et al. 2020); "cosine" (Nichol and Dhariwal 2021, arXiv 2102.09672, eq. 17) has no
    beta_start and beta_end.
    """
    if kind == "cosine":
        place = torch.linspace(0, 1, num_steps + 1, dtype=torch.float64)
        curve = torch.cos((place + 0.008) / 1.008 * torch.pi / 2).square()
        return torch.cumprod((curve[1:] / curve[:-1]).clamp_min(1e-3), dim=0)
    if num_steps < 1 or not 0 < beta_start <= beta_end < 1:
        raise ValueError(
            f"no noise schedule has num_steps={num_steps}, beta_start={beta_start}, "
            f"beta_end={beta_end}: num_steps is at least 1 and 0 < beta_start <= beta_end < 1"
        )
    if kind == "linear":
        betas = torch.linspace(beta_start, beta_end, num_steps, dtype=torch.float64)
        return torch.cumprod(1 - betas, dim=0)
    if kind != "scaled_linear":
        raise ValueError(f"no noise schedule is called {kind!r}: linear, scaled_linear or cosine")
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


def estimate(
    noisy: torch.Tensor, output: torch.Tensor, alpha_bar: float | torch.Tensor, prediction: str
) -> torch.Tensor:
    """Return x0 from the noisy image and what a network predicts: "epsilon", "v" or "x0".

    v = sqrt(alpha_bar) epsilon - sqrt(1 - alpha_bar) x0 (Salimans and Ho 2022, arXiv 2202.00512).
    """
    if prediction == "epsilon":
        return one_step_x0(noisy, output, alpha_bar)
    if prediction == "v":
        return alpha_bar**0.5 * noisy - (1 - alpha_bar) ** 0.5 * output
    return output


def target(
    x0: torch.Tensor, epsilon: torch.Tensor, alpha_bar: float | torch.Tensor, prediction: str
) -> torch.Tensor:
    """Return what a network that predicts "epsilon", "v" or "x0" should return."""
    if prediction == "epsilon":
        return epsilon
    if prediction == "v":
        return alpha_bar**0.5 * epsilon - (1 - alpha_bar) ** 0.5 * x0
    return x0


def trailing(num_steps: int, of: int = 1000) -> list[int]:
    """Return the timesteps of a sampler, descending from the last, evenly spaced.

    "Trailing" as in Lin et al. 2023 (arXiv 2305.08891): the first is the noisiest there is.
    ValueError where there are not that many.
    """
    if not 1 <= num_steps <= of:
        raise ValueError(f"num_steps is {num_steps}: a schedule of {of} has 1 to {of}")
    return [round(of * (num_steps - n) / num_steps) - 1 for n in range(num_steps)]


def ddim(predict, noise: torch.Tensor, bars: list[float], num_steps: int, limit: float | None):
    """Return x0 from pure noise by DDIM without added noise (Song et al. 2021, arXiv 2010.02502).

    `predict(noisy, timestep, alpha_bar)` returns x0; `bars` is alpha_bar of every timestep of the
    training. With `limit` every estimate is clamped to [-limit, limit], and its epsilon follows.
    """
    x, steps = noise, trailing(num_steps, len(bars))
    for timestep, after in zip(steps, [*steps[1:], None], strict=True):
        bar, next_bar = bars[timestep], 1.0 if after is None else bars[after]
        x0 = predict(x, timestep, bar)
        if limit is not None:
            x0 = x0.clamp(-limit, limit)
        epsilon = epsilon_for_x0(x, x0, bar)
        x = next_bar**0.5 * x0 + (1 - next_bar) ** 0.5 * epsilon
    return x
