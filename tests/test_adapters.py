"""A bank of adapters on one base: exact switching, weighted sums, refusals, the table by domain."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import small_runs
import torch
from darkroom import adapters, data, inference, load_config, trainer
from darkroom.restore import run_config
from test_conditional_diffusion import SMALL

BASE = {
    "model.prediction": "x0",
    "optim.denoiser.lr": 0.02,
    "train.steps": 4,
    "train.ema_decay": 0.5,
    "validation.every": 50,
}
ADAPTER = BASE | {"model.base": "base", "optim.denoiser.lr": 0.05}
RUNS = {
    "blur": {"model.lora_rank": 2, "degradation.types": ["Blur"]},
    "rain": {
        "model.lora_rank": 3,
        "model.lora_alpha": 7.5,
        "model.lora_modules": ["to_q", "conv1", "conv2"],
        "degradation.types": ["Rain"],
    },
    "hybrid": {  # unfreezes a block of the base on the way
        "model.lora_rank": 2,
        "degradation.types": ["Snow"],
        "stages.open.start": 1,
        "stages.open.changes": {"model.unfreeze": ["mid_block"]},
    },
}


def config(root, run, **override):
    return load_config(**(small_runs.sections(root, **(SMALL | override)) | {"run": run}))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder with a base, two adapters on it, another base and one on that."""
    folder = tmp_path_factory.mktemp("bank")
    small_runs.write_pictures(folder / "pictures")
    trainer.train(config(folder, "base", **BASE))
    trainer.train(config(folder, "other", **(BASE | {"seed": 7})))
    for name, keys in RUNS.items():
        trainer.train(config(folder, name, **(ADAPTER | keys)))
    stray = ADAPTER | {"model.base": "other", "model.lora_rank": 2}
    trainer.train(config(folder, "stray", **stray))
    return folder


def opened(root, names=("blur", "rain", "hybrid"), **options) -> adapters.Bank:
    base = run_config(str(root / "runs" / "base"), {})
    return adapters.Bank(base, {name: name for name in names}, **options)


def picture(side: int = 40) -> data.Batch:
    lq = torch.rand(3, side, side, generator=torch.Generator().manual_seed(3))
    return data.collate([data.Sample(lq, lq, "", "Blur", "x", 0)])


def output(bank_or_trained) -> torch.Tensor:
    recipe, own = bank_or_trained.recipe, bank_or_trained.config
    return inference.restore_batch(recipe, own, picture(), 5)


def digests(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_an_adapter_in_the_bank_restores_as_its_own_run_does(root):
    bank = opened(root)
    plain = output(bank)
    for name in RUNS:
        alone = output(inference.load_run(run_config(str(root / "runs" / name), {})))
        bank.use({name: 1.0})
        torch.testing.assert_close(output(bank), alone, atol=1e-5, rtol=0)
        assert (alone - plain).abs().max() > 1e-3, "an adapter that does nothing shows nothing"


def test_switching_leaves_the_base_bit_for_bit_as_it_was(root):
    before = digests(root / "runs" / "base")
    bank = opened(root)
    weights = {n: p.detach().clone() for n, p in bank.network.named_parameters()}
    plain = output(bank)
    for choice in ({"blur": 1.0}, {"blur": 0.5, "rain": -2.0}, {"rain": 1.0}, {}):
        bank.use(choice)
    assert all(torch.equal(p, weights[n]) for n, p in bank.network.named_parameters())
    assert torch.equal(output(bank), plain)
    assert digests(root / "runs" / "base") == before


def test_weights_are_those_of_pefts_own_merge(root):
    bank = opened(root)
    for name in RUNS:
        trained = inference.load_run(run_config(str(root / "runs" / name), {}))
        bank.use({name: 1.0})
        merged = dict(bank.network.named_parameters())
        seen = 0
        for path, module in trained.recipe.network.named_modules():
            if hasattr(module, "get_delta_weight"):
                delta = module.get_delta_weight("default")
                expected = module.get_base_layer().weight + delta
                torch.testing.assert_close(merged[f"{path}.weight"], expected, atol=1e-6, rtol=1e-5)
                seen += bool(delta.abs().max() > 1e-4)
        assert seen == len(bank.adapters[name].pairs)


def test_a_combination_is_the_weighted_sum_of_the_updates(root):
    bank = opened(root)
    alone = {}
    for name in RUNS:
        bank.use({name: 1.0})
        alone[name] = {n: p - bank.base[n] for n, p in bank.network.named_parameters()}
    bank.use({"blur": 0.25, "rain": -0.5})
    for name, parameter in bank.network.named_parameters():
        expected = bank.base[name] + 0.25 * alone["blur"][name] - 0.5 * alone["rain"][name]
        torch.testing.assert_close(parameter, expected, atol=1e-6, rtol=1e-5)


def test_merged_weights_are_kept_within_the_stated_memory(root):
    bank = opened(root)
    sizes = {}
    for name in ("blur", "rain"):
        bank.use({name: 1.0})
        sizes[name] = sum(bank.base[n].nbytes for n in bank.adapters[name].names())
    assert bank.cached_bytes == sum(sizes.values()) and bank.merges == 2
    bank.use({"blur": 1.0})
    bank.use({})
    bank.use({"rain": 1.0, "hybrid": 0.0})
    assert bank.merges == 2, "what was merged once is switched to"
    small = opened(root, cache_bytes=max(sizes.values()))
    for choice in ({"rain": 1.0}, {"blur": 1.0}, {"blur": 0.5}):
        small.use(choice)
        assert small.cached_bytes <= max(sizes.values())
    none = opened(root, cache_bytes=0)
    none.use({"rain": 1.0})
    assert none.cached_bytes == sizes["rain"]  # what is in use is there whatever the limit
    none.use({})
    assert none.cached_bytes == 0


def test_what_an_adapter_run_has_unfrozen_comes_along(root):
    bank = opened(root)
    whole = bank.adapters["hybrid"].whole
    assert whole and all("mid_block" in name for name in whole)
    bank.use({"hybrid": 1.0})
    merged = dict(bank.network.named_parameters())
    alone = [name for name in whole if name not in bank.adapters["hybrid"].pairs]
    assert any(not torch.equal(bank.base[name], whole[name]) for name in alone)
    for name in alone:
        torch.testing.assert_close(merged[name].data, whole[name], atol=1e-6, rtol=1e-6)


def test_an_adapter_of_another_base_is_refused_with_both_names(root):
    with pytest.raises(ValueError, match=r"adapter stray\) stands on .*other.*runs/base"):
        opened(root, ["stray"])


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ({"x": "other"}, r"runs/other \(adapter x\) has no adapter"),
        ({"x": "nothing"}, "is not a run"),
        ({"a:b": "blur"}, "cannot be called 'a:b'"),
        ({"none": "blur"}, "cannot be called 'none'"),
    ],
)
def test_what_is_no_adapter_is_refused(root, named, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        adapters.Bank(run_config(str(root / "runs" / "base"), {}), named)


def test_an_adapter_is_no_base(root):
    with pytest.raises(ValueError, match="the run blur .* is no base"):
        adapters.Bank(run_config(str(root / "runs" / "blur"), {}), {})


def test_unknown_names_and_weights_are_refused_and_change_nothing(root):
    bank = opened(root)
    bank.use({"blur": 1.0})
    with pytest.raises(ValueError, match="no adapter 'snow'; there are: blur, rain, hybrid"):
        bank.use({"snow": 1.0})
    with pytest.raises(ValueError, match="weight of adapter 'rain' is nan"):
        bank.use({"rain": float("nan")})
    assert bank.in_use == (("blur", 1.0),)


def test_the_table_has_a_row_a_domain_and_a_column_an_adapter(root):
    from darkroom import validate

    bank = opened(root)
    bank.use({"rain": 0.5})
    asked = bank.config.with_changes({"degradation.types": ["Blur", "Rain"]})
    table = adapters.by_domain(bank, asked)
    assert table.columns == ["domain", "n", "input", "none", *RUNS]
    assert table["domain"].to_list() == ["Blur", "Rain"]
    assert dict(bank.in_use) == {"rain": 0.5}
    # the same images through validate, with the adapter in use
    bank.use({"blur": 1.0})
    from darkroom import index

    samples = index.samples(index.build_index(asked), "val")
    frame = validate.score(bank.recipe, asked, step=0, weights="ema", samples=samples)
    for row in table.to_dicts():
        part = frame.filter(frame["degradation"] == row["domain"])
        assert row["n"] == len(part)
        assert row["blur"] == pytest.approx(part["psnr_y"].mean(), abs=1e-6)
        assert row["input"] == pytest.approx(part["psnr_y_input"].mean(), abs=1e-6)
        assert row["blur"] != pytest.approx(row["none"], abs=1e-4)


def test_the_table_shows_by_default_every_domain_that_was_trained(root):
    trained = {keys["degradation.types"][0] for keys in RUNS.values()}
    assert trained <= set(adapters.domains(opened(root)))
