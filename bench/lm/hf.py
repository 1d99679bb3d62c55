"""A causal language model from transformers, with our own hooks: read a place early, or run only the tail.

Rows are padded on the right and no attention mask is passed: attention is causal, so a real token never sees
a pad, and padded and unpadded results are equal.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench.errors import UnavailableError, UsageError
from bench.hub import model_commit, translated
from bench.lm.hooks import Hook
from bench.store import array_sha256, digest

_ATTENTION = ("self_attn", "attn", "attention", "self_attention")
_AGREES = {torch.float32: 1e-3, torch.bfloat16: 0.1}  # relative difference that rounding explains
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
        lead = self.lead()
        width = context - len(lead)
        return [lead + ids[i : i + width] for i in range(0, len(ids), width)]

    def tail_row(self, text: str, context: int) -> list[int]:
        """Token ids of the *last* `context` tokens of a text (BOS kept in front if the tokenizer adds one)."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        lead = self.lead()
        return lead + ids[-(context - len(lead)) :]

    def lead(self) -> list[int]:
        """BOS, where the tokenizer adds one."""
        ids: list[int] = self.tokenizer("", verbose=False)["input_ids"]
        return ids[:1] if ids and ids[0] == self.tokenizer.bos_token_id else []

    def module(self, hook: Hook) -> nn.Module:
        """The module whose output is the hook's activation."""
        self.check(hook)
        block: Any = self.blocks[hook.layer]
        if hook.site == "resid_post":
            return block
        sandwich = hasattr(block, "pre_feedforward_layernorm")  # Gemma 2 and 3 normalise what a sub-module adds
        if sandwich:
            return block.post_feedforward_layernorm if hook.site == "mlp_out" else block.post_attention_layernorm
        for name in ("mlp",) if hook.site == "mlp_out" else _ATTENTION:
            if hasattr(block, name):
                return getattr(block, name)
        raise UsageError(f"{self.name} has no module for {hook}", "choose a resid_post hook")

    def check(self, hook: Hook) -> None:
        """Raise UsageError unless the model has this layer."""
        if not 0 <= hook.layer < self.n_layers:
            raise UsageError(f"{self.name} has {self.n_layers} layers, no {hook}", f"choose a layer from 0 to {self.n_layers - 1}")

    @torch.no_grad()
    def read(self, ids: Tensor, hooks: Sequence[Hook], past: Any = None) -> dict[Hook, Tensor]:
        """Activations at some hooks; blocks after the last of them do not run.

        Args:
            ids: [batch, length] token ids, padded on the right.
            hooks: Places to read.
            past: transformers cache of the keys and values of earlier tokens; those of `ids` are added to it.

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
            earlier = {} if past is None else {"past_key_values": past}
            self.model.base_model(input_ids=ids.to(self.device), use_cache=past is not None, **earlier)
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
        if not blocks:  # a sub-module of block 0: everything runs
            yield
            return
        wraps = self._block_returns_tuple
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
        config = self.model.config.get_text_config()
        scale = (getattr(config, "logit_scale", None) or 1) / (getattr(config, "logits_scaling", None) or 1)
        out = out if scale == 1 else out * scale
        cap = getattr(config, "final_logit_softcapping", None)
        return torch.tanh(out / cap) * cap if cap else out

    @torch.no_grad()
    def verify_tail(self, ids: Tensor, hook: Hook, start: Tensor, x: Tensor) -> None:
        """Raise UnavailableError unless splicing in the activation itself gives the model's own predictions.

        Architectures differ in ways no configuration tells; a wrong loss must not pass in silence.
        """
        own = self.model(input_ids=ids.to(self.device), use_cache=False).logits[0].float()
        ours = self.logits(self.tail(ids, hook, start, x)[0])
        if not float((own - ours).norm()) <= _AGREES.get(self.model.dtype, 0.1) * float(own.norm()):
            raise UnavailableError(
                f"running {self.name} from {hook} on does not give its own predictions",
                "losses cannot be measured on this architecture yet",
            )

    @cached_property
    def _block_returns_tuple(self) -> bool:
        """Whether blocks hand on tuples: looked at once, because annotations do not always tell."""
        seen: list[bool] = []

        def look(_m: nn.Module, _i: object, out: Any) -> None:
            seen.append(isinstance(out, tuple))
            raise _Stop

        handle = self.blocks[0].register_forward_hook(look)
        try:
            self.model.base_model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=self.device), use_cache=False)
        except _Stop:
            pass
        finally:
            handle.remove()
        return seen[0]


def _tensor(out: Any) -> Tensor:
    return out[0] if isinstance(out, tuple) else out


def _passing(entry: Tensor | None, wraps: bool) -> Callable[..., Any]:
    def forward(hidden_states: Tensor, *_: object, **__: object) -> Any:
        out = hidden_states if entry is None else entry.to(hidden_states)
        return (out,) if wraps else out

    return forward


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

    hub = reference.startswith("hf:")
    name, _, revision = reference.removeprefix("hf:").partition("@") if hub else (reference, "", "")
    where = name if hub else str(Path(name).expanduser().resolve())
    if not hub and not Path(where).is_dir():
        raise UnavailableError(f"there is no folder {reference}", "give the folder of a model, or hf:NAME[@revision]")
    try:
        with translated(reference, "opened"):
            revision = model_commit(name, revision) if hub else ""
            tokenizer = AutoTokenizer.from_pretrained(where, revision=revision or None, trust_remote_code=False)
            model: Any = AutoModelForCausalLM.from_pretrained(
                where, revision=revision or None, dtype=DTYPES[dtype], trust_remote_code=False
            )
    except (OSError, ValueError, ImportError) as e:
        raise UnavailableError(
            f"{reference} cannot be opened: {(str(e).splitlines() or [type(e).__name__])[0]}",
            "check the name, the revision and the network, or use embedded:smollm2-135m-q4_1",
        ) from e
    revision = revision or weights_sha256(model)
    return LanguageModel(f"hf:{name}" if hub else where, revision, model.eval().to(device), tokenizer, device)


def weights_sha256(model: nn.Module) -> str:
    """Identity of a model's weights, for models that have no commit or file hash."""
    return array_sha256(*(p.detach().float().cpu().numpy() for _, p in sorted(model.named_parameters())))
