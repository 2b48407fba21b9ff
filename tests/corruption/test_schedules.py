from __future__ import annotations

import numpy as np
import pytest

from redraft.corruption import CORRUPTIONS, SCHEDULES, process
from redraft.errors import RequestError


@pytest.mark.parametrize("name", SCHEDULES)
def test_survival_falls_from_one_to_nothing(name: str) -> None:
    schedule = SCHEDULES[name]
    t = np.linspace(0.0, 1.0, 101)
    a = schedule.survival(t)
    assert a[0] == pytest.approx(1.0, abs=1e-15)
    assert a[-1] == pytest.approx(1e-3 if name == "loglinear" else 0.0, abs=1e-15)
    assert (np.diff(a) < 0).all()
    assert isinstance(float(schedule.survival(0.3)), float)
    assert float(schedule.survival(0.3)) == pytest.approx(a[30], abs=1e-15)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_shares_add_up_and_slopes_are_their_derivatives(corruption: str, schedule: str) -> None:
    kernel = process(corruption, 5, 4, schedule, uniform_share=0.3).kernel
    t, h = np.linspace(0.01, 0.99, 50), 1e-6
    shares, slopes = kernel.shares(t), kernel.slopes(t)
    assert np.allclose(sum(shares), 1.0, atol=1e-15)
    assert np.allclose(sum(slopes), 0.0, atol=1e-12)
    assert min(part.min() for part in shares) >= 0.0
    for slope, after, before in zip(slopes, kernel.shares(t + h), kernel.shares(t - h), strict=True):
        assert np.allclose(slope, (after - before) / (2 * h), rtol=1e-6, atol=1e-8)


def test_hybrid_reaches_its_share_at_half_and_nowhere_more() -> None:
    for share in (0.1, 0.2, 0.5):
        kernel = process("hybrid", 5, 4, uniform_share=share).kernel
        uniform = kernel.shares(np.linspace(0.0, 1.0, 1001)).uniform
        assert uniform.argmax() == 500
        assert uniform.max() == pytest.approx(share, abs=1e-15)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_hybrid_without_random_tokens_is_absorbing(schedule: str) -> None:
    t = np.linspace(0.0, 1.0, 21)
    hybrid, absorbing = (
        process("hybrid", 5, 4, schedule, 0.0).kernel,
        process("absorbing", 5, 4, schedule).kernel,
    )
    for ours, theirs in ((hybrid.shares(t), absorbing.shares(t)), (hybrid.slopes(t), absorbing.slopes(t))):
        assert all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"corruption": "gaussian"}, "absorbing, uniform, hybrid"),
        ({"corruption": "absorbing", "schedule": "square"}, "linear, cosine, loglinear"),
        ({"corruption": "hybrid", "mask_id": 4, "uniform_share": 1.0}, "below 1"),
        ({"corruption": "absorbing"}, "needs a mask"),
        ({"corruption": "hybrid"}, "needs a mask"),
        ({"corruption": "uniform", "mask_id": 4, "noise_ids": (3, 4)}, "other than the mask"),
        ({"corruption": "uniform", "noise_ids": (5,)}, "tokens of the vocabulary"),
    ],
)
def test_a_wrong_request_is_told_what_to_do(arguments: dict, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        process(vocab_size=5, **arguments)
