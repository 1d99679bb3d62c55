"""Worlds by reference: `world:small`, or with changes, `world:small?noise=0.2&seed=3`."""

from __future__ import annotations

from dataclasses import asdict, fields, replace
from typing import Any

from bench.errors import UsageError
from bench.worlds.planted import World, WorldSpec

PREFIX = "world:"
WORLDS: dict[str, WorldSpec] = {
    "tiny": WorldSpec(64, 48, roots=8, branching=3, depth=1, p_min=0.004, noise=0.1),
    "small": WorldSpec(1024, 256, roots=32, branching=4, depth=2, p_min=4e-4, rank=8, strength=0.1, noise=0.1),
    # many rare children: no one of them is needed to tell its parent, as with the words of a letter
    "letters": WorldSpec(768, 320, roots=26, branching=24, depth=1, child_share=0.9, p_min=5e-4, noise=0.1),
    # frequent roots: all four combinations of two of them are common
    "attributes": WorldSpec(320, 256, roots=16, branching=4, depth=1, zipf=0.3, p_max=0.5, p_min=0.004, noise=0.1),
    # children on circles: 16 clusters of 8 rows, few enough of all pairs to stand out
    "circles": WorldSpec(
        768, 384, roots=16, branching=8, depth=1, child_share=0.9, p_max=0.25, p_min=4e-4, noise=0.05, magnitude_sd=0.05, circles=16
    ),
    # the size of the public benchmark of synthetic activations (SynthSAEBench-16k)
    "public": WorldSpec(16_384, 768, 128, 4, 3, child_share=0.975, p_max=0.4, p_min=5e-4, rank=25, strength=0.1, directions="random"),
}


def is_world(reference: str) -> bool:
    """Whether a model reference names a world."""
    return reference.startswith(PREFIX)


def open_world(reference: str) -> World:
    """A world by reference; its name is the shortest reference that means the same.

    Raises:
        UsageError: Unknown world, unknown parameter, or unfit value.
    """
    base, _, changes = reference.removeprefix(PREFIX).partition("?")
    if not is_world(reference) or base not in WORLDS:
        raise UsageError(f"unknown world {reference!r}", f"known: {', '.join(PREFIX + n for n in WORLDS)}")
    defaults = asdict(WORLDS[base])
    changed = dict(_change(defaults, part) for part in changes.split("&") if part)
    changed = {k: v for k, v in sorted(changed.items()) if v != defaults[k]}
    suffix = "&".join(f"{k}={str(v).lower() if isinstance(v, bool) else v}" for k, v in changed.items())
    return World(replace(WORLDS[base], **changed), f"{PREFIX}{base}" + (f"?{suffix}" if suffix else ""))


def _change(defaults: dict[str, Any], part: str) -> tuple[str, Any]:
    """One `name=value`, in the type of the default."""
    name, equals, text = part.partition("=")
    if not equals or name not in defaults:
        raise UsageError(f"a world has no parameter {part!r}", f"known: {', '.join(f.name for f in fields(WorldSpec))}")
    default = defaults[name]
    if isinstance(default, bool):
        choices = {"true": True, "false": False}
    elif isinstance(default, str):
        choices = {"random": "random", "spread": "spread"}
    else:
        try:
            return name, type(default)(text)
        except ValueError:
            raise UsageError(f"{name}={text} is not a {type(default).__name__}", f"write {name}={default}") from None
    if text not in choices:
        raise UsageError(f"{name}={text} cannot be used", f"use {' or '.join(choices)}")
    return name, choices[text]
