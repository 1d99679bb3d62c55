"""Random inputs, made from seeds, on which SAEBench's functions and ours are compared. Needs NumPy only.

`perf/saebench_cases.py` runs SAEBench on them and stores what it answers; `tests/test_saebench_agreement.py` makes
the same inputs again and compares. Nothing but the answers is stored.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SIZES = (2, 5, 10)  # latents ablated
MANY = 24  # more than have an effect other than 0
KS = (1, 2, 5, 10, 20)
LETTERS = 3
NOISE = 40  # draws without signal
DRAWS = 20  # of negatives
BOS, EOS, PAD = SPECIAL = (0, 1, 2)
ALPHABET, PER_LETTER = 26, 40


def unit(x: np.ndarray) -> np.ndarray:
    """Rows of norm 1."""
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


@dataclass(frozen=True)
class Words:
    """Words with activations x [n, d] and codes f [n, m], the letter of each, decoder rows, one direction per letter."""

    x: np.ndarray
    f: np.ndarray
    letter: np.ndarray
    rows: np.ndarray
    directions: np.ndarray
    main: tuple[tuple[int, ...], ...]


def words(n: int = 120, d: int = 16, m: int = 60, seed: int = 1) -> Words:
    """Per letter 2 main latents and 5 others that lean towards its direction; the rest point anywhere.

    Main latents are silent on some words, so that every branch of the score is taken.
    """
    r = np.random.default_rng(seed)
    directions = r.standard_normal((LETTERS, d)).astype(np.float32) * np.float32(1.7)
    rows = unit(r.standard_normal((m, d)))
    for c in range(LETTERS):
        for i in range(7):
            lean = 0.9 if i < 2 else (0.05, 0.15, 0.3, 0.5, 0.7)[i - 2]
            away = r.standard_normal(d)
            away -= away @ unit(directions[c]) * unit(directions[c])
            rows[7 * c + i] = lean * unit(directions[c]) + np.sqrt(1 - lean**2) * unit(away)
    letter = r.integers(0, LETTERS, n)
    f = r.random((n, m)) * (r.random((n, m)) < 0.15)
    for i, c in enumerate(letter):
        f[i, 7 * c : 7 * c + 7] = 1.6 * r.random(7) * (r.random(7) < 0.5)
    x = 0.4 * r.standard_normal((n, d)) + (1.5 * r.random(n) - 0.2)[:, None] * unit(directions)[letter]
    main = tuple((7 * c, 7 * c + 1) for c in range(LETTERS))
    return Words(x.astype(np.float32), f.astype(np.float32), letter, rows.astype(np.float32), directions, main)


@dataclass(frozen=True)
class Linear:
    """ReLU SAE: codes relu(x W_enc + b_enc), decoder rows of norm 1, decoder bias."""

    w_enc: np.ndarray
    b_enc: np.ndarray
    w_dec: np.ndarray
    b_dec: np.ndarray


def sae(d: int = 12, m: int = 40, seed: int = 2, fires_on_padding: bool = False, along: np.ndarray | None = None) -> Linear:
    """A tied SAE on random rows; with `fires_on_padding`, a quarter of the latents are active on a zero activation.

    Four of the rows are ± the directions `along`, where given.
    """
    r = np.random.default_rng(seed)
    rows = unit(r.standard_normal((m, d))).astype(np.float32)
    if along is not None:
        rows[m - 4 :] = unit(np.concatenate([along, -along]))
    b_enc = np.full(m, -0.3, np.float32)
    if fires_on_padding:
        b_enc[: m // 4] = 0.4
    return Linear(np.ascontiguousarray(rows.T), b_enc, rows, (0.1 * r.standard_normal(d)).astype(np.float32))


def reconstructing() -> Linear:
    """80 random rows with an encoder so small that the sum of all active ones is about the activation."""
    s = sae(m=80)
    return Linear(np.float32(0.4) * s.w_enc, s.b_enc, s.w_dec, s.b_dec)


def rescaled(s: Linear, scale: float) -> Linear:
    """The SAE that reconstructs `scale` times the activations as `s` reconstructs the activations."""
    return Linear(s.w_enc, np.float32(scale) * s.b_enc, s.w_dec, np.float32(scale) * s.b_dec)


def often_silent(s: Linear) -> Linear:
    """The same rows with a high threshold and no decoder bias: where no latent is active the reconstruction is 0."""
    return Linear(s.w_enc, s.b_enc - np.float32(0.5), s.w_dec, np.zeros_like(s.b_dec))


@dataclass(frozen=True)
class Documents:
    """Per class: training and test activations [n, tokens, d], zero where padded; probes w [c, d], b [c]."""

    train: np.ndarray
    test: np.ndarray
    w: np.ndarray
    b: np.ndarray


def documents(classes: int = 3, n: int = 24, tokens: int = 8, d: int = 12, seed: int = 3, padded: bool = False) -> Documents:
    """Classes around different means; a probe per class, its mean against the others', cut half-way."""
    r = np.random.default_rng(seed)
    means = 0.5 * r.standard_normal((classes, 1, 1, d))
    sets = [means + 0.6 * r.standard_normal((classes, n, 1, d)) + 0.8 * r.standard_normal((classes, n, tokens, d)) for _ in range(2)]
    kept = [
        np.arange(tokens) < r.integers(2, tokens + 1, (classes, n, 1)) if padded else np.ones((classes, n, tokens), bool) for _ in range(2)
    ]
    train, test = ((x * k[..., None]).astype(np.float32) for x, k in zip(sets, kept, strict=True))
    centres = np.stack([pooled(c).mean(0) for c in train])
    others = (centres.sum(0) - centres) / (classes - 1)
    w = (centres - others).astype(np.float32)
    b = -(w * (centres + others)).sum(1) / 2
    return Documents(train, test, w, b.astype(np.float32))


def kept(x: np.ndarray) -> np.ndarray:
    """[n, tokens] tokens that are not padding."""
    return np.any(x != 0, axis=-1)


def pooled(x: np.ndarray) -> np.ndarray:
    """[n, d] mean over the tokens that are not padding."""
    return x.sum(1) / kept(x).sum(1)[:, None]


def one_against_rest(per_class: np.ndarray, c: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows and labels for class c: all of its n rows, then the first ⌈n / (classes − 1)⌉ of every other class, n in all."""
    n, others = per_class.shape[1], [k for k in range(len(per_class)) if k != c]
    negatives = np.concatenate([per_class[k][: -(-n // len(others))] for k in others])[:n]
    return np.concatenate([per_class[c], negatives]), np.repeat([1, 0], n)


@dataclass(frozen=True)
class Cells:
    """Activations [a, b, n, tokens, d] of two crossed attributes along two directions; three probes: a, b, biased."""

    along: np.ndarray
    train: np.ndarray
    test: np.ndarray
    w: np.ndarray
    b: np.ndarray


def cells(n: int = 30, tokens: int = 6, d: int = 12, seed: int = 4) -> Cells:
    """Two attributes along two random directions, the second stronger; probes by difference of means."""
    r = np.random.default_rng(seed)
    along = unit(r.standard_normal((2, d))) * np.array([[0.5], [0.8]])
    sign = np.array([-1.0, 1.0])
    means = sign[:, None, None] * along[0] + sign[None, :, None] * along[1]
    sets = [
        means[:, :, None, None] + 0.5 * r.standard_normal((2, 2, n, 1, d)) + 0.5 * r.standard_normal((2, 2, n, tokens, d)) for _ in range(2)
    ]
    centres = sets[0].mean((2, 3))
    pairs = ((centres[1], centres[0]), (centres[:, 1], centres[:, 0]), (centres[1, 1], centres[0, 0]))
    sides = [(p.reshape(-1, d).mean(0), q.reshape(-1, d).mean(0)) for p, q in pairs]
    w = np.stack([p - q for p, q in sides])
    b = -np.array([(p - q) @ (p + q) / 2 for p, q in sides])
    return Cells(along, sets[0].astype(np.float32), sets[1].astype(np.float32), w.astype(np.float32), b.astype(np.float32))


# accuracies (b on its labels, a on its labels, biased on a's, biased on b's) and of the biased probe after ablation:
# on a's labels with b's latents gone, on b's labels with a's latents gone
ACCURACIES = (
    ((0.95, 0.90, 0.60, 0.80), (0.75, 0.85)),
    ((0.90, 0.95, 0.82, 0.61), (0.84, 0.70)),
    ((0.90, 0.90, 0.70, 0.70), (0.80, 0.75)),  # no direction is the worse one
    ((0.90, 0.7005, 0.70, 0.85), (0.75, 0.86)),  # hardly any bias to remove
    ((0.90, 0.72, 0.70, 0.85), (0.75, 0.86)),  # a small bias: the quotient grows
)


@dataclass(frozen=True)
class Probing:
    """Codes and labels of a binary set, training and test."""

    train: np.ndarray
    test: np.ndarray
    y_train: np.ndarray
    y_test: np.ndarray


def probing(n: int = 300, m: int = 60, seed: int = 5, unequal: bool = False) -> Probing:
    """Sparse non-negative codes; the first 25 latents fire more on positives, by less and less.

    With `unequal`, latents have typical values from 0.01 to 1.
    """
    r = np.random.default_rng(seed)
    y = r.integers(0, 2, 2 * n)
    gain = np.where(np.arange(m) < 25, 0.35 * 0.9 ** np.arange(m), 0.0)
    f = r.gamma(2.0, 0.5, (2 * n, m)) * (r.random((2 * n, m)) < 0.2 + gain * y[:, None])
    f *= 10 ** r.uniform(-2, 0, m) if unequal else 1
    return Probing(f[:n].astype(np.float32), f[n:].astype(np.float32), y[:n], y[n:])


def noise(n: int = 100, d: int = 32, seed: int = 7) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Training and test rows without any signal, and labels, half of each."""
    r = np.random.default_rng(seed)
    return r.standard_normal((n, d)).astype(np.float32), r.standard_normal((n, d)).astype(np.float32), np.arange(n) % 2


def dictionary(m: int = 300, d: int = 24, seed: int = 6) -> np.ndarray:
    """Rows of different norms."""
    r = np.random.default_rng(seed)
    return (r.standard_normal((m, d)) * r.uniform(0.2, 3.0, (m, 1))).astype(np.float32)


@dataclass(frozen=True)
class Stream:
    """Rows of tokens [rows, length], and a stand-in language model: activations [words, d] at its hook, read-out [d, words]."""

    ids: np.ndarray
    table: np.ndarray
    read: np.ndarray

    def logits(self, acts: np.ndarray) -> np.ndarray:
        """[rows, length, words] from activations [rows, length, d]: each position reads itself, and a little of all so far."""
        so_far = np.cumsum(acts, axis=1, dtype=np.float64) / np.arange(1, acts.shape[1] + 1)[:, None]
        return ((acts + 0.3 * so_far) @ self.read).astype(np.float32)


def stream(special: bool = False, scale: float = 1.0, sure: float = 1.0, seed: int = 8) -> Stream:
    """Six rows of 16 tokens with activations around a mean; the model is not bad at the next token.

    With `special`, rows begin with a BOS of large activation, some hold an EOS, and the last ones are padded.
    Activations are multiplied by `scale`, logits by `sure`.
    """
    r = np.random.default_rng(seed)
    words, d = 30, 12
    table = r.standard_normal((words, d))
    ids = np.cumsum(r.integers(1, 3, (6, 16)), axis=1) % (words - len(SPECIAL)) + len(SPECIAL)  # one or two words further
    read = 0.15 * (np.roll(table, 1, axis=0) + np.roll(table, 2, axis=0)).T
    table += 0.5 * r.standard_normal(d)
    if special:
        table[BOS] *= 4
        ids[:, 0] = BOS
        ids[[1, 4], [9, 5]] = EOS
        ids[np.arange(16) >= np.array([16, 16, 16, 15, 11, 7])[:, None]] = PAD
    return Stream(ids, (scale * table).astype(np.float32), sure / scale * read)


@dataclass(frozen=True)
class Spelled:
    """Codes [n, m] of words, the letter of each, and which half is training (0) or held out (1)."""

    f: np.ndarray
    letter: np.ndarray
    part: np.ndarray


def spelled(scale: float = 1.0, seed: int = 9) -> Spelled:
    """40 words of every letter in each half; a letter's latents fire on words of that letter alone, never two on one word.

    The latents of a letter fire on fewer and fewer words, by at least two; the last letter has none. A probe on the
    first k is then right about the words they fire on and wrong about the others, which gives every F1 exactly.
    """
    r = np.random.default_rng(seed)
    letter = np.tile(np.repeat(np.arange(ALPHABET), PER_LETTER), 2)
    part = np.repeat([0, 1], ALPHABET * PER_LETTER)
    fires = covered()
    f = np.zeros((len(letter), fires.size))
    for c in range(ALPHABET):
        for half in (0, 1):
            rows = r.permutation(np.flatnonzero((letter == c) & (part == half)))
            for i, of_latent in enumerate(np.split(rows, np.cumsum(fires[c]))[:-1]):
                f[of_latent, c * fires.shape[1] + i] = r.uniform(0.98, 1.02, len(of_latent))
    return Spelled((scale * f).astype(np.float32), letter, part)


def covered(seed: int = 10) -> np.ndarray:
    """[letters, 5] words of a letter on which each of its latents fires, in falling order; none for the last letter."""
    r = np.random.default_rng(seed)
    out = np.zeros((ALPHABET, 5), np.int64)
    for c in range(ALPHABET - 1):
        left = PER_LETTER
        for i in range(5):
            highest = min(left, int(out[c, i - 1]) - 2 if i else 24)
            if highest < 1:
                break
            out[c, i] = r.integers(1, highest + 1) if i else r.integers(8, highest + 1)
            left -= out[c, i]
    return out
