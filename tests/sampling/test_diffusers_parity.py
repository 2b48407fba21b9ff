"""Our rules make the decisions of diffusers' schedulers and of transformers' DiffusionGemma, live."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from redraft.sampling import NoiseKey, SamplerSettings, SlotVocabulary, advance, begin, outcome
from redraft.sampling.accept import RULES, Look
from redraft.sampling.reading import read

diffusers = pytest.importorskip("diffusers")
torch.set_num_threads(1)

V, C, MASK = 13, 12, 12


def logits_of(seed: int, scale: float) -> np.ndarray:
    """Logits with slots easy and hard; the mask's is never wanted, as diffusers would choose it."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(C, V)) * rng.uniform(0.5, scale, (C, 1))
    logits[:, MASK] = -1e4
    return logits.astype(np.float32)


@pytest.mark.parametrize("seed", range(4))
def test_entropy_bound(seed: int) -> None:
    steps, bound = 6, 0.4
    theirs = diffusers.EntropyBoundScheduler(
        entropy_bound=bound, t_max=0.8, t_min=0.4, num_inference_steps=steps
    )
    settings = SamplerSettings(
        canvas_length=C,
        accept="entropy_bound",
        entropy_bound=bound,
        renoise="uniform",
        max_steps=steps,
        temperature=0.8,
        temperature_end=0.4,
    )
    canvas = begin(settings, SlotVocabulary(V), NoiseKey(seed), 0)
    counts = set()
    for step in range(steps - 1):
        logits = logits_of(100 * seed + step, 9.0)
        want = theirs.step(
            torch.tensor(logits)[None], step, torch.zeros(1, C, dtype=torch.long)
        ).accepted_index[0]
        reading = read(canvas, logits)
        ours = RULES["entropy_bound"](
            Look(settings, step, C, canvas.open, reading.probability, reading.entropy)
        )
        assert np.array_equal(ours, want.numpy())
        canvas = advance(canvas, logits)
        assert np.array_equal(canvas.tokens[ours], reading.choice[ours])
        assert not canvas.settled.any()  # acceptance does not stick
        assert np.array_equal(canvas.shown, logits.argmax(-1))
        counts.add(int(ours.sum()))
    assert len(counts) > 1


@pytest.mark.parametrize("edit", [None, 0.6])
@pytest.mark.parametrize(("steps", "threshold"), [(3, 0.7), (5, 0.5), (12, 0.99), (7, 0.95)])
def test_block_refinement_with_masks(steps: int, threshold: float, edit: float | None) -> None:
    theirs = diffusers.BlockRefinementScheduler(block_length=C, threshold=threshold, editing_threshold=edit)
    theirs.set_timesteps(steps)
    sample = torch.full((1, C), MASK)
    settings = SamplerSettings(canvas_length=C, threshold=threshold, steps=steps, edit_threshold=edit)
    canvas = begin(settings, SlotVocabulary(V, mask_id=MASK), NoiseKey(0), 0)
    edits = 0
    for step in range(steps):
        if canvas.finished:
            break
        logits = logits_of(step, 6.0)
        out = theirs.step(torch.tensor(logits)[None], step, sample, mask_token_id=MASK, temperature=0.0)
        sample, edits = out.prev_sample, edits + int(out.editing_transfer_index.sum())
        canvas = advance(canvas, logits)
        assert np.array_equal(canvas.tokens, sample[0].numpy())
    assert not (canvas.tokens == MASK).any()
    assert (edits > 0) == (edit is not None)


@pytest.mark.parametrize(("steps", "threshold"), [(3, 0.95), (5, 0.9), (12, 0.99), (7, 0.97)])
def test_block_refinement_with_random_tokens(steps: int, threshold: float) -> None:
    """The cumulative quota ⌈(k+1)C/N⌉. A step that owes nothing accepts none there and the best slot here."""
    theirs = diffusers.BlockRefinementScheduler(block_length=C, threshold=threshold)
    theirs.set_timesteps(steps, block_length=C)
    settings = SamplerSettings(canvas_length=C, threshold=threshold, steps=steps, renoise="uniform")
    canvas = begin(settings, SlotVocabulary(V), NoiseKey(0), 0)
    sample = torch.tensor(canvas.tokens)[None]
    for step in range(steps):
        if canvas.finished:
            break
        logits = logits_of(50 + step, 3.0)
        before = canvas.settled
        out = theirs.step(torch.tensor(logits)[None], step, sample, temperature=0.0)
        sample, canvas = out.prev_sample, advance(canvas, logits)
        assert out.transfer_index.any()
        assert np.array_equal(canvas.settled & ~before, out.transfer_index[0].numpy())
        assert np.array_equal(canvas.tokens[canvas.settled], sample[0].numpy()[canvas.settled])
    assert canvas.finished


@pytest.mark.parametrize("stable", [0, 1, 2])
def test_stop_of_diffusion_gemma(stable: int) -> None:
    generation = pytest.importorskip("transformers.models.diffusion_gemma.generation_diffusion_gemma")
    theirs = generation.StableAndConfidentStoppingCriteria(
        stability_threshold=stable, confidence_threshold=0.05
    )
    settings = SamplerSettings(
        canvas_length=C,
        accept="entropy_bound",
        renoise="uniform",
        max_steps=40,
        temperature=1.0,
        stable_steps=stable,
        confident_entropy=0.05,
    )
    canvas = begin(settings, SlotVocabulary(V), NoiseKey(1), 0)
    for step in range(40):
        logits = logits_of(3 if step > 2 else step, 2.0) * np.float32(
            1.0 + step
        )  # grows surer; changes at first
        stop = bool(theirs(torch.tensor(logits.argmax(-1))[None], torch.tensor(logits)[None])[0])
        canvas = advance(canvas, logits)
        assert canvas.finished == stop or step == 39
        if stop:
            break
    assert canvas.finished
    assert 3 <= canvas.step < 40
    assert outcome(canvas) == tuple(logits.argmax(-1))  # never a token that was only noise or a draw
