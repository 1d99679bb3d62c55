"""dictionary_learning: what its `trainSAE` writes, against its own classes' `from_pretrained`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bench.adapters import Given, open_checkpoint
from bench.sae.canonical import Canonical
from tests.parity.shared import D_IN, D_SAE, EDGE, LM, Case, K, P, Peer, Written, check, fill, opened, quiet, tokens

pytestmark = pytest.mark.parity

STEPS, SAVED_AT = 8, 4
TRAINERS: dict[str, tuple[str, str]] = {  # module, class
    "Standard": ("standard", "StandardTrainer"),
    "AprilUpdate": ("standard", "StandardTrainerAprilUpdate"),
    "PAnneal": ("p_anneal", "PAnnealTrainer"),
    "Gated": ("gdm", "GatedSAETrainer"),
    "GatedAnneal": ("gated_anneal", "GatedAnnealTrainer"),
    "JumpRelu": ("jumprelu", "JumpReluTrainer"),
    "TopK": ("top_k", "TopKTrainer"),
    "BatchTopK": ("batch_top_k", "BatchTopKTrainer"),
    "Matryoshka": ("matryoshka_batch_top_k", "MatryoshkaBatchTopKTrainer"),
}
CLASS = {
    "Standard": "AutoEncoder",
    "AprilUpdate": "AutoEncoder",
    "PAnneal": "AutoEncoder",
    "Gated": "GatedAutoEncoder",
    "GatedAnneal": "GatedAutoEncoder",
    "JumpRelu": "JumpReluAutoEncoder",
    "TopK": "AutoEncoderTopK",
    "BatchTopK": "BatchTopKSAE",
    "Matryoshka": "MatryoshkaBatchTopKSAE",
}
IN_BATCHES = ("BatchTopK", "Matryoshka")
EDGE_OF = {"JumpRelu": "off", "BatchTopK": "off", "Matryoshka": "off", "Gated": "off"}


def values() -> dict[str, torch.Tensor]:
    """Our parameters by the library's names."""
    linear = {"encoder.weight": P["W_enc"].T, "encoder.bias": P["b_enc"], "decoder.weight": P["W_dec"].T}
    biases = {"bias": P["b_dec"], "decoder.bias": P["b_dec"], "decoder_bias": P["b_dec"], "b_dec": P["b_dec"]}
    gated = {"r_mag": P["r_mag"], "gate_bias": P["b_gate"], "mag_bias": P["b_mag"]}
    return linear | biases | gated | {n: P[n] for n in ("W_enc", "W_dec", "b_enc", "threshold")}


def maker(kind: str, planted: bool, threshold: float | None, half: bool) -> Callable[..., Any]:
    """What `trainSAE` calls to make its trainer: the library's own, with our parameters where nothing is to be trained."""
    module, name = TRAINERS[kind]
    cls = getattr(__import__(f"dictionary_learning.trainers.{module}", fromlist=[name]), name)

    def make(**options: Any) -> Any:
        trainer = cls(**options)
        if planted:
            own = {n: v for n, v in values().items() if n in trainer.ae.state_dict()}
            if kind in (*IN_BATCHES, "TopK"):
                own["threshold"] = torch.tensor(-1.0 if threshold is None else threshold)
            fill(trainer.ae, own)
        if half:
            trainer.ae.bfloat16()
        return trainer

    return make


def trained(
    folder: Path, kind: str, steps: int, threshold: float | None = EDGE, normalise: bool = False, half: bool = False, **options: Any
) -> Path:
    """`trainSAE`, which writes config.json and ae.pt (and a step between) also where it takes no step at all."""
    from dictionary_learning.training import trainSAE

    data = [tokens(kind != "JumpRelu") for _ in range(steps)]
    config = {
        "trainer": maker(kind, steps == 0, threshold, half),
        "steps": max(steps, 1),
        "activation_dim": D_IN,
        "dict_size": D_SAE,
        "layer": 2,
        "lm_name": LM,
        "device": "cpu",
        "warmup_steps": 0,
        "seed": 5,
    }
    if kind not in ("GatedAnneal",):
        config["submodule_name"] = "resid_post_layer_2"
    if kind in (*IN_BATCHES, "TopK"):
        config |= {"k": K, "threshold_start_step": 1}
    else:
        config["sparsity_warmup_steps"] = 0 if kind == "PAnneal" else None
    if kind in ("PAnneal", "GatedAnneal"):
        config |= {"anneal_start": 2, "p_end": 0.5, "sparsity_warmup_steps": 1, "n_sparsity_updates": 2}
    if kind == "Matryoshka":
        config["group_fractions"] = [0.25, 0.25, 0.5]
    with torch.enable_grad():
        trainSAE(
            data, [config | options], steps, save_steps=[SAVED_AT], save_dir=str(folder), normalize_activations=normalise, device="cpu"
        )
    return folder / "trainer_0"


def answered(folder: Path, file: str, kind: str, **options: Any) -> Written:
    """Codes and reconstructions of the class that the config names, loaded by the library from the file."""
    from dictionary_learning import dictionary, utils

    name = json.loads((folder / "config.json").read_text())["trainer"]["dict_class"]
    cls = getattr(utils, name, None) or getattr(dictionary, name)
    raw = {"normalize_decoder": False} if name == "AutoEncoder" else {}
    ae = cls.from_pretrained(str(folder / file), **raw, **options).float()
    x = tokens(name not in ("JumpReluAutoEncoder", "AutoEncoderNew"))
    codes = ae.encode(x)
    return Written(folder if file == "ae.pt" else folder / file, x, codes, ae.decode(codes))


def planted(kind: str, **options: Any) -> Callable[[Path], Written]:
    return lambda folder: answered(trained(folder, kind, 0, **options), "ae.pt", kind)


def stepped(kind: str, file: str = "ae.pt", **options: Any) -> Callable[[Path], Written]:
    return lambda folder: answered(trained(folder, kind, STEPS, **options), file, kind)


def new(folder: Path) -> Written:
    """AutoEncoderNew has no trainer that names it in its config; its state is saved as `trainSAE` saves any."""
    from dictionary_learning.dictionary import AutoEncoderNew

    home = trained(folder, "AprilUpdate", 0)
    config = json.loads((home / "config.json").read_text())
    config["trainer"]["dict_class"] = "AutoEncoderNew"
    (home / "config.json").write_text(json.dumps(config))
    ae = AutoEncoderNew(D_IN, D_SAE)
    fill(ae, {n: v for n, v in values().items() if n in ae.state_dict()})
    torch.save({k: v.cpu() for k, v in ae.state_dict().items()}, home / "ae.pt")
    return answered(home, "ae.pt", "AprilUpdate")


def without_threshold(kind: str, **options: Any) -> Callable[[Path], Written]:
    """A file whose threshold was never set, and what the same dictionary computes once it is."""

    def write(folder: Path) -> Written:
        home = trained(folder / "bare", kind, 0, threshold=None)
        w = answered(trained(folder / "set", kind, 0), "ae.pt", kind)
        return replace(w, path=home)

    return write


def backup(folder: Path) -> Written:
    """A backup for resuming, as later versions write it into ae.pt: this version has none, so the parts are its own, the dict is not."""
    home = trained(folder, "TopK", 0)
    state = torch.load(home / "ae.pt", weights_only=True)
    torch.save({"step": 3, "ae": state, "optimizer": {}, "config": {}, "norm_factor": 1.5}, home / "ae.pt")
    return Written(home, *(torch.zeros(1),) * 3)


def mislabelled(folder: Path) -> Written:
    """The trainer of April takes AutoEncoderNew, and its config then names AutoEncoder all the same; the library cannot read it either."""
    from dictionary_learning.dictionary import AutoEncoderNew

    return Written(trained(folder, "AprilUpdate", STEPS, dict_class=AutoEncoderNew), *(torch.zeros(1),) * 3)


def cases() -> Iterator[Case]:
    for kind, name in CLASS.items():
        k = K if kind == "TopK" else 0
        if kind not in ("AprilUpdate", "PAnneal", "GatedAnneal"):
            yield Case(name, "ae.pt", planted(kind), edge=EDGE_OF.get(kind, ""), k=k)
            yield Case(name, "bfloat16", planted(kind, half=True), edge=EDGE_OF.get(kind, ""), k=k)
        trainer = TRAINERS[kind][1]
        yield Case(name, f"{trainer}, {STEPS} steps", stepped(kind))
        yield Case(name, f"{trainer}, checkpoints/ae_{SAVED_AT}.pt", stepped(kind, f"checkpoints/ae_{SAVED_AT}.pt"))
        if kind not in ("PAnneal", "GatedAnneal"):
            yield Case(name, f"{trainer}, normalize_activations", stepped(kind, normalise=True))
    yield Case("AutoEncoderNew", "ae.pt", new)
    for kind in IN_BATCHES:
        bare = without_threshold(kind)
        yield Case(CLASS[kind], "threshold never set, nothing given", bare, refused="BatchTopK threshold was never set")
        yield Case(CLASS[kind], f"threshold never set, --threshold {EDGE:g}", bare, Given(threshold=EDGE), edge="off")
    yield Case("AutoEncoderTopK", "backup for resuming", backup, refused="a backup for resuming")
    yield Case("AutoEncoder", "AutoEncoderNew under its name", mislabelled, refused="decoder.bias")


PEER = Peer("dictionary-learning", [*cases()])


@pytest.mark.parametrize("case", PEER.cases, ids=str)
def test_files_of_dictionary_learning(case: Case, tmp_path: Path) -> None:
    check(case, tmp_path)


def test_the_librarys_loader_of_folders_normalises_where_our_codes_are_raw(tmp_path: Path) -> None:
    """`load_dictionary` folds decoder norms into an AutoEncoder's codes; canonical codes, which metrics see, are the same numbers."""
    from dictionary_learning.utils import load_dictionary

    w, loaded = opened(Case("AutoEncoder", "ae.pt", planted("Standard")), tmp_path)
    with quiet():
        theirs = load_dictionary(str(w.path), "cpu")[0].encode(w.x).numpy()
    assert not np.allclose(loaded.sae.encode(w.x).numpy(), theirs, atol=0.1)
    np.testing.assert_allclose(Canonical(loaded.sae).encode_sparse(w.x.numpy()).matrix.toarray(), theirs, atol=1e-5, rtol=1e-5)


def test_trained_files_say_where_they_belong(tmp_path: Path) -> None:
    with quiet():
        home = trained(tmp_path, "BatchTopK", STEPS)
    loaded = open_checkpoint(home, Given())
    assert (loaded.lm, loaded.hook, loaded.facts["trainer_class"]) == (LM, "resid_post_layer_2", "BatchTopKTrainer")
