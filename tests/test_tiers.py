"""Counted memory against libraries that really hold it, and against real forwards on the CPU."""

from __future__ import annotations

import guide_networks
import pytest
import saved_tensors
import torch
from darkroom.config import load_config
from darkroom.plan import tiers
from darkroom.plan.memory import build_on_meta
from darkroom.torchvision_ops import ensure_torchvision
from torch import nn

GIB = 2**30


@pytest.fixture(scope="module")
def widened():
    return guide_networks.qwen(guide_networks.SVG_VOCABULARY)


def small():
    return nn.Sequential(nn.Embedding(100, 64), nn.Linear(64, 128), nn.Conv2d(3, 8, 3))


def totals(frame) -> dict[str, float]:
    return dict(zip(frame["tier"], frame["total"], strict=True))


def test_a_tier_is_bytes_times_parameters():
    count = 6400 + 128 * 65 + 8 * 28
    frame = tiers.tiers(small(), rank=2)
    rows = {row["tier"]: row for row in frame.to_dicts()}
    bytes_a_value = {
        "full, fp32": 16,
        "full, bf16 with fp32 master": 16,
        "full, bf16": 8,
        "full, optimizer on the CPU": 4,
        "full, optimizer and gradients on the CPU": 2,
    }
    for name, each in bytes_a_value.items():
        assert rows[name]["total"] * GIB == pytest.approx(each * count), name
        assert rows[name]["trained"] == count
    adapters = 2 * (64 + 128)
    lora = rows["LoRA, bf16 base"]
    assert lora["trained"] == adapters
    assert lora["total"] * GIB == pytest.approx(2 * count + 16 * adapters)
    eight = rows["LoRA, 8-bit base"]["weights"] * GIB
    assert eight == pytest.approx(2 * (count - 8192) + 8192 + 4 * 128 + 4 * adapters)
    assert frame["analytic"].all()
    parts = frame.select("weights", "gradients", "optimizer").sum_horizontal()
    assert parts.to_list() == pytest.approx(frame["total"].to_list())


def test_what_leaves_the_card_is_on_the_host_and_crosses_the_bus():
    rows = {row["tier"]: row for row in tiers.tiers(small()).to_dicts()}
    moved, count = rows["full, optimizer and gradients on the CPU"], rows["full, fp32"]["trained"]
    assert moved["host"] * GIB == 14 * count
    assert moved["transfer"] * GIB == 4 * count
    whole = rows["full, everything on the CPU"]
    assert whole["host"] * GIB == 16 * count
    assert whole["weights"] * GIB == 2 * 2 * 128 * 65  # two of the largest layer, bf16
    assert tiers.transfer_seconds(31.508e9 / GIB) == pytest.approx(1, rel=1e-3)
    assert tiers.transfer_seconds(1, "3.0") == pytest.approx(2 * tiers.transfer_seconds(1))
    with pytest.raises(ValueError, match=r"'6.0' is not known: 3.0, 4.0, 5.0 are"):
        tiers.transfer_seconds(1, "6.0")


def test_a_budget_says_which_tiers_fit_with_what_is_beside_them(widened):
    frame = tiers.tiers(widened)
    fits = tiers.fitting(frame, 24, beside_gib=3.0)
    total = totals(frame)
    found = dict(zip(fits["tier"], fits["fits"], strict=True))
    assert found == {name: gib + 3.0 <= 24 for name, gib in total.items()}
    assert not found["full, bf16, 8-bit Adam"]
    assert tiers.fitting(frame, 24)["fits"].sum() > fits["fits"].sum()


def test_choices_that_match_nothing_are_refused_with_an_example():
    with pytest.raises(ValueError, match=r"matches 'to_q' as a whole: give an expression"):
        tiers.tiers(small(), targets="to_q")
    with pytest.raises(ValueError, match=r"unfrozen 'mid_block': no parameter's name"):
        tiers.tiers(small(), unfrozen=("mid_block",))


def test_4_bit_weights_are_as_large_as_bitsandbytes_makes_them():
    pytest.importorskip("bitsandbytes")
    from bitsandbytes.functional import quantize_4bit

    weight = torch.randn(600, 1024)
    for double in (False, True):
        packed, state = quantize_4bit(
            weight, blocksize=64, compress_statistics=double, quant_type="nf4"
        )
        held = [packed, state.absmax] + ([state.state2.absmax] if double else [])
        size = sum(t.numel() * t.element_size() for t in held)
        assert tiers.nf4_bytes(weight.numel(), double) == size
    # QLoRA's section 3: 0.5 bits a value for scales, 0.127 with double quantisation
    assert 8 * tiers.nf4_bytes(2**24) / 2**24 == 4.5
    assert 8 * tiers.nf4_bytes(2**24, double=True) / 2**24 == pytest.approx(4.127, abs=5e-4)


def test_8_bit_weights_and_moments_are_as_large_as_bitsandbytes_makes_them():
    bnb = pytest.importorskip("bitsandbytes")
    weight = torch.randn(512, 1024)
    packed, scales, _ = bnb.functional.int8_vectorwise_quant(weight.half())
    held = packed.numel() * packed.element_size() + scales.numel() * scales.element_size()
    assert tiers.int8_bytes(weight) == held
    parameters = [nn.Parameter(torch.randn(n)) for n in (100, 4095, 4096, 10_000)]
    optimizer = bnb.optim.AdamW8bit(parameters)
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    for parameter in parameters:
        state = optimizer.state[parameter]
        keys = [k for k in ("state1", "state2", "absmax1", "absmax2") if k in state]
        size = sum(state[k].numel() * state[k].element_size() for k in keys)
        assert tiers.adam8_bytes(parameter.numel()) == size, len(parameter)


def test_what_is_quantised_is_what_transformers_quantises(widened):
    ensure_torchvision()
    from transformers.quantizers.base import get_keys_to_not_convert

    kept = set(get_keys_to_not_convert(widened))
    linear = {n for n, m in widened.named_modules() if isinstance(m, nn.Linear)}
    assert set(tiers.quantised(widened)) == linear - kept
    assert "lm_head" in linear & kept


def test_adapters_are_counted_as_peft_builds_them():
    unet = guide_networks.line_unet()
    for rank, targets in ((16, guide_networks.LATE_ATTENTION), (8, r".*\.(conv1|to_q|conv)")):
        counted = tiers.lora_parameters(unet, rank, targets)
        adapted = guide_networks.with_adapters(guide_networks.line_unet(), rank, targets)
        assert sum(p.numel() for p in adapted.parameters() if p.requires_grad) == counted


@pytest.mark.slow
def test_a_recipe_that_has_adapters_is_counted_without_them():
    keys = {"model.recipe": "one_step_gan", "model.size": "full", "model.lora_rank": 256}
    keys |= {"model.trunk": "convnext_xxlarge", "model.trunk_weights": None, "loss.gan": 0.5}
    network = build_on_meta(load_config(base=None, run="x", override=keys)).network
    targets = r".*\.(to_k|to_q|to_v|to_out\.0|conv|conv1|conv2|conv_shortcut|proj_in|proj_out"
    targets += r"|ff\.net\.2|ff\.net\.0\.proj)|(.*\.)?conv_out"
    assert tiers.lora_parameters(network, 256, targets) == 259_474_432
    frame = tiers.tiers(network, rank=256, targets=targets)
    assert frame["trained"][0] == 865_910_724


def test_what_is_unfrozen_is_trained_in_float32_and_no_longer_frozen():
    unet, late = guide_networks.line_unet(), guide_networks.LATE_ATTENTION
    plain = {r["tier"]: r for r in tiers.tiers(unet, targets=late).to_dicts()}
    mixed = tiers.tiers(unet, targets=late, unfrozen=guide_networks.LATE_BLOCKS, added=1000)
    mixed = {r["tier"]: r for r in mixed.to_dicts()}
    more = mixed["LoRA, bf16 base"]["trained"] - plain["LoRA, bf16 base"]["trained"]
    thawed = more - 1000
    assert thawed == sum(
        p.numel() for n, p in unet.named_parameters() if n.startswith(guide_networks.LATE_BLOCKS)
    )
    grown = (mixed["LoRA, bf16 base"]["total"] - plain["LoRA, bf16 base"]["total"]) * GIB
    assert grown == pytest.approx(14 * thawed + 16 * 1000)


# --- activations ----------------------------------------------------------------------------------


def decoder(kind: str, vocabulary: int):
    ensure_torchvision()
    import transformers

    config = getattr(transformers, f"{kind}Config")(
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=vocabulary,
        tie_word_embeddings=True,
    )
    return getattr(transformers, f"{kind}ForCausalLM")(config).train(), config


@pytest.mark.parametrize("recomputed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["Qwen2", "Llama"])
def test_counted_activations_are_what_a_real_decoder_allocates(kind, dtype, recomputed):
    """A tenth is allowed; most are within a hundredth."""
    for vocabulary in (200, 4000):  # a layer holds the peak, or the logits do
        network, config = decoder(kind, vocabulary)
        network.to(dtype)
        if recomputed:
            keywords = {"use_reentrant": False}
            network.gradient_checkpointing_enable(gradient_checkpointing_kwargs=keywords)
        ids = torch.arange(256).reshape(2, 128) % vocabulary

        def step(network=network, ids=ids):
            network(input_ids=ids, labels=ids, use_cache=False).loss.backward()

        step()  # gradients exist from here on
        size = {"bytes_a_value": dtype.itemsize, "recomputed": recomputed}
        counted = tiers.decoder_activations(config, ids.numel(), **size)
        assert counted["peak"] * GIB == pytest.approx(saved_tensors.peak_bytes(step), rel=0.1)


def test_counted_activations_are_those_of_the_full_language_model(widened):
    tokens = 2848
    network = guide_networks.qwen(guide_networks.SVG_VOCABULARY).to(torch.bfloat16).train()
    ids = torch.zeros(1, tokens, dtype=torch.long, device="meta")
    places = ids.expand(3, 1, tokens)
    keys = {"input_ids": ids, "labels": ids, "position_ids": places, "use_cache": False}
    with saved_tensors.one_kernel_attention():
        kept = saved_tensors.kept_bytes(network, lambda: network(**keys))
    layers = kept - tokens * guide_networks.SVG_VOCABULARY * 4  # but for the log-probabilities
    counted = tiers.decoder_activations(network.config.text_config, tokens)
    assert counted["layers"] * GIB == pytest.approx(layers, rel=1e-3)
    few = tiers.decoder_activations(network.config.text_config, tokens, logit_tokens=tokens // 4)
    assert few["logits"] == pytest.approx(counted["logits"] / 4)


def test_what_a_forward_keeps_on_meta_is_what_it_keeps_on_the_cpu():
    picture, time = torch.rand(2, 6, 32, 32), torch.zeros(2, dtype=torch.long)
    found = []
    for device in ("cpu", "meta"):
        network = guide_networks.line_unet((32, 64), 32, device).train()
        at = [t.to(device) for t in (picture, time)]
        with saved_tensors.one_kernel_attention():
            found.append(saved_tensors.kept_bytes(network, lambda n=network, a=at: n(*a).sample))
    assert found[1] == pytest.approx(found[0], rel=0.01)
