"""What a family file has to say about its checkpoints, and the translations that several families share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from redraft.denoiser.families.special_tokens import SpecialTokens
from redraft.errors import RequestError

Raw = dict[str, Any]


@dataclass(frozen=True)
class Family:
    """One kind of checkpoint in Hugging Face's layout.

    networks: the (architecture, model_type) pairs of its config.json; both must match, since different networks share
    a model_type. translate: config.json and special tokens to fields of DenoiserConfig. rename: a tensor's name to
    ours, None for one that isn't a weight. needs: fields that must not stay None, because the checkpoint can't be run
    as a diffusion model without them.
    """

    name: str
    networks: tuple[tuple[str, str], ...]
    translate: Callable[[Raw, SpecialTokens], Raw]
    rename: Callable[[str], str | None] = field(default=lambda name: llama_key(name))
    needs: tuple[str, ...] = ("mask_token_id", "canvas_length")


def llama_key(name: str) -> str | None:
    """Llama's names are ours; files of its first years also hold the rotary frequencies, which are computed."""
    return None if name.endswith("rotary_emb.inv_freq") else name


def llama_fields(raw: Raw, tokens: SpecialTokens) -> Raw:
    """What Llama, Qwen2, Qwen3 and all that is built on them write alike. Raises RequestError for what isn't ours."""
    refuse(raw, "hidden_act", "silu")
    refuse(raw, "mlp_bias", False)
    refuse(raw, "use_sliding_window", False)
    refuse(raw, "quantization_config", None)
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    out = {name: raw[name] for name in (*names, "max_position_embeddings") if name in raw}
    heads, hidden = raw.get("num_attention_heads"), raw.get("hidden_size")
    out["num_key_value_heads"] = first(raw.get("num_key_value_heads"), heads)
    if raw.get("head_dim") is not None:
        out["head_dim"] = raw["head_dim"]
    elif isinstance(heads, int) and isinstance(hidden, int) and heads > 0:
        out["head_dim"] = hidden // heads
    return out | {
        "rms_norm_eps": raw.get("rms_norm_eps", 1e-6),
        "tie_word_embeddings": raw.get("tie_word_embeddings", False),
        "eos_token_ids": tokens.ends(raw),
        "mask_token_id": tokens.mask(raw),
        "canvas_rows_marked": False,
        **rope_fields(raw),
    }


def autoregressive(fields: Raw) -> Raw:
    """An AR base: it can be encoded and adapted; its canvas means something only after that."""
    return fields | {"layout": "causal_context"}


def rope_fields(raw: Raw) -> Raw:
    """transformers 5 keeps all of it in rope_parameters; before, there were rope_theta and rope_scaling."""
    merged = {**(raw.get("rope_scaling") or {}), **(raw.get("rope_parameters") or {})}
    out: Raw = {
        "rope_theta": merged.get("rope_theta", raw.get("rope_theta", 10000.0)),
        "partial_rotary_factor": first(
            merged.get("partial_rotary_factor"), raw.get("partial_rotary_factor"), 1.0
        ),
    }
    kind = first(merged.get("rope_type"), merged.get("type"), "default")
    if kind != "default":
        names = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
        scaling = {"rope_type": kind, "factor": 1.0} | {
            n: merged[n] for n in names if merged.get(n) is not None
        }
        if kind == "llama3" and "max_position_embeddings" in raw:
            scaling.setdefault("original_max_position_embeddings", raw["max_position_embeddings"])
        out["rope_scaling"] = scaling
    return out


def refuse(raw: Raw, name: str, supported: Any) -> None:
    """A config may leave `name` out; if it is there (and not null) it must have the one value redraft implements."""
    value = raw.get(name)
    if value is not None and value != supported:
        shown = "a value" if isinstance(value, dict) else repr(value)
        wanted = "it must be absent" if supported is None else f"only {supported!r} is"
        raise RequestError(f"config.json: {name} = {shown} is not supported; {wanted}")


def first(*values: Any) -> Any:
    """The first that is not None."""
    return next((v for v in values if v is not None), None)
