"""The command line's entry: verbs, exit statuses, and one line for whatever goes wrong."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer
import typer.core

from redraft import __version__
from redraft.cli import adapt, bench, chat, doctor, edit, evaluate, fill, models, prepare, run, train
from redraft.cli.options import Json
from redraft.cli.terminal import say
from redraft.errors import RedraftError

# Packages that the base install leaves out, and the extra that brings each.
EXTRAS = dict.fromkeys(("torch", "pydantic", "yaml", "matplotlib"), "train")


class Verbs(typer.core.TyperGroup):
    """typer would make status 130 of a KeyboardInterrupt and say nothing."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            say("interrupted")
            return 130


app = typer.Typer(
    name="redraft",
    cls=Verbs,
    help="Diffusion language models that write and rewrite text.",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"]},
)
# A verb is one file with one function (a group of verbs: one file with an app) and one line here. Nothing
# heavy is imported before a verb runs: `redraft --help` is instant.
app.command("run")(run.run)
app.command("chat")(chat.chat)
app.command("fill")(fill.fill)
app.command("edit")(edit.edit)
app.command("prepare")(prepare.prepare)
app.command("train")(train.train)
app.command("adapt")(adapt.adapt)
app.command("bench")(bench.bench)
app.command("eval")(evaluate.evaluate)
app.add_typer(models.app, name="models")
app.command("doctor")(doctor.doctor)


@app.callback(invoke_without_command=True)
def redraft(
    context: typer.Context,
    show_version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show tracebacks (works after any verb too).")
    ] = False,
) -> None:
    """Diffusion language models that write and rewrite text."""
    if show_version:
        typer.echo(f"redraft {__version__}")
        raise typer.Exit()
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command("version")
def version(as_json: Json = False) -> None:
    """Show the versions of redraft, Python and what they stand on."""
    versions = {"redraft": __version__, "python": sys.version.split()[0]} | doctor.package_versions()
    if as_json:
        typer.echo(json.dumps(versions))
    else:
        for name, number in versions.items():
            typer.echo(f"{name} {number or 'not installed'}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line and exits: 0 done, 1 it failed, 2 the request is wrong, 130 interrupted."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    own = arguments[: arguments.index("--")] if "--" in arguments else arguments
    debug = "--debug" in own
    if debug:
        arguments.remove("--debug")
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed by whoever started us
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError):
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    sys.exit(_run(arguments, debug))


def _run(arguments: list[str], debug: bool) -> int:
    """The exit status; whatever goes wrong is one line on stderr."""
    try:
        status = app(arguments, prog_name="redraft", standalone_mode=False)
        sys.stdout.flush()
        return status if isinstance(status, int) else 0
    except KeyboardInterrupt:
        say("interrupted")
        return 130
    except BrokenPipeError:
        return _leave_quietly()
    except SystemExit as leaving:  # typer's way to report a broken pipe
        if isinstance(leaving.__context__, BrokenPipeError):
            return _leave_quietly()
        raise
    except Exception as error:
        if debug:
            raise
        return _explain(error, arguments)


def _leave_quietly() -> int:
    """Whoever read stdout has seen enough, which is no failure. Python would complain once more on closing stdout."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _explain(error: Exception, arguments: list[str]) -> int:
    """One line that says why, or what to do, and the exit status."""
    if isinstance(error, RedraftError):
        say(f"redraft: {error}")
        return error.exit_code
    usage = getattr(error, "format_message", None)  # typer's errors, whichever click they come from
    if usage is not None:
        verb = next((a for a in arguments if not a.startswith("-")), "")
        known = {c.name for c in app.registered_commands} | {g.name for g in app.registered_groups}
        help_command = f"redraft {verb} --help" if verb in known else "redraft --help"
        say(f"redraft: {usage().rstrip('.')} (see `{help_command}`)")
        return 2
    if isinstance(error, ModuleNotFoundError) and (extra := EXTRAS.get((error.name or "").partition(".")[0])):
        say(f"redraft: this needs {error.name}, which isn't installed: pip install 'redraft[{extra}]'")
        return 2
    if type(error).__name__ == "Abort":
        say("interrupted")
        return 130
    if isinstance(error, OSError) and error.strerror:
        where = f": {error.filename}" if error.filename else ""
        say(f"redraft: {error.strerror}{where}")
        return 1
    if isinstance(error, MemoryError):
        say("redraft: out of memory")
        return 1
    say(f"redraft: unexpected {type(error).__name__}: {error} (--debug shows where)")
    return 1


if __name__ == "__main__":
    main()
