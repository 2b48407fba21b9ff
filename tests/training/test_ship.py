"""From a run to a model folder that can be given away."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from redraft.denoiser import checkpoint
from redraft.hub.store import verify_manifest
from redraft.training.ship import average, ship
from tests.training.toys import network


def write(folder: Path, seed: int) -> Path:
    checkpoint.save(network(seed), folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_text("{}")
    return folder


def test_a_shipped_folder_is_whole_and_in_bfloat16(tmp_path: Path) -> None:
    out = ship(write(tmp_path / "run", 0), tmp_path / "out", {"threshold": 0.7})
    assert set(verify_manifest(out)) >= {"model.safetensors", "config.json", "generation_config.json"}
    for name, tensor in checkpoint.read_tensors(out).items():
        assert tensor.dtype == torch.bfloat16, name


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_averaging_keeps_a_share_and_the_draft_token(share: float) -> None:
    model, other = network(0, draft_token_id=3), network(1)
    own, theirs = ({k: v.clone() for k, v in m.state_dict().items()} for m in (model, other))
    mixed = average(model, other, share).state_dict()
    for name, value in mixed.items():
        expected = share * own[name] + (1 - share) * theirs[name]
        if name in ("model.embed_tokens.weight", "lm_head.weight"):  # tied: the same numbers, mixed once
            expected[3] = own[name][3]
        torch.testing.assert_close(value, expected, msg=name)
