"""sparsify: `SparseCoder.save_to_disk`, against `load_from_disk`; its sparse codes are laid out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.parity.shared import D_IN, D_SAE, Case, K, P, Peer, Written, check, fill, tokens

pytestmark = pytest.mark.parity

VALUES = {"encoder.weight": P["W_enc"].T, "encoder.bias": P["b_enc"], "W_dec": P["W_dec"], "b_dec": P["b_dec"]}


def saved(dtype: torch.dtype = torch.float32, **cfg: Any) -> Callable[[Path], Written]:
    """Saved by the library, and what it computes of the file in float32, on a CPU without triton."""

    def write(folder: Path) -> Written:
        from sparsify import SparseCoder
        from sparsify.config import SparseCoderConfig

        home = folder / "layers.2.mlp"
        coder = SparseCoder(D_IN, SparseCoderConfig(k=K, **cfg), dtype=dtype)
        fill(coder, VALUES)
        if cfg.get("normalize_decoder", True):
            coder.set_decoder_norm_to_unit_norm()
        coder.save_to_disk(home)
        loaded, x = SparseCoder.load_from_disk(home).float(), tokens()
        found = loaded.encode(x)
        codes = torch.zeros(len(x), D_SAE).scatter_(1, found.top_indices, found.top_acts)
        return Written(home, x, codes, loaded.decode(found.top_acts, found.top_indices))

    return write


WIDTH: dict[str, Any] = {"num_latents": D_SAE}
FREE = WIDTH | {"normalize_decoder": False}
CASES = [
    case
    for kind, more in (("topk", {}), ("groupmax", {"activation": "groupmax"}))
    for case in (
        Case(kind, "float32", saved(**WIDTH | more), k=K),
        Case(kind, "normalize_decoder off", saved(**FREE | more), k=K),
        Case(kind, "bfloat16", saved(torch.bfloat16, **FREE | more), k=K),
        Case(kind, "multi_topk", saved(**FREE | more, multi_topk=True), k=K),
        Case(kind, "width as expansion_factor", saved(expansion_factor=D_SAE // D_IN, normalize_decoder=False, **more), k=K),
        Case(kind, "transcode", saved(**FREE | more, transcode=True), refused="transcode is set"),
        Case(kind, "skip_connection", saved(**FREE | more, skip_connection=True), refused="skip_connection is set"),
        Case(kind, "transcode and skip_connection", saved(**FREE | more, transcode=True, skip_connection=True), refused="transcode is set"),
    )
]
PEER = Peer("eai-sparsify", CASES)


@pytest.mark.parametrize("case", PEER.cases, ids=str)
def test_files_of_sparsify(case: Case, tmp_path: Path) -> None:
    check(case, tmp_path)
