"""`python -m bench`: the composition root. Verbs live in `bench/verbs/`; nothing heavy is imported here."""

from __future__ import annotations

import shlex
import sys

import typer

from bench.errors import EXIT_CODES, BenchError
from bench.verbs import audit, cache, cite, data, doctor, plan, rescore, run, sae, show, table, tasks, train

_EPILOG = "Exit codes: " + " · ".join(f"{code} {what}" for code, what in EXIT_CODES.items())

app = typer.Typer(
    name="bench",
    help="Evaluate sparse autoencoders: any checkpoint, real tasks, honest intervals.\n\n"
    "Start with: python -m bench run --sae demo:ortsae --suite smoke",
    epilog=_EPILOG,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("run")(run.run)
app.command("plan")(plan.plan)
app.command("table")(table.table)
app.command("rescore")(rescore.rescore)
app.command("show")(show.show)
app.command("train")(train.train)
app.command("audit")(audit.audit)
app.command("cite")(cite.cite)
app.command("doctor")(doctor.doctor)
for group in (tasks, sae, data, cache):
    app.add_typer(group.app)


def main(argv: list[str] | None = None) -> None:
    """Run the command line; every error is one line of cause, one of remedy, and a documented exit code."""
    try:
        _check_packages()
        app(argv, standalone_mode=True)
    except BenchError as e:
        print(f"error: {e.cause}" + (f"\n  → {e.remedy}" if e.remedy else ""), file=sys.stderr)
        raise SystemExit(e.exit_code) from None
    except (KeyboardInterrupt, SystemExit) as e:
        if isinstance(e, SystemExit) and e.code != 130:  # 130 is what typer makes of a KeyboardInterrupt
            raise
        words = shlex.join(sys.argv[1:] if argv is None else argv)
        print(f"\ninterrupted; what was finished is kept. Go on with:\n  python -m bench {words}", file=sys.stderr)
        raise SystemExit(130) from None
    except BrokenPipeError:
        raise SystemExit(0) from None


def _check_packages() -> None:
    """Other distributions use these import names too; whoever is installed last silently wins."""
    import importlib

    from bench.errors import UsageError

    for name in ("bench", "tasks", "baselines", "leaderboard"):
        module = importlib.import_module(name)
        if getattr(module, "SUITE", "") != "ortsae-bench":
            raise UsageError(f"the package {name!r} at {module.__file__} is not ortsae-bench's", "use a virtual environment of its own")
