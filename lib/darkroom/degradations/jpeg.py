"""JPEG compression as arithmetic: the loss of a baseline 4:2:0 file, without writing one.

The quality is a real number, and the values between the steps are not rounded to 8 bits, as in the
differentiable JPEG that Real-ESRGAN uses (Shin & Song, "JPEG-resistant Adversarial Images", 2017).
"""

import cv2
import numpy as np

# ITU-T T.81, tables K.1 and K.2; rows are vertical frequencies.
LUMA = np.array(
    [
        [16, 11, 10, 16, 24, 40, 51, 61],
        [12, 12, 14, 19, 26, 58, 60, 55],
        [14, 13, 16, 24, 40, 57, 69, 56],
        [14, 17, 22, 29, 51, 87, 80, 62],
        [18, 22, 37, 56, 68, 109, 103, 77],
        [24, 35, 55, 64, 81, 104, 113, 92],
        [49, 64, 78, 87, 103, 121, 120, 101],
        [72, 92, 95, 98, 112, 100, 103, 99],
    ],
    np.float32,
)
CHROMA = np.full((8, 8), 99, np.float32)
CHROMA[:4, :4] = [[17, 18, 24, 47], [18, 21, 26, 66], [24, 26, 56, 99], [47, 66, 99, 99]]

LARGEST = np.float32(255.0)  # step of an 8-bit table

# Full-range BT.601 (JFIF), rows Y Cb Cr; levels shifted by 128 for luma here and chroma there.
TO_YCBCR = np.array(
    [
        [0.299, 0.587, 0.114],
        [-0.168736, -0.331264, 0.5],
        [0.5, -0.418688, -0.081312],
    ]
)
TO_RGB = np.array([[1.0, 0.0, 1.402], [1.0, -0.344136, -0.714136], [1.0, 1.772, 0.0]])

_FREQUENCY, _SAMPLE = np.mgrid[0:8, 0:8]
DCT = np.cos((2 * _SAMPLE + 1) * _FREQUENCY * np.pi / 16) / 2  # orthonormal DCT-II, D x
DCT[0] /= np.sqrt(2)
DCT = DCT.astype(np.float32)


def factor(quality: float) -> float:
    """Return what a quality in (0, 100] multiplies the quantisation tables by (IJG's rule)."""
    if not 0 < quality <= 100:
        raise ValueError(f"JPEG quality {quality} is outside (0, 100]")
    return (5000 / quality if quality < 50 else 200 - 2 * quality) / 100


def compress(image: np.ndarray, quality: float) -> np.ndarray:
    """Return the image as a JPEG file of that quality would: float32 (H, W, 3) in [0, 1].

    Sides are padded to multiples of 16 with black; chroma is averaged over 2 by 2 pixels. Steps end
    at 255, what a baseline file can hold, so even quality 1 keeps the mean of a block.
    """
    steps = np.float32(max(factor(quality), 1e-6))
    height, width = image.shape[:2]
    padded = cv2.copyMakeBorder(
        image, 0, -height % 16, 0, -width % 16, cv2.BORDER_CONSTANT, value=(0, 0, 0)
    )
    shift = np.array([[-128.0], [0.0], [0.0]])
    ycbcr = cv2.transform(padded, np.hstack([TO_YCBCR * 255, shift]).astype(np.float32))
    luma, *chroma = cv2.split(ycbcr)
    half = (luma.shape[1] // 2, luma.shape[0] // 2)
    planes = [_quantize_blocks(luma, np.minimum(LUMA * steps, LARGEST))]
    for plane in chroma:
        small = cv2.resize(plane, half, interpolation=cv2.INTER_AREA)  # exactly 2 by 2 means
        small = _quantize_blocks(small, np.minimum(CHROMA * steps, LARGEST))
        planes.append(cv2.resize(small, luma.shape[::-1], interpolation=cv2.INTER_NEAREST))
    shift = np.full((3, 1), 128 / 255)
    rgb = cv2.transform(cv2.merge(planes), np.hstack([TO_RGB / 255, shift]).astype(np.float32))
    return np.clip(rgb[:height, :width], np.float32(0.0), np.float32(1.0))


def _quantize_blocks(plane: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Take (H, W) to 8 by 8 DCT coefficients, round them to multiples of `table`, and go back."""
    height, width = plane.shape
    # One 8-row product, a transpose, another; the products are too small for BLAS to split over
    # threads, so the bytes do not depend on their number.
    half = cv2.transpose(np.matmul(DCT, plane.reshape(-1, 8, width)).reshape(height, width))
    full = np.matmul(DCT, half.reshape(-1, 8, height)).reshape(-1, 8, height // 8, 8)
    steps = table.T[:, None, :]  # (horizontal, 1, vertical)
    full = np.rint(full / steps) * steps
    back = np.matmul(DCT.T, full.reshape(-1, 8, height)).reshape(width, height)
    return np.matmul(DCT.T, cv2.transpose(back).reshape(-1, 8, width)).reshape(height, width)
