"""redraft as a model of lm-eval (the Language Model Evaluation Harness), for every task that it knows:

    python -m redraft.evaluation.harness --model redraft --model_args pretrained=redraft-tiny --tasks TASK --limit 10

which is lm-eval's own command line with this model registered. Needs lm-eval: pip install 'redraft[eval]'.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

import redraft
from redraft.api import Model
from redraft.engine.likelihood import likelihood
from redraft.errors import RequestError

LIKELIHOODS = ("auto", "ar", "nelbo")


@register_model("redraft")
class RedraftLM(LM):
    """A redraft model.

    pretrained: a model's name or folder, or a Model. decode, effort, threshold, canvas, steps: of generate_until, as
    for Model.request. likelihood: "ar", exact, or "nelbo", minus the diffusion bound by stratified Monte Carlo
    (strata sizes of mask, replicates of them), which is below the log-likelihood; "auto" is ar where the model has
    causal context. The bounds' standard errors, in nats and in the order of the requests, are in `standard_errors`,
    their mean and greatest in the results' config. batch_size, max_batch_size and device, which lm-eval hands to every
    model, change nothing: requests run one by one, on the backend's own device. Raises RequestError for an unknown
    model, backend or likelihood, and one that the model can't give.
    """

    def __init__(
        self,
        pretrained: str | Model = "redraft-tiny",
        backend: str = "auto",
        decode: str = "diffusion",
        effort: str | None = None,
        threshold: float | None = None,
        canvas: int | None = None,
        steps: int | None = None,
        likelihood: str = "auto",
        strata: int = 4,
        replicates: int = 4,
        max_gen_toks: int = 256,
        seed: int = 0,
        batch_size: Any = None,
        max_batch_size: Any = None,
        device: Any = None,
    ) -> None:
        super().__init__()
        self.model = (
            pretrained if isinstance(pretrained, Model) else redraft.load(pretrained, backend=backend)
        )
        self.writing = {
            "decode": decode,
            "effort": effort,
            "threshold": threshold,
            "canvas": canvas,
            "steps": steps,
        }
        self.likelihood_by = self._checked(likelihood)
        self.strata, self.replicates, self.seed = strata, replicates, seed
        self.max_gen_toks = max_gen_toks
        self.standard_errors: list[float] = []
        self._rendered: dict[str, list[int]] = {}

    def _checked(self, wanted: str) -> str:
        config = self.model.config
        if wanted not in LIKELIHOODS:
            raise RequestError(f"likelihood must be one of {', '.join(LIKELIHOODS)}, not {wanted!r}")
        causal = config.layout == "causal_context"
        chosen = wanted if wanted != "auto" else "ar" if causal else "nelbo"
        if chosen == "ar" and not causal:
            raise RequestError("this model has no causal context: take likelihood nelbo")
        if chosen == "nelbo" and config.mask_token_id is None:
            raise RequestError("this model has no mask token: take likelihood ar")
        return chosen

    # What lm-eval calls

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(log p of the continuation given the context, whether greedy AR writes it) of each (context, continuation).

        By the bound nothing says what greedy decoding would write: False.
        """
        out = []
        for request in requests:
            context, continuation = self._pair(*request.args)
            out.append(self._score(context, continuation))
            self.cache_hook.add_partial("loglikelihood", request.args, out[-1])
        return out

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """log p of each text as a document of its own, in windows as long as the context."""
        out = []
        for request in requests:
            tokens = self._encode(request.args[0])
            windows = get_rolling_token_windows(tokens, self._first, self._longest - 1, 1)
            pairs = [make_disjoint_window(w) for w in windows]
            out.append(sum(self._score(context, continuation)[0] for context, continuation in pairs))
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, out[-1])
        return out

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """What the model writes on from each context; do_sample false, or no temperature, is greedy."""
        out = []
        for request in requests:
            context, told = request.args
            out.append(self._write(context, dict(told)))
            self.cache_hook.add_partial("generate_until", request.args, out[-1])
        return out

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The conversation as text. Its tokens are kept, since the text alone can't tell a special token from the same
        characters in a message."""
        ids = self.model.tokenizer.render(chat_history, add_generation_prompt)
        text = self.model.tokenizer.decode(ids, skip_special=False)
        self._rendered[text] = ids.tolist()
        return text

    @property
    def tokenizer_name(self) -> str:
        return self.model.name

    def get_model_info(self) -> dict[str, Any]:
        """What lm-eval writes beside its results."""
        errors = self.standard_errors
        told = {"likelihood": self.likelihood_by, "backend": self.model.backend.name} | self.writing
        if errors:
            told |= {"nelbo_se_mean": float(np.mean(errors)), "nelbo_se_max": float(np.max(errors))}
        return told

    # Tokens

    @property
    def _longest(self) -> int:
        return self.model.config.max_position_embeddings

    @property
    def _first(self) -> int:
        """What stands before a document: the end of the one before it."""
        ends = self.model.config.eos_token_ids
        if not ends:
            raise RequestError("this model has no end-of-text token to put before a text without context")
        return ends[0]

    def _encode(self, text: str) -> list[int]:
        head = max((r for r in self._rendered if text.startswith(r)), key=len, default="")
        rest = text[len(head) :]
        return self._rendered.get(head, []) + (self.model.tokenizer.encode(rest).tolist() if rest else [])

    def _pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Tokens of both, cut where the context's end in the text of both together; spaces at the context's end belong
        to the continuation."""
        bare = context.rstrip()
        if not bare:
            return [self._first], self._encode(context + continuation)
        whole, given = self._encode(context + continuation), self._encode(bare)
        if context in self._rendered:  # a template's own white space stays where it is
            given = self._rendered[context]
        return whole[: len(given)], whole[len(given) :]

    def _score(self, context: Sequence[int], continuation: Sequence[int]) -> tuple[float, bool]:
        """The context loses its beginning where both together are too long."""
        if not continuation:
            return 0.0, True
        if len(continuation) >= self._longest:
            raise RequestError(
                f"a continuation has {len(continuation)} tokens and the context {self._longest}: take another task"
            )
        tokens = np.array([*context, *continuation], dtype=np.int64)[-self._longest :]
        given = len(tokens) - len(continuation)
        exact = self.likelihood_by == "ar"
        replicates = 0 if exact else self.replicates
        bound = likelihood(
            self.model.backend,
            tokens,
            strata=self.strata,
            replicates=replicates,
            seed=self.seed,
            given=given,
        )
        if exact:
            assert bound.ar_nll is not None
            return -bound.ar_nll, bool(bound.ar_greedy)
        assert bound.nelbo is not None
        assert bound.nelbo_se is not None
        self.standard_errors.append(bound.nelbo_se)
        return -bound.nelbo, False

    def _write(self, context: str, told: dict[str, Any]) -> str:
        until = told.get("until") or []
        until = [until] if isinstance(until, str) else list(until)
        sampled = told.get("do_sample", told.get("temperature", 0.0) > 0.0)
        most = min(int(told.get("max_gen_toks", self.max_gen_toks)), self._longest - 1)
        prompt = np.array(self._encode(context) or [self._first], dtype=np.int64)[-(self._longest - most) :]
        return self.model.generate(
            prompt,
            max_tokens=most,
            stop=[text for text in until if text],
            temperature=float(told.get("temperature", 1.0)) if sampled else 0.0,
            top_p=told.get("top_p"),
            top_k=told.get("top_k"),
            seed=self.seed,
            **self.writing,
        ).text


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
