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
from redraft.evaluation import tables, tables_of_editing
from redraft.evaluation.tables import Results
from redraft.files import write_atomically
from redraft.hub.names import did_you_mean

_MARK = re.compile(r"<!--\s*(?:numbers:([^\s>]+?)|(/numbers))\s*-->")


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


# name: what writes it, and what the results must hold for it. A new block is a function and one line here.
BLOCKS: dict[str, tuple[Callable[[Results], str], str]] = {
    "speed": (tables.speed, "speed"),
    "latency": (tables.latency, "latency"),
    "batch": (tables.batch, "batch"),
    "frontier": (tables.frontier, "frontier"),
    "frontier-before": (lambda results: tables.frontier(results, "frontier_before"), "frontier_before"),
    "adaptive": (tables.adaptive, "adaptive"),
    "backends": (tables.backends, "backends"),
    "peers": (tables.peers, "speed"),
    "likelihood": (tables.likelihood, "likelihood"),
    "training": (tables.training, "training"),
    "edit": (tables_of_editing.edit, "edit"),
    "proofread": (tables_of_editing.proofread, "proofread"),
    "proofread_examples": (tables_of_editing.proofread_examples, "proofread"),
    "filling": (tables_of_editing.filling, "filling"),
    "instructions": (tables_of_editing.instructions, "instructions"),
}
