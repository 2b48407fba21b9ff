"""The Python interface: load a model, let it write, fill and edit, ask it how likely it finds a text."""

from __future__ import annotations

import dataclasses
import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal

import numpy as np

from redraft.denoiser.config import DenoiserConfig
from redraft.editing.hunks import Edit
from redraft.editing.lexicon import Lexicon
from redraft.editing.model import Editable, drawn
from redraft.editing.stream import EditStream, Filling
from redraft.engine import Commit, Engine, Request, Step, Ticket
from redraft.engine.adaptive import StepCosts
from redraft.engine.backend import Backend
from redraft.engine.backends import load_backend
from redraft.engine.completion import Completion
from redraft.engine.likelihood import likelihood
from redraft.errors import RequestError
from redraft.hub import DEFAULT_MODEL, GenerationDefaults, resolve
from redraft.hub.tokenizer import Tokenizer
from redraft.sampling import SamplerSettings

__all__ = ["Completion", "Edit", "EditStream", "Filling", "Likelihood", "Model", "Prompt", "Stream", "load"]

Prompt = str | list[dict[str, Any]] | np.ndarray


def load(name_or_path: str | os.PathLike[str] = DEFAULT_MODEL, backend: str = "auto") -> Model:
    """A model by name or folder, on backend "auto", "torch" or "onnx".

    Raises RequestError when there is no such model or backend, or its files aren't whole.
    """
    folder = resolve(name_or_path)
    tokenizer = Tokenizer.load(folder.path)
    defaults = GenerationDefaults.load(folder.path)
    network, lexicon = load_backend(backend, folder.path), Lexicon.of(folder.path)
    return Model(folder.name, network, tokenizer, defaults, lexicon=lexicon)


@dataclass(frozen=True)
class Likelihood:
    """Nats for the whole text, its first token taken as given. ar_nll: of the encode role, None where that
    isn't causal. nelbo: the diffusion bound, a Monte Carlo estimate with standard error nelbo_se, None
    without a mask token. tokens, bytes: of the text that was scored."""

    ar_nll: float | None
    nelbo: float | None
    nelbo_se: float | None
    tokens: int
    bytes: int

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


class Model(Editable):
    """A network on a backend with its tokenizer. Several streams may run at once; they share every
    evaluation."""

    def __init__(
        self,
        name: str,
        backend: Backend,
        tokenizer: Tokenizer,
        defaults: GenerationDefaults | None = None,
        max_batch: int = 8,
        memory: int | None = None,
        lexicon: Lexicon | None = None,
    ) -> None:
        """max_batch, memory (bytes): see Engine. lexicon: words that proofreading knows."""
        self.lexicon = lexicon
        self.name, self.backend, self.tokenizer = name, backend, tokenizer
        self.defaults = defaults or GenerationDefaults(canvas_length=backend.config.canvas_length)
        self.engine = Engine(backend, tokenizer.token_bytes, max_batch, memory)
        self._lock = threading.Lock()

    @property
    def config(self) -> DenoiserConfig:
        return self.backend.config

    def generate(self, prompt: Prompt, **options: Any) -> Completion:
        """The whole answer; options as for `request`."""
        stream = Stream(self, dataclasses.replace(self.request(prompt, **options), watched=False))
        for _ in stream:
            pass
        return stream.completion

    def stream(self, prompt: Prompt, **options: Any) -> Stream:
        """The answer as it is written: Step and Commit events; options as for `request`."""
        return Stream(self, self.request(prompt, **options))

    def request(
        self,
        prompt: Prompt,
        *,
        max_tokens: int | None = None,
        seed: int | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        top_k: int | None = None,
        stop: str | Sequence[str] | None = None,
        decode: str = "diffusion",
        effort: str | None = None,
        canvas: int | Literal["auto"] | None = None,
        threshold: float | None = None,
        steps: int | None = None,
        slide: int | None = None,
        check: float | None = None,
        ignore_eos: bool = False,
    ) -> Request:
        """The request that `generate` and `stream` run, checked. What is None comes from
        generation_config.json.

        prompt: text to be continued, messages for the chat template, or token ids (an integer array). stop:
        texts that end the answer. decode: diffusion, ar or verified. effort: a level of the model's quality
        and speed dial, which sets canvas, threshold and steps where those aren't given. canvas: slots
        denoised together, "auto" to choose for each canvas by how fast the last ones settled; threshold: probability
        from which a slot settles; steps: denoising steps a canvas at most. slide: leading settled slots that are
        committed at once, 0 to commit a canvas whole. seed: None draws one. ignore_eos: write on past the end of the
        answer. Raises RequestError, one line, for anything that can't be.
        """
        values = self.defaults.values() | self.defaults.settings_for(effort)
        given = {
            "canvas_length": canvas,
            "threshold": threshold,
            "max_steps": steps,
            "slide": slide,
            "check_ratio": check,
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
            "max_new_tokens": max_tokens,
        }
        # The model's default is a wish, a person's number an order: only the latter can be too much.
        values["max_new_tokens"] = min(values["max_new_tokens"], self.config.max_position_embeddings)
        values |= {name: value for name, value in given.items() if value is not None}
        if decode == "verified" and canvas is None:
            values["canvas_length"] = values["draft_length"] or values["canvas_length"]
        # A threshold, steps or a changing length are of canvases that settle by themselves.
        alone = threshold is not None or steps is not None or canvas == "auto"
        if check is None and values["check_ratio"] is not None and (decode != "diffusion" or alone):
            values["check_ratio"] = None
            if decode == "diffusion" and canvas is None:
                values["canvas_length"] = self.config.canvas_length
        if check == 0:
            values["check_ratio"] = None
        costs = self._step_costs(values)
        row, slot, canvas_cost = StepCosts.of(self.defaults.step_costs).of_drafts(self.defaults.row_cost)
        request = Request(
            prompt=tuple(self.encode(prompt)),
            decode=decode,
            sampler=self._sampler(values),
            max_tokens=values["max_new_tokens"],
            stop=(stop,) if isinstance(stop, str) else tuple(stop or ()),
            ignore_eos=ignore_eos,
            slide=values["slide"],
            check_ratio=values["check_ratio"],
            step_costs=costs,
            row_cost=row,
            slot_cost=slot,
            canvas_cost=canvas_cost,
            seed=drawn(seed),
        )
        request.check(self.config)
        return request

    def encode(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt. Raises RequestError when it is empty or neither text nor messages."""
        if isinstance(prompt, str):
            ids = self.tokenizer.encode(prompt)
        elif isinstance(prompt, np.ndarray) and np.issubdtype(prompt.dtype, np.integer):
            ids = prompt
        else:
            ids = self.tokenizer.render(prompt)  # type: ignore[arg-type]
        if not len(ids):
            raise RequestError("the prompt is empty: say something to answer")
        return [int(i) for i in ids]

    def score(self, text: str, strata: int = 4, replicates: int = 4, seed: int = 0) -> Likelihood:
        """How likely the model finds a text; see engine.likelihood for how. More strata and replicates narrow
        the standard error. Raises RequestError for a text of fewer than two tokens or longer than the
        context."""
        ids = self.tokenizer.encode(text)
        bound = likelihood(self.backend, ids, strata=strata, replicates=replicates, seed=seed)
        scored = sum(len(self.tokenizer.token_bytes(int(i))) for i in ids[1:])
        return Likelihood(bound.ar_nll, bound.nelbo, bound.nelbo_se, bound.tokens, scored)

    def _open(self, request: Request) -> Stream:
        return Stream(self, request)

    def _step_costs(self, values: dict[str, Any]) -> StepCosts | None:
        """With canvas_length "auto" the table to choose by, and in `values` what the first canvas takes and the most
        steps that any may take."""
        slots = values["canvas_length"]
        if not isinstance(slots, str):
            return None
        if slots != "auto":
            raise RequestError(f'canvas must be a number of slots or "auto", not {slots!r}')
        costs = StepCosts.of(values["step_costs"])
        values["canvas_length"] = self.config.canvas_length
        if values["max_steps"] is None:
            longest = max(costs.longest, self.config.canvas_length)
            values["max_steps"] = longest * _steps_a_slot(values)
        return costs

    def _sampler(self, values: dict[str, Any]) -> SamplerSettings:
        """Names as in generation_config.json to the sampler's; max_steps None: as many as slots."""
        slots, steps = values["canvas_length"], values["max_steps"]
        if steps is None and isinstance(slots, int):
            steps = max(1, slots) * _steps_a_slot(values)
        return SamplerSettings(
            temperature=values["temperature"],
            top_k=values["top_k"],
            top_p=values["top_p"],
            canvas_length=slots,
            max_steps=steps,
            threshold=values["threshold"],
            edit_threshold=values["edit_threshold"],
            doubt=values["doubt"],
            renoise="uniform" if self.config.mask_token_id is None else "mask",
        )

    def _next(self, ticket: Ticket) -> Step | Commit | None:
        """The next event of a stream, None at its end. Of all threads that wait, one runs evaluations for all."""
        while not ticket.inbox:
            if not self._lock.acquire(timeout=0.01):
                continue  # another thread runs an evaluation, which may bring an event of this stream
            try:
                if ticket.inbox:
                    break
                if ticket.error is not None:
                    raise ticket.error
                if ticket.done:
                    return None
                for owner, event in self.engine.step():
                    owner.inbox.append(event)
            finally:
                self._lock.release()
        return ticket.inbox.popleft() if ticket.inbox else None


def _steps_a_slot(values: dict[str, Any]) -> int:
    """Steps that a canvas may take for each of its slots: room to correct errors where that is wanted."""
    return 1 if values["edit_threshold"] is None and values["doubt"] is None else 2


class Stream:
    """Events of one answer, to be iterated once. Leaving early, `close`, or reading `completion` ends the
    answer; what was committed by then is kept."""

    def __init__(self, model: Model, request: Request) -> None:
        self._model, self.request = model, request
        self._ticket = model.engine.submit(request)

    def __iter__(self) -> Iterator[Step | Commit]:
        return self

    def __next__(self) -> Step | Commit:
        event = self._model._next(self._ticket)
        if event is None:
            self.close()
            raise StopIteration
        return event

    def close(self) -> None:
        """Ends the answer within the evaluation under way; nothing happens if it has ended."""
        self._model.engine.cancel(self._ticket)
        self._ticket.inbox.clear()

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_ticket"):
            self.close()

    @property
    def completion(self) -> Completion:
        """The answer as far as it was committed; ends the stream."""
        self.close()
        return completion(self._model, self._ticket)


def completion(model: Model, ticket: Ticket) -> Completion:
    """What a ticket has come to, as a Completion."""
    writer, request = ticket.writer, ticket.request
    ids = tuple(writer.output.tokens) if writer else ()
    nfe = writer.nfe if writer else 0
    text = writer.output.text_bytes().decode("utf-8", "replace") if writer else ""
    start = ticket.submitted if ticket.started is None else ticket.started
    end = max(filter(None, (start, ticket.prompt_read, ticket.last_commit)))
    prefill = 0.0 if ticket.prompt_read is None else ticket.prompt_read - start
    writing = end - ticket.submitted - prefill
    return Completion(
        model=model.name,
        text=text,
        finish_reason=(writer.output.finish_reason if writer else None) or "interrupted",
        prompt_tokens=len(request.prompt),
        tokens=len(ids),
        nfe=nfe,
        tokens_per_forward=len(ids) / max(1, nfe),
        seconds=end - ticket.submitted,
        prefill_seconds=prefill,
        time_to_first_draft=None if ticket.first_draft is None else ticket.first_draft - ticket.submitted,
        tokens_per_second=len(ids) / writing if writing > 0 else 0.0,
        seed=request.seed,
        decode=request.decode,
        token_ids=ids,
    )
