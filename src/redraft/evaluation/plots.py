"""Pictures of what the benches measured: PNG, SVG or PDF by the file's ending. Needs matplotlib (redraft[train])."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from redraft.errors import RequestError
from redraft.files import write_atomically

FORMATS = (".png", ".svg", ".pdf")
COLOURS = {"ar": "tab:gray", "diffusion": "tab:blue", "verified": "tab:green"}


def check_plot(path: Path) -> None:
    """Raises RequestError, before anything is measured, when the picture can't be made."""
    from importlib.util import find_spec

    if path.suffix.lower() not in FORMATS:
        raise RequestError(f"--plot {path}: a picture must end in one of {', '.join(FORMATS)}")
    if not path.absolute().parent.is_dir():
        raise RequestError(f"--plot: there is no folder {path.absolute().parent}")
    if find_spec("matplotlib") is None:
        raise RequestError("--plot needs matplotlib: pip install 'redraft[train]'")


def figure(columns: int) -> tuple[Any, Any]:
    """A figure and its axes, drawn without a display."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    return plt.subplots(1, columns, figsize=(5.2 * columns, 3.8), dpi=120, squeeze=False)


def save(made: Any, path: Path) -> None:
    from matplotlib import pyplot as plt

    made.tight_layout()
    data = io.BytesIO()
    made.savefig(data, format=path.suffix.lower()[1:])
    plt.close(made)
    write_atomically(path, data.getvalue())


def plot_frontier(told: dict[str, Any], path: Path) -> None:
    """Left: AR NLL over distinct-3, AR's curve and the other points. Right: excess over AR's curve against speed."""
    made, axes = figure(2)
    left, right = axes[0]
    ar = sorted((p for p in told["points"] if p["decode"] == "ar"), key=lambda p: p["temperature"])
    left.plot([p["distinct_3"] for p in ar], [p["ar_nll"] for p in ar], "o-", color=COLOURS["ar"], label="AR")
    for p in ar:
        left.annotate(
            f"T={p['temperature']:g}",
            (p["distinct_3"], p["ar_nll"]),
            fontsize=7,
            xytext=(3, -8),
            textcoords="offset points",
        )
    drawn = [p for p in told["points"] if p["decode"] == "diffusion"]
    size = [40 * p["tokens_per_forward"] for p in drawn]
    left.scatter(
        [p["distinct_3"] for p in drawn],
        [p["ar_nll"] for p in drawn],
        size,
        color=COLOURS["diffusion"],
        alpha=0.6,
        label="diffusion (size: tokens per forward)",
    )
    left.set(xlabel="distinct-3", ylabel="AR NLL, nats a token")
    left.legend(fontsize=8)
    base = max((p["tokens_per_second"] for p in ar), default=0.0) or 1.0
    for decode in ("diffusion", "verified"):
        some = [p for p in told["points"] if p["decode"] == decode]
        right.scatter(
            [p["tokens_per_second"] / base for p in some],
            [p["excess_percent"] for p in some],
            color=COLOURS[decode],
            label=decode,
        )
    right.axhline(told["worst_excess_percent"], color="tab:red", linewidth=1, linestyle="--")
    right.axvline(1.0, color=COLOURS["ar"], linewidth=1)
    right.set(xlabel="tokens/s over AR's", ylabel="AR NLL over AR's frontier, %")
    right.legend(fontsize=8)
    save(made, path)


def plot_speed(told: dict[str, Any], path: Path) -> None:
    """Left: tokens a second of each mode. Right: where a step's time goes."""
    made, axes = figure(2)
    left, right = axes[0]
    modes = list(told["modes"])
    left.bar(modes, [told["modes"][m]["tokens_per_second"] for m in modes], color=[COLOURS[m] for m in modes])
    left.set(ylabel="tokens/s")
    below = [0.0] * len(modes)
    for part in ("network", "sampling", "python"):
        height = [told["modes"][m]["step_ms"] * told["modes"][m]["split"][part] for m in modes]
        right.bar(modes, height, bottom=below, label=part)
        below = [a + b for a, b in zip(below, height, strict=True)]
    right.set(ylabel="ms an evaluation")
    right.legend(fontsize=8)
    save(made, path)


def plot_latency(told: dict[str, Any], path: Path) -> None:
    """p50 and p95 until the first draft, the first text and the whole answer."""
    made, axes = figure(3)
    for axis, (key, title) in zip(
        axes[0],
        (("first_draft", "first draft"), ("first_commit", "first text"), ("answer", "answer")),
        strict=True,
    ):
        for number, (mode, m) in enumerate(told["modes"].items()):
            axis.bar(
                [number - 0.2, number + 0.2],
                [1000 * m[key]["p50"], 1000 * m[key]["p95"]],
                0.35,
                color=COLOURS[mode],
            )
        axis.set_xticks(range(len(told["modes"])), list(told["modes"]))
        axis.set(title=f"{title}: p50, p95", ylabel="ms")
    save(made, path)


def plot_edit(told: dict[str, Any], path: Path) -> None:
    """Median and p95 of an edit's time, beside AR writing the text anew."""
    made, axes = figure(1)
    axis = axes[0, 0]
    for number, (way, m) in enumerate(told["ways"].items()):
        colour = COLOURS["ar" if way == "ar" else "diffusion"]
        axis.bar([number - 0.2, number + 0.2], [m["ms"], m["p95_ms"]], 0.35, color=colour)
    axis.set_xticks(range(len(told["ways"])), list(told["ways"]))
    axis.set(title=f"editing a text of {told['tokens']} tokens: p50, p95", ylabel="ms")
    save(made, path)


def plot_backends(told: dict[str, Any], path: Path) -> None:
    """How many times faster than torch eager each graph takes a step."""
    made, axes = figure(1)
    axis = axes[0, 0]
    engines = {name: b for name, b in told["backends"].items() if "canvas_times_torch" in b}
    for shift, step, colour in ((-0.2, "ar", COLOURS["ar"]), (0.2, "canvas", COLOURS["diffusion"])):
        heights = [b[f"{step}_times_torch"] for b in engines.values()]
        label = "AR step" if step == "ar" else f"canvas of {told['slots']} slots"
        axis.bar([i + shift for i in range(len(engines))], heights, 0.35, color=colour, label=label)
    axis.axhline(1, color="black", linewidth=0.8)
    axis.set_xticks(range(len(engines)), list(engines))
    axis.set(title="steps of a graph against torch eager", ylabel="times as fast")
    axis.legend(fontsize=8)
    save(made, path)


def plot_gpu(told: dict[str, Any], path: Path) -> None:
    """Milliseconds of single steps, and throughput by answers at once."""
    made, axes = figure(2)
    left, right = axes[0]
    names = list(told["steps"])
    for shift, key, label in (
        (-0.25, "replay_ms", "graph alone"),
        (0, "engine_ms", "engine"),
        (0.25, "unrecorded_ms", "unrecorded"),
    ):
        heights = [told["steps"][name][key] or 0.0 for name in names]
        left.bar([i + shift for i in range(len(names))], heights, 0.22, label=label)
    left.axhline(told["memory"]["floor_ms"], color="black", linewidth=0.8)
    left.set_xticks(range(len(names)), names, fontsize=6)
    left.set(title="one step (line: weights read once)", ylabel="ms")
    left.legend(fontsize=8)
    _throughput(right, told["batch"], "tokens_per_second", "tokens/s")
    save(made, path)


def plot_batch(told: dict[str, Any], path: Path) -> None:
    """Throughput and processor seconds per 1,000 tokens by answers at once."""
    made, axes = figure(2)
    for axis, key, label in zip(
        axes[0],
        ("tokens_per_second", "cpu_seconds_per_1000_tokens"),
        ("tokens/s", "CPU seconds per 1,000 tokens"),
        strict=True,
    ):
        _throughput(axis, told, key, label)
    save(made, path)


def _throughput(axis: Any, told: dict[str, Any], key: str, label: str) -> None:
    """A curve for each mode of bench batch."""
    for mode, m in told["modes"].items():
        sizes = [int(s) for s in m["sizes"]]
        name, _, variant = mode.partition(",")
        style = {"color": COLOURS[name], "linestyle": "--" if variant else "-"}
        axis.plot(sizes, [m["sizes"][str(s)][key] for s in sizes], marker="o", label=mode, **style)
    axis.set(xlabel="answers at once", ylabel=label, xscale="log", ylim=(0, None))
    axis.set_xticks(sizes, [str(s) for s in sizes])
    axis.minorticks_off()
    axis.legend(fontsize=8)


def plot_adaptive(told: dict[str, Any], path: Path) -> None:
    """Evaluations a token by difficulty; error correction by budget; what is mended of damaged text."""
    made, axes = figure(3)
    first, second, third = axes[0]
    for row in told["difficulty"]["rows"]:
        if row["measure"] == "given reply":
            tenths = row["tenths"]
            first.plot(range(1, len(tenths) + 1), tenths, "o-", label=row["way"])
    first.set(xlabel="tenth of replies by AR NLL", ylabel="evaluations a token", title="writing the reply")
    first.legend(fontsize=8)
    budgets = [row["nfe_per_canvas"] for row in told["correction"]]
    for name in ("off", "doubt", "editing", "remasking", "checked"):
        found = [
            (b, row[name]["ar_nll"])
            for b, row in zip(budgets, told["correction"], strict=True)
            if name in row
        ]
        if found:
            second.plot(*zip(*found, strict=True), "o-", label=name)
    second.set(xlabel="evaluations a canvas", ylabel="AR NLL, nats a token", title="error correction")
    second.legend(fontsize=8)
    ways = told["mending"]["ways"]
    for key in ("repaired", "otherwise", "spoiled"):
        third.plot([r["name"] for r in ways], [100 * r[key] for r in ways], "o", label=key)
    third.tick_params(axis="x", labelrotation=40, labelsize=8)
    third.set(ylabel="%", title="5 % of settled tokens swapped")
    third.legend(fontsize=8)
    save(made, path)


def plot_shares(
    shares: dict[str, dict[str, tuple[float, float, float]]], names: list[str], path: Path
) -> None:
    """For each title a row of points with their intervals, one a name: share, low and high, as parts of 1."""
    made, axes = figure(1)
    axis = axes[0][0]
    made.set_size_inches(7.5, 1.2 + 0.22 * len(names) * len(shares) + 0.3 * len(shares))
    for j, name in enumerate(names):
        at, value, below, above = [], [], [], []
        for i, title in enumerate(shares):
            if name in shares[title]:
                share, low, high = (100 * x for x in shares[title][name])
                at.append(i + (j - (len(names) - 1) / 2) * 0.8 / len(names))
                value.append(share)
                below.append(max(0.0, share - low))
                above.append(max(0.0, high - share))
        axis.errorbar(value, at, xerr=[below, above], fmt="o", capsize=3, markersize=4, label=name)
    axis.set_yticks(range(len(shares)), list(shares))
    axis.invert_yaxis()
    axis.set(xlabel="pass@1, %, with 95 % Wilson interval", xlim=(0, 100))
    axis.grid(axis="x", alpha=0.3)
    axis.legend(fontsize=8)
    save(made, path)


def plot_quality_over_speed(points: list[tuple[str, str, float, float]], path: Path) -> None:
    """points: benchmark (its marker), way of writing (its colour), tokens/s, pass@1 in %."""
    made, axes = figure(1)
    axis = axes[0][0]
    titles = list(dict.fromkeys(p[0] for p in points))
    names = list(dict.fromkeys(p[1] for p in points))
    for title, name, rate, share in points:
        marker, colour = "osD^vPX"[titles.index(title) % 7], f"C{names.index(name) % 10}"
        axis.plot(rate, share, marker=marker, color=colour, linestyle="", label=f"{title}, {name}")
    axis.set(xlabel="tokens/s", ylabel="pass@1, %")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=7)
    save(made, path)
