"""Checkpoints of every supported architecture of the later formats, and what must come out of them."""

from __future__ import annotations

import numpy as np
import torch

from bench.adapters import Given
from tests.adapters_cases import Case
from tests.adapters_layouts import (
    AVERAGE,
    D_IN,
    D_SAE,
    FOUR,
    SCALE,
    K,
    N,
    P,
    S,
    X,
    decode,
    jump,
    legacy,
    lens,
    pre,
    relu,
    sparsify,
    tensors,
    top,
)
from tests.adapters_layouts_more import (
    EXACT_ROWS,
    LOG,
    ROOT,
    UNIT,
    UNIT_ROWS,
    F,
    T,
    Z,
    archetypal,
    archetypes,
    bart,
    by_rank,
    deepseek,
    gemma2,
    goodfire,
    groups,
    hypothesaes,
    llama_scope,
    lm_saes,
    ln_out,
    moss,
    neel,
    openai,
    overcomplete,
    pre_of,
    pursued,
    qwen,
    saev,
)

FACTOR = np.random.default_rng(9).uniform(0.5, 2, D_SAE).astype(np.float32).astype(np.float64)
MP = {"architecture": "matching_pursuit"}
LN, UN = {"normalize_activations": "layer_norm"}, {"normalize_activations": "constant_norm_rescale"}
TIED = {"W_dec": UNIT_ROWS, "b_dec": P["b_dec"]}
JUMP = {"jumprelu.log_threshold": LOG}
DICTIONARY = EXACT_ROWS * np.exp(0.25)


def of_ln(f: np.ndarray) -> np.ndarray:
    return ln_out(decode(f))


def of_unit(f: np.ndarray) -> np.ndarray:
    return decode(f) * ROOT


def moss_decode(f: np.ndarray) -> np.ndarray:
    return decode(f) / F


def llama_decode(f: np.ndarray) -> np.ndarray:
    """W_dec as it is stored, b_dec brought to raw activations."""
    return f @ P["W_dec"] + P["b_dec"] / F


def llama_pre() -> np.ndarray:
    return X @ P["W_enc"] + P["b_enc"] / F


def tied(f: np.ndarray) -> np.ndarray:
    return f @ UNIT_ROWS + P["b_dec"]


LENS: dict[str, Case] = {
    "lens abstopk": Case(
        lambda d: lens(d, tensors(*FOUR), architecture="abstopk", k=K, rescale_acts_by_decoder_norm=False),
        lambda: by_rank(pre(X), np.abs(pre(X))),
    ),
    "lens abstopk, rescaled": Case(
        lambda d: lens(d, tensors(*FOUR), architecture="abstopk", k=K, rescale_acts_by_decoder_norm=True),
        lambda: by_rank(pre(X) * N, np.abs(pre(X) * N)),
        lambda f: decode(f / N),
    ),
    "lens matching pursuit": Case(
        lambda d: lens(d, tensors(**TIED), **MP, max_iterations=6, residual_threshold=0.5, stop_on_duplicate_support=True),
        lambda: pursued(X - P["b_dec"], UNIT_ROWS, 6, True, 0.5, True),
        tied,
    ),
    "lens matching pursuit, repeats": Case(
        lambda d: lens(d, tensors(**TIED), **MP, max_iterations=9, residual_threshold=0.0, stop_on_duplicate_support=False),
        lambda: pursued(X - P["b_dec"], UNIT_ROWS, 9, True),
        tied,
    ),
    "lens matching pursuit, b_dec kept": Case(
        lambda d: lens(d, tensors(**TIED), **MP, apply_b_dec_to_input=False),
        lambda: pursued(X, UNIT_ROWS, D_IN, True, 0.01, True),
        lambda f: f @ UNIT_ROWS,
    ),
    "lens matching pursuit, scaled": Case(
        lambda d: lens(d, tensors(**TIED), **MP, max_iterations=6, residual_threshold=0.5, **AVERAGE),
        lambda: pursued(S * X - P["b_dec"], UNIT_ROWS, 6, True, 0.5, True) / S,
        lambda f: tied(f * S) / S,
        SCALE,
    ),
    "lens standard, layer norm": Case(lambda d: lens(d, tensors(*FOUR), architecture="standard", **LN), lambda: relu(pre_of(Z)), of_ln),
    "lens topk, layer norm": Case(lambda d: lens(d, tensors(*FOUR), architecture="topk", k=K, **LN), lambda: top(pre_of(Z)), of_ln),
    "lens jumprelu, layer norm": Case(
        lambda d: lens(d, tensors(*FOUR, "threshold"), architecture="jumprelu", **LN), lambda: jump(pre_of(Z), P["threshold"]), of_ln
    ),
    "lens standard, constant norm": Case(
        lambda d: lens(d, tensors(*FOUR), architecture="standard", **UN), lambda: relu(pre_of(UNIT)), of_unit
    ),
    "legacy tanh-relu": Case(lambda d: legacy(d, tensors(*FOUR), activation_fn_str="tanh-relu"), lambda: np.tanh(relu(pre(X)))),
    "legacy layer norm": Case(lambda d: legacy(d, tensors(*FOUR), **LN), lambda: relu(pre_of(Z)), of_ln),
    "legacy finetuned": Case(
        lambda d: legacy(d, tensors(*FOUR, scaling_factor=FACTOR), finetuning_scaling_factor=True),
        lambda: relu(pre(X)),
        lambda f: decode(f * FACTOR),
    ),
    "sparsify groupmax": Case(lambda d: sparsify(d, activation="groupmax"), lambda: groups(pre(X))),
    "sparsify signed": Case(lambda d: sparsify(d, signed=True), lambda: by_rank(pre(X), np.abs(pre(X)))),
}
MOSS: dict[str, Case] = {
    "moss jumprelu": Case(lambda d: moss(d, "jumprelu"), lambda: jump(pre(F * X, False), T / N), moss_decode),
    "moss jumprelu, no norms": Case(
        lambda d: moss(d, "jumprelu", sparsity_include_decoder_norm=False), lambda: jump(pre(F * X, False), T), moss_decode
    ),
    "moss relu, inference": Case(lambda d: moss(d, "relu", norm_activation="inference"), lambda: relu(pre(X, False))),
    "moss topk": Case(lambda d: moss(d, "topk"), lambda: relu(by_rank(pre(F * X, False), pre(F * X, False) * N)), moss_decode),
    "moss topk, token-wise": Case(
        lambda d: moss(d, "topk", sparsity_include_decoder_norm=False, norm_activation="token-wise"),
        lambda: top(pre(UNIT, False)),
        of_unit,
    ),
    "moss batchtopk": Case(
        lambda d: moss(d, "batchtopk"), lambda: jump(pre(F * X, False), np.float32(0.6) / N), moss_decode, Given(threshold=0.6)
    ),
    "moss, norm given": Case(lambda d: moss(d, "relu", average=0.0), lambda: relu(pre(S * X, False)), lambda f: decode(f) / S, SCALE),
    "lm_saes jumprelu": Case(lm_saes, lambda: jump(pre(F * X, False), T / N), moss_decode),
    "lm_saes, first config": Case(lambda d: lm_saes(d, config="hyperparams.json"), lambda: jump(pre(F * X, False), T / N), moss_decode),
    "lm_saes, b_dec subtracted": Case(
        lambda d: lm_saes(d, "relu", apply_decoder_bias_to_pre_encoder=True), lambda: relu(pre(F * X)), moss_decode
    ),
    "llama scope": Case(
        lambda d: llama_scope(d, sparsity_include_decoder_norm=False), lambda: jump(llama_pre(), np.float32(0.3)), llama_decode
    ),
    "llama scope, unit norms": Case(llama_scope, lambda: jump(llama_pre() * N, np.float32(0.3)), lambda f: llama_decode(f / N)),
    "llama scope, topk in a pt": Case(
        lambda d: llama_scope(d, "checkpoints/pruned.pt", act_fn="topk", jump_relu_threshold=0.0, sparsity_include_decoder_norm=False),
        lambda: top(llama_pre()),
        llama_decode,
    ),
    "llama scope, topk with a threshold": Case(
        lambda d: llama_scope(d, act_fn="topk", sparsity_include_decoder_norm=False),
        lambda: jump(llama_pre(), np.float32(0.3)),
        llama_decode,
    ),
}
SINGLE: dict[str, Case] = {
    "gemma 2": Case(gemma2, lambda: jump(pre(X, False), P["threshold"])),
    "gemma 2, no config": Case(lambda d: gemma2(d, config=False), lambda: jump(pre(X, False), P["threshold"])),
    "openai topk": Case(openai, lambda: top(pre_of(Z)), of_ln),
    "openai topk, identity": Case(lambda d: openai(d, after="Identity"), lambda: by_rank(pre_of(Z), pre_of(Z)), of_ln),
    "openai relu": Case(lambda d: openai(d, "ReLU"), lambda: relu(pre(X))),
    "bart vanilla": Case(lambda d: bart(d, "vanilla", input_unit_norm=False), lambda: relu(pre(X))),
    "bart vanilla, layer norm": Case(lambda d: bart(d, "vanilla", input_unit_norm="True"), lambda: relu(pre_of(Z)), of_ln),
    "bart topk": Case(lambda d: bart(d, "topk"), lambda: top(pre_of(Z, bias=False)), of_ln),
    "bart batchtopk": Case(
        lambda d: bart(d, "batchtopk"), lambda: jump(pre_of(Z, bias=False), np.float32(0.7)), of_ln, Given(threshold=0.7)
    ),
    "bart jumprelu": Case(lambda d: bart(d, "jumprelu", JUMP), lambda: jump(pre_of(Z, False), T), of_ln),
    "bart matryoshka": Case(
        lambda d: bart(d, "global-matryoshka-topk", {"threshold": torch.tensor(0.5)}), lambda: jump(pre_of(Z, bias=False), 0.5), of_ln
    ),
    "hypothesaes topk": Case(hypothesaes, lambda: top(pre(X))),
    "hypothesaes batchtopk": Case(lambda d: hypothesaes(d, 0.25, use_batch_topk=True), lambda: jump(pre(X), 0.25)),
    "goodfire": Case(goodfire, lambda: relu(pre(X, False))),
    "deepseek": Case(deepseek, lambda: relu(pre(X, False))),
    "qwen": Case(qwen, lambda: top(pre(X, False)), given=Given(k=K)),
    "neel": Case(neel, lambda: relu(pre(X))),
    "saev relu": Case(lambda d: saev(d, "Relu"), lambda: relu(pre(X, False))),
    "saev relu, first header": Case(lambda d: saev(d, "Relu", {"d_vit": D_IN, "exp_factor": 4}), lambda: relu(pre(X, False))),
    "saev topk": Case(lambda d: saev(d, "TopK"), lambda: by_rank(pre(X, False), pre(X, False))),
    "saev batchtopk": Case(
        lambda d: saev(d, "BatchTopK", **{"activation.threshold": torch.tensor(0.25)}), lambda: jump(pre(X, False), 0.25)
    ),
    "overcomplete jump": Case(lambda d: overcomplete(d, thresholds=LOG), lambda: jump(pre(X, False), T), lambda f: f @ DICTIONARY),
    "overcomplete topk": Case(overcomplete, lambda: top(pre(X, False)), lambda f: f @ DICTIONARY, Given(k=K)),
    "overcomplete batchtopk": Case(overcomplete, lambda: jump(pre(X, False), 0.3), lambda f: f @ DICTIONARY, Given(threshold=0.3)),
    "overcomplete untied": Case(lambda d: overcomplete(d, "untied"), lambda: top(X @ P["W_enc"]), lambda f: f @ DICTIONARY, Given(k=K)),
    "overcomplete tied": Case(
        lambda d: overcomplete(d, "tied", **{"encoder.bias": P["b_enc"]}),
        lambda: top(X @ DICTIONARY.T + P["b_enc"]),
        lambda f: f @ DICTIONARY,
        Given(k=K),
    ),
    "overcomplete archetypes": Case(archetypal, lambda: top(pre(X, False)), archetypes, Given(k=K)),
    "overcomplete pursuit": Case(
        lambda d: overcomplete(d, encoder=False, **{"dictionary.multiplier": torch.tensor(0.0)}),
        lambda: pursued(X, EXACT_ROWS, K),
        lambda f: f @ EXACT_ROWS,
        Given(k=K),
    ),
}
MORE = LENS | MOSS | SINGLE
