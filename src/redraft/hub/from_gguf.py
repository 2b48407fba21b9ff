"""A llama.cpp file (GGUF) as a folder in Hugging Face's layout: weights as float32, tokenizer, chat template.

Numbers are those that the file's quantization stands for, bit for bit; nothing is rounded again. In a Llama llama.cpp
turns neighbouring entries of a head where everyone else turns its halves, so GGUF holds the rows of q and k in another
order; it is undone here.
"""

from __future__ import annotations

import json
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from safetensors.numpy import save_file
from tokenizers import decoders, models, pre_tokenizers

from redraft.errors import RequestError
from redraft.files import write_atomically

WHOLE = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
IN_BLOCK = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_BLOCK = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)")
ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
QWEN_PIECES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
    r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CONTROL, USER_DEFINED = 3, 4  # token types of GGUF


def _digits_then_bytes() -> Any:
    digits = pre_tokenizers.Digits(individual_digits=True)
    return pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])


def _qwen() -> Any:
    split = pre_tokenizers.Split(tokenizers.Regex(QWEN_PIECES), "isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


# tokenizer.ggml.pre: how text is cut before its pieces are merged.
PRE_TOKENIZERS = {
    "gpt-2": lambda: pre_tokenizers.ByteLevel(add_prefix_space=False),
    "smollm": _digits_then_bytes,
    "qwen2": _qwen,
}


def check_installed() -> None:
    """Raises RequestError, with the pip command, where the gguf package is absent."""
    if find_spec("gguf") is None:
        raise RequestError("reading a GGUF file needs the gguf package: pip install 'redraft[gguf]'")


class Gguf:
    """Metadata by key, and tensors by GGUF's names."""

    def __init__(self, path: Path) -> None:
        """Raises RequestError for a file that is damaged or no GGUF, and where the gguf package is absent."""
        check_installed()
        from gguf import GGUFReader

        self.path = path
        try:
            reader = GGUFReader(path)
            self.tensors = {tensor.name: tensor for tensor in reader.tensors}
        except FileNotFoundError:
            raise RequestError(f"there is no file {path}") from None
        except (
            Exception
        ) as error:  # the package checks little: a damaged file ends in whatever numpy says of it
            raise RequestError(f"{path} is damaged or no GGUF file: {_one_line(error)}") from None
        self._fields = reader.fields

    def get(self, key: str, default: Any = None) -> Any:
        """A value of the metadata; lists for arrays. Raises RequestError for text that is none."""
        field = self._fields.get(key)
        try:
            return default if field is None else field.contents()
        except UnicodeDecodeError as error:
            raise RequestError(f"{self.path} is damaged: its {key} is no text ({_one_line(error)})") from None

    def need(self, key: str) -> Any:
        """Raises RequestError where the file doesn't say."""
        if key not in self._fields:
            raise RequestError(
                f"{self.path} doesn't tell its {key}: damaged, or not a model that redraft reads"
            )
        return self.get(key)

    def values(self, name: str) -> np.ndarray:
        """A tensor as float32, [out, in] as in torch. Raises RequestError for a quantization that is unknown."""
        from gguf import dequantize

        tensor = self.tensors[name]
        try:
            shape = tuple(int(n) for n in reversed(tensor.shape))
            return np.ascontiguousarray(dequantize(tensor.data, tensor.tensor_type), np.float32).reshape(
                shape
            )
        except (RuntimeError, ValueError) as error:  # the library's, for a quantization that it doesn't know
            raise RequestError(f"{self.path}: {name} can't be read: {_one_line(error)}") from None


def convert(path: Path, folder: Path) -> None:
    """Writes config.json, model.safetensors, tokenizer.json, tokenizer_config.json and generation_config.json.

    Raises RequestError for what is no Llama, Qwen2 or Qwen3 with a byte-level BPE tokenizer, saying what it is.
    """
    gguf = Gguf(path)
    architecture = gguf.get("general.architecture")
    if architecture not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise RequestError(f"{path} is a GGUF file of architecture {architecture!r}; redraft reads {known}")
    config = config_of(gguf)
    tokenizer, special = tokenizer_of(gguf)
    tensors = tensors_of(gguf, config)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    ends = {k: config[k] for k in ("bos_token_id", "eos_token_id", "pad_token_id") if config[k] is not None}
    _write(folder / "config.json", config)
    _write(folder / "generation_config.json", ends)
    _write(folder / "tokenizer_config.json", special)
    write_atomically(folder / "tokenizer.json", tokenizer.to_str(pretty=True).encode())


def config_of(gguf: Gguf) -> dict[str, Any]:
    """config.json of transformers' LlamaForCausalLM, Qwen2ForCausalLM or Qwen3ForCausalLM."""
    kind = gguf.need("general.architecture")
    scaling = gguf.get(f"{kind}.rope.scaling.type", "none")
    if scaling != "none" or "rope_freqs.weight" in gguf.tensors:
        raise RequestError(
            f"{gguf.path} stretches its rotary positions, which redraft reads from no GGUF file"
        )
    heads, hidden = gguf.need(f"{kind}.attention.head_count"), gguf.need(f"{kind}.embedding_length")
    if "token_embd.weight" not in gguf.tensors:
        raise RequestError(f"{gguf.path} lacks token_embd.weight: it is damaged")
    return {
        "architectures": [ARCHITECTURES[kind]],
        "model_type": kind,
        "vocab_size": int(gguf.tensors["token_embd.weight"].shape[-1]),
        "hidden_size": hidden,
        "intermediate_size": gguf.need(f"{kind}.feed_forward_length"),
        "num_hidden_layers": gguf.need(f"{kind}.block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": gguf.get(f"{kind}.attention.head_count_kv", heads),
        "head_dim": gguf.get(f"{kind}.attention.key_length", hidden // heads),
        "hidden_act": "silu",
        "max_position_embeddings": gguf.need(f"{kind}.context_length"),
        "rms_norm_eps": _short(gguf.need(f"{kind}.attention.layer_norm_rms_epsilon")),
        "rope_theta": _short(gguf.get(f"{kind}.rope.freq_base", 10000.0)),
        "tie_word_embeddings": "output.weight" not in gguf.tensors,
        "attention_bias": False,
        "mlp_bias": False,
        "torch_dtype": "float32",
        **{f"{name}_token_id": gguf.get(f"tokenizer.ggml.{key}_token_id") for name, key in ROLES.items()},
    }


ROLES = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}


def _short(value: float) -> float:
    """A float32 as people write it: 1e-05 and not 9.99999974738e-06."""
    return float(np.format_float_scientific(np.float32(value), unique=True))


def tensors_of(gguf: Gguf, config: dict[str, Any]) -> dict[str, np.ndarray]:
    """All weights by transformers' names. Raises RequestError when one is missing or of no known name."""
    out: dict[str, np.ndarray] = {}
    for name in gguf.tensors:
        block = _BLOCK.fullmatch(name)
        if name in WHOLE:
            out[WHOLE[name]] = gguf.values(name)
        elif block and block[2] in IN_BLOCK:
            values = gguf.values(name)
            if config["model_type"] == "llama" and block[2] in ("attn_q", "attn_k"):
                values = halves(values, config["head_dim"])
            out[f"model.layers.{block[1]}.{IN_BLOCK[block[2]]}.{block[3]}"] = values
        else:
            raise RequestError(f"{gguf.path} holds {name}, for which a Llama-type network has no place")
    due = {
        f"model.layers.{i}.{part}"
        for i in range(config["num_hidden_layers"])
        for part in block_parts(config["model_type"])
    }
    missing = sorted((due | {"model.embed_tokens.weight", "model.norm.weight"}) - out.keys())
    if missing:
        raise RequestError(f"{gguf.path} lacks {missing[0]}: it is damaged")
    return out


def block_parts(kind: str) -> list[str]:
    """Tensors of one layer of an architecture, by transformers' names."""
    norms = ("self_attn.q_norm", "self_attn.k_norm")
    parts = [f"{part}.weight" for part in IN_BLOCK.values() if kind == "qwen3" or part not in norms]
    return parts + ([f"self_attn.{x}_proj.bias" for x in "qkv"] if kind == "qwen2" else [])


def halves(weight: np.ndarray, head_dim: int) -> np.ndarray:
    """Rows of q or k [heads * head_dim, in], pairs (0, 1), (2, 3), … of each head to (0, D/2), (1, D/2 + 1), …"""
    try:
        pairs = weight.reshape(-1, head_dim // 2, 2, weight.shape[1])
    except ValueError:
        raise RequestError(f"q or k has {len(weight)} rows, no multiple of the head's {head_dim}") from None
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(weight.shape)


def tokenizer_of(gguf: Gguf) -> tuple[tokenizers.Tokenizer, dict[str, Any]]:
    """The tokenizer, and tokenizer_config.json with the chat template. RequestError unless it's a BPE of bytes."""
    kind, cut = gguf.need("tokenizer.ggml.model"), gguf.get("tokenizer.ggml.pre", "gpt-2")
    if kind != "gpt2" or cut not in PRE_TOKENIZERS:
        known = ", ".join(f"gpt2/{name}" for name in PRE_TOKENIZERS)
        raise RequestError(f"{gguf.path} has a {kind}/{cut} tokenizer; redraft rebuilds {known} from GGUF")
    tokens, types = gguf.need("tokenizer.ggml.tokens"), gguf.need("tokenizer.ggml.token_type")
    merges = [tuple(merge.split(" ", 1)) for merge in gguf.need("tokenizer.ggml.merges")]
    try:
        built = tokenizers.Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, merges))
    except Exception as error:  # the library raises bare Exception
        raise RequestError(f"{gguf.path}: its vocabulary and merges don't fit together: {error}") from None
    built.pre_tokenizer = PRE_TOKENIZERS[cut]()
    built.decoder = decoders.ByteLevel()

    def added(kind: int) -> list[tokenizers.AddedToken]:
        named = (t for t, k in zip(tokens, types, strict=True) if k == kind)
        return [tokenizers.AddedToken(t, special=kind == CONTROL, normalized=False) for t in named]

    built.add_special_tokens(added(CONTROL))
    built.add_tokens(added(USER_DEFINED))
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
    }
    for name, key in ROLES.items():
        number = gguf.get(f"tokenizer.ggml.{key}_token_id")
        if number is not None and number < len(tokens):
            config[f"{name}_token"] = tokens[number]
    if (template := gguf.get("tokenizer.chat_template")) is not None:
        config["chat_template"] = template
    return built, config


def _write(path: Path, content: dict[str, Any]) -> None:
    write_atomically(path, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
