"""When validation is due: every `validation.every` steps, stretched once where that costs too much.

The clock is asked once, after the first of these validations. Its answer goes to `decisions.jsonl`
with its position and is replayed, so a resumed run validates at the steps of an uninterrupted one.
"""

from __future__ import annotations

import math

DECISION = "validation_every"
WARMUP_STEPS = 5  # of this process: kernels are chosen, caches filled
WARN_SHARE = 0.3


def share_of_time(every: int, validation_seconds: float, step_seconds: float) -> float:
    """Return the share of the run's time that a validation every so many steps takes, in 0..1."""
    return validation_seconds / (validation_seconds + every * step_seconds)


def stretched(every: int, max_share: float, validation_seconds: float, step_seconds: float) -> int:
    """Return the smallest multiple of `every` at which validation takes at most `max_share`.

    `max_share` is in (0, 1]; at 1 nothing is stretched.
    """
    wanted = validation_seconds * (1 - max_share) / max_share / (every * step_seconds)
    return every * max(1, math.ceil(wanted - 1e-9))  # without the rounding error of a whole number


def multiples(every: int | None, since: int, until: int) -> int:
    """Return how many multiples of `every` (None: never) lie in since < n <= until."""
    return 0 if every is None or until <= since else until // every - since // every


def spans(every: int, decision, since: int, until: int) -> list[tuple[int, int, int]]:
    """Return (after, last, interval): the steps after < n <= last are validated at the interval.

    `decision` is (step, longer interval) or None; up to its step `every` is in force.
    """
    at, longer = decision or (until, every)
    at = min(max(at, since), until)
    found = [(since, at, every), (at, until, longer)]
    return [span for span in found if span[0] < span[1]]


class Rhythm:
    """The steps at which a run validates, and the one decision about them."""

    def __init__(self, config, run) -> None:
        self.every, self.max_share = config.validation.every, config.validation.max_time_share
        self.run, self.seconds, self.warned = run, [], False
        # one decision an interval of the config: validation.every may differ when a run goes on
        made = [r for r in run.made if r["decision"] == DECISION]
        made = [(r["step"], r["value"]["to"]) for r in made if r["value"]["from"] == self.every]
        self.decision = made[0] if made and self.max_share is not None else None

    def stepped(self, seconds: float) -> None:
        """Take note of how long a step took, as long as that may still matter."""
        if self.every and len(self.seconds) < self.every:
            self.seconds.append(seconds)

    def due(self, step: int, end: int) -> bool:
        """Return whether to validate after `step`: in the rhythm in force there, or at the end."""
        if self.every is None:
            return False
        since, longer = self.decision or (step, self.every)
        return step % (self.every if step <= since else longer) == 0 or step == end

    def validated(self, step: int, seconds: float, average_seconds: float) -> None:
        """Decide after the first validation of the rhythm, which took `seconds`, how to go on.

        `average_seconds` is a step's over the whole run, for where this process took few of them.
        Without `validation.max_time_share` nothing changes; a dear validation is noted.
        """
        if self.every is None or step % self.every or self.decision or self.warned:
            return
        warm = self.seconds[WARMUP_STEPS:]
        step_seconds = sum(warm) / len(warm) if len(warm) >= WARMUP_STEPS else average_seconds
        step_seconds = max(step_seconds, 1e-9)
        share = share_of_time(self.every, seconds, step_seconds)
        training = f"{self.every} steps {self.every * step_seconds:.3g} s"
        cost = f"validation takes {seconds:.3g} s, {training}"
        if self.max_share is not None:
            longer = stretched(self.every, self.max_share, seconds, step_seconds)
            after = share_of_time(longer, seconds, step_seconds)
            reason = (
                f"{cost}: {share:.1%} of the time, at most {self.max_share:.1%}; now {after:.1%}"
            )
            self.decision = (step, longer)
            self.run.decide(step, DECISION, {"from": self.every, "to": longer}, reason)
            return
        self.warned = True
        if share > WARN_SHARE:
            self.run.note(
                f"step {step}: warning: {cost}, {share:.0%} of the time: raise validation.every, "
                "lower validation.samples_per_type, or set validation.max_time_share"
            )
