"""Words and sentences through the language model: cached prefixes equal whole prompts, and nothing leaks between parts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bench.data import hierarchy, spelling
from bench.lm import embedded, tiny
from bench.lm.concepts import Hierarchy, Spelling
from bench.lm.hf import LanguageModel
from bench.lm.hooks import Hook
from bench.lm.prefixed import Prefixed
from bench.store import Store
from tests.worlds import tiny_context

SMALL = {"vocab_size": 257, "max_position_embeddings": 128}
CONFIGS: dict[str, dict[str, Any]] = {
    "GPT2": {"n_embd": 32, "n_layer": 3, "n_head": 4, "vocab_size": 257, "n_positions": 128, "bos_token_id": 0, "eos_token_id": 0},
    "GPTNeoX": {**SMALL, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64},
    "Gemma2": {
        **SMALL,
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "intermediate_size": 64,
        "sliding_window": 6,
    },
    "Bloom": {"vocab_size": 257, "hidden_size": 32, "n_layer": 3, "n_head": 4},
}


def model(kind: str) -> LanguageModel:
    """A small random model of an architecture, with the tiny model's tokenizer."""
    if kind == "Llama":
        return tiny.load()
    import transformers

    head = "GPT2LMHeadModel" if kind == "GPT2" else f"{kind}ForCausalLM"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made: Any = getattr(transformers, head)(getattr(transformers, f"{kind}Config")(**CONFIGS[kind]))
    return LanguageModel(f"test:{kind}", "0", made.eval(), tiny.load().tokenizer)


def prompts(n: int = 9) -> Prefixed:
    r = np.random.default_rng(0)
    prefixes = tuple(tuple(r.integers(1, 250, size).tolist()) for size in (12, 5))
    return Prefixed(prefixes, np.arange(n) % 2, r.integers(1, 250, n))


@pytest.mark.parametrize("hook", [Hook(1), Hook(2), Hook(1, "mlp_out"), Hook(1, "attn_out")], ids=str)
@pytest.mark.parametrize("kind", ["Llama", *CONFIGS])
def test_cached_prefixes_equal_whole_prompts(kind: str, hook: Hook, tmp_path: Path) -> None:
    lm, asked = model(kind), prompts()
    x = asked.activations(lm, hook, Store(tmp_path))
    for i, (p, t) in enumerate(zip(asked.which, asked.token, strict=True)):
        whole = lm.read(torch.tensor([[*asked.prefixes[p], int(t)]]), [hook])[hook][0, -1]
        assert np.allclose(x[i], whole.numpy(), atol=1e-4), i
    assert asked.cached(lm, hook, Store(tmp_path)) and asked.tokens_run == 17 + 9


def test_the_usual_architecture_reuses_its_prefixes() -> None:
    assert prompts()._reusable(tiny.load(), Hook(1))


def test_prompts_that_share_no_prefix_run_whole(tmp_path: Path) -> None:
    lm, shared = tiny.load(), prompts()
    alone = Prefixed(tuple(shared.prefixes[p] for p in shared.which), np.arange(9), shared.token)
    one, two = (p.activations(lm, Hook(1), Store(tmp_path / str(i))) for i, p in enumerate((shared, alone)))
    assert np.allclose(one, two, atol=1e-5)


def test_a_tokenizer_without_whole_words_gives_no_items(tmp_path: Path) -> None:
    ctx = tiny_context(Store(tmp_path))
    assert ctx.concepts(Spelling()).names == () and ctx.concepts(Hierarchy()).names == ()


# the embedded model


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return embedded.load(layers=2)


@pytest.mark.model
def test_words_are_read_at_their_own_token_after_examples_from_the_training_part(lm: LanguageModel, tmp_path: Path) -> None:
    asked = Spelling(words=20, prefixes=5)
    found = asked.read(lm, Hook(1), Store(tmp_path), np.inf, 0)
    assert found.x.shape == (400, 576) and len(found.names) == 20 and found.counts["letters_with_too_few_words"] == 5
    assert (found.labels.sum(1) == 1).all() and np.bincount(found.part).tolist() == [240, 80, 80]
    chosen, sent = asked._chosen(lm, 0), asked.prompts(lm, 0)
    place = {w: i for i, w in enumerate(chosen.words)}
    shown = [[line.split(" ")[1] for line in lm.tokenizer.decode(p).strip("\n").split("\n")] for p in sent.prefixes]
    shown = [[w for w in words if w] for words in shown]
    assert all(len(words) == 10 and all(chosen.part[place[w]] == 0 for w in words) for words in shown)
    for i in (0, 7, 133):
        word, prefix = chosen.words[i], sent.prefixes[sent.which[i]]
        assert word not in shown[sent.which[i]]
        text = lm.tokenizer.decode(prefix) + f" {word}"
        ids = lm.tokenizer(text)["input_ids"]
        assert ids == [*prefix, int(sent.token[i])]
        whole = lm.read(torch.tensor([ids]), [Hook(1)])[Hook(1)][0, -1]
        assert np.allclose(found.x[i], whole.numpy(), atol=1e-4 * float(whole.abs().max()))


@pytest.mark.model
def test_fresh_examples_come_from_the_word_s_own_part(lm: LanguageModel) -> None:
    asked = Spelling(words=20, prefixes=0)
    chosen, sent = asked._chosen(lm, 0), asked.prompts(lm, 0)
    place = {w: i for i, w in enumerate(chosen.words)}
    for i in (3, 50, 399):
        words = [line.split(" ")[1] for line in lm.tokenizer.decode(sent.prefixes[i]).strip("\n").split("\n")]
        assert chosen.words[i] not in words and {int(chosen.part[place[w]]) for w in words} == {int(chosen.part[i])}


@pytest.mark.model
def test_children_keep_their_parents_and_doubtful_ones_count_nowhere(lm: LanguageModel, tmp_path: Path) -> None:
    found = Hierarchy(sentences=1).read(lm, Hook(1), Store(tmp_path), np.inf, 0)
    parents = {p.name: p for p in hierarchy.parents()}
    assert len(found.names) >= 45 and found.counts["children"] == len(found.x)
    assert (found.labels.sum(0) >= 16).all() and not (found.labels & ~found.known).any()
    children = sorted({c for p in found.names for c in parents[p].children if c in spelling.single_tokens((c,), lm.tokenizer)})
    for c in (0, len(found.names) - 1):
        parent = parents[found.names[c]]
        assert {children[g] for g in found.group[found.labels[:, c]]} <= set(parent.children)
        assert {children[g] for g in found.group[~found.known[:, c]]} <= set(parent.also)


@pytest.mark.model
def test_items_beyond_the_norm_cut_are_counted(lm: LanguageModel, tmp_path: Path) -> None:
    asked, store = Spelling(words=20, prefixes=5), Store(tmp_path)
    norms = np.linalg.norm(asked.read(lm, Hook(1), store, np.inf, 0).x, axis=1)
    cut = float(np.median(norms))
    found = asked.read(lm, Hook(1), store, cut, 0)
    assert found.counts["items"] == len(found.x) == len(found.part) == int((norms <= cut).sum())
    assert found.counts["items_masked"] == int((norms > cut).sum())
