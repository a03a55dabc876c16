"""Counted memory: by hand on small networks, and on the language model that a guide trains."""

from __future__ import annotations

import re

import pytest
import torch
from darkroom.plan import tiers
from darkroom.torchvision_ops import ensure_torchvision

GIB = 2**30
QWEN_3B = {
    "text_config": {
        "hidden_size": 2048,
        "intermediate_size": 11008,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "vocab_size": 151936,
        "tie_word_embeddings": True,
    },
    "vision_config": {
        "depth": 32,
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "out_hidden_size": 2048,
        "patch_size": 14,
        "window_size": 112,
        "fullatt_block_indexes": [7, 15, 23, 31],
    },
    "tie_word_embeddings": True,
}
SVG_VOCABULARY = 197_000


def qwen(vocabulary: int):
    ensure_torchvision()
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    sections = {k: dict(v) if isinstance(v, dict) else v for k, v in QWEN_3B.items()}
    sections["text_config"]["vocab_size"] = vocabulary
    with torch.device("meta"):
        return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**sections))


@pytest.fixture(scope="module")
def widened():
    return qwen(SVG_VOCABULARY)


def test_a_language_model_of_3b_has_3_85_billion_parameters_with_the_svg_vocabulary(widened):
    counts = tiers.parameters(widened)
    assert sum(counts.values()) == pytest.approx(3.847e9, rel=1e-3)
    assert counts["other"] > SVG_VOCABULARY * 2048  # the embedding, tied with the head


def test_no_full_fine_tuning_of_it_fits_24_gib_and_lora_does(widened):
    counts = tiers.parameters(widened)
    lora = tiers.adapters(widened, 16, ("q_proj", "k_proj", "v_proj", "o_proj"))
    new = (SVG_VOCABULARY - 151_936) * 2048
    frame = tiers.tiers(**counts, lora=lora, also_trained=new)
    total = dict(zip(frame["tier"], frame["total"], strict=True))
    assert total["full, float32"] == pytest.approx(57.3, rel=2e-3)
    assert total["full, bfloat16 alone"] == pytest.approx(28.7, rel=2e-3)
    fits = tiers.fitting(frame, 24)
    assert not [
        name
        for name in fits
        if name.startswith("full") and "computer" not in name and "8-bit" not in name
    ]
    assert tiers.fitting(frame, 12) == list(tiers.FROZEN)
    assert frame["analytic"].all()


def test_the_tiers_are_sums_over_parameters():
    network = torch.nn.Sequential(torch.nn.Embedding(10, 8), torch.nn.Linear(8, 4, bias=True))
    assert tiers.parameters(network) == {"linear": 32, "other": 84}
    assert tiers.adapters(network, 2, ("1",)) == 2 * (8 + 4)
    frame = tiers.tiers(32, 84, lora=24)
    rows = {r["tier"]: r for r in frame.to_dicts()}
    assert rows["full, float32"]["total"] * GIB == pytest.approx(116 * 16)
    assert rows["LoRA on bfloat16"]["total"] * GIB == pytest.approx(116 * 2 + 24 * 16)
    four = rows["LoRA on 4 bit (NF4)"]["weights"] * GIB
    assert four == pytest.approx(32 * tiers.NF4_BYTES + 84 * 2 + 24 * 4)
    with pytest.raises(ValueError, match="no linear module is called q_proj"):
        tiers.adapters(network, 2, ("q_proj",))


def test_logits_of_a_real_loss_are_no_less_than_counted():
    tokens, vocabulary = 64, 3000
    logits = torch.randn(tokens, vocabulary, dtype=torch.bfloat16, requires_grad=True)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        loss = torch.nn.functional.cross_entropy(
            logits.float(), torch.zeros(tokens, dtype=torch.long)
        )
    loss.backward()
    kept = max(t.numel() * t.element_size() for t in saved)  # the log-probabilities, float32
    assert kept == tokens * vocabulary * 4
    counted = tiers.logits_gib(tokens, vocabulary) * GIB
    assert counted == pytest.approx(kept + kept + logits.numel() * 2)


def test_the_page_of_claims_states_these_numbers(repo, widened):
    page = (repo / "docs" / "claims.md").read_text()
    counts = tiers.parameters(widened)
    count = sum(counts.values())
    for name in ("full, float32", "full, bfloat16 alone"):
        frame = tiers.tiers(**counts)
        gib = frame.filter(frame["tier"] == name)["total"][0]
        assert re.search(rf"{gib:.1f} GiB", page), name
    assert f"{count / 1e9:.3f} B" in page
    assert f"{tiers.logits_gib(2848, SVG_VOCABULARY):.1f} GiB" in page
