"""Ships an adapter that `redraft adapt` trained, measures it, writes its card and gives it its name.

    python recipes/release_adapter.py runs/redraft-135m --name redraft-135m
    python recipes/release_adapter.py runs/redraft-135m --name redraft-135m --from measure

Stages: ship (the last checkpoint's average in bfloat16 into adapters/NAME), tune (into its generation_config.json what
evaluations cost here, and the length of drafts that is fastest on a few prompts), measure (`redraft eval acceptance`
into docs/NAME.json: minutes, on idle cores), card (adapters/NAME/README.md, all its numbers from that file and from the
run's own records), pin (the manifest's sha256 into src/redraft/hub/adapters.json, by which `redraft models pull NAME`
knows it). What the card tells of the run is kept in docs/records, where --before finds it for a later stage. Other
settings of generation_config.json: recipes/NAME-generation.json where there is one.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import redraft
from redraft.evaluation import adapted_card, report
from redraft.evaluation.acceptance import Acceptance, draft_speeds
from redraft.evaluation.domains import load_domains
from redraft.evaluation.effort import row_cost, step_costs
from redraft.evaluation.speed import costs
from redraft.evaluation.writing import unpadded
from redraft.files import write_atomically
from redraft.training.ship import pin, ship_adapter

ROOT = Path(__file__).resolve().parents[1]
STAGES = ("ship", "tune", "measure", "card", "pin")
LENGTHS = (3, 4, 5, 6, 8, 12, 16)  # of canvases that draft
TUNING = Acceptance(tokens=96, seed=1)
REPEATS = 150  # of each evaluation that is priced: a busy neighbour moves the median of a few by a tenth


def tune(folder: Path, prompts: int = 8) -> None:
    """Rewrites step_costs, row_cost and draft_length; the last at the others."""
    model = redraft.load(folder)
    asked = [
        p for domain in load_domains(model, prompts, TUNING.tokens, seed=TUNING.seed) for p in domain.prompts
    ]
    found = costs(model, unpadded(model.backend), asked[0], repeats=REPEATS)
    prices = {"step_costs": step_costs(found), "row_cost": row_cost(found)}
    report.tune(folder, lambda raw: raw | prices)
    model = redraft.load(folder)
    lengths = [length for length in LENGTHS if length <= model.config.canvas_length]
    speeds = draft_speeds(model, asked, lengths, TUNING)
    print("verified, tokens/s by length of drafts:", {n: round(s, 1) for n, s in speeds.items()}, flush=True)
    best = max(speeds, key=lambda length: speeds[length])
    report.tune(folder, lambda raw: raw | {"draft_length": best})


def measure(folder: Path, results: Path, data: Path | None, prompts: int, tokens: int) -> None:
    """Of the folder as it lies there, which carries the model's name."""
    command = [sys.executable, "-m", "redraft.cli", "eval", "acceptance", "--json"]
    command += [
        "--model",
        str(folder.relative_to(ROOT)),
        "--limit",
        str(prompts),
        "--max-tokens",
        str(tokens),
    ]
    command += [] if data is None else ["--data", str(data)]
    print("$", " ".join(command), flush=True)
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE)
    told = json.loads(done.stdout)
    write_atomically(results, (json.dumps(told, indent=1, ensure_ascii=False) + "\n").encode())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="the folder of the adaptation")
    parser.add_argument("--name", required=True)
    parser.add_argument(
        "--before",
        type=Path,
        nargs="+",
        default=[],
        help="runs that this one went on from, or docs/records/NAME.json",
    )
    parser.add_argument("--from", dest="first", choices=STAGES, default="ship")
    parser.add_argument(
        "--data", type=Path, help="a folder with HumanEval, MBPP and GSM8K; else the package's sample"
    )
    parser.add_argument("--prompts", type=int, default=12, help="a domain")
    parser.add_argument("--tokens", type=int, default=96, help="of an answer, at most")
    parser.add_argument(
        "--machine", help="where it was trained, in words; else the machine of the measurement"
    )
    options = parser.parse_args()
    wanted = STAGES[STAGES.index(options.first) :]
    folder, results = ROOT / "adapters" / options.name, ROOT / "docs" / f"{options.name}.json"
    if "ship" in wanted:
        settings = ROOT / "recipes" / f"{options.name}-generation.json"
        ship_adapter(options.run, folder, json.loads(settings.read_text()) if settings.exists() else {})
    if "tune" in wanted:
        tune(folder)
    if "measure" in wanted:
        measure(folder, results, options.data, options.prompts, options.tokens)
    if "card" in wanted:
        on = json.loads(results.read_text())["acceptance"]["machine"]
        machine = options.machine or f"{on['cpu']}, {on['cores']} cores"
        kept = adapted_card.keep_run(options.run, machine, ROOT / "docs" / "records")
        adapted_card.write(results, folder, [*options.before, kept], machine)
    pin(folder)


if __name__ == "__main__":
    main()
