"""A checkpoint comes back bit for bit, is refused with one line when it is not whole, and survives a failed write."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import redraft
from redraft.denoiser import checkpoint
from redraft.denoiser.config import DenoiserConfig
from redraft.denoiser.rotary import RopeScaling
from redraft.errors import RedraftError, RequestError
from tests.denoiser.networks import clean_rows, mask_of, our_logits, tiny, tokens

WEIGHTS = "model.safetensors"


def logits(model: checkpoint.Denoiser) -> torch.Tensor:
    rows = clean_rows(model.config.layout, 9, 4)
    return our_logits(model, tokens(2, 9), rows.position, mask_of(rows))


def one_line(error: pytest.ExceptionInfo[RedraftError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    checkpoint.save(tiny(), folder)
    return folder


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie_word_embeddings": False, "qk_norm": True, "attention_bias": True, "eos_token_ids": (3, 4)},
        {"self_conditioning": True, "layout": "block_causal", "shift": True},
        {
            "rope_scaling": RopeScaling("llama3", 4.0),
            "partial_rotary_factor": 0.5,
            "canvas_rows_marked": False,
        },
    ],
)
def test_save_and_load_give_the_same_logits(changes: dict[str, Any], tmp_path: Path) -> None:
    model = tiny(**changes)
    checkpoint.save(model, tmp_path)
    again = checkpoint.load(tmp_path)
    assert again.config == model.config
    assert not again.training
    assert all(p.requires_grad for p in again.parameters())
    assert again.parameter_count() == model.parameter_count()
    assert torch.equal(logits(again), logits(model))
    assert ("lm_head.weight" in load_file(tmp_path / WEIGHTS)) is not model.config.tie_word_embeddings
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", WEIGHTS]


def test_load_into_overwrites_a_model_in_place(saved: Path) -> None:
    model = tiny(seed=9)
    weight = model.lm_head.weight
    checkpoint.load_into(model, checkpoint.read_tensors(saved), "it")
    assert model.lm_head.weight is weight
    assert torch.equal(logits(model), logits(tiny()))


def test_loading_draws_no_random_numbers_and_keeps_no_hold_of_the_file(saved: Path) -> None:
    before = torch.get_rng_state()
    model = checkpoint.load(saved)
    assert torch.equal(torch.get_rng_state(), before)
    want = logits(model)
    size = (saved / WEIGHTS).stat().st_size
    (saved / WEIGHTS).write_bytes(b"\xff" * size)  # in place, as cp does
    assert torch.equal(logits(model), want)


def test_saved_in_bf16_and_read_in_either(tmp_path: Path) -> None:
    model = tiny()
    checkpoint.save(model, tmp_path, torch.bfloat16)
    wide, narrow = checkpoint.load(tmp_path), checkpoint.load(tmp_path, torch.bfloat16)
    for name, p in wide.named_parameters():
        assert p.dtype == torch.float32
        assert torch.equal(p, dict(model.named_parameters())[name].to(torch.bfloat16).float())
        assert torch.equal(p.to(torch.bfloat16), dict(narrow.named_parameters())[name])


def test_truncated_weights(saved: Path) -> None:
    whole = (saved / WEIGHTS).read_bytes()
    for kept in (len(whole) - 1, len(whole) // 2, 9, 0):
        (saved / WEIGHTS).write_bytes(whole[:kept])
        with pytest.raises(RequestError, match="truncated or not a safetensors file") as error:
            checkpoint.load(saved)
        assert WEIGHTS in one_line(error)


def test_altered_weights_show_in_the_manifest(saved: Path) -> None:
    before = checkpoint.manifest(saved)
    data = bytearray((saved / WEIGHTS).read_bytes())
    data[-1] ^= 1
    (saved / WEIGHTS).write_bytes(data)
    after = checkpoint.manifest(saved)
    assert before["files"]["config.json"] == after["files"]["config.json"]
    assert before["files"][WEIGHTS]["size"] == after["files"][WEIGHTS]["size"]
    assert before["files"][WEIGHTS]["sha256"] != after["files"][WEIGHTS]["sha256"]


def test_misshapen_missing_and_surplus_tensors(saved: Path) -> None:
    tensors = load_file(saved / WEIGHTS)
    name = "model.layers.1.mlp.up_proj.weight"
    altered = {
        rf"{name} is \[3, 32\] where the config wants \[48, 32\]": tensors | {name: torch.zeros(3, 32)},
        rf"lacks {name}": {k: v for k, v in tensors.items() if k != name},
        r"holds model.extra, which the config has no place for": tensors | {"model.extra": torch.zeros(2)},
    }
    for message, wrong in altered.items():
        save_file(wrong, saved / WEIGHTS)
        with pytest.raises(RequestError, match=message) as error:
            checkpoint.load(saved)
        one_line(error)


def test_a_pickle_is_named_and_never_opened(saved: Path) -> None:
    (saved / WEIGHTS).unlink()
    torch.save({"weight": torch.zeros(1)}, saved / "pytorch_model.bin")
    with pytest.raises(
        RequestError, match="pytorch_model.bin is a pickle, which redraft never opens"
    ) as error:
        checkpoint.load(saved)
    one_line(error)


def test_folder_without_config_or_weights(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(RequestError, match="has no config.json: not a model directory"):
            checkpoint.load(folder)
    checkpoint.save(tiny(), tmp_path)
    (tmp_path / WEIGHTS).unlink()
    with pytest.raises(RequestError, match=f"has no {WEIGHTS}$"):
        checkpoint.load(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "can't be read as JSON"),
        ("[1]", "is not a JSON object"),
        ('{"vocab_size": 8}', "lacks hidden_size, intermediate_size"),
    ],
)
def test_broken_config(text: str, message: str, saved: Path) -> None:
    (saved / "config.json").write_text(text)
    with pytest.raises(RequestError, match=message) as error:
        checkpoint.load(saved)
    one_line(error)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": "many"}, "vocab_size must be a positive whole number, not 'many'"),
        ({"num_hidden_layers": 0}, "num_hidden_layers must be a positive whole number"),
        ({"hidden_size": True}, "hidden_size must be a positive whole number"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps must be a positive number"),
        ({"rope_theta": float("nan")}, "rope_theta must be a positive number"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings must be true or false"),
        ({"eos_token_ids": 3}, "eos_token_ids must be a list of token ids"),
        ({"eos_token_ids": [99]}, "eos token 99 lies outside the vocabulary of 41"),
        ({"mask_token_id": 41}, "mask_token_id 41 lies outside the vocabulary of 41"),
        ({"layout": "causal"}, "layout 'causal' is unknown; one of causal_context, block_causal, full"),
        ({"num_key_value_heads": 3}, "num_attention_heads must be a multiple of num_key_value_heads"),
        ({"head_dim": 7}, "must be even"),
        ({"partial_rotary_factor": 1.5}, "must be even"),
        ({"rope_scaling": {"rope_type": "llama3"}}, "rope_scaling must have rope_type and factor"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "redraft has default, linear, llama3"),
        ({"rope_scaling": {"rope_type": "linear", "factor": -2.0}}, "factor must be a positive number"),
    ],
)
def test_config_values_out_of_bounds(changes: dict[str, Any], message: str, saved: Path) -> None:
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(RequestError, match=message) as error:
        DenoiserConfig.load(saved)
    one_line(error)


def sharded(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    names = sorted(tensors)
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for part, own in parts.items():
        save_file({n: tensors[n] for n in own}, folder / part)
    index = {"metadata": {}, "weight_map": {n: part for part, own in parts.items() for n in own}}
    (folder / checkpoint.INDEX).write_text(json.dumps(index))
    (folder / WEIGHTS).unlink()


def test_shards_with_an_index(saved: Path) -> None:
    sharded(saved, load_file(saved / WEIGHTS))
    assert torch.equal(logits(checkpoint.load(saved)), logits(tiny()))
    whole = (saved / checkpoint.INDEX).read_text()
    index = json.loads(whole)
    index["weight_map"]["model.extra"] = "model-00001-of-00002.safetensors"
    (saved / checkpoint.INDEX).write_text(json.dumps(index))
    with pytest.raises(RequestError, match=r"lists model.extra, which no shard holds"):
        checkpoint.load(saved)
    (saved / checkpoint.INDEX).write_text(whole)
    (saved / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(RequestError, match=r"has no model-00002-of-00002\.safetensors"):
        checkpoint.load(saved)
    (saved / checkpoint.INDEX).write_text("{}")
    with pytest.raises(RequestError, match="index.json can't be read"):
        checkpoint.load(saved)


def test_an_index_cannot_point_outside_its_folder(saved: Path, tmp_path: Path) -> None:
    save_file(load_file(saved / WEIGHTS), tmp_path / "elsewhere.safetensors")
    for name in ("../elsewhere.safetensors", str(tmp_path / "elsewhere.safetensors")):
        (saved / checkpoint.INDEX).write_text(json.dumps({"weight_map": {"model.norm.weight": name}}))
        with pytest.raises(RequestError, match="outside"):
            checkpoint.load(saved)


def test_a_place_that_cannot_be_written(saved: Path, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("in the way")
    for folder in (file, file / "below"):
        with pytest.raises(RequestError, match="can't be made") as error:
            checkpoint.save(tiny(), folder)
        one_line(error)
    (saved / WEIGHTS).unlink()
    (saved / WEIGHTS).mkdir()
    with pytest.raises(RedraftError, match="could not be written") as failure:
        checkpoint.save(tiny(), saved)
    assert not isinstance(failure.value, RequestError)
    assert sorted(p.name for p in saved.iterdir()) == ["config.json", WEIGHTS]


SAVE_WITH_NO_SPACE = """
    import resource, sys
    import torch
    from redraft.denoiser import checkpoint
    from redraft.errors import RedraftError

    folder, limit, what = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    model = checkpoint.load(folder)
    with torch.no_grad():
        model.model.norm.weight.add_(1)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        if what == "weights":
            checkpoint.save(model, folder)
        else:
            checkpoint.write_atomically(checkpoint.Path(folder) / "config.json", b" " * 100_000)
    except RedraftError as error:
        print(error)
        sys.exit(error.exit_code)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="a limit on file sizes is POSIX")
@pytest.mark.parametrize("what", ["weights", "bytes"])
@pytest.mark.parametrize("limit", [0, 20_000])
def test_a_full_disk_leaves_the_last_checkpoint(limit: int, what: str, saved: Path) -> None:
    """The kernel refuses the write midway (as when a disk fills up); the old files stay whole, no part is left."""
    before = checkpoint.manifest(saved)
    source = str(Path(redraft.__file__).parents[1])
    command = [sys.executable, "-c", textwrap.dedent(SAVE_WITH_NO_SPACE), str(saved), str(limit), what]
    done = subprocess.run(command, capture_output=True, text=True, env={"PYTHONPATH": source}, check=False)
    assert done.returncode == 1, done.stderr
    assert "could not be written" in done.stdout
    assert done.stdout.count("\n") == 1
    assert checkpoint.manifest(saved) == before
    assert sorted(p.name for p in saved.iterdir()) == ["config.json", WEIGHTS]
    assert torch.equal(logits(checkpoint.load(saved)), logits(tiny()))
