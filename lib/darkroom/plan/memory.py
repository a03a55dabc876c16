"""The memory of a run before it starts: traced on tensors without storage, or counted.

`trace` rehearses the recipe's own steps on a fake accelerator in another process and keeps every
allocation. `static` only counts weights, gradients, optimizer and EMA. Both build the recipe on
PyTorch's meta device: full-size models take seconds, and no weight file is needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from . import allocator, cache, history
from .shapes import build_on_meta
from .trace import PlanError, Trace, Worker

__all__ = ["Plan", "PlanError", "Worker", "build_on_meta", "static", "trace"]

GIB = 2**30
ROWS = 3000  # of a timeline
LEVELS = 6  # of a module's path that are told apart
STATE_BYTES = {
    "adamw": 8,
    "rmsprop": 4,
    "adamw8bit": 2 + 8 / 256,
}  # that an optimizer keeps a value


@dataclass
class Plan:
    """A rehearsed run: its peak, when it is, and what holds it. GiB = 2**30 bytes.

    `phases` is the peak of each phase, `categories` what is alive at the peak of all. Live bytes
    are what `max_memory_allocated` counts, less the workspaces of cuDNN and cuBLAS; the context
    comes on top.
    """

    config_hash: str
    device: str  # "accelerator" or "cpu"
    precision: str
    peak_gib: float
    peak_phase: str
    phases: dict[str, float]
    categories: dict[str, float]
    tflop: dict[str, float]  # of a turn, by phase
    traced: Trace

    @cached_property
    def reserved_gib(self) -> float:
        """What the caching allocator reserves at most (`max_memory_reserved`), by its model."""
        return allocator.replay(self._requests).peak / GIB

    @cached_property
    def reserved_expandable_gib(self) -> float:
        """The same under PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True."""
        return allocator.replay(self._requests, expandable=True).peak / GIB

    @cached_property
    def min_budget_gib(self) -> float:
        """The smallest budget in which the allocator does not run out, cached blocks given back."""
        return allocator.smallest_budget(self._requests) / GIB

    @cached_property
    def modules(self):
        """A polars frame: `module`, `category` and `gib` of what is alive at the peak."""
        import polars as pl

        traced = self.traced
        births, alive, categories = history.alive(traced.events, self._peak_event)
        rows: dict[tuple[str, str], int] = {}
        for number in alive:
            _, _, size, _, path, _ = births[number]
            module = ".".join(traced.paths[path].split(".")[:LEVELS])
            key = (module, traced.categories[categories[number]])
            rows[key] = rows.get(key, 0) + int(size)
        table = [{"module": m, "category": c, "gib": b / GIB} for (m, c), b in rows.items()]
        return pl.DataFrame(table).sort("gib", descending=True)

    @cached_property
    def timeline(self):
        """A polars frame: `event`, `phase`, `total` and the GiB of each category, in time's order.

        At most about ROWS rows; of the events between two rows the one with the most bytes is kept.
        """
        import polars as pl

        events, table = self.traced.events, history.by_category(self.traced)
        total = table.sum(1)
        phase = history.phases(events)
        bounds = np.unique(np.linspace(0, len(events), ROWS + 1).astype(int))
        turns = np.flatnonzero(np.diff(phase, prepend=phase[:1] - 1))
        bounds = np.union1d(bounds, turns)
        kept = [a + int(total[a:b].argmax()) for a, b in zip(bounds, bounds[1:], strict=False)]
        columns = {"event": kept, "phase": [self.traced.phases[phase[k]] for k in kept]}
        columns["total"] = total[kept] / GIB
        columns |= {c: table[kept, n] / GIB for n, c in enumerate(self.traced.categories)}
        return pl.DataFrame(columns)

    @cached_property
    def _peak_event(self) -> int:
        return int(history.live(self.traced.events).argmax())

    @cached_property
    def _requests(self) -> list[tuple[int, int]]:
        return history.requests(self.traced)


def trace(
    config,
    *,
    device: str = "accelerator",
    precision: str | None = None,
    validation_size: tuple[int, int] | None = None,
    cpu_kernels: bool | None = None,
    worker: Worker | None = None,
    keep: bool = False,
) -> Plan:
    """Rehearse the run's steps on fake tensors and return its Plan; no GPU, no weights.

    `device` is "accelerator" (a fake one that stands for a CUDA device) or "cpu". `precision` bf16,
    fp16 or fp32 stands for the config's own; auto is bf16 on the accelerator and fp32 on the CPU.
    `validation_size` is the (height, width) of restored pictures, by default the largest that the
    config restores in one piece. `cpu_kernels` follows a CPU's kernels: their layouts, and what
    oneDNN's convolutions allocate inside themselves; by default on the CPU only. A `worker` is
    kept for further traces. With `keep` the trace is kept below `<paths.runs>/.plan-cache`, and
    taken from there. Raises ValueError where the config is refused and PlanError where a run cannot
    be traced.
    """
    if device not in ("accelerator", "cpu"):
        raise ValueError(f"device is {device!r}: it can be 'accelerator' or 'cpu'")
    wanted = precision or config.train.precision
    if wanted == "auto":
        wanted = "fp32" if device == "cpu" else "bf16"
    if cpu_kernels is None:
        cpu_kernels = device == "cpu"
    options = {"validation_size": validation_size, "cpu_kernels": cpu_kernels}
    name = cache.key(config, kind="trace", device=device, precision=wanted, **options)
    if keep and (kept := cache.kept(config, name)) is not None:
        return _plan(config, device, wanted, kept)
    own = worker or Worker()
    try:
        traced = own.trace(config, device, wanted, options)
    finally:
        if worker is None:
            own.close()
    if keep:
        cache.keep(config, name, traced)
    return _plan(config, device, wanted, traced)


def _plan(config, device: str, precision: str, traced: Trace) -> Plan:
    events = traced.events
    live = history.live(events)
    peak = int(live.argmax())
    phases: dict[str, float] = {}
    births = events[:, 0] == history.BIRTH
    for n, name in enumerate(traced.phases):
        inside = births & (events[:, 5] == n)
        if inside.any():
            phases[name] = float(live[inside].max()) / GIB
    held = dict(zip(traced.categories, history.by_category(traced)[peak] / GIB, strict=True))
    return Plan(
        config_hash=config.hash,
        device=device,
        precision=precision,
        peak_gib=float(live[peak]) / GIB,
        peak_phase=traced.phases[events[peak, 5]],
        phases=phases,
        categories={
            k: float(v) for k, v in sorted(held.items(), key=lambda item: -item[1]) if v > 0
        },
        tflop=traced.tflop,
        traced=traced,
    )


def static(config):
    """Return a polars frame, a row a module of the recipe and a last one for the total.

    Columns: `module`, `phase` (what trains it, null when frozen), `parameters`, `trained`, and in
    GiB `weights`, `gradients`, `optimizer`, `ema`, `total`. Gradients, optimizer state and EMA are
    float32 and exist for what is trained; the EMA covers the first phase.
    """
    import polars as pl

    recipe = build_on_meta(config)
    phases = recipe.phases(config)
    rows = []
    for name, module in recipe.modules.items():
        own = {f"{name}.{key}": p for key, p in module.named_parameters()}
        held = [*own.values(), *module.buffers()]
        phase = next((p for p in phases if own.keys() & p.parameters.keys()), None)
        trained = [] if phase is None else [p for n, p in own.items() if n in phase.parameters]
        count = sum(p.numel() for p in trained)
        states = STATE_BYTES[config.optim.for_phase(phase.name).name] if phase else 0
        averaged = count if phase is phases[0] and config.train.ema_decay else 0
        row = {
            "module": name,
            "phase": phase.name if phase else None,
            "parameters": sum(p.numel() for p in own.values()),
            "trained": count,
            "weights": sum(t.numel() * t.element_size() for t in held) / GIB,
            "gradients": sum(p.numel() * p.element_size() for p in trained) / GIB,
            "optimizer": states * count / GIB,
            "ema": 4 * averaged / GIB,
        }
        rows.append(row)
    parts = ["weights", "gradients", "optimizer", "ema"]
    frame = pl.DataFrame(rows, schema_overrides={"phase": pl.String})
    frame = frame.with_columns(pl.sum_horizontal(parts).alias("total"))
    numeric = [c for c, t in frame.schema.items() if t.is_numeric()]
    total = frame.select(pl.lit("total").alias("module"), *[pl.col(c).sum() for c in numeric])
    return pl.concat([frame, total], how="diagonal")
