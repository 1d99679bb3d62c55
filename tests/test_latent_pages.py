"""Pages of latents: they hold everything and nothing else, and no text does more than be shown."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from bench.errors import UsageError, VerificationError
from bench.latent_facts import LatentFacts, path_of, read, write
from leaderboard.site.latent_page import check_folder, draw_folder, latent_html, page_name
from leaderboard.site.page import draw, number, percent, runs, step, visible
from tests.latent_pages import HOSTILE, Page, facts

ROOT = Path(__file__).resolve().parents[1]
STYLE = ROOT / "leaderboard" / "site" / "templates" / "page.css"
CHROMIUM = shutil.which("chromium")
NAME = HOSTILE[1] + "\u202e"


@pytest.fixture
def drawn(tmp_path: Path) -> Path:
    """Pages of three latents whose every text is hostile."""
    for i, rate in ((7, 0.01), (8, 0.5), (9, 0.001)):
        write(tmp_path, facts(i, HOSTILE, NAME, rate=rate))
    draw_folder(tmp_path)
    return tmp_path


def pages(folder: Path) -> list[Page]:
    return [Page(p.read_text(encoding="utf8")) for p in sorted(folder.glob("*.html"))]


def test_json_is_compact_finite_and_read_back(tmp_path: Path) -> None:
    made = facts(7, HOSTILE, NAME)
    path = write(tmp_path, made)
    text = path.read_text()
    assert read(path) == made and json.loads(text)["schema"] == 1 and ", " not in text.split('"windows"')[0].replace(NAME, "")[:80]
    with pytest.raises(ValueError, match="finite"):
        facts(norm=float("nan"))


@pytest.mark.parametrize(
    "damage",
    [
        lambda t: t[:-40],
        lambda t: t.replace('"schema":1', '"schema":2'),
        lambda t: t.replace('"rate":0.01', '"rate":NaN'),
        lambda t: t.replace('"window":22', '"window":220'),
        lambda t: t.replace('"counts":[6,3]', '"counts":[6,3,1]'),
        lambda t: t.replace('"latent":7', '"latent":6', 1),
        lambda t: t.replace('"dead":false', '"dead":false,"more":1'),
        lambda t: "[" * 100_000,
    ],
)
def test_damaged_json_is_refused(tmp_path: Path, damage) -> None:
    path = write(tmp_path, facts())
    text = path.read_text()
    path.write_text(damage(text))
    assert path.read_text() != text
    with pytest.raises(VerificationError):
        draw_folder(tmp_path)


def test_a_folder_holds_one_sae(tmp_path: Path) -> None:
    write(tmp_path, facts(1))
    check_folder(tmp_path, facts().subject)
    with pytest.raises(UsageError, match="another SAE"):
        check_folder(tmp_path, facts(name="other").subject)
    write(tmp_path, facts(2, name="other"))
    with pytest.raises(UsageError, match="several"):
        draw_folder(tmp_path)
    with pytest.raises(UsageError, match="no latents"):
        draw_folder(tmp_path / "empty")


def test_pages_hold_no_code_and_nothing_from_elsewhere(drawn: Path) -> None:
    for page in pages(drawn):
        assert not {t for t, _ in page.elements} & {"script", "iframe", "object", "embed", "img", "base", "form", "foreignobject"}
        names = {n for _, a in page.elements for n in a}
        assert "style" not in names and not [n for n in names if n.startswith("on")]
        links = [v for _, a in page.elements for n, v in a.items() if n in ("href", "src", "srcset", "action", "xlink:href", "data")]
        assert links and all(re.fullmatch(r"data:,|index\.html|latent-\d+\.(html|json)", link) for link in links)
        assert "url(" not in page.style and "@import" not in page.style


def test_the_policy_allows_the_one_style_and_no_more(drawn: Path) -> None:
    for page in pages(drawn):
        (policy,) = [a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy"]
        digest = base64.b64encode(hashlib.sha256(page.style.encode()).digest()).decode()
        assert len(page.all("style")) == 1 and page.style == STYLE.read_text().strip()
        assert policy.split("; ")[:3] == ["default-src 'none'", f"style-src 'sha256-{digest}'", "img-src data:"]
        assert "unsafe" not in policy


def test_every_window_and_word_is_there(drawn: Path) -> None:
    page = Page((drawn / page_name(7)).read_text(encoding="utf8"))
    made = read(path_of(drawn, 7))
    assert page.windows == [visible("".join(w.tokens)) for w in made.windows]
    flat = page.text
    for text in HOSTILE:
        assert visible(text) in flat
    for phrase in ("active · judge said active · right", "active · judge said inactive · wrong", "the answer could not be read"):
        assert phrase in flat
    assert "inactive · judge said active · wrong" in flat and "floor 0.5" in flat and "0.80" in flat
    assert [a["href"] for a in page.all("a") if a.get("rel") in ("prev", "next")] == ["latent-8.html", "latent-9.html"]


def test_marks_follow_the_codes() -> None:
    page = Page(latent_html(facts(words=("a", " b", "c")), None, None, frozenset()))
    first = page.all("mark")[:2]
    assert [(m["class"], m["title"]) for m in first] == [("a3", "0.5"), ("a9 c", "2")]
    assert [step(c, 9.0) for c in (0.0, 0.1, 1.0, 1.1, 8.9, 9.0, 10.0)] == [0, 1, 1, 2, 9, 9, 9]


def test_only_latents_with_a_page_are_linked(drawn: Path) -> None:
    page = Page((drawn / page_name(7)).read_text(encoding="utf8"))
    linked = {a["href"] for a in page.all("a")}
    assert "latent-8.html" in linked and not {"latent-11.html", "latent-12.html", "latent-13.html"} & linked
    assert all((drawn / link).exists() for link in linked)
    index = Page((drawn / "index.html").read_text(encoding="utf8"))
    assert [a["href"] for a in index.all("a")] == ["latent-8.html", "latent-7.html", "latent-9.html"]


def test_a_latent_without_anything_has_a_page() -> None:
    empty: dict = {"windows": [], "explanations": [], "nearest": [], "opposite": [], "top_tokens": [], "quantiles": {}, "notes": []}
    bare = facts(firings=0, rate=0.0, dead=True, histogram=None, composition=None, logits=None, **empty)
    page = Page(latent_html(bare, None, None, frozenset()))
    assert "Never active on this text" in page.text and "dead here" in page.text and "no windows" in page.text


def test_pages_can_be_read_by_everyone(drawn: Path) -> None:
    for page in pages(drawn):
        assert page.all("html") == [{"lang": "en"}] and len(page.all("h1")) == 1 and page.all("title")
        levels = [int(t[1]) for t, _ in page.elements if re.fullmatch(r"h[1-6]", t)]
        assert all(b - a <= 1 for a, b in pairwise(levels))
        assert all(a.get("scope") in ("col", "row") for a in page.all("th"))
        assert all(a.get("aria-label") for a in page.all("svg"))


def colours(css: str) -> dict[str, tuple[float, float, float]]:
    found = re.findall(r"--([\w-]+): (?:#([0-9a-f]{6})|(\d+ \d+ \d+))", css)
    return {n: tuple(int(h[i : i + 2], 16) for i in (0, 2, 4)) if h else tuple(map(int, t.split())) for n, h, t in found}  # type: ignore[misc]


def contrast(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    """Contrast ratio of WCAG 2."""

    def light(c: tuple[float, ...]) -> float:
        linear = [v / 255 / 12.92 if v / 255 <= 0.04045 else ((v / 255 + 0.055) / 1.055) ** 2.4 for v in c]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((light(a), light(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast(scheme: str) -> None:
    css = STYLE.read_text()
    light, dark = css.split("prefers-color-scheme: dark")
    c = colours(light) | (colours(dark) if scheme == "dark" else {})
    for ground in ("bg", "panel"):
        assert min(contrast(c[n], c[ground]) for n in ("fg", "soft", "link")) >= 4.5
    assert contrast(c["right"], c["right-bg"]) >= 4.5 and contrast(c["wrong"], c["wrong-bg"]) >= 4.5 and contrast(c["bar"], c["bg"]) >= 3
    steps = [float(s) for s in re.findall(r"\.a\d \{ background: rgb\(var\(--mark\) / ([\d.]+)\)", css)]
    assert len(steps) == 9 and steps == sorted(steps)
    for s in steps:
        blend = tuple(s * m + (1 - s) * b for m, b in zip(c["mark"], c["bg"], strict=True))
        assert contrast(c["fg"], blend) >= 4.5


def test_text_is_made_visible() -> None:
    assert visible("a\x00\u202eb\ud800\x85") == "a␀[U+202E]b\ufffd\ufffd" and visible("é\n\t") == "é\n\t"
    assert runs("\n\n") == [("nl", "\n"), ("nl", "\n")] and "".join(t for _, t in runs(" a\tb\n")) == " a\tb\n"
    assert (number(1234.5), number(0.001234), percent(0.5)) == ("1,230", "0.00123", "50 %")


def test_a_missing_value_is_an_error() -> None:
    with pytest.raises(Exception, match="undefined"):
        draw("index.html", views=[])


def test_drawing_loads_neither_torch_nor_an_sae(drawn: Path) -> None:
    program = f"""
import sys
from itertools import pairwise
from pathlib import Path
from leaderboard.site.latent_page import draw_folder
draw_folder(Path({str(drawn)!r}))
print([m for m in ("torch", "scipy", "pandas", "transformers", "matplotlib", "bench.sae") if m in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == "[]"


def browse(url: str, profile: Path, *more: str) -> tuple[str, list[str]]:
    """DOM of a page as chromium has it, and what it wrote on its console."""
    assert CHROMIUM
    quiet = ["--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
    flags = ["--headless", "--no-sandbox", "--disable-gpu", *quiet, f"--user-data-dir={profile}", *more]
    log = ["--enable-logging=stderr", "--v=0", "--dump-dom"]
    done = subprocess.run([CHROMIUM, *flags, *log, url], capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_a_browser_finds_nothing_to_refuse(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("browser")
    for name in ("index.html", page_name(7)):
        dom, console = browse((drawn / name).as_uri(), other / name)
        assert not console
        assert "alert(1)" in dom and not {t for t, _ in Page(dom).elements} & {"script", "img", "iframe"}
    broken = other / "broken.html"  # the same page with a script and a picture: the browser would have said so
    text = (drawn / page_name(7)).read_text(encoding="utf8")
    broken.write_text(text.replace("<main>", "<main><script>alert(1)</script><img src='https://example.org/x.png'>"), encoding="utf8")
    assert len(browse(broken.as_uri(), other / "broken")[1]) == 2


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_pages_fit_narrow_and_wide_screens(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other, widths = tmp_path_factory.mktemp("browser"), (360, 1000, 1600)
    frames = [(w, name) for w in widths for name in ("index.html", page_name(7))]
    made = "".join(f'<iframe width="{w}" height="900" src="{(drawn / name).as_uri()}"></iframe>' for w, name in frames)
    program = "onload = () => document.title = Array.from(frames).map(f => f.document.documentElement.scrollWidth).join(' ')"
    (other / "frames.html").write_text(f"<!doctype html><body><script>{program}</script>{made}")
    dom, _ = browse((other / "frames.html").as_uri(), other / "profile", "--allow-file-access-from-files")
    found = re.search(r"<title>([\d ]+)</title>", dom)
    assert found
    assert all(int(n) <= w for n, (w, _) in zip(found[1].split(), frames, strict=True)), found[1]


def test_facts_have_documented_keys() -> None:
    assert "schema" in facts().model_dump(by_alias=True) and set(LatentFacts.model_fields) >= {"windows", "explanations", "nearest"}
