"""Every fault a file or a pair can have is found, named with its reason, and ends no run."""

import os
import struct
import zlib

import cv2
import numpy as np
import polars as pl
import pytest
from darkroom import degradations, images, index
from darkroom.index import duplicates
from darkroom.photographs import photograph_paths
from PIL import Image
from small_sets import hazy, indexed, pairs, picture, save, statuses


def photograph(name: str) -> np.ndarray:
    """Return an embedded photograph's middle 288 x 288."""
    array = images.read_image(photograph_paths()[name])
    top, left = (array.shape[0] - 288) // 2, (array.shape[1] - 288) // 2
    return array[top : top + 288, left : left + 288]


def degraded(name: str, kind: str) -> np.ndarray:
    generator = np.random.default_rng(5)
    found = degradations.degrade(photograph(name).astype(np.float32) / 255, kind, 0.5, generator)
    return np.rint(found.clip(0, 1) * 255).astype(np.uint8)


def bomb() -> bytes:
    header = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header
    return start + struct.pack(">I", zlib.crc32(header)) + struct.pack(">I", 0) + b"IDAT"


def test_every_broken_file_is_left_out_with_its_reason(tmp_path):
    folder = tmp_path / "set"
    for i in range(3):
        save(folder / f"good{i}.png", picture(i))
    cut = save(folder / "cut.jpg", picture(10), quality=95)
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    cut = save(folder / "cut.png", picture(11))
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    (folder / "bomb.png").write_bytes(bomb())
    (folder / "empty.jpg").touch()
    (folder / "words.jpg").write_text("not a picture")
    (folder / "dangling.png").symlink_to(folder / "gone.png")
    os.mkfifo(folder / "pipe.png")  # reading it would wait for ever
    frame = indexed(tmp_path, "folder", "set")
    found = statuses(frame)
    for name, words in {
        "cut.jpg": "truncated",
        "cut.png": "truncated",
        "bomb.png": "decompression bomb",
        "empty.jpg": "the file is empty",
        "words.jpg": "not a picture format",
        "dangling.png": "there is no such file",
    }.items():
        assert found[name][0] == "excluded", name
        assert words in found[name][1], name
    assert "pipe.png" not in found
    assert [found[f"good{i}.png"] for i in range(3)] == [("ok", None)] * 3
    used = pl.concat([index.samples(frame, split) for split in ("train", "val")])
    assert sorted(used["image"]) == ["good0", "good1", "good2"]


def test_converted_and_misnamed_files_are_used_and_noted(tmp_path):
    folder = tmp_path / "set"
    exif = Image.Exif()
    exif[0x0112] = 6
    save(folder / "turned.jpg", picture(0), exif=exif)
    folder.joinpath("cmyk.jpg").parent.mkdir(exist_ok=True)
    Image.fromarray(picture(1)).convert("CMYK").save(folder / "cmyk.jpg")
    cv2.imwrite(str(folder / "deep.png"), picture(2).astype(np.uint16) * 257)
    Image.fromarray(picture(3)).quantize(64).save(folder / "palette.png")
    Image.fromarray(np.dstack([picture(4), picture(5)[..., :1]])).save(folder / "alpha.png")
    Image.fromarray(picture(6)).save(folder / "jpeg.png", format="JPEG")
    frame = indexed(tmp_path, "folder", "set")
    assert statuses(frame) == {
        "turned.jpg": ("warned", "EXIF orientation 6 applied"),
        "cmyk.jpg": ("warned", "CMYK converted"),
        "deep.png": ("warned", "16-bit scaled to 8"),
        "palette.png": ("warned", "palette converted"),
        "alpha.png": ("warned", "alpha composited on white"),
        "jpeg.png": ("warned", "wrong extension: a JPEG file is named .png"),
    }
    turned = frame.filter(pl.col("image") == "turned")
    assert turned.select("width", "height").row(0) == (88, 120)


def test_a_pair_falls_with_either_of_its_files(tmp_path):
    folder = pairs(tmp_path / "set", "Haze", 6) / "Haze"
    (folder / "GT" / "000.png").unlink()
    (folder / "LQ" / "001.jpg").unlink()
    save(folder / "LQ" / "002.jpg", hazy(picture(2, 60, 44)))
    (folder / "GT" / "003.png").write_bytes((folder / "GT" / "003.png").read_bytes()[:500])
    save(folder / "LQ" / "004.png", hazy(picture(4)))
    frame = indexed(tmp_path, "pairs", "set")
    found = {
        f"{role} {image[-3:]}": reason
        for role, image, reason in frame.filter(pl.col("status") == "excluded")
        .select("role", "image", "reason")
        .iter_rows()
    }
    assert found["lq 000"] == "no GT partner with this stem"
    assert found["gt 001"] == "no LQ partner with this stem"
    assert found["lq 002"] == found["gt 002"] == "sizes differ: LQ 60x44, GT 120x88"
    assert "truncated" in found["gt 003"]
    assert found["lq 003"].startswith("its GT: ")
    assert found["lq 004"] == "2 LQ files share this stem"
    usable = pl.concat([index.samples(frame, split) for split in ("train", "val")])
    assert usable["image"].to_list() == ["Haze/005"]


@pytest.mark.parametrize("kind", degradations.FIVE_TYPES)
def test_a_swapped_pair_is_seen_and_a_right_one_is_not(tmp_path, kind):
    for name in ("astronaut", "coffee", "chelsea"):
        save(tmp_path / "right" / kind / "LQ" / f"{name}.png", degraded(name, kind))
        save(tmp_path / "right" / kind / "GT" / f"{name}.png", photograph(name))
        save(tmp_path / "wrong" / kind / "GT" / f"{name}.png", degraded(name, kind))
        save(tmp_path / "wrong" / kind / "LQ" / f"{name}.png", photograph(name))
    right, wrong = (indexed(tmp_path, "pairs", place) for place in ("right", "wrong"))
    assert set(right["status"]) == {"ok"}
    assert set(wrong["status"]) == {"warned"}
    assert all("swapped" in reason for reason in wrong["reason"])


@pytest.mark.parametrize("kind", ["Haze", "Lowlight", "Rain", "Snow"])
def test_a_shift_of_two_pixels_is_measured_under_every_sharp_degradation(tmp_path, kind):
    for name in ("astronaut", "coffee", "chelsea"):
        save(tmp_path / "set" / kind / "LQ" / f"{name}.png", degraded(name, kind)[10:-10, 12:-12])
        save(tmp_path / "set" / kind / "GT" / f"{name}.png", photograph(name)[11:-9, 10:-14])
    frame = indexed(tmp_path, "pairs", "set").filter(pl.col("role") == "lq")
    assert set(frame["status"]) == {"warned"}
    for reason in frame["reason"]:
        x, y = map(float, reason.split("lies (")[1].split(")")[0].split(", "))
        assert x == pytest.approx(-2, abs=0.3)
        assert y == pytest.approx(1, abs=0.3)


def test_a_motion_blur_about_its_middle_is_not_a_shift(tmp_path):
    kernel = np.full((1, 15), 1 / 15, np.float32)
    for name in ("astronaut", "coffee", "chelsea"):
        blurred = cv2.filter2D(photograph(name), -1, kernel)
        save(tmp_path / "set" / "Blur" / "LQ" / f"{name}.png", blurred)
        save(tmp_path / "set" / "Blur" / "GT" / f"{name}.png", photograph(name))
    assert set(indexed(tmp_path, "pairs", "set")["status"]) == {"ok"}


def test_noise_is_not_taken_for_sharpness(tmp_path):
    generator = np.random.default_rng(0)
    for name in ("astronaut", "coffee", "chelsea"):
        noisy = photograph(name) + generator.normal(0, 30, (288, 288, 3))
        save(tmp_path / "set" / "LQ" / f"{name}.png", noisy.clip(0, 255).astype(np.uint8))
        save(tmp_path / "set" / "GT" / f"{name}.png", photograph(name))
    assert set(indexed(tmp_path, "pairs", "set")["status"]) == {"ok"}


def test_exact_and_near_duplicates_are_told_apart(tmp_path):
    folder = tmp_path / "one"
    for i in range(4):
        save(folder / f"{i}.png", picture(i))
    (folder / "copy.png").write_bytes((folder / "0.png").read_bytes())
    save(folder / "encoded.jpg", picture(1), quality=80)
    save(folder / "smaller.png", cv2.resize(picture(2), (60, 44), interpolation=cv2.INTER_AREA))
    save(tmp_path / "two" / "other.png", picture(99))
    found = statuses(indexed(tmp_path, "folder", "one", **{"validation.data": "two"}))
    assert found["0.png"] == ("ok", None)
    assert found["copy.png"] == ("excluded", "the same bytes as 0")
    assert found["encoded.jpg"] == ("warned", "nearly the same picture as 1")
    assert found["smaller.png"] == ("warned", "nearly the same picture as 2")
    assert found["3.png"] == ("ok", None)


def test_a_picture_in_train_and_validation_trains_nothing(tmp_path):
    for i in range(4):
        save(tmp_path / "one" / f"{i}.png", picture(i))
    save(tmp_path / "two" / "same.png", picture(0))
    save(tmp_path / "two" / "encoded.jpg", picture(1), quality=85)
    frame = indexed(tmp_path, "folder", "one", **{"validation.data": "two"})
    found = statuses(frame)
    assert found["0.png"] == ("excluded", "the same bytes as same in validation")
    assert found["1.png"] == ("excluded", "nearly the same picture as encoded in validation")
    assert sorted(index.samples(frame, "train")["image"]) == ["2", "3"]
    assert sorted(index.samples(frame, "val")["image"]) == ["encoded", "same"]


def test_near_duplicates_stay_on_one_side_of_a_drawn_split(tmp_path):
    for i in range(12):
        save(tmp_path / "set" / f"{i}.png", picture(i))
        save(tmp_path / "set" / f"{i}_again.jpg", picture(i), quality=85)
    for seed in range(3):
        frame = indexed(tmp_path, "folder", "set", seed=seed)
        sides = frame.with_columns(pl.col("image").str.split("_").list.first())
        assert set(sides.group_by("image").agg(pl.col("split").n_unique())["split"]) == {1}
        assert set(frame["split"]) == {"train", "val"}
        assert "excluded" not in set(frame["status"])


def test_one_gt_with_several_lqs_is_no_fault_and_one_lq_with_two_gts_is(tmp_path):
    folder = pairs(tmp_path / "one", "Haze", 3) / "Haze"
    pairs(tmp_path / "two", "Haze", 1, first=50)
    for i in range(2):  # another haze over the same picture
        save(folder / "LQ" / f"more{i}.jpg", (picture(i) * 0.2 + 180).astype(np.uint8))
        (folder / "GT" / f"more{i}.png").write_bytes((folder / "GT" / f"00{i}.png").read_bytes())
    frame = indexed(tmp_path, "pairs", "one", **{"validation.data": "two"})
    assert set(frame["status"]) == {"ok"}
    (folder / "LQ" / "zz.jpg").write_bytes((folder / "LQ" / "002.jpg").read_bytes())
    save(folder / "GT" / "zz.png", picture(70))
    frame = indexed(tmp_path, "pairs", "one", **{"validation.data": "two"})
    found = frame.filter(pl.col("status") != "ok")
    assert set(found["image"]) == {"Haze/002", "Haze/zz"}
    assert all("same LQ as Haze/002, with another GT" in r for r in found["reason"])


def test_the_near_search_finds_what_comparing_all_with_all_finds():
    generator = np.random.default_rng(0)
    centres = generator.integers(0, 2**63, 60, dtype=np.uint64)
    flips = generator.integers(0, 6, 600)
    hashes = np.repeat(centres, 10)
    for i, count in enumerate(flips):
        for bit in generator.choice(64, count, replace=False):
            hashes[i] ^= np.uint64(1) << np.uint64(bit)
    thumbnails = np.tile(generator.integers(0, 256, (1, 256), np.uint8), (600, 1))
    distance = np.bitwise_count(hashes[:, None] ^ hashes[None, :])
    expected = np.argwhere(np.triu(distance <= duplicates.NUM_BITS, 1))
    found = duplicates.near_pairs(hashes, thumbnails)
    assert len(expected) > 300
    assert set(map(tuple, found.tolist())) == set(map(tuple, expected.tolist()))


def test_pictures_that_only_share_a_hash_are_no_duplicates(tmp_path):
    ramp = np.linspace(200, 60, 120).astype(np.float32)
    for i, slope in enumerate((0.2, 1.0)):  # one hash, all cells falling, and other contrast
        grey = np.broadcast_to(130 + slope * (ramp - 130), (88, 120))
        save(tmp_path / "set" / f"{i}.png", np.repeat(grey[..., None], 3, 2).astype(np.uint8))
    assert set(indexed(tmp_path, "folder", "set")["status"]) == {"ok"}
