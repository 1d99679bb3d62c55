"""Names of hooks: every library's spelling means one place, nonsense is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.errors import UsageError
from bench.lm.hooks import Hook, parse_hook

SPELLINGS = {
    "resid_post": [
        "blocks.{}.hook_resid_post",
        "model.layers.{}",
        "layers.{}",
        "layers.{}.output",
        "transformer.h.{}",
        "h.{}",
        "gpt_neox.layers.{}",
        "model.language_model.layers.{}",
        "resid_post_layer_{}",
        "  blocks.{}.hook_resid_post\n",
    ],
    "mlp_out": [
        "blocks.{}.hook_mlp_out",
        "model.layers.{}.mlp",
        "layers.{}.mlp.output",
        "transformer.h.{}.mlp",
        "gpt_neox.layers.{}.mlp",
        "mlp_out_layer_{}",
    ],
    "attn_out": [
        "blocks.{}.hook_attn_out",
        "model.layers.{}.self_attn",
        "transformer.h.{}.attn",
        "gpt_neox.layers.{}.attention",
        "layers.{}.self_attn.output",
        "attn_layer_{}",
        "attention_out_layer_{}",
        "attn_out_layer_{}",
    ],
}
ALL = [(site, s) for site, spellings in SPELLINGS.items() for s in spellings]


@pytest.mark.parametrize(("site", "spelling"), ALL, ids=[s.strip() for _, s in ALL])
@pytest.mark.parametrize("layer", [0, 7, 12, 103])
def test_every_spelling_means_one_place(site: str, spelling: str, layer: int) -> None:
    hook = parse_hook(spelling.format(layer))
    assert (hook.layer, hook.site) == (layer, site)
    assert parse_hook(str(hook)) == hook and str(hook) == SPELLINGS[site][0].format(layer)


@given(st.integers(0, 10**6), st.sampled_from(["resid_post", "mlp_out", "attn_out"]))
def test_round_trip(layer: int, site: str) -> None:
    hook = Hook(layer, site)  # pyright: ignore
    assert parse_hook(str(hook)) == hook and hash(parse_hook(str(hook))) == hash(hook)


@pytest.mark.parametrize("spelling", ["hidden_states[{}]", "blocks.{}.hook_resid_pre"])
def test_the_input_of_a_block_is_the_output_of_the_one_before(spelling: str) -> None:
    assert parse_hook(spelling.format(1)) == Hook(0) and parse_hook(spelling.format(30)) == Hook(29)
    with pytest.raises(UsageError, match="embedding") as e:
        parse_hook(spelling.format(0))
    assert "blocks.0.hook_resid_post" in e.value.remedy


NONSENSE = [
    "",
    "x",
    "blocks..hook_resid_post",
    "blocks.-1.hook_resid_post",
    "blocks.1.hook_resid_mid",
    "blocks.1.hook_resid_post.extra",
    "xblocks.1.hook_resid_post",
    "blocks.1.5.hook_resid_post",
    "blocks.1.attn.hook_z",
    "blocks 1 hook_resid_post",
    "model.layers.x",
    "layers.3.mlp.down_proj",
    "hidden_states[-1]",
    "hidden_states[]",
    "resid_post_layer_",
    "7",
    "blocks.1.hook_resid_post\nblocks.2.hook_resid_post",
]


@pytest.mark.parametrize("text", NONSENSE, ids=repr)
def test_nonsense_is_refused(text: str) -> None:
    with pytest.raises(UsageError) as e:
        parse_hook(text)
    assert e.value.exit_code == 2 and "blocks." in e.value.remedy


@given(st.text(max_size=40))
def test_any_text_is_a_hook_or_one_typed_error(text: str) -> None:
    try:
        hook = parse_hook(text)
    except UsageError:
        return
    assert parse_hook(str(hook)) == hook


def test_hooks_sort_by_layer() -> None:
    assert sorted([Hook(2), Hook(0, "mlp_out"), Hook(1)])[0].layer == 0
