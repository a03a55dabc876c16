"""Optimizers: what weight decay does, how the step is computed, moments in 8 bit."""

from __future__ import annotations

import pytest
import small_runs
import torch
from darkroom import load_config, optim
from darkroom.config import effects
from darkroom.recipes import Phase
from safetensors.torch import load_file
from torch._subclasses.fake_tensor import FakeTensorMode


def phase_of(*shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    parameters = {
        f"w{n}": torch.nn.Parameter(torch.randn(shape, generator=generator))
        for n, shape in enumerate(shapes)
    }
    return Phase("generator", parameters, lr=0.1)


def section(**values):
    override = {f"optim.generator.{k}": v for k, v in values.items()}
    config = load_config(base=None, run="x", override=override)
    return config.optim.generator


@pytest.mark.parametrize(
    "values",
    [
        {"implementation": "loop"},
        {"implementation": "foreach"},
        {"implementation": "fused"},
        {"name": "adamw8bit"},
    ],
)
def test_without_a_gradient_a_step_shrinks_the_weight_by_lr_times_decay(values):
    phase = phase_of((80, 80))
    optimizer = optim.build(section(weight_decay=0.25, **values), phase)
    before = phase.parameters["w0"].detach().clone()
    phase.parameters["w0"].grad = torch.zeros_like(before)
    optimizer.step()
    assert torch.allclose(phase.parameters["w0"], before * (1 - 0.1 * 0.25), rtol=1e-6)


def test_the_default_decay_is_pytorchs_so_that_a_written_1e_4_lowers_it():
    assert section().weight_decay == 0.01
    assert torch.optim.AdamW([torch.zeros(1)]).defaults["weight_decay"] == 0.01
    left = {}
    for name, values in {"default": {}, "written": {"weight_decay": 1e-4}}.items():
        phase = phase_of((1,))
        phase.parameters["w0"].data.fill_(1)
        phase.parameters["w0"].grad = torch.zeros(1)
        optim.build(section(**values), phase).step()
        left[name] = phase.parameters["w0"].item()
    assert left == pytest.approx({"default": 1 - 0.1 * 0.01, "written": 1 - 0.1 * 1e-4}, rel=1e-7)


@pytest.mark.parametrize(
    ("wanted", "fused", "foreach"),
    [
        ("fused", True, False),
        ("foreach", False, True),
        ("loop", False, False),
        ("auto", False, False),
    ],
)
def test_the_implementation_is_what_was_asked_for_and_never_a_guess(wanted, fused, foreach):
    optimizer = optim.build(section(implementation=wanted), phase_of((3, 3)))
    assert optimizer.defaults["fused"] is fused
    assert optimizer.defaults["foreach"] is foreach


@pytest.mark.parametrize("implementation", ["fused", "foreach", "loop"])
def test_a_count_of_steps_read_from_a_file_goes_where_the_step_reads_it_on_a_gpu(implementation):
    with FakeTensorMode():  # tensors with a device and no memory; no GPU is needed
        weight = torch.nn.Parameter(torch.zeros(4, 4, device="cuda"))
        phase = Phase("generator", {"w": weight}, lr=0.1)
        fresh, resumed = (
            optim.build(section(implementation=implementation), phase) for _ in range(2)
        )
        weight.grad = torch.zeros_like(weight)
        fresh.step()
        optim.load_state_by_name(resumed, phase, {"w/step": torch.tensor(1.0)})
        assert resumed.state[weight]["step"].device == fresh.state[weight]["step"].device


def test_a_gpu_takes_the_fused_step_by_itself():
    with FakeTensorMode():
        weight = torch.nn.Parameter(torch.zeros(4, 4, device="cuda"))
        optimizer = optim.build(section(), Phase("generator", {"w": weight}, lr=0.1))
    assert optimizer.defaults["fused"] is True


@pytest.mark.parametrize(
    ("name", "implementation", "told"),
    [
        ("adamw", "foreach", False),
        ("rmsprop", "foreach", False),
        ("rmsprop", "fused", True),
        ("adamw8bit", "fused", True),
        ("adamw8bit", "foreach", True),
        ("adamw8bit", "loop", True),
    ],
)
def test_an_implementation_that_the_optimizer_does_not_have_is_told(name, implementation, told):
    keys = {"model.recipe": "one_step_gan", "loss.gan": 0.1}
    keys |= {"optim.generator.name": name, "optim.generator.implementation": implementation}
    lines = effects.idle(load_config(base=None, run="x", override=keys))
    assert any("optim.generator.implementation" in line for line in lines) is told


def steps(optimizer, phase, count, start=0):
    """Minimise a quadratic with a seeded noise in the gradient."""
    for n in range(start, start + count):
        generator = torch.Generator().manual_seed(100 + n)
        for parameter in phase.parameters.values():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.grad = (parameter - 1 + 0.1 * noise).detach()
        optimizer.step()


def test_eight_bit_moments_follow_adamw_in_a_quarter_of_the_bytes():
    found, held = {}, {}
    for name in ("adamw", "adamw8bit"):
        phase = phase_of((128, 128), (7,))
        optimizer = optim.build(section(name=name, lr=0.02, weight_decay=0), phase)
        optimizer.param_groups[0]["lr"] = 0.02
        steps(optimizer, phase, 150)
        found[name] = (phase.parameters["w0"].detach() - 1).square().mean().item()
        state = optimizer.state[phase.parameters["w0"]]
        tables = ("qmap1", "qmap2")  # 256 numbers that all tensors share
        held[name] = sum(
            v.numel() * v.element_size()
            for k, v in state.items()
            if torch.is_tensor(v) and v.ndim and k not in tables
        )
    assert found["adamw8bit"] == pytest.approx(found["adamw"], rel=0.3, abs=1e-3)
    assert found["adamw8bit"] < 0.1  # it began at about 2
    assert held["adamw"] == 8 * 128 * 128
    assert held["adamw8bit"] == 2 * 128 * 128 * (1 + 4 / optim.BITSANDBYTES_BLOCK)


def test_eight_bit_moments_fit_a_regression_as_well_as_adamw():
    generator = torch.Generator().manual_seed(5)
    x, truth = torch.randn(256, 64, generator=generator), torch.randn(64, 64, generator=generator)
    y = x @ truth
    errors = {}
    for name in ("adamw", "adamw8bit"):
        phase = phase_of((64, 64))  # 4096 values, the fewest that are kept in 8 bit
        weight = phase.parameters["w0"]
        optimizer = optim.build(section(name=name, weight_decay=0), phase)
        optimizer.param_groups[0]["lr"] = 0.03
        for _ in range(300):
            optimizer.zero_grad()
            (x @ weight - y).square().mean().backward()
            optimizer.step()
        errors[name] = ((x @ weight - y).square().mean() / y.square().mean()).item()
    assert optimizer.state[weight]["state1"].dtype is torch.uint8
    assert errors["adamw8bit"] < 2 * errors["adamw"] < 1e-3  # of the variance


def test_eight_bit_moments_come_back_bit_for_bit():
    whole = phase_of((80, 80), (5,))
    optimizer = optim.build(section(name="adamw8bit"), whole)
    steps(optimizer, whole, 6)
    first = phase_of((80, 80), (5,))
    before = optim.build(section(name="adamw8bit"), first)
    steps(before, first, 3)
    saved = {k: v.clone() for k, v in optim.state_by_name(before, first).items()}
    again = Phase(
        "generator",
        {k: torch.nn.Parameter(p.detach().clone()) for k, p in first.parameters.items()},
        0.1,
    )
    after = optim.build(section(name="adamw8bit"), again)
    optim.load_state_by_name(after, again, saved)
    steps(after, again, 3, start=3)
    for name, parameter in whole.parameters.items():
        assert torch.equal(again.parameters[name], parameter)


def test_a_run_with_eight_bit_moments_and_its_average_on_the_cpu_continues_bit_for_bit(tmp_path):
    small_runs.write_pictures(tmp_path / "pictures")
    keys = {"optim.generator.name": "adamw8bit", "validation.every": None}
    keys["train.ema_device"] = "cpu"
    assert small_runs.train_process(tmp_path, run="whole", **keys).returncode == 0
    killed = small_runs.train_process(tmp_path, run="cut", faults={"kill_at_sample": 41}, **keys)
    assert killed.returncode == -9
    done = small_runs.train_process(tmp_path, run="cut", **keys)
    assert done.returncode == 0, done.stderr
    runs = tmp_path / "runs"
    assert small_runs.losses(runs / "cut") == small_runs.losses(runs / "whole")
    files = small_runs.final_weights(runs / "whole")
    assert small_runs.final_weights(runs / "cut") == files
    assert {"ema.safetensors", "optimizer.safetensors"} <= set(files)
    moments = load_file(runs / "whole" / "checkpoints" / "latest" / "optimizer.safetensors")
    assert torch.uint8 in {value.dtype for value in moments.values()}


def test_the_average_on_the_cpu_is_the_same_and_shares_nothing_with_the_weights():
    phases = [phase_of((6, 6)) for _ in range(2)]
    averages = [
        optim.EMA(p.parameters, 0.9, device)
        for p, device in zip(phases, (None, torch.device("cpu")), strict=True)
    ]
    for phase, average in zip(phases, averages, strict=True):
        optimizer = optim.build(section(), phase)
        for n in range(3):
            steps(optimizer, phase, 1, start=n)
            average.update()
        weight = phase.parameters["w0"]
        before, kept = weight.data_ptr(), weight.detach().clone()
        assert average.shadow["w0"].data_ptr() != before
        with average.applied():
            assert torch.equal(weight, average.shadow["w0"])
        assert weight.data_ptr() == before
        assert torch.equal(weight, kept)
    assert torch.equal(averages[0].shadow["w0"], averages[1].shadow["w0"])
