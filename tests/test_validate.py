"""Validation: native size, seeds, protocols, the table on disk, intervals, the baseline."""

import json

import numpy as np
import polars as pl
import pytest
import torch
from darkroom import (
    baseline,
    bootstrap,
    checkpoint,
    data,
    inference,
    metrics,
    perceptual,
    recipes,
    selection,
    validate,
)
from darkroom.config import load_config
from darkroom.images import write_image
from small_runs import sections, write_pictures

KEYS = ["image", "degradation", "draw"]


@pytest.fixture(autouse=True)
def no_weights_and_no_memory(tmp_path, monkeypatch):
    """Let no file of this machine and no other test decide which metrics there are."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(validate, "_found", {})


def config_of(root, **override):
    values = {
        "model.recipe": "regression",
        "loss.gan": 0.0,
        "validation.samples_per_type": None,
        "degradation.types": ["Blur", "Lowlight"],
        **override,
    }
    return load_config(**sections(root, **values))


def samples_of(paths, lq_paths=None, degradation=None) -> pl.DataFrame:
    """Return what index.samples gives for these files."""
    count = len(paths)
    return pl.DataFrame(
        {
            "image": [p.stem for p in paths],
            "lq_path": [str(p) for p in lq_paths] if lq_paths else [None] * count,
            "gt_path": [str(p) for p in paths],
            "degradation": [degradation] * count,
            "prompt": [""] * count,
        },
        schema_overrides={"lq_path": pl.String, "degradation": pl.String},
    )


@pytest.fixture
def samples(tmp_path):
    folder = write_pictures(tmp_path / "pictures", count=2, size=45)
    return samples_of(sorted(folder.glob("*.png")))


def brighter(recipe):
    """Let an untrained recipe, which is the identity, brighten: it then differs from the input."""
    with torch.no_grad():
        recipe.network.conv_out.bias += 0.05
    return recipe


def scored(config, samples, recipe=None, step=0):
    recipe = recipe or recipes.build(config)
    return validate.score(recipe, config, step=step, weights="raw", samples=samples)


def test_a_row_for_every_picture_type_and_draw_with_its_input_score(tmp_path, samples):
    config = config_of(tmp_path)
    frame = scored(config, samples, step=7)
    assert len(frame) == 2 * 2 * data.NUM_DRAWS
    assert frame.select(KEYS).n_unique() == len(frame)
    assert frame["step"].unique().to_list() == [7]
    for name, value in metrics.PROTOCOL.items():
        assert frame[name].unique().to_list() == [value]
    assert frame["config_hash"].unique().to_list() == [config.hash]
    item = data.validation_items(config, samples)[3]
    sample = data.load_item(item, config)
    row = frame.row(by_predicate=_is(item), named=True)
    expected = float(metrics.psnr_y(sample.lq[None], sample.gt[None]))
    assert row["psnr_y_input"] == pytest.approx(expected, abs=1e-12)


def _is(item):
    return (
        (pl.col("image") == item.image)
        & (pl.col("degradation") == item.degradation)
        & (pl.col("draw") == item.draw)
    )


def test_an_untrained_model_scores_what_its_input_scores_at_any_size(tmp_path):
    paths = []
    for name, size in (("odd", (45, 51)), ("tall", (64, 33)), ("tiny", (17, 16))):
        pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
        write_image(tmp_path / f"{name}.png", pixels)
        paths.append(tmp_path / f"{name}.png")
    frame = scored(config_of(tmp_path), samples_of(paths))
    np.testing.assert_allclose(frame["psnr_y"], frame["psnr_y_input"], rtol=0, atol=1e-3)
    np.testing.assert_allclose(frame["ssim_y"], frame["ssim_y_input"], rtol=0, atol=1e-5)


def test_scores_are_repeatable_and_depend_on_no_other_picture_or_random_state(tmp_path, samples):
    config = config_of(tmp_path)
    recipe = brighter(recipes.build(config))
    first = scored(config, samples, recipe)
    torch.manual_seed(99)
    np.random.seed(99)  # noqa: NPY002 - the global state is what must not matter
    state, numpy_state = torch.random.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    second = scored(config, samples[1:], recipe)
    assert torch.equal(state, torch.random.get_rng_state())
    assert (numpy_state == np.random.get_state()[1]).all()  # noqa: NPY002
    columns = [*KEYS, "psnr_y", "ssim_y", "psnr_y_input"]
    assert first.join(second, on=KEYS, how="semi").select(columns).equals(second.select(columns))


class Noisy:
    """A recipe whose restoration is noise of the seed it is given."""

    multiple = 1

    def __init__(self):
        self.network = torch.nn.Conv2d(1, 1, 1)
        self.seeds = []

    def restore(self, batch, *, seed, num_steps=None):
        from darkroom.recipes.protocol import Restored

        self.seeds.append(seed)
        generator = torch.Generator().manual_seed(seed)
        return Restored(torch.rand(batch.lq.shape, generator=generator))


def test_every_item_has_its_own_noise_and_keeps_it(tmp_path, samples):
    config = config_of(tmp_path)
    once, again = Noisy(), Noisy()
    first, second = scored(config, samples, once), scored(config, samples, again)
    assert len(set(once.seeds)) == len(first)
    assert once.seeds == again.seeds
    assert first.equals(second)
    other = Noisy()
    scored(config_of(tmp_path, **{"validation.seed": 5}), samples, other)
    assert not set(other.seeds) & set(once.seeds)


def test_pairs_on_disk_are_scored_as_they_are(tmp_path):
    gt = write_pictures(tmp_path / "gt", count=1)
    lq = tmp_path / "lq.png"
    path = next(gt.glob("*.png"))
    from darkroom.images import read_image

    write_image(lq, read_image(path) // 2)
    frame = scored(config_of(tmp_path), samples_of([path], [lq], "Rain"))
    assert frame.select(KEYS).rows() == [(path.stem, "Rain", 0)]
    x, y = (torch.from_numpy(read_image(p)).permute(2, 0, 1)[None] / 255 for p in (lq, path))
    assert frame["psnr_y_input"][0] == pytest.approx(float(metrics.psnr_y(x, y)))


def test_the_image_set_names_what_was_scored(tmp_path, samples):
    config = config_of(tmp_path)

    def image_set(config, samples, recipe=None):
        (value,) = scored(config, samples, recipe)["image_set"].unique()
        return value

    same = image_set(config, samples)
    assert image_set(config, samples, brighter(recipes.build(config))) == same
    assert image_set(config_of(tmp_path, **{"validation.samples_per_type": 99}), samples) == same
    assert image_set(config, samples[:1]) != same
    assert image_set(config_of(tmp_path, **{"validation.seed": 5}), samples) != same
    assert image_set(config_of(tmp_path, **{"degradation.severity": "hard"}), samples) != same


def test_an_empty_validation_set_is_an_error(tmp_path, samples):
    with pytest.raises(ValueError, match="nothing to validate on"):
        scored(config_of(tmp_path), samples[:0])


def test_lpips_and_final_score_are_absent_without_the_file_and_named(tmp_path, samples):
    config = config_of(tmp_path, **{"validation.metrics": ["psnr_y", "ssim_y", "lpips"]})
    frame = scored(config, samples[:1])
    assert not {"lpips", "final_score"} & set(frame.columns)
    (absent,) = validate.absences(config)
    assert absent.path == tmp_path / "torch" / "hub" / "checkpoints" / "vgg16-397923af.pth"


def test_final_score_joins_psnr_ssim_and_lpips_where_the_file_is(tmp_path, samples, monkeypatch):
    path = tmp_path / "torch" / "hub" / "checkpoints" / perceptual.VGG16_FILE
    path.parent.mkdir(parents=True)
    torch.save(perceptual.VGG16(pretrained=False).state_dict(), path)
    monkeypatch.setattr(perceptual, "hash_in_name", lambda name: "")  # a stand-in file
    config = config_of(
        tmp_path, **{"validation.metrics": ["lpips", "charbonnier"], "degradation.types": ["Blur"]}
    )
    frame = scored(config, samples[:1])
    assert (frame["lpips"] > 0).all()
    assert {"psnr_y", "ssim_y", "charbonnier"} < set(frame.columns)
    every = {"psnr_y", "ssim_y", "charbonnier", "lpips", "final_score"}
    assert set(selection.means(frame)) == {
        f"validation/{where}{metric}" for metric in every for where in ("", "Blur/")
    }
    expected = frame["psnr_y"] + 10 * frame["ssim_y"] - 5 * frame["lpips"]
    np.testing.assert_allclose(frame["final_score"], expected)
    assert "lpips" in validate.summary(frame).columns


# --- the table ------------------------------------------------------------------------------------


def rows_of(step, psnr, *, images=("a", "b", "c"), draws=2, image_set="x", weights="ema", **more):
    rows = [
        {
            "step": step,
            "weights": weights,
            "image": image,
            "degradation": degradation,
            "draw": draw,
            "psnr_y": psnr + n,
            "ssim_y": 0.8,
            "psnr_y_input": 20.0,
            "ssim_y_input": 0.7,
            **metrics.PROTOCOL,
            "image_set": image_set,
        }
        | more
        for degradation in ("Haze", "Rain")
        for n, image in enumerate(images)
        for draw in range(draws)
    ]
    return pl.DataFrame(rows)


def test_the_same_validation_made_again_takes_the_place_of_its_rows(tmp_path):
    for frame in (rows_of(100, 21.0), rows_of(200, 22.0), rows_of(200, 23.0)):
        validate.record(tmp_path, frame)
    validate.record(tmp_path, rows_of(200, 24.0, weights="raw"))
    frame = validate.read(tmp_path)
    means = frame.group_by("step", "weights").agg(pl.col("psnr_y").mean()).sort("step", "weights")
    assert means.rows() == [(100, "ema", 22.0), (200, "ema", 24.0), (200, "raw", 25.0)]
    assert [p.name for p in tmp_path.iterdir()] == [validate.FILE]


def test_a_validation_on_other_images_never_mixes_with_the_run_s_own(tmp_path):
    validate.record(tmp_path, rows_of(100, 21.0))
    validate.record(tmp_path, rows_of(200, 22.0))
    validate.record(tmp_path, rows_of(200, 30.0, image_set="y", lpips=0.1))
    assert validate.read(tmp_path)["image_set"].unique().to_list() == ["y"]
    training = validate.read(tmp_path, "training")
    assert sorted(training["step"].unique()) == [100, 200]
    assert training["image_set"].unique().to_list() == ["x"]
    everything = validate.read(tmp_path, "all")
    assert len(everything) == 3 * 12
    with pytest.raises(ValueError, match="differ in image_set: x, y"):
        validate.summary(everything)
    with pytest.raises(ValueError, match="'last', 'training' or 'all'"):
        validate.read(tmp_path, "some")


@pytest.mark.parametrize("column", validate.PROTOCOL_COLUMNS)
def test_rows_of_different_protocols_are_neither_averaged_nor_compared(column):
    other = 4 if column == "crop_border" else "another"
    changed = rows_of(1, 22.0).with_columns(pl.lit(other).alias(column))
    frame = pl.concat([rows_of(1, 21.0), changed], how="vertical_relaxed")
    with pytest.raises(ValueError, match=f"differ in {column}"):
        validate.check_comparable(frame)


def test_a_summary_holds_the_last_step_s_means_and_gains():
    frame = pl.concat([rows_of(100, 21.0), rows_of(200, 24.0)])
    table = validate.summary(frame)
    assert table["degradation"].to_list() == ["Haze", "Rain"]
    for row in table.to_dicts():
        assert (row["n"], row["photographs"]) == (6, 3)
        assert row["psnr_y"] == pytest.approx(25.0)
        assert row["gain"] == pytest.approx(5.0)
        assert 4.0 <= row["gain_low"] < 5.0 < row["gain_high"] <= 6.0
        assert row["ssim_y"] - row["ssim_y_input"] == pytest.approx(0.1)
    mixed = pl.concat([rows_of(1, 21.0), rows_of(1, 21.0, weights="raw")])
    with pytest.raises(ValueError, match="ema and raw"):
        validate.summary(mixed)


def test_an_interval_resamples_photographs_not_their_draws():
    photographs = np.random.default_rng(0).normal(size=20)
    values, names = np.repeat(photographs, 4), np.repeat(np.arange(20), 4)
    mean, low, high = bootstrap.bootstrap_interval(values, names)
    _, low_apart, high_apart = bootstrap.bootstrap_interval(photographs)
    assert (low, high) == pytest.approx((low_apart, high_apart))
    _, low_naive, high_naive = bootstrap.bootstrap_interval(values)
    assert (high - low) > 1.7 * (high_naive - low_naive)
    assert low < mean < high
    assert all(np.isnan(bootstrap.bootstrap_interval([1.0, 2.0], ["a", "a"])[1:]))


def test_an_interval_is_the_percentile_bootstrap_of_scipy():
    from scipy.stats import bootstrap as reference

    values = np.random.default_rng(1).gamma(2.0, size=40)
    expected = reference(
        (values,), np.mean, method="percentile", n_resamples=4000, rng=np.random.default_rng(2)
    ).confidence_interval
    _, low, high = bootstrap.bootstrap_interval(values)
    spread = expected.high - expected.low
    assert low == pytest.approx(expected.low, abs=0.05 * spread)
    assert high == pytest.approx(expected.high, abs=0.05 * spread)


# --- the trivial baseline -------------------------------------------------------------------------


def test_an_affine_colour_change_is_undone_exactly():
    generator = torch.Generator().manual_seed(0)
    gts = [torch.rand(3, 20, 24, generator=generator) * 0.5 + 0.25 for _ in range(3)]
    mix = torch.tensor([[0.5, 0.1, 0.0], [0.0, 0.4, 0.1], [0.1, 0.0, 0.6]])
    lqs = [torch.einsum("dc,chw->dhw", mix, gt) + 0.1 for gt in gts]
    matrix = baseline.fit_affine(zip(lqs, gts, strict=True))
    for lq, gt in zip(lqs, gts, strict=True):
        torch.testing.assert_close(baseline.apply_affine(matrix, lq), gt, rtol=0, atol=1e-5)


def test_the_fit_is_the_least_squares_solution_over_all_pixels():
    generator = torch.Generator().manual_seed(0)
    pairs = [torch.rand(2, 3, 9, n, generator=generator) for n in (8, 13)]
    inputs, targets = (
        np.concatenate([p[i].reshape(3, -1).T.double().numpy() for p in pairs]) for i in (0, 1)
    )
    inputs = np.concatenate([inputs, np.ones((len(inputs), 1))], axis=1)
    expected = np.linalg.lstsq(inputs, targets, rcond=None)[0]
    np.testing.assert_allclose(baseline.fit_affine(pairs), expected, atol=1e-9)


def test_the_baseline_brightens_low_light_and_cannot_sharpen_blur(tmp_path, samples):
    config = config_of(tmp_path)
    frame = baseline.best_affine(config, data.validation_items(config, samples))
    assert len(frame) == 2 * 2 * data.NUM_DRAWS
    gains = dict(baseline.gain(frame).select("degradation", "gain").rows())
    assert gains["Lowlight"] > 3
    assert abs(gains["Blur"]) < 1


# --- a finished run -------------------------------------------------------------------------------


@pytest.fixture
def finished(tmp_path):
    """Return the config of a run with checkpoints `best` and `latest`, ema unlike raw."""
    from darkroom.run import RunDirectory

    write_pictures(tmp_path / "pictures", count=6, size=48)
    config = config_of(tmp_path)
    run = RunDirectory(config)
    run.open(1)
    recipe = recipes.build(config)
    raw = {k: v.detach().clone() for k, v in parameters_of(recipe).items()}
    ema = {k: v + 0.01 for k, v in raw.items()}
    for step in (10, 20):
        checkpoint.save(run.path, step, {"weights": raw, "ema": ema}, {})
    checkpoint.link(run.path, "best", 10)
    return config


def parameters_of(recipe):
    return {
        f"{name}.{key}": value
        for name, module in recipe.modules.items()
        for key, value in module.named_parameters()
    }


def test_the_latest_checkpoint_is_judged_unless_early_stopping_chose_the_best(finished):
    assert inference.chosen(finished) == "latest"
    rule = {"metric": "psnr_y", "patience": 2, "min_delta": 0.0}
    assert inference.chosen(load_again(finished, **{"train.early_stopping": rule})) == "best"


def test_validate_scores_the_checkpoint_s_ema_and_records_it(finished):
    frame = validate.validate(finished, progress=False)
    assert frame["step"].unique().to_list() == [20]
    assert frame["weights"].unique().to_list() == ["ema"]
    assert (frame["psnr_y"] - frame["psnr_y_input"]).abs().max() > 0.01
    assert frame["psnr_y_affine"].null_count() == 0
    recorded = pl.read_parquet(finished.run_dir / validate.FILE)
    assert recorded.equals(frame)
    raw = load_again(finished, **{"validation.weights": "raw"})
    frame = validate.validate(raw, step=10, baseline=False, progress=False)
    assert frame["step"].unique().to_list() == [10]
    np.testing.assert_allclose(frame["psnr_y"], frame["psnr_y_input"], atol=1e-3)
    assert len(validate.read(finished.run_dir, "all")) == len(recorded) + len(frame)


def load_again(config, **override):
    values = json.loads(json.dumps(config.to_dict()))
    for key, value in override.items():
        section, name = key.split(".")
        values[section][name] = value
    return type(config).from_dict(values)


def test_the_model_is_the_run_s_own_whatever_the_given_config_says(finished):
    other = load_again(finished, **{"data.crop_size": 24})
    with pytest.warns(UserWarning, match="data.crop_size"):
        frame = validate.validate(other, baseline=False, progress=False)
    expected = validate.validate(finished, baseline=False, progress=False)
    assert frame.drop("config_hash").equals(expected.drop("config_hash"))


def test_pictures_restored_again_have_the_scores_of_the_table(finished):
    frame = validate.validate(finished, baseline=False, progress=False)
    chosen = frame[[0, 3, -1]]
    pictures = validate.restore_items(finished, chosen.select(KEYS).rows())
    for row, (_, restored, gt) in zip(chosen.to_dicts(), pictures, strict=True):
        x, y = (torch.from_numpy(p.copy()).permute(2, 0, 1)[None] for p in (restored, gt))
        assert float(metrics.psnr_y(x, y)) == pytest.approx(row["psnr_y"], abs=1e-9)
    with pytest.raises(ValueError, match="is not a validation item"):
        validate.restore_items(finished, [("no such", "Blur", 0)])
