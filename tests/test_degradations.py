"""The five types are pure, sized right, as hard as public sets, and made of sound kernels."""

import cv2
import numpy as np
import pytest
from darkroom.degradations import FIVE_TYPES, degrade, draw_severity, kernels
from darkroom.degradations.blur import blur_kernel
from darkroom.degradations.fields import seeds, smooth
from darkroom.degradations.haze import depth
from darkroom.degradations.pixels import quantize
from darkroom.images import read_image
from darkroom.photographs import PHOTOGRAPHS

# Mean PSNR-Y (dB) of untouched inputs in public paired sets: GoPro/REDS/Levin, SOTS, LOL,
# Rain100H/L and DDN, Snow100K's masks.
RANGES = {
    "Blur": (22, 28),
    "Haze": (12, 18),
    "Lowlight": (7, 12),
    "Rain": (15, 25),
    "Snow": (18, 25),
}


def photographs(*names, split=None):
    """Load embedded photographs (at most the first 512 by 512) by name or by split."""
    chosen = [p for p in PHOTOGRAPHS if p.name in names or p.split == split]
    return [read_image(p.path)[:512, :512] / np.float32(255) for p in chosen]


def psnr_y(x, y):
    difference = (np.rint(x * 255) - np.rint(y * 255)) @ np.array([65.481, 128.553, 24.966]) / 255
    return 10 * np.log10(255**2 / max(np.mean(difference**2), 1e-3))


def mean_psnr(kind, severities, images):
    return np.mean(
        [
            psnr_y(degrade(image, kind, severity, np.random.default_rng([i, j])), image)
            for i, image in enumerate(images)
            for j, severity in enumerate(severities)
        ]
    )


@pytest.fixture(scope="module")
def images():
    return photographs("astronaut", "coffee", "ihc", "brick")


@pytest.mark.parametrize("kind", FIVE_TYPES)
def test_the_same_generator_state_gives_the_same_bytes_and_leaves_the_input(kind, images):
    before = images[1].copy()
    threads = cv2.getNumThreads()
    try:
        cv2.setNumThreads(1)
        first = degrade(images[1], kind, 0.7, np.random.default_rng(3))
        cv2.setNumThreads(4)
        second = degrade(images[1], kind, 0.7, np.random.default_rng(3))
    finally:
        cv2.setNumThreads(threads)
    other = degrade(images[1], kind, 0.7, np.random.default_rng(4))
    assert first.tobytes() == second.tobytes()
    assert first.tobytes() != other.tobytes()
    assert np.array_equal(images[1], before)


@pytest.mark.parametrize("kind", FIVE_TYPES)
def test_global_random_state_has_no_part(kind, images):
    image = np.ascontiguousarray(images[0][:64, :64])
    np.random.seed(0)  # noqa: NPY002
    cv2.setRNGSeed(0)
    first = degrade(image, kind, 0.5, np.random.default_rng(1))
    np.random.seed(1)  # noqa: NPY002
    cv2.setRNGSeed(1)
    assert first.tobytes() == degrade(image, kind, 0.5, np.random.default_rng(1)).tobytes()


@pytest.mark.parametrize("kind", FIVE_TYPES)
@pytest.mark.parametrize("shape", [(16, 16), (16, 700), (97, 41), (600, 530)])
@pytest.mark.parametrize("severity", [0.0, 1.0])
def test_every_size_gives_finite_8_bit_levels_of_the_same_size(kind, shape, severity):
    image = np.random.default_rng(0).random((*shape, 3), dtype=np.float32)
    lq = degrade(image, kind, severity, np.random.default_rng(5))
    assert lq.dtype == np.float32 and lq.shape == image.shape
    assert np.isfinite(lq).all() and lq.min() >= 0 and lq.max() <= 1
    np.testing.assert_allclose(lq * 255, np.rint(lq * 255), atol=1e-4)
    if severity == 1.0:  # the mildest rain may spare a small window
        assert not np.array_equal(lq, quantize(image))


@pytest.mark.parametrize("kind", FIVE_TYPES)
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_black_and_white_images_stay_in_range(kind, value):
    image = np.full((40, 40, 3), value, np.float32)
    for seed in range(10):
        lq = degrade(image, kind, 1.0, np.random.default_rng(seed))
        assert np.isfinite(lq).all() and lq.min() >= 0 and lq.max() <= 1


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("kind", FIVE_TYPES)
def test_an_untouched_result_scores_as_in_public_sets(kind, split):
    severities = (np.arange(8) + 0.5) / 8
    low, high = RANGES[kind]
    assert low < mean_psnr(kind, severities, photographs(split=split)) < high


@pytest.mark.parametrize("kind", FIVE_TYPES)
def test_more_severity_is_harder(kind, images):
    easy, medium, hard = (mean_psnr(kind, [severity] * 8, images) for severity in (0.0, 0.5, 1.0))
    assert easy > medium + 0.5 and medium > hard + 0.2


@pytest.mark.parametrize("kind", FIVE_TYPES)
def test_a_small_crop_is_as_hard_as_a_window_of_a_large_image(kind, images):
    windows, crops = [], []
    for seed in range(60):
        generator = np.random.default_rng(seed)
        severity, image = (seed + 0.5) / 60, images[seed % 3]
        whole = degrade(image, kind, severity, generator)
        top, left = (int(generator.integers(n - 95)) for n in image.shape[:2])
        clean = np.ascontiguousarray(image[top : top + 96, left : left + 96])
        windows.append(psnr_y(whole[top : top + 96, left : left + 96], clean))
        crops.append(psnr_y(degrade(clean, kind, severity, generator), clean))
    assert abs(np.mean(windows) - np.mean(crops)) < 1.2


def test_haze_is_the_scattering_equation_with_one_airlight():
    # I = J t + A (1 - t): black gives A (1 - t) and white t + A (1 - t), so their difference is t
    black = np.zeros((64, 64, 3), np.float32)
    at_black, at_white = (
        degrade(image, "Haze", 0.5, np.random.default_rng(2)) for image in (black, black + 1)
    )
    t = at_white - at_black
    assert np.ptp(t, axis=2).max() <= 2.1 / 255  # equal in the three channels
    airlight = at_black / (1 - t)
    assert airlight.std(axis=(0, 1)).max() < 0.01 and 0.6 < airlight.mean() <= 1.01


def test_low_light_keeps_a_small_share_of_the_light_and_shot_noise_grows_with_it():
    ramp = np.linspace(0.05, 1, 400, dtype=np.float32)
    image = np.ascontiguousarray(np.broadcast_to(ramp[None, :, None], (400, 400, 3)))
    shares, slopes = [], []
    for seed in range(8):
        lq = degrade(image, "Lowlight", 0.1, np.random.default_rng(seed))
        shares.append(lq.mean() / image.mean())
        deviation = (lq**2.2).std(axis=0).mean(axis=1)  # near light, by column
        slopes.append(deviation[-100:].mean() / deviation[:100].mean())
    assert 0.1 < np.mean(shares) < 0.45
    assert np.mean(slopes) > 1.2


def test_rain_and_snow_only_add_light_to_a_dark_scene():
    image = np.full((256, 256, 3), 0.2, np.float32)
    for kind in ("Rain", "Snow"):
        lq = degrade(image, kind, 0.6, np.random.default_rng(0))
        assert lq.min() >= 0.2 - 1 / 255
        assert 0.02 < np.mean(lq > 0.5) < 0.6


def test_rain_streaks_are_long_in_one_direction_and_snow_flakes_are_not():
    def elongation(kind):
        ratios = []
        for seed in range(12):
            image = np.full((256, 256, 3), 0.2, np.float32)
            grey = degrade(image, kind, 0.4, np.random.default_rng(seed)).mean(axis=2)
            dy, dx = np.gradient(grey)
            tensor = [[np.mean(dx * dx), np.mean(dx * dy)], [np.mean(dx * dy), np.mean(dy * dy)]]
            low, high = np.linalg.eigvalsh(tensor)
            ratios.append(high / low)
        return np.median(ratios)

    assert elongation("Rain") > 8
    assert elongation("Snow") < 2.5


@pytest.mark.parametrize("kind", ["fog", "blur", ""])
def test_an_unknown_type_is_refused_naming_the_allowed_ones(kind):
    with pytest.raises(ValueError, match="Blur, Haze, Lowlight, Rain, Snow"):
        degrade(np.zeros((16, 16, 3), np.float32), kind, 0.5, np.random.default_rng(0))


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((16, 16, 3), np.uint8),
        np.zeros((16, 16), np.float32),
        np.zeros((15, 16, 3), np.float32),
    ],
)
def test_a_wrong_image_is_refused(image):
    with pytest.raises(ValueError, match="image is"):
        degrade(image, "Blur", 0.5, np.random.default_rng(0))


@pytest.mark.parametrize("severity", [-0.1, 1.1, float("nan")])
def test_a_severity_outside_the_unit_interval_is_refused(severity):
    with pytest.raises(ValueError, match="severity"):
        degrade(np.zeros((16, 16, 3), np.float32), "Blur", severity, np.random.default_rng(0))


def test_severity_is_uniform_over_its_range():
    generator = np.random.default_rng(0)
    drawn = [draw_severity((0.33, 0.67), generator) for _ in range(2000)]
    assert 0.33 <= min(drawn) < 0.335 and 0.665 < max(drawn) <= 0.67
    assert abs(np.mean(drawn) - 0.5) < 0.01
    with pytest.raises(ValueError, match="severity range"):
        draw_severity((0.6, 0.4), generator)


def test_every_blur_kernel_is_odd_positive_centred_and_sums_to_one():
    for seed in range(200):
        kernel = blur_kernel(seed / 199, np.random.default_rng(seed))
        size = len(kernel)
        assert kernel.shape == (size, size) and size % 2 == 1
        assert kernel.dtype == np.float32 and kernel.min() >= 0
        assert kernel.sum() == pytest.approx(1, abs=1e-5)
        y, x = np.mgrid[:size, :size] - size // 2
        assert abs((kernel * x).sum()) < 0.01 and abs((kernel * y).sum()) < 0.01


def test_a_straight_trajectory_is_as_long_as_asked():
    for seed in range(20):
        kernel = kernels.trajectory(30.0, 0.0, np.random.default_rng(seed))
        y, x = np.nonzero(kernel)
        assert 26 < np.hypot(np.ptp(x), np.ptp(y)) < 33


def test_gaussian_and_disc_kernels_have_their_second_moments():
    def variance(kernel):
        x = np.arange(len(kernel)) - len(kernel) // 2
        return (kernel.sum(axis=0) * x**2).sum()

    assert variance(kernels.gaussian(31, 2.5)) == pytest.approx(2.5**2, rel=1e-3)
    assert variance(kernels.disc(8.0)) == pytest.approx(8.0**2 / 4, rel=0.02)  # r^2 / 4
    expected = cv2.getGaussianKernel(31, 2.5)
    np.testing.assert_allclose(kernels.gaussian_line(31, 2.5), expected[:, 0], atol=1e-7)


def test_a_smooth_field_has_unit_variance_and_no_fast_waves():
    fields = [smooth((64, 64), (200, 900), np.random.default_rng(i)) for i in range(400)]
    assert np.mean(fields) == pytest.approx(0, abs=0.1)
    assert np.var(fields) == pytest.approx(1, abs=0.15)
    steepest = 2 * np.pi / 200 * np.sqrt(2 * 8)  # all eight waves aligned
    assert max(np.abs(np.diff(f, axis=1)).max() for f in fields) < steepest


def test_scattered_points_have_the_density_asked_for():
    field = seeds((500, 500), 0.01, np.random.default_rng(0))
    assert np.count_nonzero(field) == pytest.approx(2500, rel=0.06)
    assert field[field > 0].min() >= 0.3 and field.max() <= 1


def test_depth_is_positive_with_mean_one_over_many_windows():
    for shape in ((96, 96), (512, 512)):
        fields = [depth(shape, np.random.default_rng(i)) for i in range(300)]
        assert min(f.min() for f in fields) > 0
        assert np.mean([f.mean() for f in fields]) == pytest.approx(1, abs=0.04)
