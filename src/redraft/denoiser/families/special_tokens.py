"""Which token ids mean mask and end, read from the files beside a checkpoint and never from a constant.

Peers that fixed the id in code broke on the next release of the same family (iLLaDA's mask is 5, LLaDA's 126336).
"""

from __future__ import annotations

import json
import re
from functools import cached_property
from pathlib import Path
from typing import Any

from redraft.errors import RequestError

# [MASK], <mask>, <|mask|>, <|MASK|>, |<MASK>|, <|mdm_mask|>: as tokenizers of diffusion models spell it.
_MASK = re.compile(r"\W*(mdm_)?mask\W*", re.IGNORECASE)


class SpecialTokens:
    """The special tokens of one model folder. Files that don't exist count as empty; broken ones raise RequestError."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def mask(self, raw: dict[str, Any]) -> int | None:
        """config.json's mask_token_id, else the tokenizer's mask token, else the one added token spelt like a mask."""
        if raw.get("mask_token_id") is not None:
            return raw["mask_token_id"]
        named = self._named("mask_token")
        if named is not None:
            return named
        spelt = sorted(i for text, i in self.added.items() if _MASK.fullmatch(text))
        if len(spelt) > 1:
            raise RequestError(
                f"{self.folder} has {len(spelt)} mask tokens {spelt}: set mask_token_id in config.json"
            )
        return spelt[0] if spelt else None

    def ends(self, raw: dict[str, Any], *names: str) -> list[int]:
        """Tokens that end an answer: of config.json, generation_config.json and the tokenizer, and those `names`."""
        found: list[Any] = []
        for config in (raw, self._read("generation_config.json")):
            value = config.get("eos_token_id")
            found += value if isinstance(value, list) else [value]
        found += [self._named("eos_token"), *(self.added.get(name) for name in names)]
        return [token for token in dict.fromkeys(found) if token is not None]

    @cached_property
    def added(self) -> dict[str, int]:
        """Id by text of every token that a tokenizer file lists outside its vocabulary."""
        try:
            out = {text: int(token) for text, token in self._read("added_tokens.json").items()}
            for token, entry in self._read("tokenizer_config.json").get("added_tokens_decoder", {}).items():
                out[entry["content"]] = int(token)
            for entry in self._read("tokenizer.json").get("added_tokens", ()):
                out[entry["content"]] = int(entry["id"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise RequestError(
                f"{self.folder}: the tokenizer's list of added tokens is malformed: {error}"
            ) from None
        return out

    def _named(self, role: str) -> int | None:
        for name in ("tokenizer_config.json", "special_tokens_map.json"):
            token = self._read(name).get(role)
            text = token.get("content") if isinstance(token, dict) else token
            if text in self.added:
                return self.added[text]
        return None

    def _read(self, name: str) -> dict[str, Any]:
        if name not in self._files:
            self._files[name] = self._parse(self.folder / name)
        return self._files[name]

    @cached_property
    def _files(self) -> dict[str, dict[str, Any]]:
        return {}

    def _parse(self, path: Path) -> dict[str, Any]:
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise RequestError(f"{path} can't be read as JSON: {error}") from None
        if not isinstance(content, dict):
            raise RequestError(f"{path} is not a JSON object")
        return content
