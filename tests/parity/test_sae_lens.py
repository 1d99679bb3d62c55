"""SAELens 6: `save_model` and `save_inference_model` of every architecture, against `SAE.load_from_disk`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.adapters import Given
from tests.parity.shared import D_IN, D_SAE, EDGE, HOOK, LM, Case, K, P, Peer, Written, check, fill, refusal, tokens

pytestmark = pytest.mark.parity

SCALE = 2.0
CLASSES = {
    "standard": "StandardSAE",
    "gated": "GatedSAE",
    "jumprelu": "JumpReLUSAE",
    "topk": "TopKSAE",
    "abstopk": "AbsTopKSAE",
    "matching_pursuit": "MatchingPursuitSAE",
    "batchtopk": "BatchTopKTrainingSAE",
    "matryoshka_batchtopk": "MatryoshkaBatchTopKTrainingSAE",
}
TRANSCODERS = ("Transcoder", "SkipTranscoder", "JumpReLUTranscoder", "JumpReLUSkipTranscoder")
HAS_EDGE = ("gated", "jumprelu", "batchtopk", "matryoshka_batchtopk")
RANKED = ("topk", "abstopk")
AVERAGE, BF16, KEPT = {"normalize_activations": "expected_average_only_in"}, {"dtype": "bfloat16"}, {"apply_b_dec_to_input": False}
RESCALED, AS_IS = {"rescale_acts_by_decoder_norm": True}, {"rescale_acts_by_decoder_norm": False}


def built(name: str, architecture: str = "", hook: str = HOOK, **cfg: Any) -> Any:
    """An SAE of a library's class with our parameters; `topk_threshold` is its threshold."""
    import sae_lens

    threshold = cfg.pop("topk_threshold", EDGE)
    metadata = sae_lens.saes.sae.SAEMetadata(model_name=LM, hook_name=hook, **cfg.pop("meta", {}))
    sae = getattr(sae_lens, name)(getattr(sae_lens, f"{name}Config")(d_in=D_IN, d_sae=D_SAE, metadata=metadata, **cfg))
    values = {n: P[n] for n in sae.state_dict() if n in P}
    if architecture == "matching_pursuit":  # longer rows than these diverge
        n = P["W_dec"].norm(dim=1, keepdim=True)
        values["W_dec"] = P["W_dec"] / n * n.clamp(0.7, 1.2)
    if "topk_threshold" in sae.state_dict():
        values["topk_threshold"] = in_its_units(sae, threshold)
    fill(sae, values)
    return sae


def answers(path: Path, folder: Path, cfg: dict[str, Any]) -> Any:
    """The SAE as the library uses a checkpoint: loaded in float32, with the factor on the input folded where there is one."""
    from sae_lens import SAE, TrainingSAE

    try:
        sae = SAE.load_from_disk(path, dtype="float32")
    except KeyError:  # a training architecture, which exists for inference only in its other form
        training = TrainingSAE.load_from_disk(path, dtype="float32")
        if "topk_threshold" in cfg:
            fill(training, {"topk_threshold": in_its_units(training, cfg["topk_threshold"])})
        if averaged(cfg):
            training.fold_activation_norm_scaling_factor(SCALE)
        training.save_inference_model(folder / "inference_form")
        return SAE.load_from_disk(folder / "inference_form", dtype="float32")
    if averaged(cfg):
        sae.fold_activation_norm_scaling_factor(SCALE)
    return sae


def averaged(cfg: dict[str, Any]) -> bool:
    """Whether the SAE was trained on scaled inputs, by a factor that no file holds."""
    return cfg.get("normalize_activations") == "expected_average_only_in"


def in_its_units(sae: Any, threshold: float) -> float:
    """The threshold as the library compares it: with the pre-activation, or with that times the norm of the row; for latent 0."""
    return threshold * (float(P["W_dec"][0].norm()) if sae.cfg.rescale_acts_by_decoder_norm else 1.0)


def saved(name: str, architecture: str, how: str, **cfg: Any) -> Callable[[Path], Written]:
    """Saves by `how`; what the library says of the file is what is expected."""

    def write(folder: Path) -> Written:
        given = cfg.get("topk_threshold")
        sae = built(name, architecture, **(cfg | ({"topk_threshold": 0.0} if given else {})))
        getattr(sae, how)(folder / "sae")
        x = tokens(cfg.get("apply_b_dec_to_input", True), SCALE if averaged(cfg) else 1)
        codes, recon = through(answers(folder / "sae", folder, cfg), x)
        unit = Given(threshold=in_its_units(sae, given)) if given else None
        return Written(folder / "sae", x, codes, recon, unit)

    return write


def through(sae: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """Codes and reconstructions of the library, of heads one by one where it wants them so."""
    shaped = x.view(len(x), 4, -1) if sae.cfg.reshape_activations == "hook_z" else x
    codes = sae.encode(shaped)
    return codes, sae.decode(codes).reshape(x.shape)


def inference() -> Iterator[Case]:
    """The classes for inference, by `save_model`."""
    options: dict[str, dict[str, Any]] = {
        "float32": {},
        "b_dec not subtracted": KEPT,
        "bfloat16": BF16,
        "layer_norm": {"normalize_activations": "layer_norm"},
        "constant_norm_rescale": {"normalize_activations": "constant_norm_rescale"},
        "expected_average_only_in": AVERAGE,
        "hook_z": {"hook": "blocks.2.attn.hook_z", "reshape_activations": "hook_z"},
    }
    ranked = {"rescaled": RESCALED, "rescaled, bfloat16": RESCALED | BF16, "rescaled, expected_average_only_in": RESCALED | AVERAGE}
    pursuit = {"any number of picks": {"max_iterations": None}, "repeats": {"stop_on_duplicate_support": False}, "no residual": {}}
    for architecture in ("standard", "gated", "jumprelu", *RANKED, "matching_pursuit"):
        more = ranked if architecture in RANKED else pursuit if architecture == "matching_pursuit" else {}
        for variant, cfg in (options | more).items():
            own: dict[str, Any] = {"k": K} if architecture in RANKED else {}
            if architecture == "matching_pursuit":
                own = {"residual_threshold": 0.0 if variant == "no residual" else 0.9, "max_iterations": 6}
            write = saved(CLASSES[architecture], architecture, "save_model", **(own | cfg))
            yield from rows(architecture, variant, write, own | cfg)


def rows(architecture: str, variant: str, write: Callable[[Path], Written], cfg: dict[str, Any]) -> Iterator[Case]:
    """One case, or two where a fact is missing in the file: refused, and read once the fact is given."""
    kind = cfg.get("normalize_activations", "none")
    per_token = kind in ("layer_norm", "constant_norm_rescale")
    if per_token and architecture == "matching_pursuit":
        yield Case(architecture, variant, write, refused="matching_pursuit with input normalisation")
        return
    edge = "off" if architecture in HAS_EDGE and not per_token else ""
    k = K if architecture == "topk" and not per_token else 0  # a normalised token cannot be one whose pre-activations are its biases
    if averaged(cfg):
        case = Case(architecture, f"{variant}, --norm-scale {SCALE:g}", write, Given(norm_scale=SCALE), edge=edge, k=k)
        yield refusal(case, "give --norm-scale")
        yield case
    else:
        yield Case(architecture, variant, write, edge=edge, k=k)


def training() -> Iterator[Case]:
    """The classes for training, by both ways of saving."""
    ways = {"training save": "save_model", "inference save": "save_inference_model"}
    for architecture in ("standard", "gated", "jumprelu", *RANKED, "matching_pursuit"):
        name = CLASSES[architecture].replace("SAE", "TrainingSAE")
        own: dict[str, Any] = {"k": K} if architecture in RANKED else {}
        if architecture == "matching_pursuit":
            own = {"residual_threshold": 0.9, "max_iterations": 6, "decoder_init_norm": 1.0}
        for way, how in ways.items():
            yield from rows(architecture, way, saved(name, architecture, how, **own), own)
            if architecture in RANKED:
                yield from rows(architecture, f"{way}, not rescaled", saved(name, architecture, how, **own, **AS_IS), own)
    options = {
        "": {},
        ", b_dec not subtracted": KEPT,
        ", bfloat16": BF16,
        ", layer_norm": {"normalize_activations": "layer_norm"},
        ", expected_average_only_in": AVERAGE,
    }
    for architecture in ("batchtopk", "matryoshka_batchtopk"):
        own = {"matryoshka_widths": [16, 48, D_SAE]} if architecture != "batchtopk" else {}
        for way, how in ways.items():
            for rescaled, switch in {"rescaled": RESCALED, "not rescaled": AS_IS}.items():
                for variant, cfg in options.items():
                    all_of = {"k": K} | own | switch | cfg
                    yield from rows(
                        architecture, f"{way}, {rescaled}{variant}", saved(CLASSES[architecture], architecture, how, **all_of), all_of
                    )
        for rescaled, switch in {"rescaled": RESCALED, "not rescaled": AS_IS}.items():
            never = saved(CLASSES[architecture], architecture, "save_model", topk_threshold=EDGE, k=K, **own, **switch)
            yield Case(architecture, f"threshold never set, {rescaled}, --threshold", never, edge="off")
            words = "BatchTopK threshold was never set"
            yield Case(architecture, f"threshold never set, {rescaled}, nothing given", nothing_given(never), refused=words)


def nothing_given(write: Callable[[Path], Written]) -> Callable[[Path], Written]:
    def bare(folder: Path) -> Written:
        w = write(folder)
        return Written(w.path, w.x, w.codes, w.recon)

    return bare


def only_saved(name: str, **cfg: Any) -> Callable[[Path], Written]:
    """A checkpoint that must be refused, so nothing is expected of it."""

    def write(folder: Path) -> Written:
        built(name, **cfg).save_model(folder / "sae")
        return Written(folder / "sae", *(torch.zeros(1),) * 3)

    return write


def refused() -> Iterator[Case]:
    """What is no SAE of one site and one token, and what a checkpoint lacks for good."""
    for name in TRANSCODERS:
        options = {"d_out": D_IN, "apply_b_dec_to_input": False}
        kind = name.lower().replace("transcoder", "_transcoder").replace("reluskip", "relu_skip").lstrip("_")
        yield Case(kind, "d_out = d_in, no other hook", only_saved(name, **options), refused="transcoder")
        yield Case(kind, "another hook", only_saved(name, meta={"hook_name_out": "blocks.2.hook_mlp_out"}, **options), refused="transcoder")
    temporal = only_saved("TemporalSAE", n_heads=2, bottleneck_factor=4, kval_topk=K)
    yield Case("temporal", "float32", temporal, refused="needs whole sequences")
    whitened = {"normalize_activations": "covariance_whitening"}
    yield Case("standard", "covariance_whitening", only_saved("StandardSAE", **whitened), refused="covariance_whitening")


PEER = Peer("sae-lens", [*inference(), *training(), *refused()])


@pytest.mark.parametrize("case", PEER.cases, ids=str)
def test_files_of_sae_lens(case: Case, tmp_path: Path) -> None:
    check(case, tmp_path)


def test_every_registered_architecture_has_a_case() -> None:
    import sae_lens.registry as known

    ours = {c.architecture for c in PEER.cases}
    assert ours == {*known.SAE_CLASS_REGISTRY, *known.SAE_TRAINING_CLASS_REGISTRY}
