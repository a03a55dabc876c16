"""Low light: a short exposure of a dark scene, with photon and read-out noise."""

import cv2
import numpy as np

from darkroom.degradations.fields import log_between, normal

# share of the light that remains, at severity 0 and 1, log-interpolated
EXPOSURE = (0.08, 0.004)
SHOT = (2e-5, 2e-4)  # variance per unit of light (Foi's a), log-uniform
READ = (1e-4, 8e-4)  # standard deviation in light (the root of Foi's b), log-uniform


def lowlight(image: np.ndarray, severity: float, generator: np.random.Generator) -> np.ndarray:
    """Expose too little: light times k with a cast, noise of variance a x + b, an encoding gamma.

    The image is taken to light (gamma 2.2), scaled, given Poisson-Gaussian noise in its normal
    approximation, clipped at black and encoded with a gamma of 1.8 to 2.4, so that
    shadows are crushed or lifted as cameras do. float32 (H, W, 3) in [0, 1].
    Sources: Foi et al., "Practical Poissonian-Gaussian Noise Modeling and Fitting for Single-Image
    Raw-Data", IEEE TIP 2008; Wei et al., "Deep Retinex Decomposition for Low-Light Enhancement",
    BMVC 2018 (LOL: exposure and gamma).
    """
    exposure = log_between(EXPOSURE, severity) * np.exp(0.3 * generator.standard_normal())
    shot = log_between(SHOT, generator.random())
    read = log_between(READ, generator.random())
    cast = exposure * (1.0 + 0.08 * generator.standard_normal(3))
    light = cv2.pow(image, 2.2) * cast.astype(np.float32)
    deviation = cv2.sqrt(light * np.float32(shot) + np.float32(read**2))
    light += deviation * normal(image.shape, generator)
    encoding = 1.8 + 0.6 * generator.random()
    return cv2.pow(np.maximum(light, 0.0), 1.0 / encoding)
