"""Embedded charts: each is its number alone, held-out numbers are never trained on, all the way."""

import hashlib
import json
import os
import subprocess
import sys

import numpy as np
import polars as pl
import pytest
import small_runs
from darkroom import charts, data, images, index
from darkroom.config import ConfigError, load_config
from darkroom.report import figures
from small_sets import configured, indexed

SMALL = {"data.chart_size": 64, "data.num_charts": 12, "data.crop_size": 64}
DIGEST = (
    "import hashlib, sys, numpy as np; np.random.seed(int(sys.argv[1])); "
    "{before}"
    "from darkroom import charts; "
    "print(hashlib.sha256(b''.join(charts.render(n, s).tobytes() "
    "for n in {order} for s in (64, 128))).hexdigest())"
)


def digest(before: str, order: str, seed: str, **environment) -> str:
    """Return the hash of some charts drawn in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", DIGEST.format(before=before, order=order), seed],
        env=os.environ | environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout.strip()


def test_a_chart_is_the_same_bytes_in_every_process_whatever_its_settings():
    here = hashlib.sha256(
        b"".join(charts.render(n, s).tobytes() for n in range(6) for s in (64, 128))
    ).hexdigest()
    styled = (
        "import matplotlib; matplotlib.rcParams.update({'lines.linewidth': 5, 'font.size': 30, "
        "'axes.facecolor': 'red', 'text.antialiased': False, 'lines.antialiased': False, "
        "'axes.spines.top': False, 'path.simplify': False, 'axes.grid': True, "
        "'axes.labelcolor': 'red', 'savefig.dpi': 20, 'figure.dpi': 300}); "
    )
    assert digest("", "range(6)", "1", PYTHONHASHSEED="1") == here
    assert digest(styled, "range(6)", "2", PYTHONHASHSEED="2", OMP_NUM_THREADS="1") == here
    assert digest("", "range(1, 7)", "1") != here


def test_drawing_leaves_the_settings_and_the_global_random_state_alone():
    import matplotlib

    before = dict(matplotlib.rcParams)
    matplotlib.rcParams["lines.linewidth"] = 7.0
    np.random.seed(0)  # noqa: NPY002
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    try:
        charts.render(4321, 64)
        assert matplotlib.rcParams["lines.linewidth"] == 7.0
    finally:
        matplotlib.rcParams["lines.linewidth"] = before["lines.linewidth"]
    assert np.array_equal(np.random.get_state()[1], state)  # noqa: NPY002
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize("size", [64, 96, 512])
def test_charts_are_light_paper_with_enough_ink_and_none_is_like_another(size):
    pictures = [charts.render(n, size) for n in range(40)]
    assert len({p.tobytes() for p in pictures}) == len(pictures)
    for picture in pictures:
        assert picture.shape == (size, size, 3) and picture.dtype == np.uint8
        ink = np.mean(picture.min(axis=2) < 150)
        assert 0.005 < ink < 0.4
        assert np.median(picture) > 235
    coloured = [np.ptp(p.astype(int), axis=2).max() > 60 for p in pictures]
    assert 8 < sum(coloured) < 36  # some are grey, some are not


def test_more_charts_to_train_on_leave_the_held_out_ones_as_they_are():
    few, many = charts.numbers(5), charts.numbers(500)
    assert few["val"] == many["val"] and list(few["train"]) == list(many["train"])[:5]
    assert not set(many["val"]) & set(many["train"])


def test_a_chart_is_read_like_a_file_and_a_path_that_names_none_is_none():
    path = charts.path_of(17, 96)
    assert path == "charts:96/chart_00017"
    assert np.array_equal(images.read_image(path), charts.render(17, 96))
    assert charts.find("pictures/charts:96/chart_00017") is None
    with pytest.raises(images.UnreadableImage):
        images.read_image("charts:9/chart_00017")
    for number, size in ((17, 63), (17, 513), (-1, 64)):
        with pytest.raises(ValueError, match="sizes are 64…512"):
            charts.render(number, size)


def test_the_index_lists_them_split_by_chart(tmp_path):
    frame = indexed(tmp_path, "charts", None, **SMALL)
    train, val = (index.samples(frame, split) for split in ("train", "val"))
    assert len(train) == 12 and len(val) == charts.NUM_HELD_OUT
    assert not set(train["image"]) & set(val["image"])
    assert not set(train["gt_hash"]) & set(val["gt_hash"])
    assert set(frame["width"]) == set(frame["height"]) == {64}
    again = indexed(tmp_path, "charts", None, **SMALL)
    assert again.equals(frame)


def test_of_256_charts_hardly_any_looks_like_a_held_out_one(tmp_path):
    frame = indexed(tmp_path, "charts", None, **{**SMALL, "data.num_charts": 256})
    assert len(index.samples(frame, "train")) > 250
    assert len(frame.filter(pl.col("status") == "warned")) < 6


def test_the_notebook_of_the_index_works_on_charts(tmp_path):
    config = configured(tmp_path, "charts", None, **SMALL, **{"degradation.kind": "document"})
    frame = index.build_index(config, workers=1, progress=False)
    for shown in (
        figures.summary(frame),
        figures.counts(frame),
        figures.resolutions(frame, config.data.crop_size),
        figures.contact_sheet(frame),
        figures.degradations(config, frame),
        figures.problems(frame),
    ):
        assert repr(shown)
    path = tmp_path / "images.parquet"
    index.write_parquet(frame, path, layout="hypir")
    table = pl.read_parquet(path)
    assert len(table) == 12
    first = images.read_image(table["image_path"][0])
    assert np.array_equal(first, charts.render(charts.NUM_HELD_OUT, 64))


def test_validation_items_are_held_out_charts_with_every_domain(tmp_path):
    config = configured(
        tmp_path, "charts", None, **SMALL,
        **{"degradation.kind": "document", "degradation.types": ["Gaussian", "Lines", "Gaussian"]},
    )  # fmt: skip
    frame = index.build_index(config, workers=1, progress=False)
    items = data.validation_items(config, index.samples(frame, "val"))
    assert len(items) == charts.NUM_HELD_OUT * 2 * data.NUM_DRAWS
    sample = data.load_item(items[0], config)
    assert sample.lq.shape == sample.gt.shape == (3, 64, 64)
    dataset = data.TrainingSet(index.samples(frame, "train"), config)
    drawn = [dataset["network", n] for n in range(48)]
    names = [s.degradation for s in drawn]
    assert set(names) == {"Gaussian", "Lines"}
    assert names.count("Gaussian") > names.count("Lines")  # named twice
    assert {s.image for s in drawn} <= set(index.samples(frame, "train")["image"])


def test_a_crop_larger_than_the_charts_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="larger than charts of data.chart_size 128"):
        configured(tmp_path, "charts", None, **{"data.crop_size": 192})
    configured(tmp_path, "charts", None, **{"data.crop": "none"})
    note = "without effect: data.chart_size: 64 (data.source is photographs)"
    assert note in load_config(base=None, run="x", data={"chart_size": 64}).warnings


def test_a_small_regression_trains_on_charts_and_scores_by_domain(tmp_path):
    options = {
        "model.recipe": "regression",
        "data.source": "charts",
        "data.train": None,
        "data.chart_size": 64,
        "data.num_charts": 6,
        "data.crop_size": 48,
        "degradation.kind": "document",
        "degradation.types": ["Motion", "Scan"],
        "train.steps": 2,
        "train.save_every": None,
        "validation.every": 2,
        "validation.samples_per_type": 2,
    }
    done = small_runs.train_process(tmp_path, **options)
    assert done.returncode == 0, done.stderr[-2000:]
    run = tmp_path / "runs" / "small"
    rows = [json.loads(line) for line in (run / "train.jsonl").read_text().splitlines()]
    last = rows[-1]
    named = {k.rsplit("/", 1)[-1] for r in rows for k in r if k.startswith("loss_by_degradation/")}
    assert last["step"] == 2 and named <= {"Motion", "Scan"} and named
    from darkroom import validate

    scored = validate.read(run)
    assert set(scored["degradation"]) == {"Motion", "Scan"}
    assert set(scored["image"]) <= {charts.name_of(n) for n in charts.numbers(6)["val"]}
