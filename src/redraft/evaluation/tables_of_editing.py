"""Results of fills and edits in Markdown."""

from __future__ import annotations

from redraft.evaluation.tables import Results, table, where


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
    about = f"{told['gaps']} gaps of {told['words'][0]} to {told['words'][1]} words in held-out turns"
    found = told["found_of_oracle"]
    if "own" in found:
        about += f", {told['own_gaps']} in turns that the AR self wrote at temperature 1"
    shares = {"held_out": "in held-out text", "own": "in its own"}
    of = " and ".join(f"{100 * found[key]:.0f} % {place}" for key, place in shares.items() if key in found)
    matches = f" Exact matches at unknown length, of those at the oracle length: {of}." if of else ""
    return f"{table(head, rows)}\n\n{about}.{matches} {where(told)}"


def instructions(results: Results) -> str:
    """Shares, what was managed of each family, and some of what went wrong."""
    told = results["instructions"]
    shares = ("done", "begun", "local", "kept")
    rows = [
        [name, *(f"{100 * (told[key][f'{s}_share'] or 0):.1f} %" for s in shares)]
        for name, key in ((told["model"], "model_edits"), ("nothing", "nothing"))
    ]
    head = [
        "editor",
        "as wanted",
        "changed in all places",
        "changed nowhere else",
        "of what should stay, kept",
    ]
    families = ", ".join(f"{f} {m['done']} of {m['texts']}" for f, m in told["families"].items())
    failures = [
        [_cell(case[key]) for key in ("instruction", "before", "edited", "wanted")]
        for case in told["failures"]
    ]
    wrong = table(["instruction", "text", "what came back", "wanted"], failures, numbers=False)
    about = f"{told['model_edits']['texts']} texts. As wanted, by what was asked: {families}. {where(told)}"
    return f"{table(head, rows)}\n\n{about}\n\nSome of what went wrong:\n\n{wrong}"


def _cell(text: str) -> str:
    """Text in a table."""
    return " ".join(text.replace("|", "\\|").split())
