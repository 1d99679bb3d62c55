"""A random three-layer Llama with a byte tokenizer: the same code paths as a real model, in milliseconds."""

from __future__ import annotations

from typing import Any

import torch

from bench.lm.hf import LanguageModel, weights_sha256

NAME = "tiny:random"


def load(device: str = "cpu", dtype: str = "float32", layers: int = 3, d_model: int = 32, seed: int = 0) -> LanguageModel:
    """Build the tiny model; equal arguments give equal weights."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<eos>": 0, **{c: i + 1 for i, c in enumerate(letters)}}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>", pad_token="<eos>")
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=d_model,
        intermediate_size=2 * d_model,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        eos_token_id=0,
        pad_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Any = LlamaForCausalLM(config)
    model = model.to(getattr(torch, dtype))
    return LanguageModel(NAME, weights_sha256(model)[:40], model.eval().to(device), tokenizer, device)
