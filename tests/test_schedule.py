"""Learning rate, stages and horizon as pure functions of the position."""

from __future__ import annotations

import math

import pytest
import torch
from darkroom import schedule
from darkroom.config import load_config


def schedule_of(**values):
    return load_config(
        base=None, override={f"optim.schedule.{k}": v for k, v in values.items()}
    ).optim.schedule


def test_the_cosine_equals_torchs_after_a_linear_warmup():
    section = schedule_of(kind="cosine", warmup=10, min_lr=1e-5)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=90, eta_min=1e-5)
    for step in range(10):
        assert schedule.lr_factor(section, 1e-3, step, 100) == pytest.approx((step + 1) / 10)
    for step in range(10, 100):
        ours = 1e-3 * schedule.lr_factor(section, 1e-3, step, 100)
        assert math.isclose(ours, reference.get_last_lr()[0], rel_tol=1e-9)
        optimizer.step()
        reference.step()


def test_the_rate_stays_at_its_floor_beyond_the_horizon():
    section = schedule_of(kind="cosine", warmup=0, min_lr=1e-5)
    assert 1e-3 * schedule.lr_factor(section, 1e-3, 500, 100) == pytest.approx(1e-5)


def test_a_warmup_in_per_cent_is_of_the_horizon():
    section = schedule_of(kind="constant", warmup="5%", min_lr=0.0)
    assert schedule.lr_factor(section, 1e-3, 9, 200) == 1.0
    assert schedule.lr_factor(section, 1e-3, 4, 200) == 0.5


def test_later_stages_win_and_ramps_are_linear():
    config = load_config(
        base=None,
        override={
            "model.recipe": "one_step_gan",
            "loss.gan": 0.0,
            "stages.late.start": "50%",
            "stages.late.ramp": 4,
            "stages.late.changes": {"loss.gan": 0.4},
            "stages.early.start": 10,
            "stages.early.changes": {"loss.gan": 0.2, "data.crop_size": 64},
        },
    )
    assert schedule.stage_changes(config, 9, 100) == {}
    assert schedule.stage_changes(config, 10, 100) == {"loss.gan": 0.2, "data.crop_size": 64}
    ramp = [schedule.stage_changes(config, s, 100)["loss.gan"] for s in range(50, 55)]
    assert ramp == pytest.approx([0.25, 0.3, 0.35, 0.4, 0.4])
    assert schedule.boundaries(config, 100) == [10, 50]
