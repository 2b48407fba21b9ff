"""The command line as a whole: statuses, one line for what is wrong, and no wait before the help."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from redraft import __version__
from tests.cli.conftest import COMMAND, Redraft, environment
from tests.cli.models import write_network
from tests.hub.conftest import write_model


def test_version_and_help(redraft: Redraft) -> None:
    assert redraft("--version").out == f"redraft {__version__}\n"
    for arguments in (["--help"], ["-h"], []):
        shown = redraft(*arguments)
        assert shown.status == 0
        assert all(verb in shown.out for verb in ("run", "chat", "models", "doctor"))
    told = json.loads(redraft("version", "--json").out)
    assert told["redraft"] == __version__
    assert told["numpy"]
    assert redraft("version").out.splitlines()[0] == f"redraft {__version__}"


def test_nothing_heavy_is_imported_before_a_verb_runs(tmp_path: Path) -> None:
    code = (
        "import sys, redraft, redraft.hub, redraft.cli.main, redraft.cli.render, redraft.hub.tokenizer\n"
        "print(sorted({'torch', 'transformers', 'onnxruntime', 'diffusers'} & set(sys.modules)))"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, env=environment(tmp_path), check=True, text=True
    )
    assert shown.stdout == "[]\n"
    code = "import sys, redraft.cli.main; print('numpy' in sys.modules, 'rich.console' in sys.modules)"
    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, env=environment(tmp_path), check=True, text=True
    )
    assert shown.stdout.startswith("False")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["rnu"], "redraft: No such command 'rnu'. Did you mean 'run'? (see `redraft --help`)"),
        (["run", "--sede", "1", "hi"], "No such option: --sede"),
        (["run", "--seed", "one", "hi"], "Invalid value for '--seed'"),
        (["run", "--seed"], "requires an argument (see `redraft run --help`)"),
        (["run", "--seed", "-1", "hi"], "--seed must be 0 or more, not -1"),
        (["run", "--max-tokens", "0", "hi"], "--max-tokens must be 1 or more, not 0"),
        (["run", "--temperature", "nan", "hi"], "--temperature must be a number of 0 or more, not nan"),
        (["run", "--temperature=-0.5", "hi"], "--temperature must be a number of 0 or more, not -0.5"),
        (["run", "--temperature", "inf", "hi"], "--temperature must be a number of 0 or more, not inf"),
        (["run", "--top-p", "0", "hi"], "--top-p must be above 0"),
        (["run", "--top-p", "1.5", "hi"], "--top-p must be a number from 0 to 1, not 1.5"),
        (["run", "--threshold", "2", "hi"], "--threshold must be a number from 0 to 1, not 2"),
        (["run", "--decode", "verfied", "hi"], "not 'verfied', did you mean verified?"),
        (["run", "--backend", "tpu", "hi"], "--backend must be one of auto, torch, onnx, not 'tpu'"),
        (["run", "--stop", "", "hi"], "--stop must not be empty"),
        (["run", "--delay", "nan", "hi"], "--delay must be a number from 0 to 60, not nan"),
        (["run", "--raw", "--system", "x", "hi"], "--system needs the chat template: leave out --raw"),
        (["run", "--svg", "/no/such/folder/a.svg", "hi"], "--svg: there is no folder /no/such/folder"),
        (["run", ""], "the prompt is empty"),
        (["run", "  \n"], "the prompt is empty"),
        (["run"], "the prompt is empty"),  # stdin is an empty pipe
        (["run", b"caf\xe9"], "the prompt isn't valid UTF-8"),
        (["run", "--model", "redraft-tinny", "hi"], "unknown model 'redraft-tinny'"),
        (["run", "--model", "./nowhere", "hi"], "there is no folder ./nowhere"),
        (
            ["chat", "--model", "nothing"],
            "unknown model 'nothing' (`redraft models list` shows what there is)",
        ),
        (["models", "show", "nothing"], "unknown model 'nothing'"),
        (["models", "rm", "nothing"], "unknown model 'nothing'"),
        (["models", "rm"], "Missing argument 'name'"),
        (["models", "ls"], "No such command 'ls'"),
    ],
)
def test_a_wrong_request_is_status_2_and_one_line(
    redraft: Redraft, arguments: list[str | bytes], line: str
) -> None:
    shown = redraft(*arguments)
    assert (shown.status, shown.out) == (2, "")
    assert line in shown.err
    assert shown.err.count("\n") == 1


def test_stdin_that_is_no_utf8(redraft: Redraft) -> None:
    shown = redraft("run", stdin=b"caf\xe9")
    assert (shown.status, shown.out) == (2, "")
    assert shown.err == "redraft: stdin isn't valid UTF-8 (byte 3): convert it first\n"


def test_debug_shows_the_traceback_and_nothing_else_does(redraft: Redraft) -> None:
    for arguments in (["--debug", "models", "show", "nothing"], ["models", "show", "nothing", "--debug"]):
        shown = redraft(*arguments)
        assert shown.status != 0
        assert "Traceback" in shown.err
        assert "RequestError: unknown model" in shown.err
    # After -- it's a word like any other.
    assert "unknown model '--debug'" in redraft("models", "show", "--", "--debug").err


def test_models_can_be_listed_shown_and_removed(redraft: Redraft, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "home" / "models" / "mine")
    listed = json.loads(redraft("models", "list", "--json").out)["models"]
    mine = next(m for m in listed if m["name"] == "mine")
    assert (mine["origin"], mine["parameters"], mine["path"]) == ("local", 10, str(folder))
    assert "mine" in redraft("models", "list").out
    told = json.loads(redraft("models", "show", "mine", "--json").out)
    assert (told["verified"], told["licence"], told["parameters"]) == (True, "cc-by-sa-4.0", 10)
    shown = redraft("models", "show", str(folder))
    assert shown.status == 0
    assert "verified" in shown.out
    assert json.loads(redraft("models", "rm", "mine", "--json").out)["removed"] == "mine"
    assert not folder.exists()
    assert redraft("models", "show", "mine").status == 2


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_model_is_exported_and_compared(redraft: Redraft, tmp_path: Path, precision: str) -> None:
    write_network(tmp_path / "mine")
    flags = ["--int8"] if precision == "int8" else []
    export = ("models", "export", str(tmp_path / "mine"), *flags, "--out")
    told = json.loads(redraft(*export, str(tmp_path / "out"), "--json").out)
    assert told["precision"] == precision
    assert told["bytes"] == sum(p.stat().st_size for p in (tmp_path / "out").iterdir())
    assert Path(told["graph"]).exists()
    assert told["agreement"]["rows"] > 100
    assert (told["agreement"]["max_difference"] == 0) == (precision == "fp32")
    assert told["agreement"]["argmax_share"] > 0.8
    assert f"against fp32 on {told['agreement']['rows']} rows" in redraft(*export, str(tmp_path / "out")).out


def test_eight_bits_of_another_familys_network_are_blocks(redraft: Redraft, tmp_path: Path) -> None:
    write_network(tmp_path / "mine", canvas_rows_marked=False)
    flags = ("--int8", "--out", str(tmp_path / "out"), "--json")
    told = json.loads(redraft("models", "export", str(tmp_path / "mine"), *flags).out)
    assert told["precision"] == "blocks"
    assert Path(told["graph"]).name == "denoiser-blocks.onnx"
    assert told["agreement"]["argmax_share"] > 0.8


def test_a_model_is_exported_for_llama_cpp(redraft: Redraft, tmp_path: Path) -> None:
    pytest.importorskip("gguf", reason="in the extra `gguf`, which make test installs")
    write_network(tmp_path / "mine")
    export = ("models", "export", str(tmp_path / "mine"), "--format", "gguf", "--out", str(tmp_path / "out"))
    told = json.loads(redraft(*export, "--json").out)
    assert Path(told["file"]).name == "mine-fp32.gguf"
    assert told["bytes"] == Path(told["file"]).stat().st_size
    assert told["max_difference"] == 0
    assert "differ from float32 by at most 0" in redraft(*export).out


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["nothing", "--out", "out"], "unknown model 'nothing'"),
        ([".", "--out", "out", "--format", "onxx"], "must be one of onnx, gguf"),
        (["."], "say where to write"),
        ([".", "--out", "out"], "model"),
    ],
)
def test_an_export_that_cannot_be_is_one_line(redraft: Redraft, arguments: list[str], line: str) -> None:
    shown = redraft("models", "export", *arguments)
    assert (shown.status, shown.out, shown.err.count("\n")) == (2, "", 1)
    assert line in shown.err


def test_a_file_in_the_stores_place_is_no_crash(redraft: Redraft, tmp_path: Path) -> None:
    (tmp_path / "home").write_text("a file")
    assert redraft("models", "list").status == 0


def test_doctor_tells_what_works(redraft: Redraft) -> None:
    shown = redraft("doctor", "--json")
    told = json.loads(shown.out)
    checks = {check["name"]: check for check in told["checks"]}
    assert set(checks) >= {"python", "backends", "processor", "memory", "gpu", "model", "store", "terminal"}
    assert shown.status == (0 if told["ok"] else 1)
    assert told["ok"] == all(check["status"] != "fail" for check in told["checks"])
    assert checks["terminal"]["status"] == "note"
    plain = redraft("doctor")
    assert plain.status == shown.status
    assert len(plain.out.splitlines()) == len(told["checks"])


def test_a_verb_whose_extra_is_missing_names_the_pip_command(tmp_path: Path) -> None:
    """As in a base install: an import of what the extra brings fails."""
    (tmp_path / "a.yaml").write_text("name: a")
    for missing in ("torch", "pydantic", "yaml"):
        code = (
            f"import sys; sys.modules[{missing!r}] = None\n"
            "from redraft.cli.main import main; main(['train', 'a.yaml'])"
        )
        shown = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            cwd=tmp_path,
            env=environment(tmp_path),
            text=True,
            check=False,
        )
        assert (shown.returncode, shown.stdout) == (2, "")
        line = f"redraft: this needs {missing}, which isn't installed: pip install 'redraft[train]'\n"
        assert shown.stderr == line


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_and_a_closed_stdout(redraft: Redraft, tmp_path: Path) -> None:
    for redirection, status, line in (
        ("> /dev/full", 1, "redraft: No space left on device\n"),
        (">&-", 0, ""),
        ("<&- >&- 2>&-", 0, ""),
    ):
        shown = subprocess.run(
            f"{sys.executable} -m redraft.cli version {redirection}",
            shell=True,
            capture_output=True,
            env=environment(tmp_path),
            text=True,
            check=False,
        )
        assert (shown.returncode, shown.stdout, shown.stderr) == (status, "", line), redirection


def test_a_reader_that_has_seen_enough_is_no_error(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [*COMMAND, "run", "--help"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(tmp_path),
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait(timeout=60) == 0
    assert process.stderr is not None
    assert process.stderr.read() == b""
    process.stderr.close()


@pytest.mark.parametrize("module", ["typer", "redraft.cli.picture"])
def test_ctrl_c_during_an_import_is_one_line(module: str, tmp_path: Path) -> None:
    """Of the command line itself, or of what a verb needs."""
    code = (
        "import sys\n"
        "class Interrupted:\n"
        "    def find_spec(self, name, *rest):\n"
        f"        if name == {module!r}:\n"
        "            raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interrupted())\n"
        "from redraft.cli.__main__ import main\n"
        "sys.argv = ['redraft', 'run', 'hi']\n"
        "main()"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, env=environment(tmp_path), text=True, check=False
    )
    assert (shown.returncode, shown.stdout, shown.stderr) == (130, "", "interrupted\n")
