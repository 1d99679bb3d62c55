"""BibTeX of the suite and of what its tasks and methods come from."""

from __future__ import annotations

_ENTRIES: dict[str, tuple[str, dict[str, str]]] = {
    "ortsaebench": (
        "software",
        {"title": "{ortsae-bench}: an evaluation suite for sparse autoencoders", "author": "{ortsae-bench maintainers}", "year": "2026"},
    ),
    "korznikov2025ortsae": (
        "misc",
        {
            "title": "{OrtSAE}: Orthogonal Sparse Autoencoders Uncover Atomic Features",
            "author": "Korznikov, Anton and Galichin, Andrey and Dontsov, Alexey and Rogov, Oleg and Tutubalina, Elena and Oseledets, Ivan",
            "year": "2025",
            "eprint": "2509.22033",
            "archivePrefix": "arXiv",
        },
    ),
    "gao2024": (
        "misc",
        {
            "title": "Scaling and evaluating sparse autoencoders",
            "author": "Gao, Leo and Dupr{\\'e} la Tour, Tom and Tillman, Henk and Goh, Gabriel and Troll, Rajan and Radford, Alec and "
            "Sutskever, Ilya and Leike, Jan and Wu, Jeffrey",
            "year": "2024",
            "eprint": "2406.04093",
            "archivePrefix": "arXiv",
        },
    ),
    "bussmann2024batchtopk": (
        "misc",
        {
            "title": "{BatchTopK} Sparse Autoencoders",
            "author": "Bussmann, Bart and Leask, Patrick and Nanda, Neel",
            "year": "2024",
            "eprint": "2412.06410",
            "archivePrefix": "arXiv",
        },
    ),
    "karvonen2025saebench": (
        "misc",
        {
            "title": "{SAEBench}: A Comprehensive Benchmark for Sparse Autoencoders in Language Model Interpretability",
            "author": "Karvonen, Adam and Rager, Can and Lin, Johnny and Tigges, Curt and Bloom, Joseph and others",
            "year": "2025",
            "eprint": "2503.09532",
            "archivePrefix": "arXiv",
        },
    ),
    "gurnee2023": (
        "misc",
        {
            "title": "Finding Neurons in a Haystack: Case Studies with Sparse Probing",
            "author": "Gurnee, Wes and Nanda, Neel and Pauly, Matthew and Harvey, Katherine and Troitskii, Dmitrii and Bertsimas, Dimitris",
            "year": "2023",
            "eprint": "2305.01610",
            "archivePrefix": "arXiv",
        },
    ),
    "kantamneni2025": (
        "misc",
        {
            "title": "Are Sparse Autoencoders Useful? A Case Study in Sparse Probing",
            "author": "Kantamneni, Subhash and Engels, Joshua and Rajamanoharan, Senthooran and Tegmark, Max and Nanda, Neel",
            "year": "2025",
            "eprint": "2502.16681",
            "archivePrefix": "arXiv",
        },
    ),
}


def bibtex(key: str) -> str:
    """One entry."""
    kind, fields = _ENTRIES[key]
    body = ",\n".join(f"  {name} = {{{value}}}" for name, value in fields.items())
    return f"@{kind}{{{key},\n{body}\n}}"


def known() -> tuple[str, ...]:
    """Keys of all entries."""
    return tuple(_ENTRIES)


def of_sae(name: str, sha256: str, facts: dict[str, str]) -> str:
    """An entry for the SAE itself: its name, site and weights' hash."""
    note = ", ".join([f"weights sha256 {sha256}", *(f"{k} {v}" for k, v in facts.items())])
    return f"@misc{{sae_{sha256[:8]},\n  title = {{Sparse autoencoder {name}}},\n  note = {{{note}}}\n}}"
