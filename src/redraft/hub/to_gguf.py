"""A model's AR self as a llama.cpp file (GGUF): what clean rows compute, with tokenizer and chat template.

The canvas stays behind: llama.cpp has no place for canvas rows. From this file it writes what decode "ar" writes, as
long as the special tokens of a canvas are forbidden there too. A tied head isn't written: llama.cpp then takes the
embedding in its place.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from redraft.denoiser import families
from redraft.denoiser.config import DenoiserConfig, read_config
from redraft.denoiser.shards import read_tensors
from redraft.denoiser.twin import ar_twin
from redraft.errors import RedraftError, RequestError
from redraft.hub.chat_template import template_source
from redraft.hub.from_gguf import (
    CONTROL,
    IN_BLOCK,
    QWEN_PIECES,
    ROLES,
    USER_DEFINED,
    WHOLE,
    Gguf,
    block_parts,
    check_installed,
    tensors_of,
)
from redraft.hub.store import base_of, read_json
from redraft.hub.tokenizer import TOKENIZER

GgufPrecision = Literal["fp32", "int8"]
BLOCK = 32  # weights that share a scale in Q8_0
NORMAL, UNUSED = 1, 5  # token types of GGUF, beside those of from_gguf
OUR_PIECES = QWEN_PIECES.replace("(?i:'s|'t|'re|'ve|'m|'ll|'d)", "'(?:[sdmt]|ll|ve|re)")


@dataclass(frozen=True)
class GgufExport:
    """What was written; max_difference: the largest between a weight and what the file, read back, holds for it."""

    path: Path
    size: int
    precision: GgufPrecision
    tensors: int
    max_difference: float


def pairs(weight: np.ndarray, head_dim: int) -> np.ndarray:
    """Rows of q or k [heads * head_dim, in], pairs (0, D/2), (1, D/2 + 1), … of each head side by side: what
    from_gguf.halves undoes."""
    split = weight.reshape(-1, 2, head_dim // 2, weight.shape[1])
    return np.ascontiguousarray(split.swapaxes(1, 2)).reshape(weight.shape)


def export(
    folder: str | Path, path: str | Path, precision: GgufPrecision = "fp32", name: str | None = None
) -> GgufExport:
    """Writes the file and reads it back. precision int8 is GGUF's Q8_0: matrices in blocks of 32 with a scale each. Of
    an adapted model its base is written, as far as the model uses it.

    Raises RequestError for a model whose clean rows are no Llama, Qwen2 or Qwen3, or whose tokenizer llama.cpp doesn't
    know, and where the gguf package is absent; RedraftError when the disk is full.
    """
    check_installed()
    folder, path = Path(folder), Path(path)
    config = families.load_config(folder)
    kind = ar_twin(config)
    base = base_of(folder) or folder
    family = families.identify(read_config(base), str(base))
    tensors = read_tensors(base, *([] if family is None else [family.rename]))
    told = tokenizer_fields(base, config)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(temporary, kind, config, told, _named(kind, config, tensors), precision, name or folder.name)
        os.replace(temporary, path)
    except OSError as error:
        raise RedraftError(f"{path} could not be written: {error.strerror or error}") from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
    count, difference = _compared(path, kind, config, tensors)
    return GgufExport(path, path.stat().st_size, precision, count, difference)


def _named(
    kind: str, config: DenoiserConfig, tensors: Mapping[str, np.ndarray]
) -> Iterator[tuple[str, np.ndarray]]:
    """(GGUF's name, values) of every tensor of the AR self, one at a time."""
    names = {own: gguf for gguf, own in WHOLE.items()}
    if config.tie_word_embeddings:
        del names["lm_head.weight"]
    ours = {own: gguf for gguf, own in IN_BLOCK.items()}
    for i in range(config.num_hidden_layers):
        for part in block_parts(kind):
            stem, _, end = part.rpartition(".")
            names[f"model.layers.{i}.{part}"] = f"blk.{i}.{ours[stem]}.{end}"
    for own, gguf in names.items():
        if own not in tensors:
            raise RequestError(f"the model lacks {own}: config.json and weights don't belong together")
        values = tensors[own]
        if kind == "llama" and gguf.endswith(("attn_q.weight", "attn_k.weight")):
            values = pairs(values, config.head_dim)
        yield gguf, values


def _write(
    path: Path,
    kind: str,
    config: DenoiserConfig,
    told: Mapping[str, Any],
    tensors: Iterator[tuple[str, np.ndarray]],
    precision: GgufPrecision,
    name: str,
) -> None:
    import gguf

    quantized = gguf.GGMLQuantizationType.Q8_0
    writer = gguf.GGUFWriter(path, kind)
    writer.add_name(name)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.rotary_dim)
    writer.add_rope_freq_base(config.rope_theta)
    kinds = gguf.LlamaFileType
    writer.add_file_type(kinds.ALL_F32 if precision == "fp32" else kinds.MOSTLY_Q8_0)
    for key, value in told.items():
        getattr(writer, f"add_{key}")(value)
    for key, values in tensors:
        if precision == "int8" and values.ndim == 2 and values.shape[1] % BLOCK == 0:
            writer.add_tensor(key, gguf.quantize(values, quantized), raw_dtype=quantized)
        else:
            writer.add_tensor(key, values)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def _compared(
    path: Path, kind: str, config: DenoiserConfig, tensors: Mapping[str, np.ndarray]
) -> tuple[int, float]:
    """How many tensors the file holds, and the largest difference of an entry from what was to be written."""
    read = tensors_of(
        Gguf(path),
        {
            "model_type": kind,
            "head_dim": config.head_dim,
            "num_hidden_layers": config.num_hidden_layers,
        },
    )
    return len(read), max(float(np.abs(values - tensors[own]).max()) for own, values in read.items())


def tokenizer_fields(folder: Path, config: DenoiserConfig) -> dict[str, Any]:
    """What GGUF says of the tokenizer, by the names of GGUFWriter's methods without "add_".

    Raises RequestError unless tokenizer.json is a byte-level BPE whose cutting into pieces llama.cpp knows by name.
    """
    definition = read_json(folder / TOKENIZER)
    if definition is None:
        raise RequestError(f"{folder} has no {TOKENIZER}: not a complete model directory")
    model = definition.get("model") or {}
    cut = cutting_of(definition.get("pre_tokenizer") or {})
    if (
        model.get("type") != "BPE"
        or cut is None
        or definition.get("normalizer") not in (None, {"type": "NFC"})
    ):
        raise RequestError(f"{folder / TOKENIZER} is no byte-level BPE that llama.cpp has a name for")
    added = {entry["id"]: entry for entry in definition.get("added_tokens") or []}
    names = {number: token for token, number in model["vocab"].items()}
    names |= {number: entry["content"] for number, entry in added.items()}
    if max(names) >= config.vocab_size:
        raise RequestError(f"{folder}: the tokenizer has more tokens than the network")
    types = {n: CONTROL if entry["special"] else USER_DEFINED for n, entry in added.items()}
    types |= dict.fromkeys((*config.special_slot_ids, *config.eos_token_ids), CONTROL)
    ids = range(config.vocab_size)
    out: dict[str, Any] = {
        "tokenizer_model": "gpt2",
        "tokenizer_pre": cut,
        "token_list": [names.get(i, f"[PAD{i}]") for i in ids],
        "token_types": [types.get(i, NORMAL if i in names else UNUSED) for i in ids],
        "token_merges": [m if isinstance(m, str) else " ".join(m) for m in model["merges"]],
    }
    return out | _roles(folder, config, {name: number for number, name in names.items()})


def _roles(folder: Path, config: DenoiserConfig, ids: Mapping[str, int]) -> dict[str, Any]:
    """Beginning, end and padding; whether an encoder begins with the first; the chat template."""
    raw = read_json(folder / "tokenizer_config.json") or {}
    out: dict[str, Any] = {}
    for role, key in ROLES.items():
        token = raw.get(f"{role}_token")
        name = token.get("content") if isinstance(token, dict) else token
        if isinstance(name, str) and name in ids:
            method = {"padding": "pad", "unknown": "unk"}.get(key, key)
            out[f"{method}_token_id"] = ids[name]
    if config.eos_token_ids:  # llama.cpp stops at two: the end of a text, and of a turn
        out["eos_token_id"] = config.eos_token_ids[0]
    if len(config.eos_token_ids) > 1:
        out["eot_token_id"] = config.eos_token_ids[1]
    out["add_bos_token"] = bool(raw.get("add_bos_token", False))
    template = template_source(folder)
    return out | ({} if template is None else {"chat_template": template})


def cutting_of(pre: Mapping[str, Any]) -> str | None:
    """llama.cpp's name for how tokenizer.json cuts text before merging ("tokenizer.ggml.pre"); None if it has none.

    redraft's own cutting is called qwen2: they differ only in an upper-case contraction with letters behind it ('SO).
    """
    parts = pre.get("pretokenizers") or [] if pre.get("type") == "Sequence" else [pre]
    kinds = [part.get("type") for part in parts]
    if not kinds or kinds[-1] != "ByteLevel" or parts[-1].get("add_prefix_space"):
        return None
    regex = parts[-1].get("use_regex", True)
    if kinds == ["ByteLevel"] and regex:
        return "gpt-2"
    if kinds == ["Digits", "ByteLevel"] and parts[0].get("individual_digits") and regex:
        return "smollm"
    if kinds == ["Split", "ByteLevel"] and not regex:
        pattern = (parts[0].get("pattern") or {}).get("Regex")
        if pattern in (QWEN_PIECES, OUR_PIECES) and parts[0].get("behavior") == "Isolated":
            return "qwen2"
    return None
