"""What was known of an SAE before it was converted, such as an input scale that was estimated: the new files hold it, records keep it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

REMARKS = "remarks"  # a key that is ours in every format that `bench.convert` writes
_MOST = 20


def remarks(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The first few remarks of a config; nothing where it has none."""
    found = config.get(REMARKS)
    return tuple(said for said in found[:_MOST] if isinstance(said, str)) if isinstance(found, list) else ()
