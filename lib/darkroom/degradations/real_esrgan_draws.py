"""What is random about one Real-ESRGAN sample: the parameters, and one plain record of their draws.

Drawing is apart from applying, so that another implementation can apply the same draws. The
parameters are those of Wang et al. 2021; kernels are (k, k) float32 of sum 1, sizes are pixels.
"""

from dataclasses import dataclass, field

import numpy as np

from darkroom.degradations import kernels
from darkroom.degradations.fields import draw_seed
from darkroom.degradations.pixels import RESIZE_MODES

Range = tuple[float, float]


@dataclass(frozen=True)
class Blur:
    """How a stage draws its blur kernel."""

    probability: float = 1.0
    """Share of samples that are blurred in this stage."""
    sizes: tuple[int, ...] = (7, 9, 11, 13, 15, 17, 19, 21)
    """Supports (px), drawn uniformly."""
    sinc_probability: float = 0.1
    """Share of sinc low-pass filters; their cutoff is U(pi/3, pi) below 13 px, else U(pi/5, pi)."""
    families: tuple[tuple[str, float], ...] = (
        ("iso", 0.45),
        ("aniso", 0.25),
        ("generalized_iso", 0.12),
        ("generalized_aniso", 0.03),
        ("plateau_iso", 0.12),
        ("plateau_aniso", 0.03),
    )
    """The other kernels and their shares."""
    sigma: Range = (0.2, 3.0)
    """Standard deviation along each axis (px)."""
    rotation: Range = (-np.pi, np.pi)
    """Angle of the anisotropic kernels (radians)."""
    beta_generalized: Range = (0.5, 4.0)
    """Shape of generalised Gaussians: U(low, 1) or U(1, high), half each."""
    beta_plateau: Range = (1.0, 2.0)
    """Shape of plateau kernels: likewise."""


@dataclass(frozen=True)
class Resize:
    """How a stage draws its size; the mode is uniform over area, bilinear and bicubic."""

    up: float = 0.2
    """Share of samples that are enlarged."""
    down: float = 0.7
    """Share of samples that are shrunk; the rest keeps its size."""
    up_scale: Range = (1.0, 1.5)
    """Factor when enlarging."""
    down_scale: Range = (0.15, 1.0)
    """Factor when shrinking."""


@dataclass(frozen=True)
class Noise:
    """How a stage draws its noise: Gaussian or Poisson."""

    gaussian_probability: float = 0.5
    """Share of Gaussian noise; the rest is Poisson."""
    sigma: Range = (1.0, 30.0)
    """Standard deviation of Gaussian noise (levels of 255)."""
    poisson_scale: Range = (0.05, 3.0)
    """Factor on Poisson noise."""
    grey_probability: float = 0.4
    """Share of noise that is equal in the three channels."""


@dataclass(frozen=True)
class RealESRGAN:
    """Every parameter of the pipeline, at the values of Real-ESRGAN x4 with a sharpened target."""

    sharpen: bool = True
    """Whether the target is sharpened; the degradation starts from the target."""
    usm_size: int = 51
    """Support of the unsharp mask (px); its sigma is 0.15 size + 0.35 = 8.0."""
    usm_weight: float = 0.5
    """Share of the residual that is added."""
    usm_threshold: float = 10.0
    """Residual (levels of 255) above which a pixel is sharpened."""
    blur1: Blur = field(default_factory=Blur)
    resize1: Resize = field(default_factory=Resize)
    noise1: Noise = field(default_factory=Noise)
    quality1: Range = (30.0, 95.0)
    """JPEG quality of the first stage."""
    blur2: Blur = field(default_factory=lambda: Blur(probability=0.8, sigma=(0.2, 1.5)))
    resize2: Resize = field(
        default_factory=lambda: Resize(up=0.3, down=0.4, up_scale=(1.0, 1.2), down_scale=(0.3, 1.0))
    )
    """Relative to the second stage's size."""
    noise2: Noise = field(
        default_factory=lambda: Noise(sigma=(1.0, 25.0), poisson_scale=(0.05, 2.5))
    )
    quality2: Range = (30.0, 95.0)
    """JPEG quality of the second stage."""
    stage2_scale: float | Range = 4.0
    """What the sides are divided by for the second stage; a range is drawn from uniformly."""
    final_first_probability: float = 0.5
    """Share of samples resized and sinc-filtered before the last JPEG; the others after it."""
    final_sinc_probability: float = 0.8
    """Share of samples with a last sinc filter."""
    final_sinc_sizes: tuple[int, ...] = (7, 9, 11, 13, 15, 17, 19, 21)
    """Supports of the last sinc filter (px)."""
    final_sinc_cutoff: Range = (np.pi / 3, np.pi)
    """Its cutoff (radians a pixel)."""
    resize_back: bool = True
    """Whether lq is enlarged to gt's size (bicubic); without it lq has the second stage's size."""


@dataclass(frozen=True)
class ResizeDraw:
    """One resize: the output size (height, width) and the mode."""

    size: tuple[int, int]
    mode: str


@dataclass(frozen=True)
class NoiseDraw:
    """One noise: strength is sigma in [0, 1] for gaussian, a factor for poisson."""

    kind: str
    strength: float
    grey: bool
    seed: int


@dataclass(frozen=True)
class Draws:
    """All that is random about one sample; kernels are (k, k) float32, None where there is none."""

    kernel1: np.ndarray | None
    resize1: ResizeDraw
    noise1: NoiseDraw
    quality1: float
    kernel2: np.ndarray | None
    resize2: ResizeDraw
    noise2: NoiseDraw
    quality2: float
    final_first: bool
    final_resize: ResizeDraw
    final_kernel: np.ndarray | None


def draw(
    shape: tuple[int, int], generator: np.random.Generator, parameters: RealESRGAN | None = None
) -> Draws:
    """Draw what is random about one sample of (height, width)."""
    p = parameters or RealESRGAN()
    scale = p.stage2_scale if np.isscalar(p.stage2_scale) else generator.uniform(*p.stage2_scale)
    small = tuple(max(int(side / scale), 1) for side in shape)
    final_kernel = None
    if generator.random() < p.final_sinc_probability:
        size = int(generator.choice(p.final_sinc_sizes))
        final_kernel = kernels.sinc(size, generator.uniform(*p.final_sinc_cutoff))
    return Draws(
        kernel1=draw_kernel(p.blur1, generator),
        resize1=_draw_resize(p.resize1, shape, generator),
        noise1=_draw_noise(p.noise1, generator),
        quality1=float(generator.uniform(*p.quality1)),
        kernel2=draw_kernel(p.blur2, generator),
        resize2=_draw_resize(p.resize2, small, generator),
        noise2=_draw_noise(p.noise2, generator),
        quality2=float(generator.uniform(*p.quality2)),
        final_first=bool(generator.random() < p.final_first_probability),
        final_resize=ResizeDraw(small, str(generator.choice(RESIZE_MODES))),
        final_kernel=final_kernel,
    )


def draw_kernel(blur: Blur, generator: np.random.Generator) -> np.ndarray | None:
    """Draw one blur kernel, (k, k) float32 of sum 1, or None where the stage does not blur."""
    if generator.random() >= blur.probability:
        return None
    size = int(generator.choice(blur.sizes))
    if generator.random() < blur.sinc_probability:
        return kernels.sinc(size, generator.uniform(np.pi / (3 if size < 13 else 5), np.pi))
    names, shares = zip(*blur.families, strict=True)
    family = str(generator.choice(names, p=np.array(shares) / np.sum(shares)))
    sigma_x = sigma_y = generator.uniform(*blur.sigma)
    rotation = 0.0
    if family.endswith("aniso"):
        sigma_y, rotation = generator.uniform(*blur.sigma), generator.uniform(*blur.rotation)
    if family.startswith("plateau"):
        beta = _draw_beta(blur.beta_plateau, generator)
        return kernels.plateau(size, sigma_x, sigma_y, rotation, beta)
    beta = _draw_beta(blur.beta_generalized, generator) if family.startswith("gen") else 1.0
    return kernels.generalized_gaussian(size, sigma_x, sigma_y, rotation, beta)


def _draw_beta(beta: Range, generator: np.random.Generator) -> float:
    low, high = beta
    return generator.uniform(low, 1.0) if generator.random() < 0.5 else generator.uniform(1.0, high)


def _draw_resize(
    spec: Resize, shape: tuple[int, int], generator: np.random.Generator
) -> ResizeDraw:
    """Draw a size of whole pixels; edges map to edges, so lq stays aligned with gt."""
    where, scale = generator.random(), 1.0
    if where < spec.up:
        scale = generator.uniform(*spec.up_scale)
    elif where < spec.up + spec.down:
        scale = generator.uniform(*spec.down_scale)
    size = tuple(max(int(side * scale), 1) for side in shape)
    return ResizeDraw(size, str(generator.choice(RESIZE_MODES)))


def _draw_noise(spec: Noise, generator: np.random.Generator) -> NoiseDraw:
    if generator.random() < spec.gaussian_probability:
        kind, strength = "gaussian", generator.uniform(*spec.sigma) / 255
    else:
        kind, strength = "poisson", generator.uniform(*spec.poisson_scale)
    grey = bool(generator.random() < spec.grey_probability)
    return NoiseDraw(kind, float(strength), grey, draw_seed(generator))
