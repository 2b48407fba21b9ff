"""Where a training run keeps its models: one folder a checkpoint, step-000500, whole or absent."""

from __future__ import annotations

from pathlib import Path


def complete(folder: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first."""
    found = [p for p in folder.glob("step-*") if (p / "training_state" / "state.json").exists()]
    return sorted((p for p in found if _number(p).isdigit()), key=lambda p: int(_number(p)))


def newest(folder: str | Path) -> Path:
    """A model folder as it is; of a run's folder its last complete checkpoint."""
    found = complete(Path(folder))
    return found[-1] if found else Path(folder)


def _number(folder: Path) -> str:
    return folder.name.removeprefix("step-")
