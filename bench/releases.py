"""SAEs by the names that SAELens gives to public releases: `saelens:RELEASE/ID`.

The names come from `pretrained_saes.yaml` in the sae-lens wheel, which is fetched without its dependencies, pinned by
its hash, and read as data: nothing of it is imported or run. The weights come from the Hugging Face hub.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.data.sources import Source, fetch
from bench.errors import CheckpointError, UnavailableError, UsageError
from bench.registry import did_you_mean

if TYPE_CHECKING:
    from bench.adapters import Given
    from bench.sae.checkpoint import Loaded

SAE_LENS = Source("pypi", "sae-lens", "6.54.12", "a8f533bde5024f067de482fece4fb975b39f341d0cb781ca5afedce1b2e91c31")
_LIST = "sae_lens/pretrained_saes.yaml"
_LOADERS = frozenset(
    {"", "connor_rob_hook_z", "deepseek_r1", "dictionary_learning_1", "gemma_2", "gemma_3", "goodfire"}
    | {"llama_scope", "llama_scope_r1_distill", "qwen_scope"}
)
_NO_SAES = {
    "gemma_2_transcoder": "a transcoder",
    "mwhanna_transcoder": "a transcoder",
    "mntss_clt_layer_transcoder": "one layer of a cross-layer transcoder",
    "temporal": "a temporal SAE, which needs whole sequences",
}
_SITES = ("resid_post", "mlp_out", "attn_out")


@dataclass(frozen=True)
class Listed:
    """One SAE of the list.

    Args:
        release: Name of the release.
        id: Its name there; it may hold slashes.
        repo: Repository on the hub.
        path: Folder or file in it.
        model: Language model, as the list names it.
        loader: SAELens' converter for the layout; "" for its own.
        norm_scale: Factor on the input that the checkpoint does not hold.
        l0: Mean number of active latents, where it is given.
        overrides: What SAELens writes over the checkpoint's config.
    """

    release: str
    id: str
    repo: str
    path: str
    model: str
    loader: str = ""
    norm_scale: float | None = None
    l0: float | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)

    @property
    def other(self) -> str:
        """What it is instead, if it is no SAE that can be measured."""
        if self.loader == "gemma_3" and re.search(r"transcoder|clt", self.path):
            return "a cross-layer transcoder" if "clt" in self.path else "a transcoder"
        if self.loader == "gemma_2" and self.path.startswith("embedding/"):
            return "an SAE of embeddings, whose input is scaled inside the model"
        return _NO_SAES.get(self.loader, "" if self.loader in _LOADERS else f"of the unknown layout {self.loader!r}")


def releases() -> Mapping[str, Mapping[str, Any]]:
    """The list, by release.

    Raises:
        UnavailableError: The wheel cannot be fetched, or holds no such list.
    """
    return _read(fetch(SAE_LENS))


@cache
def _read(wheel: Path) -> Mapping[str, Mapping[str, Any]]:
    import yaml

    loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the fast one of the two, where there is one
    try:
        with zipfile.ZipFile(wheel) as z:
            return yaml.load(z.read(_LIST), loader)
    except (zipfile.BadZipFile, KeyError, yaml.YAMLError) as e:
        raise UnavailableError(f"{SAE_LENS} holds no list of releases that can be read", "remove it from the cache and run again") from e


def find(reference: str) -> Listed:
    """The list's entry for `saelens:RELEASE/ID`.

    Raises:
        UsageError: The list has no such release or id; the remedy holds the nearest.
        UnavailableError: As `releases`.
    """
    name, _, wanted = reference.removeprefix("saelens:").partition("/")
    known = releases()
    if name not in known:
        raise UsageError(f"{reference}: no release {name!r} in the list of {SAE_LENS}", _near(name, list(known)))
    entries = {e.id: e for e in _entries(name, known[name])}
    if wanted not in entries:
        raise UsageError(f"{reference}: the release {name} has no id {wanted!r}", _near(wanted, list(entries), f"{name}/"))
    return entries[wanted]


def _near(name: str, known: list[str], filter_by: str = "") -> str:
    near = get_close_matches(name, known, 3)  # a release may hold a thousand ids
    return did_you_mean(name, near) if near else f"see python -m bench sae list --releases {filter_by or 'TEXT'}"


def _entries(name: str, release: Mapping[str, Any]) -> Iterator[Listed]:
    for sae in release["saes"]:
        yield Listed(
            name,
            str(sae["id"]),
            str(release["repo_id"]),
            str(sae["path"]),
            str(release["model"]),
            str(release.get("conversion_func") or ""),
            sae.get("norm_scaling_factor"),
            sae.get("l0"),
            release.get("config_overrides") or {},
        )


def open_release(reference: str, given: Given) -> Loaded:
    """The SAE at `saelens:RELEASE/ID`, with what the list knows and the checkpoint lacks.

    Raises:
        UsageError: The list has no such SAE.
        CheckpointError: It is no SAE, refused, or at odds with the list.
        UnavailableError: The list or the weights cannot be fetched.
    """
    from bench import hub

    entry = find(reference)
    if entry.other:
        raise CheckpointError(f"{reference} is {entry.other}, which cannot be measured", "give an SAE of a layer")
    given = _with_k(entry, given)
    fetched = hub.fetch(hub.Place(entry.repo, "", entry.path), reference)
    return _completed(_loaded(fetched, entry, given), entry)


def _with_k(entry: Listed, given: Given) -> Given:
    """Qwen Scope says k in the repository's name only."""
    named = re.search(r"-L0_(\d+)$", entry.repo) if entry.loader == "qwen_scope" else None
    if named is None:
        return given
    if given.k not in (None, int(named[1])):
        raise CheckpointError(f"{entry.repo} has k = {named[1]} in its name, but --k is {given.k}", "leave out --k")
    return replace(given, k=int(named[1]))


def _loaded(fetched: Any, entry: Listed, given: Given) -> Loaded:
    """The checkpoint; read again with the list's factor on the input if it cannot be read without."""
    from bench.hub import opened

    try:
        return opened(fetched, given)
    except CheckpointError:
        if entry.norm_scale is None or given.norm_scale is not None:
            raise
        scaled = replace(given, norm_scale=float(entry.norm_scale), scale_source=f"from the list of {SAE_LENS}")
    loaded = opened(fetched, scaled)
    return replace(loaded, oddities=(*loaded.oddities, f"the factor {entry.norm_scale:g} on the input is {scaled.scale_source}"))


def _completed(loaded: Loaded, entry: Listed) -> Loaded:
    """The SAE with model, hook and normalisation of the list where the file has none."""
    lm = loaded.lm if loaded.lm and entry.loader != "gemma_3" else entry.model  # Gemma Scope 2 spells its models in its own way
    hook = loaded.hook or _hook(entry)
    added = {what: now for what, was, now in (("model", loaded.lm, lm), ("hook", loaded.hook, hook)) if now != was}
    odd = [f"{what} {now} from the list of {SAE_LENS}" for what, now in added.items()]
    if options := entry.overrides.get("model_from_pretrained_kwargs"):
        said = ", ".join(f"{k}={v}" for k, v in options.items())
        odd.append(f"trained on activations of a model loaded with {said}; here the model is used as it is")
    loaded = _normalised(loaded, entry)
    facts = {**loaded.facts, "saelens_release": entry.release, "saelens_id": entry.id, "saelens_version": SAE_LENS.version}
    return replace(loaded, lm=lm, hook=hook, oddities=(*loaded.oddities, *odd), facts=facts)


def _normalised(loaded: Loaded, entry: Listed) -> Loaded:
    """The SAE with the normalisation that SAELens writes over its config: three SAEs of one release."""
    from bench.adapters.build import in_frames, per_token

    kind = entry.overrides.get("normalize_activations")
    if kind is None or loaded.normalisation != "none":
        return loaded
    if (norm := per_token(kind)) is None:
        raise CheckpointError(f"the list asks for normalisation {kind!r}, which the file lacks", "this SAE cannot be read")
    sae, said = in_frames(loaded.sae, norm)
    return replace(loaded, sae=sae, normalisation=f"{said} (from the list of {SAE_LENS})")


def _hook(entry: Listed) -> str:
    """Where the SAE belongs, by its names: the hook itself in the id, or a layer and a site in id, path and repository."""
    if spelled := re.match(r"blocks\.\d+\.(?:attn\.)?hook_(?:resid_pre|resid_mid|resid_post|mlp_out|attn_out|z)(?=_|$)", entry.id):
        return spelled[0]
    layer = re.search(r"layer_?(\d+)", entry.path) or re.search(r"layer_?(\d+)", entry.id)
    site = "resid_post"
    if entry.loader == "gemma_2":
        site = {"res": "resid_post", "mlp": "mlp_out", "att": "attn.z"}.get(entry.repo.rpartition("-")[2], "")
    elif entry.loader == "gemma_3":
        site = next((s for s in _SITES if s in entry.path), "").replace("attn_out", "attn.z")
    elif entry.loader not in ("qwen_scope", "goodfire"):
        return ""  # these layouts say it themselves
    if layer is None or not site:
        return ""
    return f"blocks.{layer[1]}.attn.hook_z" if site == "attn.z" else f"blocks.{layer[1]}.hook_{site}"


def listing(text: str = "") -> Iterator[str]:
    """Lines for `sae list --releases [TEXT]`: the releases; with a text, every reference that contains it, whatever the case.

    Args:
        text: Part of a release's name, an id, a model or a repository.
    """
    for name, release in releases().items():
        entries = list(_entries(name, release))
        if not text:
            first = entries[0]
            yield f"saelens:{name:<56} {len(entries):>5}  {first.model}  {first.repo}" + (f"  ({first.other})" if first.other else "")
            continue
        for e in entries:
            reference = f"saelens:{name}/{e.id}"
            if any(text.lower() in said.lower() for said in (reference, e.model, e.repo)):
                yield f"{reference}  {e.model}  {e.repo}#{e.path}" + (f"  ({e.other})" if e.other else "")
