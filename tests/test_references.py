"""References: a path, a demo, a hub repository, or a recorded name; each failure says what to do next."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch

from bench import registry
from bench.adapters import Given
from bench.errors import CheckpointError, UsageError
from bench.record import Record, Records, SubjectFacts, TaskFacts, make_record
from bench.references import find_subject, open_sae
from bench.sae.activations import TopK
from bench.sae.checkpoint import save
from bench.sae.dense import DenseSAE
from bench.types import NotApplicable

ROOT = Path(__file__).resolve().parents[1]


def checkpoint(folder: Path) -> Path:
    g = torch.Generator().manual_seed(0)
    w = torch.randn(16, 8, generator=g)
    save(
        DenseSAE(w.T.contiguous(), torch.zeros(16), w, torch.zeros(8), torch.zeros(8), TopK(3)),
        folder,
        {"name": "mine", "lm": "tiny:random"},
    )
    return folder


def recorded(name: str, sha: str = "", hook: str = "blocks.1.hook_resid_post") -> Record:
    who = SubjectFacts(
        name=name,
        sha256=sha or hashlib.sha256(name.encode()).hexdigest(),
        format="f",
        architecture="a",
        d_in=1,
        d_sae=2,
        lm="m",
        revision="r",
        lm_dtype="float32",
        hook=hook,
    )
    return make_record(who, TaskFacts(name="t", version=1, params={}), {}, 0, NotApplicable("x"), {})


def test_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = checkpoint(tmp_path / "sae")
    opened = open_sae(str(folder))
    assert (opened.reference, opened.loaded.name, opened.loaded.sae.d_sae) == (str(folder), "mine", 16)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert open_sae("~/sae").loaded.sae.sha256 == opened.loaded.sae.sha256
    with pytest.raises(CheckpointError, match="--threshold"):
        open_sae(str(folder), Given(threshold=0.5))


def test_a_path_that_is_not_there(tmp_path: Path) -> None:
    for reference in (str(tmp_path / "no"), "no", "x" * 5000, "nul\0byte"):
        with pytest.raises(UsageError, match="no checkpoint at") as e:
            open_sae(reference, records=[Records(tmp_path / "none")])
        assert e.value.exit_code == 2 and "hf:REPO" in e.value.remedy


def test_demos() -> None:
    for name in registry.demos():
        assert open_sae(f"demo:{name}").loaded.lm
    with pytest.raises(UsageError, match="unknown demo 'nope'"):
        open_sae("demo:nope")


def test_a_recorded_name_is_explained(tmp_path: Path) -> None:
    kept = Records(tmp_path).write(recorded("published"), {})
    for reference in ("published", kept.subject.sha256[:8], kept.subject.sha256):
        with pytest.raises(UsageError, match="known from records only") as e:
            open_sae(reference, records=[Records(tmp_path)])
        assert kept.subject.sha256[:12] in e.value.cause and "path" in e.value.remedy


def test_names_and_prefixes() -> None:
    a, b = recorded("a", "1" * 8 + "a" * 56), recorded("b", "1" * 8 + "b" * 56)
    found = [a, b, recorded("a", a.subject.sha256, "blocks.2.hook_resid_post")]
    assert find_subject("a", found).sha256 == a.subject.sha256
    assert find_subject("demo:b", found) == b.subject
    assert find_subject("11111111b", found) == b.subject
    assert find_subject(a.subject.sha256, found).name == "a"


@pytest.mark.parametrize("reference", ["1111111", "", "11111111A", "2" * 8, "1" * 65, "../a", "A"])
def test_what_names_nothing(reference: str) -> None:
    with pytest.raises(UsageError, match="no recorded SAE") as e:
        find_subject(reference, [recorded("a", "1" * 64), recorded("b", "3" * 64)])
    assert e.value.remedy


def test_near_names_are_offered() -> None:
    with pytest.raises(UsageError) as e:
        find_subject("batchtop", [recorded("batchtopk"), recorded("random")])
    assert "did you mean batchtopk" in e.value.remedy


@pytest.mark.parametrize("reference", ["twin", "12345678"])
def test_ambiguous_references_list_the_candidates(reference: str) -> None:
    shas = ["12345678" + c * 56 for c in "ab"]
    with pytest.raises(UsageError, match="several") as e:
        find_subject(reference, [recorded("twin", s) for s in shas])
    assert e.value.exit_code == 2 and all(s[:12] in e.value.remedy for s in shas)


def test_opening_an_ambiguous_recorded_name_lists_the_candidates_too(tmp_path: Path) -> None:
    known = Records(tmp_path)
    for sha in ("12345678" + c * 56 for c in "ab"):
        known.write(recorded("twin", sha), {})
    with pytest.raises(UsageError, match="several") as e:
        open_sae("twin", records=[known])
    assert e.value.remedy.count("twin") == 2


def test_published_records_are_read_only(tmp_path: Path) -> None:
    from bench.references import published_records
    from bench.runner import measure, workload
    from bench.spec import RunSpec

    with pytest.raises(UsageError, match="read-only"):
        next(measure(workload(RunSpec(sae=("demo:ortsae",), records=str(published_records().folder)))))
