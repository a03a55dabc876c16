"""The live view: its requests reach the trainer, and it stays away where nobody watches."""

import time

import pytest
from darkroom import load_config
from darkroom.report import widgets
from darkroom.run import RunDirectory


@pytest.fixture
def config(tmp_path):
    return load_config(base="tiny", run="watched", paths={"runs": str(tmp_path)})


def row(step: int) -> dict:
    return {"step": step, "loss/generator_total": 1 / step, "lr/generator": 1e-3}


@pytest.mark.parametrize("word", widgets.BUTTONS)
def test_a_button_writes_the_word_that_the_trainer_reads_once(config, word):
    run, live = RunDirectory(config), widgets.Live(config)
    live.start(10, 0)
    button = next(b for b in live.box.children if f"darkroom-{word}" in b._dom_classes)
    button.click()
    assert run.control() == word
    assert run.control() == ""


def test_an_unknown_request_is_refused(config):
    with pytest.raises(ValueError, match="explode.*pause"):
        widgets.Live(config).ask("explode")


def test_the_note_of_a_request_goes_once_the_trainer_has_taken_it(config):
    run, live = RunDirectory(config), widgets.Live(config)
    live.start(10, 0)
    live.ask("save")
    assert "saving after this step" in live._bar()
    run.control()
    live.update(row(1))
    assert "saving" not in live._bar()


def test_the_bar_says_step_share_and_losses(config):
    RunDirectory(config)
    live = widgets.Live(config)
    live.start(8, 0)
    live.update(row(2))
    bar = live._bar()
    assert "width:25.0%" in bar and "step 2 of 8" in bar and "generator 0.5" in bar


def test_curves_are_not_drawn_more_often_than_they_may_cost(config, monkeypatch):
    RunDirectory(config)
    live = widgets.Live(config)
    live.start(1000, 0)
    drawn = []
    monkeypatch.setattr(live, "_show", lambda place, content: drawn.append(place))
    began = time.monotonic()
    for step in range(1, 400):
        live.update(row(step))
    seconds = time.monotonic() - began
    assert drawn.count("curves") <= seconds / widgets.PICTURE_SECONDS
    assert drawn.count("bar") <= seconds / widgets.BAR_SECONDS + 1
    live.close("completed")
    assert drawn[-1] == "curves"
    assert "completed" in live._bar()


def test_a_resumed_view_shows_the_earlier_rows_again(config):
    run = RunDirectory(config)
    for step in (1, 2, 3, 4):
        run.rows.append(row(step))
    live = widgets.Live(config)
    live.start(10, 3)
    assert [r["step"] for r in live.rows] == [1, 2, 3]


def test_nobody_watches_a_plain_process_or_papermill_unless_told(config, monkeypatch):
    monkeypatch.delenv("DARKROOM_PROGRESS", raising=False)
    assert widgets.reporter(config) is None
    monkeypatch.setenv("DARKROOM_PROGRESS", "live")
    assert isinstance(widgets.reporter(config), widgets.Live)
    monkeypatch.setenv("DARKROOM_PROGRESS", "quiet")
    assert widgets.reporter(config) is None
