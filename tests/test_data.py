"""The sample stream: a function of (seed, phase, position), whoever draws it."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
import small_runs
import torch
from darkroom import augment, data, loader
from darkroom.config import load_config
from darkroom.feed import Feed
from darkroom.index import build_index, samples


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Return a folder with small pictures."""
    root = tmp_path_factory.mktemp("data")
    small_runs.write_pictures(root / "pictures", count=8)
    return root


def config_in(root, **override):
    return load_config(**small_runs.sections(root, **override))


def dataset_in(root, **override) -> data.TrainingSet:
    config = config_in(root, **override)
    return data.TrainingSet(samples(build_index(config, progress=False), "train"), config)


def stream(dataset, keys, workers: int = 0):
    return [
        (b.lq, b.gt, b.images, b.degradations, b.prompts, b.positions)
        for b in loader.load(dataset, keys, workers=workers)
    ]


def same(first, second) -> bool:
    return len(first) == len(second) and all(
        torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) and a[2:] == b[2:]
        for a, b in zip(first, second, strict=True)
    )


KEYS = [[("generator", p), ("generator", p + 1)] for p in range(0, 24, 2)]


@pytest.mark.parametrize("workers", [1, 4])
def test_the_stream_is_the_same_for_any_number_of_workers(root, workers):
    dataset = dataset_in(root)
    assert same(stream(dataset, KEYS), stream(dataset, KEYS, workers))


def test_workers_and_their_batches_come_from_the_machine(root, monkeypatch):
    gib = {"SC_AVPHYS_PAGES": 2**18, "SC_PAGE_SIZE": 2**12}  # one GiB is free
    monkeypatch.setattr(loader.os, "sysconf", gib.__getitem__)
    monkeypatch.setattr(loader.os, "sched_getaffinity", lambda _: set(range(16)))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    free = {"data.workers": None, "data.prefetch": None}
    config = config_in(root, **free)
    assert loader.num_workers(config) == 7  # half of the cores train, and one trains beside them
    assert loader.batches_ahead(config, 2, 7) == 8  # small crops: as many as are of use
    large = config_in(root, **free, **{"data.crop_size": 512})
    assert loader.batches_ahead(large, 1, 2) == 5  # 64 MiB for 6 MiB a batch and two workers
    assert loader.batches_ahead(large, 8, 7) == 2
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")  # processes share cores and memory
    assert loader.num_workers(config) == 3
    assert loader.batches_ahead(large, 1, 2) == 2
    given = config_in(root, **{"data.workers": 3, "data.prefetch": 6})
    assert (loader.num_workers(given), loader.batches_ahead(given, 8, 3)) == (3, 6)


def test_the_stream_is_the_same_after_a_resume_at_any_position(root):
    whole = stream(dataset_in(root), KEYS)
    for start in (1, 5, 11):
        assert same(whole[start:], stream(dataset_in(root), KEYS[start:]))


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_processes_split_the_same_samples_without_overlap(root, processes):
    config = config_in(root, **{"train.effective_batch": 8, "train.micro_batch": 2})
    frame = samples(build_index(config, progress=False), "train")
    from darkroom import recipes

    phases = recipes.build(config).phases(config)
    drawn: dict[int, torch.Tensor] = {}
    for process in range(processes):
        feed = Feed(config, None, frame, process=process, processes=processes)
        feed.positions = {p.name: 0 for p in phases}
        for _ in range(2):
            for phase in phases:
                for batch in feed.take(phase, phases, 2):
                    if phase.name == "generator":
                        for position, gt in zip(batch.positions, batch.gt, strict=True):
                            assert position not in drawn
                            drawn[position] = gt
                feed.taken(phase)
        feed.close()
    assert sorted(drawn) == list(range(16))
    dataset = data.TrainingSet(frame, config)
    assert all(torch.equal(drawn[p], dataset["generator", p].gt) for p in drawn)


def test_the_stream_does_not_touch_or_read_the_global_random_states(root):
    dataset = dataset_in(root)
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    first = stream(dataset, KEYS[:3])
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    before = torch.get_rng_state()
    assert same(first, stream(dataset, KEYS[:3]))
    assert torch.equal(before, torch.get_rng_state())


def test_every_epoch_sees_every_image_once_in_another_order(root):
    dataset = dataset_in(root)
    count = len(dataset)
    epochs = [
        [dataset.row("generator", e * count + n)["image"] for n in range(count)] for e in range(3)
    ]
    assert all(sorted(e) == sorted(epochs[0]) for e in epochs)
    assert len({tuple(e) for e in epochs}) > 1


def test_phases_and_seeds_draw_different_samples(root):
    dataset = dataset_in(root)
    other = dataset_in(root, seed=5)
    generator = dataset["generator", 0].lq
    assert not torch.equal(generator, dataset["discriminator", 0].lq)
    assert not torch.equal(generator, other["generator", 0].lq)


def test_pairs_are_cropped_flipped_and_rotated_jointly():
    gt = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    lq = 255 - gt
    section = load_config(base="tiny", override={"data.crop_size": 16, "data.rotate": True}).data
    seen = set()
    for n in range(64):
        a, b = augment.window(gt, lq, section, data.rng(1, n))
        assert a.shape == (16, 16, 3)
        assert np.array_equal(a, 255 - b)
        seen.add(a.tobytes())
    assert len(seen) > 50


def test_center_and_none_take_the_middle_and_everything():
    gt = np.arange(40 * 50 * 3, dtype=np.uint8).reshape(40, 50, 3)
    override = {"data.crop_size": 16, "data.hflip": False, "data.rotate": False}
    center = load_config(base="tiny", override={**override, "data.crop": "center"}).data
    none = load_config(base="tiny", override={**override, "data.crop": "none"}).data
    assert np.array_equal(augment.window(gt, None, center, data.rng(0))[0], gt[12:28, 17:33])
    assert np.array_equal(augment.window(gt, None, none, data.rng(0))[0], gt)


def test_prompts_are_emptied_at_the_configured_rate(root):
    override = {"data.prompt": "sharp", "data.p_empty_prompt": 0.3}
    dataset = dataset_in(root, **override)
    prompts = [dataset["generator", p].prompt for p in range(300)]
    assert set(prompts) == {"sharp", ""}
    assert 60 < prompts.count("") < 120


def test_an_image_smaller_than_the_crop_names_itself(root):
    config = config_in(root, **{"data.crop_size": 64})
    frame = samples(build_index(config, progress=False), "train")
    with pytest.raises(data.SampleError, match=r"picture_\d\.png is 48x48, smaller than"):
        data.TrainingSet(frame, config)["generator", 0]


def test_an_empty_training_set_is_an_error(root):
    config = config_in(root)
    frame = samples(build_index(config, progress=False), "train")
    with pytest.raises(ValueError, match="no training image is left"):
        data.TrainingSet(frame.clear(), config)


def test_validation_draws_are_fixed_and_a_cap_spreads_over_photographs():
    rows = pl.DataFrame(
        {
            "image": ["a", "b", "c"],
            "lq_path": pl.Series([None] * 3, dtype=pl.String),
            "gt_path": ["a.png", "b.png", "c.png"],
            "degradation": pl.Series([None] * 3, dtype=pl.String),
            "prompt": ["", "", ""],
        }
    )
    everything = load_config(base="tiny", override={"validation.samples_per_type": None})
    items = data.validation_items(everything, rows)
    assert len(items) == 3 * 5 * data.NUM_DRAWS
    capped = load_config(base="tiny", override={"validation.samples_per_type": 3})
    items = data.validation_items(capped, rows)
    assert len(items) == 15
    for kind in {i.degradation for i in items}:
        assert {i.image for i in items if i.degradation == kind} == {"a", "b", "c"}


def test_a_validation_item_does_not_depend_on_the_others(root):
    config = config_in(root, **{"validation.samples_per_type": None})
    frame = samples(build_index(config, progress=False), "val")
    items = data.validation_items(config, frame)
    first = data.load_item(items[3], config).lq
    for item in items[:3]:
        data.load_item(item, config)
    assert torch.equal(first, data.load_item(items[3], config).lq)
    assert torch.equal(first, (first * 255).round() / 255)


def test_tone_changes_half_of_the_images_and_nothing_at_strength_zero():
    image = np.random.default_rng(0).random((24, 24, 3), dtype=np.float32)
    assert augment.tone(image, 0.0, data.rng(0)) is image
    changed = [augment.tone(image, 1.0, data.rng(n)) for n in range(100)]
    assert 30 < sum(np.array_equal(c, image) for c in changed) < 70
    assert all(c.dtype == np.float32 and c.min() >= 0 and c.max() <= 1 for c in changed)
