"""What one of several processes does in tests/test_shards.py: trains some methods on a planted world.

torchrun … -m tests.shards_worker FOLDER PARTS_OF_THE_BATCH STEPS METHOD … [--save]
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch

from baselines.activations import TrainingSet
from baselines.batchtopk import BatchTopK
from baselines.c2r import C2R
from baselines.frozen_decoder import FrozenDecoder
from baselines.frozen_encoder import FrozenEncoder
from baselines.gated import Gated
from baselines.jumprelu import JumpReLU
from baselines.matryoshka import Matryoshka
from baselines.mp import MP
from baselines.ortsae import OrtSAE
from baselines.relu import ReLU
from baselines.shards import joined, leave
from baselines.soft_frozen_decoder import SoftFrozenDecoder
from baselines.topk import TopK
from baselines.trainer import FitConfig, Job, fit_all
from bench.worlds.planted import World, WorldSpec
from tests.worlds import training_set

SITE = {"lm": "world:planted", "revision": "", "hook": "blocks.0.hook_resid_post"}
M, K = 199, 2  # a prime: parts are of different sizes; more latents than a batch uses, so that some are dead
METHODS = {
    "batchtopk": BatchTopK(M, K),
    "topk": TopK(M, K),
    "relu": ReLU(M, K),
    "jumprelu": JumpReLU(M, K, bandwidth=0.1),
    "gated": Gated(M, K),
    "matryoshka": Matryoshka(M, K),
    "random_prefixes": Matryoshka(M, K, prefixes="random"),
    "ortsae": OrtSAE(base=BatchTopK(M, K), chunk_size=40, every=2),
    "c2r": C2R(base=BatchTopK(M, K), chunk_size=40, every=2),
    "soft_frozen_decoder": SoftFrozenDecoder(base=BatchTopK(M, K)),
    "frozen_decoder": FrozenDecoder(base=BatchTopK(M, K)),
    "frozen_encoder": FrozenEncoder(base=TopK(M, K)),
}
UNDIVIDED = {"mp": MP(M, K), "c2r over mp": C2R(base=MP(M, K), every=2)}


def source() -> TrainingSet:
    """The same tokens for everybody."""
    world = World(WorldSpec(64, 24, roots=16, branching=3, depth=1, noise=0.05))
    return training_set(torch.from_numpy(world.sample(4096, np.random.default_rng(0))[0]))


def config(steps: int, save_every: float = 600.0) -> FitConfig:
    """A latent that did not fire in one batch is dead, so that the auxiliary loss is at work."""
    return FitConfig(steps=steps, batch=128, lr=3e-3, warmup=4, dead_after=100, log_every=5, save_every=save_every, dtype="float32")


def main(folder: Path, parts: int, steps: int, names: list[str]) -> None:
    shards, known = joined(parts), METHODS | UNDIVIDED
    saving = 0.0 if "--save" in names else 600.0
    fit_all([Job(known[n], config(steps, saving), folder / n) for n in names if n in known], source(), SITE, shards=shards)
    leave(shards)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
