"""Metrics against pyiqa and scikit-image on photographs; protocols, errors and absent weights."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from darkroom import metrics, perceptual

NAMES = ("astronaut", "coffee", "chelsea")
DAMAGES = ("noise", "blur", "dark", "quantised", "faint")


def photograph(name: str) -> torch.Tensor:
    from skimage import data

    picture = getattr(data, name)()[:256, :300]
    return torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1)[None].float() / 255


def damage(image: torch.Tensor, kind: str) -> torch.Tensor:
    import cv2

    generator = torch.Generator().manual_seed(7)
    if kind == "noise":
        image = image + 0.1 * torch.randn(image.shape, generator=generator)
    elif kind == "blur":
        array = image[0].permute(1, 2, 0).numpy()
        image = torch.from_numpy(cv2.GaussianBlur(array, (0, 0), 2.5)).permute(2, 0, 1)[None]
    elif kind == "dark":
        image = image * 0.15
    elif kind == "quantised":
        image = (image * 8).round() / 8
    else:
        image = image + 0.004 * torch.randn(image.shape, generator=generator)
    return metrics.round_to_8bit(image.clamp(0, 1))


@pytest.fixture(scope="module")
def pyiqa():
    from darkroom.torchvision_ops import ensure_torchvision

    ensure_torchvision()
    return pytest.importorskip("pyiqa")


@pytest.fixture(scope="module")
def pairs():
    return [(damage(p, d), p) for p in map(photograph, NAMES) for d in DAMAGES]


SETTINGS = [
    ("psnr", "psnr_y", {"colour": "ycbcr"}, {"test_y_channel": True, "color_space": "ycbcr"}),
    ("psnr", "psnr_y", {"colour": "yiq"}, {"test_y_channel": True, "color_space": "yiq"}),
    ("psnr", "psnr_rgb", {}, {"test_y_channel": False}),
    (
        "psnr",
        "psnr_y",
        {"crop_border": 4},
        {"test_y_channel": True, "color_space": "ycbcr", "crop_border": 4},
    ),
    ("ssim", "ssim_y", {"colour": "ycbcr"}, {"test_y_channel": True, "color_space": "ycbcr"}),
    ("ssim", "ssim_y", {"colour": "yiq"}, {"test_y_channel": True, "color_space": "yiq"}),
    ("ssim", "ssim_rgb", {}, {"test_y_channel": False}),
    (
        "ssim",
        "ssim_y",
        {"crop_border": 4},
        {"test_y_channel": True, "color_space": "ycbcr", "crop_border": 4},
    ),
]


@pytest.mark.parametrize(("reference", "name", "ours", "theirs"), SETTINGS)
def test_psnr_and_ssim_equal_pyiqa_with_the_same_settings(
    reference, name, ours, theirs, pyiqa, pairs
):
    metric = pyiqa.create_metric(reference, device="cpu", **theirs)
    tolerance = 1e-4 if reference == "psnr" else 1e-6
    chosen = pairs if name.endswith("_y") and ours.get("colour") == "ycbcr" else pairs[:5]
    for x, y in chosen:
        expected = float(metric(x, y))
        assert float(getattr(metrics, name)(x, y, **ours)) == pytest.approx(expected, abs=tolerance)


def test_charbonnier_is_the_mean_distance_of_8_bit_images():
    x = torch.full((2, 3, 8, 8), 100 / 255)
    y = x.clone()
    y[1, 0] = 151 / 255  # one channel differs by a fifth of the range
    expected = [0.001, (2 * 0.001 + (0.2**2 + 0.001**2) ** 0.5) / 3]
    score = metrics.find("charbonnier")
    assert score(x + 1e-4, y).tolist() == pytest.approx(expected, rel=1e-5)
    assert score.lower_better and score.range[1] >= 1


def test_psnr_and_ssim_equal_scikit_image_on_rgb(pairs):
    from skimage.metrics import peak_signal_noise_ratio, structural_similarity

    x, y = pairs[0]
    a, b = ((i[0].permute(1, 2, 0).double().numpy() * 255).round() for i in (x, y))
    assert float(metrics.psnr_rgb(x, y)) == pytest.approx(
        peak_signal_noise_ratio(b, a, data_range=255), abs=1e-4
    )
    settings = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    _, whole = structural_similarity(a, b, channel_axis=2, data_range=255, full=True, **settings)
    inside = whole[5:-5, 5:-5].mean()
    assert float(metrics.ssim_rgb(x, y)) == pytest.approx(inside, abs=1e-4)


def test_scores_of_a_batch_are_those_of_its_images(pairs):
    same_size = pairs[:3]
    x, y = (torch.cat(side) for side in zip(*same_size, strict=True))
    for metric in metrics.METRICS.values():
        apart = torch.cat([metric(a, b) for a, b in same_size])
        assert metric(x, y).shape == (3,)
        torch.testing.assert_close(metric(x, y), apart, rtol=0, atol=1e-10)


def test_ssim_does_not_depend_on_where_its_bands_fall():
    generator = torch.Generator().manual_seed(0)
    for height in (11, 73, 74, 75, 138, 139):
        x, y = torch.rand(2, 1, 3, height, 20, generator=generator)
        flipped = metrics.ssim_y(x.flip(-2), y.flip(-2))
        torch.testing.assert_close(metrics.ssim_y(x, y), flipped, rtol=0, atol=1e-12)


def test_identical_images_have_80_decibels_and_ssim_1():
    x = photograph("coffee")
    assert float(metrics.psnr_y(x, x)) == pytest.approx(80)
    assert float(metrics.ssim_y(x, x)) == pytest.approx(1)


def test_a_uniform_error_has_its_closed_form():
    x, y = torch.full((1, 3, 16, 16), 100 / 255), torch.full((1, 3, 16, 16), 110 / 255)
    error = (10 * 219 / 255 / 255) ** 2
    assert float(metrics.psnr_y(x, y)) == pytest.approx(-10 * np.log10(error + 1e-8))


def test_full_range_luma_scores_1_322_decibels_less(pairs):
    x, y = pairs[0]
    gap = metrics.psnr_y(x, y) - metrics.psnr_y(x, y, colour="yiq")
    assert float(gap) == pytest.approx(20 * np.log10(255 / 219), abs=2e-3)


def test_predictions_are_rounded_as_a_saved_picture_would_be():
    y = photograph("coffee")
    x = (y + 0.4 / 255).clamp(0, 1)
    assert float(metrics.psnr_y(x, y)) == pytest.approx(80)
    assert float(metrics.psnr_y(x, y, round_8bit=False)) < 60


def test_the_panel_shows_how_far_protocols_lie_apart():
    y = photograph("astronaut")
    rows = metrics.protocols(damage(y, "noise"), y)
    values = {(r["metric"], r["protocol"]): r["value"] for r in rows}
    assert len(values) == len(rows) == 11
    assert [r["protocol"] for r in rows if r["ours"]] == ["Y 16-235", "Y 16-235"]
    psnr = [v for (metric, _), v in values.items() if metric == "PSNR"]
    assert max(psnr) - min(psnr) > 3
    assert values["SSIM", "RGB, Gaussian window"] < values["SSIM", "Y 16-235"] - 0.1


def test_final_score_has_its_formula_and_is_absent_without_lpips():
    assert metrics.final_score(30.0, 0.9, 0.1) == pytest.approx(30 + 9 - 0.5)
    assert metrics.final_score(30.0, 0.9, None) is None


@pytest.mark.parametrize("name", metrics.METRICS)
def test_metrics_refuse_what_they_cannot_measure(name):
    metric, good = metrics.METRICS[name], torch.rand(2, 3, 16, 16)
    bad = good.clone()
    bad[1, 0, 0, 0] = float("nan")
    cases = [
        (good.bfloat16(), good.bfloat16(), "bfloat16.*float32"),
        (good * 255, good, r"lies in \[.*take \[0, 1\]"),
        (good * 2 - 1, good, r"\(x \+ 1\) / 2"),
        (bad, good, r"prediction holds NaN or infinite values in image \[1\]"),
        (good, bad, "target holds NaN"),
        (good, good[..., :15], r"never resize the target"),
        (good[0], good[0], r"\(B, 3, H, W\)"),
        (good[:, :1], good[:, :1], r"\(B, 3, H, W\)"),
        (good.numpy(), good.numpy(), "torch tensors"),
    ]
    for x, y, message in cases:
        with pytest.raises(ValueError, match=message):
            metric(x, y)


def test_ssim_refuses_images_below_its_window_and_crops_that_leave_too_little():
    small = torch.rand(1, 3, 10, 40)
    with pytest.raises(ValueError, match="40x10 pixels.*at least 11x11"):
        metrics.ssim_y(small, small)
    with pytest.raises(ValueError, match="crop_border=8 leave 24x4"):
        image = torch.rand(1, 3, 20, 40)
        metrics.ssim_y(image, image, crop_border=8)
    assert float(metrics.psnr_y(small, small)) == pytest.approx(80)


def test_an_unknown_colour_is_refused():
    x = torch.rand(1, 3, 16, 16)
    with pytest.raises(ValueError, match="'rgb'; it can be 'ycbcr' or 'yiq'"):
        metrics.psnr_y(x, x, colour="rgb")


def test_lpips_without_its_file_is_absent_and_says_where_it_belongs(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    found = metrics.find("lpips")
    assert isinstance(found, metrics.Absent)
    assert found.path == tmp_path / "hub" / "checkpoints" / "vgg16-397923af.pth"
    assert str(found.path) in str(found)


def test_lpips_with_a_wrong_file_is_absent_not_a_number(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    path = tmp_path / "hub" / "checkpoints" / "vgg16-397923af.pth"
    path.parent.mkdir(parents=True)
    torch.save({}, path)
    found = metrics.find("lpips")
    assert isinstance(found, metrics.Absent)
    assert "damaged or another file" in found.reason


def test_lpips_scores_images_once_its_file_is_there(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    trunk = perceptual.VGG16(pretrained=False)
    path = tmp_path / "hub" / "checkpoints" / perceptual.VGG16_FILE
    path.parent.mkdir(parents=True)
    torch.save(trunk.state_dict(), path)
    monkeypatch.setattr(perceptual, "hash_in_name", lambda name: "")  # a stand-in file
    lpips = metrics.find("lpips")
    assert lpips.lower_better
    y = photograph("coffee")[..., :64, :64]
    x = damage(y, "noise")
    assert float(lpips(y, y)) == pytest.approx(0, abs=1e-7)
    assert float(lpips(x, y)) > 0


def test_other_metrics_come_by_pyiqas_name_or_are_absent_with_a_path(tmp_path, pyiqa):
    script = (
        "from darkroom import metrics\n"
        "import torch\n"
        "m = metrics.find('gmsd')\n"
        "x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))\n"
        "print(m.lower_better, m(x, x).tolist(), m(x, x.flip(-1)).min().item() > 0)\n"
        "a = metrics.find('dists')\n"
        "print(type(a).__name__, a.path)\n"
        "a = metrics.find('niqe')\n"
        "print(type(a).__name__, a.path)\n"
    )
    environment = os.environ | {"TORCH_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    hub = tmp_path / "hub"
    assert done.stdout.splitlines() == [
        "True [0.0, 0.0] True",
        f"Absent {hub / 'checkpoints' / 'vgg16-397923af.pth'}",
        f"Absent {hub / 'pyiqa' / 'niqe_modelparameters.mat'}",
    ]


def test_a_damaged_file_of_a_pyiqa_metric_is_refused(tmp_path, pyiqa):
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save(perceptual.VGG16(pretrained=False).state_dict(), folder / "vgg16-397923af.pth")
    script = "from darkroom import metrics\nprint(metrics.find('lpips-vgg'))"
    environment = os.environ | {"TORCH_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("lpips-vgg is absent:")
    assert "sha256" in done.stdout


def test_an_unknown_metric_is_an_error():
    with pytest.raises(ValueError, match="no metric 'psnrz'"):
        metrics.find("psnrz")


def test_metrics_do_not_load_pyiqa_or_torchvision():
    script = (
        "import sys, darkroom.metrics, darkroom.losses\n"
        "print([m for m in ('pyiqa', 'torchvision', 'lpips', 'skimage') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_torchvision_imports_whatever_its_build_and_twice_is_once():
    script = (
        "from darkroom.torchvision_ops import ensure_torchvision\n"
        "first, second = ensure_torchvision(), ensure_torchvision()\n"
        "import torchvision, torch\n"
        "after = ensure_torchvision()\n"
        "x = torchvision.transforms.functional.resize(torch.rand(3, 8, 8), [4, 4])\n"
        "print(first == second == after, tuple(x.shape))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "True (3, 4, 4)"


def test_operators_are_declared_only_where_the_extension_cannot_load():
    script = (
        "import sys\n"
        "try:\n"
        "    import torchvision\n"
        "    complete = True\n"
        "except RuntimeError as error:\n"
        "    assert 'nms' in str(error)\n"
        "    complete = False\n"
        "for name in [m for m in sys.modules if m.startswith('torchvision')]:\n"
        "    del sys.modules[name]\n"
        "from darkroom.torchvision_ops import ensure_torchvision\n"
        "print(ensure_torchvision() == (not complete))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "True"
