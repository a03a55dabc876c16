"""What a training really allocates on the CPU: the trainer's own steps under PyTorch's profiler.

Run as a script it measures the config in a JSON file and prints a JSON line: the peak in bytes of
every part of two steps, counted by the CPU allocator's own events on top of what lives before them.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import small_runs

MARK = 7_000_003  # bytes of an allocation that only says where in the events we are


def peaks(root: Path, keys: dict) -> dict[str, int]:
    """Return peak bytes by part (`step 1 generator`, …) of a run with these keys, below `root`."""
    root.mkdir(parents=True, exist_ok=True)
    pictures = root / "pictures"
    if not pictures.exists():
        small_runs.write_pictures(pictures, count=6, size=keys["data.crop_size"] + 16)
    path = root / "truth.json"
    path.write_text(json.dumps(small_runs.sections(root, **keys)))
    done = subprocess.run(
        [sys.executable, __file__, str(path)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-3000:])
    return json.loads(done.stdout.splitlines()[-1])


def measure(config) -> dict[str, int]:
    """Take two steps with the trainer and return the peak of every part."""
    import torch
    from darkroom import losses, perceptual
    from darkroom import trainer as trainer_module
    from darkroom.interrupts import StopSignals
    from darkroom.progress import Quiet
    from darkroom.run import RunDirectory
    from darkroom.trainer import Trainer
    from darkroom.turn import Turn

    trainer_module.check_weights = lambda config: None
    losses.lpips.build = lambda pretrained: perceptual.LPIPS(False)  # random numbers, same memory
    with StopSignals() as signals:
        trainer = Trainer(config, RunDirectory(config), signals, Quiet())
    state, names = trainer.state, []
    modules = list(state.recipe.modules.values())
    if config.loss.lpips:
        modules.append(losses.lpips.module(torch.zeros(1)))
    held = [t for m in modules for t in (*m.parameters(), *m.buffers())]
    held += state.ema.shadow.values() if state.ema else []
    held += [state.recipe.prompts._table] if state.recipe.prompts else []
    storages = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in held}
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profiler:
        for _ in range(2):
            state.follow_stages(state.step)
            for phase in state.phases:
                names.append(f"step {state.step + 1} {phase.name}")
                torch.empty(MARK + len(names), dtype=torch.uint8)
                Turn(state, trainer.run, trainer.accelerator, trainer.precision.dtype, phase).take(
                    2 - state.step
                )
            state.step += 1
        names.append("images")
        torch.empty(MARK + len(names), dtype=torch.uint8)
        trainer._log_images()
    state.feed.close()
    live, part, found = sum(storages.values()), None, {}
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    for event in sorted(events, key=lambda e: e.start_ns()):
        size = event.nbytes()
        if MARK < abs(size) <= MARK + len(names):
            part = names[abs(size) - MARK - 1]
            continue
        live += size
        found[part] = max(found.get(part, 0), live)
    return found


def main() -> None:
    """Measure the config in the JSON file named on the command line."""
    import torch
    from darkroom.config import load_config

    torch.set_num_threads(1)
    config = load_config(**json.loads(Path(sys.argv[1]).read_text()))
    print(json.dumps(measure(config)))


if __name__ == "__main__":
    main()
