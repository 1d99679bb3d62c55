"""Training steps of other libraries, as their own trainers do them: loss, backward, clipping, optimiser, constraints."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version

import torch
from torch import Tensor

Step = Callable[[], object]
SHARES = (1 / 32, 2 / 32, 4 / 32, 8 / 32, 17 / 32)  # of Matryoshka's groups: prefixes of 1, 3, 7, 15 and 32 thirty-seconds
LONG = 100_000  # steps of the run that the peers are told of
PACKAGES = ("dictionary-learning", "sae-lens", "eai-sparsify")


@dataclass(frozen=True)
class Size:
    """m latents, d inputs, B tokens, k codes."""

    m: int
    d: int
    batch: int
    k: int

    def batches(self) -> Iterator[Tensor]:
        """Four batches of N(0, 1) activations, again and again."""
        x = torch.randn(4, self.batch, self.d, generator=torch.Generator().manual_seed(0))
        return itertools.cycle(x)


def peers(s: Size) -> dict[str, Callable[[], Step]]:
    """Makers of the steps of every peer that is installed, by name."""
    found: dict[str, Callable[[], Step]] = {}
    for makers in (_dictionary_learning, _saelens, _sparsify):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found |= makers(s)
        except ImportError as e:
            print(f"left out: {makers.__name__.strip('_')} ({e})")
    return found


def versions() -> str:
    return ", ".join(f"{p} {version(p)}" for p in PACKAGES)


def _dictionary_learning(s: Size) -> dict[str, Callable[[], Step]]:
    from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer
    from dictionary_learning.trainers.jumprelu import JumpReluTrainer
    from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKTrainer
    from dictionary_learning.trainers.standard import StandardTrainer
    from dictionary_learning.trainers.top_k import TopKTrainer

    shared = {"activation_dim": s.d, "dict_size": s.m, "layer": 0, "lm_name": "", "steps": LONG, "device": "cpu", "warmup_steps": 10}

    def maker(kind: type, **options: object) -> Callable[[], Step]:
        def make() -> Step:
            trainer, x, numbers = kind(**shared, **options), s.batches(), itertools.count(1001)  # from 1,000 on it tracks its threshold
            return lambda: trainer.update(next(numbers), next(x))

        return make

    return {
        "dictionary_learning BatchTopK": maker(BatchTopKTrainer, k=s.k),
        "dictionary_learning TopK": maker(TopKTrainer, k=s.k),
        "dictionary_learning Matryoshka": maker(MatryoshkaBatchTopKTrainer, k=s.k, group_fractions=list(SHARES)),
        "dictionary_learning Standard": maker(StandardTrainer, l1_penalty=0.1, sparsity_warmup_steps=None, resample_steps=None),
        "dictionary_learning JumpReLU": maker(JumpReluTrainer, sparsity_warmup_steps=20),
    }


def _saelens(s: Size) -> dict[str, Callable[[], Step]]:
    from sae_lens import (
        BatchTopKTrainingSAE,
        BatchTopKTrainingSAEConfig,
        MatryoshkaBatchTopKTrainingSAE,
        MatryoshkaBatchTopKTrainingSAEConfig,
        StandardTrainingSAE,
        StandardTrainingSAEConfig,
        TopKTrainingSAE,
        TopKTrainingSAEConfig,
    )
    from sae_lens.config import LoggingConfig, SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    recipe = SAETrainerConfig(
        n_checkpoints=0,
        checkpoint_path=None,
        save_final_checkpoint=False,
        total_training_samples=s.batch * LONG,
        device="cpu",
        autocast=False,
        lr=3e-4,
        lr_end=3e-5,
        lr_scheduler_name="constant",
        lr_warm_up_steps=0,
        adam_beta1=0.9,
        adam_beta2=0.999,
        lr_decay_steps=0,
        n_restart_cycles=1,
        train_batch_size_samples=s.batch,
        dead_feature_window=1000,
        feature_sampling_window=2000,
        logger=LoggingConfig(log_to_wandb=False),
    )

    def maker(kind: type, config: type, **options: object) -> Callable[[], Step]:
        def make() -> Step:
            sae = kind(config(d_in=s.d, d_sae=s.m, device="cpu", dtype="float32", **options))
            trainer, x = SAETrainer(cfg=recipe, sae=sae, data_provider=iter(())), s.batches()

            def step() -> None:
                trainer.step(next(x))
                trainer.n_training_steps += 1

            return step

        return make

    widths = [round(sum(SHARES[: i + 1]) * s.m) for i in range(len(SHARES))]
    return {
        "SAELens BatchTopK": maker(BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig, k=s.k),
        "SAELens TopK": maker(TopKTrainingSAE, TopKTrainingSAEConfig, k=s.k),
        "SAELens Matryoshka": maker(MatryoshkaBatchTopKTrainingSAE, MatryoshkaBatchTopKTrainingSAEConfig, k=s.k, matryoshka_widths=widths),
        "SAELens Standard": maker(StandardTrainingSAE, StandardTrainingSAEConfig, l1_coefficient=1.0),
    }


def _sparsify(s: Size) -> dict[str, Callable[[], Step]]:
    from sparsify import SparseCoder, SparseCoderConfig

    def make() -> Step:
        sae, x = SparseCoder(s.d, SparseCoderConfig(num_latents=s.m, k=s.k)), s.batches()
        opt = torch.optim.Adam(sae.parameters(), lr=3e-4)

        def step() -> None:  # the order of its trainer's loop, which has no clipping
            sae.set_decoder_norm_to_unit_norm()
            out = sae(next(x), dead_mask=None)
            (out.fvu + out.auxk_loss / 32).backward()
            fired = torch.zeros(s.m, dtype=torch.bool)
            fired[out.latent_indices.flatten()] = True
            sae.remove_gradient_parallel_to_decoder_directions()
            opt.step()
            opt.zero_grad()

        return step

    return {"sparsify TopK": make}
