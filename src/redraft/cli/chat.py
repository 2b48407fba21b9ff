"""redraft chat: a conversation."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from redraft.cli import options as o
from redraft.errors import RequestError
from redraft.hub import DEFAULT_MODEL
from redraft.hub.names import did_you_mean

if TYPE_CHECKING:
    from redraft.api import Model

HELP = """\
/set NAME VALUE   change a setting (`default` resets it); /set alone lists them
/steps on|off     show the denoising or only the answer
/undo             take back the last question and its answer
/clear            begin anew
/help             this list
/bye              leave (so does Ctrl-D)
Ctrl-C stops an answer; what was settled of it stays in the conversation."""


def chat(
    model: o.Model = DEFAULT_MODEL,
    system: Annotated[str | None, typer.Option(help="A system message to begin with.")] = None,
    decode: o.Decode = "diffusion",
    effort: o.Effort = None,
    seed: o.Seed = None,
    max_tokens: o.MaxTokens = None,
    temperature: o.Temperature = None,
    top_p: o.TopP = None,
    top_k: o.TopK = None,
    backend: o.Backend = "auto",
    delay: Annotated[float, typer.Option(help="Seconds that each step stays on screen.")] = 0.0,
    plain: Annotated[bool, typer.Option("--plain", help="Don't show the denoising (/steps off).")] = False,
) -> None:
    """Converse with a model; /help lists the commands."""
    sampling = o.SamplingOptions(decode, effort, seed, max_tokens, temperature, top_p, top_k)
    o.one_of("--backend", backend, o.BACKENDS)
    o.finite("--delay", delay, 0.0, 60.0)
    import redraft
    from redraft.cli.terminal import is_terminal

    conversation = Conversation(redraft.load(model, backend=backend), system, sampling)
    conversation.show_steps = is_terminal(sys.stdout) and not plain
    conversation.delay = delay
    if sys.stdin.isatty():
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  (line editing and history for input())
        conversation.say(f"{conversation.model.name}: /help lists the commands, /bye leaves.")
    _converse(conversation)


def _converse(conversation: Conversation) -> None:
    """Reads lines until /bye or the end of input. Nothing that goes wrong with one line ends the
    conversation.
    """
    while True:
        try:
            line = _read_line()
        except EOFError:
            return
        except KeyboardInterrupt:
            conversation.say("\n(Ctrl-D or /bye leaves)")
            continue
        try:
            if line.startswith("/"):
                if conversation.command(line):
                    return
            elif line.strip():
                conversation.ask(line.strip())
        except RequestError as error:
            conversation.say(f"redraft: {error}")
        except KeyboardInterrupt:
            conversation.say("(stopped)")


def _read_line() -> str:
    """One line of stdin; a prompt sign only for a person. Raises EOFError at the end, RequestError never."""
    if sys.stdin.isatty():
        return input(">>> " if sys.stdout.isatty() else "")
    line = sys.stdin.buffer.readline()
    if not line:
        raise EOFError
    return line.decode("utf-8", "surrogateescape").rstrip("\r\n")


class Conversation:
    """The messages so far, and how to answer the next."""

    def __init__(self, model: Model, system: str | None, sampling: o.SamplingOptions) -> None:
        self.model = model
        self.sampling = sampling
        self.system = [{"role": "system", "content": system}] if system else []
        self.turns: list[dict[str, str]] = []
        self.show_steps = False
        self.delay = 0.0

    def say(self, text: str) -> None:
        """For the person, apart from answers: stderr, so that a pipe gets answers alone."""
        from redraft.cli.terminal import safe

        print(safe(text), file=sys.stderr, flush=True)

    def ask(self, question: str) -> None:
        """Streams the answer and keeps both, the settled part of an answer that Ctrl-C stopped included."""
        from redraft.cli.render import LiveView, PlainView, Progress, Watcher, watch
        from redraft.cli.run import check_length, summary, whole_or_settled
        from redraft.cli.terminal import Interruptible

        turns = self._fitting([*self.turns, {"role": "user", "content": question}])
        stream = self.model.stream([*self.system, *turns], **self.sampling.arguments())
        check_length(self.model, stream, self.sampling.max_tokens)
        stop_ids = self.model.config.eos_token_ids
        progress = Progress(self.model.tokenizer, stop_ids)
        live = LiveView(progress, self.delay) if self.show_steps else None
        shown: Watcher = live or PlainView(self.model.tokenizer, self.sampling.stop, stop_ids)
        try:
            with Interruptible() as stop:
                watch(stream, [progress, shown], stop)
        finally:
            if live:
                live.close()
        completion = stream.completion
        text = whole_or_settled(completion, progress, self.sampling)
        shown.end(text)
        if live:
            self.say(summary(completion, live.slept) if not stop.pressed else "(stopped)")
        self.turns = [*turns, {"role": "assistant", "content": text}]

    def _fitting(self, turns: list[dict[str, str]]) -> list[dict[str, str]]:
        """The turns, the oldest exchanges left out if the context has no room for all and an answer."""
        answer = self.sampling.max_tokens or self.model.defaults.max_new_tokens
        room = self.model.config.max_position_embeddings - answer
        kept = turns
        while len(kept) > 1 and len(self.model.tokenizer.render([*self.system, *kept])) > room:
            kept = kept[2:]
        if dropped := (len(turns) - len(kept)) // 2:
            self.say(
                f"(the context is full: the oldest {dropped} exchange{'s' if dropped > 1 else ''} left out)"
            )
        return kept

    def command(self, line: str) -> bool:
        """Runs a /command; True ends the conversation. Raises RequestError for one that doesn't exist."""
        name, *rest = line[1:].split(maxsplit=2)[:3] or [""]
        if name in ("bye", "exit", "quit"):
            return True
        commands: dict[str, Callable[[list[str]], None]] = {
            "set": self._set,
            "steps": self._steps,
            "undo": self._undo,
            "clear": self._clear,
            "help": lambda rest: self.say(HELP),
        }
        if name not in commands:
            hint = did_you_mean(name, [*commands, "bye"])
            raise RequestError(f"there is no command /{name}{hint} (/help lists them)")
        commands[name](rest)
        return False

    def _set(self, rest: list[str]) -> None:
        if not rest:
            for name, value in self.sampling.arguments().items():
                self.say(f"{name} {'default' if value is None else value}")
            return
        if len(rest) == 1:
            raise RequestError("/set takes a name and a value, as in /set temperature 0.7")
        self.sampling = self.sampling.changed(rest[0], rest[1])

    def _steps(self, rest: list[str]) -> None:
        if rest not in (["on"], ["off"]):
            raise RequestError("/steps takes on or off")
        if rest == ["on"]:
            from redraft.cli.terminal import is_terminal

            if not is_terminal(sys.stdout):
                raise RequestError("denoising can only be shown on a terminal")
        self.show_steps = rest == ["on"]

    def _undo(self, rest: list[str]) -> None:
        if not self.turns:
            raise RequestError("there is nothing to take back")
        taken = self.turns[-2]["content"]
        self.turns = self.turns[:-2]
        self.say(f"taken back: {taken}")

    def _clear(self, rest: list[str]) -> None:
        self.turns = []
        self.say("a new conversation")
