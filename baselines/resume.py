"""What an interrupted training needs to go on: one file, replaced atomically, and a log cut back to it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from baselines.parts import State, Weights
from bench.errors import ResourceError, UsageError

RESUME = "resume.safetensors"


def remember(folder: Path, identity: str, w: Weights, opt: torch.optim.Optimizer, state: State, seconds: float) -> None:
    """Write weights, optimiser, and state; a kill at any moment leaves the file before or this one.

    Data position and random draws need no memory of their own: they follow from the step. The file is the same for any
    number of processes: the first writes all latents, and a run may go on with another number.

    Args:
        folder: Of the run.
        identity: What the run is; only the same run goes on.
        w: Weights; those the optimiser knows nothing of (no gradient) are kept too.
        opt: Optimiser.
        state: Every field of it is kept.
        seconds: Time spent so far.

    Raises:
        ResourceError: The disk is full or cannot be written.
    """
    tensors, whole = dict[str, Tensor](), state.shards.gathered
    for n, t in w.named().items():
        for name, v in {f"w/{n}": t.detach(), **{f"opt/{n}/{part}": v for part, v in opt.state.get(t, {}).items()}}.items():
            gathered = whole(v) if _divided(n, v) else v
            if state.shards.first:  # the others need not hold it all
                tensors[name] = gathered.cpu()
    memory: dict[str, Any] = {}
    for f in fields(state):
        if isinstance(value := getattr(state, f.name), Tensor):
            tensors[f"state/{f.name}"] = whole(value)
        elif f.name != "shards":
            memory[f.name] = dict(value) if isinstance(value, Mapping) else value
    if not state.shards.first:
        return
    work = folder / f"{RESUME}.tmp"
    facts = {"identity": identity, "state": json.dumps(memory), "seconds": json.dumps(seconds)}
    try:
        save_file({n: t.contiguous() for n, t in tensors.items()}, work, metadata=facts)
        with work.open("rb+") as f:
            os.fsync(f.fileno())
        work.replace(folder / RESUME)
    except (OSError, SafetensorError) as e:
        raise ResourceError(f"cannot keep the state of the training in {folder}: {e}", "free space, then run the same command again") from e


def recall(folder: Path, identity: str, w: Weights, opt: torch.optim.Optimizer, state: State) -> tuple[State, float]:
    """Fill `w` and `opt` from the file; returns the state and the seconds spent.

    Raises:
        UsageError: The file is another run's, or damaged.
    """
    path = folder / RESUME
    try:
        with safe_open(path, "pt") as f:
            facts = f.metadata()
        if facts["identity"] != identity:
            raise UsageError(f"{folder} holds an unfinished run with other settings", "choose another --out, or remove the folder")
        tensors = load_file(path)
        memory, seconds = json.loads(facts["state"]), float(json.loads(facts["seconds"]))
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as e:
        raise UsageError(f"{path} is damaged: {e}", "remove it to start again") from e
    part = state.shards.mine
    with torch.no_grad():
        for n, t in w.named().items():
            own = {k: part(v) if _divided(n, v) else v for k, v in tensors.items() if k == f"w/{n}" or k.startswith(f"opt/{n}/")}
            t.copy_(own.pop(f"w/{n}"))
            if own:
                opt.state[t] = {k.removeprefix(f"opt/{n}/"): v.clone().to(t.device) for k, v in own.items()}
    kept = {k.removeprefix("state/"): part(v).clone().to(state.silent.device) for k, v in tensors.items() if k.startswith("state/")}
    return replace(state, **memory, **kept), seconds


def _divided(name: str, t: Tensor) -> bool:
    """Whether processes that share an SAE have a part each of a tensor that belongs to the weight of this name."""
    return name != "b_dec" and t.dim() > 0


def cut_back(log: Path, step: int, write: bool = True) -> dict[str, Any]:
    """Drop the lines after a step, which will be written again, and a line that a kill has torn; returns the last one kept.

    With `write` off the file stays as it is.
    """
    kept: list[str] = []
    last: dict[str, Any] = {}
    if not log.exists():
        return last
    for text in log.read_text().splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            break
        if line["step"] > step:
            break
        kept.append(text + "\n")
        last = line
    if not write:
        return last
    work = log.with_name(f"{log.name}.tmp")
    work.write_text("".join(kept))
    work.replace(log)
    return last
