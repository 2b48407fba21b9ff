"""generation_config.json: how a model likes to be sampled when a request doesn't say."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from redraft.errors import RequestError
from redraft.hub.names import did_you_mean

GENERATION_CONFIG = "generation_config.json"


@dataclass(frozen=True)
class GenerationDefaults:
    """Defaults of one model.

    canvas_length: slots a canvas, or "auto": chosen as the answer goes by step_costs, what an evaluation costs by
    canvas length, in AR steps (empty: a built-in table). threshold: probability from which a slot settles.
    max_steps: denoising steps a canvas, None for as many as slots. temperature: 0 is greedy. top_k: 0 keeps all.
    edit_threshold: probability from which a settled token is overwritten; doubt: probability below which it goes back
    to noise; None never, one of the two at most. slide: leading settled slots that leave the canvas at once, 0 to
    commit it whole. check_ratio: how likely the AR self must find a canvas's token, beside
    its own, for it to stand; None: no check (engine.Request). draft_length: slots of a proposal of decode "verified",
    None for canvas_length. row_cost: what one more clean row adds to an evaluation, in AR steps; None: as much as a
    canvas row by step_costs. proofread: {"threshold", "screen", "units", "weights"} of editing.noisy_channel, empty
    where the AR self has no say in proofreading. effort: for each level of the dial the settings it changes.
    """

    canvas_length: int | Literal["auto"] = 16
    threshold: float = 0.9
    max_steps: int | None = None
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    edit_threshold: float | None = None
    doubt: float | None = None
    slide: int = 0
    check_ratio: float | None = None
    draft_length: int | None = None
    row_cost: float | None = None
    max_new_tokens: int = 256
    step_costs: Mapping[str, float] = field(default_factory=dict)
    proofread: Mapping[str, Any] = field(default_factory=dict)
    effort: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any], source: str = GENERATION_CONFIG) -> GenerationDefaults:
        """Unknown keys are ignored; raises RequestError for a value of the wrong type or outside its
        range.
        """
        known = {f.name for f in dataclasses.fields(cls)}
        values = {name: value for name, value in raw.items() if name in known}
        levels = values.get("effort", {})
        if not isinstance(levels, dict) or not all(isinstance(level, dict) for level in levels.values()):
            raise RequestError(f"{source}: effort must map each level to an object of settings")
        costs = values.get("step_costs", {})
        known_costs = isinstance(costs, dict) and all(
            slots.isdecimal() and int(slots) > 0 and _COST.allows(cost) for slots, cost in costs.items()
        )
        if not known_costs:
            raise RequestError(
                f"{source}: step_costs must map canvas lengths to costs above 0, not {costs!r}"
            )
        if not _is_channel(values.get("proofread", {})):
            raise RequestError(
                f"{source}: proofread must hold threshold (from 0 to 1), screen (a number for each name), units "
                "(numbers) and weights (numbers for each name)"
            )
        for prefix, settings in [
            ("", values),
            *((f"effort.{name}.", level) for name, level in levels.items()),
        ]:
            for name, value in settings.items():
                if name in _RULES and not _RULES[name].allows(value):
                    raise RequestError(f"{source}: {prefix}{name} must be {_RULES[name].text}, not {value!r}")
        return cls(**values)

    @classmethod
    def load(cls, folder: str | Path) -> GenerationDefaults:
        """Of a model's folder; the defaults above where the file is absent."""
        path = Path(folder) / GENERATION_CONFIG
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return cls()
        except (OSError, ValueError) as error:
            raise RequestError(f"{path} can't be read as JSON: {error}") from None
        if not isinstance(raw, dict):
            raise RequestError(f"{path} must hold a JSON object")
        return cls.from_dict(raw, str(path))

    def values(self) -> dict[str, Any]:
        """All by name; what is nested is shared, not copied, for this is asked with every request."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def settings_for(self, effort: str | None) -> dict[str, Any]:
        """What an effort level changes; nothing for None. Raises RequestError for a level the model doesn't
        have.
        """
        if effort is None:
            return {}
        if effort not in self.effort:
            if not self.effort:
                raise RequestError("this model has no effort levels: use threshold and steps instead")
            levels = ", ".join(self.effort)
            raise RequestError(
                f"unknown effort {effort!r}{did_you_mean(effort, self.effort)} (levels: {levels})"
            )
        return dict(self.effort[effort])


@dataclass(frozen=True)
class _Rule:
    """kind: int or float (an int passes for a float, a bool for neither); low and high are inclusive."""

    kind: type
    low: float
    high: float
    optional: bool = False
    above_low: bool = False
    word: str | None = None

    def allows(self, value: Any) -> bool:
        if value is None:
            return self.optional
        if self.word is not None and value == self.word:
            return True
        if isinstance(value, bool) or not isinstance(value, int if self.kind is int else (int, float)):
            return False
        return (
            math.isfinite(value)
            and self.low <= value <= self.high
            and not (self.above_low and value == self.low)
        )

    @property
    def text(self) -> str:
        what = "a whole number" if self.kind is int else "a number"
        if self.above_low:
            span = f"above {self.low:g}" + (f" and at most {self.high:g}" if self.high < math.inf else "")
        else:
            span = f"from {self.low:g}" + (f" to {self.high:g}" if self.high < math.inf else " up")
        other = "" if self.word is None else f' or "{self.word}"'
        return f"{what} {span}{other}" + (" or null" if self.optional else "")


def _is_channel(told: Any) -> bool:
    """Whether `proofread` is empty or has its three entries."""
    if told == {}:
        return True
    if not isinstance(told, dict) or told.keys() != {"threshold", "screen", "units", "weights"}:
        return False
    weights, screen = told["weights"], told["screen"]
    return (
        _RULES["threshold"].allows(told["threshold"])
        and isinstance(weights, dict)
        and isinstance(screen, dict)
        and _are_numbers(list(screen.values()))
        and all(_are_numbers(row) for row in (told["units"], *weights.values()))
    )


def _are_numbers(row: Any) -> bool:
    return isinstance(row, list) and all(_WEIGHT.allows(weight) for weight in row)


_COST = _Rule(float, 0, math.inf, above_low=True)
_WEIGHT = _Rule(float, -math.inf, math.inf)
_RULES = {
    "canvas_length": _Rule(int, 1, math.inf, word="auto"),
    "threshold": _Rule(float, 0, 1),
    "max_steps": _Rule(int, 1, math.inf, optional=True),
    "temperature": _Rule(float, 0, math.inf),
    "top_k": _Rule(int, 0, math.inf),
    "top_p": _Rule(float, 0, 1, above_low=True),
    "edit_threshold": _Rule(float, 0, 1, optional=True),
    "doubt": _Rule(float, 0, 1, optional=True),
    "slide": _Rule(int, 0, math.inf),
    "check_ratio": _Rule(float, 0, 1, optional=True, above_low=True),
    "draft_length": _Rule(int, 2, math.inf, optional=True),
    "row_cost": _Rule(float, 0, math.inf, optional=True),
    "max_new_tokens": _Rule(int, 1, math.inf),
}
