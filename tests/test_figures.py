"""Figures: they render, say what the frame says, and clip nothing."""

import io

import numpy as np
import polars as pl
import pytest
from darkroom.report import curves, figures, style, tables, triplets
from PIL import Image

TYPES = ("Blur", "Haze", "Rain")


def training_rows(steps: int = 200) -> pl.DataFrame:
    """Rows of train.jsonl with an exact exponential, so that titles can be held against it."""
    rows = []
    for step in range(1, steps + 1):
        loss = 0.5 * 0.97**step + 0.001
        row = {"step": step, "seconds": 0.1 * step, "loss/generator_l1": 0.75 * loss}
        row |= {"loss/generator_gan": 0.25 * loss, "loss/generator_total": loss}
        row |= {"loss/discriminator_total": 1.4 - 0.001 * step, "memory/rss_gib": 1.25}
        row |= {"lr/generator": 1e-3 * (1 - step / steps), "lr/discriminator": 1e-4}
        row |= {"grad_norm/generator": 2.0 if step <= steps // 4 else 0.5}
        row |= {"grad_norm/discriminator": 0.5}
        row |= {f"loss_by_degradation/{t}": loss * (n + 1) for n, t in enumerate(TYPES)}
        if step % 3 == 0:
            row["loss_by_degradation/Rain"] = None
        rows.append(row)
    return pl.DataFrame(rows, infer_schema_length=None)


def validation_rows(steps=(10, 20), gains=(1.0, 3.0, 5.0), lift=0.0) -> pl.DataFrame:
    """Scores whose gain per type is exactly `gains` at the last step and half of it before."""
    rows = []
    for step in steps:
        share = 1.0 if step == steps[-1] else 0.5
        for image in range(4):
            for name, gain in zip(TYPES, gains, strict=True):
                for draw in range(2):
                    before = 20.0 + image + draw
                    rows.append(
                        {
                            "step": step,
                            "weights": "ema",
                            "image": f"photograph_{image}",
                            "degradation": name,
                            "draw": draw,
                            "psnr_y": before + share * gain + lift,
                            "ssim_y": 0.8,
                            "psnr_y_input": before,
                            "ssim_y_input": 0.7,
                            "protocol": "darkroom-1",
                            "crop_border": 0,
                            "colour": "Y of BT.601, 16-235",
                            "rounding": "8-bit",
                            "lpips_trunk": "vgg 0.1",
                            "image_set": "abc",
                        }
                    )
    return pl.DataFrame(rows)


def index_rows() -> pl.DataFrame:
    rows = []
    for n in range(30):
        for role in ("lq", "gt"):
            bad = n == 7 and role == "gt"
            rows.append(
                {
                    "path": f"/set/{TYPES[n % 3]}/{role.upper()}/{n}.png",
                    "pair": f"{n}",
                    "role": role,
                    "split": "val" if n < 6 else "train",
                    "degradation": TYPES[n % 3],
                    "width": 300 + 10 * n,
                    "height": 200 + 10 * n,
                    "bytes": 2**20,
                    "content_hash": f"{n}{role}",
                    "status": "excluded" if bad else "ok",
                    "reason": "truncated" if bad else None,
                    "prompt": "",
                    "modified_ns": 0,
                }
            )
    return pl.DataFrame(rows, infer_schema_length=None)


def title(picture) -> str:
    return picture.get_suptitle()


def pixels(picture) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(picture._repr_png_())).convert("L"))


RENDERED = {
    "losses": lambda: figures.losses(training_rows()),
    "loss_by_degradation": lambda: figures.loss_by_degradation(training_rows()),
    "learning_rates": lambda: figures.learning_rates(training_rows()),
    "gradient_norms": lambda: figures.gradient_norms(training_rows(), 1.0),
    "memory": lambda: figures.memory(training_rows(), 2.0),
    "live": lambda: figures.live(training_rows(3), 200),
    "bars": lambda: figures.bars(validation_rows()),
    "over_training": lambda: figures.over_training(validation_rows()),
    "counts": lambda: figures.counts(index_rows()),
    "resolutions": lambda: figures.resolutions(index_rows(), 256),
}


@pytest.mark.parametrize("name", RENDERED)
def test_a_figure_renders_at_notebook_width_and_no_ink_touches_its_edge(name):
    image = pixels(RENDERED[name]())
    assert image.shape[1] == round(style.WIDTH * style.DPI)
    assert image.min() < 100, "something is drawn"
    edge = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
    assert edge.min() > 200, "a label or title is cut off at the edge"


def test_drawing_leaves_no_pyplot_state_and_no_changed_style():
    import matplotlib
    from matplotlib import _pylab_helpers

    before = dict(matplotlib.rcParams)
    figures.losses(training_rows()).png()
    assert dict(matplotlib.rcParams) == before
    assert not _pylab_helpers.Gcf.get_all_fig_managers()


def test_the_loss_title_says_first_and_last_running_mean_of_the_first_phase():
    mean = style.smooth(training_rows()["loss/generator_total"].to_numpy())
    text = title(figures.losses(training_rows()))
    assert text == f"Generator loss {mean[0]:.3g} → {mean[-1]:.3g} in 200 steps"


def test_phases_come_in_the_order_of_their_turns_whatever_the_order_of_columns():
    rows = training_rows()
    assert curves.phases(rows) == ["generator", "discriminator"]
    totals = ["loss/discriminator_total", "loss/generator_total"]
    shuffled = rows.select(*totals, pl.all().exclude(totals))
    assert curves.phases(shuffled) == ["generator", "discriminator"]


def test_the_running_mean_is_the_plain_mean_of_its_window_and_passes_over_gaps():
    values = np.random.default_rng(0).normal(size=101)
    values[50] = np.nan
    mean = style.smooth(values, 0.1)  # a window of 5 to each side
    assert mean[20] == pytest.approx(values[15:26].mean())
    assert mean[0] == pytest.approx(values[:6].mean())
    assert mean[48] == pytest.approx(np.nanmean(values[43:54]))


def test_a_logarithmic_axis_is_taken_for_decades_only_and_never_with_a_zero():
    assert style.prefers_log([1, 5, 100])
    assert not style.prefers_log([1, 2, 3])
    assert not style.prefers_log([0, 5, 100])
    axis = figures.losses(training_rows()).axes[0]
    assert axis.get_yscale() == "log"


def test_the_share_of_clipped_steps_in_the_title_is_counted():
    assert "12% of the steps" in title(figures.gradient_norms(training_rows(), 1.0))


def test_the_summary_holds_the_gains_the_frame_was_made_with():
    table = figures.scores(validation_rows()).frame
    gains = dict(table.select("degradation", "gain").iter_rows())
    assert gains == pytest.approx({"Blur": 1.0, "Haze": 3.0, "Rain": 5.0, "mean of types": 3.0})
    # every photograph gains the same, so the interval has no width
    assert table["95 % low"].to_list() == pytest.approx(table["gain"].to_list())


def test_numbers_of_two_protocols_are_refused_not_averaged():
    mixed = pl.concat(
        [
            validation_rows(),
            validation_rows().with_columns(pl.lit(4, pl.Int64).alias("crop_border")),
        ]
    )
    with pytest.raises(ValueError, match="crop_border"):
        figures.scores(mixed)


def test_the_bars_have_the_heights_of_the_means():
    picture = figures.bars(validation_rows())
    heights = sorted(round(p.get_height(), 6) for p in picture.axes[0].patches)
    assert heights == pytest.approx([22.0, 22.0, 22.0, 23.0, 25.0, 27.0])
    assert title(picture) == "Restoration gains +3.0 dB on average: +5.0 on Rain, +1.0 on Blur"


def test_the_curve_over_training_names_its_best_step():
    # 20 dB and offsets of 0..3 and 0..1 make 22 dB; half of the 3 dB is gained at first
    assert "best mean 25.00 at step 30 of 30" in title(
        figures.over_training(validation_rows(steps=(10, 20, 30)))
    )


def test_a_pair_counts_once_and_its_excluded_file_is_named():
    frame = index_rows()
    assert title(figures.counts(frame)) == (
        "29 usable images: 23 to train, 6 to validate; 1 left out"
    )
    table = figures.problems(frame)
    assert table.frame.to_dicts() == [
        {"file": "Haze/GT/7.png", "split": "train", "status": "excluded", "reason": "truncated"}
    ]
    assert "1 excluded, 0 warned, of 60 files" in repr(table)


def test_images_smaller_than_the_crop_are_counted_in_the_title():
    # short sides 200, 210, … 490 without the excluded 270: six of them are below 256
    assert "6 images are smaller than the 256 px crop" in title(
        figures.resolutions(index_rows(), 256)
    )


def test_the_extremes_are_the_largest_and_smallest_gains_one_a_degradation():
    rows = triplets.extremes(validation_rows(), number=1)
    assert rows["degradation"].to_list() == ["Rain", "Blur"]
    assert rows["gain"].to_list() == pytest.approx([5.0, 1.0])


def test_the_zoom_finds_the_detail():
    picture = np.full((200, 300, 3), 0.5, np.float32)
    picture[120:140, 210:230] = np.indices((20, 20)).sum(0)[..., None] % 4 / 3
    top, left = triplets.detail(picture, 40)
    assert top <= 120 and top + 40 >= 140
    assert left <= 210 and left + 40 >= 230


def test_a_table_shows_few_digits_dashes_for_absent_values_and_escapes_names():
    frame = pl.DataFrame({"name": ["<b>", "plain"], "value": [1234.5678, None], "n": [1000, 2]})
    table = tables.Table(frame, "A title", digits={"value": 1})
    assert "1,234.6" in repr(table) and "–" in repr(table) and "1,000" in repr(table)
    assert "&lt;b&gt;" in table._repr_html_() and "<b>A title</b>" in table._repr_html_()


def test_labels_at_line_ends_keep_their_distance_and_their_order():
    placed = style.spread([1.0, 1.05, 5.0, 1.02], 0.5)
    order = np.argsort(placed)
    assert order.tolist() == [0, 3, 1, 2]
    assert np.diff(np.sort(placed)).min() >= 0.5 - 1e-6
