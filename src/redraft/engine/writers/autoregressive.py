"""decode "ar": one token an evaluation, by the encode role."""

from __future__ import annotations

from redraft.engine.backend import Pass, PassResult
from redraft.engine.writers.base import Event, Writer
from redraft.sampling import choose


class Autoregressive(Writer):
    encode_prompt = "last"

    def next_pass(self) -> Pass:
        return Pass(self.context, self.pending(), "last")

    def after_prompt(self, result: PassResult) -> list[Event]:
        return self.after_pass(result)

    def after_pass(self, result: PassResult) -> list[Event]:
        chosen = self.output.tokens
        request = self.request
        allowed = None if request.allow is None else self.allowed(list(chosen))
        token = choose(
            result.encode[-1], request.sampler, self.vocabulary, request.key, len(chosen), chosen, allowed
        )
        event = self.commit([token])
        self.canvases += 1
        return [event]
