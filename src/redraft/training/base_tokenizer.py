"""Text prepared with the tokenizer and the chat template of a model that exists, for adapting that model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from redraft.denoiser import families
from redraft.errors import RequestError
from redraft.files import write_atomically
from redraft.hub.store import read_json, resolve
from redraft.hub.tokenizer import TOKENIZER, Tokenizer

if TYPE_CHECKING:
    from redraft.training.data import Document


class BaseTokenizer:
    """name: a model's name or folder. Raises RequestError for one without a tokenizer or an end-of-answer token."""

    def __init__(self, name: str) -> None:
        self.folder = resolve(name).path
        self.tokenizer = Tokenizer.load(self.folder)
        config = families.load_config(self.folder)
        if not config.eos_token_ids:
            raise RequestError(f"{name} names no end-of-answer token: documents would have no end")
        self.eos, self.vocab_size = config.eos_token_ids[0], config.vocab_size

    def encode(self, document: Document) -> list[int]:
        """A conversation through the chat template, up to its last end-of-answer token; bare text with one after it."""
        messages = [{"role": role, "content": text} for role, text in document.parts if role is not None]
        if not messages:
            text = "\n".join(text for _, text in document.parts)
            return [*map(int, self.tokenizer.encode(text)), self.eos]
        ids = [int(i) for i in self.tokenizer.render(messages, add_generation_prompt=False)]
        return ids[: len(ids) - ids[::-1].index(self.eos)] if self.eos in ids else [*ids, self.eos]

    def save(self, folder: Path) -> None:
        """tokenizer.json as it is, and tokenizer_config.json with the chat template inside."""
        shutil.copyfile(self.folder / TOKENIZER, folder / TOKENIZER)
        config = read_json(self.folder / "tokenizer_config.json") or {}
        if self.tokenizer.template is not None:
            config["chat_template"] = self.tokenizer.template.source
        write_atomically(folder / "tokenizer_config.json", (json.dumps(config, indent=2) + "\n").encode())
