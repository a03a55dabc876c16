"""The embedded photographs: which are held out, and that no scene is on both sides."""

import numpy as np
from darkroom import images
from darkroom.photographs import HELD_OUT, PHOTOGRAPHS, photograph_paths


def test_the_held_out_photographs_never_change():
    assert HELD_OUT == ("chelsea", "rocket", "camera", "coins", "grace_hopper")


def test_the_training_photographs_never_change():
    assert tuple(p.name for p in PHOTOGRAPHS if p.split == "train") == (
        "astronaut",
        "coffee",
        "motorcycle_left",
        "motorcycle_right",
        "hubble_deep_field",
        "ihc",
        "retina",
        "brick",
        "grass",
        "gravel",
        "china",
        "flower",
    )


def test_both_views_of_the_motorcycle_are_on_one_side():
    sides = {p.split for p in PHOTOGRAPHS if p.name.startswith("motorcycle")}
    assert sides == {"train"}


def test_every_photograph_decodes_and_both_sides_have_enough_colour():
    coloured = {"train": 0, "val": 0}
    paths = photograph_paths()
    assert list(paths) == [p.name for p in PHOTOGRAPHS]
    for photograph in PHOTOGRAPHS:
        picture = images.read_image(paths[photograph.name])
        assert min(picture.shape[:2]) >= 300
        coloured[photograph.split] += bool(np.ptp(picture, axis=2).max() > 30)
        assert photograph.licence and photograph.source
    assert coloured["train"] >= 6
    assert coloured["val"] >= 3


def test_no_two_photographs_have_the_same_pixels():
    pixels = {images.read_image(p).tobytes() for p in photograph_paths().values()}
    assert len(pixels) == len(PHOTOGRAPHS)
