"""How training tells of itself on a terminal and in a log."""

from __future__ import annotations

import io

import pytest

from redraft.cli.progress import Progress, duration


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_log_gets_a_line_first_last_and_every_ten_seconds_between() -> None:
    out, clock = io.StringIO(), Clock()
    with Progress(100, stream=out, clock=clock) as progress:
        for step in range(1, 101):
            clock.now += 0.25
            progress.update(step, {"loss": 4 - step / 50})
    lines = out.getvalue().splitlines()
    assert [line.split(" · ")[0] for line in lines] == [
        "step 1/100",
        "step 41/100",
        "step 81/100",
        "step 100/100",
    ]
    assert lines[1] == "step 41/100 · loss 3.180 · 0:15 left"
    assert lines[-1] == "step 100/100 · loss 2.000"
    assert "\x1b" not in out.getvalue()


def test_metrics_stay_in_sight_in_their_order() -> None:
    progress = Progress(10, plain=True, stream=io.StringIO())
    progress.update(1, {"ar_loss": 2.5, "nelbo": 3.25, "novel": 0.12345, "grad_norm": 1.0})
    progress.update(2, {"loss": 5.0, "tokens_per_second": 12345.6, "accuracy": 0.5})
    line = progress.line().split(" · ")
    assert line[:7] == [
        "step 2/10",
        "loss 5.000",
        "NELBO 3.250",
        "AR 2.500",
        "right 50%",
        "tokens/s 12,346",
        "novel 0.1235",
    ]


def test_a_run_by_the_clock_tells_its_own_time_left() -> None:
    progress = Progress(10**6, plain=True, stream=io.StringIO())
    progress.update(5, {"loss": 1.0, "progress": 0.5, "eta_seconds": 3725.0})
    assert progress.line() == "step 5/1000000 · loss 1.000 · 1:02:05 left"
    progress.update(9, {"progress": 1.0, "eta_seconds": 0.0})
    assert progress.line() == "step 9/1000000 · loss 1.000"


def test_a_stopped_run_leaves_its_last_state() -> None:
    out, clock = io.StringIO(), Clock()

    def work() -> None:
        with Progress(100, stream=out, clock=clock) as progress:
            for step in (1, 2):
                clock.now += 1
                progress.update(step, {"loss": 4.0 - step})
            progress.message("stopped at step 2")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    assert out.getvalue().splitlines()[1:] == ["stopped at step 2", "step 2/100 · loss 2.000 · 1:38 left"]


def test_a_terminal_gets_a_bar_and_messages_above_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "60")
    out, clock = Terminal(), Clock()
    with Progress(4, stream=out, clock=clock) as progress:
        for step in range(1, 5):
            clock.now += 1
            progress.update(step, {"loss": 1.0})
        progress.message("a \x1b[31msample[/]")
    sent = out.getvalue()
    assert "━" in sent
    assert "step 4/4 · loss 1.000" in sent
    assert "a ␛[31msample[/]" in sent
    assert sent.index("\x1b[?25l") < sent.index("\x1b[?25h")  # the cursor is hidden, then back


def test_a_terminal_is_redrawn_four_times_a_second_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    out, clock = Terminal(), Clock()
    drawn = 0
    with Progress(1000, stream=out, clock=clock) as progress:
        for step in range(1, 101):
            clock.now += 0.01
            before = len(out.getvalue())
            progress.update(step, {})
            drawn += len(out.getvalue()) > before
    assert drawn == 4


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (61, "1:01"), (3723, "1:02:03"), (-1, "0:00")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
