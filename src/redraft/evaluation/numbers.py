"""Measured numbers in Markdown, kept between comments so that one command renews them all:

<!-- numbers:speed -->           a table of a whole bench, a name in BLOCKS
<!-- /numbers -->
… <!-- numbers:speed.ratio.diffusion|.2f -->1.42<!-- /numbers --> …     one value of the results, with its format
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from redraft.errors import RequestError
from redraft.files import write_atomically
from redraft.hub.names import did_you_mean

_MARK = re.compile(r"<!--\s*(?:numbers:([^\s>]+?)|(/numbers))\s*-->")

Results = Mapping[str, Any]


def rewrite(text: str, results: Results) -> str:
    """The text with what stands between each pair of marks renewed; the rest is left as it is.

    Raises RequestError for an unknown name and for marks that don't come in pairs.
    """
    out, at = [], 0
    marks = list(_MARK.finditer(text))
    for opening, closing in zip(marks[::2], [*marks[1::2], None], strict=False):
        if opening[1] is None:
            raise RequestError("a <!-- /numbers --> has no beginning before it")
        if closing is None or closing[2] is None:
            raise RequestError(f"<!-- numbers:{opening[1]} --> has no <!-- /numbers --> after it")
        new = value_of(opening[1], results)
        inline = "\n" not in text[opening.end() : closing.start()] and "\n" not in new
        out += [text[at : opening.end()], new if inline else f"\n{new.strip()}\n"]
        at = closing.start()
    return "".join(out) + text[at:]


def rewrite_file(path: Path, results: Results) -> bool:
    """`rewrite` on a file; whether it changed. Raises RequestError when it can't be read."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise RequestError(f"{path} can't be read: {error}") from None
    try:
        new = rewrite(text, results)
    except RequestError as error:
        raise RequestError(f"{path}: {error}") from None
    if new != text:
        write_atomically(path, new.encode())
    return new != text


def value_of(name: str, results: Results) -> str:
    """A block, or a value by its dotted path and an optional format after "|"."""
    if name in BLOCKS:
        block, needs = BLOCKS[name]
        if needs not in results:
            raise RequestError(
                f"numbers:{name} needs {needs}, which the results don't hold: measure it first"
            )
        return block(results)
    path, _, form = name.partition("|")
    value: Any = results
    for key in path.split("."):
        if isinstance(value, Mapping) and key in value:
            value = value[key]
        elif isinstance(value, Sequence) and key.isdigit() and int(key) < len(value):
            value = value[int(key)]
        else:
            hint = did_you_mean(name, BLOCKS)
            raise RequestError(f"the results hold no numbers:{path}{hint}")
    try:
        return format(value, form)
    except (TypeError, ValueError):
        raise RequestError(f"numbers:{name} is no value that can be written as {form or 'text'}") from None


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, numbers to the right."""
    line = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, line, *rows))


def where(told: Results) -> str:
    """One line: what a table was measured on."""
    about = told["machine"]
    on = about.get("gpu") or f"{about['cpu']}, {about['cores']} cores"
    return f"{told['model']} on {told['backend']}, {on}."


def speed(results: Results) -> str:
    told = results["speed"]
    rows = [
        [
            mode,
            f"{m['tokens_per_second']:.0f}",
            f"{told['ratio'][mode]:.2f}" if mode in told["ratio"] else "1",
            f"{told['bound'][mode]:.2f}" if mode in told["bound"] else "",
            f"{m['step_ms']:.2f}",
            f"{m['tokens_per_forward']:.2f}",
            f"{m['ar_nll']:.3f}",
            f"{m['distinct_3']:.3f}",
            "/".join(f"{100 * m['split'][part]:.0f}" for part in ("network", "sampling", "python")),
        ]
        for mode, m in told["modes"].items()
    ]
    head = [
        "mode",
        "tokens/s",
        "× AR",
        "bound",
        "step, ms",
        "TPF",
        "AR NLL",
        "distinct-3",
        "network/sampling/Python, %",
    ]
    note = f"{told['prompts']} prompts, {told['tokens_per_prompt']} new tokens each. {where(told)}"
    return table(head, rows) + "\n\n" + note


def peers(results: Results) -> str:
    """Outside programs beside our AR loop; those that were not installed are left out."""
    told = results["speed"]
    ran = {name: p for name, p in told.get("peers", {}).items() if "tokens_per_second" in p}
    ours = told["modes"]["ar"]["tokens_per_second"]
    rows = [
        [
            name,
            f"{p['tokens_per_second']:.0f}",
            f"{p.get('ar_over_it', ours / p['tokens_per_second']):.2f}",
        ]
        for name, p in ran.items()
    ]
    out = table(["program", "tokens/s, AR", "our AR's, times as many"], rows)
    return f"{out}\n\n{told['tokens_per_prompt']} new tokens a prompt. {where(told)}"


def latency(results: Results) -> str:
    told = results["latency"]
    keys = ("first_draft", "first_commit", "answer")
    rows = [
        [mode, *(f"{1000 * m[k]['p50']:.0f} / {1000 * m[k]['p95']:.0f}" for k in keys)]
        for mode, m in told["modes"].items()
    ]
    out = table(["mode", "first draft", "first text", f"answer of {told['tokens_per_prompt']} tokens"], rows)
    cold = told["cold_start"]
    start = f" Cold start of `redraft run`: {cold['p50']:.2f} / {cold['p95']:.2f} s." if cold else ""
    return f"{out}\n\nMilliseconds, p50 / p95, prompt included.{start} {where(told)}"


def edit(results: Results) -> str:
    told = results["edit"]
    rows = []
    for way, m in told["ways"].items():
        ratio = told["ratio"].get(way)
        times = "" if ratio is None else "{:.1f} [{:.1f}, {:.1f}]".format(ratio["times"], *ratio["interval"])
        rows.append([way, *(f"{m[k]:.0f}" for k in ("ms", "p95_ms", "first_ms")), f"{m['nfe']:.1f}", times])
    head = ["way", "ms, p50", "p95", "first change, ms", "evaluations", "AR's time over it"]
    local = f"Text outside a selection unchanged, byte for byte: {100 * told['local']:.0f} %."
    return f"{table(head, rows)}\n\n{told['texts']} texts of {told['tokens']} tokens. {local} {where(told)}"


def backends(results: Results) -> str:
    told = results["backends"]
    rows = []
    for name, b in told["backends"].items():
        agreed = b.get("agreement")
        rows.append(
            [
                name,
                *(f"{b[f'{step}_median_ms']:.2f}" for step in ("ar", "canvas")),
                *(f"{b.get(f'{step}_times_torch', 1):.2f}" for step in ("ar", "canvas")),
                f"{100 * agreed['argmax_share']:.2f} %" if agreed else "",
            ]
        )
    slots = f"{told['slots']} slots"
    head = [
        "backend",
        "AR step, ms",
        f"{slots}, ms",
        "AR: × torch",
        f"{slots}: × torch",
        "same likeliest token",
    ]
    of_rows = max((b["agreement"]["rows"] for b in told["backends"].values() if "agreement" in b), default=0)
    about = f"{told['texts']} dialogues, {of_rows} rows; redraft itself chooses {told['chosen']}."
    return f"{table(head, rows)}\n\n{about} {where(told)}"


def batch(results: Results) -> str:
    told = results["batch"]
    sizes = list(told["modes"]["ar"]["sizes"])
    rows = [
        [
            mode,
            *(
                f"{m['sizes'][s]['tokens_per_second']:.0f} ({m['sizes'][s]['cpu_seconds_per_1000_tokens']:.1f})"
                for s in sizes
            ),
            f"{m['sizes'][sizes[-1]]['gain']:.2f}",
        ]
        for mode, m in told["modes"].items()
    ]
    better = "; ".join(
        f"{mode} writes more than diffusion "
        + ("at none of these sizes" if n is None else f"from {n} at once on")
        for mode, n in told["better_from"].items()
    )
    out = table(["answers at once", *sizes, f"{sizes[-1]} ÷ {sizes[0]}"], rows)
    return f"{out}\n\nTokens/s (CPU seconds per 1,000 tokens); {better}. {where(told)}"


def frontier(results: Results, key: str = "frontier") -> str:
    told = results[key]
    rows = [
        [
            p["name"],
            f"{p['tokens_per_second']:.0f}",
            f"{p['tokens_per_forward']:.2f}",
            f"{p['ar_nll']:.3f}",
            f"{p['entropy']:.2f}",
            f"{p['distinct_3']:.3f}",
            ""
            if p["decode"] == "ar"
            else f"{p['excess_percent']:+.1f} % [{p['excess_interval'][0]:+.1f}, "
            f"{p['excess_interval'][1]:+.1f}]" + ("" if p["inside"] else " *"),
        ]
        for p in told["points"]
    ]
    head = ["point", "tokens/s", "TPF", "AR NLL", "entropy", "distinct-3", "over AR's frontier"]
    out = table(head, rows)
    best = told["best"]["name"] if told["best"] else "none"
    star = "" if all(p["inside"] for p in told["points"]) else " \\* outside the range of AR's distinct-3."
    return (
        f"{out}\n\n{told['prompts']} prompts, {told['tokens_per_prompt']} new tokens each; fastest point at most "
        f"{told['worst_excess_percent']:g} % over AR's frontier: {best}.{star} {where(told)}"
    )


def adaptive(results: Results) -> str:
    told = results["adaptive"]
    parts = [*_difficulty(told["difficulty"]), *_lengths(told), *_correction(told["correction"])]
    return "\n\n".join([*parts, *_mending(told["mending"]), where(told)])


def _difficulty(d: Results) -> list[str]:
    from redraft.evaluation.difficulty import MEASURES

    rows = []
    for r in d["rows"]:
        cells = [f"{r[n]['nfe_per_token']:.3f} ({r[n]['ar_nll']:.2f})" for n in ("easiest", "hardest")]
        low, high = r["ratio_interval"]
        rows.append([f"{r['way']}, {r['measure']}", *cells, f"{r['ratio']:.2f} [{low:.2f}, {high:.2f}]"])
    head = ["evaluations a token (AR NLL)", "easiest tenth", "hardest tenth", "ratio"]
    about = "; ".join(f"*{name}*: {text}" for name, text in MEASURES.items())
    return [table(head, rows), f"{d['replies']} replies, {d['length']} tokens each. {about}."]


def _lengths(told: Results) -> list[str]:
    found = told["lengths"]
    columns = list(dict.fromkeys(r["length"] for r in found))
    cells = {
        (r["way"], r["length"]): f"{r['tokens_by_cost']:.2f} ({1 / r['nfe_per_token']:.2f})" for r in found
    }
    ways = list(dict.fromkeys(r["way"] for r in found))
    rows = [[way, *(cells.get((way, column), "–") for column in columns)] for way in ways]
    costs = ", ".join(f"{slots} slots {cost:.2f}" for slots, cost in told["step_costs"].items())
    note = "Tokens by cost, an AR step and its token being 1, and in brackets tokens an evaluation"
    return [
        table(["slots of a canvas", *map(str, columns)], rows),
        f"{note}. Costs: {costs or 'the built-in table'}.",
    ]


def _correction(found: Sequence[Results]) -> list[str]:
    names = list(dict.fromkeys(n for row in found for n, r in row.items() if "difference" in _mapping(r)))
    rows = []
    for row in found:
        off = f"{row['off']['ar_nll']:.3f} at {row['off']['nfe_per_token']:.2f}"
        cells = [
            f"{_against_off(row[name])} at {row[name]['nfe_per_token']:.2f}" if name in row else "–"
            for name in names
        ]
        rows.append([str(row["nfe_per_canvas"]), off, *cells])
    about = "AR NLL (difference to off) at so many evaluations a token: canvases with more nulls bring fewer tokens."
    return [table(["evaluations a canvas", "off", *names], rows), about]


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _against_off(told: Results) -> str:
    low, high = told["interval"]
    return f"{told['ar_nll']:.3f} ({told['difference']:+.3f} [{low:+.3f}, {high:+.3f}])"


def _mending(m: Results) -> list[str]:
    rows = [
        [
            r["name"],
            f"{100 * r['repaired']:.0f} %",
            f"{100 * r['otherwise']:.0f} %",
            f"{100 * r['spoiled']:.1f} %",
            _against_off(r),
            f"{r['nfe_per_canvas']:.1f}",
        ]
        for r in m["ways"]
    ]
    head = ["on damaged text", "wrong: repaired", "wrong: changed otherwise", "right: spoiled", "AR NLL"]
    about = (
        f"{m['swapped']} of {m['tokens']} settled tokens swapped; AR NLL {m['ar_nll_before']:.3f} before, "
        f"{m['ar_nll_damaged']:.3f} damaged, the difference to which stands in brackets."
    )
    return [table([*head, "evaluations"], rows), about]


def likelihood(results: Results) -> str:
    rows = [
        [
            split,
            str(told["documents"]),
            *(
                "–" if told[k] is None else f"{told[k]:.3f}"
                for k in ("ar_nats_per_token", "ar_bits_per_byte")
            ),
            f"{told['nelbo_nats_per_token']:.3f} ± {told['nelbo_nats_per_token_se']:.3f}",
            f"{told['nelbo_bits_per_byte']:.3f} ± {told['nelbo_bits_per_byte_se']:.3f}",
        ]
        for split, told in results["likelihood"].items()
    ]
    return table(
        ["split", "dialogues", "AR nats/token", "AR bits/byte", "NELBO nats/token", "NELBO bits/byte"], rows
    )


def training(results: Results) -> str:
    rows = [
        [t["stage"], str(t["steps"]), f"{t['seconds'] / 60:.0f}", f"{t['tokens'] / 1e6:.2f}", t["machine"]]
        for t in results["training"]
    ]
    return table(["stage", "steps", "minutes", "million tokens", "machine"], rows)


# name: what writes it, and what the results must hold for it. A new block is a function and one line here.
def proofread(results: Results) -> str:
    from redraft.evaluation.editors import lines

    return "\n".join(lines(results["proofread"]))


def proofread_examples(results: Results) -> str:
    from redraft.evaluation.editors import example_lines

    return "\n".join(example_lines(results["proofread"]))


def filling(results: Results) -> str:
    told = results["filling"]
    rows = [
        [
            name,
            f"{100 * m['exact']:.1f} %",
            "{:.1f} to {:.1f}".format(*(100 * end for end in m["interval"])),
            f"{m['ar_nats']:.2f}",
            *(f"{m[key]:.2f}" for key in ("ar_nll", "length_ratio")),
            f"{m['nfe']:.1f}",
            f"{1000 * m['seconds']:.1f}",
        ]
        for name, m in told["ways"].items()
    ]
    head = [
        "way",
        "exact match",
        "95 % interval",
        "AR nats of gap and suffix",
        "a token",
        "length ÷ true length",
        "evaluations",
        "ms",
    ]
    about = f"{told['gaps']} gaps of {told['words'][0]} to {told['words'][1]} words in held-out turns."
    return f"{table(head, rows)}\n\n{about} {where(told)}"


BLOCKS: dict[str, tuple[Callable[[Results], str], str]] = {
    "speed": (speed, "speed"),
    "latency": (latency, "latency"),
    "batch": (batch, "batch"),
    "frontier": (frontier, "frontier"),
    "frontier-before": (lambda results: frontier(results, "frontier_before"), "frontier_before"),
    "adaptive": (adaptive, "adaptive"),
    "edit": (edit, "edit"),
    "backends": (backends, "backends"),
    "peers": (peers, "speed"),
    "proofread": (proofread, "proofread"),
    "proofread_examples": (proofread_examples, "proofread"),
    "filling": (filling, "filling"),
    "likelihood": (likelihood, "likelihood"),
    "training": (training, "training"),
}
