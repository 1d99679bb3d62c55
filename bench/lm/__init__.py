"""Language models: the hub's, a folder's, the embedded default, and a tiny one for tests."""

from __future__ import annotations

from bench.errors import UsageError
from bench.lm.hf import LanguageModel


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

    from bench.lm import embedded, hf, tiny

    if reference == embedded.NAME:
        return embedded.load(device, dtype)
    if reference == tiny.NAME:
        return tiny.load(device, dtype)
    if reference.startswith("hf:") or Path(reference).expanduser().is_dir():
        return hf.load(reference, device, dtype)
    raise UsageError(f"unknown language model {reference!r}", f"use {embedded.NAME}, hf:NAME[@revision] or a folder")
