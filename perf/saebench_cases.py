"""Ask SAEBench for its answers on small seeded inputs, and store them in `tests/data/saebench_cases.json`.

SAEBench is not needed by the tests; this script is, once per change of the inputs or of the version compared with.
sae-bench asks for torchvision and old pins, so it is installed in an environment of its own, without dependencies:

    python -m venv /tmp/sb && /tmp/sb/bin/pip install torch==2.13.0
    /tmp/sb/bin/pip install sae-lens==6.54.12 transformer-lens==3.9.0 scikit-learn einops beartype tabulate
    /tmp/sb/bin/pip install --no-deps sae-bench==0.6.0
    PYTHONPATH=. /tmp/sb/bin/python perf/saebench_cases.py
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from sae_bench.custom_saes.jumprelu_sae import JumpReluSAE
from sae_bench.evals.absorption import k_sparse_probing, probing, vocab
from sae_bench.evals.core import main as core_main
from sae_bench.evals.core.eval_config import CoreEvalConfig
from sae_bench.evals.scr_and_tpp import main as scr_and_tpp
from sae_bench.evals.sparse_probing import probe_training

from perf.saebench_common import Lookup, silence, their_absorption, their_probe, their_sae
from tests import saebench_inputs as inputs

OUT = Path(__file__).resolve().parents[1] / "tests" / "data" / "saebench_cases.json"
SCR_KEYS = ("professor / nurse", "male / female", "male_professor / female_nurse")  # a, b, biased
SCR_NEGATIVES = ("nurse_data_only", "female_data_only", "female_nurse_data_only")


def absorption(w: inputs.Words) -> dict[str, Any]:
    """Fraction and full absorption of every word."""
    stand_in = Lookup(w.x, w.f, w.rows)
    fraction, full = their_absorption(stand_in, stand_in, w.letter, w.directions, w.main)
    return {"fraction": fraction, "full": full}


def zero_projection_raises(w: inputs.Words) -> bool:
    try:
        absorption(inputs.Words(np.zeros_like(w.x), w.f, w.letter, w.rows, w.directions, w.main))
    except ZeroDivisionError:
        return True
    return False


def linear(s: inputs.Linear) -> JumpReluSAE:
    return their_sae(W_enc=s.w_enc, b_enc=s.b_enc, W_dec=s.w_dec, b_dec=s.b_dec)


@contextlib.contextmanager
def first_instead_of_random() -> Iterator[None]:
    """SAEBench draws negatives and the order of rows; here it takes the first ones, so that anybody can repeat it."""
    with mock.patch.object(torch, "randperm", lambda n: torch.arange(n)):
        yield


def tpp(d: inputs.Documents, s: inputs.Linear) -> dict[str, Any]:
    """Effects, selections, accuracies before and after ablation, scores."""
    sae, names = linear(s), [f"c{i}" for i in range(len(d.train))]
    train, test = ({n: torch.from_numpy(x) for n, x in zip(names, part, strict=True)} for part in (d.train, d.test))
    probes = {n: their_probe(w, b) for n, w, b in zip(names, d.w, d.b, strict=True)}
    effects = scr_and_tpp.get_all_node_effects_for_one_sae(sae, probes, names, False, train, 10)
    means = scr_and_tpp.activation_collection.create_meaned_model_activations(test)
    clean = scr_and_tpp.get_probe_test_accuracy(probes, names, means, 500, False)
    ablated = scr_and_tpp.perform_feature_ablations(probes, sae, 10, test, effects, list(inputs.SIZES), names, 500, False)
    overall, per_class = scr_and_tpp.create_tpp_plotting_dict(ablated, clean)
    selected = scr_and_tpp.select_top_n_features(effects["c0"], 5, "c0")
    moved = scr_and_tpp.ablated_precomputed_activations(test["c0"], sae, selected, 10)
    return {
        "effects": np.stack([effects[n].numpy() for n in names]),
        "selected": [[np.flatnonzero(scr_and_tpp.select_top_n_features(effects[n], k, n)) for k in inputs.SIZES] for n in names],
        "selected_many": np.flatnonzero(scr_and_tpp.select_top_n_features(effects["c0"], inputs.MANY, "c0")),
        "clean": [clean[n] for n in names],
        "ablated": [[[ablated[n][k][e] for e in names] for k in inputs.SIZES] for n in names],
        "score": [overall[f"tpp_threshold_{k}_total_metric"] for k in inputs.SIZES],
        "score_per_class": [[per_class[n][f"tpp_threshold_{k}_total_metric"] for k in inputs.SIZES] for n in names],
        "logits": probes["c0"](moved).numpy(),
    }


def tpp_draws() -> list[float]:
    """Scores at 5 latents when only its random draw of negatives changes."""
    out = []
    for seed in range(inputs.DRAWS):
        torch.manual_seed(seed)
        out.append(tpp(inputs.documents(), inputs.sae())["score"][inputs.SIZES.index(5)])
    return out


def scr(x: inputs.Cells, s: inputs.Linear) -> dict[str, Any]:
    """Effects of both attributes, accuracies of the biased probe after ablation, scores."""
    sae = linear(s)
    probes = {n: their_probe(w, b) for n, w, b in zip(SCR_KEYS, x.w, x.b, strict=True)}
    train, test = (by_attribute(part) for part in (x.train, x.test))
    effects = scr_and_tpp.get_all_node_effects_for_one_sae(sae, probes, list(SCR_KEYS), True, train, 10)
    means = scr_and_tpp.activation_collection.create_meaned_model_activations(test)
    clean = scr_and_tpp.get_probe_test_accuracy(probes, list(SCR_KEYS), means, 500, True)
    ablated = scr_and_tpp.perform_feature_ablations(probes, sae, 10, test, effects, list(inputs.SIZES), list(SCR_KEYS), 500, True)
    found = scr_and_tpp.get_scr_plotting_dict(ablated, clean)
    cross = [f"{SCR_KEYS[2]} probe on {n} data" for n in SCR_KEYS[:2]]
    return {
        "effects": np.stack([effects[n].numpy() for n in SCR_KEYS[:2]]),
        "clean": [clean[n] for n in (*SCR_KEYS, *cross)],
        "ablated": [[[ablated[n][k][e] for e in cross] for k in inputs.SIZES] for n in SCR_KEYS[:2]],
        "by_direction": [[found[f"scr_dir{i}_threshold_{k}"] for i in (1, 2)] for k in inputs.SIZES],
        "score": [found[f"scr_metric_threshold_{k}"] for k in inputs.SIZES],
    }


def by_attribute(x: np.ndarray) -> dict[str, torch.Tensor]:
    """The six sets SAEBench expects, from cells [a, b, n, …]."""
    flat = [(x[1].reshape(-1, *x.shape[3:]), x[0].reshape(-1, *x.shape[3:]))]
    flat += [(x[:, 1].reshape(-1, *x.shape[3:]), x[:, 0].reshape(-1, *x.shape[3:])), (x[1, 1], x[0, 0])]
    keys = zip(SCR_KEYS, SCR_NEGATIVES, flat, strict=True)
    return {n: torch.from_numpy(np.ascontiguousarray(v)) for p, q, (a, b) in keys for n, v in ((p, a), (q, b))}


def scr_scores() -> list[list[float | None]]:
    """Per row of `ACCURACIES`: score by direction 1 and 2, and the score it reports (none where it reports none)."""
    out = []
    for (of_b, of_a, biased_a, biased_b), (after_b, after_a) in inputs.ACCURACIES:
        cross = [f"{SCR_KEYS[2]} probe on {n} data" for n in SCR_KEYS[:2]]
        clean = {SCR_KEYS[0]: of_a, SCR_KEYS[1]: of_b, cross[0]: biased_a, cross[1]: biased_b}
        ablated = {SCR_KEYS[1]: {2: {cross[0]: after_b}}, SCR_KEYS[0]: {2: {cross[1]: after_a}}}
        found = scr_and_tpp.get_scr_plotting_dict(ablated, clean)
        out.append([found["scr_dir1_threshold_2"], found["scr_dir2_threshold_2"], found.get("scr_metric_threshold_2")])
    return out


def probing_case(p: inputs.Probing) -> dict[str, Any]:
    """Latents selected, coefficients and test accuracy per k."""
    train, test = (torch.from_numpy(v) for v in (p.train, p.test))
    y_train, y_test = (torch.from_numpy(v) for v in (p.y_train, p.y_test))
    out: dict[str, Any] = {"selected": [], "weights": [], "intercept": [], "accuracy": []}
    for k in inputs.KS:
        dropped = probe_training.get_top_k_mean_diff_mask(train, y_train, k)
        a, b = (probe_training.apply_topk_mask_reduce_dim(v, dropped) for v in (train, test))
        probe, accuracy = probe_training.train_sklearn_probe(a, y_train, b, y_test)
        out["selected"].append(np.flatnonzero(~dropped.numpy()))
        out["weights"].append(probe.coef_[0])
        out["intercept"].append(float(probe.intercept_[0]))
        out["accuracy"].append(accuracy)
    return out


def noise_accuracies() -> list[float]:
    """Test accuracy it reports for SCR and TPP probes on rows without signal, with its own settings."""
    torch.manual_seed(0)
    out = []
    for seed in range(inputs.NOISE):
        a, b, y = (torch.from_numpy(v) for v in inputs.noise(seed=seed))
        with torch.enable_grad():
            out.append(probe_training.train_probe_gpu(a, y, b, y, a.shape[1], 16, 20, 1e-3, l1_penalty=1e-3, early_stopping_patience=20)[1])
    return out


class Reader:
    """Stands for the language model and its store of tokens: gives rows in turn, and logits as the stream makes them."""

    def __init__(self, t: inputs.Stream) -> None:
        self.t, self.at = t, 0
        self.store_batch_size_prompts, self.context_size = t.ids.shape

    def reset_input_dataset(self) -> None:
        self.at = 0

    def get_batch_tokens(self, rows: int) -> torch.Tensor:
        self.at += rows
        return torch.from_numpy(self.t.ids[self.at - rows : self.at])

    def __call__(self, ids: torch.Tensor, **_: object) -> tuple[torch.Tensor, torch.Tensor]:
        return self.run_with_hooks(ids, [("", lambda acts, hook: acts)])

    def run_with_hooks(self, ids: torch.Tensor, fwd_hooks: list[Any], **_: object) -> tuple[torch.Tensor, torch.Tensor]:
        logits = torch.from_numpy(self.t.logits(fwd_hooks[0][1](self._acts(ids), None).numpy()))
        return logits, torch.nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none")

    def run_with_cache(self, ids: torch.Tensor, names_filter: list[str], **_: object) -> tuple[None, dict[str, torch.Tensor]]:
        return None, {names_filter[0]: self._acts(ids)}

    def _acts(self, ids: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(self.t.table[ids.numpy()])


def core(t: inputs.Stream, s: inputs.Linear, rows: int = 3, keep_special: bool = False) -> dict[str, float]:
    """Every number of its core evaluation, so many rows a batch, as it would store them."""
    reader, batches = Reader(t), len(t.ids) // rows
    asked = ("kl", "ce_loss", "l2_norms", "sparsity_metrics", "variance_metrics", "featurewise_density_statistics")
    config = CoreEvalConfig(
        batch_size_prompts=rows,
        n_eval_reconstruction_batches=batches,
        n_eval_sparsity_variance_batches=batches,
        exclude_special_tokens_from_reconstruction=keep_special,
        **{f"compute_{name}": True for name in asked},
    )
    groups, latents = core_main.run_evals(linear(s), reader, reader, config, ignore_tokens=set(inputs.SPECIAL))
    cosines = {f"max_{side}_cosine_sim": [0.0] for side in ("encoder", "decoder")}
    found = {name: value for group in groups.values() for name, value in group.items()}
    found |= {n: v for n, v in core_main.calculate_misc_metrics(latents | cosines).items() if "cosine" not in n}
    return core_main.replace_nans_with_negative_one(found)


def split(p: inputs.Spelled, **training: int) -> dict[str, Any]:
    """F1 of its probes on 1 … 10 latents in the order of its L1 probe, the latents that become a letter's own, and their number."""
    torch.manual_seed(0)
    m = p.f.shape[1]
    sae = their_sae(W_enc=np.eye(m, dtype=np.float32), W_dec=np.eye(m, dtype=np.float32))
    (train, train_y), (held, held_y) = ((torch.from_numpy(p.f[p.part == i]), words_of(p, i)) for i in (0, 1))
    with torch.enable_grad():
        found = k_sparse_probing.train_k_sparse_probes(sae, train_y, train, range(1, 11), precalc_sae_acts=True, **training)
    dense = probing.LinearProbe(m, inputs.ALPHABET)
    raw = k_sparse_probing.eval_probe_and_sae_k_sparse_raw_scores(sae, dense, found, held_y, held)
    table = k_sparse_probing.build_metrics_df(raw, k_sparse_probing.sae_k_sparse_metadata(sae, dense, found, "", 0), 10)
    k_sparse_probing.add_feature_splits_to_metrics_df(table, 10)
    assert table["letter"].tolist() == list(vocab.LETTERS)
    f1 = table[[f"f1_sparse_sae_{k}" for k in range(1, 11)]].to_numpy()
    return {"f1": f1, "main": [sorted(v) for v in table["split_feats"]], "extra": table["num_split_features"].tolist()}


def words_of(p: inputs.Spelled, part: int) -> list[tuple[str, int]]:
    return [(f"w{i}", int(c)) for i, c in enumerate(p.letter[p.part == part])]


def plain(value: Any) -> Any:
    """Numbers and lists only, to seven significant digits."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [plain(v) for v in value]
    if value is None or isinstance(value, bool | np.bool_ | int | np.integer):
        return None if value is None else int(value)
    return float(f"{float(value):.7g}")


def main() -> None:
    torch.set_grad_enabled(False)
    words, read, good = inputs.words(), inputs.stream(), inputs.reconstructing()
    with silence():
        drawn = {"noise": noise_accuracies(), "tpp_draws": tpp_draws()}
        drawn |= {
            "split": split(inputs.spelled(), batch_size=32),
            "split_defaults": split(inputs.spelled()),
            "split_small": split(inputs.spelled(scale=0.01), batch_size=32),
        }
    with silence(), first_instead_of_random():
        cases = drawn | {
            "absorption": absorption(words),
            "absorption_zero_projection_raises": zero_projection_raises(words),
            "tpp": tpp(inputs.documents(), inputs.sae()),
            "tpp_padded": tpp(inputs.documents(padded=True), inputs.sae(fires_on_padding=True)),
            "scr": scr(inputs.cells(), inputs.sae(along=inputs.cells().along)),
            "scr_scores": scr_scores(),
            "probing": probing_case(inputs.probing()),
            "probing_unequal": probing_case(inputs.probing(unequal=True)),
            "max_cosine": core_main.calculate_max_cosine_sim(torch.from_numpy(inputs.dictionary()).T).numpy(),
            "core": core(read, good),
            "core_by_row": core(read, good, rows=1),
            "core_larger": core(inputs.stream(scale=4.0), inputs.rescaled(good, 4.0)),
            "core_special": core(inputs.stream(special=True), good),
            "core_special_kept": core(inputs.stream(special=True), good, keep_special=True),
            "core_silent": core(read, inputs.often_silent(good)),
            "core_sure": core(inputs.stream(sure=60.0), good),
        }
    version = importlib.metadata.version("sae-bench")
    OUT.write_text(json.dumps({"sae_bench": version, **plain(cases)}, separators=(",", ":")) + "\n")
    print(f"wrote {OUT.name}: {OUT.stat().st_size:,} bytes, sae-bench {version}")


if __name__ == "__main__":
    main()
