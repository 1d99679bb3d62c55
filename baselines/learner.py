"""One SAE in training: its steps, log lines, remembered state and exports. The loop around it is `baselines.trainer`'s."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from baselines import compiled, curves, parts
from baselines.activations import Source
from baselines.parts import Forward, State, Weights, describe
from baselines.recipe import Job
from baselines.resume import RESUME, cut_back, recall, remember
from baselines.shards import ALONE, Shards
from baselines.trackers import Tracker
from bench import progress
from bench.errors import UsageError, VerificationError
from bench.rng import torch_rng
from bench.sae.checkpoint import Form, rounded, save
from bench.store import digest


class DivergedError(VerificationError):
    """A loss stopped being finite; the last good state was exported."""

    code: ClassVar[str] = "diverged"
    exit_code: ClassVar[int] = 1


@dataclass(frozen=True)
class Fitted:
    """A finished run: the exported SAE and its last log line."""

    sae: Form
    log: Mapping[str, Any]


@dataclass(frozen=True)
class Now:
    """How far one SAE is.

    Args:
        w: Weights; steps change them in place.
        opt: Their optimiser; likewise.
        state: What the method remembers.
        good: Copy of weights that were finite at a log line, and the state then.
        seconds: Wall time of its steps and of reading their batches.
        log: Last log line.
    """

    w: Weights
    opt: torch.optim.Optimizer
    state: State
    good: tuple[Weights, State]
    seconds: float = 0.0
    log: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Learner:
    """What stays the same while one SAE is trained.

    Args:
        job: Method, recipe and folder.
        data: Activations.
        site: `lm`, `revision`, `hook` of the activations.
        scale: Input scale.
        tracker: Gets the log lines too.
        shards: This process among those that train the SAE; the first of them writes files.
    """

    job: Job
    data: Source
    site: Mapping[str, str]
    scale: float
    tracker: Tracker | None = None
    shards: Shards = ALONE

    @property
    def identity(self) -> str:
        return digest([describe(self.job.method), self.job.config.identity, self.data.sha256, self.data.seed])

    def start(self, mean: Tensor) -> Now:
        """Fresh weights, or those of an interrupted run of exactly this configuration."""
        job, config = self.job, self.job.config
        interrupted = (job.out / RESUME).exists()
        if not self.all(interrupted) and not self.all(not interrupted):
            raise UsageError(f"not every process sees {job.out / RESUME}", "let all of them write to one file system")
        w = job.method.init(mean, torch_rng(config.seed, "init"))
        if not interrupted:
            w = parts.prepared(job.method, w, lambda: self.data.calibration() * self.scale, torch_rng(config.seed, "prepare"))
        latents = len(w.W_dec)
        w = w.map(lambda t: self.shards.mine(t).to(config.device), shared=lambda t: t.clone().to(config.device))
        learned = [t.requires_grad_(True) for t in w.named().values() if t.is_floating_point()]
        opt = torch.optim.Adam(learned, lr=config.lr, fused=True)
        silent = self.shards.mine(torch.zeros(latents, dtype=torch.long)).to(config.device)
        state, seconds = State(0, config.steps, silent, config.dead_after, shards=self.shards), 0.0
        if interrupted:
            state, seconds = recall(job.out, self.identity, w, opt, state)
            progress.note("going on with an interrupted run", sae=job.out.name, step=state.step)
        log = self.shards.one_first(lambda: cut_back(job.out / curves.LOG, state.step, self.shards.first))
        return Now(w, opt, state, (_copy(w), state), seconds, log)

    def step(self, now: Now, x: Tensor, waited: float) -> Now:
        """One step on a batch.

        Args:
            now: Where the SAE stands; its weights and optimiser are changed.
            x: [n, d] scaled inputs.
            waited: Seconds it took to read them.

        Raises:
            DivergedError: The loss is not finite; the last good state was exported.
        """
        begin, config = time.perf_counter(), self.job.config
        rng, rate = torch_rng(config.seed, "step", now.state.step), config.rate(now.state.step)
        try:
            state, terms, forward = parts.descend(self.job.method, now.w, now.opt, x, now.state, rng, rate, config.clip)
        except VerificationError as e:
            raise self.diverged(now, e.cause, poisoned=not self.all(bool(x.isfinite().all()))) from e
        now = replace(now, state=state, seconds=now.seconds + waited + time.perf_counter() - begin)
        if (state.step - 1) % config.log_every == 0 or state.step == config.steps:
            now = self._logged(now, terms, x, forward)
        if state.step in config.stages:
            if not self.all(_finite(now.w, config.dtype)):
                raise self.diverged(now, f"a weight is not finite in {config.dtype}", poisoned=False)
            self.export(now, (now.w, state), self.job.out / f"stage-{state.step}")
        return now

    def _logged(self, now: Now, terms: Mapping[str, Tensor], x: Tensor, forward: Forward) -> Now:
        config, state, before = self.job.config, now.state, now.log
        shards = self.shards
        left = shards.averaged((x - forward.xhat.detach()).square().sum())
        fvu = float(left / shards.averaged((x - shards.averaged(x.mean(0))).square().sum()))
        tokens, seconds = state.step * config.batch, round(now.seconds, 4)
        line = {
            "step": state.step,
            "tokens": tokens,
            "lr": config.rate(state.step - 1),
            **{n: round(float(t.detach()), 6) for n, t in terms.items()},
            "ev": round(1 - fvu, 5),
            "l0": round(forward.codes.l0, 3),
            "dead": round(shards.over_latents(len(state.dead)) / max(1.0, shards.over_latents(len(state.silent))), 5),
            "seconds": seconds,
            "tokens_per_s": round((tokens - before.get("tokens", 0)) / max(1e-9, seconds - before.get("seconds", 0.0)), 1),
        }
        if shards.first:
            self._tell(line)
        good = (_copy(now.w), state) if self.all(_finite(now.w, config.dtype)) else now.good
        return replace(now, log=line, good=good)

    def _tell(self, line: Mapping[str, Any]) -> None:
        with (self.job.out / curves.LOG).open("a") as f:
            f.write(json.dumps(line) + "\n")
        if self.tracker:
            self.tracker.log(line)
        if line["step"] % (10 * self.job.config.log_every) == 1:
            progress.note("training", sae=self.job.out.name, **line)

    def remember(self, now: Now) -> None:
        """Write everything that `start` needs to go on. What is not finite is nothing to go on from."""
        if self.all(_finite(now.w, "float32")):
            remember(self.job.out, self.identity, now.w, now.opt, now.state, now.seconds)

    def finish(self, now: Now) -> Fitted:
        """Export the end of the run.

        Raises:
            DivergedError: The last steps left weights that are not finite.
        """
        if not self.all(_finite(now.w, self.job.config.dtype)):
            raise self.diverged(now, f"a weight is not finite in {self.job.config.dtype}", poisoned=False)
        sae = self.export(now, (now.w, now.state), self.job.out)
        self._tidy()
        return Fitted(sae, now.log)

    def diverged(self, now: Now, cause: str, poisoned: bool) -> DivergedError:
        """Export the last good state and say so: the present one if the data are to blame, else that of the last log line."""
        out, at = self.job.out, now.state.step
        good = (now.w, now.state) if poisoned and self.all(_finite(now.w, self.job.config.dtype)) else now.good
        self.export(now, good, out, {"step": at, "cause": cause})
        self._tidy()
        remedy = "an activation is not finite: harvest again" if poisoned else "lower --lr"
        return DivergedError(f"training of {out.name} stopped at step {at}: {cause}; {out} holds step {good[1].step}", remedy)

    def all(self, good: bool) -> bool:
        """Whether all processes say yes."""
        return self.shards.total(float(not good)) == 0

    def _tidy(self) -> None:
        if not self.shards.first:
            return
        (self.job.out / RESUME).unlink(missing_ok=True)
        if self.job.trains:
            curves.update([self.job], self.job.out)

    def export(self, now: Now, at: tuple[Weights, State], folder: Path, stopped: Mapping[str, Any] | None = None) -> Form:
        """Write the inference form; thresholds are calibrated on the weights as rounded for the file.

        Args:
            now: For the facts.
            at: Weights and state to export.
            folder: Where.
            stopped: Step and cause of an early stop.
        """
        (w, state), config, method = at, self.job.config, self.job.method
        w = w.map(lambda t: self.shards.gathered(t.detach()).cpu(), shared=lambda t: t.detach().cpu())
        name = str(describe(method)["method"])
        dtype = getattr(torch, config.dtype)
        kept, sample = replace(w, W_enc=w.W_enc.to(dtype).float(), W_dec=w.W_dec.to(dtype).float()), self.data.calibration() * self.scale
        exported = method.export(kept, self.scale, sample[sample.isfinite().all(1)])
        if not isinstance(exported, Form):
            raise UsageError(
                f"{name} exports a {type(exported).__name__}, which has no file format", "let it export one of bench.sae's forms"
            )
        sae = rounded(exported, dtype)
        seen = state.step * config.batch
        training = {
            **{k: v for k, v in vars(config).items() if k not in ("log_every", "save_every")},
            "steps_done": state.step,
            "tokens_distinct": self.data.n,
            "tokens_seen": seen,
            "data_sha256": self.data.sha256,
            "data_seed": self.data.seed,
            "tokens_dropped_by_mask": round(self.data.dropped, 5),
            "input_scale": self.scale,
            "seconds": round(now.seconds, 3),
            "tokens_per_s": round(seen / max(1e-9, now.seconds), 1),
            "processes": self.shards.count * self.shards.data_count,
            "compiled_kernel": compiled.kernel(now.w.W_enc, now.w.W_dec) is not None,
            "last_log": dict(now.log),
            **({"stopped_early": dict(stopped)} if stopped else {}),
        }
        facts = {"name": name, "method": describe(method), **self.site, "training": training}
        self.shards.one_first(lambda: save(sae, folder, facts, dtype) if self.shards.first else None)
        return sae


def _copy(w: Weights) -> Weights:
    return w.map(lambda t: t.detach().clone())


def _finite(w: Weights, dtype: str) -> bool:
    """Whether what is learned is finite, the matrices also in the type of the file."""
    most = {n: torch.finfo(getattr(torch, dtype)).max for n in ("W_enc", "W_dec")}
    learned = [(n, t.detach()) for n, t in w.named().items() if t.requires_grad]
    return all(bool((t.abs() <= most.get(n, torch.finfo(t.dtype).max)).all()) for n, t in learned)
