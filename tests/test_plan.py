"""Static memory: held against the real model, its real optimizer and a closed form."""

import pytest
import torch
from darkroom import load_config, optim, recipes
from darkroom.plan import memory


@pytest.mark.parametrize("recipe", ["one_step_gan", "regression"])
def test_static_memory_is_what_the_real_model_optimizer_and_average_hold(recipe):
    config = load_config(base="tiny", override={"model.recipe": recipe, "loss.gan": _gan(recipe)})
    frame = memory.static(config)
    held = {"weights": 0, "gradients": 0, "optimizer": 0}
    real = recipes.build(config)
    for module in real.modules.values():
        tensors = [*module.parameters(), *module.buffers()]
        held["weights"] += sum(t.numel() * t.element_size() for t in tensors)
    for phase in real.phases(config):
        optimizer = optim.build(config.optim.for_phase(phase.name), phase)
        for parameter in phase.parameters.values():
            parameter.requires_grad_(True)
            parameter.grad = torch.zeros_like(parameter)
            held["gradients"] += parameter.grad.numel() * parameter.grad.element_size()
        optimizer.step()
        state = optim.state_by_name(optimizer, phase).values()
        held["optimizer"] += sum(t.numel() * t.element_size() for t in state if t.ndim)
    total = frame.filter(module="total").to_dicts()[0]
    for part, size in held.items():
        assert total[part] * 2**30 == pytest.approx(size), part
    average = optim.EMA(real.phases(config)[0].parameters, 0.99)
    size = sum(t.numel() * t.element_size() for t in average.shadow.values())
    assert total["ema"] * 2**30 == pytest.approx(size)


def _gan(recipe: str) -> float:
    return 0.01 if recipe == "one_step_gan" else 0.0


def test_the_meta_build_allocates_nothing():
    recipe = memory.build_on_meta(load_config(base="tiny"))
    for module in recipe.modules.values():
        assert {p.device.type for p in module.parameters()} == {"meta"}


def test_the_total_is_the_sum_and_no_average_is_counted_when_it_is_off():
    frame = memory.static(load_config(base="tiny", override={"train.ema_decay": None}))
    total = frame.filter(module="total").to_dicts()[0]
    assert total["ema"] == 0
    parts = total["weights"] + total["gradients"] + total["optimizer"]
    assert total["total"] == pytest.approx(parts)
    assert total["parameters"] == frame.filter(frame["module"] != "total")["parameters"].sum()


HYPIR = {"model.base": None, "model.trunk_weights": None}


def test_a_step_at_full_size_costs_no_more_operations_than_the_original():
    from darkroom.plan import flops

    counted = flops.count(load_config(base="hypir", run="hypir", override=HYPIR))
    assert counted["generator"] <= 83.3
    assert counted["discriminator"] <= 48.8
    assert counted["generator"] > 80  # forward, backward and the recomputed U-Net are all there
    tail = flops.count(
        load_config(base="hypir", run="hypir", override=HYPIR | {"train.tail_micro_batch": 1})
    )
    assert tail == pytest.approx(counted, rel=1e-9)
