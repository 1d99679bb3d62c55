"""The language model: padding never leaks, early exit and tail equal the whole forward pass, hook names agree."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bench.context import context_for
from bench.data.text import rows_of
from bench.errors import ResourceError, UnavailableError, UsageError
from bench.kernels.reconstruction import token_losses
from bench.lm import embedded, hf, open_lm, tiny
from bench.lm.harvest import Harvest, keep_mask, norm_cut, padded
from bench.lm.hf import LanguageModel
from bench.lm.hooks import Hook, parse_hook
from bench.store import Store
from tests.worlds import corpus

SITES = [Hook(1), Hook(1, "mlp_out"), Hook(1, "attn_out"), Hook(2)]


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return tiny.load()


def ragged(lm: LanguageModel, lengths: tuple[int, ...], seed: int = 0):
    g = np.random.default_rng(seed)
    return rows_of([g.integers(1, 200, n).tolist() for n in lengths], list(range(len(lengths))), lm.special_ids)


@pytest.mark.parametrize("hook", SITES)
def test_padding_does_not_leak(lm: LanguageModel, hook: Hook) -> None:
    rows = ragged(lm, (3, 17, 9))
    ids, real = padded(rows, np.arange(3))
    together = lm.read(ids, [hook])[hook]
    for i in range(3):
        alone = lm.read(torch.from_numpy(rows.ids[rows.offsets[i] : rows.offsets[i + 1]].astype(np.int64))[None], [hook])[hook]
        assert torch.allclose(together[i, : alone.shape[1]], alone[0], atol=1e-6)
        assert int(real[i].sum()) == alone.shape[1]


def test_read_equals_hidden_states(lm: LanguageModel) -> None:
    ids = torch.randint(1, 200, (2, 12), generator=torch.Generator().manual_seed(0))
    states = lm.model(ids, output_hidden_states=True).hidden_states
    for layer in range(lm.n_layers - 1):  # transformers puts the final norm into the last hidden state
        for spelling in (f"hidden_states[{layer + 1}]", f"blocks.{layer}.hook_resid_post", f"model.layers.{layer}", f"layers.{layer}"):
            hook = parse_hook(spelling)
            assert torch.equal(lm.read(ids, [hook])[hook], states[layer + 1])


def test_sub_modules_add_up_to_the_block(lm: LanguageModel) -> None:
    ids = torch.randint(1, 200, (2, 12), generator=torch.Generator().manual_seed(1))
    seen = lm.read(ids, [Hook(0), Hook(1, "attn_out"), Hook(1, "mlp_out"), Hook(1)])
    assert torch.allclose(seen[Hook(0)] + seen[Hook(1, "attn_out")] + seen[Hook(1, "mlp_out")], seen[Hook(1)], atol=1e-6)


def test_early_exit_runs_only_the_layers_needed(lm: LanguageModel) -> None:
    ran: list[int] = []
    handles = [b.register_forward_hook(lambda *_, i=i: ran.append(i)) for i, b in enumerate(lm.blocks)]
    lm.read(torch.ones(1, 4, dtype=torch.long), [Hook(0)])
    for h in handles:
        h.remove()
    assert ran == [0]


def full_splice(lm: LanguageModel, ids: torch.Tensor, hook: Hook, new: torch.Tensor) -> torch.Tensor:
    """The reference: the whole model runs, and the module's output is overwritten on the way."""

    def swap(_m: object, _i: object, out: object) -> object:
        return (new, *out[1:]) if isinstance(out, tuple) else new

    handle = lm.module(hook).register_forward_hook(swap)
    with torch.no_grad():
        out = lm.model(ids).logits
    handle.remove()
    return out


@pytest.mark.parametrize("hook", SITES)
def test_tail_equals_full_forward(lm: LanguageModel, hook: Hook) -> None:
    ids = torch.randint(1, 200, (2, 15), generator=torch.Generator().manual_seed(2))
    seen = lm.read(ids, [hook, Hook(hook.layer - 1)])
    new = seen[hook] + 0.5 * torch.randn(seen[hook].shape, generator=torch.Generator().manual_seed(3))
    tail = lm.tail(ids, hook, seen[Hook(hook.layer - 1)], new)
    assert torch.allclose(lm.logits(tail.reshape(-1, lm.d_model)), full_splice(lm, ids, hook, new).flatten(0, 1), atol=1e-4)
    assert "forward" not in lm.blocks[0].__dict__  # the model is left as it was


SMALL = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 257, "intermediate_size": 64}
OTHERS = {
    "GPT2": {"vocab_size": 257, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64},
    "GPTNeoX": SMALL,
    "GPTNeo": {**SMALL, "num_layers": 3, "num_heads": 4, "attention_types": [[["global"], 3]], "max_position_embeddings": 64},
    "Bloom": {"vocab_size": 257, "hidden_size": 32, "n_layer": 3, "n_head": 4},
    "Falcon": {"vocab_size": 257, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4},
    "Qwen2": {**SMALL, "num_key_value_heads": 2},
    "Gemma2": {**SMALL, "num_key_value_heads": 2, "head_dim": 8},
    "Gemma3": {**SMALL, "num_key_value_heads": 2, "head_dim": 8},
    "Granite": {**SMALL, "num_key_value_heads": 2, "logits_scaling": 4.0},
    "Cohere": {**SMALL, "num_key_value_heads": 2, "logit_scale": 0.25},
}


def other(name: str) -> LanguageModel:
    """A small random model of another architecture."""
    import transformers

    settings = dict(OTHERS[name])
    if name == "GPTNeo":
        settings = {k: v for k, v in settings.items() if k not in ("num_hidden_layers", "num_attention_heads")}
    words = ("Gemma3TextConfig", "Gemma3ForCausalLM") if name == "Gemma3" else (f"{name}Config", f"{name}ForCausalLM")
    if name == "GPT2":
        words = ("GPT2Config", "GPT2LMHeadModel")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        special = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
        model = getattr(transformers, words[1])(getattr(transformers, words[0])(**settings, **special))
    return LanguageModel(name, "0", model.eval(), tiny.load().tokenizer)


@pytest.mark.parametrize("name", OTHERS)
def test_other_architectures_splice_exactly_too(name: str) -> None:
    lm = other(name)
    ids = torch.randint(1, 200, (1, 15), generator=torch.Generator().manual_seed(2))
    for hook in (Hook(0), Hook(1), Hook(2), Hook(1, "mlp_out"), Hook(0, "mlp_out")):
        if hook.site == "mlp_out" and name == "GPTNeo":
            continue
        x = lm.read(ids, [hook])[hook]
        start = lm.read(ids, [Hook(max(hook.layer - 1, 0))])[Hook(max(hook.layer - 1, 0))]
        lm.verify_tail(ids, hook, start, x)
        tail = lm.logits(lm.tail(ids, hook, start, 1.5 * x)[0])
        assert torch.allclose(tail, full_splice(lm, ids, hook, 1.5 * x)[0].float(), atol=1e-4), hook


def test_a_model_whose_tail_disagrees_is_refused(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = torch.ones(1, 6, dtype=torch.long)
    x = lm.read(ids, [Hook(1)])[Hook(1)]
    lm.verify_tail(ids, Hook(1), x, x)
    monkeypatch.setattr(LanguageModel, "logits", lambda self, final: self.model.get_output_embeddings()(final).float() * 2)
    with pytest.raises(UnavailableError, match="does not give its own predictions"):
        lm.verify_tail(ids, Hook(1), x, x)


def test_attention_out_of_the_first_block(lm: LanguageModel) -> None:
    ids = torch.randint(1, 200, (1, 9), generator=torch.Generator().manual_seed(2))
    x = lm.read(ids, [Hook(0, "attn_out")])[Hook(0, "attn_out")]
    assert torch.allclose(
        lm.logits(lm.tail(ids, Hook(0, "attn_out"), x, 2 * x)), full_splice(lm, ids, Hook(0, "attn_out"), 2 * x), atol=1e-4
    )
    with pytest.raises(UsageError):
        lm.check(Hook(-1))


def test_harvest_does_not_depend_on_batch_or_memory(lm: LanguageModel, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = ragged(lm, (30, 5, 12, 12, 31, 2, 40), seed=4)
    whole = Harvest(lm, Hook(1), Store(tmp_path / "a")).tokens(rows)
    calls = {"n": 0}
    real = LanguageModel.read

    def forgetful(self: LanguageModel, ids: torch.Tensor, hooks):
        calls["n"] += 1
        if ids.shape[0] > 1 and calls["n"] < 6:
            raise MemoryError
        return real(self, ids, hooks)

    monkeypatch.setattr(LanguageModel, "read", forgetful)
    halved = Harvest(lm, Hook(1), Store(tmp_path / "b")).tokens(rows)
    assert calls["n"] > 2
    assert np.allclose(whole, halved, atol=1e-6)


def test_a_row_that_never_fits_is_a_resource_error(lm: LanguageModel, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(LanguageModel, "read", never)
    with pytest.raises(ResourceError):
        Harvest(lm, Hook(1), Store(tmp_path)).tokens(ragged(lm, (4,)))


def test_harvest_is_stored_and_resumed_by_shards(lm: LanguageModel, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.lm.harvest.SHARD_TOKENS", 40)
    rows, store = ragged(lm, (30, 30, 30, 12)), Store(tmp_path)
    first = next(iter(Harvest(lm, Hook(1), store).shards(rows)))
    assert 0 < Harvest(lm, Hook(1), store).cached(rows) < 1
    assert len(first[1]) == rows.lengths[first[0]].sum()
    everything = Harvest(lm, Hook(1), store).tokens(rows)
    monkeypatch.setattr(LanguageModel, "read", None)  # nothing is computed again
    assert np.array_equal(Harvest(lm, Hook(1), store).tokens(rows), everything)


def test_last_token_equals_all_tokens(lm: LanguageModel, tmp_path) -> None:
    rows = ragged(lm, (7, 3, 9))
    harvest = Harvest(lm, Hook(1), Store(tmp_path))
    assert np.allclose(harvest.last(rows, rows.offsets[1:] - 1), harvest.tokens(rows)[rows.offsets[1:] - 1], atol=1e-6)


def test_unknown_models_and_layers_are_typed_errors(lm: LanguageModel) -> None:
    with pytest.raises(UsageError):
        open_lm("nonsense")
    with pytest.raises(UsageError):
        lm.check(Hook(3))
    with pytest.raises(UnavailableError):
        hf.load("/nowhere/at/all")


def test_a_saved_folder_opens_by_path(lm: LanguageModel, tmp_path) -> None:
    lm.model.save_pretrained(tmp_path)
    lm.tokenizer.save_pretrained(tmp_path)
    again = open_lm(str(tmp_path))
    ids = torch.ones(1, 5, dtype=torch.long)
    assert torch.equal(lm.final(ids), again.final(ids))
    assert len(again.revision) == 64


def test_bfloat16_runs_close_to_float32(lm: LanguageModel) -> None:
    low = tiny.load(dtype="bfloat16")
    ids = torch.randint(1, 200, (1, 10), generator=torch.Generator().manual_seed(5))
    a, b = lm.read(ids, [Hook(1)])[Hook(1)], low.read(ids, [Hook(1)])[Hook(1)].float()
    assert float((a - b).norm() / a.norm()) < 0.02


@pytest.fixture(scope="module")
def smollm() -> LanguageModel:
    return embedded.load()


@pytest.mark.model
def test_embedded_model_predicts_english(smollm: LanguageModel) -> None:
    text = "The capital of France is Paris. The capital of Germany is Berlin. The capital of Italy is"
    ids = torch.tensor([smollm.tokenizer(text)["input_ids"]])
    best = int(smollm.logits(smollm.final(ids)[0, -1:]).argmax())
    assert smollm.tokenizer.decode([best]).strip() == "Rome"
    assert (
        smollm.tokenizer("a 123")["input_ids"] == smollm.tokenizer("a 1")["input_ids"] + smollm.tokenizer("23")["input_ids"]
    )  # digits split


@pytest.mark.model
def test_embedded_tail_equals_full_forward(smollm: LanguageModel) -> None:
    ids = torch.tensor([smollm.tokenizer("Sparse autoencoders take activations apart into features. " * 3)["input_ids"]])
    hook = Hook(7)
    x = smollm.read(ids, [hook])[hook]
    new = x + 0.1 * x.std() * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    new[:, 0] = x[:, 0]
    tail = smollm.logits(smollm.tail(ids, hook, x, new)[0])
    full = full_splice(smollm, ids, hook, new)[0]
    target = ids[0, 1:]
    a, b = (token_losses(full[:-1], t[:-1], target) for t in (tail, full))
    assert all(torch.allclose(a[k], b[k], atol=1e-4) for k in a)


@pytest.mark.model
def test_position_zero_is_massive_and_masked(smollm: LanguageModel, tmp_path) -> None:
    store = Store(tmp_path)
    ctx = context_for(smollm, Hook(7), corpus(400), store)
    text = ctx.text(4_000)
    first = text.rows.offsets[:-1]
    norms = np.linalg.norm(text.x, axis=1)
    assert norms[first].mean() > 5 * np.median(norms)
    assert not text.keep[first].any()
    kept = text.kept - text.kept.mean(0)
    position = (np.arange(len(text.keep)) - np.repeat(first, text.rows.lengths))[text.keep]
    share = np.bincount(position, np.square(kept).sum(1)) / np.square(kept).sum()
    assert share.max() < 0.1  # no single position holds the variance once the mask is on
    assert keep_mask(text.rows, text.x, norm_cut(smollm, Hook(7), ctx.corpus, store)).sum() == text.keep.sum()
