"""Whether a file can be used, and why not: measures in, reasons out.

Every function takes the joined table (a row a file, with its measures) and returns it with one
column more, `excluded:<rule>` or `warned:<rule>`, that holds the reason or null.
"""

from __future__ import annotations

from .trees import SUFFIXES

# The limits of a pair, tried on 1,078 pairs of five types, real and composed. As they are, none is
# called swapped and 11 shifted, all blurred: ten by one kernel, whose turns they follow, one by
# another. Of 322, swapped by hand, 94 to 100 % are seen in every type; where the type has no name,
# all of haze and low light, 22 % of blur, none of rain and snow. Shifted by 2 px, 92 to 100 % are
# seen, of blur 25 %; by (7, 5) px 98 to 100 %, of blur 90 %.
SWAPPED_GAIN = 1.15  # the LQ shows the GT's own detail this much stronger
SWAPPED_DETAIL = 1.5  # of a Blur pair: LQ detail over GT detail
SWAPPED_STEPS = 20.0  # of a Lowlight pair: LQ brighter by so many of 255
ADDED_LIGHT_STEPS = -1.0  # of a Rain or Snow pair, which add light: LQ darker than this, and …
ADDED_DETAIL = 0.9  # … with less detail, or …
ADDED_SKEW = -1.0  # … missing light in few places
SHIFT_PIXELS = 1.75  # 2 px, less what the estimate may be off
SHIFT_RESPONSE = 0.1
SHIFT_FINE = 0.95
SHIFT_COARSE = 0.8  # asked of Blur and unnamed types too: motion blur moves edges, not pictures


def judge_files(table):
    """Add the reasons that concern a file alone: unreadable, misnamed, converted."""
    import polars as pl

    suffix = pl.col("path").str.extract(r"(\.[^./]*)$").str.to_lowercase()
    claimed = suffix.replace_strict(SUFFIXES, default=None, return_dtype=pl.String)
    found = pl.col("format").replace({"MPO": "JPEG"})
    missing = pl.col("bytes").is_null() & pl.col("problem").is_null()
    return table.with_columns(
        pl.col("problem").alias("excluded:listed"),
        pl.when(missing).then(pl.lit("there is no such file")).alias("excluded:missing"),
        pl.col("error").alias("excluded:error"),
        pl.when(pl.col("content_hash") != pl.col("written_hash"))
        .then(pl.lit("its bytes are not those that were written there: write the shards anew"))
        .alias("excluded:changed"),
        pl.when(claimed.is_not_null() & (found != claimed))
        .then(pl.format("wrong extension: a {} file is named {}", found, suffix))
        .alias("warned:extension"),
        pl.col("notes").alias("warned:notes"),
    )


def judge_pairs(table):
    """Add the reasons that concern a pair, to both of its files: sizes, swapped, misaligned."""
    import polars as pl

    lq = table.filter(pl.col("partner").is_not_null())
    gt = table.filter(pl.col("role") == "gt").select(
        "pair", "listing", gt_width="width", gt_height="height", gt_hash="content_hash"
    )
    lq = lq.join(gt, on=["pair", "listing"], how="left")
    size = (pl.col("width") != pl.col("gt_width")) | (pl.col("height") != pl.col("gt_height"))
    sizes = ("width", "height", "gt_width", "gt_height")
    same = pl.col("content_hash") == pl.col("gt_hash")
    reasons = lq.select(
        "pair",
        "listing",
        pl.when(size)
        .then(pl.format("sizes differ: LQ {}x{}, GT {}x{}", *sizes))
        .alias("excluded:size"),
        pl.when(same).then(pl.lit("LQ and GT are the same bytes")).alias("warned:same"),
        _swapped().alias("warned:swapped"),
        _misaligned().alias("warned:misaligned"),
    )  # fmt: skip
    return table.join(reasons, on=["pair", "listing"], how="left")


def _swapped():
    """Return the reason why LQ and GT look swapped, as an expression.

    Not seen: swapped noise, compression and swapped pairs whose detail is unrelated.
    """
    import polars as pl

    kind, gain, detail = pl.col("degradation").fill_null(""), pl.col("gain"), pl.col("detail")
    text = "LQ and GT look swapped: "
    return (
        pl.when(gain > SWAPPED_GAIN)
        .then(pl.format(text + "the LQ shows the GT's detail {} times as strong", gain.round(2)))
        .when((kind == "Blur") & (detail > SWAPPED_DETAIL))
        .then(pl.format(text + "the LQ has {} times the GT's detail", detail.round(2)))
        .when((kind == "Lowlight") & (pl.col("brightness") > SWAPPED_STEPS))
        .then(pl.format(text + "the LQ is {} steps brighter", pl.col("brightness").round(0)))
        .when(
            kind.is_in(["Rain", "Snow"])
            & (pl.col("brightness") < ADDED_LIGHT_STEPS)
            & ((detail < ADDED_DETAIL) | (pl.col("skew") < ADDED_SKEW))
        )
        .then(pl.lit(text + "the GT has light that the LQ has not, as rain and snow add it"))
    )


def _misaligned():
    """Return the reason why LQ and GT look shifted, as an expression."""
    import polars as pl

    far = pl.max_horizontal(pl.col("shift_x").abs(), pl.col("shift_y").abs()) >= SHIFT_PIXELS
    sure = (pl.col("response") > SHIFT_RESPONSE) & (pl.col("fine") < SHIFT_FINE)
    sharp = pl.col("degradation").is_in(["Haze", "Lowlight", "Rain", "Snow"])
    return pl.when(far & sure & ((pl.col("coarse") < SHIFT_COARSE) | sharp.fill_null(False))).then(
        pl.format(
            "misaligned: the LQ lies ({}, {}) px off its GT (x right, y down)",
            pl.col("shift_x").round(1),
            pl.col("shift_y").round(1),
        )
    )


def settle(table):
    """Turn the reason columns into status and reason; a pair falls with either of its files."""
    import polars as pl

    left_out = [c for c in table.columns if c.startswith("excluded:")]
    warned = [c for c in table.columns if c.startswith("warned:")]
    table = table.with_columns(
        pl.concat_str(left_out, separator="; ", ignore_nulls=True).replace("", None).alias("out"),
        pl.concat_str(warned, separator="; ", ignore_nulls=True).replace("", None).alias("warning"),
    )
    fallen = (
        table.filter(pl.col("pair").is_not_null() & pl.col("out").is_not_null())
        .group_by("pair", "listing")
        .agg(pl.col("role").first().alias("fallen_role"), pl.col("out").first().alias("fallen"))
    )
    table = table.join(fallen, on=["pair", "listing"], how="left").with_columns(
        pl.when(pl.col("out").is_null() & pl.col("fallen").is_not_null())
        .then(pl.format("its {}: {}", pl.col("fallen_role").str.to_uppercase(), "fallen"))
        .otherwise("out")
        .alias("out")
    )
    return table.with_columns(
        pl.when(pl.col("out").is_not_null())
        .then(pl.lit("excluded"))
        .when(pl.col("warning").is_not_null())
        .then(pl.lit("warned"))
        .otherwise(pl.lit("ok"))
        .alias("status"),
        pl.coalesce("out", "warning").alias("reason"),
    )
