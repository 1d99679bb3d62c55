"""Write a native checkpoint's weights with sae-lens' own save code, to check that both files score the same.

Run in a throw-away environment (sae-lens pulls a lot; never install it beside the suite):

    python -m venv /tmp/sl && /tmp/sl/bin/pip install torch==2.13.0 sae-lens==6.54.12
    /tmp/sl/bin/python perf/saelens_copy.py baselines/checkpoints/ortsae /tmp/ortsae_saelens
    python -m bench run --sae /tmp/ortsae_saelens --records /tmp/copy
    python perf/compare_records.py ortsae-results /tmp/copy
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from sae_lens import JumpReLUSAE, JumpReLUSAEConfig
from sae_lens.saes.sae import SAEMetadata
from safetensors.torch import load_file


def main(source: Path, target: Path) -> None:
    facts, w = json.loads((source / "sae.json").read_text()), load_file(source / "sae.safetensors")
    d_sae, d_in = w["W_dec"].shape
    place = SAEMetadata(model_name=facts["lm"], hook_name=facts["hook"], context_size=128, prepend_bos=False)
    sae = JumpReLUSAE(JumpReLUSAEConfig(d_in=d_in, d_sae=d_sae, dtype="float32", device="cpu", apply_b_dec_to_input=True, metadata=place))
    assert torch.equal(w["b_pre"], w["b_dec"]), "sae-lens subtracts b_dec, so b_pre must equal it"
    with torch.no_grad():
        for name in ("W_enc", "b_enc", "W_dec", "b_dec", "threshold"):
            getattr(sae, name).copy_(w[name].float())
    sae.save_model(target)
    print(f"wrote {target}: {sorted(p.name for p in Path(target).iterdir())}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
