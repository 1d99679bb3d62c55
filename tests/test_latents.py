"""What is measured of single latents, against plain loops over the dense codes; and the command that writes the pages."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.context import Context
from bench.errors import UsageError
from bench.latent_facts import LatentFacts, path_of, read
from bench.latents import Measuring
from bench.lm.unembedding import direct_logits, last_norm
from bench.record import Records, SubjectFacts, make_record, subject_task
from bench.sae.canonical import Canonical
from bench.sae.codes import Codes
from bench.store import Store
from bench.types import Result
from tasks.autointerp import Autointerp
from tasks.composition import Composition
from tests.latent_pages import Page
from tests.worlds import dictionary, tied_sae, tiny_context

ROOT = Path(__file__).resolve().parents[1]
TOKENS, M, D = 3000, 40, 32
DEAD, EMPTY = 5, 6  # a latent that never fires, and one without a decoder row


def subject(ctx: Context, sae: Canonical) -> SubjectFacts:
    return SubjectFacts(name="tied", sha256=sae.sha256, format="f", architecture="relu", d_in=D, d_sae=M, **ctx.site)


@pytest.fixture(scope="module")
def ctx(tmp_path_factory: pytest.TempPathFactory) -> Context:
    return tiny_context(Store(tmp_path_factory.mktemp("store")))


@pytest.fixture(scope="module")
def sae(ctx: Context) -> Canonical:
    """Latents that look at centred activations, some seldom, two never; the last two nearly the same."""
    x = ctx.text(TOKENS).kept
    rows = dictionary(M, D)
    rows[-1] = rows[-2] + 0.05 * rows[0]
    made = tied_sae(rows)
    pre = (x - x.mean(0)) @ rows.numpy().T
    bias = -np.quantile(pre, np.linspace(0.7, 0.999, M), axis=0).diagonal() - x.mean(0) @ rows.numpy().T
    made.b_enc.copy_(made.b_enc.new_tensor(bias))
    made.b_enc[DEAD] = -1e6
    made.W_dec[EMPTY] = 0
    made.W_dec[3] *= 2.5
    return Canonical(made)


@pytest.fixture(scope="module")
def measuring(ctx: Context, sae: Canonical) -> Measuring:
    return Measuring.of(subject(ctx, sae), sae, ctx, TOKENS)


@pytest.fixture(scope="module")
def found(measuring: Measuring) -> dict[int, LatentFacts]:
    return {f.latent: f for f in measuring.measure(range(M))}


@pytest.fixture(scope="module")
def dense(measuring: Measuring) -> np.ndarray:
    """[kept, M] sizes of the codes."""
    return np.abs(measuring.reader.codes.matrix.toarray())


def test_firings_strengths_and_norms(found: dict[int, LatentFacts], dense: np.ndarray, sae: Canonical) -> None:
    for i, f in found.items():
        own = dense[:, i][dense[:, i] > 0]
        assert f.firings == len(own) and f.rate == pytest.approx(len(own) / len(dense), rel=1e-4)
        assert f.dead == (not len(own)) and f.norm == pytest.approx(float(sae.inner.W_dec[i].norm()), rel=1e-4)
        if not len(own):
            assert f.histogram is None and f.quantiles == {} and f.top_tokens == []
            continue
        assert f.histogram is not None and sum(f.histogram.counts) == len(own) and len(f.histogram.counts) == 30
        width = float(own.max()) / 30
        slow = np.bincount([min(int(float(v) / width), 29) for v in own], minlength=30)
        assert np.abs(slow - f.histogram.counts).sum() <= 2  # one firing may lie on an edge
        assert f.histogram.edges == pytest.approx([i * width for i in range(31)], rel=1e-4)
        assert f.quantiles["100"] == pytest.approx(own.max(), rel=1e-4) and f.quantiles["50"] == pytest.approx(np.median(own), rel=1e-4)
    assert found[DEAD].dead and found[EMPTY].dead and found[3].norm == pytest.approx(2.5, rel=1e-3)
    assert sum(f.firings > 20 for f in found.values()) > 20


def test_neighbours_equal_a_double_loop(found: dict[int, LatentFacts], dense: np.ndarray, sae: Canonical) -> None:
    w = sae.W_dec.astype(np.float64)
    for i in (0, 3, 17, M - 1, DEAD):
        f, on = found[i], dense > 0
        others = sorted((j for j in range(M) if j not in (i, EMPTY)), key=lambda j: -float(w[i] @ w[j]))
        assert [n.latent for n in f.nearest] == others[:8]
        assert [n.latent for n in f.opposite] == [j for j in others[::-1][:4] if w[i] @ w[j] < 0]
        for n in (*f.nearest, *f.opposite):
            both, either = int((on[:, i] & on[:, n.latent]).sum()), int((on[:, i] | on[:, n.latent]).sum())
            assert n.cosine == pytest.approx(float(w[i] @ w[n.latent]), abs=1e-4)
            assert n.rate == pytest.approx(on[:, n.latent].mean(), rel=1e-4)
            assert n.share == pytest.approx(both / max(int(on[:, i].sum()), 1), rel=1e-4)
            assert n.jaccard == pytest.approx(both / max(either, 1), rel=1e-4)
    assert found[M - 1].nearest[0].latent == M - 2


def test_windows_hold_the_text_and_its_codes(found: dict[int, LatentFacts], measuring: Measuring, dense: np.ndarray) -> None:
    rows, place = measuring.reader.tokens.rows, measuring.reader.place
    code = np.zeros((len(rows.ids), M))
    code[place] = dense
    for i in (0, 10, 20):
        f = found[i]
        kinds = [w.kind for w in f.windows]
        assert kinds.count("top") == 16 and kinds.count("inactive") > 0 and {f"decile {n}" for n in range(1, 11)} <= set(kinds)
        for w in f.windows:
            span = slice(w.start, w.start + len(w.tokens))
            assert "".join(w.tokens) == measuring.ctx.lm.tokenizer.decode(rows.ids[span].tolist())
            assert w.codes == pytest.approx(code[span, i], abs=1e-3) and w.document == rows.token_document[w.centre]
            assert (w.kind == "inactive") == (max(w.codes or [0]) == 0) and w.start <= w.centre < span.stop
        top = [code[w.centre, i] for w in f.windows if w.kind == "top"]
        assert top == sorted(top, reverse=True) and top[0] == pytest.approx(dense[:, i].max(), rel=1e-5)
        spans = sorted((w.start, w.start + len(w.tokens)) for w in f.windows)
        assert all(end <= start for (_, end), (start, _) in pairwise(spans))


def test_top_tokens_equal_a_loop(found: dict[int, LatentFacts], measuring: Measuring, dense: np.ndarray) -> None:
    ids = measuring.reader.tokens.rows.ids[measuring.reader.place]
    texts = [measuring.ctx.lm.tokenizer.decode([int(i)]) for i in ids]
    folded = [t.strip().lower() or t for t in texts]
    for i in (0, 12):
        assert len(found[i].top_tokens) <= 15
        for t in found[i].top_tokens:
            own = [v for v, name in zip(dense[:, i], folded, strict=True) if name == t.token]
            assert t.occurrences == len(own) and t.firings == sum(v > 0 for v in own)
            assert t.mean == pytest.approx(sum(own) / t.firings, rel=1e-3)
        sums = [t.mean * t.firings for t in found[i].top_tokens]
        assert sums == pytest.approx(sorted(sums, reverse=True), rel=1e-3)


def test_without_a_record_the_offline_judge_explains(found: dict[int, LatentFacts]) -> None:
    f = found[0]
    (e,) = f.explanations
    assert (e.by, e.source) == ("statistics", "here") and e.shown.startswith("fires ") and len(e.scores) == 1
    s = e.scores[0]
    active = [v for v in e.verdicts if v.active]
    right = [v.said == v.active for v in e.verdicts]
    assert s.verdicts == len(right) and s.accuracy == pytest.approx(sum(right) / len(right), abs=1e-4)
    yes, no = (sum(v.said == v.active for v in part) / len(part) for part in (active, [v for v in e.verdicts if not v.active]))
    assert s.balanced_accuracy == pytest.approx((yes + no) / 2, abs=1e-4) and s.floor == pytest.approx(
        1 - len(active) / len(right), abs=1e-4
    )
    assert all(v.active == (f.windows[v.window].kind != "inactive") for v in e.verdicts)
    strongest = [i for i, w in enumerate(f.windows) if w.kind == "top"][:10]  # those explain, and are not tested on
    assert not {v.window for v in e.verdicts} & set(strongest)
    assert found[DEAD].explanations == [] and "does not fire" in found[DEAD].notes[0]


def test_direct_effect_on_the_logits(found: dict[int, LatentFacts], ctx: Context, sae: Canonical) -> None:
    model: Any = ctx.lm.model
    assert last_norm(ctx.lm) is model.model.norm
    gain, w = model.model.norm.weight.detach().numpy(), model.lm_head.weight.detach().numpy().astype(np.float64)
    slow = np.array([sum(float(a) * float(b) for a, b in zip(row, sae.W_dec[4] * gain, strict=True)) for row in w])
    slow = (slow - slow.mean()) / slow.std()
    assert direct_logits(ctx.lm, sae.W_dec[4]) == pytest.approx(slow, abs=1e-3)
    assert direct_logits(ctx.lm, 7 * sae.W_dec[4]) == pytest.approx(slow, abs=1e-2)
    logits = found[4].logits
    assert logits and [t.id for t in logits.promoted] == np.argsort(-slow)[:10].tolist() and len(logits.suppressed) == 10
    assert logits.suppressed[0].effect == pytest.approx(slow.min(), rel=1e-3)
    assert found[EMPTY].logits is None and not direct_logits(ctx.lm, np.zeros(D, dtype=np.float32)).any()


def test_samples_and_numbers(measuring: Measuring) -> None:
    some = measuring.sample(8)
    assert len(set(some)) == 8 and some == measuring.sample(8) and all(measuring.counts[i] >= 20 for i in some)
    with pytest.raises(UsageError, match="no latent 40"):
        list(measuring.measure([1, M]))
    with pytest.raises(UsageError, match="asks for none"):
        measuring.sample(0)
    assert [f.latent for f in measuring.measure([2, 1, 2])] == [2, 1]


def recorded(ctx: Context, sae: Canonical, task: Any, folder: Path, at: str = "2026-01-01") -> Records:
    """Records of one task's answer."""
    answer, records = task.run(sae, ctx), Records(folder)
    assert isinstance(answer, Result)
    records.write(make_record(subject(ctx, sae), subject_task(task), task.data(ctx), ctx.seed, answer, {"measured_at": at}), answer.units)
    return records


def test_records_give_explanations_with_verdicts(ctx: Context, sae: Canonical, tmp_path: Path) -> None:
    records = recorded(ctx, sae, Autointerp(latents=6, tokens=2 * TOKENS), tmp_path)
    recorded(ctx, sae, Autointerp(latents=6, tokens=2 * TOKENS, permuted=True), tmp_path, "2027-01-01")
    measuring = Measuring.of(subject(ctx, sae), sae, ctx, TOKENS, (records,))
    held = measuring.recorded.explained
    assert 2 <= len(held) <= 6 and set(measuring.sample(len(held))) == held
    longer = ctx.evaluation_rows(2 * TOKENS)
    seen_beyond = False
    for f in measuring.measure(sorted(held)):
        assert [e.by for e in f.explanations] == ["judge", "shuffled"] and f.explanations[0].source.startswith("record ")
        judge = f.explanations[0]
        assert judge.verdicts and not judge.beyond and not f.explanations[1].verdicts and judge.scores
        for v in judge.verdicts:
            w = f.windows[v.window]
            assert "".join(w.tokens) == ctx.lm.tokenizer.decode(longer.ids[w.start : w.start + len(w.tokens)].tolist())
            if w.codes is None:
                seen_beyond = True
                assert w.centre >= len(measuring.reader.tokens.rows.ids)
            else:
                assert v.active == (w.codes[w.centre - w.start] > 0)
    assert seen_beyond
    (other,) = [f for f in measuring.measure([min(set(range(M)) - held - {DEAD, EMPTY})])]
    assert other.explanations[0].source == "here"


def test_records_give_meta_latents(ctx: Context, tmp_path: Path) -> None:
    rows = dictionary(128, D, 3)
    sae = Canonical(tied_sae(rows))
    facts = subject(ctx, sae).model_copy(update={"d_sae": 128})
    task, records = Composition(tokens=2000, steps=20, seeds=1), Records(tmp_path)
    answer = task.run(sae, ctx)
    assert isinstance(answer, Result)
    records.write(make_record(facts, subject_task(task), task.data(ctx), 0, answer, {"measured_at": "2026"}), answer.units)
    measuring = Measuring.of(facts, sae, ctx, 2000, (records,))
    parts = {int(i): t for i, t in zip(answer.units["latent"], answer.units["meta_latents"], strict=True)}
    latent = next(i for i, t in parts.items() if t)
    (f,) = measuring.measure([latent])
    assert (
        f.composition and f"{f.composition.meta_latents[0].meta_latent}:{f.composition.meta_latents[0].code:.3f}" in parts[latent].split()
    )
    for m in f.composition.meta_latents:
        users = [i for i, t in parts.items() if f"{m.meta_latent}" in [p.partition(":")[0] for p in t.split()]]
        assert m.serves == len(users) and set(m.others) <= set(users) - {latent}


def test_a_planted_world_has_no_text(sae: Canonical, ctx: Context) -> None:
    class Planted(Context):
        has_lm = False

    with pytest.raises(UsageError, match="no text to show"):
        Measuring.of(subject(ctx, sae), sae, Planted(ctx.opener, ctx.site, ctx.corpus, ctx.store), TOKENS)
    with pytest.raises(UsageError, match="--tokens 0"):
        Measuring.of(subject(ctx, sae), sae, ctx, 0)


def test_codes_of_either_sign_are_strengths(ctx: Context, sae: Canonical, measuring: Measuring) -> None:
    codes = measuring.reader.codes
    turned = Codes(codes.indptr, codes.indices, -codes.values, codes.d_sae)
    reader = replace(measuring.reader, codes=turned)
    again = Measuring(measuring.facts, sae, ctx, reader, measuring.recorded)
    assert next(iter(again.measure([0]))).quantiles == next(iter(measuring.measure([0]))).quantiles


@pytest.mark.model
def test_the_command_writes_pages(tmp_path: Path) -> None:
    def show(*argv: str) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "-m", "bench", "show", "demo:ortsae", "--records", str(tmp_path / "records"), *argv]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        return subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)

    done = show("--latents", "3", "--tokens", "4096")
    folder = tmp_path / "records" / "latents" / "ortsae"
    assert done.returncode == 0, done.stderr
    written = [Path(p) for p in done.stdout.split()]
    assert written[0] == folder / "index.html" and len(written) == 4 and set(written) == set(folder.glob("*.html"))
    again = show("--latent", "17", "--tokens", "4096")
    assert again.returncode == 0 and len(again.stdout.split()) == 5 and (folder / "latent-17.html").exists()
    assert len(Page((folder / "index.html").read_text()).all("a")) == 4
    f = read(path_of(folder, 17))
    assert f.subject.name == "ortsae" and f.logits and json.loads(path_of(folder, 17).read_text())["schema"] == 1
    for argv, cause in ((("--latent", "4608"), "no latent 4608"), (("--latents", "0"), "asks for none"), (("--lm", "nosuch:x"), "nosuch")):
        refused = show(*argv, "--tokens", "4096", "--out", str(tmp_path / "other"))
        assert refused.returncode in (2, 4) and cause in refused.stderr and "Traceback" not in refused.stderr
    assert not (tmp_path / "other").exists()
