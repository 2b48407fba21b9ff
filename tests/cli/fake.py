"""A scripted stand-in for redraft.load's model: canvases resolve slot by slot. Until the engine is here."""

from __future__ import annotations

import dataclasses
import time
from types import SimpleNamespace

import numpy as np

from redraft.engine.events import Commit, Step
from redraft.hub.chat_template import ChatTemplate
from redraft.hub.generation import GenerationDefaults
from redraft.hub.tokenizer import Tokenizer
from tests.hub.conftest import TEMPLATE, byte_level


@dataclasses.dataclass
class Completion:
    model: str
    text: str
    finish_reason: str
    prompt_tokens: int
    tokens: int
    nfe: int
    tokens_per_forward: float
    seconds: float
    prefill_seconds: float
    time_to_first_draft: float
    tokens_per_second: float
    seed: int
    decode: str
    token_ids: list

    def to_json(self):
        d = dataclasses.asdict(self)
        d.pop("token_ids")
        return d


class Stream:
    def __init__(self, m, text, C=16, pause=0.0):
        self.m = m
        self.text = text
        self.C = C
        self.done = []
        self.nfe = 0
        self.pause = pause
        self.reason = "length"

    def __iter__(self):
        rng = np.random.default_rng(0)
        ids = self.m.tokenizer.encode(self.text).tolist() + [0]
        for c in range(0, len(ids), self.C):
            tok = ids[c : c + self.C]
            n = self.C
            tok = tok + [5] * (n - len(tok))
            cur = np.full(n, 4)
            st = np.zeros(n, np.uint8)
            order = rng.permutation(n)
            for s in range(0, n, 3):
                st[st == 2] = 4
                st[st == 3] = 4
                st[st == 0] = 1
                draft = rng.integers(30, 270, n)
                cur = np.where(st == 4, cur, draft)
                for k in order[s : s + 3]:
                    st[k] = 2
                    cur[k] = tok[k]
                if s == 6:
                    st[order[0]] = 3
                self.nfe += 1
                time.sleep(self.pause)
                yield Step(
                    c // self.C,
                    s // 3 + 1,
                    c,
                    cur.copy(),
                    st.copy(),
                    np.ones(n, np.float32),
                    np.zeros(n, np.float32),
                    self.nfe,
                )
            out = [t for t in tok if t != 5]
            last = c + self.C >= len(ids)
            self.done += [t for t in out if t != 0]
            self.nfe += 1
            if last:
                self.reason = "stop"
            yield Commit(c // self.C, tuple(out), self.nfe, "stop" if last else None)

    @property
    def completion(self):
        return Completion(
            "fake",
            self.m.tokenizer.decode(self.done),
            self.reason,
            5,
            len(self.done),
            self.nfe,
            len(self.done) / max(1, self.nfe),
            1.0,
            0.1,
            0.1,
            10.0,
            1,
            "diffusion",
            self.done,
        )


class Model:
    name = "fake"

    def __init__(
        self,
        text="Where do you want to fly? I want to fly to Zürich today. 谢谢 🦥 and so on and so forth until the line ends.\nThe second line.",
        pause=0.0,
    ):
        self.tokenizer = Tokenizer(byte_level(), ChatTemplate(TEMPLATE))
        self.text = text
        self.pause = pause
        self.config = SimpleNamespace(eos_token_ids=(0, 1), max_position_embeddings=1024)
        self.defaults = GenerationDefaults()

    def stream(self, prompt, **kw):
        return Stream(self, self.text, pause=self.pause)
