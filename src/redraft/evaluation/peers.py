"""Outside programs that run AR on the same weights, where installed. A new one is a class and a line in PEERS."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

import numpy as np

from redraft.denoiser import families
from redraft.denoiser.adapter_config import AdapterConfig
from redraft.denoiser.config import DenoiserConfig
from redraft.denoiser.twin import ar_twin
from redraft.engine.backends.onnx_backend import physical_cores
from redraft.errors import RedraftError, RequestError
from redraft.hub.store import base_of
from redraft.hub.to_gguf import GgufPrecision, export, tokenizer_fields

PEER_PROMPTS = 4  # of a bench: transformers takes seconds for each
CONTEXT = 2048  # tokens that llama.cpp makes room for at most: of a long context it would be gigabytes
# Greedy AR on one prompt (int64 ids), so many new tokens: the seconds they took, prompt encoding left out.
Writer = Callable[[np.ndarray, int], float]


class Peer(Protocol):
    def missing(self, folder: Path) -> str | None:
        """Why this model can't be run there, None if it can."""
        ...

    def started(self, folder: Path) -> AbstractContextManager[Writer]:
        """The program with the model loaded, until the context ends."""
        ...


class Transformers:
    """transformers' `generate` on the Llama, Qwen2 or Qwen3 that our clean rows equal, in float32 on the CPU."""

    def missing(self, folder: Path) -> str | None:
        if find_spec("transformers") is None or find_spec("torch") is None:
            return "transformers with torch is not installed"
        return _no_twin(folder)

    @contextmanager
    def started(self, folder: Path) -> Iterator[Writer]:
        import torch

        model = transformers_twin(folder)

        def write(prompt: np.ndarray, tokens: int) -> float:
            ids = torch.from_numpy(np.asarray(prompt, dtype=np.int64))[None]
            with torch.inference_mode():
                first = _seconds(model, ids, 1)
                return _seconds(model, ids, tokens + 1) - first

        yield write


@dataclass(frozen=True)
class LlamaCpp:
    """llama.cpp on a GGUF file of the same weights, in float32 or in 8 bits (Q8_0), keys and values in float32, through
    xllamacpp, whose wheels bring it compiled. Of one thread and one on each core it gets what the first prompt shows to
    be faster: a small network's operators are over before a second thread has begun."""

    precision: GgufPrecision = "fp32"

    def missing(self, folder: Path) -> str | None:
        for package in ("xllamacpp", "gguf"):
            if find_spec(package) is None:
                return f"{package} is not installed"
        try:
            tokenizer_fields(base_of(folder) or folder, families.load_config(folder))
        except RequestError as error:
            return str(error)
        return _no_twin(folder)

    @contextmanager
    def started(self, folder: Path) -> Iterator[Writer]:
        with TemporaryDirectory() as place:
            file = Path(place) / "model.gguf"
            export(folder, file, self.precision)
            config = families.load_config(folder)
            context, banned = min(config.max_position_embeddings, CONTEXT), config.special_slot_ids
            servers = [llama_cpp(file, context, threads) for threads in sorted({1, physical_cores()})]

            def write(prompt: np.ndarray, tokens: int) -> float:
                took = []
                for server in servers:  # timed from the first new token on, which the prompt gave
                    told = complete(server, prompt, tokens + 1, banned)["timings"]
                    took.append(float(told["predicted_ms"]) / 1000)
                servers[:] = [servers[took.index(min(took))]]
                return min(took)

            yield write


PEERS: dict[str, Peer] = {
    "transformers": Transformers(),
    "llama.cpp": LlamaCpp(),
    "llama.cpp, 8 bits": LlamaCpp("int8"),
}


class Peers:
    """Outside programs on the same weights, which write the first few prompts in turn with our own modes."""

    def __init__(
        self,
        folder: Path | None,
        first: np.ndarray,
        tokens: int,
        stack: ExitStack,
        progress: Callable[[str], None],
    ) -> None:
        """Starts and warms up each that can run the model, until the stack ends; folder None: none of them."""
        self._tokens = tokens
        self._skipped: dict[str, str] = {}
        self._writers: dict[str, Writer] = {}
        self._seconds: dict[str, dict[int, float]] = {}
        if folder is None:
            return
        for name, peer in PEERS.items():
            progress(f"outside program: {name}")
            reason = peer.missing(folder)
            if reason is not None:
                self._skipped[name] = reason
                continue
            self._writers[name] = stack.enter_context(peer.started(folder))
            self._writers[name](first, self._tokens)
            self._seconds[name] = {}

    def write(self, number: int, prompt: np.ndarray) -> None:
        """One prompt by each; of repeats the fastest counts, as it does for ours."""
        for name, writer in self._writers.items():
            seconds, before = writer(prompt, self._tokens), self._seconds[name].get(number)
            self._seconds[name][number] = seconds if before is None else min(before, seconds)

    def told(self, ar: Sequence[float]) -> dict[str, Any]:
        """By program: tokens a second, and ratio, our AR loop's tokens a second over it on the same prompts (ar: its
        seconds for each prompt); or why it was skipped."""
        out: dict[str, Any] = {name: {"skipped": reason} for name, reason in self._skipped.items()}
        for name, by_prompt in self._seconds.items():
            seconds = sum(by_prompt.values())
            out[name] = {
                "tokens_per_second": self._tokens * len(by_prompt) / seconds if seconds else 0.0,
                "prompts": len(by_prompt),
                "ar_over_it": seconds / sum(ar[number] for number in by_prompt),
            }
        return out


def _no_twin(folder: Path) -> str | None:
    try:
        ar_twin(families.load_config(folder))
    except RequestError as error:
        return str(error)
    return None


def llama_cpp(file: Path, context: int, threads: int) -> Any:
    """llama.cpp with this file loaded; it serves until nobody holds it."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(file)
    params.n_ctx, params.n_parallel, params.verbosity = context, 1, -1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    return xllamacpp.Server(params)


def complete(
    server: Any, prompt: np.ndarray, tokens: int, banned: Sequence[int] = (), ids: bool = False
) -> dict[str, Any]:
    """Greedy AR from token ids; the server's answer, a completion of OpenAI's kind with `timings`. ids: with the new
    tokens' ids, which takes longer (see `token_ids`)."""
    request = {
        "prompt": [int(token) for token in prompt],
        "n_predict": tokens,
        "temperature": 0,
        "ignore_eos": True,
        "cache_prompt": False,
        "logit_bias": [[int(token), False] for token in banned],
    }
    answer: dict[str, Any] = server.handle_completions(request | ({"logprobs": 1} if ids else {}))
    if "choices" not in answer:
        raise RedraftError(f"llama.cpp failed: {answer}")
    return answer


def token_ids(answer: dict[str, Any]) -> list[int]:
    """The new tokens of an answer that was asked for with ids; of tokens that share a character, the last alone."""
    return [entry["id"] for entry in answer["choices"][0]["logprobs"]["content"]]


def written(answer: dict[str, Any]) -> bytes:
    """The bytes of an answer that was asked for with ids, up to its last whole character."""
    return b"".join(bytes(entry["bytes"]) for entry in answer["choices"][0]["logprobs"]["content"])


def transformers_twin(folder: Path) -> Any:
    """The AR self of a checkpoint or an adapter as a model of transformers, float32, eval mode: same weights, same
    logits."""
    import torch
    import transformers

    from redraft.denoiser.adapters import cut

    base = base_of(folder)
    ours = (
        families.load(folder) if base is None else cut(families.load(base), AdapterConfig.read(folder).layers)
    )
    config = ours.config
    family = ar_twin(config).capitalize()
    made = getattr(transformers, f"{family}Config")(**_shape(config))
    model = getattr(transformers, f"{family}ForCausalLM")(made)
    own = model.state_dict()
    weights = {name: tensor.float() for name, tensor in ours.state_dict().items() if name in own}
    absent = [name for name in own if name not in weights]
    assert not absent, absent
    model.load_state_dict(weights)
    return model.to(torch.float32).eval()


def _shape(config: DenoiserConfig) -> dict[str, Any]:
    names = (
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "max_position_embeddings",
        "rms_norm_eps",
        "tie_word_embeddings",
    )
    rope = {"rope_type": "default", "rope_theta": config.rope_theta}
    ends = {"eos_token_id": None, "bos_token_id": None, "pad_token_id": 0}
    return {n: getattr(config, n) for n in names} | {"rope_parameters": rope} | ends


def _seconds(model: Any, ids: Any, tokens: int) -> float:
    import torch

    start = time.perf_counter()
    model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=tokens,
        min_new_tokens=tokens,
        do_sample=False,
        pad_token_id=0,
    )
    return time.perf_counter() - start
