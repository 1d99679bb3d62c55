"""The matching pursuits that our own format holds."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from torch import Tensor

from bench.adapters import Given
from bench.adapters.build import switch, topk
from bench.adapters.files import DAMAGED, only, take
from bench.errors import CheckpointError
from bench.sae.checkpoint import FACTS
from bench.sae.greedy import Greedy, GreedySAE
from bench.sae.pursuit import PursuitSAE

_UNIT = 0.01  # tolerance of unit norms; rows rounded to bfloat16 are within half of it


def _pursuit(tensors: dict[str, Tensor], act: dict[str, object], given: Given) -> PursuitSAE:
    only(tensors, "W_dec", "b_dec")
    b_dec = take(tensors, "b_dec", (None,))
    w_dec = take(tensors, "W_dec", (None, len(b_dec)))
    if bool(((w_dec.norm(dim=1) - 1).abs() > _UNIT).any()):
        raise CheckpointError("a matching pursuit has decoder rows that are not of unit norm", DAMAGED)
    return PursuitSAE(w_dec, b_dec, topk(act.get("k"), given, len(w_dec)).k)


def _greedy(tensors: dict[str, Tensor], act: dict[str, object], given: Given) -> GreedySAE:
    only(tensors, "W_dec", "b_dec")
    b_dec = take(tensors, "b_dec", (None,))
    w_dec = take(tensors, "W_dec", (None, len(b_dec)))
    residual, k = act.get("residual"), topk(act.get("k"), given, max(w_dec.shape)).k
    if not isinstance(residual, float) or not 0 <= residual < math.inf:
        raise CheckpointError(f"{FACTS} has residual = {residual!r}", DAMAGED)
    return GreedySAE(w_dec, b_dec, k, Greedy(k, switch(act, "positive"), residual, switch(act, "distinct")))


PURSUITS: Mapping[str, Callable[[dict[str, Tensor], dict[str, object], Given], PursuitSAE]] = {
    "pursuit": _pursuit,
    "greedy_pursuit": _greedy,
}
