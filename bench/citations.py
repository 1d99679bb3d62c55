"""BibTeX of the suite and of what its tasks and methods come from."""

from __future__ import annotations

# key: title, authors, year, arXiv number
_ARXIV: dict[str, tuple[str, str, str, str]] = {
    "korznikov2025ortsae": (
        "{OrtSAE}: Orthogonal Sparse Autoencoders Uncover Atomic Features",
        "Korznikov, Anton and Galichin, Andrey and Dontsov, Alexey and Rogov, Oleg and Tutubalina, Elena and Oseledets, Ivan",
        "2025",
        "2509.22033",
    ),
    "gao2024": (
        "Scaling and evaluating sparse autoencoders",
        "Gao, Leo and Dupr{\\'e} la Tour, Tom and Tillman, Henk and Goh, Gabriel and Troll, Rajan and "
        "Radford, Alec and Sutskever, Ilya and Leike, Jan and Wu, Jeffrey",
        "2024",
        "2406.04093",
    ),
    "bussmann2024batchtopk": (
        "{BatchTopK} Sparse Autoencoders",
        "Bussmann, Bart and Leask, Patrick and Nanda, Neel",
        "2024",
        "2412.06410",
    ),
    "karvonen2025saebench": (
        "{SAEBench}: A Comprehensive Benchmark for Sparse Autoencoders in Language Model Interpretability",
        "Karvonen, Adam and Rager, Can and Lin, Johnny and Tigges, Curt and Bloom, Joseph and others",
        "2025",
        "2503.09532",
    ),
    "gurnee2023": (
        "Finding Neurons in a Haystack: Case Studies with Sparse Probing",
        "Gurnee, Wes and Nanda, Neel and Pauly, Matthew and Harvey, Katherine and Troitskii, Dmitrii and Bertsimas, Dimitris",
        "2023",
        "2305.01610",
    ),
    "kantamneni2025": (
        "Are Sparse Autoencoders Useful? A Case Study in Sparse Probing",
        "Kantamneni, Subhash and Engels, Joshua and Rajamanoharan, Senthooran and Tegmark, Max and Nanda, Neel",
        "2025",
        "2502.16681",
    ),
    "chanin2024": (
        "{A} is for {Absorption}: Studying Feature Splitting and Absorption in Sparse Autoencoders",
        "Chanin, David and Wilken-Smith, James and Dulka, Tom{\\'a}{\\v s} and Bhatnagar, Hardik and Golechha, Satvik and Bloom, Joseph",
        "2024",
        "2409.14507",
    ),
    "park2024hierarchy": (
        "The Geometry of Categorical and Hierarchical Concepts in Large Language Models",
        "Park, Kiho and Choe, Yo Joong and Jiang, Yibo and Veitch, Victor",
        "2024",
        "2406.01506",
    ),
    "leask2025metasae": (
        "Sparse Autoencoders Do Not Find Canonical Units of Analysis",
        "Leask, Patrick and Bussmann, Bart and Pearce, Michael and Bloom, Joseph and Tigges, Curt and "
        "Al Moubayed, Noura and Sharkey, Lee and Nanda, Neel",
        "2025",
        "2502.04878",
    ),
    "marks2024sparse": (
        "Sparse Feature Circuits: Discovering and Editing Interpretable Causal Graphs in Language Models",
        "Marks, Samuel and Rager, Can and Michaud, Eric J. and Belinkov, Yonatan and Bau, David and Mueller, Aaron",
        "2024",
        "2403.19647",
    ),
    "karvonen2024targeted": (
        "Evaluating Sparse Autoencoders on Targeted Concept Erasure Tasks",
        "Karvonen, Adam and Rager, Can and Marks, Samuel and Nanda, Neel",
        "2024",
        "2411.18895",
    ),
    "paulo2024": (
        "Automatically Interpreting Millions of Features in Large Language Models",
        "Paulo, Gon{\\c{c}}alo and Mallen, Alex and Juang, Caden and Belrose, Nora",
        "2024",
        "2410.13928",
    ),
    "engels2024": (
        "Not All Language Model Features Are One-Dimensionally Linear",
        "Engels, Joshua and Michaud, Eric J. and Liao, Isaac and Gurnee, Wes and Tegmark, Max",
        "2024",
        "2405.14860",
    ),
    "chanin2026synth": (
        "{SynthSAEBench}: Evaluating Sparse Autoencoders on Scalable Realistic Synthetic Data",
        "Chanin, David and Garriga-Alonso, Adri{\\`a}",
        "2026",
        "2602.14687",
    ),
    "song2025consistency": (
        "Position: Mechanistic Interpretability Should Prioritize Feature Consistency in {SAEs}",
        "Song, Xiangchen and Muhamed, Aashiq and Zheng, Yujia and Kong, Lingjing and Tang, Zeyu and Diab, Mona T. and "
        "Smith, Virginia and Zhang, Kun",
        "2025",
        "2505.20254",
    ),
}
_OTHER: dict[str, tuple[str, dict[str, str]]] = {
    "ortsaebench": (
        "software",
        {"title": "{ortsae-bench}: an evaluation suite for sparse autoencoders", "author": "{ortsae-bench maintainers}", "year": "2026"},
    ),
    "miller1995wordnet": (
        "article",
        {
            "title": "{WordNet}: A Lexical Database for {English}",
            "author": "Miller, George A.",
            "journal": "Communications of the ACM",
            "volume": "38",
            "number": "11",
            "pages": "39--41",
            "year": "1995",
        },
    ),
}
_ENTRIES = _OTHER | {
    key: ("misc", {"title": title, "author": author, "year": year, "eprint": number, "archivePrefix": "arXiv"})
    for key, (title, author, year, number) in _ARXIV.items()
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
