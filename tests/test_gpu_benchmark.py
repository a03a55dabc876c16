"""The GPU benchmark: its resolved configs are today's, and without a GPU it ends in peace."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from darkroom.paths import repo_root

sys.path.insert(0, str(repo_root() / "benchmarks"))
import gpu_hypir


def test_the_resolved_configs_are_those_of_the_params_files():
    stored = json.loads(gpu_hypir.CONFIGS.read_text())
    assert stored == json.loads(json.dumps(gpu_hypir.resolve())), "run gpu_hypir.py --resolve"


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU it would measure")
def test_without_a_gpu_it_says_so_and_writes_nothing():
    path = repo_root() / "benchmarks" / "gpu_hypir.py"
    done = subprocess.run([sys.executable, path], capture_output=True, text=True, check=False)
    assert (done.returncode, "no GPU here" in done.stdout) == (0, True)


def test_a_plain_config_builds_the_same_recipe_as_the_typed_one():
    from darkroom import load_config, recipes
    from darkroom.plan import verify

    config = load_config(base="tiny", run="tiny")
    plain = gpu_hypir.plain(config.to_dict())
    ours, theirs = recipes.build(plain), recipes.build(config)
    assert [p.name for p in ours.phases(plain)] == [p.name for p in theirs.phases(config)]
    for a, b in zip(ours.network.parameters(), theirs.network.parameters(), strict=True):
        assert torch.equal(a, b)
    batch = verify.random_batch(ours, config, 2)
    phase = ours.phases(plain)[0]
    ours.begin(phase)
    assert all(t.isfinite().all() for t in ours.losses(batch, phase).terms.values())
