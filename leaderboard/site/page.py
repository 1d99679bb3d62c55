"""What every page shares: templates, one style, a policy that allows nothing else, and text made safe to show."""

from __future__ import annotations

import base64
import hashlib
import math
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

_TEMPLATES = Path(__file__).parent / "templates"
_BIDI = {0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)}  # turn the reading direction of what follows
_UNSHOWN = {*range(0x80, 0xA0), *range(0xD800, 0xE000), 0xFFFE, 0xFFFF}
STEPS = 9


def visible(text: str) -> str:
    """Text as a page may hold it: control characters become pictures of themselves, unpaired surrogates U+FFFD.

    Characters that turn the reading direction become their number, so that none reaches beyond its own text.

    Example:
        >>> visible("a\\x00b\\u202ec")
        'a␀b[U+202E]c'
    """
    if text.isascii() and text.isprintable():
        return text
    return text.translate(_table())


def draw(template: str, **values: Any) -> str:
    """A whole page. Every text is made visible and escaped."""
    style = (_TEMPLATES / "page.css").read_text(encoding="utf8").strip()
    return _environment().get_template(template).render(style=Markup(style), policy=policy(style), **values)


def policy(style: str) -> str:
    """Content-Security-Policy of a page with one inline style and nothing else.

    Args:
        style: Text between the style element's tags.
    """
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; form-action 'none'"


def number(value: float) -> str:
    """A number for a reader: three significant digits, thousands separated.

    Example:
        >>> number(0.012345), number(1234567.0), number(-2.0), number(0)
        ('0.0123', '1,230,000', '-2', '0')
    """
    if value == 0:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    text = f"{float(f'{value:.3g}'):,.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def percent(share: float) -> str:
    """A share in percent.

    Example:
        >>> percent(0.00356), percent(1.0)
        ('0.356 %', '100 %')
    """
    return f"{number(100 * share)} %"


def step(code: float, largest: float) -> int:
    """How strongly a token is marked: 0 for none, 1 to 9."""
    return 0 if code <= 0 or largest <= 0 else min(STEPS, math.ceil(STEPS * code / largest))


def lead(token: str) -> str:
    """Spaces before a word, which stand before its mark; none of a token that is nothing but spaces."""
    return token[: len(token) - len(token.lstrip(" "))] if token.strip() else ""


def body(token: str) -> str:
    """A token without its `lead`."""
    return token[len(lead(token)) :]


def runs(token: str) -> list[tuple[str, str]]:
    """A token in parts, with the kind of those that would not be seen: `nl`, `tab`, and `sp` where all of it is spaces.

    Example:
        >>> runs("a b\\n"), runs("  ")
        ([('', 'a b'), ('nl', '\\n')], [('sp', ' '), ('sp', ' ')])
    """
    kinds = {"\n": "nl", "\t": "tab"} | ({} if token.strip() else {" ": "sp"})
    found: list[tuple[str, str]] = []
    for c in token:
        kind = kinds.get(c, "")
        if not kind and found and not found[-1][0]:
            found[-1] = ("", found[-1][1] + c)
        else:
            found.append((kind, c))
    return found


@cache
def _table() -> dict[int, str]:
    pictures = {c: chr(0x2400 + c) for c in range(0x20) if c not in (0x09, 0x0A)}
    return pictures | {0x7F: "␡"} | {c: f"[U+{c:04X}]" for c in _BIDI} | {c: "\ufffd" for c in _UNSHOWN}


def _finalised(value: Any) -> Any:
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


@cache
def _environment() -> Environment:
    made = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_finalised,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters: Any = made.filters  # jinja2 gives it a type that no other filter fits
    filters.update(number=number, percent=percent, runs=runs, lead=lead, body=body)
    return made
