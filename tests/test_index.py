"""Sources become one checked table: folders, pair trees, parquet and the embedded photographs."""

import polars as pl
import pytest
from darkroom import index
from darkroom.photographs import HELD_OUT, PHOTOGRAPHS
from small_sets import configured, hazy, indexed, pairs, picture, save

TRAINED = {p.name for p in PHOTOGRAPHS} - set(HELD_OUT)
COLUMNS = [
    "path", "pair", "role", "split", "degradation", "width", "height", "bytes", "content_hash",
    "status", "reason", "prompt", "modified_ns", "image", "selected",
]  # fmt: skip


def test_the_photographs_keep_their_split_and_have_no_problem(tmp_path):
    frame = indexed(tmp_path, "photographs", None)
    assert frame.columns == COLUMNS
    assert set(frame["status"]) == {"ok"}
    assert set(index.samples(frame, "val")["image"]) == set(HELD_OUT)
    train = index.samples(frame, "train")
    assert set(train["image"]) == TRAINED
    assert train["lq_path"].null_count() == train["degradation"].null_count() == len(TRAINED)


def test_a_folder_holds_out_about_a_tenth_the_same_whatever_the_names(tmp_path):
    for i in range(40):
        save(tmp_path / "a" / "deep" / f"{i:02d}.png", picture(i))
        save(tmp_path / "b" / f"other{39 - i:02d}.png", picture(i))
    first, second = (indexed(tmp_path, "folder", n) for n in "ab")
    held_out = [set(f.filter(pl.col("split") == "val")["content_hash"]) for f in (first, second)]
    assert held_out[0] == held_out[1]
    assert 1 <= len(held_out[0]) <= 10
    other = indexed(tmp_path, "folder", "a", seed=232)
    assert set(other.filter(pl.col("split") == "val")["content_hash"]) != held_out[0]


def test_two_pictures_are_enough_for_both_sides(tmp_path):
    for i in range(2):
        save(tmp_path / "set" / f"{i}.png", picture(i))
    assert sorted(indexed(tmp_path, "folder", "set")["split"]) == ["train", "val"]


def test_pairs_are_matched_by_stem_across_suffixes_and_named_by_their_folder(tmp_path):
    pairs(tmp_path / "set", "Haze", 3)
    pairs(tmp_path / "set", "low_light", 3, first=10)
    frame = indexed(tmp_path, "pairs", "set")
    assert len(frame) == 12
    assert dict(frame["degradation"].value_counts().iter_rows()) == {"Haze": 6, "Lowlight": 6}
    rows = pl.concat([index.samples(frame, s) for s in ("train", "val")])
    assert len(rows) == 6
    for row in rows.iter_rows(named=True):
        assert row["lq_path"].endswith(".jpg")
        assert row["gt_path"] == row["lq_path"].replace("/LQ/", "/GT/").replace(".jpg", ".png")
    for kind in ("Haze", "Lowlight"):  # a tenth of three is none, yet each type is validated
        assert kind in index.samples(frame, "val")["degradation"]


def test_a_root_with_one_lq_and_gt_is_a_set_of_pairs_without_a_type(tmp_path):
    pairs(tmp_path, "set", 3)
    frame = indexed(tmp_path, "pairs", "set")
    assert frame["degradation"].null_count() == 6
    assert set(frame["pair"]) == {"000", "001", "002"}


def test_folders_named_train_and_val_are_the_split(tmp_path):
    pairs(tmp_path / "set" / "train", "Rain", 3)
    pairs(tmp_path / "set" / "Val", "Rain", 2, first=50)
    frame = indexed(tmp_path, "pairs", "set")
    assert len(index.samples(frame, "train")) == 3
    assert set(index.samples(frame, "val")["image"]) == {"Val/Rain/050", "Val/Rain/051"}


def test_a_place_for_validation_makes_the_rest_training(tmp_path):
    pairs(tmp_path / "one", "Snow", 3)
    pairs(tmp_path / "two", "Snow", 2, first=50)
    frame = indexed(tmp_path, "pairs", "one", **{"validation.data": "two"})
    assert len(index.samples(frame, "train")) == 3
    assert len(index.samples(frame, "val")) == 2
    mixed = indexed(tmp_path, "photographs", None, **{"validation.data": "two"})
    assert set(index.samples(mixed, "train")["image"]) == TRAINED
    assert not set(mixed["image"]) & set(HELD_OUT)


def test_a_parquet_of_images_uses_its_columns_prefix_and_prompts(tmp_path):
    for i in range(3):
        save(tmp_path / "pool" / f"{i}.png", picture(i))
    table = {"file": ["0.png", "1.png", "2.png"], "words": ["a cat", None, "rain"]}
    pl.DataFrame(table).write_parquet(tmp_path / "list.parquet")
    keys = {"data.image_key": "file", "data.prompt_key": "words", "data.prefix": "pool"}
    frame = indexed(tmp_path, "parquet", "list.parquet", **keys)
    assert dict(frame.select("image", "prompt").iter_rows()) == {"0": "a cat", "1": "", "2": "rain"}
    assert set(frame["status"]) == {"ok"}
    frame = indexed(tmp_path, "parquet", "list.parquet", **{**keys, "data.prompt_key": "none"})
    assert set(frame["prompt"]) == {""}


def test_a_paired_parquet_finds_types_and_names_files_that_are_missing(tmp_path):
    pairs(tmp_path / "set", "Haze", 3)
    table = pl.DataFrame(
        {
            "lq_path": [f"set/Haze/LQ/{i:03d}.jpg" for i in range(4)],
            "gt_path": [f"set/Haze/GT/{i:03d}.png" for i in range(4)],
            "prompt": ["sharp"] * 4,
        }
    )
    table.write_parquet(tmp_path / "list.parquet")
    frame = indexed(tmp_path, "parquet", "list.parquet")
    missing = frame.filter(pl.col("status") == "excluded")
    assert set(missing["pair"]) == {"003"}
    assert set(missing["reason"]) == {"there is no such file"}
    assert set(frame["degradation"]) == {"Haze"}
    assert len(index.samples(frame, "train")) + len(index.samples(frame, "val")) == 3


@pytest.mark.parametrize("key", ["data.image_key", "data.prompt_key"])
def test_a_parquet_without_the_column_says_which_it_has(tmp_path, key):
    save(tmp_path / "0.png", picture(0))
    pl.DataFrame({"image_path": ["0.png"], "prompt": [""]}).write_parquet(tmp_path / "list.parquet")
    with pytest.raises(ValueError, match="image_path, prompt") as caught:
        indexed(tmp_path, "parquet", "list.parquet", **{key: "absent"})
    assert "absent" in str(caught.value)
    assert key in str(caught.value)


def test_written_parquet_is_read_back_as_the_same_samples(tmp_path):
    pairs(tmp_path / "set", "Haze", 4)
    frame = indexed(tmp_path, "pairs", "set")
    index.write_parquet(frame, tmp_path / "out" / "paired.parquet", "paired")
    index.write_parquet(frame, tmp_path / "out" / "hypir.parquet")
    paired = pl.read_parquet(tmp_path / "out" / "paired.parquet")
    assert paired.columns == ["lq_path", "gt_path", "prompt"]
    assert pl.read_parquet(tmp_path / "out" / "hypir.parquet").columns == ["image_path", "prompt"]
    again = indexed(tmp_path, "parquet", "out/paired.parquet")
    hashes = [
        {h for s in ("train", "val") for h in index.samples(f, s)["lq_hash"]}
        for f in (frame, again)
    ]
    assert len(hashes[1]) == 3
    assert hashes[1] < hashes[0]
    with pytest.raises(ValueError, match="hypir, paired"):
        index.write_parquet(frame, tmp_path / "x.parquet", "yolo")
    singles = indexed(tmp_path, "photographs", None)
    with pytest.raises(ValueError, match="layout hypir writes images without pairs"):
        index.write_parquet(singles, tmp_path / "x.parquet", "paired")


def test_types_and_ratio_leave_training_samples_aside_a_type_at_a_time(tmp_path):
    for number, kind in enumerate(("Haze", "Rain")):
        pairs(tmp_path / "one", kind, 8, first=100 * number)
        pairs(tmp_path / "two", kind, 2, first=100 * number + 50)
    here = {"validation.data": "two"}
    half = indexed(tmp_path, "pairs", "one", **here, **{"data.sample_ratio": 0.5})
    chosen = index.samples(half, "train")
    assert dict(chosen["degradation"].value_counts().iter_rows()) == {"Haze": 4, "Rain": 4}
    assert len(index.samples(half, "val")) == 4
    again = indexed(tmp_path, "pairs", "one", **here, **{"data.sample_ratio": 0.5})
    assert index.samples(again, "train").equals(chosen)
    rain = indexed(tmp_path, "pairs", "one", **here, **{"data.types": ["Rain"]})
    assert set(index.samples(rain, "train")["degradation"]) == {"Rain"}
    assert set(index.samples(rain, "val")["degradation"]) == {"Rain"}


def test_the_index_hash_follows_contents_and_not_places(tmp_path):
    pairs(tmp_path / "one", "Haze", 4)
    pairs(tmp_path / "moved" / "away", "Haze", 4)
    frames = [indexed(tmp_path, "pairs", place) for place in ("one", "moved/away")]
    hashes = [index.index_hash(index.samples(f, "train")) for f in frames]
    assert hashes[0] == hashes[1]
    save(tmp_path / "one" / "Haze" / "LQ" / "001.jpg", hazy(picture(1)), quality=90)
    changed = indexed(tmp_path, "pairs", "one")
    both = [
        [index.index_hash(index.samples(f, split)) for split in ("train", "val")]
        for f in (frames[0], changed)
    ]
    assert both[0] != both[1]


def test_a_missing_place_and_an_empty_one_say_what_was_looked_for(tmp_path):
    with pytest.raises(ValueError, match=r"data\.train is .*nowhere, which does not exist"):
        indexed(tmp_path, "folder", "nowhere")
    with pytest.raises(ValueError, match=r"data\.train` names no folder"):
        indexed(tmp_path, "pairs", None)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("nothing here")
    with pytest.raises(ValueError, match=r"empty holds no image: 1 files"):
        indexed(tmp_path, "folder", "empty")
    save(tmp_path / "flat" / "0.png", picture(0))
    with pytest.raises(ValueError, match="none below a folder LQ or GT"):
        indexed(tmp_path, "pairs", "flat")


def test_a_place_where_every_file_is_broken_says_how_many_and_why(tmp_path):
    for i in range(3):
        (tmp_path / "bad").mkdir(exist_ok=True)
        (tmp_path / "bad" / f"{i}.png").write_bytes(b"not a picture" + bytes([i]))
    with pytest.raises(ValueError, match=r"3 files found.*3 × not a picture format"):
        indexed(tmp_path, "folder", "bad")


def test_sources_of_later_work_are_refused_by_name(tmp_path):
    config = configured(tmp_path, "photographs", None)
    later = config.model_copy(update={"data": config.data.model_copy(update={"source": "icons"})})
    with pytest.raises(ValueError, match="data.source icons"):
        index.build_index(later)


def test_headers_agree_with_pil_and_report_what_is_no_picture(tmp_path):
    paths = [
        save(tmp_path / "a.png", picture(0, 51, 40)),
        save(tmp_path / "b.jpg", picture(1, 33, 77), exif=b"Exif\0\0" + b"x" * 9000),
        save(tmp_path / "c.webp", picture(2, 64, 32)),
        save(tmp_path / "d.png", picture(3)[..., 0]),
        save(tmp_path / "e.bmp", picture(4, 20, 30)),
    ]
    (tmp_path / "f.jpg").write_bytes(paths[1].read_bytes()[:30])
    (tmp_path / "g.png").write_text("words")
    frame = index.headers([*paths, tmp_path / "f.jpg", tmp_path / "g.png", tmp_path / "no.png"])
    assert frame["width"].to_list() == [51, 33, 64, 120, 20, None, None, None]
    assert frame["height"].to_list() == [40, 77, 32, 88, 30, None, None, None]
    assert frame["format"].to_list()[:5] == ["PNG", "JPEG", "WEBP", "PNG", "BMP"]
    assert frame["mode"].to_list()[:5] == ["RGB", "RGB", "RGB", "L", "RGB"]
    assert frame["reason"].to_list()[:5] == [None] * 5
    for reason, word in zip(
        frame["reason"][5:], ("cut off", "not a picture", "No such"), strict=True
    ):
        assert word in reason  # fmt: skip
