"""One reader for every picture: conversions against closed forms, reasons for broken ones."""

import io
import pickle
import struct
import zlib

import cv2
import numpy as np
import pytest
from darkroom import images
from PIL import Image, ImageOps


def gradient(height=24, width=40):
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 6, y * 10, 255 - x * 3], -1).clip(0, 255).astype(np.uint8)


def png_with_header(width, height):
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    body = zlib.compress(b"\0" * 100)
    return (
        b"\x89PNG\r\n\x1a\n"
        + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
        + struct.pack(">I", len(body)) + b"IDAT" + body
        + struct.pack(">I", zlib.crc32(b"IDAT" + body))
    )  # fmt: skip


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_is_turned_as_pil_turns_it(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "turned.jpg"
    Image.fromarray(gradient()).save(path, exif=exif, quality=95)
    with Image.open(path) as picture:
        expected = np.asarray(ImageOps.exif_transpose(picture))
    np.testing.assert_array_equal(images.read_image(path), expected)


def test_sixteen_bits_are_scaled_and_rounded_not_cut(tmp_path):
    deep = np.arange(0, 65536, 11, dtype=np.uint16)[: 60 * 96].reshape(60, 96)
    expected = np.rint(deep / 257).astype(np.uint8)
    cv2.imwrite(str(tmp_path / "grey.png"), deep)
    np.testing.assert_array_equal(
        images.read_image(tmp_path / "grey.png"), np.repeat(expected[..., None], 3, 2)
    )
    colour = np.stack([deep, deep[::-1], deep[:, ::-1]], -1)
    for name in ("colour.png", "colour.tiff"):
        cv2.imwrite(str(tmp_path / name), colour[..., ::-1])
        np.testing.assert_array_equal(
            images.read_image(tmp_path / name), np.rint(colour / 257).astype(np.uint8)
        )


@pytest.mark.parametrize("depth", [8, 16])
def test_alpha_is_composited_on_white(tmp_path, depth):
    full = 2**depth - 1
    rgba = np.zeros((4, 3, 4), np.uint8 if depth == 8 else np.uint16)
    rgba[..., 0] = full  # red, from transparent to opaque
    rgba[..., 3] = np.array([0, full // 5, full])
    cv2.imwrite(str(tmp_path / "alpha.png"), cv2.cvtColor(rgba, cv2.COLOR_RGBA2BGRA))
    decoded = images.decode((tmp_path / "alpha.png").read_bytes(), "alpha.png")
    assert "alpha composited on white" in decoded.notes
    assert decoded.array[0].tolist() == [[255, 255, 255], [255, 204, 204], [255, 0, 0]]


def test_palette_cmyk_and_grey_become_rgb(tmp_path):
    colours = [(250, 10, 0), (3, 200, 90), (17, 34, 51)]
    indices = np.arange(24 * 40).reshape(24, 40) % 3
    paletted = Image.fromarray(indices.astype(np.uint8), "P")
    paletted.putpalette([v for colour in colours for v in colour])
    paletted.save(tmp_path / "palette.png")
    Image.fromarray(gradient()).convert("CMYK").save(tmp_path / "cmyk.jpg", quality=98)
    Image.fromarray(gradient()[..., 0]).save(tmp_path / "grey.png")
    palette = images.read_image(tmp_path / "palette.png")
    np.testing.assert_array_equal(palette, np.array(colours)[indices])
    cmyk = images.read_image(tmp_path / "cmyk.jpg")
    assert np.abs(cmyk.astype(int) - gradient()).mean() < 6
    grey = images.read_image(tmp_path / "grey.png")
    np.testing.assert_array_equal(grey, np.repeat(gradient()[..., :1], 3, 2))


def test_a_header_that_claims_a_huge_picture_is_refused_before_decoding(tmp_path):
    for side in (20_000, 12_000):  # above PIL's own limit, and between that and ours
        (tmp_path / "bomb.png").write_bytes(png_with_header(side, side))
        with pytest.raises(images.UnreadableImage, match="decompression bomb"):
            images.read_image(tmp_path / "bomb.png")


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_a_truncated_file_is_named_with_its_reason(tmp_path, suffix):
    path = tmp_path / f"cut.{suffix}"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 90, 3), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(images.UnreadableImage, match="truncated") as caught:
        images.read_image(path)
    assert caught.value.path == str(path)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_empty_missing_and_foreign_files_each_have_their_own_reason(tmp_path):
    (tmp_path / "empty.png").touch()
    (tmp_path / "words.png").write_text("no picture at all")
    for name, reason in (
        ("empty.png", "the file is empty"),
        ("words.png", "not a picture format"),
        ("missing.png", "No such file"),
    ):
        with pytest.raises(images.UnreadableImage, match=reason):
            images.read_image(tmp_path / name)


def test_a_written_picture_reads_back_the_same_and_leaves_no_other_file(tmp_path):
    images.write_image(tmp_path / "out.png", gradient())
    np.testing.assert_array_equal(images.read_image(tmp_path / "out.png"), gradient())
    assert [p.name for p in tmp_path.iterdir()] == ["out.png"]


def test_writing_refuses_floats_and_other_formats(tmp_path):
    with pytest.raises(ValueError, match="scale to 0…255"):
        images.write_image(tmp_path / "out.png", gradient() / 255)
    with pytest.raises(ValueError, match=r"ends in \.png"):
        images.write_image(tmp_path / "out.jpg", gradient())


def test_an_orientation_survives_in_a_png_whose_exif_comes_last():
    exif = Image.Exif()
    exif[0x0112] = 6
    encoded = io.BytesIO()
    Image.fromarray(gradient()).save(encoded, "PNG", exif=exif)
    assert images.decode(encoded.getvalue(), "x.png").array.shape == (40, 24, 3)
