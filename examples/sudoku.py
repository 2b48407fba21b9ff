"""Sudoku by diffusion and from left to right: the same network, the same puzzles, the same time.

    python examples/sudoku.py --size 4              half a minute each, to see that training works
    python examples/sudoku.py --show                6×6, then a grid resolving in the terminal
    python examples/sudoku.py --weights runs/sudoku --json

The diffusion model sees a canvas of N × N slots, the clues locked, and learns what masked slots should hold. It may
fill whichever cell it is surest of. The autoregressive (AR) one reads the whole puzzle first and then writes the
solution row by row, so that its first open cell is often one that nobody could fill yet. Both are told the clues.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from pydantic import Field, ValidationError, model_validator
from sudoku_network import GridDenoiser, Sizes, as_puzzle, denoise
from sudoku_puzzles import Board, Puzzles, Source
from sudoku_solving import evaluate, show
from torch import Tensor, nn

from redraft import corruption
from redraft.cli.terminal import say
from redraft.denoiser import checkpoint
from redraft.errors import RedraftError, RequestError
from redraft.training import optim
from redraft.training.memory import keep_freed_memory
from redraft.training.recipe import Optimizer, Section

RECIPE = Path(__file__).parents[1] / "recipes" / "sudoku.yaml"


# The recipe


class PuzzleSettings(Section):
    box: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]]
    clues: tuple[Annotated[int, Field(ge=0)], int]
    dug: int = Field(ge=1, description="puzzles made with the solver; all others are these in other guises")
    held_out: float = Field(gt=0, lt=1, description="share of all grids that is kept for the test")
    test: int = Field(ge=1, description="test puzzles")

    @model_validator(mode="after")
    def _in_order(self) -> PuzzleSettings:
        if not self.clues[0] <= self.clues[1] <= self.board.cells:
            raise ValueError(
                f"clues must be two numbers in rising order, of {self.board.cells} cells at most"
            )
        return self

    @property
    def board(self) -> Board:
        return Board(*self.box)

    def source(self, seed: int) -> Source:
        return Source.make(self.board, self.dug, self.clues, self.held_out, seed)


class Train(Section):
    minutes: float = Field(gt=0, description="for each model")
    steps: int | None = Field(None, ge=1, description="in place of minutes")
    batch: int = Field(ge=1, description="puzzles a step")


class SizeRecipe(Section):
    puzzles: PuzzleSettings
    model: Sizes
    train: Train


class Recipe(Section):
    name: str
    size: int
    seed: int = 0
    sizes: dict[int, SizeRecipe]
    optimizer: Optimizer = Optimizer()

    @model_validator(mode="after")
    def _boxes_fit(self) -> Recipe:
        for size, own in self.sizes.items():
            if own.puzzles.board.size != size:
                raise ValueError(
                    f"sizes.{size}: a box of {' by '.join(map(str, own.puzzles.box))} has other digits"
                )
        return self

    @classmethod
    def check(cls, raw: Any, path: Path) -> Recipe:
        """Raises RequestError with one line that names the first key that is wrong."""
        try:
            return cls.model_validate(raw)
        except ValidationError as error:
            first = error.errors()[0]
            parts = [".".join(str(part) for part in first["loc"]), first["msg"].lower()]
            raise RequestError(f"recipe {path}: {': '.join(filter(None, parts))}") from None


def read_yaml(path: Path) -> dict[str, Any]:
    """A recipe as it stands. Raises RequestError for a file that can't be read or is no mapping."""
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RequestError(f"recipe {path} can't be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RequestError(f"recipe {path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict) or not isinstance(raw.get("sizes"), dict):
        raise RequestError(f"recipe {path} must be a mapping with sizes, like recipes/sudoku.yaml")
    return raw


# The two objectives: cross-entropy at open cells, [number of cells]


def diffusion_loss(model: GridDenoiser, puzzles: Puzzles, rng: np.random.Generator) -> Tensor:
    """Masked diffusion: two complementary noisy copies of each grid, so that every open cell is masked once."""
    mask = model.board.size
    process = corruption.process("absorbing", mask + 1, mask)
    times = (rng.random() + np.arange(len(puzzles)) / len(puzzles)) % 1  # spread evenly over the batch
    noisy = np.concatenate(process.coupled_corrupt(puzzles.solution, times[:, None], rng))
    solution, clue = np.tile(puzzles.solution, (2, 1)), np.tile(puzzles.clue, (2, 1))
    noisy = np.where(clue, solution, noisy)
    hidden = denoise(model, noisy, clue)
    return cross_entropy(model, hidden, solution, noisy == mask)


def ar_loss(model: GridDenoiser, puzzles: Puzzles, rng: np.random.Generator) -> Tensor:
    """Next-token prediction over the puzzle followed by its solution; counted where the solution is not given."""
    rows = np.concatenate((as_puzzle(model.board, puzzles), puzzles.solution), axis=1)[:, :-1]
    length = rows.shape[1]
    cells = np.arange(length) % model.board.cells
    visible = torch.ones(length, length, dtype=torch.bool).tril()
    hidden, _ = model.read(rows, cells, visible, np.arange(length) >= model.board.cells)
    return cross_entropy(model, hidden[:, model.board.cells - 1 :], puzzles.solution, ~puzzles.clue)


def cross_entropy(model: GridDenoiser, hidden: Tensor, solution: np.ndarray, where: np.ndarray) -> Tensor:
    chosen = torch.from_numpy(where).to(hidden.device)
    target = torch.from_numpy(solution).to(hidden.device)[chosen]
    return F.cross_entropy(model.logits(hidden[chosen]).float(), target)


OBJECTIVES: dict[str, Callable[[GridDenoiser, Puzzles, np.random.Generator], Tensor]] = {
    "diffusion": diffusion_loss,
    "ar": ar_loss,
}


# Training


class Learner:
    """One model in training. `progress` runs from 0 to 1: by steps where the recipe says so, else by this model's
    own seconds, so that two in one process get equal time."""

    def __init__(self, name: str, recipe: Recipe, source: Source, device: str) -> None:
        self.name, self.source, self.optimizer = name, source, recipe.optimizer
        self.train = recipe.sizes[source.board.size].train
        sizes = recipe.sizes[source.board.size].model
        self.model = GridDenoiser(source.board, sizes, recipe.seed).to(device)
        self.optimizers = optim.build(self.model, recipe.optimizer)
        self.ema = optim.Ema(self.model, recipe.optimizer.ema)
        self.data, self.noise = (
            np.random.default_rng([recipe.seed, 1]),
            np.random.default_rng([recipe.seed, 2]),
        )
        self.steps, self.seconds, self.cpu_seconds = 0, 0.0, 0.0
        self.losses: list[float] = []

    @property
    def progress(self) -> float:
        if self.train.steps is not None:
            return self.steps / self.train.steps
        return self.seconds / 60 / self.train.minutes

    def step(self) -> None:
        started, computed = time.perf_counter(), time.process_time()
        puzzles = self.source.draw(self.train.batch, self.data)
        rates = (self.optimizer.learning_rate, self.optimizer.adam_learning_rate)
        factor = optim.rate(self.progress, self.optimizer)
        with torch.autocast("cuda", torch.bfloat16, enabled=self.model.lm_head.weight.is_cuda):
            loss = OBJECTIVES[self.name](self.model, puzzles, self.noise)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.optimizer.clip)
        for optimizer, rate in zip(self.optimizers, rates, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate * factor
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.ema.update(self.model)
        self.losses.append(float(loss.detach()))
        self.steps += 1
        self.seconds += time.perf_counter() - started
        self.cpu_seconds += time.process_time() - computed

    def finish(self) -> Trained:
        """With the averaged weights, which are the ones to use."""
        self.model.load_state_dict(self.ema.shadow)
        facts = {
            "steps": self.steps,
            "puzzles": self.steps * self.train.batch,
            "seconds": round(self.seconds, 1),
            "cpu_seconds": round(self.cpu_seconds, 1),
            "loss": float(np.mean(self.losses[-50:])),
            "threads": torch.get_num_threads(),
        }
        return Trained(self.model.eval(), facts)


def train(learners: list[Learner]) -> None:
    """Trains all, the one that is behind taking the next step."""
    said = time.perf_counter()
    while (learner := min(learners, key=lambda x: x.progress)).progress < 1:
        learner.step()
        if time.perf_counter() - said > 10:
            said = time.perf_counter()
            parts = [
                f"{x.name} {min(x.progress, 1):.0%}, step {x.steps}, loss {np.mean(x.losses[-50:]):.3f}"
                for x in learners
                if x.steps
            ]
            say(" · ".join(parts))


# The command


@dataclass
class Trained:
    """A model and how it came to be: steps, puzzles, seconds, last loss."""

    model: GridDenoiser
    facts: dict[str, Any]

    @classmethod
    def read(cls, folder: Path, board: Board, sizes: Sizes) -> Trained | None:
        """A model from an earlier run, if there is one."""
        if not (folder / "facts.json").exists():
            return None
        try:
            facts = json.loads((folder / "facts.json").read_text())
        except (OSError, ValueError) as error:
            raise RequestError(f"{folder / 'facts.json'} can't be read ({error}): remove {folder}") from None
        model = GridDenoiser(board, sizes, seed=0)
        checkpoint.load_into(model, checkpoint.read_tensors(folder), str(folder))
        return cls(model.eval(), facts)

    def write(self, folder: Path) -> None:
        checkpoint.save(self.model, folder)
        checkpoint.write_atomically(folder / "facts.json", json.dumps(self.facts).encode())


def trained(recipe: Recipe, names: list[str], weights: Path | None, device: str) -> dict[str, Trained]:
    """The named models, read from `weights` where they are there and else trained (and kept there)."""
    own = recipe.sizes[recipe.size]
    models: dict[str, Trained] = {}
    for name in names:
        if weights and (found := Trained.read(weights / name, own.puzzles.board, own.model)):
            models[name] = found
    if missing := [name for name in names if name not in models]:
        say(f"making {own.puzzles.dug} puzzles")
        source = own.puzzles.source(recipe.seed)
        learners = [Learner(name, recipe, source, device) for name in missing]
        train(learners)
        for learner in learners:
            models[learner.name] = learner.finish()
            if weights:
                models[learner.name].write(weights / learner.name)
    return models


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="sudoku.py", description=__doc__.partition("\n")[0])
    parser.add_argument("--recipe", type=Path, default=RECIPE)
    parser.add_argument("--size", type=int, help="4, 6 or 9: an entry of the recipe's sizes")
    parser.add_argument("--model", choices=[*OBJECTIVES, "both"], default="both")
    parser.add_argument("--minutes", type=float, help="of training, for each model")
    parser.add_argument("--steps", type=int, help="of training, in place of minutes")
    parser.add_argument("--threads", type=positive, help="of torch")
    parser.add_argument(
        "--weights", type=Path, metavar="FOLDER", help="keep the models there; use those kept there"
    )
    parser.add_argument("--show", action="store_true", help="show a test puzzle resolving")
    parser.add_argument("--json", action="store_true", help="print the results as one JSON object")
    options = parser.parse_args(arguments)
    if options.show and options.model == "ar":
        parser.error("--show shows how the diffusion model solves: leave out --model ar")
    return options


def chosen(options: argparse.Namespace) -> Recipe:
    """The recipe with what the command line changes. Raises RequestError."""
    raw = read_yaml(options.recipe)
    raw["size"] = options.size or raw.get("size")
    own = raw.get("sizes", {}).get(raw["size"])
    if own is None:
        raise RequestError(f"--size {raw['size']}: {options.recipe} has no such entry among its sizes")
    for name in ("minutes", "steps"):
        if getattr(options, name) is not None:
            own["train"][name] = getattr(options, name)
    return Recipe.check(raw, options.recipe)


def run(options: argparse.Namespace) -> None:
    recipe = chosen(options)
    settings = recipe.sizes[recipe.size].puzzles
    names = list(OBJECTIVES) if options.model == "both" else [options.model]
    if options.threads:
        torch.set_num_threads(options.threads)
    keep_freed_memory()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    models = trained(recipe, names, options.weights, device)
    # puzzles of their own, whose grids are held out
    test = settings.source(recipe.seed + 1).draw(
        settings.test, np.random.default_rng(recipe.seed + 1), test=True
    )
    results = {
        "size": recipe.size,
        "parameters": models[names[0]].model.parameter_count(),
        "clues": list(settings.clues),
        "models": {n: models[n].facts | {"decoding": evaluate(n, models[n].model, test)} for n in names},
    }
    print(json.dumps(results) if options.json else table(results))
    if options.show:
        show(models["diffusion"].model, test[:1])


def table(results: dict[str, Any]) -> str:
    """The results for a person."""
    size = results["size"]
    lines = [
        f"{size}×{size}, {results['parameters']:,} parameters, solved puzzles of grids held out of training:"
    ]
    for name, model in results["models"].items():
        lines.append(
            f"{name}: {model['steps']:,} steps, {model['puzzles']:,} puzzles, {model['seconds']:.0f} s"
        )
        for label, r in model["decoding"].items():
            low, high = r["interval"]
            lines.append(
                f"  {label:<14} {r['solved']:6.1%} of {r['puzzles']} ({low:.1%} to {high:.1%}), "
                f"digits {r['right_cells']:.1%}, {r['nfe']:.1f} evaluations a puzzle"
            )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0 done, 1 it failed, 2 the request is wrong, 130 interrupted."""
    try:
        run(parse(arguments))
    except RedraftError as error:
        say(f"sudoku.py: {error}")
        return error.exit_code
    except KeyboardInterrupt:
        say("interrupted")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
