"""The decoder rows of overcomplete's dictionaries, as training leaves them in a state dict."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from bench.adapters.files import take
from bench.errors import CheckpointError

ROWS, ARCHETYPES, SCALE = "dictionary._weights", ("dictionary.C", "dictionary.W", "dictionary.Relax"), "dictionary.multiplier"
_TOLERANCE, _SAVE = 1e-3, "save it again after a forward pass in training mode"


def rows(state: Mapping[str, Any]) -> Tensor:
    """[d_sae, d_in]: the rows times exp(multiplier).

    Raises:
        CheckpointError: The library would change the rows before it uses them, and the file does not say how.
    """
    factor = take(state, SCALE, ()).exp() if SCALE in state else torch.tensor(1.0)
    if ROWS in state:
        weights = take(state, ROWS, (None, None))
        if bool(((weights.norm(dim=1) - 1).abs() > _TOLERANCE).any()):
            cause = "dictionary rows are not of unit norm, and the file does not say how they are normalised"
            raise CheckpointError(cause, f"only l2 normalisation (the default) is supported; with it, {_SAVE}")
        return torch.nn.functional.normalize(weights) * factor
    points = take(state, ARCHETYPES[0], (None, None))
    mix = take(state, ARCHETYPES[1], (None, len(points)))
    used = (mix != 0).any(1).float()  # the library starts latents beyond the number of points from a row of zeros
    if bool((mix < 0).any()) or bool(((mix.sum(1) - used).abs() > _TOLERANCE).any()):
        raise CheckpointError("rows of dictionary.W do not sum to 1, so this is not a state that training left", _SAVE)
    return (mix @ points + take(state, ARCHETYPES[2], (len(mix), points.shape[1]))) * factor
