"""Pictures of a run in progress: the same four training crops, before and after restoration."""

from __future__ import annotations

import numpy as np
import torch

from . import autocast, data, images

NUM_PREVIEWS = 4


def log_images(recipe, dataset: data.TrainingSet, run_dir, step: int) -> dict:
    """Restore four fixed training crops and write them as `figures/images_<step>.png`.

    Rows are the degraded input, the restored image and the target. Returns the tensors
    (`lq`, `restored`, `gt`, (4, 3, H, W) in [0, 1]) and the `degradations`.
    """
    batch = _batch(dataset)
    restoration = restored(recipe, dataset)
    rows = [torch.cat(list(x), dim=2) for x in (batch.lq, restoration, batch.gt)]
    picture = torch.cat(rows, dim=1).permute(1, 2, 0).numpy()  # (3 H, 4 W, 3)
    path = run_dir / "figures" / f"images_{step:08d}.png"
    path.parent.mkdir(exist_ok=True)
    images.write_image(path, np.rint(picture * 255).astype(np.uint8))
    return {
        "lq": batch.lq,
        "restored": restoration,
        "gt": batch.gt,
        "degradations": batch.degradations,
    }


def log_state(state, dtype: torch.dtype, run_dir, *, raw: bool, main: bool) -> dict:
    """Do `log_images` for a training with its averaged weights; only the main process has results.

    With `raw` those of the weights in force are added, where there are averages beside them.
    """
    recipe, dataset, pictures = state.recipe, state.feed.dataset, {}
    with autocast.on(state.device, dtype):
        if raw and state.ema:
            with state.shown(averaged=False):
                pictures["raw"] = restored(recipe, dataset) if main else None
        with state.shown():
            if main:
                pictures |= log_images(recipe, dataset, run_dir, state.step)
    return pictures


def restored(recipe, dataset: data.TrainingSet) -> torch.Tensor:
    """Return what the weights in force make of the four crops, (4, 3, H, W) on the CPU."""
    device = next(recipe.network.parameters()).device
    return recipe.restore(_batch(dataset).to(device), seed=0).image.cpu()


def _batch(dataset: data.TrainingSet) -> data.Batch:
    return data.collate([dataset["preview", n] for n in range(NUM_PREVIEWS)])
