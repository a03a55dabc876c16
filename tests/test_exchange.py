"""Weights in HYPIR's format: what is read, what is refused, what is written and merged."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import small_runs
import small_sd
import torch
from darkroom import checkpoint, data, exchange, export, recipes, trainer
from darkroom.config import load_config
from safetensors.torch import load_file, save_file

RUN = {
    "loss.psnr": 0.0,
    "loss.l2": 1.0,
    "train.steps": 3,
    "validation.every": None,
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder with pictures, a small base, and a run of 3 steps on it."""
    root = tmp_path_factory.mktemp("exchange")
    small_runs.write_pictures(root / "pictures", count=3, size=48)
    small_sd.write(root / "models" / "small")
    trainer.train(config(root, "trained"))
    return root


def config(root, run, **more):
    keys = {**small_sd.override(root / "models" / "small"), **RUN}
    keys["paths.models"] = str(root / "models")
    job = small_runs.sections(root, **keys | more)
    return load_config(**job | {"run": run})


def adapter(root, seed=0, **more) -> dict[str, torch.Tensor]:
    """Return an adapter that fits the small base, every number random."""
    recipe = recipes.build(config(root, "x", **more))
    generator = torch.Generator().manual_seed(seed)
    return {
        name: 0.02 * torch.randn(p.shape, generator=generator)
        for name, p in recipe.network.named_parameters()
        if ".lora_" in name
    }


@pytest.fixture(scope="module")
def tensors(root):
    return adapter(root)


def start(root, file, **more) -> tuple[recipes.Recipe, str]:
    given = config(root, "x", **{"model.init_from": str(file), **more})
    recipe = recipes.build(given)
    return recipe, checkpoint.start_from(recipe, given)


def adapter_of(recipe) -> dict[str, torch.Tensor]:
    return {n: p.detach() for n, p in recipe.network.named_parameters() if ".lora_" in n}


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


def restore(recipe) -> torch.Tensor:
    image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return recipe.restore(data.Batch(image, image, ["a dog"], [], [], []), seed=0).image


# --- export and start -----------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_an_exported_adapter_starts_a_run_with_the_same_weights_and_pictures(
    root, tmp_path, suffix
):
    trained = config(root, "trained")
    path = export.export(trained, tmp_path / f"adapter{suffix}")
    recipe, text = start(root, path)
    saved = checkpoint.read_named(trained.run_dir, "latest")
    average = {n.removeprefix("generator."): v for n, v in saved.tensors["ema"].items()}
    assert same(adapter_of(recipe), average)
    assert text == f"{path} ({len(average)} tensors, rank 4; the discriminator starts fresh)"
    whole = recipes.build(trained)
    fresh = restore(whole)
    checkpoint.load_network(whole, saved)
    assert torch.equal(restore(recipe), restore(whole))
    assert not torch.equal(restore(recipe), fresh)


def test_an_exported_file_is_a_plain_dict_with_the_key_set_that_hypir_asks_for(root, tmp_path):
    path = export.export(config(root, "trained"), tmp_path / "adapter.pth", weights="raw")
    content = torch.load(path, weights_only=True)
    assert type(content) is dict
    model = recipes.build(config(root, "x")).network.state_dict()
    assert set(content) == {name for name in model if "lora" in name}
    assert {v.dtype for v in content.values()} == {torch.float32}
    assert all(v.is_contiguous() and v.shape == model[n].shape for n, v in content.items())
    saved = checkpoint.read_named(config(root, "trained").run_dir, "latest").tensors["weights"]
    assert all(torch.equal(v, saved[f"generator.{n}"]) for n, v in content.items())


def test_a_training_goes_on_from_a_file_and_its_average_begins_there(root, tensors, tmp_path):
    torch.save(tensors, tmp_path / "hypir.pth")
    given = config(
        root, "continued", **{"model.init_from": str(tmp_path / "hypir.pth"), "train.steps": 1}
    )
    result = trainer.train(given)
    assert "the discriminator starts fresh" in (result.run_dir / "train.log").read_text()
    saved = checkpoint.read_named(result.run_dir, "latest").tensors
    moved = max((saved["weights"][f"generator.{n}"] - v).abs().max() for n, v in tensors.items())
    averaged = max((saved["ema"][f"generator.{n}"] - v).abs().max() for n, v in tensors.items())
    assert 0 < moved < 3e-3  # one step from there
    assert 0 < averaged < 3e-5  # a thousandth of a step


@pytest.mark.parametrize("alpha", [8.0, 2.0])
def test_a_run_with_another_alpha_gives_and_takes_what_restores_alike(root, tmp_path, alpha):
    # HYPIR's files mean alpha = rank
    run = f"alpha_{alpha:g}"
    trained = config(root, run, **{"model.lora_alpha": alpha, "optim.generator.lr": 0.01})
    trainer.train(trained)
    path = export.export(trained, tmp_path / "adapter.pth")
    theirs, _ = start(root, path)
    ours, _ = start(root, path, **{"model.lora_alpha": alpha})
    whole, _ = start(root, run, **{"model.lora_alpha": alpha})
    assert torch.allclose(restore(theirs), restore(whole), atol=1e-6)
    assert torch.allclose(restore(ours), restore(whole), atol=1e-6)
    own = trained.run_dir / "checkpoints" / "latest" / "ema.safetensors"
    same_run, _ = start(root, own, **{"model.lora_alpha": alpha})
    assert torch.equal(restore(same_run), restore(whole))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_files_are_cast_to_float32(root, tensors, tmp_path, dtype):
    half = {n: v.to(dtype) for n, v in tensors.items()}
    torch.save(half, tmp_path / "half.pth")
    recipe, text = start(root, tmp_path / "half.pth")
    assert same(adapter_of(recipe), {n: v.float() for n, v in half.items()})
    assert f"{dtype}".removeprefix("torch.") + " cast to float32" in text


@pytest.mark.parametrize(
    "wrap",
    [
        lambda t: {f"module.{n}": v for n, v in t.items()},
        lambda t: {f"generator.{n}": v for n, v in t.items()} | {"discriminator.x": torch.ones(1)},
        lambda t: {"state_dict": t, "epoch": 3},
        lambda t: {n: torch.nn.Parameter(v) for n, v in t.items()},
    ],
    ids=["of DDP", "of our checkpoints", "in a state_dict", "of parameters"],
)
def test_usual_wrappings_are_taken_off(root, tensors, tmp_path, wrap):
    torch.save(wrap(tensors), tmp_path / "wrapped.pth")
    found = exchange.read_adapter(tmp_path / "wrapped.pth")
    assert same(found, tensors)
    assert not any(v.requires_grad for v in found.values())
    assert same(adapter_of(start(root, tmp_path / "wrapped.pth")[0]), tensors)


def test_the_content_and_not_the_suffix_says_what_a_file_is(tensors, tmp_path):
    save_file(tensors, tmp_path / "really_safetensors.pth")
    torch.save(tensors, tmp_path / "really_pickled.safetensors")
    torch.save(tensors, tmp_path / "old.bin", _use_new_zipfile_serialization=False)
    for path in tmp_path.iterdir():
        assert same(exchange.read_adapter(path), tensors), path


def test_a_file_is_found_below_the_models_folder(root, tensors):
    torch.save(tensors, root / "models" / "HYPIR_sd2.pth")
    assert same(adapter_of(start(root, "HYPIR_sd2.pth")[0]), tensors)


def test_a_run_trained_whole_starts_from_a_file_of_its_own(tmp_path):
    small_runs.write_pictures(tmp_path / "pictures", count=3)
    keys = {"train.steps": 2, "validation.every": None}
    first = trainer.train(load_config(**small_runs.sections(tmp_path, **keys)))
    file = first.run_dir / "checkpoints" / "latest" / "weights.safetensors"
    keys |= {"model.init_from": str(file)}
    given = load_config(**small_runs.sections(tmp_path, **keys) | {"run": "second"})
    recipe = recipes.build(given)
    checkpoint.start_from(recipe, given)
    saved = load_file(file)
    for name, parameter in recipe.network.named_parameters():
        assert torch.equal(parameter, saved[f"generator.{name}"])


# --- merging --------------------------------------------------------------------------------------


def test_a_merged_unet_loads_with_diffusers_and_gives_the_adapters_output(
    root, tensors, tmp_path, capsys
):
    from diffusers import UNet2DConditionModel

    trained = config(root, "merging", **{"optim.generator.lr": 0.01})
    trainer.train(trained)
    found = export.merge(trained, tmp_path / "unet")
    assert found.largest < 1e-5
    assert f"max difference {found.largest:.2e}" in capsys.readouterr().out

    base = root / "models" / "small" / "unet"
    merged = UNet2DConditionModel.from_pretrained(tmp_path / "unet")
    bare = UNet2DConditionModel.from_pretrained(base)
    assert merged.state_dict().keys() == bare.state_dict().keys()
    ignored = ("_name_or_path", "_diffusers_version")
    configs = [{k: v for k, v in m.config.items() if k not in ignored} for m in (merged, bare)]
    assert configs[0] == configs[1]
    names = {p.name for p in (tmp_path / "unet").iterdir()}
    assert names == {"config.json", "diffusion_pytorch_model.safetensors"}

    recipe, _ = start(root, "merging")
    generator = torch.Generator().manual_seed(1)
    latent, text = (torch.randn(s, generator=generator) for s in ((2, 4, 16, 16), (2, 77, 12)))
    with torch.no_grad():
        outputs = [
            network(latent, 200, encoder_hidden_states=text).sample
            for network in (merged, recipe.network.eval(), bare)
        ]
    assert (outputs[0] - outputs[1]).abs().max() < 1e-5
    assert (outputs[2] - outputs[1]).abs().max() > 1e-3  # the adapter does something


def test_a_merged_unet_in_half_precision_says_how_far_it_is(root, tmp_path):
    found = export.merge(config(root, "trained"), tmp_path / "unet", dtype="bfloat16")
    stored = load_file(tmp_path / "unet" / "diffusion_pytorch_model.safetensors")
    assert {v.dtype for v in stored.values()} == {torch.bfloat16}
    assert 1e-5 < found.relative < 0.1
    assert "merged bfloat16" in str(found)


def test_nothing_is_replaced_without_force(root, tmp_path):
    trained, file, folder = config(root, "trained"), tmp_path / "a.pth", tmp_path / "unet"
    export.export(trained, file)
    before = file.read_bytes()
    with pytest.raises(ValueError, match="is there already: .*--force"):
        export.export(trained, file)
    export.export(trained, file, weights="raw", force=True)
    assert file.read_bytes() != before

    export.merge(trained, folder)
    with pytest.raises(ValueError, match="is there already: .*--force"):
        export.merge(trained, folder)
    export.merge(trained, folder, dtype="bfloat16", force=True)
    (folder / "thesis.tex").write_text("mine")
    with pytest.raises(ValueError, match=r"holds more than a U-Net \(thesis.tex"):
        export.merge(trained, folder, force=True)
    with pytest.raises(ValueError, match="is the base itself"):
        export.merge(trained, root / "models" / "small" / "unet", force=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.pth", "unet"]


# --- what is refused ------------------------------------------------------------------------------


class Malicious:
    """Pickled, it makes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_malicious_pickle_is_refused_at_once_and_not_executed(root, tensors, tmp_path, zipped):
    mark, file = tmp_path / "executed", tmp_path / "evil.pth"
    content = tensors | {"extra": Malicious(mark)}
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    started = time.perf_counter()
    with pytest.raises(ValueError, match=r"more than tensors .*mkdir.*nothing in it was executed"):
        start(root, file)
    assert time.perf_counter() - started < 10
    assert not mark.exists()
    torch.load(file, weights_only=False)  # the trap works, or the test would show nothing
    assert mark.exists()


def damaged(tensors, folder: Path) -> dict[str, tuple[bytes, str]]:
    """Return file name -> its content and the message it must give."""
    torch.save(tensors, folder / "whole.pth")
    torch.save(tensors, folder / "old.pth", _use_new_zipfile_serialization=False)
    save_file(tensors, folder / "whole.safetensors")
    torch.save(torch.nn.Linear(2, 2), folder / "module.pth")
    torch.save({**tensors, "epoch": 3}, folder / "epoch.pth")
    torch.save([1, 2], folder / "list.pth")
    torch.save({}, folder / "none.pth")
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(folder / "script.pth"))
    whole, old, safe, module, epoch, listed, none, script = (
        (folder / f"{name}").read_bytes()
        for name in (
            *("whole.pth", "old.pth", "whole.safetensors", "module.pth", "epoch.pth"),
            *("list.pth", "none.pth", "script.pth"),
        )
    )
    return {
        "cut.pth": (whole[: len(whole) // 2], r"damaged or cut short"),
        "cut_old.pth": (old[: len(old) // 2], r"damaged or cut short"),
        "cut_early.pth": (old[:150], r"damaged or cut short"),
        "cut.safetensors": (safe[:-4], r"damaged or cut short"),
        "cut_header.safetensors": (safe[:40], r"damaged or cut short"),
        "empty.pth": (b"", r"is empty \(0 bytes\)"),
        "text.pth": (b"version https://git-lfs.github.com/spec/v1\n", "begins with 'version https"),
        "page.safetensors": (b"<!DOCTYPE html>\n<html>", "neither safetensors nor a torch.save"),
        "module.pth": (module, r"more than tensors .*Linear"),
        "script.pth": (script, r"more than tensors .*TorchScript"),
        "epoch.pth": (epoch, r"more than tensors: int under 'epoch'"),
        "list.pth": (listed, r"no tensors by name, but list"),
        "none.pth": (none, r"no tensors by name"),
    }


def test_damaged_and_foreign_files_are_refused_by_name(root, tensors, tmp_path):
    (tmp_path / "made").mkdir()
    for name, (content, message) in damaged(tensors, tmp_path / "made").items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=message) as caught:
            exchange.read_adapter(tmp_path / name)
        assert name in str(caught.value) and len(str(caught.value).splitlines()) == 1


def other_base(root, tmp_path) -> dict[str, torch.Tensor]:
    """Return an adapter for a U-Net with wider text, and so other shapes."""
    from darkroom.networks import stable_diffusion
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel(**small_sd.UNET | {"cross_attention_dim": 24})
    stable_diffusion.add_adapters(unet, config(root, "x").model)
    return {n: p.detach().clone() for n, p in unet.named_parameters() if ".lora_" in n}


def test_weights_that_do_not_fit_are_refused_with_the_way_out(root, tensors, tmp_path):
    few = {n: v for n, v in tensors.items() if n.startswith("mid_block.")}
    first = next(iter(tensors))
    cases = {
        "rank": (adapter(root, **{"model.lora_rank": 8}), "rank 8.*set model.lora_rank: 8"),
        "few": (few, "lacks [0-9]+ .*Set model.lora_modules or model.lora_blocks"),
        "more": (tensors | {"conv_in.lora_A.default.weight": torch.ones(4, 4)}, "has.* 1 .conv_in"),
        "base": (other_base(root, tmp_path), "another base than model.base.*24"),
        "bare": ({"conv_in.weight": torch.ones(2)}, "no adapter .*the first is conv_in.weight"),
        "nan": (tensors | {first: tensors[first] * float("nan")}, "not all finite"),
    }
    for name, (content, message) in cases.items():
        torch.save(content, tmp_path / f"{name}.pth")
        given = config(root, "x", **{"model.init_from": str(tmp_path / f"{name}.pth")})
        recipe = recipes.build(given)
        before = {n: v.clone() for n, v in adapter_of(recipe).items()}
        with pytest.raises(ValueError, match=message):
            checkpoint.start_from(recipe, given)
        assert same(adapter_of(recipe), before)


def test_a_run_without_adapters_says_so(root, tensors, tmp_path):
    torch.save(tensors, tmp_path / "adapter.pth")
    with pytest.raises(ValueError, match="model.lora_rank is null.: set model.lora_rank: 4"):
        start(root, tmp_path / "adapter.pth", **{"model.lora_rank": None})
    with pytest.raises(ValueError, match="model.size tiny takes none: set .*model.lora_rank: 4"):
        start(root, tmp_path / "adapter.pth", **{"model.size": "tiny"})
    with pytest.raises(ValueError, match="rank 4.*model.lora_rank is 8: set model.lora_rank: 4"):
        start(root, "trained", **{"model.lora_rank": 8})


def test_what_is_not_there_is_named_with_the_places_looked_in(root, tensors, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no weight file .*models/HYPIR_gone\.pth"):
        start(root, "HYPIR_gone.pth")
    with pytest.raises(FileNotFoundError, match="neither a weight file .* nor a run"):
        start(root, "no_such_run")
    folder = tmp_path / "checkpoint-500"
    folder.mkdir()
    with pytest.raises(ValueError, match="is no run with a checkpoint$"):
        start(root, folder)
    for name in ("state_dict.pth", "ema_state_dict.pth"):
        torch.save(tensors, folder / name)
    with pytest.raises(ValueError, match="name one .*/ema_state_dict.pth$"):
        start(root, folder)
    (tmp_path / "folder.pth").mkdir()
    with pytest.raises(ValueError, match="is a folder, not a weight file"):
        start(root, tmp_path / "folder.pth")


def test_a_wrong_file_is_refused_before_any_network_is_built(root, tensors, tmp_path, monkeypatch):
    monkeypatch.setattr(recipes, "build", None)
    exchange.check_start(config(root, "x"))
    exchange.check_start(config(root, "x", **{"model.init_from": "trained"}))
    torch.save(tensors, tmp_path / "adapter.pth")
    keys = {"model.init_from": str(tmp_path / "adapter.pth")}
    exchange.check_start(config(root, "x", **keys))
    with pytest.raises(ValueError, match="set model.lora_rank: 4"):
        exchange.check_start(config(root, "x", **keys, **{"model.lora_rank": 8}))
    with pytest.raises(FileNotFoundError, match="no weight file"):
        exchange.check_start(config(root, "x", **{"model.init_from": "gone.pth"}))
    with pytest.raises(ValueError, match="is no run with a checkpoint; it holds adapter.pth"):
        exchange.check_start(config(root, "x", **{"model.init_from": str(tmp_path)}))


# --- the command ----------------------------------------------------------------------------------


def run(*arguments, cwd) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "darkroom.export", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd)


def test_the_command_writes_a_file_and_a_folder(root, tensors, tmp_path):
    folder = config(root, "trained").run_dir
    done = run(folder, tmp_path / "adapter.pth", "--step", 3, "--weights", "raw", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"raw weights of step 3: {len(tensors)} tensors, rank 4" in done.stdout
    assert done.stdout.splitlines()[-1] == str(tmp_path / "adapter.pth")
    done = run(folder, "unet", "--merge", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "max difference" in done.stdout and (tmp_path / "unet" / "config.json").is_file()


@pytest.mark.parametrize(
    ("target", "arguments", "message"),
    [
        ("a.pth", ["--step", "7"], "no checkpoint of step 7; steps with one: 3"),
        ("a.txt", [], "name a file that ends in .pth"),
        ("a.pth", ["--merge"], "--merge writes a folder"),
        (".", [], "name a file that ends in .pth"),
    ],
)
def test_the_command_refuses_in_one_line(root, tmp_path, capsys, target, arguments, message):
    folder = config(root, "trained").run_dir
    assert export.main([str(folder), str(tmp_path / target), *arguments]) == 1
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_has_no_adapter_is_not_exported(root, tmp_path, capsys):
    whole = config(root, "whole", **{"model.lora_rank": None, "train.steps": 1})
    trainer.train(whole)
    assert export.main([str(whole.run_dir), str(tmp_path / "a.pth")]) == 1
    assert "model.lora_rank is null" in capsys.readouterr().err
    assert export.merge(whole, tmp_path / "unet").largest == 0
    tiny = config(root, "tiny", **{"model.size": "tiny", "train.steps": 1})
    trainer.train(tiny)
    assert export.main([str(tiny.run_dir), str(tmp_path / "a.pth")]) == 1
    assert "only runs of one_step_gan with model.size full" in capsys.readouterr().err
    assert export.main(["no_such_run", str(tmp_path / "a.pth")]) == 1
    assert "is not a run" in capsys.readouterr().err
