"""The second-order pipeline equals a direct implementation of the same draws, step by step."""

import dataclasses
import math

import cv2
import numpy as np
import pytest
import real_esrgan_reference as reference
import skimage.data
import torch
import torch.nn.functional as F
from darkroom.degradations import jpeg, kernels, pixels, real_esrgan
from darkroom.degradations.real_esrgan import RealESRGAN
from darkroom.degradations.real_esrgan_draws import NoiseDraw, draw_kernel
from scipy.special import j1


@pytest.fixture(scope="module")
def image():
    astronaut = skimage.data.astronaut()[40:240, 130:356]
    return np.ascontiguousarray(astronaut).astype(np.float32) / 255


def psnr_y(x, y):
    difference = (np.rint(x * 255) - np.rint(y * 255)) @ np.array([65.481, 128.553, 24.966]) / 255
    return 10 * np.log10(255**2 / max(np.mean(difference**2), 1e-3))


def tensor(array):
    return torch.from_numpy(array).permute(2, 0, 1)[None]


def array(x):
    return x[0].permute(1, 2, 0).numpy()


@pytest.mark.parametrize("seed", range(12))
def test_the_pipeline_equals_the_direct_one_of_the_same_draws(seed, image):
    draws = real_esrgan.draw(image.shape[:2], np.random.default_rng(seed))
    lq, gt = real_esrgan.apply(image, draws)
    direct_lq, direct_gt = reference.apply(image, draws)
    # a residual at the mask's threshold may fall on either side, which moves 1 / (2 pi 8^2) of it
    assert np.abs(gt - direct_gt).max() < 2e-3
    assert abs(psnr_y(lq, gt) - psnr_y(direct_lq, direct_gt)) < 0.03
    assert psnr_y(lq, direct_lq) > 45


def test_the_same_generator_state_gives_the_same_bytes_whatever_the_threads(image):
    before, threads = image.copy(), cv2.getNumThreads()
    try:
        for seed in range(6):
            pairs = []
            for number in (1, 4):
                cv2.setNumThreads(number)
                pairs.append(real_esrgan.degrade(image, np.random.default_rng(seed)))
            assert all(a.tobytes() == b.tobytes() for a, b in zip(*pairs, strict=True))
    finally:
        cv2.setNumThreads(threads)
    assert np.array_equal(image, before)


@pytest.mark.parametrize("shape", [(16, 16), (17, 300), (96, 96), (130, 70)])
def test_every_size_gives_a_pair_in_range_on_8_bit_levels(shape):
    image = np.random.default_rng(0).random((*shape, 3), dtype=np.float32)
    for seed in range(12):
        lq, gt = real_esrgan.degrade(image, np.random.default_rng(seed))
        assert lq.shape == gt.shape == image.shape and lq.dtype == gt.dtype == np.float32
        assert np.isfinite(lq).all() and np.isfinite(gt).all()
        assert min(lq.min(), gt.min()) >= 0 and max(lq.max(), gt.max()) <= 1
        np.testing.assert_allclose(lq * 255, np.rint(lq * 255), atol=1e-4)


def test_a_wrong_image_is_refused():
    with pytest.raises(ValueError, match="float32"):
        real_esrgan.degrade(np.zeros((32, 32, 3), np.uint8), np.random.default_rng(0))


def test_samples_differ_in_every_draw_that_batches_would_share(image):
    draws = [real_esrgan.draw((512, 512), np.random.default_rng(i)) for i in range(400)]
    share = lambda values: np.mean(list(values))  # noqa: E731
    assert share(d.resize1.mode == "area" for d in draws) == pytest.approx(1 / 3, abs=0.08)
    assert share(d.resize1.size[0] > 512 for d in draws) == pytest.approx(0.2, abs=0.06)
    assert share(d.resize1.size[0] == 512 for d in draws) == pytest.approx(0.1, abs=0.05)
    assert share(d.resize2.size[0] > 128 for d in draws) == pytest.approx(0.3, abs=0.07)
    assert share(d.resize2.size[0] == 128 for d in draws) == pytest.approx(0.3, abs=0.08)
    assert share(d.noise1.kind == "gaussian" for d in draws) == pytest.approx(0.5, abs=0.08)
    assert share(d.noise2.grey for d in draws) == pytest.approx(0.4, abs=0.08)
    assert share(d.kernel2 is not None for d in draws) == pytest.approx(0.8, abs=0.07)
    assert share(d.final_kernel is not None for d in draws) == pytest.approx(0.8, abs=0.07)
    assert share(d.final_first for d in draws) == pytest.approx(0.5, abs=0.08)
    assert all(d.final_resize.size == (128, 128) for d in draws)
    assert all(30 <= q <= 95 for d in draws for q in (d.quality1, d.quality2))
    sizes = [d.resize1.size[0] for d in draws]
    assert min(sizes) >= 76 and max(sizes) <= 768  # 0.15 and 1.5 times
    sizes = [d.resize2.size[0] for d in draws]
    assert min(sizes) >= 38 and max(sizes) <= 153  # 0.3 and 1.2 times 128
    sigmas = [d.noise1.strength * 255 for d in draws if d.noise1.kind == "gaussian"]
    assert 1 <= min(sigmas) < 3 and 28 < max(sigmas) <= 30
    scales = [d.noise2.strength for d in draws if d.noise2.kind == "poisson"]
    assert 0.05 <= min(scales) < 0.2 and 2.3 < max(scales) <= 2.5


def test_parameters_change_the_result(image):
    plain = RealESRGAN(sharpen=False, resize_back=False, stage2_scale=(2.0, 2.0))
    lq, gt = real_esrgan.degrade(image, np.random.default_rng(0), plain)
    assert np.array_equal(gt, image) and gt is not image
    assert lq.shape == (image.shape[0] // 2, image.shape[1] // 2, 3)
    with pytest.raises(dataclasses.FrozenInstanceError):
        plain.sharpen = True


def test_the_target_is_sharper_where_the_residual_is_large_only(image):
    gt = real_esrgan.sharpen(image)
    assert cv2.Laplacian(gt, cv2.CV_32F).var() > 1.2 * cv2.Laplacian(image, cv2.CV_32F).var()
    flat = np.full((64, 64, 3), 0.4, np.float32)
    np.testing.assert_allclose(real_esrgan.sharpen(flat), flat, atol=1e-6)


def test_the_unsharp_mask_is_opencvs_gaussian_of_51_taps_and_sigma_8(image):
    assert real_esrgan.usm_sigma(51) == pytest.approx(8.0)
    np.testing.assert_allclose(
        kernels.gaussian_line(51, 8.0), cv2.getGaussianKernel(51, 0)[:, 0], atol=1e-7
    )


@pytest.mark.parametrize(("quality", "expected"), [(30, 1.6667), (95, 0.10), (50, 1.0)])
def test_the_jpeg_factor_is_that_of_the_ijg(quality, expected):
    assert jpeg.factor(quality) == pytest.approx(expected, abs=5e-5)


def test_the_jpeg_tables_are_those_that_libjpeg_writes():
    luma, chroma = reference.standard_tables()
    assert np.array_equal(jpeg.LUMA, luma) and np.array_equal(jpeg.CHROMA, chroma)


@pytest.mark.parametrize("quality", [30.0, 57.3, 95.0])
def test_jpeg_equals_the_direct_formula_and_comes_near_a_real_file(quality, image):
    ours = jpeg.compress(image, quality)
    direct = array(reference.diff_jpeg(tensor(image), quality))
    # coefficients at the middle of two steps may round either way; nearly none does
    assert np.mean(np.abs(ours - direct) > 1e-4) < 0.01
    bgr = np.ascontiguousarray((image[..., ::-1] * 255).round().astype(np.uint8))
    _, data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, round(quality)])
    real = cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1] / 255
    assert psnr_y(ours, image) == pytest.approx(psnr_y(real, image), abs=0.6)


@pytest.mark.parametrize("mode", pixels.RESIZE_MODES)
@pytest.mark.parametrize("size", [(31, 34), (100, 113), (199, 226), (200, 226), (287, 301), (1, 2)])
def test_resizing_equals_torch_without_antialiasing(mode, size, image):
    ours = pixels.resize(image, size, mode)
    theirs = array(F.interpolate(tensor(image).double(), size=size, mode=mode))
    np.testing.assert_allclose(ours, theirs, atol=2e-5)


def test_kernels_equal_their_closed_forms():
    size, sigma_x, sigma_y, rotation, beta = 15, 2.0, 0.8, 0.6, 1.7
    turn = np.array(
        [[math.cos(rotation), -math.sin(rotation)], [math.sin(rotation), math.cos(rotation)]]
    )
    inverse = np.linalg.inv(turn @ np.diag([sigma_x**2, sigma_y**2]) @ turn.T)
    expected = {"gaussian": np.zeros((size, size)), "plateau": np.zeros((size, size))}
    for y in range(size):
        for x in range(size):
            p = np.array([x - 7, y - 7])
            q = p @ inverse @ p
            expected["gaussian"][y, x] = math.exp(-0.5 * q**beta)
            expected["plateau"][y, x] = 1 / (q**beta + 1)
    shape = (size, sigma_x, sigma_y, rotation, beta)
    for name, ours in (
        ("gaussian", kernels.generalized_gaussian(*shape)),
        ("plateau", kernels.plateau(*shape)),
    ):
        np.testing.assert_allclose(ours, expected[name] / expected[name].sum(), atol=1e-7)
    np.testing.assert_allclose(
        kernels.generalized_gaussian(size, 1.3, 1.3, 0.0), kernels.gaussian(size, 1.3), atol=1e-7
    )


def test_the_sinc_kernel_is_the_low_pass_of_its_cutoff():
    cutoff, size = 1.4, 21
    kernel = kernels.sinc(size, cutoff)
    radius = math.hypot(3, 4)
    ratio = (cutoff * j1(cutoff * radius) / (2 * math.pi * radius)) / (cutoff**2 / (4 * math.pi))
    assert kernel[14, 13] / kernel[10, 10] == pytest.approx(ratio, rel=1e-5)
    response = np.abs(np.fft.fft2(kernel, (256, 256)))[0]
    frequency = 2 * np.pi * np.arange(256) / 256
    assert response[frequency < 0.6 * cutoff].min() > 0.8
    assert response[(frequency > 1.4 * cutoff) & (frequency < np.pi)].max() < 0.2


def test_every_drawn_kernel_is_odd_and_sums_to_one():
    parameters = RealESRGAN()
    generator = np.random.default_rng(0)
    sizes = set()
    for _ in range(600):
        kernel = draw_kernel(parameters.blur1, generator)
        assert kernel.shape == (len(kernel), len(kernel)) and kernel.dtype == np.float32
        assert kernel.sum() == pytest.approx(1, abs=1e-5)
        sizes.add(len(kernel))
    assert sizes == {7, 9, 11, 13, 15, 17, 19, 21}


@pytest.mark.parametrize("grey", [False, True])
def test_noise_has_the_deviation_of_its_kind(grey):
    image = np.full((256, 256, 3), 128 / 255, np.float32)
    image[:, 128:] = 64 / 255  # two levels: two photons at white
    added = real_esrgan.add_noise(image, NoiseDraw("gaussian", 0.05, grey, 7)) - image
    assert added.std() == pytest.approx(0.05, rel=0.02)
    assert np.array_equal(added[..., 0], added[..., 2]) == grey
    ramp = np.tile(np.arange(256, dtype=np.float32) / 255, (256, 1))[..., None].repeat(3, 2)
    noisy = real_esrgan.add_noise(ramp, NoiseDraw("poisson", 0.5, grey, 7))
    column = (noisy - ramp)[:, 100:110].std()  # 0.5 sqrt(level / 256 photons)
    assert column == pytest.approx(0.5 * math.sqrt(105 / 255 / 256), rel=0.05)
