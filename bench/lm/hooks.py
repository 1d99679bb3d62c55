"""Names of places in a transformer: every library spells the same hook differently."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from bench.errors import UsageError

Site = Literal["resid_post", "mlp_out", "attn_out"]
_LAYER_PREFIX = r"(?:(?:model|transformer|gpt_neox|language_model)\.)*(?:layers|h|blocks)\.(\d+)"
_PATTERNS: tuple[tuple[str, Site], ...] = (
    (r"blocks\.(\d+)\.hook_resid_post", "resid_post"),
    (r"blocks\.(\d+)\.hook_mlp_out", "mlp_out"),
    (r"blocks\.(\d+)\.hook_attn_out", "attn_out"),
    (rf"{_LAYER_PREFIX}(?:\.output)?", "resid_post"),
    (rf"{_LAYER_PREFIX}\.mlp(?:\.output)?", "mlp_out"),
    (rf"{_LAYER_PREFIX}\.(?:self_attn|attn|attention)(?:\.output)?", "attn_out"),
    (r"resid_post_layer_(\d+)", "resid_post"),
    (r"mlp_out_layer_(\d+)", "mlp_out"),
    (r"att(?:entio)?n(?:_out)?_layer_(\d+)", "attn_out"),
)


@dataclass(frozen=True, order=True)
class Hook:
    """One place in the residual stream or one sub-module's output.

    Args:
        layer: Block index, from 0.
        site: `resid_post` (output of the block), `mlp_out` or `attn_out` (what the sub-module adds).
    """

    layer: int
    site: Site = "resid_post"

    def __str__(self) -> str:
        return f"blocks.{self.layer}.hook_{self.site}"


def parse_hook(text: str) -> Hook:
    """Read any common spelling; `hidden_states[n]` and `hook_resid_pre` mean the block before.

    Raises:
        UsageError: Unknown spelling, or the embedding output (which no block writes).
    """
    spelled = text.strip()
    for pattern, site in _PATTERNS:
        if m := re.fullmatch(pattern, spelled):
            return Hook(int(m[1]), site)
    if m := re.fullmatch(r"hidden_states\[(\d+)\]|blocks\.(\d+)\.hook_resid_pre", spelled):
        layer = int(m[1] or m[2]) - 1
        if layer >= 0:
            return Hook(layer)
        raise UsageError(f"{text!r} is the embedding output", "choose a block's output, such as blocks.0.hook_resid_post")
    raise UsageError(f"unknown hook {text!r}", "write blocks.L.hook_resid_post, blocks.L.hook_mlp_out or blocks.L.hook_attn_out")


def known_hook(text: str) -> Hook | None:
    """A file's hook; None where it names none, or one that cannot be read here."""
    try:
        return parse_hook(text) if text else None
    except UsageError:
        return None
