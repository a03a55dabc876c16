"""A run's trained model, and how it restores a batch: what scores and restored folders share."""
# B batch, H height, W width

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch

from . import autocast, checkpoint, precision, recipes
from .tiling import AUTO_TILE, restore_native


@dataclass
class Trained:
    """A recipe with a checkpoint's weights, on the device it will run on."""

    config: object  # the run's own, with the `validation`, `restore` and `paths` asked for
    recipe: recipes.Recipe
    step: int
    weights: str  # "ema" or "raw": what was taken
    digests: dict[str, str]  # of the checkpoint's files, by name

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.recipe.network.parameters()).device


def load_run(config, step: int | None = None, name: str | None = None) -> Trained:
    """Load a checkpoint of a run: that of `chosen`, or of a step, or the one named best or latest.

    The model is the run's own (`runs/<run>/config.json`); of the given config only `validation`,
    `restore` and `paths` count, and a warning names what else differs. Raises FileNotFoundError
    where there is no such run and CheckpointError where it has no such checkpoint.
    """
    from .config import Config, difference
    from .run import read_config

    run_dir = config.run_dir
    stored, given = read_config(run_dir).to_dict(), config.to_dict()
    if ignored := difference(stored, config):
        warnings.warn(
            "the model is the run's own; these keys are taken from its config.json: "
            + "; ".join(ignored),
            stacklevel=3,
        )
    config = Config.from_dict(
        stored | {key: given[key] for key in ("run", "validation", "restore", "paths")}
    )
    saved = _read(config, step, name)
    recipe = recipes.build(config)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    recipes.place(recipe, device, precision.choose(config, device).dtype)
    taken = checkpoint.load_network(recipe, saved, config.validation.weights)
    digests = {file: about["blake2b"] for file, about in saved.state["files"].items()}
    return Trained(config, recipe, saved.step, taken, digests)


def _read(config, step: int | None, name: str | None) -> checkpoint.Checkpoint:
    """Read the weights of a checkpoint; its optimizer stays on the disk."""
    wanted, run_dir = f"of step {step}", config.run_dir
    if step is None:
        name = name or chosen(config)
        wanted, step = repr(name), checkpoint.linked(run_dir, name)
    have = checkpoint.steps(run_dir)
    if step not in have:
        listing = ", ".join(map(str, have)) or "none"
        raise checkpoint.CheckpointError(
            f"{run_dir} has no checkpoint {wanted}; steps with one: {listing}"
        )
    return checkpoint.read(run_dir, step, ("weights", "ema"))


def chosen(config) -> str:
    """Return which checkpoint a run is judged by: `latest`, or `best` where early stopping chose.

    The best of many, chosen on the very images that are scored, would flatter the score.
    """
    best = checkpoint.linked(config.run_dir, "best") is not None
    return "best" if config.train.early_stopping and best else "latest"


def restore_batch(recipe, config, batch, seed: int) -> torch.Tensor:
    """Restore a batch at its own size as `config.restore` says; (B, 3, H, W) float32 in [0, 1].

    Tiling and the colour fix are part of it, so that what is scored is what a user gets; the
    enlargement (`restore.upscale`) is not, for a pair is scored at its own size. On the CPU.
    """
    device = next(recipe.network.parameters()).device
    dtype = precision.choose(config, device).dtype

    def restore(part):
        with autocast.on(device, dtype):
            return recipe.restore(part, seed=seed, num_steps=config.restore.num_steps).image

    multiple = getattr(recipe, "multiple", 1)
    auto_tile = getattr(recipe, "auto_tile", AUTO_TILE)
    with torch.no_grad():
        restored = restore_native(restore, batch.to(device), multiple, config.restore, auto_tile)
    return restored.float().cpu().clamp(0, 1)
