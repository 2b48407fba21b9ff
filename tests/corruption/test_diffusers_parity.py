"""Our uniform posterior is the one diffusers' DiscreteDDIMScheduler draws from."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from redraft.corruption import process

diffusers = pytest.importorskip("diffusers")
torch.set_num_threads(1)


@pytest.mark.parametrize("step", [0, 3, 6, 7])
@pytest.mark.parametrize("certain", [True, False], ids=["x_0 known", "x_0 believed"])
def test_discrete_ddim(step: int, certain: bool) -> None:
    size, steps, rows = 4, 8, 40_000
    scheduler = diffusers.DiscreteDDIMScheduler(num_inference_steps=steps)
    generator = torch.Generator().manual_seed(step)
    logits = torch.tensor([0.3, 1.1, -0.4, 0.2]).expand(rows, size, size)
    sample = torch.arange(size).expand(rows, size)  # one slot for each x_t
    out = scheduler.step(
        logits, step, sample, temperature=0.0 if certain else 1.0, generator=generator
    ).prev_sample.numpy()

    x0 = (
        np.ones(size, dtype=np.int64)
        if certain
        else np.tile(torch.softmax(logits[0, 0], -1).numpy(), (size, 1))
    )
    t, s = 1 - step / steps, 1 - (step + 1) / steps
    want = process("uniform", size).posterior(np.arange(size), x0, s, t, "full")
    for slot in range(size):
        seen = np.bincount(out[:, slot], minlength=size) / rows
        assert (np.abs(seen - want[slot]) <= 5 * np.sqrt(want[slot] * (1 - want[slot]) / rows) + 1e-7).all()
