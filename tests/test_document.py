"""Document degradations: pure, sized by level, and without the faults such code is known for."""

import hashlib
import subprocess
import sys
import typing

import cv2
import numpy as np
import pytest
from darkroom import charts
from darkroom.config import ConfigError, load_config, sections
from darkroom.config.kinds import SEVERITIES
from darkroom.degradations import (
    DEFAULT_TYPES,
    DOCUMENT_TYPES,
    degrade,
    document,
    levels,
    marks,
    optics,
    types_of,
)

MIDDLES = {name: (low + high) / 2 for name, (low, high) in SEVERITIES.items()}


@pytest.fixture(scope="module")
def pages():
    return [charts.render(n, 96) / np.float32(255) for n in range(6)]


def psnr(x, y):
    return 10 * np.log10(1 / max(np.mean((x - y) ** 2), 1e-7))


def grey_page(value: float, size: int = 64) -> np.ndarray:
    return np.full((size, size, 3), value, np.float32)


@pytest.mark.parametrize("name", DOCUMENT_TYPES)
def test_the_same_generator_state_gives_the_same_bytes_and_leaves_the_input(name, pages):
    page = pages[0]
    before, threads = page.copy(), cv2.getNumThreads()
    results = []
    try:
        for count, global_seed in ((1, 0), (4, 1)):
            cv2.setNumThreads(count)
            cv2.setRNGSeed(global_seed)
            np.random.seed(global_seed)  # noqa: NPY002
            results.append(degrade(page, name, 0.8, np.random.default_rng(3)))
    finally:
        cv2.setNumThreads(threads)
    assert results[0].tobytes() == results[1].tobytes()
    assert np.array_equal(page, before)
    draws = [degrade(page, name, 0.8, np.random.default_rng(seed)).tobytes() for seed in range(8)]
    few = ("Gaussian", "LowResolution", "Compression", "ScanLines", "Threshold")
    assert len(set(draws)) > (1 if name in few else 6)  # these choose between two or three values


def test_another_process_gives_the_same_bytes():
    script = (
        "import hashlib, numpy as np\n"
        "from darkroom import charts\n"
        "from darkroom.degradations import DOCUMENT_TYPES, degrade\n"
        "page = charts.render(3, 64) / np.float32(255)\n"
        "total = b''.join(degrade(page, n, s, np.random.default_rng(5)).tobytes()\n"
        "                 for n in DOCUMENT_TYPES for s in (0.1, 0.5, 0.9))\n"
        "print(hashlib.sha256(total).hexdigest())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    page = charts.render(3, 64) / np.float32(255)
    total = b"".join(
        degrade(page, n, s, np.random.default_rng(5)).tobytes()
        for n in DOCUMENT_TYPES
        for s in (0.1, 0.5, 0.9)
    )
    assert done.stdout.strip() == hashlib.sha256(total).hexdigest()


@pytest.mark.parametrize("name", DOCUMENT_TYPES)
def test_no_draw_fails_and_all_stay_in_range(name):
    shapes = [(16, 16), (16, 90), (33, 17), (64, 64)]
    for seed in range(120):
        generator = np.random.default_rng(seed)
        shape = shapes[seed % 4]
        page = charts.render(seed % 7, 96)[: shape[0], : shape[1]] / np.float32(255)
        page = np.ascontiguousarray(page) if seed % 5 else grey_page(seed % 2, 16)
        severity = (0.0, 0.33, 0.331, 0.67, 1.0, seed / 119)[seed % 6]
        result = degrade(page, name, severity, generator)
        assert result.shape == page.shape and result.dtype == np.float32
        assert result.min() >= 0 and result.max() <= 1


@pytest.mark.parametrize("name", DOCUMENT_TYPES)
def test_every_level_is_harder_than_the_one_before_and_none_is_the_identity(name, pages):
    means = {}
    for level, (low, high) in SEVERITIES.items():
        scores = [
            psnr(degrade(page, name, low + (high - low) * n / 11, np.random.default_rng(n)), page)
            for page in pages
            for n in range(12)
        ]
        means[level] = np.mean(scores)
        assert max(scores) < 62
    assert means["easy"] > means["medium"] + 0.3
    assert means["medium"] > means["hard"] + 0.3


def test_the_levels_are_those_that_the_config_calls_easy_medium_and_hard():
    assert list(zip(levels.EDGES, levels.EDGES[1:], strict=False)) == list(SEVERITIES.values())
    for number, (low, high) in enumerate(SEVERITIES.values()):
        assert levels.place((low + high) / 2)[0] == number
        assert levels.place(high) == (number, 1.0)


def test_a_parameter_drawn_over_a_level_fills_its_ranges():
    table = optics.QUALITY
    for number, (low, high) in enumerate(SEVERITIES.values()):
        generator = np.random.default_rng(number)
        severities = low + (high - low) * (np.arange(400) + 0.5) / 400
        drawn = [levels.pick(table, s, generator) for s in severities]
        ends = [end for candidate in table[number] for end in candidate]
        assert min(ends) <= min(drawn) < min(ends) + 1.5
        assert max(ends) - 1.5 < max(drawn) <= max(ends)


@pytest.mark.parametrize("length", [1.0, 1.5, 3.5, 8.4])
def test_a_motion_kernel_has_the_sum_one_at_every_angle(length):
    for angle in np.linspace(0, np.pi, 23):
        kernel = optics.line_kernel(length, angle)
        assert kernel.shape[0] == kernel.shape[1] and kernel.shape[0] % 2 == 1
        assert abs(kernel.sum() - 1) < 1e-5 and kernel.min() >= 0
        y, x = np.mgrid[: len(kernel), : len(kernel)] - len(kernel) // 2
        assert abs((kernel * x).sum()) < 1e-4 and abs((kernel * y).sum()) < 1e-4  # no shift


@pytest.mark.parametrize("name", ["Gaussian", "Motion", "LowResolution", "LocalBlur"])
def test_a_blur_keeps_the_mean_brightness(name, pages):
    for page in pages:
        for seed in range(6):
            result = degrade(page, name, 0.9, np.random.default_rng(seed))
            assert abs(result.mean() - page.mean()) < 0.006
        assert abs(degrade(grey_page(0.8), name, 0.9, np.random.default_rng(0)) - 0.8).max() < 0.004


def test_scan_lines_mix_every_third_row_by_a_tenth_at_most_and_never_invert():
    page = grey_page(0.0)
    for seed in range(20):
        result = degrade(page, "ScanLines", seed / 19, np.random.default_rng(seed))
        rows = result[:, 0, 0]
        changed = np.flatnonzero(rows)
        assert set(np.diff(changed)) == {3} and changed[0] < 3
        assert np.all((rows[changed] > 0.045) & (rows[changed] < 0.096))
    ramp = np.ascontiguousarray(
        np.broadcast_to(np.linspace(0, 1, 64, dtype=np.float32)[None, :, None], (64, 64, 3))
    )
    result = degrade(ramp, "ScanLines", 1.0, np.random.default_rng(0))
    assert np.diff(result, axis=1).min() >= 0  # what was lighter stays lighter


def test_low_resolution_always_loses_pixels_and_never_raises(pages):
    for seed in range(200):
        severity = 0.33 + 0.34 * seed / 199  # medium: where a count of one is possible
        result = degrade(pages[seed % 6], "LowResolution", severity, np.random.default_rng(seed))
        assert psnr(result, pages[seed % 6]) < 40


def test_print_noise_is_seen_is_grey_and_has_spots():
    page = grey_page(0.5, 128)
    deviations = []
    for severity in MIDDLES.values():
        result = degrade(page, "Noise", severity, np.random.default_rng(0))
        assert np.ptp(result, axis=2).max() == 0
        spots = (result[..., 0] > 178 / 255) & (result[..., 0] < 222 / 255)
        deviations.append(result[..., 0][~spots].std() * 255)
        assert 0.0005 < spots.mean() < 0.025
    assert 2 < deviations[0] < deviations[1] < deviations[2] < 21


def test_a_background_changes_white_paper_in_every_draw_and_leaves_black_ink(pages):
    for seed in range(60):
        white = degrade(grey_page(1.0), "Background", 0.9, np.random.default_rng(seed))
        assert 0.55 < white.min() < 0.97 and white.mean() < 0.995
        black = degrade(grey_page(0.0), "Background", 0.9, np.random.default_rng(seed))
        assert black.max() == 0


def test_even_the_lowest_quality_keeps_the_means_of_blocks():
    page = grey_page(0.75)
    page[16:32, 16:32] = 0.1
    result = degrade(page, "Compression", 1.0, np.random.default_rng(1))
    assert result[48:, 48:].mean() == pytest.approx(0.75, abs=0.1)
    assert result[18:30, 18:30].mean() == pytest.approx(0.1, abs=0.1)


def test_gaps_take_ink_and_nothing_but_ink(pages):
    for seed in range(20):
        page = pages[seed % 6]
        result = degrade(page, "LineGaps", 0.9, np.random.default_rng(seed))
        changed = np.abs(result - page).max(axis=2) > 2 / 255
        luminance = page @ marks.LUMINANCE
        assert changed.any() and luminance[changed].max() < marks.INK + 1 / 255
        assert changed.sum() <= 0.6 * (luminance < marks.INK).sum()


@pytest.mark.parametrize("name", ["Text", "Lines", "Spectral"])
def test_what_a_level_asks_for_is_what_is_drawn(name):
    # strengths and counts that are drawn must reach the picture: more of them, more of it changed
    page = np.ascontiguousarray(grey_page(1.0, 128))
    page[::8] = 0.2
    shares = []
    for severity in MIDDLES.values():
        changed = [
            np.abs(degrade(page, name, severity, np.random.default_rng(s)) - page).mean()
            for s in range(40)
        ]
        shares.append(np.mean(changed))
    assert shares[0] * 1.2 < shares[1] < shares[2] / 1.1


def test_a_mixture_has_the_base_and_at_most_one_destructive_step_which_is_last():
    lasts = 0
    for seed in range(300):
        generator = np.random.default_rng(seed)
        level = seed % 3
        steps = document.plan(list(MIDDLES.values())[level], generator)
        added = steps[4:]
        assert steps[:4] == document.BASE and len(set(added)) == len(added)
        low, high = document.NUM_ADDED[level]
        assert low <= len(added) <= high
        destructive = [s for s in added if s in document.DESTRUCTIVE]
        assert len(destructive) <= 1 and (not destructive or added[-1] == destructive[0])
        lasts += bool(destructive)
    assert 70 < lasts < 130  # half of the 200 that add anything


def test_the_config_names_exactly_the_types_there_are():
    assert typing.get_args(sections.Domain) == DOCUMENT_TYPES
    assert set(DEFAULT_TYPES["document"]) < set(DOCUMENT_TYPES)


def test_a_document_config_draws_its_own_types_and_refuses_the_others():
    config = load_config(base=None, run="x", override={"degradation.kind": "document"})
    assert types_of(config.degradation) == DEFAULT_TYPES["document"]
    named = config.with_changes({"degradation.types": ["Mixed", "Lines"]})
    assert types_of(named.degradation) == ("Mixed", "Lines")
    for kind, wrong in (("document", "Rain"), ("five_types", "Lines")):
        changes = {"degradation.kind": kind, "degradation.types": [wrong]}
        with pytest.raises(ConfigError, match=f"names {wrong}, and degradation.kind {kind} draws"):
            load_config(base=None, run="x", override=changes)


def test_a_stage_may_raise_the_severity_by_its_word():
    config = load_config(
        base=None,
        run="x",
        override={"degradation.kind": "document", "degradation.severity": "easy"},
        stages={"harder": {"start": "50%", "changes": {"degradation.severity": "hard"}}},
    )
    later = config.with_changes(config.stages["harder"].changes)
    assert later.degradation.severity == SEVERITIES["hard"]
