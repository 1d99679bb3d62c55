"""The only training loop. Resumable, with the same data order for every method that is given the same seed."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from baselines import parts
from baselines.activations import TrainingSet
from baselines.parts import State, Trainer, Weights, describe, mse
from bench import progress
from bench.errors import UsageError
from bench.rng import torch_rng
from bench.sae.checkpoint import rounded, save
from bench.sae.dense import DenseSAE
from bench.store import digest

RESUME, LOG = "resume.safetensors", "train.jsonl"
SAVE_EVERY_S = 60.0


@dataclass(frozen=True)
class FitConfig:
    """How long and how fast; the recipe every method shares.

    Args:
        steps: T.
        batch: Tokens per step B.
        lr: Peak learning rate of Adam.
        clip: Largest gradient norm.
        seed: Root of initialisation, data order and the method's own draws.
        log_every: Steps between log lines.
        checkpoint_at: Fractions of the run at which a stage is exported; the end always is.
        dtype: Type of the saved weight matrices.
    """

    steps: int
    batch: int = 512
    lr: float = 1e-3
    clip: float = 1.0
    seed: int = 0
    log_every: int = 100
    checkpoint_at: tuple[float, ...] = ()
    dtype: str = "float16"

    @property
    def warmup(self) -> int:
        """min(1,000, 5 % of T) steps."""
        return max(1, min(1000, self.steps // 20))

    def rate(self, step: int) -> float:
        """Linear warm-up, then constant, then linear decay to 0 over the last 20 %."""
        left = (self.steps - step) / (0.2 * self.steps)
        return self.lr * min(1.0, (step + 1) / self.warmup, left)


@dataclass(frozen=True)
class Fitted:
    """A finished run: the exported SAE and its last log line."""

    sae: DenseSAE
    log: Mapping[str, Any]


def fit(method: Trainer, data: TrainingSet, config: FitConfig, out: Path, site: Mapping[str, str]) -> Fitted:
    """Train a method, keep stages, and write a native checkpoint with the facts of the run.

    Args:
        method: What to train.
        data: Activations.
        config: Recipe.
        out: Folder for `sae.safetensors`, `sae.json`, `train.jsonl`, stages, and the resumable state.
        site: `lm`, `revision`, `hook` of the activations.

    Raises:
        UsageError: The folder holds another finished run, or the data are too few for one batch.
        VerificationError: A loss stopped being finite.
    """
    if data.n < config.batch:
        raise UsageError(f"{data.n} kept tokens are fewer than one batch of {config.batch}", "use more --tokens or a smaller --batch")
    mean, variance = data.moments
    scale = 1 / math.sqrt(variance)
    run = _Run(method, data, config, out, dict(site), scale)
    out.mkdir(parents=True, exist_ok=True)
    log: dict[str, Any] = {}
    w, opt, state = run.start(mean * scale)
    if getattr(method, "trains", True):
        state, log = run.loop(w, opt, state)
    sae = run.export(w, out, state, log)
    (out / RESUME).unlink(missing_ok=True)
    return Fitted(sae, log)


@dataclass(frozen=True)
class _Run:
    method: Trainer
    data: TrainingSet
    config: FitConfig
    out: Path
    site: dict[str, str]
    scale: float

    @property
    def identity(self) -> str:
        c = replace(self.config, log_every=0, checkpoint_at=())
        return digest([describe(self.method), repr(c), self.data.sha256, self.data.seed])

    def start(self, mean: Tensor) -> tuple[Weights, torch.optim.Adam, State]:
        """Fresh weights, or those of an interrupted run of exactly this configuration."""
        w = self.method.init(mean, torch_rng(self.config.seed, "init"))
        for t in w.named().values():
            t.requires_grad_(True)
        opt = torch.optim.Adam(list(w.named().values()), lr=self.config.lr, fused=True)
        window = max(200_000, min(10_000_000, self.config.steps * self.config.batch // 50))
        state = State(0, self.config.steps, torch.zeros(self.method.d_sae, dtype=torch.long), window)
        if (self.out / RESUME).exists():
            state = self._recall(w, opt, state)
        return w, opt, state

    def loop(self, w: Weights, opt: torch.optim.Adam, state: State) -> tuple[State, dict[str, Any]]:
        """All steps that are left; stages are exported on the way, and the state is remembered every minute."""
        stages = {max(1, round(f * self.config.steps)) for f in self.config.checkpoint_at if f < 1}
        log: dict[str, Any] = {}
        saved = time.monotonic()
        try:
            with progress.track(f"training {self.out.name}", self.config.steps, "steps") as advance:
                advance(state.step)
                while state.step < self.config.steps:
                    want_log = state.step % self.config.log_every == 0 or state.step == self.config.steps - 1
                    state, log = self.step(w, opt, state, want_log)
                    if state.step in stages:
                        self.export(w, self.out / f"stage-{state.step}", state, log)
                    if time.monotonic() - saved > SAVE_EVERY_S:
                        self.remember(w, opt, state)
                        saved = time.monotonic()
                    advance(1)
        except KeyboardInterrupt:  # comes between two steps, so weights and state agree
            self.remember(w, opt, state)
            raise
        return state, log

    def step(self, w: Weights, opt: torch.optim.Adam, state: State, want_log: bool) -> tuple[State, dict[str, Any]]:
        x = self.data.batch(state.step, self.config.batch) * self.scale
        rng, rate = torch_rng(self.config.seed, "step", state.step), self.config.rate(state.step)
        state, terms, forward = parts.descend(self.method, w, opt, x, state, rng, rate, self.config.clip)
        return state, self._log(terms, x, forward.xhat, forward.codes.values, state) if want_log else {}

    def _log(self, terms: dict[str, Tensor], x: Tensor, xhat: Tensor, values: Tensor, state: State) -> dict[str, Any]:
        fvu = float(mse(x, xhat.detach()) * len(x) / (x - x.mean(0)).square().sum())
        line = {
            "step": state.step,
            "lr": self.config.rate(state.step - 1),
            **{n: round(float(t.detach()), 6) for n, t in terms.items()},
            "ev": round(1 - fvu, 5),
            "l0": round(len(values) / len(x), 3),
            "dead": round(len(state.dead) / self.method.d_sae, 5),
        }
        with (self.out / LOG).open("a") as f:
            f.write(json.dumps(line) + "\n")
        if state.step % (10 * self.config.log_every) == 1:
            progress.note("training", **line)
        return line

    def export(self, w: Weights, folder: Path, state: State, log: Mapping[str, Any]) -> DenseSAE:
        """Write the inference form; the threshold is calibrated on the weights as rounded for the file."""
        dtype = getattr(torch, self.config.dtype)
        kept = replace(w.map(Tensor.detach), W_enc=w.W_enc.detach().to(dtype).float(), W_dec=w.W_dec.detach().to(dtype).float())
        sae = rounded(self.method.export(kept, self.scale, self.data.calibration() * self.scale), dtype)
        name = str(describe(self.method)["method"])
        training = {
            **{k: v for k, v in vars(self.config).items() if k != "log_every"},
            "steps_done": state.step,
            "tokens_distinct": self.data.n,
            "tokens_seen": state.step * self.config.batch,
            "data_sha256": self.data.sha256,
            "tokens_dropped_by_mask": round(self.data.dropped, 5),
            "input_scale": self.scale,
            "last_log": dict(log),
        }
        save(sae, folder, {"name": name, "method": describe(self.method), **self.site, "training": training}, dtype)
        return sae

    def remember(self, w: Weights, opt: torch.optim.Adam, state: State) -> None:
        """Write everything that `start` needs to go on, atomically."""
        tensors = {**{n: t.detach() for n, t in w.named().items()}, "silent": state.silent}
        for n, t in w.named().items():
            for part, v in opt.state[t].items():
                tensors[f"{n}.{part}"] = v.clone()
        work = self.out / f"{RESUME}.tmp"
        memory = json.dumps({"step": state.step, "floor": state.floor, "extra": dict(state.extra)})
        save_file(tensors, work, metadata={"identity": self.identity, "state": memory})
        work.replace(self.out / RESUME)

    def _recall(self, w: Weights, opt: torch.optim.Adam, state: State) -> State:
        from safetensors import safe_open

        with safe_open(self.out / RESUME, "pt") as f:
            meta = f.metadata()
        if meta["identity"] != self.identity:
            raise UsageError(f"{self.out} holds an unfinished run with other settings", "choose another --out, or remove the folder")
        tensors = load_file(self.out / RESUME)
        with torch.no_grad():
            for n, t in w.named().items():
                t.copy_(tensors[n])
                opt.state[t] = {p: tensors[f"{n}.{p}"] for p in ("step", "exp_avg", "exp_avg_sq")}
        remembered = json.loads(meta["state"])
        progress.note("going on with an interrupted run", step=remembered["step"])
        return replace(state, silent=tensors["silent"], **remembered)
