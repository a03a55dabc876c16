"""The trainer's supply of micro batches: which positions, in which order, for this process."""
# E effective batch (samples of one phase's turn over all processes)

from __future__ import annotations

from collections.abc import Generator, Iterator

from . import data, loader


class Feed:
    """Micro batches of every phase's turn, in the order in which the loop takes them.

    `positions` says how many samples each phase has drawn; `micro` the micro batch of each phase.
    Both are read when the loader is opened, so it is opened anew after a change.
    """

    def __init__(self, config, draw, samples, *, process: int, processes: int) -> None:
        self.draw, self.samples = draw, samples
        self.process, self.processes = process, processes
        self.effective = config.train.effective_batch
        if self.effective % processes:
            raise ValueError(
                f"train.effective_batch {self.effective} is not a multiple of {processes} "
                "processes: change one of them"
            )
        self.own = self.effective // processes  # samples of a turn that this process computes
        self.positions: dict[str, int] = {}
        self.micro: dict[str, int] = {}
        self.batches: Generator[data.Batch] | None = None
        self.kept: list[data.Batch] = []  # batches that another phase takes, too
        self.use(config)

    def use(self, config) -> None:
        """Draw from now on under this (stage's) config."""
        self.config = config
        self.dataset = data.TrainingSet(self.samples, config, self.draw)
        self.close()

    def close(self) -> None:
        """End the loader and its processes; the next `take` opens one at the current positions."""
        if self.batches is not None:
            self.batches.close()
        self.batches = None

    def resize(self, micro: dict[str, int]) -> None:
        """Use these micro batches from now on, by phase; the others stay as configured."""
        if micro != self.micro:
            self.micro = micro
            self.close()

    def micro_batch(self, phase) -> int:
        """Return the micro batch of a phase; it divides this process's share of the batch."""
        micro = self.micro.get(phase.name) or self.config.train.micro_batch or self.own
        if self.own % micro:
            raise ValueError(
                f"train.micro_batch {micro} does not divide {self.own}, the samples of a step on "
                f"each of {self.processes} processes (train.effective_batch {self.effective})"
            )
        return micro

    def smaller(self, phase) -> int | None:
        """Return the next smaller divisor of this process's share, or None."""
        micro = self.micro_batch(phase)
        return next((m for m in range(micro - 1, 0, -1) if self.own % m == 0), None)

    def _keys(self, phases: list, turns: list, steps: int):
        """Yield lists of (phase, position): the rest of this step (`turns`), then whole steps."""
        positions = dict(self.positions)
        for n in range(steps):
            for phase in turns if n == 0 else phases:
                if phase.samples_of:
                    continue
                micro, start = self.micro_batch(phase), positions[phase.name]
                first = start + self.process * self.own
                for position in range(first, first + self.own, micro):
                    yield [(phase.name, p) for p in range(position, position + micro)]
                positions[phase.name] = start + self.effective

    def take(self, phase, phases: list, steps: int) -> Iterator[data.Batch]:
        """Yield the micro batches of this phase's turn; `steps` are left, this one included."""
        if phase.samples_of:
            for batch in self.kept:
                yield from batch.parts(self.micro_batch(phase))
            return
        if self.batches is None:
            turns, workers = phases[phases.index(phase) :], loader.num_workers(self.config)
            ready = loader.batches_ahead(self.config, self.micro_batch(phase), workers)
            self.batches = loader.load(
                self.dataset,
                self._keys(phases, turns, steps),
                workers=workers,
                prefetch=ready,
            )
        self.kept = []
        keep = any(other.samples_of == phase.name for other in phases)
        for _ in range(self.own // self.micro_batch(phase)):
            batch = next(self.batches)
            if keep:
                self.kept.append(batch)
            yield batch

    def taken(self, phase) -> None:
        """Count the samples of a finished turn."""
        self.positions[phase.name] += self.effective
