"""A causal language model from transformers, with our own hooks: read a place early, or run only the tail.

Rows are padded on the right and no attention mask is passed: attention is causal, so a real token never sees
a pad, and padded and unpadded results are equal.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench.errors import UnavailableError, UsageError
from bench.lm.hooks import Hook
from bench.store import array_sha256, digest

_ATTENTION = ("self_attn", "attn", "attention")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class _Stop(Exception):  # noqa: N818 — control flow, not an error: ends a forward pass once every hook has been read
    pass


@dataclass(frozen=True)
class LanguageModel:
    """A causal LM, its tokenizer and where its blocks are.

    Args:
        name: Reference it was opened by, e.g. `embedded:smollm2-135m-q4_1` or `hf:gpt2`.
        revision: What pins the weights: commit or file hash.
        model: transformers `...ForCausalLM`, in eval mode.
        tokenizer: Its fast tokenizer.
        device: Where it runs.
    """

    name: str
    revision: str
    model: Any
    tokenizer: Any
    device: str = "cpu"

    @property
    def d_model(self) -> int:
        return int(self.model.config.get_text_config().hidden_size)

    @property
    def n_layers(self) -> int:
        return int(self.model.config.get_text_config().num_hidden_layers)

    @property
    def dtype(self) -> str:
        return str(next(self.model.parameters()).dtype).removeprefix("torch.")

    @property
    def blocks(self) -> nn.ModuleList:
        """The list of transformer blocks, found by its length."""
        for module in self.model.modules():
            if isinstance(module, nn.ModuleList) and len(module) == self.n_layers:
                return module
        raise UnavailableError(
            f"no list of {self.n_layers} blocks in {type(self.model).__name__}", "this architecture is not supported yet"
        )

    @property
    def tokenizer_sha256(self) -> str:
        """Identity of the tokenizer's behaviour."""
        return digest([self.tokenizer.backend_tokenizer.to_str(), sorted(self.special_ids)])

    @property
    def special_ids(self) -> set[int]:
        """Ids of BOS, EOS, pad and the like."""
        return {int(i) for i in self.tokenizer.all_special_ids}

    def token_rows(self, text: str, context: int) -> list[list[int]]:
        """Token ids of a text in rows of at most `context`, each starting with BOS if the tokenizer adds one."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        lead = self._lead()
        width = context - len(lead)
        return [lead + ids[i : i + width] for i in range(0, len(ids), width)]

    def tail_row(self, text: str, context: int) -> list[int]:
        """Token ids of the *last* `context` tokens of a text (BOS kept in front if the tokenizer adds one)."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        lead = self._lead()
        return lead + ids[-(context - len(lead)) :]

    def _lead(self) -> list[int]:
        ids: list[int] = self.tokenizer("", verbose=False)["input_ids"]
        return ids[:1] if ids and ids[0] == self.tokenizer.bos_token_id else []

    def module(self, hook: Hook) -> nn.Module:
        """The module whose output is the hook's activation."""
        self.check(hook)
        block: Any = self.blocks[hook.layer]
        if hook.site == "resid_post":
            return block
        sandwich = hasattr(block, "pre_feedforward_layernorm")  # Gemma 2 and 3 normalise what a sub-module adds
        if hook.site == "mlp_out":
            return block.post_feedforward_layernorm if sandwich else block.mlp
        if sandwich:
            return block.post_attention_layernorm
        name = next(n for n in _ATTENTION if hasattr(block, n))
        return getattr(block, name)

    def check(self, hook: Hook) -> None:
        """Raise UsageError unless the model has this layer."""
        if hook.layer >= self.n_layers:
            raise UsageError(f"{self.name} has {self.n_layers} layers, no {hook}", f"choose a layer from 0 to {self.n_layers - 1}")

    @torch.no_grad()
    def read(self, ids: Tensor, hooks: Sequence[Hook]) -> dict[Hook, Tensor]:
        """Activations at some hooks; blocks after the last of them do not run.

        Args:
            ids: [batch, length] token ids, padded on the right.
            hooks: Places to read.

        Returns:
            For each hook [batch, length, d].
        """
        seen: dict[Hook, Tensor] = {}

        def reader(hook: Hook) -> Callable[..., None]:
            def read(_m: nn.Module, _i: object, out: Any) -> None:
                seen[hook] = _tensor(out)
                if len(seen) == len(set(hooks)):
                    raise _Stop

            return read

        handles = [self.module(h).register_forward_hook(reader(h)) for h in set(hooks)]
        try:
            self.model.base_model(input_ids=ids.to(self.device), use_cache=False)
        except _Stop:
            pass
        finally:
            for handle in handles:
                handle.remove()
        return seen

    @torch.no_grad()
    def final(self, ids: Tensor) -> Tensor:
        """[batch, length, d] input of the unembedding, from a whole forward pass."""
        return self.model.base_model(input_ids=ids.to(self.device), use_cache=False).last_hidden_state

    @torch.no_grad()
    def tail(self, ids: Tensor, hook: Hook, start: Tensor, replacement: Tensor) -> Tensor:
        """Input of the unembedding when the hook's activation is replaced; only the blocks after it run.

        Args:
            ids: [batch, length] token ids (their embeddings are looked up and then overwritten).
            hook: Place of the replacement.
            start: [batch, length, d] residual stream before block `hook.layer`; not read for `resid_post`.
            replacement: [batch, length, d] what the hook's output becomes.
        """
        skip = hook.layer + 1 if hook.site == "resid_post" else hook.layer
        entry = replacement if hook.site == "resid_post" else start
        with self._entering(skip, entry), self._replacing(hook, replacement):
            return self.final(ids)

    @contextmanager
    def _entering(self, skip: int, entry: Tensor) -> Generator[None]:
        """Blocks before `skip` pass their input on; the last of them hands over `entry`."""
        blocks = list(self.blocks)[:skip]
        if not blocks:
            raise UsageError("a sub-module of block 0 cannot be spliced", "choose blocks.0.hook_resid_post or a later layer")
        wraps = _returns_tuple(self.model)
        try:
            for block in blocks[:-1]:
                block.forward = _passing(None, wraps)
            blocks[-1].forward = _passing(entry, wraps)
            yield
        finally:
            for block in blocks:
                block.__dict__.pop("forward", None)

    @contextmanager
    def _replacing(self, hook: Hook, replacement: Tensor) -> Generator[None]:
        if hook.site == "resid_post":
            yield
            return

        def swap(_m: nn.Module, _i: object, out: Any) -> Any:
            return (replacement, *out[1:]) if isinstance(out, tuple) else replacement

        handle = self.module(hook).register_forward_hook(swap)
        try:
            yield
        finally:
            handle.remove()

    @torch.no_grad()
    def logits(self, final: Tensor) -> Tensor:
        """[n, vocabulary] float32 logits of unembedding inputs [n, d]."""
        head = self.model.get_output_embeddings()
        out = head(final.to(self.device, head.weight.dtype)).float()
        cap = getattr(self.model.config.get_text_config(), "final_logit_softcapping", None)
        return torch.tanh(out / cap) * cap if cap else out


def _tensor(out: Any) -> Tensor:
    return out[0] if isinstance(out, tuple) else out


def _passing(entry: Tensor | None, wraps: bool) -> Callable[..., Any]:
    def forward(hidden_states: Tensor, *_: object, **__: object) -> Any:
        out = hidden_states if entry is None else entry.to(hidden_states)
        return (out,) if wraps else out

    return forward


def _returns_tuple(model: Any) -> bool:
    """Whether this architecture's blocks return tuples: asked of the model's own output annotation once."""
    block = next(m for m in model.modules() if isinstance(m, nn.ModuleList))[0]
    text = str(type(block).forward.__annotations__.get("return", ""))
    return text.lower().startswith(("tuple", "typing.tuple"))


def load(reference: str, device: str = "cpu", dtype: str = "float32") -> LanguageModel:
    """Open a model from the hub or a local folder.

    Args:
        reference: `hf:NAME[@revision]` or a folder.
        device: Torch device.
        dtype: `float32` or `bfloat16`.

    Raises:
        UnavailableError: The model cannot be found, reached or read.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    name, _, revision = reference.removeprefix("hf:").partition("@")
    where = str(Path(name).expanduser()) if not reference.startswith("hf:") else name
    try:
        tokenizer = AutoTokenizer.from_pretrained(where, revision=revision or None)
        model: Any = AutoModelForCausalLM.from_pretrained(where, revision=revision or None, dtype=DTYPES[dtype])
    except (OSError, ValueError, ImportError) as e:
        raise UnavailableError(
            f"{reference} cannot be opened: {str(e).splitlines()[0]}",
            "check the name, the revision and the network, or use embedded:smollm2-135m-q4_1",
        ) from e
    if not reference.startswith("hf:"):
        revision = weights_sha256(model)
    else:
        revision = str(getattr(model.config, "_commit_hash", None) or revision or "main")
    return LanguageModel(reference.partition("@")[0], revision, model.eval().to(device), tokenizer, device)


def weights_sha256(model: nn.Module) -> str:
    """Identity of a model's weights, for models that have no commit or file hash."""
    return array_sha256(*(p.detach().float().cpu().numpy() for _, p in sorted(model.named_parameters())))
