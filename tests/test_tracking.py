"""Trackers: the seeds' metric names and images arrive, resumes too, and what is missing is said."""

from __future__ import annotations

import http.server
import importlib.util
import json
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import small_runs
import torch
from darkroom import perceptual, tracking, trainer
from darkroom.config import load_config
from darkroom.images import read_image

# what the users of HYPIR's all-in-one fork find in their dashboards, word for word
TYPES = ("Blur", "Haze", "Lowlight", "Rain", "Snow")
LOSSES = [
    "loss/G_total",
    "loss/G_mse",
    "loss/G_l1",
    "loss/G_lpips",
    "loss/G_ssim",
    "loss/G_disc",
    "loss/D",
    "loss/D_logits_real",
    "loss/D_logits_fake",
]
VALIDATION = ["val/PSNR", "val/SSIM", "val/LPIPS", "val/Final_Score"] + [
    f"val/{t}/{m}" for t in TYPES for m in ("PSNR", "SSIM", "LPIPS")
]
GRADIENTS = [
    "grad_norm/conv_out_l2",
    "grad_norm/conv_out_l1",
    "grad_norm/conv_out_lpips",
    "grad_norm/conv_out_disc",
]
IMAGES = ["image/lq", "image/G", "image/G_ema", "image/gt"]

EVERY_TERM = {
    "train.steps": 4,
    "train.image_every": 2,
    "train.grad_norm_every": 2,
    "train.grad_norm_modules": ["conv_out"],
    "loss.l2": 1.0,
    "loss.l1": 1.0,
    "loss.lpips": 1.0,
    "loss.ssim": 1.0,
    "loss.gan": 0.3,
    "validation.every": 2,
    "validation.metrics": ["psnr_y", "ssim_y", "lpips"],
}


@pytest.fixture
def root(tmp_path):
    torch.set_num_threads(1)
    small_runs.write_pictures(tmp_path / "pictures")
    return tmp_path


@pytest.fixture(scope="module")
def tracked(tmp_path_factory):
    """Return the directory of a training with every term of the seeds, and TensorBoard's events."""
    root = tmp_path_factory.mktemp("tracked")
    small_runs.write_pictures(root / "pictures")
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_HOME", str(root / "torch"))
        weights = root / "torch" / "hub" / "checkpoints" / perceptual.VGG16_FILE
        weights.parent.mkdir(parents=True)
        torch.save(perceptual.VGG16(pretrained=False).state_dict(), weights)
        patch.setattr(perceptual, "hash_in_name", lambda name: "")  # a stand-in file
        options = EVERY_TERM | {"tracking.report_to": ["jsonl", "tensorboard"]}
        result = trainer.train(load_config(**small_runs.sections(root, **options)))
    return result.run_dir, events(result.run_dir)


def events(run_dir: Path):
    """Return what TensorBoard itself reads of a run."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = accumulator.EventAccumulator(
        str(run_dir / "trackers" / "darkroom"), size_guidance={"images": 0, "scalars": 0}
    )
    return found.Reload()


def rows(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "train.jsonl").read_text().splitlines()]


def test_every_name_of_the_seeds_reaches_tensorboard(tracked):
    found = set(tracked[1].Tags()["scalars"])
    missing = [n for n in (*LOSSES, *VALIDATION, *GRADIENTS) if n not in found]
    assert not missing, f"{missing} are not among {sorted(found)}"


def test_each_loss_name_of_the_seeds_is_a_number_of_train_jsonl(tracked):
    run_dir, board = tracked
    ours = {tracking.tracker_name(k): k for row in rows(run_dir) for k in row if "/" in k}
    assert set(LOSSES) | set(GRADIENTS) <= set(ours)
    for name in (*LOSSES, *GRADIENTS):
        written = {row["step"]: row[ours[name]] for row in rows(run_dir) if ours[name] in row}
        shown = {event.step: event.value for event in board.Scalars(name)}
        assert written.keys() == shown.keys()
        np.testing.assert_allclose([shown[s] for s in written], list(written.values()), rtol=1e-6)
    assert [e.step for e in board.Scalars("loss/G_total")] == [1, 2, 3, 4]
    assert [e.step for e in board.Scalars("grad_norm/conv_out_disc")] == [2, 4]


def test_the_validation_names_carry_the_means_of_the_validation_table(tracked):
    import polars as pl

    run_dir, board = tracked
    frame = pl.read_parquet(run_dir / "validation.parquet").filter(pl.col("step") == 4)
    rain = frame.filter(pl.col("degradation") == "Rain")["psnr_y"].mean()
    assert board.Scalars("val/Rain/PSNR")[-1].value == pytest.approx(rain, rel=1e-6)
    types = frame.group_by("degradation").agg(pl.col("final_score").mean())["final_score"]
    assert board.Scalars("val/Final_Score")[-1].value == pytest.approx(types.mean(), rel=1e-6)
    scores = {m: board.Scalars(f"val/{m}")[-1].value for m in ("PSNR", "SSIM", "LPIPS")}
    total = scores["PSNR"] + 10 * scores["SSIM"] - 5 * scores["LPIPS"]
    assert board.Scalars("val/Final_Score")[-1].value == pytest.approx(total, rel=1e-5)


def test_previews_reach_tensorboard_as_the_pictures_that_figures_hold(tracked, tmp_path):
    run_dir, board = tracked
    assert set(IMAGES) == set(board.Tags()["images"])
    figure = read_image(run_dir / "figures" / "images_00000004.png")  # (3 H, 4 W, 3)
    height = figure.shape[0] // 3
    for row, name in enumerate(["image/lq", "image/G_ema", "image/gt"]):
        *_, last = board.Images(name)
        assert last.step == 4
        path = tmp_path / "picture.png"
        path.write_bytes(last.encoded_image_string)
        shown = read_image(path)
        # TensorBoard lays the four side by side in its own way: the same pixels, sorted alike
        wanted = figure[row * height : (row + 1) * height]
        assert shown.size == wanted.size
        sorts = [np.sort(x.reshape(-1, 3), axis=0).astype(int) for x in (shown, wanted)]
        assert np.abs(sorts[0] - sorts[1]).max() <= 1
    raw, averaged = (board.Images(f"image/{n}")[-1].encoded_image_string for n in ("G", "G_ema"))
    assert raw != averaged


def test_where_each_tracker_writes_stands_in_train_log(tracked):
    run_dir, _ = tracked
    log = (run_dir / "train.log").read_text()
    folder = run_dir / "trackers" / "darkroom"
    expected = "tracker tensorboard: project darkroom, experiment small, mode local, folder "
    assert f"{expected}{folder}" in log


class Fails:
    """A progress display that breaks at a step."""

    def update(self, row):
        if row["step"] == 5:
            raise OSError("injected")

    def start(self, *_):
        pass

    validated = images = close = start


def test_a_resumed_run_shows_every_step_once_in_tensorboard(root):
    options = {
        "tracking.report_to": ["tensorboard"],
        "tracking.project": "mine",
        "train.steps": 7,
        "train.save_every": 3,
        "validation.every": None,
    }
    config = load_config(**small_runs.sections(root, **options))
    with pytest.raises(OSError, match="injected"):
        trainer.train(config, progress=Fails())
    trainer.train(config)  # steps 4 and 5 a second time, from the checkpoint of step 3
    folder = config.run_dir / "trackers" / "mine"
    assert len(list(folder.glob("events*"))) == 2
    folder.rename(folder.with_name("darkroom"))
    shown = events(config.run_dir).Scalars("loss/G_total")
    assert [event.step for event in shown] == [1, 2, 3, 4, 5, 6, 7]


def test_disabled_starts_no_tracker_and_needs_no_package(root, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # as if it were not installed
    options = {"tracking.report_to": ["tensorboard", "wandb"], "tracking.mode": "disabled"}
    config = load_config(**small_runs.sections(root, **options, **{"train.steps": 1}))
    assert tracking.check(config) == []
    assert trainer.train(config).status == "completed"
    assert not (config.run_dir / "trackers").exists()


@pytest.mark.parametrize("name", ["swanlab", "wandb"])
def test_a_tracker_that_is_not_installed_is_refused_before_anything_starts(root, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)  # as if it were not installed
    config = load_config(**small_runs.sections(root, **{"tracking.report_to": ["jsonl", name]}))
    (found,) = tracking.check(config)
    assert not found.ready
    with pytest.raises(tracking.TrackerError) as caught:
        trainer.train(config)
    message = str(caught.value)
    assert f"tracker {name}: the package {name}" in message
    assert 'pip install "darkroom[trackers]"' in message
    assert "[jsonl]" in message and "tensorboard" in message
    assert not config.run_dir.exists()


def test_the_command_says_it_in_one_line_without_a_traceback(root, repo):
    script = (
        "import sys; sys.modules['swanlab'] = None\n"
        "from darkroom.train import main; raise SystemExit(main(sys.argv[1:]))"
    )
    arguments = ["params/tiny.yaml", "--override", "tracking.report_to=[swanlab]"]
    arguments += [f"paths.runs={root / 'runs'}"]
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, cwd=repo
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "TrackerError: tracker swanlab: the package swanlab" in done.stderr


def test_jsonl_alone_imports_no_tracker(root):
    script = (
        "import json, sys\nfrom darkroom import trainer\nfrom darkroom.config import load_config\n"
        "trainer.train(load_config(**json.loads(sys.argv[1])))\n"
        "print([m for m in ('swanlab', 'wandb', 'tensorboard', 'pyiqa') if m in sys.modules])"
    )
    job = small_runs.sections(root, **{"train.steps": 2, "train.image_every": 1})
    done = subprocess.run(
        [sys.executable, "-c", script, json.dumps(job)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


def test_two_processes_write_one_experiment(root):
    options = {"tracking.report_to": ["tensorboard"], "train.steps": 3, "train.image_every": 3}
    small_runs.train_in_two(small_runs.command(root, run="two", **options))
    run_dir = root / "runs" / "two"
    assert len(list((run_dir / "trackers" / "darkroom").glob("events*"))) == 1
    board = events(run_dir)
    assert [event.step for event in board.Scalars("loss/G_total")] == [1, 2, 3]
    assert set(IMAGES) == set(board.Tags()["images"])


# --- with the packages of the extra `trackers` -----------------------------------------------


def needs(*names: str):
    missing = [n for n in names if importlib.util.find_spec(n) is None]
    return pytest.mark.skipif(bool(missing), reason=f"{', '.join(missing)} not installed")


SMALL = {
    "train.steps": 3,
    "train.image_every": 3,
    "train.ema_decay": 0.5,  # so that G, G_ema and lq differ: SwanLab keeps equal pictures once
    "validation.every": 3,
}


def run_with(root, monkeypatch, name: str, mode: str, **override) -> Path:
    """Train in a process of its own, in a home folder without any account."""
    monkeypatch.setenv("HOME", str(root / "home"))
    (root / "home").mkdir(exist_ok=True)
    options = SMALL | {"tracking.report_to": [name], "tracking.mode": mode} | override
    done = small_runs.train_process(root, **options)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    return root / "runs" / "small"


@needs("swanlab", "swanboard")
def test_swanlab_keeps_numbers_and_images_on_this_machine_in_mode_local(root, monkeypatch):
    run_dir = run_with(root, monkeypatch, "swanlab", "local")
    folder = run_dir / "trackers" / "swanlab"
    with sqlite3.connect(folder / "runs.swanlab") as database:
        names = {row[0] for row in database.execute("select name from tag")}
        experiments = [row[0] for row in database.execute("select name from experiment")]
    assert experiments == ["small"]
    assert {"loss/G_total", "val/PSNR", "val/Rain/PSNR", "loss/D", *IMAGES} <= names
    assert len(list(folder.glob("run-*/media/*/*.png"))) >= 4 * len(IMAGES)
    assert "experiment small, mode local" in (run_dir / "train.log").read_text()


@needs("swanlab")
def test_swanlab_offline_writes_what_can_be_uploaded_later(root, monkeypatch):
    run_dir = run_with(root, monkeypatch, "swanlab", "offline")
    (record,) = (run_dir / "trackers" / "swanlab").glob("run-*/run-*.swanlab")
    content = record.read_bytes()
    assert all(name.encode() in content for name in ("loss/G_total", "val/Rain/PSNR", *IMAGES))
    assert len(list(record.parent.glob("media/image/*.png"))) == 4 * len(IMAGES)


@needs("wandb")
def test_wandb_offline_writes_numbers_and_images(root, monkeypatch):
    run_dir = run_with(root, monkeypatch, "wandb", "local")
    (folder,) = (run_dir / "trackers" / "wandb").glob("offline-run-*")
    pictures = list((folder / "files" / "media" / "images" / "image").glob("*.png"))
    assert len(pictures) == 4 * len(IMAGES)
    (record,) = folder.glob("*.wandb")
    content = record.read_bytes()
    assert all(name.encode() in content for name in ("loss/G_total", "val/Rain/PSNR"))
    assert "experiment small, mode offline" in (run_dir / "train.log").read_text()


@pytest.fixture
def refusing_server():
    """Return the address of a server that refuses every login, as one with a wrong key would."""

    class Refuse(http.server.BaseHTTPRequestHandler):
        def answer(self):
            self.send_response(401)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_GET = do_POST = answer

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refuse) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


HOSTS = {"swanlab": "SWANLAB_API_HOST", "wandb": "WANDB_BASE_URL"}
CLOUDS = [pytest.param(n, marks=needs(n)) for n in HOSTS]


def cloud_check(root, name: str, **environment) -> str:
    """Return what the connection check says in a process with these variables and no account."""
    import os

    script = (
        "import json, sys\nfrom darkroom import tracking\nfrom darkroom.config import load_config\n"
        "for found in tracking.check(load_config(**json.loads(sys.argv[1]))):\n"
        "    print('ready' if found.ready else 'not ready', found)"
    )
    options = {"tracking.report_to": [name], "tracking.mode": "cloud"}
    home = root / "home"
    home.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", script, json.dumps(small_runs.sections(root, **options))],
        capture_output=True,
        text=True,
        env=os.environ | {"HOME": str(home), "NO_PROXY": "*"} | environment,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


@pytest.mark.parametrize("name", CLOUDS)
def test_the_connection_check_says_when_the_server_cannot_be_reached(root, name):
    line = cloud_check(root, name, **{HOSTS[name]: "http://127.0.0.1:9"})
    assert line.startswith(f"not ready tracker {name}: http://127.0.0.1:9 cannot be reached")
    assert "tracking.mode to offline" in line


@pytest.mark.parametrize("name", CLOUDS)
def test_the_connection_check_says_when_there_is_no_login(root, name, refusing_server):
    line = cloud_check(root, name, **{HOSTS[name]: refusing_server})
    assert line.startswith(f"not ready tracker {name}:")
    assert f"`{name} login`" in line and "API key" in line


@pytest.mark.parametrize("name", CLOUDS)
def test_the_connection_check_says_when_the_login_is_refused(root, name, refusing_server):
    key = {f"{name.upper()}_API_KEY": "0123456789" * 4}
    line = cloud_check(root, name, **{HOSTS[name]: refusing_server}, **key)
    assert line.startswith(f"not ready tracker {name}: AuthenticationError")
    assert "tracking.mode to offline" in line


def test_a_row_says_how_fast_training_goes_and_no_more_than_is_known(tmp_path):
    import torch
    from darkroom.monitor import Monitor

    monitor = Monitor(load_config(base=None, run="x"), None, torch.device("cpu"), images=50)
    first = monitor.row({"step": 1, "images": 8, "seconds": 2.0})
    assert set(first) == {"memory/rss_gib"}  # no GPU: no column, and no -1
    second = monitor.row({"step": 3, "images": 24, "seconds": 6.0})
    assert second["time/samples_per_second"] == 4.0
    assert second["time/epoch_seconds"] == 12.5


def test_the_rows_of_a_run_are_a_csv_file_too(tmp_path):
    import polars as pl

    rows = tracking.Rows(tmp_path / "train.jsonl")
    rows.append({"step": 1, "loss/a": 0.5})
    rows.append({"step": 2, "loss/a": 0.25, "validation": "x"})
    rows.write_csv()
    table = pl.read_csv(tmp_path / "train.csv")
    assert table["loss/a"].to_list() == [0.5, 0.25] and table["validation"].to_list() == [None, "x"]
