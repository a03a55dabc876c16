"""The numbers that docs/claims.md states of published guides, counted again on their networks."""

from __future__ import annotations

import math
import re
from pathlib import Path

import guide_networks
import pytest
import saved_tensors
import torch
from darkroom.plan import gpus, tiers

GIB = 2**30
PAGE = (Path(__file__).parent.parent / "docs" / "claims.md").read_text()


def states(start: str, *numbers: str) -> None:
    """Assert that the one row of the page which begins so has these numbers, in this order."""
    rows = [line for line in PAGE.splitlines() if line.startswith(f"| {start}")]
    assert len(rows) == 1, f"{len(rows)} rows begin with {start!r}"
    said = " " + rows[0]
    for number in numbers:
        assert number in said, f"{number} is not (or not in this order) in: {rows[0]}"
        said = said.partition(number)[2]


# --- conditional diffusion ------------------------------------------------------------------------


def late(rank: int = 16, unfrozen=()):
    network, targets = guide_networks.line_unet(), guide_networks.LATE_ATTENTION
    return guide_networks.with_adapters(network, rank, targets, unfrozen)


def trained(network) -> int:
    return sum(p.numel() for p in network.parameters() if p.requires_grad)


def kept(network, dtype, *, recomputed: bool = False) -> float:
    """Return GiB a sample that a forward at 512 px keeps, of a batch of two."""
    with guide_networks.quiet():
        network.to(dtype).train()
    if recomputed:
        network.enable_gradient_checkpointing()
    else:
        network.disable_gradient_checkpointing()
    pictures = torch.empty(2, 6, 512, 512, dtype=dtype, device="meta")
    times = torch.zeros(2, dtype=torch.long, device="meta")
    with saved_tensors.one_kernel_attention():
        return saved_tensors.kept_bytes(network, lambda: network(pictures, times).sample) / 2 / GIB


def step_operations(network) -> float:
    """Return TFLOP a sample at 512 px, forward and backward."""
    pictures = torch.empty(1, 6, 512, 512, device="meta")
    times = torch.zeros(1, dtype=torch.long, device="meta")
    with guide_networks.quiet(), saved_tensors.one_kernel_attention():
        network.float().train()
        return guide_networks.operations(lambda: network(pictures, times).sample.sum().backward())


def test_the_parameters_and_tiers_of_the_line_chart_network_are_as_stated():
    unet = guide_networks.line_unet()
    count = trained(unet)
    states("254 M", f"{count / 1e6:.1f} M", f"{16 * count / GIB:.2f} GiB")
    adapters, everywhere = trained(late()), tiers.lora_parameters(unet, 16, ".+")
    wrapped = [m for n, m in unet.named_modules() if re.fullmatch(guide_networks.LATE_ATTENTION, n)]
    unfrozen = count - sum(m.weight.numel() + m.bias.numel() for m in wrapped) + adapters
    counts = adapters / 1e6, everywhere / 1e6, unfrozen / 1e6
    said = ["{:.2f} M in 16", "{:.1f} M", "{:.1f} M train"]
    states("LoRA leaves 18 M", *(s.format(n) for s, n in zip(said, counts, strict=True)))
    assert len(wrapped) == 16
    assert not [n for n, _ in unet.up_blocks[3].named_modules() if "attention" in n]
    hybrid = trained(late(unfrozen=guide_networks.LATE_BLOCKS))
    targets = guide_networks.LATE_ATTENTION
    frame = tiers.tiers(unet, targets=targets, unfrozen=guide_networks.LATE_BLOCKS)
    row = dict(zip(frame["tier"], frame.iter_rows(named=True), strict=True))["LoRA, bf16 base"]
    assert row["trained"] == hybrid
    states('"part of the backbone', f"{hybrid / 1e6:.1f} M", f"{row['total']:.2f} GiB")
    states("snapshots", f"{4 * adapters / 1e6:.1f} MB", f"{4 * hybrid / 1e6:.0f} MB")
    states("ZeRO-2 while", f"{12 * adapters / 2**20:.1f} MiB")
    static = 4 * count + 16 * adapters
    saved = 16 * count - static
    states("LoRA: 48", f"{16 * count / GIB:.2f}", f"{static / GIB:.2f}", f"{saved / GIB:.2f} saved")
    kinds = {type(m).__name__ for m in unet.modules()}
    assert "GroupNorm" in kinds
    assert not [kind for kind in kinds if "BatchNorm" in kind]


def test_what_the_line_chart_network_keeps_for_its_backward_is_as_stated():
    full = kept(guide_networks.line_unet(), torch.float32)
    again = kept(guide_networks.line_unet(), torch.float32, recomputed=True)
    adapters = kept(late(), torch.float32)
    states("LoRA: 48", f"{full:.1f} → {adapters:.1f} GiB a sample")
    states("45–48 GB", f"{2 * full:.1f} GiB", f"{3 * full:.1f}")
    states("checkpointing saves 30–40 % at 512", f"{full:.1f} → {again:.1f} GiB")
    half = kept(late(), torch.bfloat16)
    recomputed = kept(late(), torch.bfloat16, recomputed=True)
    states("one GPU at", f"{half:.1f} GiB", f"{recomputed:.1f} with checkpointing")
    assert half == pytest.approx(adapters / 2, rel=0.02)


def test_the_operations_of_the_line_chart_network_are_as_stated():
    unet = guide_networks.line_unet()
    full, adapters = step_operations(unet), step_operations(late())
    hybrid = step_operations(late(unfrozen=guide_networks.LATE_BLOCKS))
    ratios = f"{full / adapters:.2f} times", f"{full / hybrid:.2f}"
    states("LoRA: an epoch", f"{full:.1f} → {adapters:.1f} TFLOP", *ratios)
    unet.enable_gradient_checkpointing()
    more = step_operations(unet) / full - 1
    states("checkpointing saves 30–40 % at 512", f"{more:.1%}".replace("%", " %"))
    card = gpus.card("RTX A6000")
    assert card.tflops["bf16"] / card.tflops["tf32"] == 2
    assert card.tflops["bf16"] / card.tflops["fp32"] == 4
    states("two A6000", f"{card.sold_gib:.0f} GB as sold")


def test_most_of_the_forward_is_attention_as_stated():
    from torch.utils.flop_counter import FlopCounterMode

    unet = guide_networks.line_unet().eval()
    pictures, times = torch.empty(1, 6, 512, 512, device="meta"), torch.zeros(1, device="meta")
    counter = FlopCounterMode(display=False)
    with saved_tensors.one_kernel_attention(), counter:
        unet(pictures, times)
    by_kind = counter.get_flop_counts()["Global"]
    attention = sum(n for kind, n in by_kind.items() if "attention" in str(kind))
    states("–", f"{attention / sum(by_kind.values()):.0%}".replace("%", " %"))


# --- the language model ---------------------------------------------------------------------------

GUIDE = {  # tier -> tokens, image side as the tower takes it, whether recomputed
    '"very low"': (1024 + 800, 336, True),
    '"low"': (1536 + 800, 336, True),
    '"medium"': (2048 + 800, 392, True),
    '"standard"': (2048 + 800, 448, False),
}


@pytest.fixture(scope="module")
def widened():
    return guide_networks.qwen(guide_networks.SVG_VOCABULARY)


@pytest.fixture(scope="module")
def resident(widened):
    targets, rows = guide_networks.TEXT_LAYERS, guide_networks.SVG_NEW_ROWS
    frame = tiers.tiers(widened, rank=16, targets=targets, added=rows * 2048)
    return dict(zip(frame["tier"], frame.iter_rows(named=True), strict=True))


def beside(widened, tokens: int, side: int, recomputed: bool) -> float:
    """Return GiB of activations and logits, the image tower's included."""
    text = tiers.decoder_activations(widened.config.text_config, tokens, recomputed=recomputed)
    patches = (side // 14) ** 2
    tower = tiers.decoder_activations(guide_networks.VISION, patches, recomputed=recomputed)
    return text["peak"] + tower["layers"]


def test_the_language_model_has_the_parameters_stated(widened):
    plain = guide_networks.qwen()
    assert trained(plain) == 3_754_622_976
    assert trained(widened) == 3_846_914_048
    assert trained(widened) - trained(plain) == guide_networks.SVG_NEW_ROWS * 2048
    assert trained(plain.model.visual) == 668_684_288
    for said in ("3.755 B", "669 M", "3.847 B", "45,064 new rows (122.2 M trained)"):
        assert said in PAGE


def test_the_table_of_tiers_is_what_is_counted(resident):
    for name, row in resident.items():
        if name == "full, bf16 with fp32 master":
            assert row["total"] == pytest.approx(resident["full, fp32"]["total"])
            continue
        start = "full, fp32 (" if name == "full, fp32" else f"{name} |"
        states(start, *(f"{row[k]:.1f}" for k in ("total", "host", "transfer") if row[k]))
    assert resident["LoRA, bf16 base"]["trained"] == pytest.approx(122.2e6, rel=1e-3)
    seconds = tiers.transfer_seconds(resident["full, optimizer on the CPU"]["transfer"])
    assert f"at least {seconds:.2f} s over PCI" in PAGE


def test_no_tier_of_the_guide_holds_and_what_fits_instead_does(widened, resident):
    static = resident["full, bf16"]["total"]
    upper = {'"very low"': 10, '"low"': 14, '"medium"': 20, '"standard"': 24}
    for name, (tokens, side, recomputed) in GUIDE.items():
        more = beside(widened, tokens, side, recomputed)
        states(name, f"{upper[name]} GB", f"{static:.1f} + {more:.1f} = {static + more:.1f} GiB")
        assert static > upper[name]
    text = widened.config.text_config
    instead = (
        ('"very low"', "LoRA, 4-bit base", None),
        ('"very low"', "LoRA, bf16 base", 256),
        ('"low"', "LoRA, 8-bit base", None),
        ('"low"', "full, optimizer and gradients on the CPU", None),
        ('"medium"', "LoRA, bf16 base", None),
        ('"medium"', "full, optimizer and gradients on the CPU", None),
        ('"standard"', "full, optimizer on the CPU", None),
        ('"standard"', "full, bf16, 8-bit Adam", 256),
    )
    for name, tier, pieces in instead:
        tokens = GUIDE[name][0]
        held = tiers.decoder_activations(text, tokens, recomputed=True, logit_tokens=pieces)
        needed = resident[tier]["total"] + held["peak"]
        assert needed < upper[name]
        states(name, f"({needed:.1f}")


def test_what_the_guides_levers_save_is_as_stated(widened, resident):
    static, text = resident["full, bf16"]["total"], widened.config.text_config
    standard = static + beside(widened, *GUIDE['"standard"'])
    low = static + beside(widened, *GUIDE['"low"'])
    as_run = static + beside(widened, 2848, 448, True)
    states(
        "the low-memory file", f"{standard:.1f} → {low:.1f} GiB", f"{1 - low / standard:.0%}"[:2]
    )
    states("the low-memory file", f"{as_run:.1f} GiB", f"{1 - as_run / standard:.0%}"[:2])
    states("checkpointing saves 30–40 % |", f"{standard:.1f} → {as_run:.1f} GiB")
    shorter, longer = (tiers.decoder_activations(text, n)["peak"] for n in (2336, 2848))
    parts = 1 - shorter / longer, (longer - shorter) / standard
    states("sequence 2048", *(f"−{part:.0%}"[:-1] for part in parts))
    whole = tiers.decoder_activations(text, 2848, recomputed=True)
    pieces = tiers.decoder_activations(text, 2848, recomputed=True, logit_tokens=256)
    assert f"{whole['logits']:.1f} GiB for one sample of 2,848 tokens" in PAGE
    assert f"({whole['layers']:.2f}). With the loss" in PAGE
    assert f"at a time {pieces['logits']:.1f} GiB of the {whole['logits']:.1f} remain" in PAGE
    tower = [
        tiers.decoder_activations(guide_networks.VISION, (side // 14) ** 2)["layers"]
        for side in (448, 336)
    ]
    states("image 448", *(f"{(side // 28) ** 2}" for side in (448, 392, 336)))
    states("image 448", f"{tower[0]:.1f} → {tower[1]:.1f} GiB")
    states("memory falls", f"{standard - static:.1f} GiB of {standard:.1f}")


@pytest.mark.slow
def test_the_operations_of_the_guides_tiers_are_as_stated():
    network = guide_networks.qwen(guide_networks.SVG_VOCABULARY).to(torch.bfloat16).train()
    found = {}
    for name, (tokens, _, recomputed) in GUIDE.items():
        if recomputed:
            keywords = {"use_reentrant": False}
            network.gradient_checkpointing_enable(gradient_checkpointing_kwargs=keywords)
        else:
            network.gradient_checkpointing_disable()
        ids = torch.zeros(1, tokens, dtype=torch.long, device="meta")
        keys = {"input_ids": ids, "labels": ids, "position_ids": ids.expand(3, 1, tokens)}
        with saved_tensors.one_kernel_attention():
            found[name] = guide_networks.operations(
                lambda keys=keys: network(**keys, use_cache=False).loss.backward()
            )
    shares = [found[name] / found['"standard"'] for name in GUIDE]
    states("speed 40", *(f"{share:.2f}" for share in shares[:3]))
    states("speed 40", *(f"{100 / share:.0f}" for share in shares[:3]))
    states("checkpointing costs", f"{shares[2] - 1:.0%}"[:2])


# --- flow matching --------------------------------------------------------------------------------

STANDARD, FAST, ULTRA = (2304, 24, 32, 8), (1536, 24, 24, 24), (768, 12, 12, 12)


def velocity_operations(sizes, side: int, channels: int = 4) -> float:
    """Return TFLOP of one picture (latent of that side) through NextDiT, forward and backward."""
    from diffusers.models.embeddings import get_2d_rotary_pos_embed_lumina

    network = guide_networks.next_dit(*sizes, channels=channels)
    picture = torch.empty(1, channels, side, side, device="meta")
    caption = torch.empty(1, 256, 2048, device="meta")
    places = get_2d_rotary_pos_embed_lumina(sizes[0] // sizes[2], 384, 384).to("meta")
    time, mask = torch.zeros(1, device="meta"), torch.ones(1, 256, device="meta")
    return guide_networks.operations(
        lambda: network(picture, time, caption, mask, places, {}).sample.sum().backward()
    )


def test_the_closed_form_of_next_dit_is_exact_and_gives_the_parameters_stated():
    for sizes in ((2304, 24, 32, 32), STANDARD, FAST, ULTRA, (1024, 24, 16, 16)):
        module = guide_networks.next_dit(*sizes)
        assert trained(module) == guide_networks.next_dit_parameters(*sizes, copied=True)
    full, released, fast, ultra, half = (
        guide_networks.next_dit_parameters(*sizes)
        for sizes in ((2304, 24, 32, 32), STANDARD, FAST, ULTRA, (1024, 24, 16, 16))
    )
    states("2.3 B", f"{full / 1e9:.2f} B", f"{released / 1e9:.2f} B")
    states("1.1 B", f"{fast / 1e9:.2f} B")
    states(
        "hidden 768", f"{ultra / 1e6:.0f} M", f"{half / 1e9:.2f} B", f"{0.6e9 / ultra:.1f} times"
    )
    sizes = (f"{16 * n / GIB:.1f}" for n in (full, released, fast, ultra))
    states("(weights, gradients, moments of these)", *sizes)


@pytest.mark.slow
def test_the_operations_of_next_dit_and_their_bounds_are_as_stated():
    standard, fast = velocity_operations(STANDARD, 128), velocity_operations(FAST, 64)
    ultra, pixels = velocity_operations(ULTRA, 32), velocity_operations(FAST, 512, 3)
    peak = gpus.card("A100-40G").tflops["bf16"]
    ratio = f"{standard / fast:.0f} times"
    states("1024 → 512 px", f"{standard:.1f} → {fast:.1f} TFLOP", ratio)
    hours = [1400 * epochs * one / peak / 3600 for epochs, one in ((100, standard), (30, fast))]
    seconds = 1400 * 20 * ultra / peak
    states("lower bounds", f"{hours[0]:.1f} h", f"{hours[1]:.2f} h", f"{seconds:.0f} s")
    rate = 64 * fast / 30
    states("a batch of 64", f"{rate:.0f} TFLOP/s", f"{rate / peak:.0%}"[:1])
    days = 1400 * 30 * pixels / peak / 3600
    states("`in_channels: 3`", f"{pixels:,.0f} instead of {fast:.1f} TFLOP", f"{days:.0f} h")
    states("`in_channels: 3`", f"{pixels / fast:.0f} times the work")
    states("ultra: 256 px", f"{fast / ultra:.0f} times fewer")


def test_the_guides_own_times_contradict_each_other_as_stated():
    batches = math.ceil(1400 / 64)
    steps = 30 * batches
    states("epochs 100", f"30 × {batches} = {steps} optimizer steps")
    states("12 days → 20 h", f"{4 * 2 * 1.5 * 3.3:.1f} times: {12 * 24 / 39.6:.1f} h", "14.4")
    real = f"{20 * 3600 / steps:.0f} s of every 30"
    states("22 × 30 s", f"{steps * 30 / 3600:.1f} h", real)
    minutes = [epoch * batches // 2 for epoch in (5, 15, 25, 30)]
    states("epoch 5 at", *(f"{m // 60}:{m % 60:02d}" for m in minutes))
    slow = 12 * 86400 / (100 * math.ceil(1400 / 32))
    each = f"{slow:.0f} s each, {slow / 32:.1f} s an image", f"{30 / 64:.2f}"
    states("standard 12 days", f"{100 * 44:,} steps", *each, f"{slow / 32 / (30 / 64):.1f} times")
    few = 20 * math.ceil(1400 / 128)
    states("ultra: 256 px", f"{few} steps", f"{6 * 3600 / few:.0f} s each")
    states("ultra: `warmup_steps", f"{200 / few:.0%}"[:2], f"{few} steps")
    assert 20 * (1400 // 128) == 200
    states("fine-tuning 10 epochs", f"{10 * batches} steps", f"{10 * batches * 30 / 3600:.1f} h")
    states("`sample_ratio: 0.5`", f"{math.ceil(700 / 64)} batches", f"{30 * 11} steps")
    states("accumulation of 4", f"{batches // 4} steps", f"{30 * (batches // 4)} in all")
    states("4 GPUs", f"{math.ceil(1400 / 256)} steps", f"{30 * 6} in all")
    epoch = 1_400_000 / 64
    states("1,400 images", f"{epoch:,.0f} batches, {epoch * 30 / 3600:.0f} h")
