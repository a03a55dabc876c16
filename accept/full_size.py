"""Train one step of HYPIR at its published size on this machine, with random weights.

Both phases of `params/hypir.yaml` (SD 2.1, rank 256, ConvNeXt-XXL) on an embedded photograph at
256 px, batch 1, in bfloat16 on whatever there is, through the trainer: gradients arrive in every
adapter and head, and the checkpoint holds nothing else. Takes about 12 GB and some minutes.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

OVERRIDE = {
    "data.source": "photographs",
    "data.train": None,
    "data.crop_size": 256,
    "data.workers": 0,
    "model.base": None,
    "model.trunk_weights": None,
    "loss.lpips": 0.0,  # its weights do not ship
    "train.effective_batch": 1,
    "train.micro_batch": 1,
    "train.steps": 1,
    "train.precision": "bf16",
    "train.image_every": None,
    "train.grad_norm_every": 1,
    "validation.every": None,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", default="hypir", help="params file (%(default)s)")
    asked = parser.parse_args()
    import psutil
    from darkroom import checkpoint, load_config, trainer

    folder = Path(tempfile.mkdtemp(prefix="darkroom_full_"))
    override = OVERRIDE | {"paths.runs": str(folder)}
    config = load_config(base=asked.base, run="full_size", override=override)
    started = time.perf_counter()
    result = trainer.train(config)
    seconds = time.perf_counter() - started
    saved = checkpoint.read_named(result.run_dir, "latest")
    weights, moments = saved.tensors["weights"], saved.tensors["optimizer"]
    adapters = {k: v for k, v in weights.items() if k.startswith("generator.")}
    still = [k for k in adapters if not moments[f"{k}/exp_avg"].abs().max() > 0]
    # B is zero at first, so that the first gradient of A is: only B and the heads can have moved
    unmoved = [k for k in still if ".lora_B." in k]
    count = sum(v.numel() for v in adapters.values())
    peak = psutil.Process().memory_full_info().rss / 2**30
    print(
        f"{result.status} after {seconds:.0f} s; {len(adapters)} adapter tensors, {count:,} "
        f"parameters; without a gradient: {unmoved or 'none'}; process {peak:.1f} GiB at the end"
    )
    for row in (result.run_dir / "train.jsonl").read_text().splitlines():
        print(row)
    return 0 if result.status == "completed" and not unmoved and len(adapters) == 514 else 1


if __name__ == "__main__":
    sys.exit(main())
