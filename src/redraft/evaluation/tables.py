"""Results in Markdown, a function a bench."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Results = Mapping[str, Any]


def table(head: Sequence[str], rows: Sequence[Sequence[str]], numbers: bool = True) -> str:
    """A Markdown table; numbers: all but the first column to the right."""
    line = ["---", *["---:" if numbers else "---"] * (len(head) - 1)]
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
