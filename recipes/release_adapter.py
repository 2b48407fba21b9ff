"""Ships an adapter that `redraft adapt` trained, measures it, writes its card and gives it its name.

    python recipes/release_adapter.py runs/redraft-135m --name redraft-135m
    python recipes/release_adapter.py runs/redraft-135m --name redraft-135m --from measure

Stages: ship (the last checkpoint's average in bfloat16 into adapters/NAME), measure (`redraft eval acceptance` into
docs/NAME.json: minutes, on idle cores), card (adapters/NAME/README.md, all its numbers from that file and from the
run's own records), pin (the manifest's sha256 into src/redraft/hub/adapters.json, by which `redraft models pull NAME`
knows it). Settings of generation_config.json: recipes/NAME-generation.json where there is one.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from redraft.evaluation import adapted_card
from redraft.files import write_atomically
from redraft.training.ship import pin, ship_adapter

ROOT = Path(__file__).resolve().parents[1]
STAGES = ("ship", "measure", "card", "pin")


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
    if "measure" in wanted:
        measure(folder, results, options.data, options.prompts, options.tokens)
    if "card" in wanted:
        adapted_card.write(results, folder, options.run, options.machine)
    pin(folder)


if __name__ == "__main__":
    main()
