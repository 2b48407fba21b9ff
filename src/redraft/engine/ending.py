"""Where an answer ends: EOS, stop strings and length, token by token in output order, the same in every
mode."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

TokenBytes = Callable[[int], bytes]


@dataclass(frozen=True)
class EndRules:
    """eos: tokens that end the answer and are not part of it. stop: byte strings. limit: most tokens."""

    eos: frozenset[int]
    stop: tuple[bytes, ...]
    limit: int
    token_bytes: TokenBytes

    @property
    def overlap(self) -> int:
        """Bytes that must be kept to find a stop string across tokens."""
        return max((len(s) for s in self.stop), default=1) - 1


@dataclass(frozen=True)
class Progress:
    """How far an answer is, as much as the rules need: tokens so far and its last bytes."""

    count: int = 0
    tail: bytes = b""

    def after(self, token: int, rules: EndRules) -> tuple[Progress, str | None, int]:
        """The progress with one token more; "stop", "length" or None; and how many bytes to cut off the end
        of the text, because a stop string began there."""
        if token in rules.eos:
            return self, "stop", 0
        if not rules.stop:
            count = self.count + 1
            return Progress(count), "length" if count >= rules.limit else None, 0
        window = self.tail + rules.token_bytes(token)
        places = [at for at in (window.find(s) for s in rules.stop) if at >= 0]
        step = Progress(self.count + 1, window[-rules.overlap :] if rules.overlap else b"")
        if places:
            return step, "stop", len(window) - min(places)
        return step, "length" if step.count >= rules.limit else None, 0


class Output:
    """The tokens of one answer so far, EOS and nulls not among them."""

    def __init__(self, rules: EndRules) -> None:
        self.rules = rules
        self.tokens: list[int] = []
        self.finish_reason: str | None = None
        self._progress = Progress()
        self._cut = 0

    def push(self, token: int) -> bool:
        """Adds a token. False if the answer has ended, or ends with this token without holding it (EOS)."""
        if self.finish_reason is not None:
            return False
        before = self._progress.count
        self._progress, self.finish_reason, self._cut = self._progress.after(token, self.rules)
        if self._progress.count == before:
            return False
        self.tokens.append(token)
        return True

    def extend(self, tokens: tuple[int, ...] | list[int]) -> tuple[int, ...]:
        """Pushes tokens until the answer ends; returns those that were taken."""
        taken = []
        for token in tokens:
            if not self.push(token):
                break
            taken.append(token)
        return tuple(taken)

    def ends_within(self, tokens: list[int]) -> bool:
        """Whether these tokens, coming next, would end the answer."""
        rules, progress = self.rules, self._progress
        if not rules.stop and progress.count + len(tokens) < rules.limit:
            return not rules.eos.isdisjoint(tokens)
        for token in tokens:
            progress, reason, _ = progress.after(token, rules)
            if reason is not None:
                return True
        return False

    def text_bytes(self) -> bytes:
        """UTF-8 of the answer, without the stop string that ended it."""
        data = b"".join(self.rules.token_bytes(t) for t in self.tokens)
        return data[: len(data) - self._cut]
