"""Restoring folders with a trained run, resuming, the command's errors; and the colour fixes."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from darkroom import colour, data, inference, restore, trainer, validate
from darkroom.config import load_config
from darkroom.images import read_image, write_image
from darkroom.photographs import photograph_paths
from small_runs import sections, write_pictures

PATTERNS = {
    "train.steps": 2,
    "train.save_every": 1,
    "validation.every": None,
    "train.keep_last": None,
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return the config of a run of two steps, each with a checkpoint."""
    root = tmp_path_factory.mktemp("trained")
    write_pictures(root / "pictures")
    config = load_config(**sections(root, **PATTERNS))
    trainer.train(config)
    return config


@pytest.fixture
def pictures(tmp_path) -> Path:
    """Return a nested folder of pictures, one of them grey and one of odd size, and a text."""
    from PIL import Image

    folder = write_pictures(tmp_path / "in", count=2, size=45)
    write_pictures(folder / "deep" / "er", count=1, size=37)
    Image.fromarray(read_image(folder / "picture_0.png")).convert("L").save(folder / "grey.png")
    (folder / "notes.txt").write_text("no picture")
    return folder


OUTPUTS = {"picture_0.png", "picture_1.png", "grey.png", "deep/er/picture_0.png"}


def files(folder: Path) -> dict[str, bytes]:
    """Return every picture below a folder by its path, and nothing else may be there."""
    found = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
    assert not [name for name in found if name.endswith(".partial")]
    found.pop(restore.MANIFEST, None)
    return {name: path.read_bytes() for name, path in found.items()}


def statuses(frame) -> dict[str, str]:
    return dict(zip(frame["output"], frame["status"], strict=True))


def test_a_tree_is_restored_at_native_size_as_the_model_restores(trained, pictures, tmp_path):
    out = tmp_path / "out"
    frame = restore.restore_folder(trained, pictures, out)
    assert statuses(frame) == dict.fromkeys(OUTPUTS, "restored")
    assert set(files(out)) == OUTPUTS
    run = inference.load_run(trained)
    assert (run.step, run.weights) == (2, "ema")
    multiple = run.recipe.multiple
    for name in OUTPUTS:
        given = read_image(pictures / name)
        height, width = given.shape[:2]
        rims = [(0, -height % multiple), (0, -width % multiple), (0, 0)]
        padded = torch.from_numpy(np.pad(given, rims, mode="reflect")).permute(2, 0, 1) / 255
        sample = data.Sample(padded, padded, "", "", name, 0)
        expected = run.recipe.restore(data.collate([sample]), seed=0).image
        expected = (expected[0, :, :height, :width] * 255).round().permute(1, 2, 0).numpy()
        found = read_image(out / name)
        assert found.shape == given.shape == expected.shape
        assert np.abs(found.astype(int) - expected).max() <= 1


def test_what_is_finished_is_kept_and_what_changed_is_done_again(trained, pictures, tmp_path):
    out = tmp_path / "out"
    restore.restore_folder(trained, pictures, out)
    before = files(out)
    times = {name: (out / name).stat().st_mtime_ns for name in before}
    assert set(statuses(restore.restore_folder(trained, pictures, out)).values()) == {"kept"}
    assert times == {name: (out / name).stat().st_mtime_ns for name in before}
    write_image(pictures / "picture_1.png", 255 - read_image(pictures / "picture_1.png"))
    (out / "grey.png").write_bytes(b"half a pic")
    (out / "deep/er/picture_0.png").unlink()
    again = statuses(restore.restore_folder(trained, pictures, out))
    assert again == dict.fromkeys(OUTPUTS, "restored") | {"picture_0.png": "kept"}
    after = files(out)
    assert after["grey.png"] == before["grey.png"]
    assert after["picture_1.png"] != before["picture_1.png"]


@pytest.mark.parametrize(
    "other",
    [{"step": 1}, {"validation.weights": "raw"}, {"restore.tile": 32}, {"validation.seed": 3}],
    ids=str,
)
def test_another_checkpoint_or_setting_restores_all_again(trained, pictures, tmp_path, other):
    out = tmp_path / "out"
    restore.restore_folder(trained, pictures, out)
    step = other.get("step")
    changed = trained.with_changes({k: v for k, v in other.items() if k != "step"})
    frame = restore.restore_folder(changed, pictures, out, step=step)
    assert set(frame["status"]) == {"restored"}
    assert set(restore.restore_folder(changed, pictures, out, step=step)["status"]) == {"kept"}
    rows = [json.loads(line) for line in (out / restore.MANIFEST).read_text().splitlines()]
    assert rows[-1]["step"] == (step or 2)
    assert rows[-1]["weights"] == changed.validation.weights


def test_an_unreadable_picture_is_named_and_the_others_are_done(trained, pictures, tmp_path):
    whole = (pictures / "picture_1.png").read_bytes()
    (pictures / "picture_1.png").write_bytes(whole[: len(whole) // 2])
    (pictures / "gone.png").symlink_to(tmp_path / "nowhere.png")
    frame = restore.restore_folder(trained, pictures, tmp_path / "out")
    failed = frame.filter(frame["status"] == "failed")
    assert [Path(p).name for p in failed["image"]] == ["gone.png", "picture_1.png"]
    assert "No such file" in failed["reason"][0] and "truncated" in failed["reason"][1]
    assert set(files(tmp_path / "out")) == OUTPUTS - {"picture_1.png"}


def test_outputs_inside_the_inputs_are_never_inputs(trained, pictures):
    out = pictures / "deep" / "restored"
    for expected in ("restored", "kept"):
        frame = restore.restore_folder(trained, pictures, out)
        assert statuses(frame) == dict.fromkeys(OUTPUTS, expected)
    inner = restore.restore_folder(trained, pictures / "deep", pictures / "deep" / "more")
    assert len(inner) == 1 + len(OUTPUTS)  # another OUT: the first one's pictures are inputs


def test_inputs_inside_the_outputs_stay_inputs_and_are_never_replaced(trained, pictures):
    deep = pictures / "deep"
    write_image(deep / "picture_1.png", read_image(pictures / "picture_1.png"))
    before = (pictures / "picture_0.png").read_bytes()
    for expected in ("restored", "kept"):
        frame = restore.restore_folder(trained, deep, pictures)
        assert statuses(frame) == dict.fromkeys(("er/picture_0.png", "picture_1.png"), expected)
    assert (pictures / "picture_0.png").read_bytes() == before
    with pytest.raises(ValueError, match="is the folder of the inputs"):
        restore.restore_folder(trained, pictures, pictures)
    with pytest.raises(ValueError, match="is an input, which the restored picture_0.png would"):
        restore.restore_folder(trained, pictures / "picture_0.png", pictures)


def test_two_pictures_of_one_stem_keep_their_suffixes(trained, pictures, tmp_path):
    from PIL import Image

    Image.open(pictures / "grey.png").save(pictures / "grey.jpg")
    frame = restore.restore_folder(trained, pictures, tmp_path / "out")
    assert set(frame["output"]) == OUTPUTS - {"grey.png"} | {"grey.png.png", "grey.jpg.png"}
    assert set(files(tmp_path / "out")) == set(frame["output"])


def test_one_picture_can_be_restored_and_enlarged(trained, pictures, tmp_path):
    config = trained.with_changes({"restore.upscale": 1.5})
    frame = restore.restore_folder(config, pictures / "picture_1.png", tmp_path / "out")
    assert statuses(frame) == {"picture_1.png": "restored"}
    large, small = (read_image(p / "picture_1.png") for p in (tmp_path / "out", pictures))
    assert small.shape == (45, 45, 3) and large.shape == (68, 68, 3)
    import cv2

    shrunk = cv2.resize(large, (45, 45), interpolation=cv2.INTER_AREA).astype(int)
    assert np.abs(shrunk - small).mean() < 12  # the same picture, in the same place
    too_large = trained.with_changes({"restore.upscale": 1e4})
    frame = restore.restore_folder(too_large, pictures / "picture_1.png", tmp_path / "out")
    assert statuses(frame) == {"picture_1.png": "failed"}
    assert "after restore.upscale 10000, more than the limit" in frame["reason"][0]


def test_the_enlargement_is_bicubic_and_leaves_factor_1_alone():
    import cv2

    lq = photograph()[..., :60, :80]
    assert restore.enlarge(lq, 1) is lq
    for factor, size in ((2, (120, 160)), (1.25, (75, 100)), (3.51, (211, 281))):
        found = restore.enlarge(lq, factor)
        assert found.shape[-2:] == size
        picture = lq[0].permute(1, 2, 0).numpy()
        expected = cv2.resize(picture, size[::-1], interpolation=cv2.INTER_CUBIC).clip(0, 1)
        np.testing.assert_allclose(found[0].permute(1, 2, 0), expected, rtol=0, atol=1e-4)


def test_enlarging_is_a_warning_for_scores(trained):
    (line,) = [w for w in trained.with_changes({"restore.upscale": 2}).warnings if "upscale" in w]
    assert line.startswith("without effect: restore.upscale: 2.0 (on scores")


# --- as a command ---------------------------------------------------------------------------------


def command(trained, source, target, *more) -> list[str]:
    place = [str(source), str(target), "--run", str(trained.run_dir)]
    return [sys.executable, "-m", "darkroom.restore", *place, *map(str, more)]


def shell(*arguments) -> subprocess.CompletedProcess:
    return subprocess.run(
        command(*arguments), capture_output=True, text=True, timeout=240, check=False
    )


def test_a_killed_command_goes_on_where_it_stopped(trained, tmp_path):
    source, out = write_pictures(tmp_path / "in", count=60, size=160), tmp_path / "out"
    process = subprocess.Popen(command(trained, source, out), stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(restore.Rows(out / restore.MANIFEST).read()) < 3 and time.monotonic() < deadline:
        time.sleep(0.002)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    made = restore.Rows(out / restore.MANIFEST).read()
    assert 3 <= len(made) < 60
    for path in out.glob("*.png"):  # hidden leftovers apart, there are only whole files
        assert read_image(path).shape == (160, 160, 3)
    finished = shell(trained, source, out)
    assert finished.returncode == 0, finished.stderr
    kept = len(restore.Rows(out / restore.MANIFEST).read()) - 60
    assert kept == 0, "a picture was restored twice"
    assert f"{60 - len(made)} restored, {len(made)} kept, 0 failed" in finished.stdout
    straight = tmp_path / "straight"
    restore.restore_folder(trained, source, straight)
    assert files(out) == files(straight)


def test_an_interrupt_leaves_whole_files_and_says_so(trained, tmp_path):
    source, out = write_pictures(tmp_path / "in", count=3, size=320), tmp_path / "out"
    large = write_pictures(tmp_path / "large", count=1, size=3000)  # long enough to be interrupted
    next(large.glob("*.png")).rename(source / "z.png")
    process = subprocess.Popen(
        command(trained, source, out), stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while len(restore.Rows(out / restore.MANIFEST).read()) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert errors.strip().endswith("run it again to go on") and "Traceback" not in errors
    assert 2 <= len(files(out)) <= 3
    for path in out.glob("*.png"):
        assert read_image(path).shape == (320, 320, 3)


def test_the_command_names_what_failed_and_takes_overrides(trained, pictures, tmp_path):
    (pictures / "broken.png").write_bytes(b"\x89PNG no")
    found = shell(
        trained,
        pictures,
        tmp_path / "out",
        "--step",
        1,
        "--override",
        "restore.tile=32",
        "loss.l1=9",
    )
    assert found.returncode == 1
    assert f"{len(OUTPUTS)} restored, 0 kept, 1 failed" in found.stdout
    lines = found.stderr.splitlines()
    assert "the model is the run's own" in lines[0] and "loss.l1: 0.0 in the run, 9.0" in lines[0]
    assert lines[1:] == [
        f"failed: {pictures / 'broken.png'}: not a picture format that can be read"
    ]
    row = restore.Rows(tmp_path / "out" / restore.MANIFEST).read()[0]
    assert row["step"] == 1


WRONG = {
    "no such folder": (["{tmp}/none", "{tmp}/out"], "there is no folder or picture"),
    "no picture": (["{tmp}/empty", "{tmp}/out"], "holds no picture to restore (1 files"),
    "no such run": (["{in}", "{tmp}/out", "--run", "nobody"], "is not a run. Train first"),
    "no such step": (["{in}", "{tmp}/out", "--step", "7"], "no checkpoint of step 7; steps with"),
    "no best": (["{in}", "{tmp}/out", "--checkpoint", "best"], "has no checkpoint 'best'; steps"),
    "out is a file": (["{in}", "{in}/grey.png"], "is a file: name the folder"),
    "out is a picture's name": (["{in}/grey.png", "{tmp}/x.png"], "is named like a picture"),
    "misspelt": (["{in}", "{tmp}/out", "--override", "restore.tyle=3"], "`restore.tile`"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_call_is_one_line_and_status_1(trained, pictures, tmp_path, capsys, case):
    arguments, message = WRONG[case]
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "a.txt").touch()
    given = [a.format(tmp=tmp_path, **{"in": pictures}) for a in arguments]
    if "--run" not in given:
        given += ["--run", str(trained.run_dir)]
    assert restore.main(given) == 1
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1
    assert not (tmp_path / "out").exists()


# --- colour fixes ---------------------------------------------------------------------------------


def photograph(name: str = "chelsea") -> torch.Tensor:
    picture = read_image(photograph_paths()[name])
    return torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255


def test_the_low_frequencies_are_those_below_a_gaussian_of_13_pixels():
    impulse = torch.zeros(1, 1, 161, 161, dtype=torch.float64)
    impulse[..., 80, 80] = 1
    spread = colour.low_frequencies(impulse)[0, 0]
    place = torch.arange(161, dtype=torch.float64) - 80
    assert spread.sum() == pytest.approx(1, abs=1e-12)
    variance = float((spread.sum(0) * place**2).sum())
    assert variance == pytest.approx((1 + 4 + 16 + 64 + 256) / 2, rel=1e-9)
    assert variance**0.5 == pytest.approx(13.06, abs=0.01)


def test_one_level_is_the_kernel_1_2_1_over_16_with_replicated_rims(monkeypatch):
    image = photograph()[..., :20, :31]
    monkeypatch.setattr(colour, "LEVELS", 2)
    expected = image
    line = torch.tensor([1.0, 2.0, 1.0])
    kernel = (line[:, None] * line / 16).expand(3, 1, 3, 3)
    for step in (1, 2):
        padded = torch.nn.functional.pad(expected, (step,) * 4, mode="replicate")
        expected = torch.nn.functional.conv2d(padded, kernel, groups=3, dilation=step)
    torch.testing.assert_close(colour.low_frequencies(image), expected, rtol=0, atol=1e-6)


def test_the_wavelet_fix_takes_away_a_cast_and_keeps_the_detail():
    truth = photograph() * 0.8 + 0.1
    cast = torch.tensor([0.08, -0.05, 0.03])[:, None, None]
    torch.testing.assert_close(colour.wavelet_fix(truth + cast, truth), truth, rtol=0, atol=1e-5)
    blurred = colour.low_frequencies(truth)
    fixed = colour.wavelet_fix(truth, blurred)  # the reference's lack of detail does not enter
    detail = truth - colour.low_frequencies(truth)
    torch.testing.assert_close(
        fixed, (detail + colour.low_frequencies(blurred)).clamp(0, 1), rtol=0, atol=1e-5
    )


def test_adain_gives_the_mean_and_spread_of_the_reference_a_channel():
    reference = photograph()[..., :200, :300] * 0.5 + 0.2
    restored = reference.flip(1) * 0.4 + 0.3
    fixed = colour.adain_fix(restored, reference)
    for of in (torch.mean, torch.std):
        torch.testing.assert_close(
            of(fixed, dim=(-2, -1)), of(reference, dim=(-2, -1)), rtol=0, atol=3e-3
        )
    torch.testing.assert_close(colour.adain_fix(reference, reference), reference, rtol=0, atol=1e-6)
    flat = colour.adain_fix(torch.full_like(reference, 0.9), reference)
    mean = reference.mean((-2, -1), keepdim=True).expand_as(flat)
    torch.testing.assert_close(flat, mean, rtol=0, atol=1e-3)


@pytest.mark.parametrize(("name", "expected"), [("wavelet", 8.1), ("adain", 7.8)])
def test_a_fix_undoes_a_perfect_low_light_restoration(name, expected):
    truth = photograph()  # restored perfectly: without the fix there is no error at all
    dark = truth * 0.15
    after = psnr(colour.FIXES[name](truth, dark), truth)
    assert after == pytest.approx(expected, abs=0.1)
    assert after < psnr(dark, truth) + 1  # nearly all that was restored is lost


def psnr(image: torch.Tensor, truth: torch.Tensor) -> float:
    return -10 * float(torch.log10(((image - truth) ** 2).mean()))


@pytest.mark.parametrize("name", colour.FIXES)
def test_a_fix_refuses_pictures_of_different_shapes(name):
    with pytest.raises(ValueError, match="two pictures of one shape"):
        colour.FIXES[name](torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 4, 4))


@pytest.mark.parametrize("name", colour.FIXES)
def test_scores_are_those_of_the_fixed_pictures_that_a_folder_gets(
    trained, pictures, tmp_path, name
):
    fixed = trained.with_changes({"restore.colour_fix": name})
    plain_run, fixed_run = inference.load_run(trained), inference.load_run(fixed)
    with torch.no_grad():  # a strong cast that a fix must take away
        for run in (plain_run, fixed_run):
            run.recipe.network.unet.conv_out.bias += 0.3
    picture = read_image(pictures / "picture_1.png")
    plain = restore.restore_picture(plain_run, picture, "x").astype(float)
    taken = restore.restore_picture(fixed_run, picture, "x").astype(float)
    batch = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255
    expected = colour.FIXES[name](
        torch.from_numpy(plain).permute(2, 0, 1)[None].float() / 255, batch
    )
    expected = (expected[0] * 255).permute(1, 2, 0).numpy()
    assert np.abs(plain - picture).mean() > 10
    assert np.abs(taken - expected).mean() < 2
    scores = [
        validate.score(run.recipe, run.config, step=2, weights="ema")["psnr_y"].mean()
        for run in (plain_run, fixed_run)
    ]
    assert scores[1] > scores[0] + 3
