"""Rain: layers of streaks at several depths, and the veil of drops too far to be seen singly."""

import cv2
import numpy as np

from darkroom.degradations.fields import seeds, smooth

# A layer a row, far to near: streak length and width (px), streaks a pixel at severity 1,
# brightness.
LAYERS = (
    (12.0, 0.5, 0.0160, 0.50),
    (26.0, 0.6, 0.0090, 0.80),
    (48.0, 0.75, 0.0050, 1.00),
    (80.0, 1.1, 0.0012, 0.90),
)
VEIL = 0.30  # largest share of airlight


def rain(image: np.ndarray, severity: float, generator: np.random.Generator) -> np.ndarray:
    """Lay streaks over a veiled image: I = J' + (L - J') s, J' = J (1 - v) + A v.

    A drop moves during the exposure and becomes a bright, translucent streak; near drops give few
    long wide ones, far drops many short thin ones and, at last, a veil. One wind direction holds
    for all layers, within a few degrees. float32 (H, W, 3) in [0, 1].
    Sources: Garg & Nayar, "Vision and Rain", IJCV 2007 (streaks by depth and exposure); Yang et
    al., "Deep Joint Rain Detection and Removal from a Single Image", CVPR 2017 (layers and
    accumulation; Rain100H/L).
    """
    shape = image.shape[:2]
    slant = 14.0 * generator.standard_normal()  # degrees from the vertical
    density = severity * (0.7 + 0.6 * generator.random()) + 0.04
    streaks = np.zeros(shape, np.float32)
    for layer in LAYERS:
        streaks += streak_layer(shape, layer, density, slant, generator)
    opacity = np.minimum(streaks, 0.9)[..., None]  # (H, W, 1)
    light = np.float32(0.8 + 0.2 * generator.random())
    veil = np.float32(VEIL * severity * generator.random())
    mist = (veil * (1.0 + 0.25 * smooth(shape, (150.0, 700.0), generator)))[..., None]
    veiled = image + (np.float32(0.85) * light - image) * np.maximum(mist, 0.0)
    return veiled + (light - veiled) * opacity


def streak_layer(
    shape: tuple[int, int],
    layer: tuple[float, float, float, float],
    density: float,
    slant: float,
    generator: np.random.Generator,
) -> np.ndarray:
    """Draw one depth's streaks: float32 (H, W), 0 where there is none, about 1 where bright.

    Seeds are smeared along a vertical and the canvas is turned by the wind's angle, which costs
    the same at every length.
    """
    length, width, layer_density, brightness = layer
    length *= 0.8 + 0.4 * generator.random()
    angle = np.deg2rad(slant + 2.0 * generator.standard_normal())
    height, breadth = shape
    sine, cosine = abs(np.sin(angle)), np.cos(angle)
    canvas_height = int(np.ceil(height * cosine + breadth * sine)) + 8
    canvas_width = int(np.ceil(breadth * cosine + height * sine)) + 8
    margin = int(np.ceil(length))
    field = seeds((canvas_height + 2 * margin, canvas_width), density * layer_density, generator)
    taps = int(max(3, round(0.7 * length)))
    # two boxes give the trapezoid that a drop's entry and exit leave
    field = cv2.blur(field, (1, taps), borderType=cv2.BORDER_CONSTANT)
    field = cv2.blur(field, (1, max(1, taps // 2)), borderType=cv2.BORDER_CONSTANT)[margin:-margin]
    field = cv2.GaussianBlur(field, (0, 0), sigmaX=width, sigmaY=0.3)
    gain = brightness * taps * width * np.sqrt(2 * np.pi) * 0.8
    turn = np.array(
        [
            [np.cos(angle), -np.sin(angle), canvas_width / 2],
            [np.sin(angle), np.cos(angle), canvas_height / 2],
        ]
    )
    turn[:, 2] -= turn[:, :2] @ (breadth / 2, height / 2)
    return cv2.warpAffine(
        field * np.float32(gain),
        turn,
        (breadth, height),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REFLECT_101,
    )
