"""Ablations: which runs a config asks for, and statistics held against closed forms."""

import numpy as np
import polars as pl
import pytest
from darkroom import ablation, load_config


def configured(tmp_path=None, **section):
    paths = {"runs": str(tmp_path)} if tmp_path else {}
    return load_config(base="tiny", run="trial", ablation=section, paths=paths)


def test_a_grid_is_the_product_and_its_unchanged_point_is_the_baseline_run_once():
    grid = {"loss.l2": [0, 0.5], "train.clip": [1.0, 2.0]}
    names = [v.name for v in ablation.variants(configured(grid=grid))]
    assert names == ["baseline", "clip_2.0", "l2_0.5", "l2_0.5-clip_2.0"]


def test_variants_and_seeds_multiply():
    todo = ablation.variants(configured(variants={"no_gan": {"loss.gan": 0}}, seeds=[1, 2]))
    assert [v.folder for v in todo] == [
        "baseline_seed1",
        "baseline_seed2",
        "no_gan_seed1",
        "no_gan_seed2",
    ]
    assert todo[-1].changes == {"loss.gan": 0} and todo[-1].seed == 2


def test_an_empty_section_gives_a_short_example_that_is_a_valid_config():
    config = configured()
    assert ablation.is_example(config)
    for variant in ablation.variants(config):
        changed = config.with_changes(variant.changes)
        assert changed.train.steps == ablation.EXAMPLE_STEPS


def test_a_change_to_null_is_described_like_any_other():
    config = configured(variants={"unclipped": {"train.clip": None}})
    texts = [ablation.describe(config, v) for v in ablation.variants(config)]
    assert texts == ["–", "train.clip = None"]


def test_the_example_describes_only_what_sets_a_variant_apart():
    config = configured()
    texts = {v.name: ablation.describe(config, v) for v in ablation.variants(config)}
    assert texts["baseline"] == "–"
    assert texts["half_batch"] == f"train.effective_batch = {config.train.effective_batch // 2}"


def test_a_value_that_no_run_can_have_is_refused_before_the_first_variant_starts(tmp_path):
    config = configured(tmp_path, variants={"good": {"loss.gan": 0}, "bad": {"train.clip": -1}})
    with pytest.raises(ValueError, match="clip"):
        ablation.run(config)
    assert not any(tmp_path.rglob("*.log"))


def test_a_variants_params_file_gives_back_the_config_with_its_change(tmp_path):
    config = load_config(
        base="tiny",
        run="trial",
        loss={"l2": 0.25},
        override={"train.steps": 7},
        paths={"runs": str(tmp_path)},
        ablation={"variants": {"no_gan": {"loss.gan": 0}}, "seeds": [5]},
    )
    variant = ablation.variants(config)[1]
    path = ablation._write_params(config, variant)
    loaded = load_config(base=str(path))
    assert (loaded.loss.gan, loaded.loss.l2, loaded.train.steps, loaded.seed) == (0, 0.25, 7, 5)
    assert loaded.run_dir == config.run_dir / "ablation" / "no_gan_seed5"
    same = loaded.with_changes({"loss.gan": config.loss.gan, "seed": config.seed})
    assert same.hash == config.with_changes({"ablation": {}}).hash


def write_scores(config, variant, psnr, image_set="abc", images=range(5), step=10):
    folder = ablation.folder(config) / variant
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        {
            "step": step,
            "weights": "ema",
            "image": f"photograph_{i}",
            "degradation": name,
            "draw": draw,
            "psnr_y": psnr(i, draw),
            "ssim_y": 0.5,
            "psnr_y_input": 20.0,
            "ssim_y_input": 0.5,
            "protocol": "darkroom-1",
            "crop_border": 0,
            "colour": "Y",
            "rounding": "8-bit",
            "lpips_trunk": "vgg 0.1",
            "image_set": image_set,
        }
        for i in images
        for name in ("Blur", "Haze")
        for draw in range(2)
    ]
    pl.DataFrame(rows).write_parquet(folder / "validation.parquet")


def test_differences_are_paired_so_that_what_images_share_cancels(tmp_path):
    config = configured(tmp_path, variants={"better": {"loss.gan": 0}})
    # photographs differ by 40 dB, the variant by exactly 0.5 dB on each of them
    write_scores(config, "baseline", lambda i, draw: 10.0 * i + draw)
    write_scores(config, "better", lambda i, draw: 10.0 * i + draw + 0.5)
    frame = ablation.compare(config)
    row = frame.filter(variant="better").to_dicts()[0]
    assert (row["difference"], row["low"], row["high"]) == pytest.approx((0.5, 0.5, 0.5))
    assert row["images"] == 20
    assert frame.filter(variant="baseline")["difference"].to_list() == [None]


def test_seeds_are_averaged_before_they_are_compared(tmp_path):
    config = configured(tmp_path, variants={"other": {"loss.gan": 0}}, seeds=[1, 2])
    for seed, offset in ((1, -1.0), (2, 3.0)):
        write_scores(config, f"baseline_seed{seed}", lambda i, draw: 20.0)
        write_scores(config, f"other_seed{seed}", lambda i, draw, offset=offset: 20.0 + offset)
    row = ablation.compare(config).filter(variant="other").to_dicts()[0]
    assert row["difference"] == pytest.approx(1.0)


def test_scores_of_other_images_or_another_protocol_are_not_compared(tmp_path):
    config = configured(tmp_path, variants={"other": {"loss.gan": 0}})
    write_scores(config, "baseline", lambda i, draw: 20.0)
    write_scores(config, "other", lambda i, draw: 21.0, image_set="xyz")
    with pytest.raises(ValueError, match="image_set"):
        ablation.compare(config)
    write_scores(config, "other", lambda i, draw: 21.0, images=range(4))
    with pytest.raises(ValueError, match="different images"):
        ablation.compare(config)


def test_without_a_scored_baseline_the_message_says_what_there_is(tmp_path):
    config = configured(tmp_path, variants={"other": {"loss.gan": 0}})
    write_scores(config, "other", lambda i, draw: 21.0)
    with pytest.raises(ValueError, match="'baseline' has no scores.*other"):
        ablation.compare(config)


def test_the_interval_covers_the_truth_as_often_as_it_says():
    generator = np.random.default_rng(7)
    hits, trials = 0, 200
    for _ in range(trials):
        photographs = generator.normal(1.0, 2.0, size=30)
        values = np.repeat(photographs, 4) + generator.normal(0, 0.1, size=120)
        _, low, high = ablation.bootstrap_interval(values, np.repeat(np.arange(30), 4), draws=500)
        hits += low <= 1.0 <= high
    assert 0.88 <= hits / trials <= 0.99  # rows taken as independent would cover about 0.65
