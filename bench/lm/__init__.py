"""Language models: the hub's, a folder's, the embedded default, and a tiny one for tests."""

from __future__ import annotations

from collections.abc import Callable

from bench.errors import UsageError
from bench.lm.hf import LanguageModel

# Names that TransformerLens gives to models of the hub; checkpoints written with it hold these.
_ALIASES = {
    "gpt2-small": "gpt2",
    "pythia-70m-deduped": "EleutherAI/pythia-70m-deduped",
    "pythia-160m-deduped": "EleutherAI/pythia-160m-deduped",
    "gemma-2b": "google/gemma-2b",
    "gemma-2-2b": "google/gemma-2-2b",
    "gemma-2-9b": "google/gemma-2-9b",
    "gemma-2-9b-it": "google/gemma-2-9b-it",
    "gemma-2-27b": "google/gemma-2-27b",
    "gemma-2b-it": "google/gemma-2b-it",
    "mistral-7b": "mistralai/Mistral-7B-v0.1",
}


def lm_reference(name: str) -> str:
    """A reference `open_lm` understands, from the model name a checkpoint holds (a hub name unless it says otherwise)."""
    return name if ":" in name or name.startswith(("/", ".", "~")) else f"hf:{_ALIASES.get(name, name)}"


def identity(reference: str, opener: Callable[[], LanguageModel]) -> tuple[str, str]:
    """Name and revision; the embedded model's are known without opening it."""
    from bench.lm import embedded

    if reference == embedded.NAME:
        return embedded.NAME, embedded.REVISION
    lm = opener()
    return lm.name, lm.revision


def open_lm(reference: str, device: str = "cpu", dtype: str = "float32") -> LanguageModel:
    """Open a language model by reference.

    Args:
        reference: `embedded:smollm2-135m-q4_1`, `hf:NAME[@revision]`, `tiny:random`, or a local folder.
        device: Torch device.
        dtype: `float32` or `bfloat16`.

    Raises:
        UsageError: Unknown reference.
        UnavailableError: The model cannot be had.
    """
    from pathlib import Path

    from transformers.utils import logging

    from bench.lm import embedded, hf, tiny

    logging.disable_progress_bar()  # ours is the only one

    if reference == embedded.NAME:
        return embedded.load(device, dtype)
    if reference == tiny.NAME:
        return tiny.load(device, dtype)
    if reference.startswith("hf:") or Path(reference).expanduser().is_dir():
        return hf.load(reference, device, dtype)
    raise UsageError(f"unknown language model {reference!r}", f"use {embedded.NAME}, hf:NAME[@revision] or a folder")
