"""The full-size networks: counts and names of the published model, a forward against diffusers."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest
import small_sd
import torch
from darkroom import data, recipes
from darkroom.config import load_config
from darkroom.networks import stable_diffusion, trunk
from darkroom.plan.memory import build_on_meta

HYPIR = {
    "model.recipe": "one_step_gan",
    "model.size": "full",
    "model.lora_rank": 256,
    "model.trunk": "convnext_xxlarge",
    "model.trunk_weights": None,
    "loss.gan": 0.5,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return small_sd.write(tmp_path_factory.mktemp("sd") / "small")


@pytest.fixture(scope="module")
def meta():
    """HYPIR's own sizes, shapes without storage."""
    return build_on_meta(load_config(base=None, run="x", override=HYPIR))


def small(folder, **more):
    keys = small_sd.override(folder, **{"data.crop_size": 32, "loss.gan": 0.5, **more})
    return load_config(base=None, run="x", override=keys)


def batch(size=32, count=2, prompts=("a dog", "")):
    generator = torch.Generator().manual_seed(0)
    pictures = torch.rand(2, count, 3, size, size, generator=generator)
    noise = torch.randn(count, 4, size // 2, size // 2, generator=generator)
    names = ["Blur"] * count
    prompts = list(prompts)[:count]
    return data.Batch(*pictures, prompts, names, names, list(range(count)), {"posterior": noise})


def test_the_adapters_of_the_published_model_are_257_modules_of_259_million_parameters(meta):
    adapters = {n: p for n, p in meta.network.named_parameters() if ".lora_" in n}
    assert len(adapters) == 514
    assert sum(p.numel() for p in adapters.values()) == 259_474_432
    assert all(p.requires_grad for p in adapters.values())
    base = [p for n, p in meta.network.named_parameters() if ".lora_" not in n]
    assert sum(p.numel() for p in base) == 865_910_724
    assert not any(p.requires_grad for p in base)
    assert sum(p.numel() for p in meta.codec.parameters()) == 83_653_863


def test_adapter_names_are_those_of_the_published_weight_files(meta):
    names = {n for n, _ in meta.network.named_parameters()}
    to_q = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.default.weight"
    shapes = {to_q: (256, 320), "conv_out.lora_B.default.weight": (4, 256, 1, 1)}
    for name, shape in shapes.items():
        assert tuple(meta.network.get_parameter(name).shape) == shape
    assert not any(n.startswith(("conv_in.lora", "time_embedding.linear_1.lora")) for n in names)


@pytest.mark.parametrize("rank", [4, 64, 512])
def test_the_number_of_trained_parameters_is_linear_in_the_rank(rank):
    recipe = build_on_meta(
        load_config(
            base=None,
            run="x",
            override=HYPIR | {"model.lora_rank": rank, "model.trunk": "tiny"},
        )
    )
    [phase, _] = recipe.phases(load_config(base=None, run="x", override=HYPIR))
    assert sum(p.numel() for p in phase.parameters.values()) == 259_474_432 * rank // 256


@pytest.mark.parametrize(
    ("name", "visual", "channels", "embedding"),
    [
        ("convnext_xxlarge", 846.5, [384, 768, 1536], 1024),
        ("convnext_large_d_320", 199.8, [192, 384, 768], 768),
        ("convnext_base_w", 88.2, [128, 256, 512], 640),
        ("convnext_tiny", 28.6, [96, 192, 384], 1024),
    ],
)
def test_trunks_are_the_visual_towers_alone_and_size_the_heads(name, visual, channels, embedding):
    recipe = build_on_meta(load_config(base=None, run="x", override=HYPIR | {"model.trunk": name}))
    found = recipe.discriminator.trunk
    assert sum(p.numel() for p in found.parameters()) / 1e6 == pytest.approx(visual, abs=0.05)
    assert (found.channels, found.embedding) == (channels, embedding)
    with torch.no_grad():
        logits = recipe.discriminator(torch.zeros(2, 3, 512, 512, device="meta"))
    assert [tuple(x.shape) for x in logits] == [
        (2, 1, 32, 32),
        (2, 1, 16, 16),
        (2, 1, 8, 8),
        (2, 1),
    ]


def test_a_trunk_gives_the_features_that_open_clip_gives():
    found = trunk.ConvNeXtTrunk("convnext_tiny", None, None)
    image = torch.rand(1, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    maps, embedding = found.train()(image)
    normalised = (image - found.mean) / found.std
    assert torch.equal(embedding, found.visual(normalised))
    assert [m.shape[1] for m in maps] == found.channels
    again, _ = found(image)
    assert all(torch.equal(a, b) for a, b in zip(maps, again, strict=True))  # no stochastic depth


def test_one_step_equals_diffusers_own_composition(folder):
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    recipe = recipes.build(small(folder))
    given = batch()
    with torch.no_grad():
        ours = recipe._forward(given)
        unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet")
        vae = AutoencoderKL.from_pretrained(folder, subfolder="vae")
        text = CLIPTextModel.from_pretrained(folder, subfolder="text_encoder")
        tokenizer = CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer")
        scheduler = DDPMScheduler.from_pretrained(folder, subfolder="scheduler", clip_sample=False)
        ids = tokenizer(
            given.prompts,
            padding="max_length",
            max_length=77,
            truncation=True,
            return_tensors="pt",
        ).input_ids
        posterior = vae.encode(given.lq * 2 - 1).latent_dist
        z = (posterior.mean + posterior.std * given.draws["posterior"]) * vae.config.scaling_factor
        epsilon = unet(z, 200, encoder_hidden_states=text(ids)[0]).sample
        x0 = scheduler.step(epsilon, 200, z).pred_original_sample
        theirs = vae.decode(x0 / vae.config.scaling_factor).sample / 2 + 0.5
    assert (ours - theirs).abs().max() <= 1e-5


def test_every_distinct_prompt_is_encoded_once_and_the_encoder_is_let_go(folder, monkeypatch):
    from darkroom.networks.prompts import Prompts

    asked = []
    encode = Prompts._encode
    monkeypatch.setattr(Prompts, "_encode", lambda s, new: asked.append(new) or encode(s, new))
    recipe = recipes.build(small(folder))
    recipes.place(recipe, torch.device("cpu"), torch.float32, ["a dog", "", "a dog"])
    recipe.prompts(["a dog", "", "a dog"])
    recipe.prompts(["a cat", "a dog"])
    assert asked == [["", "a dog"], ["a cat"]]
    assert not any("text" in name for name in recipe.modules)
    assert not any(isinstance(v, torch.nn.Module) for v in vars(recipe.prompts).values())


def test_frozen_networks_take_the_precision_and_trained_weights_stay_float32(folder):
    recipe = recipes.build(small(folder, **{"model.trunk": "convnext_tiny", "data.crop_size": 64}))
    recipes.place(recipe, torch.device("cpu"), torch.bfloat16)
    kinds = {(p.requires_grad, p.dtype) for m in recipe.modules.values() for p in m.parameters()}
    assert kinds == {(True, torch.float32), (False, torch.bfloat16)}
    [generator, discriminator] = recipe.phases(small(folder))
    given = batch(size=64)
    for phase in (generator, discriminator):
        recipe.begin(phase)
        with torch.autocast("cpu", torch.bfloat16):
            total = sum(t.sum() for t in recipe.losses(given, phase).terms.values())
        total.backward()
        gradients = [p.grad for p in phase.parameters.values()]
        assert all(g is not None and g.dtype == torch.float32 for g in gradients)
        assert any(g.abs().max() > 0 for g in gradients)


def test_only_the_blocks_asked_for_are_adapted(folder):
    recipe = recipes.build(small(folder, **{"model.lora_blocks": ["mid_block", "up_blocks.1"]}))
    names = list(recipe.phases(small(folder))[0].parameters)
    assert names
    assert all(n.startswith(("generator.mid_block.", "generator.up_blocks.1.")) for n in names)


def test_without_a_rank_the_whole_unet_is_trained(folder):
    config = small(folder, **{"model.lora_rank": None})
    recipe = recipes.build(config)
    names = recipe.phases(config)[0].parameters
    assert len(names) == len(list(recipe.network.parameters()))


def test_a_model_folder_is_planned_from_its_configs_without_its_weights(folder, tmp_path):
    import shutil

    bare = tmp_path / "bare"
    ignore = shutil.ignore_patterns("*.safetensors")
    shutil.copytree(folder, bare, ignore=ignore)
    recipe = build_on_meta(small(bare))
    real = recipes.build(small(folder))
    counts = [sum(p.numel() for p in r.network.parameters()) for r in (recipe, real)]
    assert counts[0] == counts[1]
    with pytest.raises(ValueError, match=r"lacks unet/\*.safetensors"):
        recipes.build(small(bare))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"model.base": "no/such/folder"}, "there is no folder .*sd2-community"),
        ({"model.base": "someone/nothing"}, "hub's cache does not hold it.*sd2-community"),
        (
            {"model.trunk": "convnext_huge", "data.crop_size": 64},
            "no ConvNeXt that open_clip knows.*convnext_xxlarge",
        ),
        ({"model.trunk": "ViT-B-32", "data.crop_size": 64}, "no ConvNeXt that open_clip knows"),
        (
            {
                "model.trunk": "convnext_tiny",
                "model.trunk_weights": "laion2b",
                "data.crop_size": 64,
            },
            "neither a file nor a tag of convnext_tiny",
        ),
        ({"model.lora_modules": ["nothing"]}, "match no linear or convolution layer"),
        ({"model.trunk": "convnext_tiny"}, "data.crop_size 32 is too small.*at least 64"),
        ({"data.crop_size": 31}, "data.crop_size 31 is not a multiple of 4.*28 or 32"),
        ({"train.checkpointing.network": ["nothing"]}, "no module of this network is called"),
    ],
)
def test_what_cannot_be_built_is_refused_quickly_with_the_way_out(
    folder, monkeypatch, keys, message
):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    started = time.perf_counter()
    with pytest.raises(ValueError, match=message):
        recipes.build(small(folder, **keys))
    assert time.perf_counter() - started < 10


def test_a_base_that_predicts_velocity_is_refused(folder, tmp_path):
    import json
    import shutil

    other = tmp_path / "v"
    shutil.copytree(folder, other)
    path = other / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"prediction_type": "v_prediction"}))
    with pytest.raises(ValueError, match="v_prediction.*stable-diffusion-2-1-base"):
        recipes.build(small(other))


def test_recipes_import_on_a_machine_that_has_only_the_model_libraries():
    blocked = (
        "pydantic yaml polars cv2 skimage sklearn scipy matplotlib pyiqa papermill psutil lpips"
    )
    code = (
        f"import sys\nfor name in {blocked.split()!r}: sys.modules[name] = None\n"
        "from darkroom import recipes, step, optim\nimport darkroom.networks.stable_diffusion\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_loader_draws_a_posterior_for_every_sample(folder):
    recipe = recipes.build(small(folder))
    sample = data.Sample(torch.zeros(3, 32, 48), torch.zeros(3, 32, 48), "", "Blur", "x", 0)
    noise = recipe.draw(sample, torch.Generator().manual_seed(3))["posterior"]
    assert noise.shape == (4, 16, 24)
    with torch.no_grad():
        drawn = recipe._latent(batch())
        mean = recipe._latent(data.Batch(batch().lq, batch().gt, ["a dog", ""], [], [], []))
    assert not torch.equal(drawn, mean)


def test_the_text_changes_the_result(folder):
    recipe = recipes.build(small(folder))
    given, other = batch(prompts=("a dog", "a dog")), batch(prompts=("a cat", "a dog"))
    a, b = (recipe.restore(x, seed=0).image for x in (given, other))
    assert not torch.equal(a[0], b[0])
    assert torch.equal(a[1], b[1])


def test_the_schedule_is_the_folders_own(folder):
    found = stable_diffusion.load(str(folder), folder)
    assert float(found.alpha_bars[200]) == pytest.approx(0.7536917, abs=5e-7)
