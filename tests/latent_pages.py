"""Facts of made-up latents, and a reader of pages, for the tests of pages."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import Any

from bench.latent_facts import LatentFacts

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "</style><style>*{display:none}</style>",
    "</title><svg/onload=alert(1)>",
    "\u202eevil\u202c",
    "\u2066isolated",
    "a\x00b\x1b[31m\x7f\x85",
    "{{ 7 * 7 }}{% raw %}",
    "javascript:alert(1)",
    "&lt;b&gt;&#60;",
    "<!--",
    "]]>",
    "x" * 3000,
    "\n\t  ",
    "שלום عربى",
    "https://example.org/x.png",
)


def facts(latent: int = 7, words: tuple[str, ...] = ("the", " dog", " ran"), name: str = "sae", **changes: Any) -> LatentFacts:
    """A latent with every part, each text of which is one of some words."""

    def word(i: int) -> str:
        return words[i % len(words)]

    def window(kind: str, centre: int, active: bool) -> dict[str, Any]:
        n = len(words)
        codes = [2.0 * active * (i == n // 2) + 0.5 * active * (i == 0) for i in range(n)]
        return {"kind": kind, "document": 3, "centre": centre, "start": centre - n // 2, "tokens": list(words), "codes": codes}

    kinds = ["top"] * 12 + [f"decile {i}" for i in range(1, 11)] + ["inactive"] * 5 + ["judged"] * 2
    windows = [window(kind, 1000 + 50 * i, kind != "inactive") for i, kind in enumerate(kinds)]
    windows[-1]["codes"] = None
    score = {"verdicts": 4, "unread": 1, "accuracy": 0.75, "balanced_accuracy": 0.8, "auc": 0.9, "floor": 0.5}
    verdicts = [
        {"window": i, "list": name, "active": kinds[i] != "inactive", "said": said, "score": None if said is None else 0.5}
        for i, said in ((0, True), (1, False), (22, True), (23, False), (24, None))
        for name in ("random", "hard")
    ]
    explained = {"judge": word(2), "source": "record 0123", "text": word(0), "shown": word(1), "scores": [{"list": "hard", **score}]}
    neighbour = {"cosine": 0.5, "rate": 0.01, "share": 0.25, "jaccard": 0.1}
    logits = [{"id": i, "token": w, "effect": 4.0 - i} for i, w in enumerate(words)]
    given = {
        "subject": {"name": name, "sha256": "ab" * 32, "architecture": word(3), "d_in": 4, "d_sae": 99}
        | {"lm": word(4), "revision": "r", "hook": "blocks.1.hook_resid_post"},
        "text": {"name": word(5), "sha256": "cd" * 32, "tokens": 1000, "kept": 900, "seed": 0},
        "latent": latent,
        "firings": 9,
        "rate": 0.01,
        "dead": False,
        "norm": 1.5,
        "histogram": {"edges": [0.0, 1.0, 2.0], "counts": [6, 3]},
        "quantiles": {"50": 0.9, "100": 2.0},
        "top_tokens": [{"token": w, "firings": 2, "mean": 1.0, "occurrences": 4} for w in words],
        "windows": windows,
        "explanations": [{"by": "judge", "verdicts": verdicts, **explained}, {"by": "shuffled", "verdicts": [], **explained}],
        "nearest": [{"latent": 8, **neighbour}, {"latent": 11, **neighbour}],
        "opposite": [{"latent": 12, **neighbour, "cosine": -0.5}],
        "composition": {
            "source": word(6),
            "explained": 0.4,
            "meta_latents": [{"meta_latent": 1, "code": 0.3, "serves": 5, "others": [8, 13]}],
        },
        "logits": {"promoted": logits, "suppressed": logits},
        "notes": [word(7)],
    }
    return LatentFacts.model_validate(given | changes)


class Page(HTMLParser):
    """Elements, attributes and text of a page.

    Args:
        html: The page.
    """

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.style = ""
        self.windows: list[str] = []
        self._open: list[str] = []
        self._window = False
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {k: v or "" for k, v in attrs}
        self.elements.append((tag, found))
        self._open.append(tag)
        if tag == "p" and found.get("class") == "w":
            self._window = True
            self.windows.append("")

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop() != tag:
            pass
        self._window = self._window and tag != "p"

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] == "style":
            self.style += data
            return
        self.text += data
        if self._window:
            self.windows[-1] += data

    def all(self, tag: str) -> list[dict[str, str]]:
        """Attributes of every element of a kind."""
        return [a for t, a in self.elements if t == tag]
