"""The only training loop: one SAE or several on one pass over the activations.

Resumable, with the same data order for every method that is given the same seed, and the same result for an SAE
whichever others are trained beside it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor

from baselines import curves, display
from baselines.activations import Source
from baselines.learner import DivergedError, Fitted, Learner, Now
from baselines.parts import Trainer, describe
from baselines.recipe import FitConfig, Job
from baselines.resume import RESUME
from baselines.shards import ALONE, Shards
from baselines.trackers import Tracker, close
from bench import progress
from bench.errors import ResourceError, UsageError, VerificationError

__all__ = ["RESUME", "DivergedError", "FitConfig", "Fitted", "Job", "fit", "fit_all"]

DRAW_EVERY_S = 60.0


def fit(
    method: Trainer, data: Source, config: FitConfig, out: Path, site: Mapping[str, str], log: str = "", shards: Shards = ALONE
) -> Fitted:
    """Train a method, keep stages, and write a native checkpoint with the facts of the run.

    Args:
        method: What to train.
        data: Activations.
        config: Recipe.
        out: Folder for `sae.safetensors`, `sae.json`, `train.jsonl`, `curves.png`, stages, and the resumable state.
        site: `lm`, `revision`, `hook` of the activations.
        log: Tracker that gets the log lines too: `trackio`, `wandb`, `tensorboard`, or "" for none.
        shards: This process among those that train together; every one calls this function.

    Raises:
        UsageError: The folder holds another unfinished run, or the data are too few for one batch.
        VerificationError: The activations are constant or not finite.
        DivergedError: A loss stopped being finite; the last good state is in the folder.
    """
    (done,) = fit_all([Job(method, config, out)], data, site, log, shards)
    if isinstance(done, DivergedError):
        raise done
    return done


def fit_all(
    jobs: Sequence[Job], data: Source, site: Mapping[str, str], log: str = "", shards: Shards = ALONE
) -> list[Fitted | DivergedError]:
    """Train several SAEs side by side: each batch is read once, and every SAE ends as if it were trained alone.

    An SAE that diverges ends; the others go on.

    Args:
        jobs: At least one. They share `steps` and `batch`; folders of several lie side by side, and a picture of all
            curves is drawn beside them.
        data: Activations.
        site: `lm`, `revision`, `hook` of the activations.
        log: As in `fit`.
        shards: As in `fit`.

    Raises:
        UsageError: As in `fit`, or the jobs differ in steps or batch.
        VerificationError: As in `fit`.
    """
    config = jobs[0].config
    if len({(j.config.steps, j.config.batch) for j in jobs}) > 1:
        raise UsageError("SAEs that are trained together share steps and batch", "train them one by one")
    if data.n < config.batch:
        raise UsageError(f"{data.n} kept tokens are fewer than one batch of {config.batch}", "use more --tokens or a smaller --batch")
    mean, variance = data.moments
    if not 0 < variance < math.inf:
        raise VerificationError(f"the activations have variance {variance}", "look at the text and the language model's precision")
    scale = 1 / math.sqrt(variance)
    _check_shards(jobs, shards)
    for job in jobs:
        _make(job.out)
    with _tracked(jobs, site, log if shards.first else "") as trackers:
        learners = [Learner(job, data, site, scale, tracker, shards) for job, tracker in zip(jobs, trackers, strict=True)]
        nows: list[Now | DivergedError] = [learner.start(mean * scale) for learner in learners]
        _loop(learners, nows)
        done = [_finished(learner, now) for learner, now in zip(learners, nows, strict=True)]
    if len(jobs) > 1 and shards.first:
        _draw(jobs)
    return done


def _check_shards(jobs: Sequence[Job], shards: Shards) -> None:
    if (batch := jobs[0].config.batch) % shards.data_count:
        raise UsageError(f"a batch of {batch} cannot be divided into {shards.data_count} parts", "give another --batch")
    check_divisible([job.method for job in jobs], shards)


def check_divisible(methods: Sequence[Trainer], shards: Shards) -> None:
    """Refuse methods that these processes cannot train.

    Raises:
        UsageError: One cannot be divided by latents, or has fewer of them than there are processes.
    """
    fewest = min((m.d_sae for m in methods if getattr(m, "trains", True)), default=shards.count)
    if fewest < shards.count:
        raise UsageError(f"{fewest} latents cannot be divided among {shards.count} processes", "use fewer processes")
    whole = [str(describe(m)["method"]) for m in methods if not getattr(m, "divisible", False)]
    if whole and shards.count > 1:
        raise UsageError(
            f"{', '.join(whole)} cannot be divided by latents", "use one process, or --data-parallel with the number of processes"
        )


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise ResourceError(f"{folder} cannot be a folder: {e.strerror}", "choose another --out") from e


def _loop(learners: Sequence[Learner], nows: list[Now | DivergedError]) -> None:
    """All steps that are left. Whoever is ahead after an interruption waits until the others have caught up."""
    learning = [i for i, learner in enumerate(learners) if learner.job.trains]
    if not learning:
        return
    first, config, shards = learners[0], learners[learning[0]].job.config, learners[0].shards
    start = min(now.state.step for now in (nows[i] for i in learning) if isinstance(now, Now))
    drawn = saved = time.monotonic()
    label = f"training {first.job.out.name if len(learners) == 1 else first.job.out.parent.name}"
    with display.bar(label, config.steps, start, config.batch) as advance:
        for step in range(start, config.steps):
            begin = time.perf_counter()
            with _kept(learners, nows):
                x = shards.tokens(first.data.batch(step, config.batch)) * first.scale
                x = x.to(config.device)
            waited = time.perf_counter() - begin
            for i in learning:
                if isinstance(now := nows[i], Now) and now.state.step == step:
                    nows[i] = _stepped(learners[i], now, x, waited)
            running = [now for i in learning if isinstance(now := nows[i], Now)]
            if not running:
                return
            if shards.agreed(time.monotonic() - saved >= config.save_every):
                _remember(learners, nows)
                saved = time.monotonic()
            if shards.first and time.monotonic() - drawn >= DRAW_EVERY_S:
                _draw([learner.job for learner in learners])
                drawn = time.monotonic()
            with _kept(learners, nows):
                advance([now.log for now in running])


def _stepped(learner: Learner, now: Now, x: Tensor, waited: float) -> Now | DivergedError:
    try:
        return learner.step(now, x, waited)
    except DivergedError as e:
        progress.note("an SAE diverged", sae=learner.job.out.name, reason=e.cause)
        return e


def _finished(learner: Learner, now: Now | DivergedError) -> Fitted | DivergedError:
    try:
        return now if isinstance(now, DivergedError) else learner.finish(now)
    except DivergedError as e:
        return e


def _remember(learners: Sequence[Learner], nows: Sequence[Now | DivergedError]) -> None:
    for learner, now in zip(learners, nows, strict=True):
        if isinstance(now, Now) and learner.job.trains:
            learner.remember(now)


@contextmanager
def _kept(learners: Sequence[Learner], nows: Sequence[Now | DivergedError]) -> Generator[None]:
    """An interrupt in here, between two steps, where weights and state agree, is remembered; elsewhere it is not.

    Several processes are not interrupted at the same step, and go on from what was last written at regular times.
    """
    try:
        yield
    except KeyboardInterrupt:
        if learners[0].shards.alone:
            _remember(learners, nows)
        raise


def _draw(jobs: Sequence[Job]) -> None:
    if trained := [job for job in jobs if job.trains]:
        curves.update(trained, trained[0].out if len(jobs) == 1 else trained[0].out.parent)


@contextmanager
def _tracked(jobs: Sequence[Job], site: Mapping[str, str], log: str) -> Generator[list[Tracker | None]]:
    """A tracker for each job, or None; closed however training ends."""
    facts = [{**site, "method": describe(job.method), **vars(job.config)} for job in jobs]
    trackers = [Tracker(log, job.out.name, f, job.out) if log else None for job, f in zip(jobs, facts, strict=True)]
    try:
        yield trackers
    finally:
        close([tracker for tracker in trackers if tracker is not None])
