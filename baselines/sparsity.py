"""The controller that finds the strength of an L1 penalty at which the target L0 is reached."""

from __future__ import annotations

import math
from dataclasses import replace

from baselines.parts import State

START = 0.05  # strength at the first step, for inputs of total variance 1
FROZEN = 0.2  # last share of the run in which the strength no longer moves
_GAIN = 40.0  # the strength may grow by e^40 over a run while L0 is e times its target
_MEMORY = 0.05  # weight of the newest batch in the running mean of L0


def strength(state: State) -> float:
    """Penalty strength of this step, warmed up over the first 5 % of the run."""
    return state.warm * state.extra.get("strength", START)


def steered(state: State, l0: float, target: float) -> State:
    """The state after a batch: the strength grows while the running mean of L0 lies above its target, and shrinks below.

    It rests while the penalty is warmed up, so that it does not run away, and over the last 20 %.
    """
    before = state.extra.get("l0", l0)
    mean = before + _MEMORY * (l0 - before)
    value = state.extra.get("strength", START)
    if state.warm >= 1 and state.step < (1 - FROZEN) * state.total:
        error = max(-1.0, min(1.0, math.log(max(mean, 1e-3) / target)))
        value *= math.exp(_GAIN * error / state.total)
    return replace(state, extra={**state.extra, "strength": value, "l0": mean})
