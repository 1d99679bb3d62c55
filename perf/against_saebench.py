"""Time SAEBench's functions and ours on the same inputs: one process, one thread, CPU seconds, candidates in turn.

    PYTHONPATH=. /tmp/sb/bin/python perf/against_saebench.py > perf/against_saebench.log

The environment is that of `perf/saebench_cases.py` with this suite's light dependencies beside it. Inputs are
random: Gaussian activations with planted classes, tied SAEs with random unit rows and the threshold that gives the
wanted L0. Every figure is the least of a few repetitions.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from importlib.metadata import version

os.environ["JAXTYPING_DISABLE"] = "1"  # SAEBench's shape annotations contradict each other; without checks it is faster too

import numpy as np
import torch
from sae_bench.evals.absorption import k_sparse_probing, probing
from sae_bench.evals.core.main import calculate_max_cosine_sim
from sae_bench.evals.scr_and_tpp import main as scr_and_tpp
from sae_bench.evals.sparse_probing import probe_training
from sae_bench.sae_bench_utils.activation_collection import get_sae_meaned_activations

from bench.kernels import ablation, absorption, cosine, probes
from bench.kernels.logistic import class_weights
from bench.sae.codes import Codes
from perf.saebench_common import Lookup, silence, their_absorption, their_probe
from perf.saebench_race import D_IN, LETTERS, TOKENS, Size, gaussian, gemm_rate, lm_rate, peak_mib, race, row

CLASSES, DOCUMENTS = 5, 2
KS, SIZES = (1, 2, 5, 10, 20, 50, 100), (2, 5, 10, 20, 50, 100, 500)
CELLS = CLASSES * len(SIZES)
NAMES = [f"c{c}" for c in range(CLASSES)]
TRAIN, TEST, EPOCHS = 2000, 500, 20  # documents per class and probe epochs of SAEBench's TPP
WORDS, PREFIXES, PROMPT = 10_000, 20, 88  # eleven lines of about eight tokens


def cosines(s: Size, rate: float) -> None:
    w, found = torch.from_numpy(s.rows), {}
    calls = (lambda: found.update(a=calculate_max_cosine_sim(w.T)), lambda: found.update(b=cosine.nearest_cosine(w)))
    theirs, ours = race(*calls, repeats=3)
    floor, gap = s.d_sae**2 * D_IN / rate, float((found["a"] - found["b"]).abs().max())
    note = f"{ours / floor:.1f} × the floor (theirs {theirs / floor:.1f}); differ by {gap:.0e}"
    row("nearest cosine, all pairs", s, (theirs, ours), "≥ 3×", note, calls)


def encoding(s: Size, rate: float, n: int = 4096) -> None:
    x = gaussian(n)
    t, kept = torch.from_numpy(x), {}
    calls = (lambda: s.theirs.encode(t), lambda: s.lens.encode(t), lambda: kept.update(codes=s.ours.encode_sparse(x)))
    dense, lens, ours = race(*calls, repeats=3)
    codes, floor = kept["codes"], 2 * n * D_IN * s.d_sae / rate
    held = n * s.d_sae * 4 / sum(v.nbytes for v in codes.arrays().values())
    note = f"{ours / floor:.1f} × the floor; the codes themselves take {held:.0f} × less memory"
    row("encode, against SAEBench's JumpReLU", s, (dense, ours), "", f"{n:,} tokens, L0 {codes.l0().mean():.0f}", calls[::2])
    row("encode, against SAELens' JumpReLU", s, (lens, ours), "≥ 2.2×", note, calls[1:])


def memory(s: Size) -> None:
    """Memory at the peak of encoding a text at once, beyond what was there: dense codes and their copies, or sparse ones and a tile."""
    n = 2**30 // s.d_sae // 4  # dense codes of 1 GiB
    x = gaussian(n)
    t = torch.from_numpy(x)
    theirs, ours = (peak_mib(call) for call in (lambda: s.theirs.encode(t), lambda: s.ours.encode_sparse(x)))
    ratio = f"memory **{theirs / ours:.0f}×** | ≥ 100×"
    print(f"| encode, memory alone | {s.d_sae:,} | | | {ratio} | {theirs:,.1f} | {ours:,.1f} | {n:,} tokens |")


def pooled(s: Size, x: np.ndarray) -> Codes:
    """Mean codes of documents [classes, documents, tokens, d]."""
    return s.ours.encode_sparse(x.reshape(-1, D_IN)).pooled(
        np.repeat(np.arange(x.size // D_IN // TOKENS), TOKENS), x.size // D_IN // TOKENS
    )


def grid(s: Size, n: int = 2000, held: int = 500) -> None:
    """Probes on 1 … 100 latents for five classes, of SAEBench's size: 4,000 texts to train, 1,000 to test.

    Pooled codes with 8 × L0 active latents, ten of them of the class.
    """
    r, label, test = np.random.default_rng(1), np.repeat(np.arange(CLASSES), n + held), np.tile(np.arange(n + held) >= n, CLASSES)
    cols = r.integers(0, s.d_sae, (len(label), 8 * s.l0))
    cols[:, :10] = np.where(r.random((len(label), 10)) < 0.3, label[:, None] * 10 + np.arange(10), cols[:, :10])
    f = np.zeros((len(label), s.d_sae), np.float32)
    np.put_along_axis(f, cols, r.gamma(2.0, 0.5, cols.shape).astype(np.float32), axis=1)
    codes, found = Codes.from_dense(f), {"theirs": [], "ours": []}
    sets = [{f"c{c}": torch.from_numpy(f[(label == c) & part]) for c in range(CLASSES)} for part in (~test, test)]

    def rows_of(c: int, part: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        own, others = np.flatnonzero(part & (label == c)), np.flatnonzero(part & (label != c))
        return np.concatenate([own, np.random.default_rng(c).choice(others, len(own), False)]), np.repeat([1, 0], len(own))

    def ours() -> None:
        for c in range(CLASSES):
            (a, ya), (b, yb) = rows_of(c, ~test), rows_of(c, test)
            train = codes.take(a)
            best = probes.rank_by_difference(train.group_means(ya, 2))[: max(KS)]
            x, z = probes.standardised(train.columns(best).astype(np.float64), codes.take(b).columns(best).astype(np.float64))
            w, bias = probes.nested_logistic(x, ya, KS)
            found["ours"] += [probes.scores(yb, z @ v + i)["accuracy"] for v, i in zip(w, bias, strict=True)]

    def theirs() -> None:
        for k in KS:
            found["theirs"] += probe_training.train_probe_on_activations(*sets, select_top_k=k)[1].values()

    probing_time = race(theirs, ours)
    gap = abs(np.mean(found["ours"]) - np.mean(found["theirs"]))
    note = f"{n} + {n} rows; mean accuracy differs by {100 * gap:.1f} points (other negatives, standardised)"
    row("k-sparse probes, 7 k × 5 classes", s, probing_time, "≥ 30×", note, (theirs, ours))
    x = gaussian(CLASSES, DOCUMENTS, TOKENS)
    documents = {n: torch.from_numpy(v) for n, v in zip(NAMES, x, strict=True)}
    calls = (lambda: get_sae_meaned_activations(documents, s.theirs, 125), lambda: pooled(s, x))
    pooling = race(*calls, repeats=3)
    row("pooled codes of documents", s, pooling, "", f"{x.size // D_IN:,} tokens", calls)
    scale = len(label) / (CLASSES * DOCUMENTS)
    both = tuple(a + scale * b for a, b in zip(probing_time, pooling, strict=True))
    row("**sparse probing whole, without the language model**", s, both, "", f"{len(label):,} documents of {TOKENS} tokens")


def ablations(s: Size, rate: float, lm: float) -> None:
    """Effects and the ablation grid of TPP on a few documents per class, and the whole of TPP by scaling."""
    train, test = (gaussian(CLASSES, DOCUMENTS, TOKENS, seed=i) + 0.3 * gaussian(CLASSES, 1, 1, seed=2) for i in (3, 4))
    a, b = ({n: torch.from_numpy(v) for n, v in zip(NAMES, part, strict=True)} for part in (train, test))
    w = gaussian(CLASSES, seed=5)
    fitted = {n: their_probe(v) for n, v in zip(NAMES, w, strict=True)}
    found: dict[str, np.ndarray] = {}

    def their_effects() -> None:
        got = scr_and_tpp.get_all_node_effects_for_one_sae(s.theirs, fitted, NAMES, False, a, 125)
        found["effects"] = np.stack([got[n].numpy() for n in NAMES])

    def our_effects() -> None:
        means = pooled(s, train).group_means(np.repeat(np.arange(CLASSES), DOCUMENTS), CLASSES)
        for c in range(CLASSES):
            rest = (means.sum(0) - means[c]) / (CLASSES - 1)
            ablation.latent_effects(np.maximum(means[c] - rest, 0), w[c], s.rows)

    def their_cell() -> None:
        chosen = scr_and_tpp.select_top_n_features(torch.from_numpy(found["effects"][0]), 100, "c0")
        moved = {n: scr_and_tpp.ablated_precomputed_activations(b[n], s.theirs, chosen, 125) for n in NAMES}
        scr_and_tpp.get_probe_test_accuracy(fitted, NAMES, moved, 500, False)
        found["theirs"] = np.stack([fitted[n](torch.cat(list(moved.values()))).numpy() for n in NAMES], 1)

    def our_grid() -> None:
        codes, clean = pooled(s, test), test.mean(2, dtype=np.float64).reshape(-1, D_IN) @ w.T
        for c in reversed(range(CLASSES)):
            order = ablation.strongest(found["effects"][c], max(SIZES))
            found["ours"] = clean + ablation.logit_shifts(codes.columns(order), s.rows[order] @ w.T, SIZES)
            (found["ours"] > 0).mean(1)

    effects = race(their_effects, our_effects, repeats=3)
    cell, ours = race(their_cell, our_grid, repeats=4)
    gap, floor = float(np.abs(found["ours"][SIZES.index(100)] - found["theirs"]).max()), 2 * test.size * s.d_sae / rate
    row(
        "TPP, SCR: effects of latents",
        s,
        effects,
        "",
        f"{train.size // D_IN:,} tokens; theirs encodes rows again for each class",
        (their_effects, our_effects),
    )
    note = f"theirs = {CELLS} × one cell of {cell:.3g} s; ours {ours / floor:.1f} × the floor; logits differ by {gap:.0e}"
    row("TPP: ablation grid, 5 classes × 7 N", s, (CELLS * cell, ours), "≥ 100×", note, (their_cell, our_grid))
    six, distinct = 6 / CLASSES, 3 / CLASSES  # sets of two attributes and their mixture; each text is in two of them
    scaled = (six * 3 * len(SIZES) * cell, distinct * ours)
    row(
        "SCR: ablation grid, 3 probes × 7 N × 6 sets",
        s,
        scaled,
        "≥ 100×",
        "scaled from the cell above by tokens; ours encodes each text once",
    )
    whole_tpp(s, effects, (CELLS * cell, ours), lm)


def whole_tpp(s: Size, effects: tuple[float, float], ablated: tuple[float, float], lm: float) -> None:
    """One source set of TPP at SAEBench's size: stages per token times tokens, and probes of both kinds."""
    x = gaussian(CLASSES * TRAIN, seed=6) + 0.1 * np.repeat(gaussian(CLASSES, seed=2), TRAIN, axis=0)
    y = np.repeat(np.eye(CLASSES, dtype=bool), TRAIN, axis=0)
    t, label = torch.from_numpy(x[: 2 * TRAIN]), torch.from_numpy(np.repeat([1, 0], TRAIN))

    def epoch() -> None:
        with torch.enable_grad():
            probe_training.train_probe_gpu(t, label, t[::4], label[::4], D_IN, 16, 1, 1e-3, l1_penalty=1e-3)

    one, fit = race(epoch, lambda: ablation.raw_probes(x, y, 0.01, class_weights(y, np.ones_like(y))))
    fits = (EPOCHS * CLASSES * one, fit)
    whole = tuple((TRAIN * e + TEST * a) / DOCUMENTS + f for e, a, f in zip(effects, ablated, fits, strict=True))
    reading = CLASSES * (TRAIN + TEST) * TOKENS / lm
    note = f"per class {TRAIN} + {TEST} documents of {TOKENS} tokens; probes {fits[0]:.3g} and {fit:.3g} s, of different kinds"
    row("**TPP whole, one source, without the language model**", s, whole, "", note)
    row("**TPP whole, one source, with it**", s, (whole[0] + reading, whole[1] + reading), "", f"both read for {reading:,.0f} s")


def spelling(s: Size, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Words that lean towards their letter's direction, which is the decoder row of that number; and the letters."""
    letter = np.arange(n) % LETTERS
    return gaussian(n, seed=seed) + 8 * np.random.default_rng(seed).random((n, 1)).astype(np.float32) * s.rows[letter], letter


def absorptions(s: Size, rate: float, lm: float, n: int = 2000) -> None:
    """Scores of test words, each with one main latent."""
    x, letter = spelling(s, n, 8)
    directions, main = s.rows[:LETTERS], np.eye(s.d_sae, LETTERS, dtype=bool)
    stand_in = Lookup(x, s.theirs.encode(torch.from_numpy(x)), s.theirs.W_dec)
    codes, found = s.ours.encode_sparse(x).matrix, {}

    def theirs(sae: object) -> None:
        found["theirs"] = their_absorption(stand_in, sae, letter, directions, [[c] for c in range(LETTERS)])[0]

    def score() -> None:
        projection = np.einsum("nd,nd->n", x, directions[letter])
        found["ours"] = absorption.absorbed(codes, projection, letter, s.rows @ directions.T, main).fraction

    calls = (lambda: theirs(stand_in), lambda: theirs(s.theirs), lambda: s.ours.encode_sparse(x), score)
    given, they, encode, we = race(*calls)
    gap, floor = float(np.abs(found["ours"] - found["theirs"]).max()), 2 * n * D_IN * s.d_sae / rate
    note = f"differ by {gap:.0e}; mean fraction {found['ours'].mean():.2f}"
    row(f"absorption scores of {n:,} words, codes given", s, (given, we), "", note, calls[::3])
    note = f"ours {(encode + we) / floor:.1f} × the floor, theirs {they / floor:.1f}"
    row(f"absorption scores of {n:,} words, encoding included", s, (they, encode + we), "", note, (calls[1], lambda: (calls[2](), score())))
    whole_absorption(s, they, lm)


def whole_absorption(s: Size, scoring: float, lm: float, some: int = 2048, few: int = 24) -> None:
    """The task on 10,000 words; stages of theirs are timed on fewer words or one epoch and multiplied, ours run."""
    x, letter = spelling(s, WORDS, 10)
    y, part = letter[:, None] == np.arange(LETTERS), np.repeat([0, 0, 0, 1, 2], WORDS // 5)
    t, label = torch.from_numpy(x[:some]), torch.from_numpy(y[:some]).long()
    probe = k_sparse_probing.KSparseProbe
    sparse = {k: {c: probe(torch.ones(k), torch.tensor(0.0), torch.arange(k)) for c in range(26)} for k in range(1, 11)}
    words = [(f"w{i}", int(c)) for i, c in enumerate(letter[:few])]
    quiet = {"num_epochs": 1, "show_progress": False, "device": t.device}

    def letter_probes() -> None:
        with torch.enable_grad():
            probing.train_multi_probe(t, label, batch_size=64, **quiet)

    def l1_probes(acts: torch.Tensor, encode: Callable[[torch.Tensor], torch.Tensor] | None) -> None:
        with torch.enable_grad():
            k_sparse_probing.train_sparse_multi_probe(acts, label, map_acts=encode, probe_dim=s.d_sae, **quiet)

    def ours() -> None:
        codes = s.ours.encode_sparse(x).matrix
        known = np.ones_like(y)
        absorption.measure(x, y, known, part, absorption.concept_probes(x, y, known, part), codes, s.rows)

    def scores() -> None:
        k_sparse_probing.eval_probe_and_sae_k_sparse_raw_scores(s.theirs, probing.LinearProbe(D_IN, 26), sparse, words, t[:few])

    anew, acts = (lambda: l1_probes(t, s.theirs.encode)), s.theirs.encode(t)
    once = race(
        letter_probes, anew, lambda: k_sparse_probing._get_sae_acts(s.theirs, t), scores, ours, lambda: l1_probes(acts, None), repeats=1
    )
    train = 0.8 * WORDS / some
    stages = np.array(once[:4]) * [50 * train, 50 * train, 260 * train, WORDS / 5 / few]
    whole, reading = (stages.sum() + scoring, once[4]), (1.2 * WORDS * PROMPT / lm, (WORDS + PREFIXES * PROMPT) / lm)
    least = stages[0] + (50 * once[5] + once[2]) * train + stages[3] + scoring
    names = ("letter probes", "L1 probe", "encoding anew for every k and letter", "k-sparse scores")
    note = ", ".join(f"{n} {v:,.0f} s" for n, v in zip(names, stages, strict=True))
    row(f"**absorption whole, {WORDS:,} words, without the language model**", s, whole, "", f"theirs: {note}")
    row(
        "**the same, with its option to encode once**",
        s,
        (least, once[4]),
        "",
        "its default is to encode anew; the option holds dense codes",
    )
    note = f"reading {reading[0]:,.0f} and {reading[1]:,.0f} s: a prompt of {PROMPT} tokens for each word, or {PREFIXES} kept prompts"
    row(f"**absorption whole, {WORDS:,} words, with it**", s, (whole[0] + reading[0], whole[1] + reading[1]), "", note)


def main() -> None:
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    with silence():
        rate, lm = gemm_rate(), lm_rate()
    packages = ", ".join(f"{p} {version(p)}" for p in ("sae-bench", "sae-lens", "torch", "numpy", "scikit-learn"))
    print(f"{packages}. CPU seconds, one thread; load {os.getloadavg()[0]:.1f} at the start.")
    print(f"Floor: the products that cannot be avoided, at the best rate measured here, {rate / 1e9:.0f} GFLOP/s.")
    print(f"Language model: half of 135M parameters, {lm:.0f} tokens per CPU second, taken for both sides.")
    print("Memory: MiB that one call takes at its peak beyond what was there before.\n")
    print("| stage | d_sae | SAEBench s | ours s | ratio | goal | SAEBench MiB | ours MiB | notes |\n|---|---|---|---|---|---|---|---|---|")
    for s in (Size(4608, 32), Size(16384, 64)):
        cosines(s, rate)
        encoding(s, rate)
        memory(s)
        grid(s)
        ablations(s, rate, lm)
        absorptions(s, rate, lm)
    print(f"\nLoad {os.getloadavg()[0]:.1f} at the end.")


if __name__ == "__main__":
    main()
