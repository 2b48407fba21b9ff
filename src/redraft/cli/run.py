"""redraft run: one answer, its text resolving out of noise on a terminal."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from redraft.cli import options as o
from redraft.errors import RequestError
from redraft.hub import DEFAULT_MODEL

if TYPE_CHECKING:
    from redraft.api import Completion, Model, Stream
    from redraft.cli.render import Progress, Watcher


def run(
    prompt: Annotated[str | None, typer.Argument(help="What to answer; without it, or as -, stdin.")] = None,
    model: o.Model = DEFAULT_MODEL,
    raw: Annotated[
        bool, typer.Option("--raw", help="Continue PROMPT as text, without the chat template.")
    ] = False,
    system: Annotated[str | None, typer.Option(help="A system message before the prompt.")] = None,
    decode: o.Decode = "diffusion",
    effort: o.Effort = None,
    seed: o.Seed = None,
    max_tokens: o.MaxTokens = None,
    temperature: o.Temperature = None,
    top_p: o.TopP = None,
    top_k: o.TopK = None,
    stop: o.Stop = None,
    canvas: o.Canvas = None,
    threshold: o.Threshold = None,
    steps: o.Steps = None,
    check: o.Check = None,
    backend: o.Backend = "auto",
    plain: Annotated[bool, typer.Option("--plain", help="Only committed text, also on a terminal.")] = False,
    delay: Annotated[float, typer.Option(help="Seconds that each step stays on screen.")] = 0.0,
    svg: Annotated[Path | None, typer.Option(help="Write a picture of the denoising to this file.")] = None,
    as_json: o.Json = False,
) -> int:
    """Answer PROMPT as a user message (or continue it: --raw). On a terminal one sees the text being
    denoised.

    Exit status: 0 done, 1 failed, 2 the request is wrong, 130 interrupted (what was settled is printed).
    """
    sampling = o.SamplingOptions(
        decode,
        effort,
        seed,
        max_tokens,
        temperature,
        top_p,
        top_k,
        tuple(stop or ()),
        canvas,
        threshold,
        steps,
        check,
    )
    o.one_of("--backend", backend, o.BACKENDS)
    o.finite("--delay", delay, 0.0, 60.0)
    if raw and system is not None:
        raise RequestError("--system needs the chat template: leave out --raw")
    if svg is not None and not svg.absolute().parent.is_dir():
        raise RequestError(f"--svg: there is no folder {svg.absolute().parent}")
    request = _request(_prompt(prompt, raw), raw, system)
    return answer(model, backend, request, sampling, View(as_json, plain, delay, svg))


@dataclass(frozen=True)
class View:
    """How an answer is shown. delay: seconds a step stays on screen. svg: where a picture of the steps goes."""

    as_json: bool = False
    plain: bool = False
    delay: float = 0.0
    svg: Path | None = None


def answer(
    model_name: str,
    backend: str,
    request: str | list[dict[str, Any]],
    sampling: o.SamplingOptions,
    view: View,
) -> int:
    """Loads the model, streams one answer into the view and returns the exit status."""
    import redraft
    from redraft.cli.picture import Recorder
    from redraft.cli.render import LiveView, PlainView, Progress, watch
    from redraft.cli.terminal import Interruptible, is_terminal, say, write

    model = redraft.load(model_name, backend=backend)
    stop_ids = model.config.eos_token_ids
    progress = Progress(model.tokenizer, stop_ids)
    live = None
    watchers: list[Watcher] = [progress]
    if view.as_json:
        pass
    elif is_terminal(sys.stdout) and not view.plain:
        watchers.append(live := LiveView(progress, view.delay))
    else:
        watchers.append(PlainView(model.tokenizer, sampling.stop, stop_ids))
    if view.svg:
        watchers.append(recorder := Recorder(progress))

    stream = model.stream(request, **sampling.arguments())
    check_length(model, stream, sampling.max_tokens)
    try:
        with Interruptible() as stop:
            watch(stream, watchers, stop)
    finally:
        if live:
            live.close()
    completion = stream.completion
    text = whole_or_settled(completion, progress, sampling)
    for watcher in watchers:
        watcher.end(text)
    if view.as_json:
        write(json.dumps(completion.to_json()) + "\n")
    elif live:
        say(summary(completion, live.slept))
    if stop.pressed and not live:  # the summary tells it
        say("interrupted")
    if view.svg:
        recorder.save(view.svg, request if isinstance(request, str) else request[-1]["content"])
    return 130 if stop.pressed else 0


def summary(completion: Completion, slept: float = 0.0) -> str:
    """NFE, tokens per forward and tokens/s of an answer; `slept` seconds went into being watched."""
    seconds = completion.seconds - completion.prefill_seconds - slept
    speed = f" · {completion.tokens / seconds:.0f} tokens/s" if seconds > 0 else ""
    return (
        f"{completion.tokens} tokens · NFE {completion.nfe}"
        f" · {completion.tokens_per_forward:.2f} tokens/forward{speed}"
        f" · {completion.finish_reason} · seed {completion.seed}"
    )


def whole_or_settled(completion: Completion, progress: Progress, sampling: o.SamplingOptions) -> str:
    """The answer; if it was interrupted, also the settled beginning of the canvas that was never committed."""
    if completion.finish_reason != "interrupted":
        return completion.text
    return progress.settled(sampling.stop)


def check_length(model: Model, stream: Stream, max_tokens: int | None) -> None:
    """Raises RequestError when the context has no room for as many tokens as were asked for."""
    context, prompt = model.config.max_position_embeddings, len(stream.request.prompt)
    if max_tokens is not None and prompt + max_tokens > context:
        raise RequestError(
            f"--max-tokens {max_tokens} is too many: the prompt takes {prompt} of the context's {context} tokens, "
            f"which leaves {context - prompt}"
        )


def _request(prompt: str, raw: bool, system: str | None) -> str | list[dict[str, Any]]:
    if raw:
        return prompt
    before = [{"role": "system", "content": system}] if system is not None else []
    return [*before, {"role": "user", "content": prompt}]


def _prompt(given: str | None, raw: bool) -> str:
    """The prompt from the command line or stdin; raises RequestError when it's empty, absent or no UTF-8."""
    if given is None or given == "-":
        if given is None and sys.stdin.isatty():
            raise RequestError('no prompt: give one (`redraft run "Hello"`) or pipe it in')
        try:
            text = sys.stdin.buffer.read().decode("utf-8")
        except UnicodeDecodeError as error:
            raise RequestError(f"stdin isn't valid UTF-8 (byte {error.start}): convert it first") from None
        text = text if raw else text.strip()
    else:
        text = given
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise RequestError("the prompt isn't valid UTF-8: convert it first") from None
    if not text.strip():
        raise RequestError("the prompt is empty: say something to answer")
    return text
