"""The controller that finds the strength of an L1 penalty at which the target L0 is reached."""

from __future__ import annotations

import math
from dataclasses import replace

from baselines.parts import State

START = 0.05  # strength at the first step, for inputs of total variance 1
FROZEN = 0.2  # last share of the run in which the strength no longer moves
_GAIN = 0.03  # per step, the strength grows by this share while L0 is e times its target
_MOST = 60.0  # and by e^60 over a run at most, so that long runs, which learn more slowly, are steered more slowly
_MEMORY = 0.05  # weight of the newest batch in the running mean of L0


def strength(state: State) -> float:
    """Penalty strength of this step, warmed up over the first 5 % of the run."""
    return state.warm * state.extra.get("strength", START)


def steered(state: State, l0: float, target: float) -> State:
    """The state after a batch. The strength is a base times the running mean of L0 over its target.

    The base grows while L0 lies above its target and shrinks below. It rests while the penalty is warmed up, so that it
    does not run away. Over the last 20 % the strength is frozen. What holds L0 at its target falls as the dictionary gets
    better, and with the learning rate decaying to 0 half of those steps' learning is still to come: the strength is frozen
    half as far ahead (on a logarithmic scale) as the base went over as many steps before.
    """
    seen = dict(state.extra)
    before = seen.get("l0", l0)
    mean = before + _MEMORY * (l0 - before)
    base, freeze = seen.get("base", START), math.ceil((1 - FROZEN) * state.total)
    if state.warm >= 1 and state.step <= freeze:
        error = max(-1.0, min(1.0, math.log(max(mean, 1e-3) / target)))
        base *= math.exp(min(_GAIN, _MOST / state.total) * error)
        seen["strength"] = base * math.exp(error)
    if state.step <= math.ceil((1 - 2 * FROZEN) * state.total):
        seen["earlier"] = base
    if state.step == freeze:
        seen["strength"] *= math.sqrt(base / seen.get("earlier", base))
    return replace(state, extra={**seen, "base": base, "l0": mean})
