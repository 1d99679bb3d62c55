"""Where an SAE is measured: the place its checkpoint or the user names, and the language model or planted world there."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from bench.context import site_facts
from bench.errors import CheckpointError, UsageError
from bench.lm import identity, lm_reference
from bench.lm.hf import LanguageModel
from bench.lm.hooks import known_hook, parse_hook
from bench.record import SubjectFacts
from bench.sae.canonical import Canonical
from bench.sae.checkpoint import Loaded
from bench.spec import RunSpec
from bench.store import Store
from bench.worlds.context import WorldContext, world_context, world_site
from bench.worlds.names import is_world, open_world

Shared = Callable[[str], LanguageModel]


def site_of(spec: RunSpec, loaded: Loaded, shared: Shared) -> tuple[dict[str, str], tuple[str, tuple[str, ...]]]:
    """The site's facts; and the model's reference with warnings about how it was chosen."""
    if not (spec.lm or loaded.lm):
        raise UsageError(
            f"{loaded.name}: the checkpoint does not say which language model it belongs to", "give --lm, such as --lm hf:gpt2"
        )
    if is_world(spec.lm or loaded.lm):
        return _planted_site(spec.lm or loaded.lm, loaded)
    if not (spec.hook or loaded.hook):
        raise UsageError(
            f"{loaded.name}: the checkpoint does not say which hook it belongs to", "give --hook, such as --hook blocks.7.hook_resid_post"
        )
    own = lm_reference(loaded.lm) if loaded.lm else ""
    if own.startswith("hf:") and "@" not in own and loaded.facts.get("revision"):
        own = f"{own}@{loaded.facts['revision']}"
    reference, hook = spec.lm or own, parse_hook(spec.hook or loaded.hook)
    notes = (
        [f"the checkpoint names {loaded.lm}; measured on {reference}"]
        if own and own.partition("@")[0] != reference.partition("@")[0]
        else []
    )
    if spec.hook and loaded.hook and known_hook(loaded.hook) != hook:
        notes.append(f"the checkpoint names {loaded.hook}; measured at {hook}")
    name, revision = identity(reference, partial(shared, reference))
    return site_facts(name, revision, spec.dtype, hook), (reference, (*notes, *loaded.oddities))


def fitting(opener: Callable[[], LanguageModel], subject: SubjectFacts) -> LanguageModel:
    """The language model, if the SAE fits it; errors as of `check_fit`."""
    lm = opener()
    check_fit(lm, subject.name, subject.d_in, subject.hook)
    return lm


def check_fit(lm: LanguageModel, name: str, d_in: int, hook: str) -> None:
    """Raise CheckpointError unless the model's activations have the SAE's width, UsageError if it has no such layer."""
    lm.check(parse_hook(hook))
    if lm.d_model != d_in:
        raise CheckpointError(
            f"{name} takes {d_in} numbers, {lm.name} gives {lm.d_model} at {hook}", "choose the model and hook the SAE was trained on"
        )


def _planted_site(reference: str, loaded: Loaded) -> tuple[dict[str, str], tuple[str, tuple[str, ...]]]:
    world, notes = open_world(reference), list[str]()
    if loaded.lm and loaded.lm != world.name:
        notes.append(f"the checkpoint names {loaded.lm}; measured on {world.name}")
    elif loaded.lm and loaded.facts.get("revision", world.spec.sha256) != world.spec.sha256:
        notes.append(f"{world.name} is not what it was when this SAE was trained on it")
    return world_site(world), (reference, (*notes, *loaded.oddities))


def planted(reference: str, subject: SubjectFacts, store: Store, seed: int, other: tuple[str, Canonical] | None) -> WorldContext:
    """A planted world, if the SAE fits it."""
    world = open_world(reference)
    if world.d != subject.d_in:
        raise CheckpointError(
            f"{subject.name} takes {subject.d_in} numbers, {reference} gives {world.d}", "choose the world it was trained on"
        )
    return world_context(world, store, seed, other)
