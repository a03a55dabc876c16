"""What happens to the ink and on the page: gaps, faded lines, glyphs, strokes, stains, speckle.

Images are float32 (H, W, 3) RGB in [0, 1], dark ink on light paper; results may leave the range.
"""

import cv2
import numpy as np

from darkroom.degradations.fields import draw_seed, normal, smooth, stream
from darkroom.degradations.levels import Levels, pick, pick_number

# easy, medium, hard
GAP_DENSITY: Levels = (((0.04, 0.06),), ((0.06, 0.12),), ((0.12, 0.18),))
FADING: Levels = (((0.1, 0.4),), ((0.3, 0.6),), ((0.5, 0.7),))
NUM_GLYPHS: Levels = (((1, 2),), ((2, 3),), ((3, 5),))
NUM_LINES: Levels = (((1, 2),), ((2, 3),), ((3, 5),))
SCAN_LINE_SHARE: Levels = (((0.05, 0.065),), ((0.06, 0.085),), ((0.08, 0.1),))
NOISE: Levels = (((0.08, 0.32),), ((0.32, 0.72),), ((0.72, 1.0),))
BACKGROUND: Levels = (((0.1, 0.2),), ((0.5, 0.7),), ((0.8, 1.0),))
# luminance, levels of 255: the lower it is, the more of a line is lost
THRESHOLD: Levels = (
    ((105.0, 75.0), (100.0, 70.0)),
    ((95.0, 65.0), (90.0, 60.0)),
    ((85.0, 55.0), (75.0, 45.0)),
)
BAND: Levels = (((0.2, 0.35),), ((0.35, 0.5),), ((0.45, 0.7),))  # share of the width
BAND_STRENGTH: Levels = (((0.1, 0.2),), ((0.3, 0.45),), ((0.4, 0.6),))

INK = 180 / 255  # darker is ink
LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601
GLYPHS = "ABCDEFGHKLMNPRSTXYZabdefhknrst0123456789%?"


def line_gaps(image: np.ndarray, severity: float, generator: np.random.Generator) -> np.ndarray:
    """Break the ink of three to six regions by gaps of one or two pixels."""
    return _gaps(image, pick(GAP_DENSITY, severity, generator), generator)


def fading(image: np.ndarray, severity: float, generator: np.random.Generator) -> np.ndarray:
    """Fade the ink unevenly and make its lines thinner."""
    strength = np.float32(pick(FADING, severity, generator))
    thin = image + 0.5 * strength * (cv2.dilate(image, np.ones((2, 2), np.uint8)) - image)
    uneven = np.clip(0.75 + 0.25 * smooth(image.shape[:2], (40.0, 300.0), generator), 0.3, 1.0)
    return thin + strength * uneven[..., None] * (paper(image) - thin)


def text(image: np.ndarray, severity: float, generator: np.random.Generator) -> np.ndarray:
    """Print some grey letters and digits at any place."""
    height, width = image.shape[:2]
    cover = np.zeros((height, width), np.uint8)
    for _ in range(pick_number(NUM_GLYPHS, severity, generator)):
        count = int(generator.integers(1, 4))
        word = "".join(GLYPHS[i] for i in generator.integers(len(GLYPHS), size=count))
        scale = 0.3 + 0.5 * generator.random()
        across, down = generator.random(2)
        (wide, tall), below = cv2.getTextSize(word, cv2.FONT_HERSHEY_SIMPLEX, scale, 1)
        left = round(across * max(width - wide, 0))
        base = tall + round(down * max(height - tall - below, 0))
        cv2.putText(cover, word, (left, base), cv2.FONT_HERSHEY_SIMPLEX, scale, 255, 1, cv2.LINE_AA)
    return _over(image, cover, 128 / 255)


def lines(image: np.ndarray, severity: float, generator: np.random.Generator) -> np.ndarray:
    """Draw some straight light grey strokes over the page, one or two pixels wide."""
    height, width = image.shape[:2]
    cover = np.zeros((height, width), np.uint8)
    for _ in range(pick_number(NUM_LINES, severity, generator)):
        ends = (generator.random((2, 2)) * (width, height)).astype(int).tolist()
        thickness = int(generator.integers(1, 3))
        cv2.line(cover, ends[0], ends[1], 255, thickness, cv2.LINE_AA)
    return _over(image, cover, 200 / 255)


def scan_lines(image: np.ndarray, severity: float, generator: np.random.Generator) -> np.ndarray:
    """Mix every third row with light grey, by at most a tenth."""
    share = np.float32(pick(SCAN_LINE_SHARE, severity, generator))
    result = image.copy()
    rows = result[int(generator.integers(3)) :: 3]
    rows += share * (np.float32(240 / 255) - rows)
    return result


def noise(image: np.ndarray, severity: float, generator: np.random.Generator) -> np.ndarray:
    """Print with noise: grey, up to 20 levels, and grey spots on up to one pixel of fifty."""
    strength = pick(NOISE, severity, generator)
    shape = (*image.shape[:2], 1)
    result = image + np.float32(20 / 255 * strength) * normal(shape, generator)
    source = stream(draw_seed(generator))
    spots = source.random(shape, dtype=np.float32) < 0.02 * strength
    grey = np.float32(180 / 255) + np.float32(40 / 255) * source.random(shape, dtype=np.float32)
    return np.where(spots, grey, result)


def background(image: np.ndarray, severity: float, generator: np.random.Generator) -> np.ndarray:
    """Darken the paper: a tint, stains, or a light from one side, each as often.

    A factor on what the paper reflects, so that ink stays ink and white has somewhere to go.
    """
    strength = pick(BACKGROUND, severity, generator)
    kind = generator.random()
    if kind < 1 / 3:
        depth = np.array([80, 70, 90]) / 255 * (0.3 + 0.7 * generator.random(3))
    elif kind < 2 / 3:
        depth = _stains(image.shape[:2], generator) * np.array([80, 70, 90]) / 255
    else:
        depth = _slope(image.shape[:2], generator)[..., None] * 100 / 255
    return image * (1.0 - strength * depth).astype(np.float32)


def threshold(image: np.ndarray, severity: float, generator: np.random.Generator) -> np.ndarray:
    """Make black of what is darker than a threshold and white of the rest."""
    limit = pick(THRESHOLD, severity, generator) / 255
    grey = image @ LUMINANCE
    return np.repeat((grey >= limit).astype(np.float32)[..., None], 3, axis=2)


def spectral(image: np.ndarray, severity: float, generator: np.random.Generator) -> np.ndarray:
    """Spoil a band of columns: thick ink, gaps, a smear along x, less contrast."""
    width = image.shape[1]
    strength = pick(BAND_STRENGTH, severity, generator)
    wide = max(round(pick(BAND, severity, generator) * width), 2)
    left = int(generator.integers(width - wide + 1)) if wide < width else 0
    ellipse = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (3, 3))
    thick = image + np.float32(strength) * (cv2.erode(image, ellipse) - image)
    broken = _gaps(cv2.GaussianBlur(thick, (3, 3), 0.8), 0.2 * strength, generator)
    taps = 2 * round((3 + 4 * strength) / 2) + 1
    smear = np.full((1, taps), 1 / taps, np.float32)
    spoilt = cv2.filter2D(broken, -1, smear, borderType=cv2.BORDER_REFLECT_101)
    mean = spoilt.mean(axis=(0, 1), keepdims=True)
    spoilt = mean + np.float32(1 - 0.3 * strength) * (spoilt - mean)
    columns = np.arange(width)
    inside = np.clip(np.minimum(columns - left, left + wide - 1 - columns) / 4 + 1, 0.0, 1.0)
    return image + inside.astype(np.float32)[None, :, None] * (spoilt - image)


def paper(image: np.ndarray) -> np.ndarray:
    """Return the paper's colour, (3,): what most of the lighter half of each channel has."""
    return np.quantile(image.reshape(-1, 3), 0.75, axis=0).astype(np.float32)


def _gaps(image: np.ndarray, density: float, generator: np.random.Generator) -> np.ndarray:
    """Blank a share of the ink in three to six regions around ink, at half to twice the density."""
    height, width = image.shape[:2]
    ink = image @ LUMINANCE < INK
    if not ink.any():
        return image
    places = np.argwhere(ink)  # regions lie around ink, and one gap at least is in it
    gaps = np.zeros((height, width), np.uint8)
    for _ in range(int(generator.integers(3, 7))):
        share = min(0.25, density * (0.5 + 1.5 * generator.random()))
        down, across = 0.2 + 0.3 * generator.random(2)
        tall, wide = max(round(down * height), 2), max(round(across * width), 2)
        y, x = places[int(generator.integers(len(places)))]
        top = int(np.clip(y - generator.integers(tall), 0, height - tall))
        left = int(np.clip(x - generator.integers(wide), 0, width - wide))
        gap = int(generator.integers(1, 3))  # px
        source = stream(draw_seed(generator))
        seeds = (source.random((tall, wide), dtype=np.float32) < share / gap**2).astype(np.uint8)
        region = gaps[top : top + tall, left : left + wide]
        np.maximum(region, cv2.dilate(seeds, np.ones((gap, gap), np.uint8)), out=region)
        gaps[y, x] = 1
    return np.where((ink & (gaps > 0))[..., None], paper(image), image)


def _over(image: np.ndarray, cover: np.ndarray, grey: float) -> np.ndarray:
    """Lay a grey over the image where `cover`, (H, W) uint8, says how much of it."""
    share = (cover.astype(np.float32) / np.float32(255))[..., None]
    return image + share * (np.float32(grey) - image)


def _stains(shape: tuple[int, int], generator: np.random.Generator) -> np.ndarray:
    """Draw three to eight round stains with soft edges: (H, W, 1), 0 to 1."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    depth = np.zeros(shape)
    for _ in range(int(generator.integers(3, 9))):
        radius = (0.12 + 0.3 * generator.random()) * min(shape)
        top, left = generator.random(2) * shape
        weight = 0.4 + 0.6 * generator.random()
        square = ((y - top) ** 2 + (x - left) ** 2) / radius**2
        depth = np.maximum(depth, weight * np.exp(-0.5 * square))
    return depth[..., None]


def _slope(shape: tuple[int, int], generator: np.random.Generator) -> np.ndarray:
    """Draw a plane from 0 to at most 1 over the image, in one of many directions: (H, W)."""
    angle = 2 * np.pi * generator.random()
    y, x = (np.linspace(-0.5, 0.5, n) for n in shape)
    plane = np.sin(angle) * y[:, None] + np.cos(angle) * x[None, :]
    return (0.6 + 0.4 * generator.random()) * (plane - plane.min()) / np.ptp(plane)
