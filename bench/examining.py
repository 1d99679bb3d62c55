"""`sae check`: the facts of a checkpoint, and how it does on activations where its language model can be had."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bench import sanity
from bench.errors import BenchError
from bench.lm import lm_reference
from bench.lm.hooks import parse_hook
from bench.sae.card import facts_of
from bench.sanity import Sanity
from bench.sites import check_fit
from bench.spec import RunSpec
from bench.subjects import open_as_asked, setting_of
from bench.worlds.names import is_world


@dataclass(frozen=True)
class Examined:
    """What is known of a checkpoint.

    Args:
        facts: As of `bench.sae.card.facts_of`, with the model and hook that the user named.
        sanity: How it does on activations; None where it was not tried.
        place: Text, model and hook of that, in words.
        not_tried: Why it was not tried, and what to do.
    """

    facts: dict[str, Any]
    sanity: Sanity | None = None
    place: str = ""
    not_tried: str = ""


def examined(spec: RunSpec, tokens: int = sanity.TOKENS, data: bool | None = None) -> Examined:
    """Open the one SAE of a run and try it.

    Args:
        spec: Names the SAE; and model and hook where its file does not.
        tokens: Tokens to try it on.
        data: True: download the language model if need be. False: do not try. None: only if it is here or named in `spec`.

    Raises:
        BenchError: The checkpoint cannot be read; or with `data`, the language model cannot be had.
    """
    setting = setting_of(spec)
    asked = str(parse_hook(spec.hook)) if spec.hook else ""  # before anything else: a wrong flag is the user's, not the file's
    loaded, sae = open_as_asked(setting, spec.sae[0])
    facts = facts_of(loaded)
    facts |= {"model": spec.lm or facts["model"], "hook": asked or facts["hook"]}
    if why := _reason_not_to(spec, facts, data):
        return Examined(facts, not_tried=why)
    try:
        reference = spec.lm or lm_reference(facts["model"])
        lm, hook = setting.shared(reference), parse_hook(facts["hook"])
        check_fit(lm, loaded.name, sae.d_in, facts["hook"])
        found = sanity.examine(sae, lm, hook, setting.corpus, setting.store, tokens)
    except BenchError as e:
        if data or spec.lm or spec.hook:
            raise
        return Examined(facts, not_tried=str(e))
    return Examined(facts, found, f"of {setting.corpus.name}, {lm.name}, {hook}")


def _reason_not_to(spec: RunSpec, facts: dict[str, Any], data: bool | None) -> str:
    if data is False:
        return "--no-data"
    if not facts["model"]:
        return "the file names no language model — give --lm"
    if is_world(facts["model"]):
        return f"it belongs to {facts['model']}, which has no text"
    if not facts["hook"]:
        return "the file names no hook that can be read here — give --hook"
    reference = spec.lm or lm_reference(facts["model"])
    if data or spec.lm or not reference.startswith("hf:") or _is_here(reference):
        return ""
    return f"{reference} is not on this machine — add --data to download it, or --lm with another copy"


def _is_here(reference: str) -> bool:
    """Whether a hub model's config is in the cache already."""
    from huggingface_hub import try_to_load_from_cache

    name, _, revision = reference.removeprefix("hf:").partition("@")
    try:
        return isinstance(try_to_load_from_cache(name, "config.json", revision=revision or None), str)
    except ValueError:  # no name of a repository: opening it will say so
        return True
