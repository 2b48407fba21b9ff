"""examples/sudoku.py: puzzles, the split, what each model may see, and that a minute of training solves 4×4."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "examples"))

import sudoku  # noqa: E402
from sudoku_network import GridDenoiser, Sizes, as_puzzle, denoise  # noqa: E402
from sudoku_puzzles import Board, Puzzles, Source, held_out  # noqa: E402
from sudoku_solving import score, show, solve_by_ar, solve_by_diffusion, solve_in_order, wilson  # noqa: E402

from redraft.errors import RequestError  # noqa: E402

FOUR, SIX = Board(2, 2), Board(2, 3)
TINY = Sizes(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, head_dim=16)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def four() -> Source:
    return Source.make(FOUR, 40, (4, 10), 0.25, seed=0)


@pytest.fixture(scope="module")
def six() -> Source:
    return Source.make(SIX, 6, (8, 18), 0.1, seed=0)


@pytest.fixture(scope="module")
def all_grids() -> np.ndarray:
    return np.array(list(FOUR.solutions([-1] * 16)))


def grids(puzzles: Puzzles) -> list[list[int]]:
    return np.where(puzzles.clue, puzzles.solution, -1).tolist()


def valid(board: Board, solution: np.ndarray) -> bool:
    """Every row, column and box holds every digit."""
    digits = list(range(board.size))
    return all(
        sorted(solution[group == unit].tolist()) == digits
        for group in board.groups
        for unit in range(board.size)
    )


# Puzzles


def test_the_solver_finds_all_288_grids_of_four(all_grids: np.ndarray) -> None:
    assert len(np.unique(all_grids, axis=0)) == len(all_grids) == 288
    assert all(valid(FOUR, g) for g in all_grids)


def test_boxes_are_two_rows_high_and_three_columns_wide() -> None:
    assert (
        SIX.groups[2].reshape(6, 6).tolist()
        == [[0] * 3 + [1] * 3] * 2 + [[2] * 3 + [3] * 3] * 2 + [[4] * 3 + [5] * 3] * 2
    )


def test_a_grid_that_contradicts_itself_has_no_solution() -> None:
    assert list(FOUR.solutions([0, 0] + [-1] * 14)) == []
    assert not FOUR.unique([0, 0] + [-1] * 14)
    assert not FOUR.unique([-1] * 16)


def test_a_dug_puzzle_has_one_solution_and_no_clue_to_spare() -> None:
    solution, puzzle = SIX.dig(np.random.default_rng(3), fewest=0)
    assert list(SIX.solutions(puzzle)) == [solution]
    for cell in [c for c in range(36) if puzzle[c] >= 0]:
        assert not SIX.unique([-1 if c == cell else d for c, d in enumerate(puzzle)])
    assert sum(d >= 0 for d in SIX.dig(np.random.default_rng(3), fewest=20)[1]) == 20


@pytest.mark.parametrize("name", ["four", "six"])
def test_drawn_puzzles_are_valid_and_have_one_solution(name: str, request: pytest.FixtureRequest) -> None:
    source: Source = request.getfixturevalue(name)
    drawn = source.draw(40, np.random.default_rng(1))
    assert len(drawn) == 40
    for solution, grid in zip(drawn.solution, grids(drawn), strict=True):
        assert valid(source.board, solution)
        assert list(source.board.solutions(grid)) == [solution.tolist()]


def test_clues_are_as_many_as_drawn_or_as_few_as_can_be(six: Source) -> None:
    clues = six.draw(600, np.random.default_rng(2)).clue.sum(1)
    assert clues.min() >= 8
    assert clues.max() == 18
    assert len(np.unique(clues)) >= 8


def test_one_puzzle_varied_reaches_all_grids_of_its_kind(all_grids: np.ndarray) -> None:
    """Up to symmetry 4×4 has two grids, of 96 and 192; a variation stays within its kind and reaches all of it."""
    source = Source.make(FOUR, 1, (4, 4), 0.0, seed=0)
    reached = {tuple(g) for g in source.draw(4000, np.random.default_rng(0)).solution.tolist()}
    assert len(reached) in (96, 192)
    assert reached <= {tuple(g) for g in all_grids.tolist()}


def test_renaming_digits_does_not_move_a_grid_across_the_split(all_grids: np.ndarray) -> None:
    rng = np.random.default_rng(0)
    kept = held_out(FOUR, all_grids, 0.25)
    assert kept.sum() == 72  # 3 of the 12 grids that differ by more than names
    for _ in range(5):
        np.testing.assert_array_equal(held_out(FOUR, rng.permutation(4)[all_grids], 0.25), kept)


def test_no_test_grid_is_ever_trained_on(four: Source, all_grids: np.ndarray) -> None:
    train, test = (
        {tuple(g) for g in four.draw(6000, np.random.default_rng(5), test=t).solution.tolist()}
        for t in (False, True)
    )
    assert not train & test
    assert len(train) + len(test) == len(all_grids)


def test_six_holds_out_the_share_it_was_told(six: Source) -> None:
    varied = six._vary(six.base[np.random.default_rng(0).integers(6, size=20000)], np.random.default_rng(1))
    assert 0.09 < held_out(SIX, varied.solution, 0.1).mean() < 0.11


def test_a_split_without_test_grids_is_refused() -> None:
    with pytest.raises(RequestError, match="leaves no grid"):
        Source.make(FOUR, 2, (4, 8), 0.001, seed=0).draw(3, np.random.default_rng(0), test=True)


# What each model sees


def network(board: Board, seed: int = 0) -> GridDenoiser:
    """Weights large enough that everything matters."""
    model = GridDenoiser(board, TINY, seed)
    with torch.no_grad():
        for i, p in enumerate(model.parameters()):
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(i)) * 0.2)
    return model.eval()


def scrambled(puzzles: Puzzles) -> Puzzles:
    """The same clues, another digit in every open cell."""
    size = puzzles.solution.max() + 1
    return Puzzles(np.where(puzzles.clue, puzzles.solution, (puzzles.solution + 1) % size), puzzles.clue)


@pytest.mark.parametrize(
    "solve",
    [lambda m, p: solve_by_diffusion(m, p, 0.5), solve_in_order, solve_by_ar],
    ids=["diffusion", "in order", "ar"],
)
def test_the_answer_does_not_leak_into_solving(solve: Callable[..., Any], six: Source) -> None:
    model, puzzles = network(SIX), six.draw(5, np.random.default_rng(0))
    grids, evaluations = solve(model, puzzles)
    again, _ = solve(model, scrambled(puzzles))
    np.testing.assert_array_equal(grids, again)
    np.testing.assert_array_equal(grids[puzzles.clue], puzzles.solution[puzzles.clue])
    assert ((grids >= 0) & (grids < 6)).all()
    assert (evaluations <= (~puzzles.clue).sum(1)).all()


def test_ar_solving_with_a_cache_equals_the_training_pass(six: Source) -> None:
    model, puzzles = network(SIX), six.draw(4, np.random.default_rng(0))
    written, evaluations = solve_by_ar(model, puzzles)
    rows = np.concatenate((as_puzzle(SIX, puzzles), written), 1)[:, :-1]
    visible = torch.ones(71, 71, dtype=torch.bool).tril()
    hidden, _ = model.read(rows, np.arange(71) % 36, visible, np.arange(71) >= 36)
    best = model.logits(hidden[:, 35:])[..., :6].argmax(-1).numpy()
    np.testing.assert_array_equal(best[~puzzles.clue], written[~puzzles.clue])
    np.testing.assert_array_equal(evaluations, (~puzzles.clue).sum(1))


def test_ar_training_predicts_the_last_open_cell_from_what_comes_before_it(six: Source) -> None:
    """As that cell's digit changes, exp(-loss) must be the model's softmax there: nothing else may read the digit."""
    model, puzzles = network(SIX), six.draw(1, np.random.default_rng(0))
    last = int(np.flatnonzero(~puzzles.clue[0])[-1])
    losses = []
    for digit in range(6):
        changed = puzzles.solution.copy()
        changed[0, last] = digit
        loss = sudoku.ar_loss(model, Puzzles(changed, puzzles.clue), np.random.default_rng(0))
        losses.append(float(loss.detach()) * (~puzzles.clue).sum())
    likelihood = np.exp(min(losses) - np.array(losses))
    rows = np.concatenate((as_puzzle(SIX, puzzles), puzzles.solution), 1)[:, :-1]
    visible = torch.ones(71, 71, dtype=torch.bool).tril()
    hidden, _ = model.read(rows, np.arange(71) % 36, visible, np.arange(71) >= 36)
    own = model.logits(hidden[:, 35 + last])[0, :6].detach().softmax(-1).numpy()
    np.testing.assert_allclose(likelihood / likelihood.sum(), own, rtol=2e-3)


def test_the_diffusion_loss_masks_every_open_cell_once_and_no_clue(
    four: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def watched(model: GridDenoiser, digits: np.ndarray, clue: np.ndarray) -> torch.Tensor:
        seen.append((digits, clue))
        return denoise(model, digits, clue)

    monkeypatch.setattr(sudoku, "denoise", watched)
    puzzles = four.draw(8, np.random.default_rng(0))
    sudoku.diffusion_loss(network(FOUR), puzzles, np.random.default_rng(1))
    (digits, clue) = seen[0]
    masked = digits == FOUR.size
    np.testing.assert_array_equal(masked[:8] ^ masked[8:], ~puzzles.clue)
    np.testing.assert_array_equal(clue, np.tile(puzzles.clue, (2, 1)))
    np.testing.assert_array_equal(digits[~masked], np.tile(puzzles.solution, (2, 1))[~masked])


def test_both_models_have_the_same_parameters() -> None:
    raw = sudoku.read_yaml(sudoku.RECIPE)
    recipe = sudoku.Recipe.check(raw, sudoku.RECIPE)
    for size, own in recipe.sizes.items():
        model = GridDenoiser(own.puzzles.board, own.model, recipe.seed)
        assert model.parameter_count() <= 1_000_000, size


@pytest.mark.parametrize("size", [4, 6, 9])
def test_every_size_of_the_recipe_takes_a_step(size: int) -> None:
    raw = sudoku.read_yaml(sudoku.RECIPE)
    raw["size"] = size
    raw["sizes"][size]["puzzles"]["dug"] = 2
    raw["sizes"][size]["train"] |= {"batch": 2, "steps": 1}
    recipe = sudoku.Recipe.check(raw, sudoku.RECIPE)
    source = recipe.sizes[size].puzzles.source(0)
    learners = [sudoku.Learner(name, recipe, source, "cpu") for name in sudoku.OBJECTIVES]
    before = [x.model.lm_head.weight.detach().clone() for x in learners]
    assert torch.equal(*before)
    sudoku.train(learners)
    assert [x.steps for x in learners] == [1, 1]
    assert all(np.isfinite(x.losses[0]) for x in learners)


# Counting


def test_wilson_interval() -> None:
    np.testing.assert_allclose(wilson(8, 10), (0.4902, 0.9433), atol=1e-4)  # a textbook's example
    assert wilson(0, 50)[0] == 0.0
    assert wilson(50, 50)[1] == 1.0


def test_score_counts_whole_grids_and_open_cells(four: Source) -> None:
    puzzles = four.draw(4, np.random.default_rng(0))
    grids = puzzles.solution.copy()
    cell = int(np.flatnonzero(~puzzles.clue[0])[0])
    grids[0, cell] = (grids[0, cell] + 1) % 4
    scored = score(puzzles, grids, np.array([1, 2, 3, 4]))
    assert scored["solved"] == 0.75
    assert scored["nfe"] == 2.5
    np.testing.assert_allclose(scored["right_cells"], 1 - 1 / (~puzzles.clue).sum())
    assert sum(right for right, _ in scored["by_clues"].values()) == 3
    assert sum(of for _, of in scored["by_clues"].values()) == 4


# The command


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """4×4, small, by steps."""
    raw = sudoku.read_yaml(sudoku.RECIPE)
    own = raw["sizes"][4]
    own["model"] = TINY.model_dump()
    own["train"] |= {"steps": 100, "batch": 32}
    own["puzzles"] |= {"dug": 40, "test": 60}
    path = tmp_path_factory.mktemp("recipe") / "four.yaml"
    path.write_text(yaml.safe_dump(raw | {"size": 4, "sizes": {4: own}}))
    return path


def test_training_lowers_the_loss_and_solves_puzzles(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--recipe", str(recipe), "--threads", "1", "--weights", str(tmp_path), "--json"]
    assert sudoku.main(command) == 0
    results = json.loads(capsys.readouterr().out)
    ar, diffusion = results["models"]["ar"], results["models"]["diffusion"]
    assert ar["puzzles"] == diffusion["puzzles"] == 3200
    assert results["parameters"] == GridDenoiser(FOUR, TINY, 0).parameter_count()
    # knowing nothing costs log 4 = 1.39; the constraints that clues set alone are worth far more
    assert diffusion["loss"] < 1.0
    assert ar["loss"] < 1.37
    one, fast = diffusion["decoding"]["surest first"], diffusion["decoding"]["threshold 0.9"]
    assert one["solved"] > 0.3
    assert fast["nfe"] < one["nfe"]
    # a second command reads the weights, trains nothing and measures the same
    assert sudoku.main(command) == 0
    assert json.loads(capsys.readouterr().out) == results
    assert sudoku.main([*command[:-1], "--show"]) == 0
    shown = capsys.readouterr().out
    assert "of 60" in shown
    assert "0 cells open" in shown
    assert "\x1b" not in shown


def test_the_same_seed_trains_the_same_model(recipe: Path) -> None:
    raw = sudoku.read_yaml(recipe)
    raw["sizes"][4]["train"]["steps"] = 3
    again = []
    for _ in range(2):
        checked = sudoku.Recipe.check(raw, recipe)
        learners = [
            sudoku.Learner(n, checked, checked.sizes[4].puzzles.source(0), "cpu") for n in sudoku.OBJECTIVES
        ]
        sudoku.train(learners)
        again.append([x.losses for x in learners])
    assert again[0] == again[1]


def test_a_grid_is_shown_frame_by_frame_without_a_terminal(
    four: Source, capsys: pytest.CaptureFixture[str]
) -> None:
    puzzle = four.draw(1, np.random.default_rng(0))
    show(network(FOUR), puzzle)
    frames = capsys.readouterr().out.split("step ")
    assert frames[0].count("░") == (~puzzle.clue).sum()
    assert frames[-1].startswith(tuple("123456789"))
    assert "░" not in frames[-2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--size", "5"], "has no such entry"),
        (["--minutes", "-1"], "greater than 0"),
        (["--recipe", "nowhere.yaml"], "can't be read"),
    ],
)
def test_a_wrong_request_is_one_line(
    change: list[str], message: str, recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sudoku.main(["--recipe", str(recipe), *change]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"clue": [4, 10]}, "puzzles.clue"),
        ({"clues": [10, 4]}, "rising order"),
        ({"box": [2, 3]}, "other digits"),
        ({"box": [0, 4]}, "greater than or equal to 1"),
    ],
)
def test_a_wrong_recipe_is_named(change: dict[str, Any], message: str, recipe: Path) -> None:
    raw = sudoku.read_yaml(recipe)
    raw["sizes"][4]["puzzles"] |= change
    with pytest.raises(RequestError, match=message):
        sudoku.Recipe.check(raw, recipe)


@pytest.mark.parametrize("arguments", [["--threads", "0"], ["--show", "--model", "ar"], ["--nonsense"]])
def test_wrong_arguments_exit_with_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as error:
        sudoku.main(arguments)
    assert error.value.code == 2
