"""What an answer has come to, for people and scripts."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Completion:
    """One answer. finish_reason: "stop" (end of answer or a stop string), "length", or "interrupted".

    tokens: how many were committed, nulls and EOS not counted, token_ids themselves; prompt_tokens: the
    prompt's. nfe: network evaluations after the prompt's own. seconds: wall time from the request to the last
    commit, of which prefill_seconds for the prompt; time_to_first_draft: from the request to the first canvas
    (or token) to be seen, None if there was none. tokens_per_second counts from the end of the prompt.
    """

    model: str
    text: str
    finish_reason: str
    prompt_tokens: int
    tokens: int
    nfe: int
    tokens_per_forward: float
    seconds: float
    prefill_seconds: float
    time_to_first_draft: float | None
    tokens_per_second: float
    seed: int
    decode: str
    token_ids: tuple[int, ...]

    def to_json(self) -> dict[str, Any]:
        """What `redraft run --json` prints: all fields but token_ids."""
        fields = dataclasses.asdict(self)
        del fields["token_ids"]
        return fields
