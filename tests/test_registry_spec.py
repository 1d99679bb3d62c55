"""Names and settings: every file is found, every wrong name or value is one typed error, three ways to say one run are equal."""

from __future__ import annotations

from dataclasses import dataclass, fields
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar

import pytest

from bench import registry
from bench.errors import UsageError
from bench.spec import RunSpec, make_spec

ROOT = Path(__file__).resolve().parents[1]
NAME_OF = {"tasks": registry.tasks, "baselines": registry.methods}


@dataclass(frozen=True)
class Outside:
    """A task of another distribution."""

    name: ClassVar[str] = "outside"
    version: ClassVar[int] = 1
    tokens: int = 10

    def run(self, sae: Any, ctx: Any) -> None:
        """Never called here."""


def named_in(path: Path) -> bool:
    return f'name: ClassVar[str] = "{path.stem}"' in path.read_text()


@pytest.mark.parametrize("package", NAME_OF)
def test_every_file_is_found_under_its_own_name(package: str) -> None:
    files = {p.stem for p in (ROOT / package).glob("*.py") if named_in(p)}
    found = NAME_OF[package]()
    assert files <= set(found) and {n for n in found if "/" not in n} == files
    assert all(cls.__dict__["name"] == name for name, cls in found.items() if "/" not in name)


def test_tasks_have_what_the_board_needs() -> None:
    for cls in registry.tasks().values():
        assert isinstance(cls.version, int) and cls.sources and cls.caveats and cls.headline
        assert cls() == cls() and all(f.default is not None for f in fields(cls))


@pytest.mark.parametrize(("typed", "meant"), [("reconstrution", "reconstruction"), ("distinct_feature", "distinct_features")])
def test_did_you_mean(typed: str, meant: str) -> None:
    with pytest.raises(UsageError) as e:
        registry.pick("task", typed, registry.tasks())
    assert typed in e.value.cause and "did you mean" in e.value.remedy and meant in e.value.remedy and e.value.exit_code == 2


def test_a_name_like_nothing_lists_everything() -> None:
    with pytest.raises(UsageError) as e:
        registry.pick("task", "zzz", registry.tasks())
    assert all(name in e.value.remedy for name in registry.tasks())


BAD = [
    ("tokens", "many"),
    ("tokens", 1.5),
    ("tokens", None),
    ("tokens", [1]),
    ("tokns", 1),
    ("name", "x"),
    ("run", 1),
    ("", 1),
]


@pytest.mark.parametrize(("name", "value"), BAD, ids=str)
def test_bad_parameters_are_typed_errors(name: str, value: object) -> None:
    with pytest.raises(UsageError) as e:
        make_spec({"tasks": "reconstruction", "params": {"reconstruction": {name: value}}}).built_tasks()
    assert "reconstruction" in e.value.cause and e.value.remedy and "\n" not in str(e.value)


BAD_SETTINGS = [
    {"seed": "one"},
    {"limit": "x"},
    {"dtype": "float8"},
    {"saee": "x"},
    {"params": 3},
    {"params": {"reconstruction": 3}},
    {"sae": 3},
    {"k": 1.5},
    {"threshold": "high"},
]


@pytest.mark.parametrize("settings", BAD_SETTINGS, ids=str)
def test_bad_settings_are_typed_errors(settings: dict[str, Any]) -> None:
    with pytest.raises(UsageError) as e:
        make_spec(settings)
    assert e.value.remedy and "tasks show" not in e.value.remedy


def test_unknown_task_suite_and_params_of_an_unknown_task() -> None:
    for settings in ({"tasks": "nope"}, {"suite": "nope"}, {"params": {"nope": {}}}, {"suite": "nope.toml"}):
        with pytest.raises(UsageError):
            make_spec(settings).built_tasks()


def test_limit_caps_sizes_and_never_raises_them() -> None:
    plain = {t.name: t for t in make_spec({"suite": "smoke"}).built_tasks()}
    capped = {t.name: t for t in make_spec({"suite": "smoke", "limit": 150}).built_tasks()}
    large = {t.name: t for t in make_spec({"suite": "smoke", "limit": 10**9}).built_tasks()}
    assert capped["reconstruction"].tokens == 150 and capped["sparse_probing"].rows == 150
    assert capped["absorption"].words == 150 and capped["absorption_hierarchy"] == plain["absorption_hierarchy"]
    assert make_spec({"suite": "paper", "limit": 5}).built_tasks()  # no task is cut below what it needs
    assert large == plain and plain["reconstruction"].tokens == 4096
    assert capped["sparse_probing"].ks == plain["sparse_probing"].ks


def test_parameters_go_over_the_suites() -> None:
    spec = make_spec({"suite": "smoke", "tasks": "sparse_probing", "params": {"sparse_probing": {"rows": 50}}})
    (task,) = spec.built_tasks()
    assert task.rows == 50 and len(task.sets) == 4


def test_flags_toml_and_keywords_are_equal(tmp_path: Path) -> None:
    config = tmp_path / "run.toml"
    config.write_text(
        'sae = ["a", "b"]\nsuite = "smoke"\ntasks = ["reconstruction", "distinct_features"]\nlimit = 600\nseed = 3\n'
        'lm = "tiny:random"\nthreshold = 0.5\n[params.reconstruction]\ntokens = 64\n[params.distinct_features]\ntaus = [0.5, 0.7]\n'
    )
    params = {"reconstruction": {"tokens": 64}, "distinct_features": {"taus": (0.5, 0.7)}}
    common: dict[str, Any] = {"suite": "smoke", "limit": 600, "seed": 3, "lm": "tiny:random", "threshold": 0.5}
    keywords = make_spec({"sae": ("a", "b"), "tasks": ("reconstruction", "distinct_features"), "params": params, **common})
    flags = make_spec({"sae": ("a", "b"), "tasks": "reconstruction,distinct_features", "params": params, "hook": None, **common})
    toml = make_spec({}, config)
    assert keywords == flags
    assert toml.built_tasks() == flags.built_tasks()
    assert {f.name: getattr(toml, f.name) for f in fields(toml) if f.name != "params"} == {
        f.name: getattr(flags, f.name) for f in fields(flags) if f.name != "params"
    }
    assert make_spec({"limit": 5, "seed": None}, config).limit == 5 and make_spec({"seed": None}, config).seed == 3


def test_every_flag_of_run_is_a_field() -> None:
    import inspect

    from bench.verbs.run import run

    flags = set(inspect.signature(run).parameters) - {"config", "as_json", "dry_run"}
    assert flags == {f.name for f in fields(RunSpec)} - {"params"}


@pytest.mark.parametrize("content", [b"sae = ", b"\xff\xfe", b"nope = 1", b"sae = 3", b"params = 3"], ids=str)
def test_bad_config_files_are_typed_errors(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "run.toml").write_bytes(content)
    with pytest.raises(UsageError):
        make_spec({}, tmp_path / "run.toml")


def test_records_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ORTSAE_RECORDS", raising=False)
    assert RunSpec().records_folder == Path("ortsae-results")
    monkeypatch.setenv("ORTSAE_RECORDS", "/r")
    assert RunSpec().records_folder == Path("/r") and RunSpec(records="~/x").records_folder == Path.home() / "x"


def test_suites_build_and_their_columns_exist() -> None:
    suites = registry.suites()
    assert set(suites) >= {"smoke", "standard", "paper"}
    for name, suite in suites.items():
        built = {t.name for t in RunSpec(suite=name).built_tasks()}
        assert built == set(suite.tasks) and suite.description
        assert {c.partition(".")[0] for c in suite.columns} <= built


BAD_SUITES = [
    "",
    "nonsense",
    'description = "x"',
    'description = "x"\ncolumns = []\ntasks = ["reconstruction"]',
    'description = "x"\ncolumns = 3\n[tasks]',
    'description = "x"\ncolumns = []\n[tasks]\nreconstruction = 3',
]


@pytest.mark.parametrize("content", BAD_SUITES, ids=range(len(BAD_SUITES)))
def test_bad_suite_files_are_typed_errors(tmp_path: Path, content: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(content)
    with pytest.raises(UsageError) as e:
        make_spec({"suite": str(path)}).built_tasks()
    assert "is not a suite" in e.value.cause


def test_a_suite_file_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('description = "mine"\ncolumns = ["reconstruction.l0"]\n[tasks.reconstruction]\ntokens = 99\n')
    (task,) = make_spec({"suite": str(path)}).built_tasks()
    assert task.tokens == 99
    path.write_text(path.read_text().replace("tokens", "tokns"))
    with pytest.raises(UsageError, match="tokns"):
        make_spec({"suite": str(path)}).built_tasks()


def entry(name: str, value: str) -> metadata.EntryPoint:
    return metadata.EntryPoint(name, value, "ortsae_bench.tasks")


def test_plugins(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    points = [
        entry("me/outside", f"{__name__}:Outside"),
        entry("me/absent", "no_such_package_here:Task"),
        entry("me/attribute", "json:NoSuchTask"),
        entry("reconstruction", "json:loads"),
    ]
    monkeypatch.setattr(registry.metadata, "entry_points", lambda group: points if group == "ortsae_bench.tasks" else ())
    found = registry.tasks()
    assert found["me/outside"] is Outside and found["reconstruction"].__module__ == "tasks.reconstruction"
    assert not {"me/absent", "me/attribute"} & set(found)
    said = capsys.readouterr().err
    assert all(name in said for name in ("me/absent", "me/attribute", "lacks a '/'"))
    assert registry.build(found["me/outside"], {"tokens": 3}) == Outside(3)


def test_demos_are_folders_with_a_checkpoint() -> None:
    for name, folder in registry.demos().items():
        assert folder.name == name and (folder / "sae.json").exists()


def test_default_of_gives_every_default() -> None:
    assert {f.name: registry.default_of(f) for f in fields(RunSpec)} == {f.name: getattr(RunSpec(), f.name) for f in fields(RunSpec)}
