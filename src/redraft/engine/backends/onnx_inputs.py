"""What the graph of onnx_graph reads, by name: types and shapes. Letters stand for sizes that a call chooses."""

from __future__ import annotations

from redraft.denoiser.config import DenoiserConfig

EARLY = "early."  # before the name of an input: for layers before open slots enter
EARLY_ROWS, LATE_ROWS = "early.rows", "late.rows"


def of_group(name: str, group: int) -> str:
    """The name of an input that each group of lanes has."""
    return f"{name}.{group}" if group else name


def inputs(config: DenoiserConfig, groups: int, gated: bool) -> dict[str, tuple[str, list[int | str]]]:
    """Type and shape of each input, by name. gated: of a graph with an adapter's nodes."""
    real, whole, half = "float32", "int64", config.rotary_dim // 2
    out: dict[str, tuple[str, list[int | str]]] = {
        "tokens": (whole, [1, "N"]),
        "turn": (whole, [1, "N"]),
        "cos": (real, ["N", half]),
        "sin": (real, ["N", half]),
        "wanted": (whole, ["R"]),
    }
    if groups > 1:
        out["sizes"] = whole, [groups]
    entering = gated and config.canvas_entry is not None
    if entering:
        out |= {f"{EARLY}turn": (whole, [1, "E"]), EARLY_ROWS: (whole, [1, "E", 2])}
        out[LATE_ROWS] = whole, [1, "L", 2]
        out |= {f"{EARLY}sizes": (whole, [groups])} if groups > 1 else {}
    if gated:
        out |= {"canvas": (whole, [1, "A", 2]), "wanted_canvas": (whole, [1, "W", 2])}
    if config.canvas_rows_marked or config.self_conditioning or gated:
        out["role"] = whole, [1, "N"]
    if config.self_conditioning:
        out |= {"expected": (real, ["E", config.vocab_size]), "expected_row": (whole, [1, "N"])}
    for g in range(groups):
        n, b, t, s, r = _sizes(groups, g)
        own: dict[str, tuple[str, list[int | str]]] = {
            "slot": (whole, [1, n, 2]),
            "grid": (whole, [b, t, 2]),
            "mask": (real, [b, 1, t, s]),
            "place": (whole, [1, n, 2]),
            "wanted_place": (whole, [1, r, 2]),
        }
        if config.num_hidden_layers == 1:
            del own["place"]
        if entering:
            early = "E" if groups == 1 else f"E{g}"
            own |= {f"{EARLY}{name}": (whole, [1, early, 2]) for name in ("slot", "place")}
            own[f"{EARLY}grid"] = whole, [b, t, 2]
        out |= {of_group(name, g): kind for name, kind in own.items()}
        out |= dict.fromkeys(cache_names(config, g), cache(config, groups, g))
    return out


def _sizes(groups: int, group: int) -> list[str]:
    """Names of a group's sizes: rows, lanes, columns, slots of the cache, wanted rows."""
    return list("NBTSR") if groups == 1 else [f"{size}{group}" for size in "NBTSR"]


def cache(config: DenoiserConfig, groups: int, group: int) -> tuple[str, list[int | str]]:
    """Type and shape of a group's keys or values in one layer."""
    _, lanes, _, slots, _ = _sizes(groups, group)
    return "float32", [lanes, slots, config.num_key_value_heads * config.head_dim]


def cache_names(config: DenoiserConfig, group: int = 0) -> list[str]:
    """The graph's cache inputs in order: key.0, value.0, key.1, …; the outputs add ".next"."""
    names = [f"{kind}.{i}" for i in range(config.num_hidden_layers) for kind in ("key", "value")]
    return [of_group(name, group) for name in names]
