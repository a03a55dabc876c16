"""The traced plan: against real CPU runs, CUDA's autocast lists, a hand-made allocator history."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import plan_truth
import pytest
import small_runs
import small_sd
import torch
from darkroom.config import load_config
from darkroom.plan import allocator, memory, policy
from test_stable_diffusion import HYPIR

MIB = 2**20
FULL = HYPIR | {
    "loss.lpips": 5.0,
    "loss.l2": 1.0,
    "train.effective_batch": 6,
    "train.checkpointing.network": "on",
}
SMALL = {"data.crop_size": 96, "train.image_every": 1000}
RUNS = {
    "a tiny GAN": {"train.checkpointing.network": "on", "train.tail_micro_batch": 1},
    "regression without EMA": {
        "model.recipe": "regression",
        "loss.gan": 0.0,
        "train.ema_decay": None,
        "train.micro_batch": 4,
    },
    "diffusion in pixels": {
        "model.recipe": "conditional_diffusion",
        "loss.gan": 0.0,
        "train.checkpointing.network": "on",
        "restore.num_steps": 2,
    },
    "LoRA, term norms": {"sd": True, "train.grad_norm_every": 1, "train.effective_batch": 2},
    "all of the U-Net, LPIPS, checkpointing": {
        "sd": True,
        "model.lora_rank": None,
        "loss.lpips": 1.0,
        "train.checkpointing.network": "on",
        "train.checkpointing.decoder": "on",
        "train.effective_batch": 2,
        "train.micro_batch": 1,
    },
}


@pytest.fixture(scope="module")
def worker():
    with memory.Worker() as process:
        yield process


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return small_sd.write(tmp_path_factory.mktemp("sd") / "small")


def small(root, **keys):
    return load_config(**small_runs.sections(root, **keys))


def full(**keys):
    return load_config(base=None, run="x", override=FULL | keys)


# --- against reality ----------------------------------------------------------------------------


SLOW = ("all of the U-Net, LPIPS, checkpointing",)


@pytest.mark.parametrize(
    "run", [pytest.param(r, marks=pytest.mark.slow if r in SLOW else ()) for r in RUNS]
)
def test_the_predicted_peak_is_that_of_the_real_run(run, folder, worker, tmp_path):
    keys = SMALL | RUNS[run]
    if keys.pop("sd", False):
        keys = small_sd.override(folder) | keys
    real = max(plan_truth.peaks(tmp_path, keys).values())
    config, options = small(tmp_path, **keys), {"validation_size": (32, 32), "worker": worker}
    on_cpu = memory.trace(config, device="cpu", **options).peak_gib
    other = memory.trace(config, precision="fp32", cpu_kernels=True, **options).peak_gib
    print(f"{run}: {real / MIB:.2f} MiB", [f"{x * 2**30 / real - 1:+.2%}" for x in (on_cpu, other)])
    assert on_cpu * 2**30 == pytest.approx(real, rel=0.01)
    assert other * 2**30 == pytest.approx(real, rel=0.03)


# --- the plan -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plan(worker, tmp_path_factory):
    root = tmp_path_factory.mktemp("plan")
    keys = SMALL | {"train.grad_norm_every": 1, "train.image_every": 1}
    return memory.trace(small(root, **keys), validation_size=(96, 96), worker=worker)


def test_a_plan_says_when_the_peak_is_and_what_holds_it(plan):
    assert plan.precision == "bf16"  # auto, on a card of today
    assert plan.peak_gib == max(plan.phases.values()) == plan.phases[plan.peak_phase]
    assert sum(plan.categories.values()) == pytest.approx(plan.peak_gib)
    assert plan.modules["gib"].sum() == pytest.approx(plan.peak_gib)
    expected = {"start", "generator", "discriminator", "ema", "images", "validation"}
    expected |= {"generator: norm of every term", "generator: first optimizer step"}
    expected |= {f"{name}: optimizer" for name in ("generator", "discriminator")}
    assert expected - {"ema"} <= set(plan.phases)  # the EMA moves in place
    assert {"weights", "trained weights", "optimizer", "ema", "batch"} <= set(plan.categories)


def test_the_timeline_keeps_the_peak_and_the_order_of_phases(plan):
    frame = plan.timeline
    assert frame["total"].max() == pytest.approx(plan.peak_gib)
    categories = frame.drop("event", "phase", "total")
    assert (categories.sum_horizontal() - frame["total"]).abs().max() < 1e-9
    order = list(dict.fromkeys(frame["phase"]))
    assert order.index("start") < order.index("generator") < order.index("discriminator")
    assert order[-1] == "validation"


def test_reserved_is_no_less_than_live_and_the_smallest_budget_lies_between(plan):
    assert plan.peak_gib <= plan.reserved_expandable_gib <= plan.reserved_gib * 1.01
    assert plan.peak_gib <= plan.min_budget_gib <= plan.reserved_gib
    tight = int(0.98 * plan.min_budget_gib * 2**30)
    with pytest.raises(allocator.OutOfMemory):
        allocator.replay(plan._requests, limit=tight)


def test_static_memory_is_part_of_the_trace(worker, tmp_path):
    config = small(tmp_path, **SMALL)
    plan = memory.trace(config, precision="fp32", validation_size=(32, 32), worker=worker)
    total = memory.static(config)[-1].to_dicts()[0]
    start = plan.timeline.filter(plan.timeline["phase"] == "start")[-1].to_dicts()[0]
    weights = start["weights"] + start["trained weights"]
    assert weights == pytest.approx(total["weights"], rel=1e-3)
    assert start["ema"] == pytest.approx(total["ema"])


def test_accumulation_costs_the_gradients_once_and_no_more(worker, tmp_path):
    def peak(micro):
        keys = SMALL | {"train.effective_batch": 6, "train.micro_batch": micro}
        return memory.trace(small(tmp_path, **keys), worker=worker, validation_size=(32, 32))

    one, two = peak(1), peak(2)
    assert one.phases["generator"] < two.phases["generator"]
    assert one.tflop["generator"] == pytest.approx(two.tflop["generator"], rel=0.01)


def test_operations_agree_with_pytorchs_own_counter(worker, tmp_path):
    from darkroom.plan import flops

    config = small(tmp_path, **SMALL)
    found = memory.trace(config, worker=worker, precision="fp32", validation_size=(32, 32)).tflop
    for phase, tflop in flops.count(config).items():
        assert found[phase] == pytest.approx(tflop, rel=1e-6), phase


def test_an_average_on_the_cpu_leaves_the_card(worker, tmp_path):
    keys = SMALL | {"train.ema_device": "cpu"}
    found = memory.trace(small(tmp_path, **keys), worker=worker, validation_size=(32, 32))
    assert "ema" not in found.categories


def test_every_stage_is_rehearsed(worker, tmp_path):
    stages = {"late": {"start": "50%", "changes": {"loss.lpips": 1.0}}}
    options = {"worker": worker, "validation_size": (32, 32)}
    plain = memory.trace(small(tmp_path, **SMALL), **options)
    run = small_runs.sections(tmp_path, **SMALL)
    staged = memory.trace(load_config(**run, stages=stages), **options)
    assert staged.phases["generator"] > plain.phases["generator"]


def test_what_a_recipe_refuses_is_refused_with_its_own_words(folder, worker):
    keys = small_sd.override(folder) | {"data.crop_size": 31}
    config = load_config(base=None, run="x", override=keys)
    with pytest.raises(ValueError, match="data.crop_size 31 is not a multiple of 4"):
        memory.trace(config, worker=worker)
    with pytest.raises(ValueError, match="it can be 'accelerator' or 'cpu'"):
        memory.trace(config, device="cuda")


def test_a_process_that_dies_is_reported(tmp_path):
    process = memory.Worker()
    process.process.kill()
    with pytest.raises(memory.PlanError, match="ended early"):
        memory.trace(small(tmp_path, **SMALL), worker=process)


def test_planning_leaves_this_process_alone():
    code = (
        "import torch\nfrom darkroom import load_config\nfrom darkroom.plan import memory\n"
        "config = load_config(base=None, run='x', override={'data.crop_size': 32})\n"
        "memory.trace(config, validation_size=(32, 32))\n"
        "print(torch._C._get_privateuse1_backend_name())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["privateuseone"]


# --- the full size ------------------------------------------------------------------------------


# an independent trace's peaks at batch 6, whole and with the tail by one, less the 1.29 GiB of text
# encoder and CLIP's text tower, which are not kept here
INDEPENDENT_GIB = {6: 36.45, "tail": 13.49}


@pytest.mark.slow
def test_the_original_at_full_size_and_its_tail_one_sample_at_a_time(worker):
    plain = memory.trace(full(), worker=worker)
    tail = memory.trace(full(**{"train.tail_micro_batch": 1}), worker=worker)
    assert plain.phases["generator"] == pytest.approx(INDEPENDENT_GIB[6], rel=0.03)
    assert tail.phases["generator"] == pytest.approx(INDEPENDENT_GIB["tail"], rel=0.03)
    assert plain.tflop["generator"] == pytest.approx(83.1, abs=0.1)


# --- autocast and attention ---------------------------------------------------------------------


def header_lists() -> dict[str, set[str]]:
    """Return the operators of each policy as the installed torch's own header lists them."""
    path = Path(torch.__file__).parent / "include" / "ATen" / "autocast_mode.h"
    text, found = path.read_text(), {}
    for name in ("LOWER_PRECISION_FP", "FP32", "FP32_SET_OPT_DTYPE", "PROMOTE"):
        body = re.search(rf"#define AT_FORALL_{name}\(_\)((?:.*\\\n)*.*\n)", text).group(1)
        pairs = re.findall(r"_\((\w+)(?:,\s*(\w+))?\)", body)
        found[name] = {f"{a}.{b}" if b else a for a, b in pairs}
    found["norm"] = set(re.findall(r'"(norm\.\w+)"', text))
    return found


def test_the_autocast_lists_are_those_of_the_installed_torch():
    lists = header_lists()
    assert set(policy.LOWER) == lists["LOWER_PRECISION_FP"]
    assert set(policy.FLOAT32) == lists["FP32"]
    assert set(policy.FLOAT32_RESULT) == lists["FP32_SET_OPT_DTYPE"]
    assert set(policy.PROMOTE) == lists["PROMOTE"]
    assert set(policy.FLOAT32_NORM) == lists["norm"]


AUTOCAST = r"""
import json, torch, torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from darkroom.plan import device, policy
on = device.accelerator()
found = {}
with FakeTensorMode(), torch.autocast(on.type, dtype=torch.bfloat16):
    x, h = torch.randn(2, 4, 8, 8, device=on), torch.randn(2, 4, 8, 8, device=on).bfloat16()
    w = torch.nn.Parameter(torch.randn(4, 4, 3, 3, device=on))
    v = torch.randn(8, device=on)
    found["conv"] = F.conv2d(x, w).dtype
    F.conv2d(x, w)
    found["casts kept"] = len(policy.casts)
    found["linear"] = F.linear(x, torch.randn(5, 8, device=on)).dtype
    found["matmul"] = (x @ x).dtype
    found["einsum"] = torch.einsum("bchw,bchv->bcwv", x, x).dtype
    found["float64 matmul"] = (x.double() @ x.double()).dtype
    found["group_norm"] = F.group_norm(h, 2).dtype
    found["softmax"] = F.softmax(h, -1).dtype
    found["sum"] = h.sum().dtype
    found["norm"] = h.norm().dtype
    found["norm over a dimension"] = torch.norm(h, 2, 1, True).dtype
    found["flatten norm"] = h.flatten(1).norm(dim=1).dtype
    found["mse"] = F.mse_loss(h, h).dtype
    found["interpolate"] = F.interpolate(h, scale_factor=2).dtype
    found["dot"] = torch.dot(v, v.bfloat16()).dtype
    found["half dot"] = torch.dot(v.bfloat16(), v.bfloat16()).dtype
    found["add"] = (h + h).dtype
    found["gelu"] = F.gelu(h).dtype
    q = torch.randn(1, 2, 16, 64, device=on, requires_grad=True)
    out = F.scaled_dot_product_attention(q, q, q)
    found["attention"] = out.dtype
    wide = torch.randn(1, 1, 16, 512, device=on, requires_grad=True)
    out = F.scaled_dot_product_attention(wide, wide, wide)
    found["wide attention kernel"] = type(out.grad_fn).__name__
    with torch.autocast(on.type, enabled=False):
        found["off"] = F.conv2d(x, w).dtype
    F.conv2d(x, w).float().sum().backward()
    found["gradient"] = w.grad.dtype
found["casts left"] = len(policy.casts)
print(json.dumps({k: str(v).removeprefix("torch.") for k, v in found.items()}))
"""


def test_autocast_on_the_fake_accelerator_does_what_cuda_does():
    done = subprocess.run(
        [sys.executable, "-c", AUTOCAST], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    half = ("conv", "linear", "matmul", "einsum", "half dot", "add", "gelu", "attention")
    assert {k: found[k] for k in half} == dict.fromkeys(half, "bfloat16")
    full = ("group_norm", "softmax", "sum", "norm", "norm over a dimension", "flatten norm")
    full += ("mse", "interpolate", "dot", "off", "gradient")
    assert {k: found[k] for k in full} == dict.fromkeys(full, "float32")
    assert found["float64 matmul"] == "float64"
    assert found["casts kept"] == "1"  # of the weight, once
    assert found["casts left"] == "0"
    assert "Efficient" in found["wide attention kernel"]


# --- the allocator ------------------------------------------------------------------------------


def test_small_and_large_requests_come_from_segments_of_their_own_sizes():
    def reserved(size):
        return allocator.replay([(0, size)]).reserved

    assert reserved(1) == reserved(2**20) == 2 * MIB
    assert reserved(2**20 + 1) == reserved(10 * MIB - 512) == 20 * MIB
    assert reserved(10 * MIB) == 10 * MIB
    assert reserved(11 * MIB + 1) == 12 * MIB


def test_a_freed_block_is_split_reused_and_joined_again():
    found = allocator.Allocator()
    found.allocate(0, 40 * MIB)
    found.free(0)
    found.allocate(1, 16 * MIB)
    found.allocate(2, 16 * MIB)
    assert found.reserved == 40 * MIB
    found.allocate(3, 16 * MIB)  # 8 MiB are left
    assert found.reserved == 56 * MIB
    for number in (1, 2):
        found.free(number)
    found.allocate(4, 40 * MIB)
    assert found.reserved == found.allocated == 56 * MIB


def test_a_rest_of_a_megabyte_stays_with_its_large_block():
    found = allocator.Allocator()
    found.allocate(0, 12 * MIB)
    found.free(0)
    found.allocate(1, 11 * MIB)
    assert found.allocated == 12 * MIB


def test_expandable_segments_grow_where_fixed_ones_are_made_anew():
    history = []
    for number in range(1, 20):
        history += [(number, number * 11 * MIB), (number, -number * 11 * MIB)]
    rounded = sum(-(-number * 11 // 2) * 2 for number in range(1, 20))
    assert allocator.replay(history).peak == rounded * MIB
    assert allocator.replay(history, expandable=True).peak == 220 * MIB


def test_cached_segments_are_given_back_before_it_is_out_of_memory():
    history = [(0, 30 * MIB), (0, -30 * MIB), (1, 40 * MIB)]
    assert allocator.replay(history).peak == 70 * MIB
    assert allocator.replay(history, limit=40 * MIB).retries == 1
    with pytest.raises(allocator.OutOfMemory, match="beyond a budget"):
        allocator.replay(history, limit=39 * MIB)
    assert 40 * MIB <= allocator.smallest_budget(history) <= 40.3 * MIB


def test_expandable_pages_in_the_middle_are_given_back_and_used_again():
    history = [(0, 60 * MIB), (1, 20 * MIB), (0, -60 * MIB), (2, 70 * MIB)]
    assert allocator.replay(history, expandable=True).peak == 160 * MIB
    assert allocator.replay(history, expandable=True, limit=100 * MIB).retries == 1
