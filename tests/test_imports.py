"""The shape of the code: who may import whom, how long files and functions may be, what stays unloaded at start."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
OURS = ("bench", "tasks", "baselines", "leaderboard")
MAX_FILE_LINES, MAX_FUNCTION_LINES = 300, 40

# First rule that matches a file's path decides; it names what of ours the file may import.
RULES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("bench/kernels/", ("bench.kernels",)),
    ("bench/types.py", ()),
    ("bench/cli.py", OURS),
    ("bench/verbs/", OURS),
    ("bench/", ("bench",)),
    ("baselines/", ("baselines", "bench")),
    ("tasks/", ("tasks", "bench", "baselines")),
    ("leaderboard/", ("leaderboard", "bench")),
)
VAGUE = {"utils", "common", "helpers", "misc", "manager"}
HIDDEN_STATE = {
    "torch.manual_seed",
    "torch.cuda.manual_seed_all",
    "torch.set_grad_enabled",
    "torch.set_default_dtype",
    "torch.set_default_device",
    "np.random.seed",
    "numpy.random.seed",
    "random.seed",
    "os.chdir",
}
HEAVY = ("torch", "transformers", "pandas", "matplotlib", "openai", "sklearn", "scipy", "datasets")

FILES = sorted(p.relative_to(ROOT).as_posix() for room in OURS for p in (ROOT / room).rglob("*.py"))


def tree(path: str) -> ast.Module:
    return ast.parse((ROOT / path).read_text(), path)


def imported(path: str) -> Iterator[str]:
    """Dotted names of ours that a file imports, wherever in the file; a relative import is reported as it is."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            names = [module] if node.module in OURS and not node.names else [f"{module}.{a.name}" for a in node.names]
        else:
            continue
        yield from (n for n in names if n.startswith(".") or n.split(".")[0] in OURS)


def may_import(path: str) -> tuple[str, ...]:
    return next(allowed for prefix, allowed in RULES if path.startswith(prefix))


@pytest.mark.parametrize("path", FILES)
def test_imports_follow_the_rule(path: str) -> None:
    allowed = may_import(path)
    wrong = [name for name in imported(path) if not any(f"{name}.".startswith(f"{a}.") for a in allowed)]
    assert not wrong, f"{path} may import of ours only {allowed or 'nothing'}"


@pytest.mark.parametrize("path", FILES)
def test_files_and_functions_are_short(path: str) -> None:
    assert len((ROOT / path).read_text().splitlines()) <= MAX_FILE_LINES
    functions = [n for n in ast.walk(tree(path)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    lengths = {f.name: (f.end_lineno or 0) - f.lineno + 1 for f in functions}
    assert not {name: n for name, n in lengths.items() if n > MAX_FUNCTION_LINES}


def called(node: ast.AST) -> Iterator[str]:
    """Names called in a file, except where the generators' state is put back afterwards."""
    if isinstance(node, ast.With) and any("torch.random.fork_rng" in ast.unparse(i) for i in node.items):
        return
    if isinstance(node, ast.Call):
        yield ast.unparse(node.func)
    for child in ast.iter_child_nodes(node):
        yield from called(child)


@pytest.mark.parametrize("path", FILES)
def test_no_hidden_state_and_no_vague_names(path: str) -> None:
    assert not set(called(tree(path))) & HIDDEN_STATE
    assert not VAGUE & set(Path(path).with_suffix("").parts)


@pytest.mark.parametrize("room", OURS)
def test_every_room_carries_the_marker(room: str) -> None:
    assigned = {
        t.id: ast.literal_eval(n.value)
        for n in tree(f"{room}/__init__.py").body
        if isinstance(n, ast.Assign) and isinstance(n.value, ast.Constant)
        for t in n.targets
        if isinstance(t, ast.Name)
    }
    assert assigned.get("SUITE") == "ortsae-bench"


def test_help_loads_nothing_heavy() -> None:
    program = f"""
import contextlib, io, json, runpy, sys
sys.argv = ["bench", "--help"]
out, code = io.StringIO(), 0
with contextlib.redirect_stdout(out):
    try:
        runpy.run_module("bench", run_name="__main__", alter_sys=True)
    except SystemExit as stop:
        code = stop.code or 0
print(json.dumps([code, "run" in out.getvalue(), [m for m in {HEAVY!r} if m in sys.modules]]))
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120)
    assert json.loads(done.stdout.splitlines()[-1]) == [0, True, []]
