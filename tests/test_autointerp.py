"""Automated interpretability: planted latents in real text, judges whose answers are known, and what is kept of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.context import Context, Tokens
from bench.data.text import open_corpus
from bench.errors import JudgeError, UsageError
from bench.examples import Decoder, Reader
from bench.judge.questions import Answer, Detect, Explain, Question, Spending, Window, prompt_hash
from bench.judge.statistics import StatisticsJudge, readable
from bench.lm import open_lm
from bench.lm.hooks import Hook
from bench.rescoring import agreement, rescored
from bench.sae.activations import ReLU
from bench.sae.canonical import Canonical
from bench.sae.codes import Codes
from bench.sae.dense import DenseSAE
from bench.store import Store
from bench.types import NotApplicable, Result
from tasks.autointerp import Autointerp
from tasks.autointerp_windows import PROTOCOLS, Protocol, examples_of
from tests.test_every_task import sparse, text
from tests.worlds import dictionary

# the offline judge


def window(words: str, *active: int) -> Window:
    tokens = tuple(f" {w}" for w in words.split())
    return Window(tokens, tuple(float(i in active) for i in range(len(tokens))))


EXAMPLES = (window("the black dog ran", 2), window("one Dog and a cat", 1), window("my dog sleeps here", 1))
CONTRAST = (window("the black cat ran"), window("one and a bird"), window("my sleeps here"), window("the the and a"))


def test_the_offline_judge_names_the_token_and_finds_it() -> None:
    judge = StatisticsJudge()
    explained = judge.ask([Explain(EXAMPLES, CONTRAST)])[0]
    model = json.loads(explained.explanation)
    assert next(iter(model["on"])) == "dog" and "the" not in model["on"] and explained.status == "ok"
    assert readable(explained.explanation).startswith("fires on “dog”") and readable("in words") == "in words"
    windows = (("a", " DOG", " barks"), ("a", " fish", " swims"))
    found = judge.ask([Detect(explained.explanation, windows)])[0]
    assert found.said == (True, False) and found.score[0] > 0.5 > found.score[1]
    again = judge.ask([Detect(explained.explanation, windows)])[0]
    assert again == found and judge.ask([Explain(EXAMPLES, CONTRAST)])[0] == explained


def test_ratios_of_the_offline_judge_by_hand() -> None:
    explained = StatisticsJudge().ask([Explain((window("x dog", 1),), (window("dog x x x"),))])[0]
    model = json.loads(explained.explanation)
    # dog: (1 + ½·¼) / (1 + ½) over ¼ of the contrast; x before it: (1 + ½·¾) / (1 + ½) over ¾; x near: likewise with ½ a token
    assert model["on"] == {"dog": round(np.log((1 + 0.5 / 4) / 1.5 / 0.25), 3)}
    assert model["after"] == {"x": round(np.log((1 + 0.5 * 0.75) / 1.5 / 0.75), 3)}
    assert model["near"] == {"x": round(np.log((0.5 + 0.5 * 0.75) / 1.0 / 0.75), 3)}


@pytest.mark.parametrize("explanation", ["", "animals", "{}", "[]", '{"on": 1, "after": {}, "near": {}, "at_least": 0}', '{"on": []}'])
def test_an_explanation_of_somebody_else_is_unscored(explanation: str) -> None:
    assert StatisticsJudge().ask([Detect(explanation, (("a",),))])[0].status == "unscored"


# judges whose answers are known


@dataclass(frozen=True)
class Scripted:
    """Says of every window what a rule says; explains with a number, or not at all."""

    rule: str
    asked: list[Question] = field(default_factory=list)
    identity = {"judge": "scripted"}  # noqa: RUF012
    spending = Spending()

    def ask(self, questions: Sequence[Question]) -> list[Answer]:
        self.asked.extend(questions)
        return [self._answer(q, i) for i, q in enumerate(questions)]

    def _answer(self, q: Question, i: int) -> Answer:
        prompt = prompt_hash(self.rule, q)
        if isinstance(q, Explain):
            bad = self.rule == "half explained" and i % 2
            return Answer(prompt, "?", "unscored") if bad else Answer(prompt, f"E{i}", "ok", f"E{i}")
        if self.rule == "every third unscored" and i % 3 == 0:
            return Answer(prompt, "?", "unscored")
        if self.rule in ("fails", "unscored"):
            return Answer(prompt, "", "failed" if self.rule == "fails" else "unscored")
        said = tuple(self.rule == "all" for _ in q.windows)
        return Answer(prompt, "said", "ok", said=said, score=tuple(float(s) for s in said))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Context:
    return text(tmp_path_factory.mktemp("store"))


TASK = Autointerp(tokens=20_000, latents=8)


def judged(place: Context, rule: str, task: Autointerp = TASK) -> tuple[Result | NotApplicable, Scripted]:
    judge = Scripted(rule)
    ctx = replace(place, judge=judge)
    return task.run(Canonical(sparse(place)), ctx), judge


def test_one_answer_for_all_is_at_the_floor(place: Context) -> None:
    none, judge = judged(place, "none")
    every, _ = judged(place, "all")
    assert isinstance(none, Result) and isinstance(every, Result)
    m, e = ({k: v.value for k, v in r.metrics.items()} for r in (none, every))
    assert m["none_accuracy"] == pytest.approx(10 / 14) == m["accuracy"] and e["accuracy"] == pytest.approx(4 / 14)
    for r in (m, e):
        assert (r["balanced_accuracy"], r["auc"], r["balanced_accuracy_hard"], r["auc_hard"]) == (0.5, 0.5, 0.5, 0.5)
    assert {"statistics_balanced_accuracy_hard", "shuffled_balanced_accuracy_hard"} <= set(m)
    explains = [q for q in judge.asked if isinstance(q, Explain)]
    assert len(explains) == 8 and all(len(q.examples) == 15 for q in explains)
    assert all(len(q.windows) in range(9, 15) for q in judge.asked if isinstance(q, Detect))


def test_what_is_shown_holds_what_it_should(place: Context) -> None:
    """Windows of the explanation fire, contrast and negatives are silent, nothing is shown twice, specials never."""
    result, judge = judged(place, "none")
    assert isinstance(result, Result)
    explains = [q for q in judge.asked if isinstance(q, Explain)]
    for q in explains:
        assert all(max(w.codes) > 0 for w in q.examples) and all(max(w.codes) == 0 for w in q.contrast)
        texts = [w.text for w in (*q.examples, *q.contrast)]
        assert len(set(texts)) == len(texts) and all(len(w.tokens) <= 21 for w in q.examples)
        assert max(q.examples[0].codes) == max(c for w in q.examples for c in w.codes)
    t = result.units
    rows = set(zip(t["latent"], t["list"], t["kind"], t["token"], t["by"], strict=True))
    assert len(rows) == len(t["latent"]) and {k for k in t["kind"]} == {"top", "weighted", "random", "hard"}
    assert all(a == (k in ("top", "weighted")) for a, k in zip(t["active"], t["kind"], strict=True))


SMALL = replace(PROTOCOLS["ortsae"], deciles=1, negatives=10, spare=4, top=(4, 0), firings=20)


@pytest.mark.parametrize("protocol", [PROTOCOLS["saebench"], SMALL], ids=["saebench", "ortsae"])
def test_windows_are_what_their_kind_says(place: Context, protocol: Protocol) -> None:
    sae = Canonical(sparse(place))
    reader, alive, found, nearest = Reader.of(sae, place, 20_000), np.ones(sae.d_sae, dtype=bool), 0, 0
    cosines = sae.W_dec @ sae.W_dec.T - 2 * np.eye(sae.d_sae)
    for latent in range(sae.d_sae):
        e = examples_of(protocol, reader, sae, latent, alive, place)
        if e is None:
            continue
        found += 1
        active, test = e.explain.tolist(), [t for _, t in e.test]
        negatives = [*e.negatives["random"].tolist(), *e.negatives.get("hard", np.empty(0)).astype(int).tolist(), *e.contrast.tolist()]
        spans = [set(range(reader.layout.start[t], reader.layout.end[t])) for t in (*active, *test, *negatives)]
        assert sum(map(len, spans)) == len(set().union(*spans)), "windows overlap"
        assert len({reader.layout.text(t) for t in (*active, *test, *negatives)}) == len(spans), "a text is shown twice"
        assert not reader.tokens.rows.special[sorted(set().union(*spans))].any(), "a special token is shown"
        fires = set(reader.firings(latent).at.tolist())
        assert set(active) | set(test) <= fires and not any(fires & span for span in spans[len(active) + len(test) :])
        near = np.argsort(-cosines[latent])[:5]
        for t in e.negatives.get("hard", np.empty(0)).astype(int):
            assert any(t in reader.firings(int(n)).at for n in near), "no similar latent fires in a hard negative"
            nearest += int(t in reader.firings(int(near[0])).at)
        if protocol.apart:
            explaining, testing = (set(reader.documents(np.array(some)).tolist()) for some in (active, [*test, *e.negatives["random"]]))
            assert not explaining & testing
    assert found >= 8 and nearest >= 4 * found


def test_verdicts_are_asked_for_in_no_telling_order(place: Context) -> None:
    result, _ = judged(place, "none")
    assert isinstance(result, Result)
    active = np.array(result.units["active"])[np.array([b == "judge" for b in result.units["by"]])]
    first = active.reshape(-1, 14)[:, :4] if len(active) % 14 == 0 else active[: len(active) // 14 * 14].reshape(-1, 14)[:, :4]
    assert 0.1 < first.mean() < 0.6  # in order it would be 1


def test_one_at_a_time_from_other_documents(place: Context) -> None:
    protocol, seen = PROTOCOLS["ortsae"], SMALL
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PROTOCOLS, "ortsae", seen)
        result, judge = judged(place, "none", replace(TASK, protocol="ortsae"))
    assert isinstance(result, Result) and protocol.together is seen.together is False
    assert all(len(q.windows) == 1 for q in judge.asked if isinstance(q, Detect))
    assert result.metrics["none_accuracy"].value == 0.5
    assert {k for k, a in zip(result.units["kind"], result.units["active"], strict=True) if a} == {f"decile {i}" for i in range(1, 11)}


def test_what_cannot_be_read_is_counted_and_left_out(place: Context) -> None:
    result, _ = judged(place, "every third unscored")
    assert isinstance(result, Result)
    lost = result.counts["judge_unscored"]
    assert lost > 0 and any(f"{lost} of" in w for w in result.warnings)
    statuses = [(b, s, x) for b, s, x in zip(*(result.units[c] for c in ("by", "status", "said")), strict=True)]
    assert sum(b == "judge" and s == "unscored" for b, s, _ in statuses) == lost
    assert all((x is None) == (s != "ok") for _, s, x in statuses)
    half, _ = judged(place, "half explained")
    assert isinstance(half, Result) and half.metrics["balanced_accuracy"].n == 4
    with pytest.raises(JudgeError, match="never came"):  # recorded, it would not be measured again
        judged(place, "fails")
    nothing, _ = judged(place, "unscored")
    assert isinstance(nothing, NotApplicable) and "judge_unscored" in nothing.reason


# planted latents in real text


@dataclass(frozen=True)
class Planted(Context):
    """Real text on which latent i fires on one word, and nowhere else."""

    words: tuple[int, ...] = ()

    def text(self, tokens: int) -> Tokens:
        rows = self.evaluation_rows(tokens)
        return Tokens(rows, np.zeros((len(rows.ids), 1), dtype=np.float32), ~rows.special)

    def text_codes(self, sae: Canonical, text: Tokens) -> Codes:
        ids = text.rows.ids[text.keep]
        latent = np.full(int(ids.max()) + 1, -1)
        latent[list(self.words)] = np.arange(len(self.words))
        at = np.flatnonzero(latent[ids] >= 0)
        strength = 1 + np.random.default_rng(0).random(len(at))
        return Codes.from_parts(at, latent[ids][at], strength, len(ids), len(self.words))


@pytest.mark.model
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_perfectly_interpretable_latents_score_one_and_shuffled_or_permuted_ones_chance(protocol: str) -> None:
    lm = open_lm("embedded:smollm2-135m-q4_1", "cpu", "float32")
    site = {"lm": lm.name, "revision": lm.revision, "lm_dtype": lm.dtype, "hook": str(Hook(7))}
    ctx = Planted(lambda: lm, site, open_corpus(), Store.default())
    rows = ctx.evaluation_rows(65_536)
    counts, words = np.bincount(rows.ids[~rows.special]), dict[str, int]()
    for i in np.flatnonzero((counts >= 90) & (counts <= 1500)):
        word = lm.tokenizer.decode([int(i)]).strip().lower()
        if word.isalpha():
            words.setdefault(word, int(i))  # one spelling of each
    common = [*words.values()][:50]
    assert len(common) == 50
    d = dictionary(50, 16, 1)
    sae = Canonical(DenseSAE(d.T.contiguous(), torch.zeros(50), d, torch.zeros(16), torch.zeros(16), ReLU()))
    task = Autointerp(tokens=65_536, latents=40, protocol=protocol)
    result = task.run(sae, replace(ctx, words=tuple(common)))
    assert isinstance(result, Result)
    m = {k: v.value for k, v in result.metrics.items()}
    assert min(m["balanced_accuracy_hard"], m["auc_hard"], m["balanced_accuracy"], m["auc"], m["accuracy"]) >= 0.95
    assert abs(m["shuffled_balanced_accuracy_hard"] - 0.5) < 0.06 and abs(m["shuffled_balanced_accuracy"] - 0.5) < 0.06
    random = replace(task, permuted=True).run(sae, replace(ctx, words=tuple(common)))
    assert isinstance(random, Result)
    assert abs(random.metrics["balanced_accuracy_hard"].value - 0.5) < 0.06 and abs(random.metrics["auc"].value - 0.5) < 0.06


# what is kept


def test_scores_follow_from_the_verdicts_and_two_runs_agree(place: Context, tmp_path: Path) -> None:
    from bench.record import Records, SubjectFacts, make_record, subject_task

    sae, kept = Canonical(sparse(place)), []
    for i, rule in enumerate(("none", "all", "every third unscored")):
        ctx = replace(place, judge=Scripted(rule))
        result = TASK.run(sae, ctx)
        assert isinstance(result, Result)
        subject = SubjectFacts(name="x", sha256=sae.sha256, format="f", architecture="a", d_in=sae.d_in, d_sae=sae.d_sae, **ctx.site)
        record = make_record(subject, subject_task(TASK), {"judge": str(i)}, 0, result, {})
        records = Records(tmp_path)
        records.write(record, result.units)
        kept.append(records.path(record.subject, record.task, record.key))
    for path in kept:
        again = rescored(path)
        assert len(again) > 10 and all(a == pytest.approx(b, abs=1e-12) for a, b in again.values())
    found = agreement(kept[0], kept[0])
    assert {a["list"] for a in found} == {"random", "hard"} and all(a["kappa"] is None for a in found)
    assert all(a["kappa"] == 0.0 for a in agreement(kept[0], kept[1]))
    elsewhere = tmp_path / "moved"
    elsewhere.mkdir()
    for path in (kept[0], kept[0].with_suffix(".parquet")):
        (elsewhere / path.name).write_bytes(path.read_bytes())
    assert rescored(elsewhere / kept[0].name) == rescored(kept[0])
    other = make_record(subject, subject_task(replace(TASK, permuted=True)), {"judge": "0"}, 0, result, {})
    records.write(other, result.units)
    with pytest.raises(UsageError, match="same windows"):
        agreement(kept[0], records.path(other.subject, other.task, other.key))


def test_words_stay_apart_where_a_tokenizer_drops_the_first_space() -> None:
    class Drops:
        def decode(self, ids: list[int], **_: object) -> str:
            return "".join([" the", " black", " dog"][i] for i in ids).lstrip()

    decode = Decoder(Drops(), 0)
    assert [decode([i]) for i in (0, 1, 2)] == [" the", " black", " dog"] and decode([1, 2]) == " black dog"
