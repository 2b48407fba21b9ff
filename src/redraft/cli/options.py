"""Sampling options as flags and as /set in a chat, checked before anything is loaded."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from redraft.errors import RequestError
from redraft.hub.names import did_you_mean

AUTO = "auto"
DECODES = ("diffusion", "ar", "verified")
BACKENDS = ("auto", "torch", "onnx")

Model = Annotated[str, typer.Option("--model", "-m", help="A model's name or folder.")]
Decode = Annotated[str, typer.Option(help="diffusion, ar, or verified (ar's answer from fewer passes).")]
Effort = Annotated[str | None, typer.Option(help="Quality against speed: instant, low, medium, high.")]
Seed = Annotated[int | None, typer.Option(help="The same seed gives the same answer.")]
MaxTokens = Annotated[int | None, typer.Option(help="Length limit of the answer in tokens.")]
Temperature = Annotated[float | None, typer.Option(help="0 takes the likeliest token; higher varies more.")]
TopP = Annotated[
    float | None, typer.Option(help="Sample from the likeliest tokens of this total probability.")
]
TopK = Annotated[int | None, typer.Option(help="Sample from so many likeliest tokens (0: all).")]
Stop = Annotated[list[str] | None, typer.Option(help="End the answer before this text; may be repeated.")]
Canvas = Annotated[str | None, typer.Option(help="Slots denoised together, or auto: chosen as it goes.")]
Threshold = Annotated[float | None, typer.Option(help="Probability from which a slot settles.")]
Steps = Annotated[int | None, typer.Option(help="Denoising steps a canvas at most.")]
Check = Annotated[
    float | None,
    typer.Option(
        help="Keep a canvas's token where AR finds it at least this likely beside its own (0 to 1)."
    ),
]
Backend = Annotated[str, typer.Option(help="auto, torch or onnx.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]


@dataclass(frozen=True)
class SamplingOptions:
    """What a request may say of its sampling; None leaves it to the model's generation_config.json."""

    decode: str = "diffusion"
    effort: str | None = None
    seed: int | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    stop: tuple[str, ...] = ()
    canvas: str | int | None = None
    threshold: float | None = None
    steps: int | None = None
    check: float | None = None

    def __post_init__(self) -> None:
        """Raises RequestError, one line that names the flag and what it takes."""
        one_of("--decode", self.decode, DECODES)
        at_least("--seed", self.seed, 0)
        at_least("--max-tokens", self.max_tokens, 1)
        at_least("--top-k", self.top_k, 0)
        slots = str(self.canvas)
        if self.canvas not in (None, AUTO) and not (slots.isdecimal() and int(slots) >= 1):
            raise RequestError(f"--canvas must be 1 or more slots, or {AUTO}, not {slots}")
        at_least("--steps", self.steps, 1)
        finite("--temperature", self.temperature, 0.0, math.inf)
        finite("--threshold", self.threshold, 0.0, 1.0)
        finite("--check", self.check, 0.0, 1.0)
        finite("--top-p", self.top_p, 0.0, 1.0)
        if self.top_p == 0:
            raise RequestError("--top-p must be above 0")
        if "" in self.stop:
            raise RequestError("--stop must not be empty")

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments for Model.stream."""
        canvas = self.canvas if self.canvas is None or self.canvas == AUTO else int(self.canvas)
        return dataclasses.asdict(self) | {"stop": list(self.stop) or None, "canvas": canvas}

    def changed(self, name: str, text: str) -> SamplingOptions:
        """With one option set from its text ("default" resets it); raises RequestError if that can't be."""
        name = name.replace("-", "_")
        fields = {f.name: f for f in dataclasses.fields(self)}
        if name not in fields:
            raise RequestError(
                f"there is no setting {name}{did_you_mean(name, fields)} ({', '.join(fields)})"
            )
        return dataclasses.replace(
            self, **{name: _parsed(name, str(fields[name].type), fields[name].default, text)}
        )


def _parsed(name: str, kind: str, default: Any, text: str) -> Any:
    if text == "default":
        return default
    try:
        if kind.startswith("int"):
            return int(text)
        if kind.startswith("float"):
            return float(text)
    except ValueError:
        what = "a whole number" if kind.startswith("int") else "a number"
        raise RequestError(f"{name} must be {what}, not {text!r}") from None
    return (text,) if kind.startswith("tuple") else text


def one_of(flag: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise RequestError(
            f"{flag} must be one of {', '.join(choices)}, not {value!r}{did_you_mean(value, choices)}"
        )


def at_least(flag: str, value: int | None, low: int) -> None:
    if value is not None and value < low:
        raise RequestError(f"{flag} must be {low} or more, not {value}")


def finite(flag: str, value: float | None, low: float, high: float) -> None:
    if value is not None and not (math.isfinite(value) and low <= value <= high):
        span = f"from {low:g} to {high:g}" if high < math.inf else f"of {low:g} or more"
        raise RequestError(f"{flag} must be a number {span}, not {value:g}")


def editing_arguments(sampling: SamplingOptions, *names: str) -> dict[str, Any]:
    """Keyword arguments for Model.fill_stream and edit_stream: those of both, and `names`."""
    both = ("effort", "seed", "temperature", "top_p", "top_k", "threshold", "steps")
    return {name: getattr(sampling, name) for name in (*both, *names)}
