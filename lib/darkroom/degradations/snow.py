"""Snow: flakes of several sizes, blurred by their fall, under a light veil."""

import cv2
import numpy as np

from darkroom.degradations.fields import seeds, smooth

# A layer a row, far to near: flake radius (px), flakes a pixel at severity 1, opacity.
LAYERS = (
    (0.7, 0.0200, 0.80),
    (1.3, 0.0060, 0.90),
    (2.4, 0.0021, 0.95),
    (5.0, 0.00025, 0.60),
)
VEIL = 0.24  # largest share of airlight


def snow(image: np.ndarray, severity: float, generator: np.random.Generator) -> np.ndarray:
    """Cover the image with flakes: I = J' (1 - z) + C z, under a veil J' = J (1 - v) + A v.

    z is the opacity of flakes at several depths: far ones small and many, near ones large, few and
    out of focus, each smeared along its fall. C is nearly white. float32 (H, W, 3) in [0, 1].
    Source: Liu et al., "DesnowNet: Context-Aware Deep Network for Snow Removal", IEEE TIP 2018
    (translucent flakes of several sizes, veil; Snow100K).
    """
    shape = image.shape[:2]
    density = severity * (0.7 + 0.6 * generator.random()) + 0.1
    fall = 0.6 * generator.standard_normal()  # radians from the vertical
    speed = generator.random()
    clear = np.ones(shape, np.float32)
    for layer in LAYERS:
        clear *= 1.0 - flake_layer(shape, layer, density, fall, speed, generator)
    opacity = (1.0 - clear)[..., None]  # (H, W, 1)
    white = np.clip(0.93 + 0.03 * generator.standard_normal(3), 0.8, 1.0).astype(np.float32)
    veil = np.float32(VEIL * severity * (0.3 + 0.7 * generator.random()))
    mist = (veil * (1.0 + 0.25 * smooth(shape, (150.0, 700.0), generator)))[..., None]
    veiled = image + (np.float32(0.9) * white - image) * np.maximum(mist, 0.0)
    return veiled + (white - veiled) * opacity


def flake_layer(
    shape: tuple[int, int],
    layer: tuple[float, float, float],
    density: float,
    fall: float,
    speed: float,
    generator: np.random.Generator,
) -> np.ndarray:
    """Draw one depth's flakes as opacity: float32 (H, W) in [0, 1]."""
    radius, layer_density, opacity = layer
    margin = int(np.ceil(4 * radius)) + 4
    height, width = shape
    canvas = (height + 2 * margin, width + 2 * margin)
    total = np.zeros(canvas, np.float32)
    for size in (0.8, 1.25):  # flakes of one depth differ in size and shape
        field = seeds(canvas, density * layer_density / 2 / size, generator, low=0.5)
        kernel = flake_kernel(radius * size, fall, speed, generator)
        total += cv2.filter2D(field, -1, kernel, borderType=cv2.BORDER_CONSTANT)
    total = np.minimum(total, 1.0) * np.float32(opacity)
    return np.maximum(total[margin:-margin, margin:-margin], 0.0)


def flake_kernel(
    radius: float, fall: float, speed: float, generator: np.random.Generator
) -> np.ndarray:
    """Draw one flake: a soft ellipse, about 1 in its middle, smeared along its fall."""
    half = int(np.ceil(radius * (1.5 + speed))) + 1
    y, x = np.mgrid[-half : half + 1, -half : half + 1].astype(np.float32)
    angle = fall + 0.3 * generator.standard_normal()
    along = y * np.cos(angle) + x * np.sin(angle)
    across = x * np.cos(angle) - y * np.sin(angle)
    stretch = 1.0 + 0.8 * speed * generator.random()
    squeeze = 0.75 + 0.25 * generator.random()
    distance = np.sqrt((along / stretch) ** 2 + (across / squeeze) ** 2) / radius
    return np.clip(1.6 - 1.3 * distance**2, 0.0, 1.0) * np.float32(min(1.0, 0.5 + radius / 2))
