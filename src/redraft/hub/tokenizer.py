"""Text to token ids and back. What a person typed never becomes a special token; only the chat template
writes those.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from redraft.denoiser.adapter_config import ADAPTER_CONFIG
from redraft.errors import RequestError
from redraft.hub.bytes import PieceBytes, Utf8Stream
from redraft.hub.chat_template import ChatTemplate, check_messages, load_template
from redraft.hub.names import did_you_mean

TOKENIZER = "tokenizer.json"


class Tokenizer:
    """tokenizer.json (fast tokenizers' format) with the chat template of tokenizer_config.json.

    special_ids maps the name of each special token to its id: the added tokens that tokenizer.json marks
    special and those that `reserved` names (mask, null and stop ids of config.json, whatever the tokenizer's
    file says of them).
    """

    def __init__(
        self,
        definition: str | tokenizers.Tokenizer,
        template: ChatTemplate | None = None,
        reserved: Iterable[int] = (),
    ) -> None:
        """definition: the text of tokenizer.json, or a tokenizer. Raises RequestError if it can't be read."""
        text = definition if isinstance(definition, str) else definition.to_str()
        added = _mark_special(text, frozenset(reserved))
        self._tokenizer = added.tokenizer
        # Every piece of ordinary text goes through this one tokenizer, to which special tokens are plain
        # characters.
        self._tokenizer.encode_special_tokens = True
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.template = template
        self.special_ids: dict[str, int] = added.special_ids
        self._special_set = frozenset(self.special_ids.values())
        self._split = added.pattern
        self._pieces = PieceBytes(self._tokenizer, added.decoder)

    @classmethod
    def load(cls, folder: str | Path) -> Tokenizer:
        """From a model's folder; of an adapter without a tokenizer of its own, its base's. Raises RequestError when
        tokenizer.json is missing or can't be read."""
        folder = own = Path(folder)
        if (folder / ADAPTER_CONFIG).exists() and not (folder / TOKENIZER).exists():
            from redraft.hub.store import base_of

            folder = base_of(folder) or folder
        path = folder / TOKENIZER
        try:
            definition = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise RequestError(f"{folder} has no {TOKENIZER}: not a complete model directory") from None
        except (OSError, ValueError) as error:
            raise RequestError(f"{path} can't be read: {error}") from None
        return cls(definition, load_template(folder), _reserved_ids(own))

    @property
    def vocab_size(self) -> int:
        """Ids lie in [0, vocab_size)."""
        return int(self._tokenizer.get_vocab_size(with_added_tokens=True))

    def special_id(self, name: str) -> int:
        """The id of a special token such as "<|eos|>"; raises RequestError when there is none of that
        name.
        """
        if name not in self.special_ids:
            raise RequestError(
                f"the tokenizer has no special token {name}{did_you_mean(name, self.special_ids)}"
            )
        return self.special_ids[name]

    def encode(self, text: str) -> np.ndarray:
        """int64 [n], never a special token: "<|eos|>" typed by a person is seven ordinary characters.

        Raises RequestError for text that has no UTF-8 form (a lone surrogate, as from a badly encoded
        argument).
        """
        check_text(text)
        ids = np.asarray(self._tokenizer.encode(text, add_special_tokens=False).ids, dtype=np.int64)
        # A word-level vocabulary could still hold a special token as a word; byte-level ones can't reach it.
        if forbidden := self._special_set.intersection(ids.tolist()) - {self._unknown_id()}:
            name = next(n for n, i in self.special_ids.items() if i in forbidden)
            raise RequestError(
                f"the text contains {name}, which this model's tokenizer can't tell from a special token"
            )
        return ids

    def encode_template(self, text: str, filler: str = "") -> np.ndarray:
        """int64 [n] for trusted text: special tokens by name count. `filler`, one character, is dropped (see
        render).
        """
        out: list[int] = []
        for part, special in _parts(self._split, text):
            if special:
                out.append(self.special_ids[part])
            else:
                out.extend(self.encode(part.replace(filler, "") if filler else part).tolist())
        return np.asarray(out, dtype=np.int64)

    def render(self, messages: Sequence[dict[str, Any]], add_generation_prompt: bool = True) -> np.ndarray:
        """int64 [n]: the conversation through the chat template.

        Special tokens come from the template alone: in whatever a message holds they're broken by a filler
        character before the template sees them, and mended after the template's text has been cut at its
        special tokens. Raises RequestError for malformed messages, a model without template, or one whose
        template refuses them.
        """
        if self.template is None:
            raise RequestError("this model has no chat template: give raw text instead (--raw)")
        checked = check_messages(messages)
        filler = _unused_character(json.dumps(checked, ensure_ascii=False))
        safe = _break_specials(checked, sorted(self.special_ids, key=len, reverse=True), filler)
        return self.encode_template(self.template.render(safe, add_generation_prompt), filler)

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """Text of ids; bytes that are no UTF-8 become U+FFFD. Special tokens are left out, or written by
        name.
        """
        return str(self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=skip_special))

    def decode_slots(self, ids: Iterable[int]) -> list[str]:
        """One string a token, to draw a draft slot by slot.

        A character of several tokens stands at its last one, a broken one is U+FFFD, a special token is "".
        For a byte-level tokenizer the strings joined are `decode` of the run between two special tokens.
        """
        stream = Utf8Stream()
        slots: list[str] = []
        for token in map(int, ids):
            if token in self._special_set:
                broken = stream.finish()
                if broken and slots:
                    slots[-1] += broken
                slots.append("")
            else:
                slots.append(stream.feed(self._pieces[token]))
        if slots and (broken := stream.finish()):
            slots[-1] += broken
        return slots

    def token_bytes(self, token: int) -> bytes:
        """The UTF-8 bytes that a token stands for; empty for a special token."""
        return b"" if token in self._special_set else self._pieces[int(token)]

    def text_stream(self) -> TextStream:
        """A decoder for tokens that arrive in pieces."""
        return TextStream(self)

    def _unknown_id(self) -> int | None:
        unknown = getattr(self._tokenizer.model, "unk_token", None)
        return self._tokenizer.token_to_id(unknown) if unknown else None


class TextStream:
    """Committed tokens in, text out as soon as it's certain: an unfinished character waits for its other
    bytes.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._stream = Utf8Stream()

    def put(self, ids: Iterable[int]) -> str:
        return "".join(self._stream.feed(self._tokenizer.token_bytes(int(i))) for i in ids)

    @property
    def pending(self) -> bool:
        """Whether a character waits for its other bytes."""
        return self._stream.pending

    def end(self) -> str:
        """What is left: U+FFFD for a character that never got its last bytes."""
        return self._stream.finish()


class _Added:
    """What a tokenizer.json says of its special tokens, and a tokenizer in which all of them are marked
    so.
    """

    def __init__(
        self, tokenizer: tokenizers.Tokenizer, special: dict[int, dict[str, Any]], decoder: Any
    ) -> None:
        self.tokenizer = tokenizer
        self.special_ids = {entry["content"]: number for number, entry in special.items()}
        self.decoder = decoder
        self.pattern = None
        if special:
            longest_first = sorted(special.values(), key=lambda e: len(e["content"]), reverse=True)
            self.pattern = re.compile("(" + "|".join(map(_special_pattern, longest_first)) + ")")


def _special_pattern(entry: dict[str, Any]) -> str:
    """lstrip and rstrip: a special token swallows the white space beside it (BERT's <mask>)."""
    left, right = (r"\s*" if entry.get(side) else "" for side in ("lstrip", "rstrip"))
    return left + re.escape(entry["content"]) + right


def _mark_special(text: str, reserved: frozenset[int]) -> _Added:
    try:
        raw = json.loads(text)
        entries = {int(e["id"]): e for e in raw.get("added_tokens", ())}
        for number in reserved & entries.keys():
            entries[number]["special"] = True
        tokenizer = tokenizers.Tokenizer.from_str(json.dumps(raw))
    except Exception as error:  # the library raises bare Exception for a bad file
        raise RequestError(f"{TOKENIZER} can't be read: {' '.join(str(error).split())}") from None
    special = {number: e for number, e in sorted(entries.items()) if e.get("special")}
    return _Added(tokenizer, special, raw.get("decoder"))


def _reserved_ids(folder: Path) -> set[int]:
    """Mask, null and stop ids of config.json; none when there's no readable one (the store reports that)."""
    try:
        raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return set()
    if not isinstance(raw, dict):
        return set()
    ends = raw.get("eos_token_ids") or raw.get("eos_token_id") or ()
    found = [
        raw.get("mask_token_id"),
        raw.get("null_token_id"),
        *(ends if isinstance(ends, list) else [ends]),
    ]
    return {i for i in found if isinstance(i, int)}


def check_text(text: str) -> None:
    """Raises RequestError unless `text` is a str that can be written as UTF-8."""
    if not isinstance(text, str):
        raise RequestError(f"text must be a string, not {type(text).__name__}")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise RequestError("the text isn't valid UTF-8: convert it first") from None


def _parts(pattern: re.Pattern[str] | None, text: str) -> Iterator[tuple[str, bool]]:
    """Runs of ordinary text and names of special tokens in order, empty runs left out."""
    if pattern is None:
        if text:
            yield text, False
        return
    for number, part in enumerate(pattern.split(text)):
        if part:
            yield (part.strip(), True) if number % 2 else (part, False)


def _unused_character(text: str) -> str:
    """A private-use character that `text` doesn't contain."""
    used = set(text)
    for number in itertools.chain(range(0xE000, 0xF900), range(0xF0000, 0xFFFFE), range(0x100000, 0x10FFFE)):
        if chr(number) not in used:
            return chr(number)
    raise RequestError("the messages use every private-use character: shorten them")


def _break_specials(value: Any, names: list[str], filler: str) -> Any:
    """`value` with `filler` put inside every special token's name in its strings.

    A beginning of a name at a string's end (white space after it aside) is broken too: the next string might
    go on.
    """
    if isinstance(value, dict):
        return {
            _break_specials(k, names, filler): _break_specials(v, names, filler) for k, v in value.items()
        }
    if isinstance(value, list):
        return [_break_specials(v, names, filler) for v in value]
    if not isinstance(value, str):
        return value
    for name in names:
        value = value.replace(name, name[0] + filler + name[1:])
    bare = value.rstrip()
    for length in range(max(map(len, names), default=0) - 1, 0, -1):
        if len(bare) >= length and any(len(n) > length and n.startswith(bare[-length:]) for n in names):
            cut = len(bare) - length + 1
            return value[:cut] + filler + value[cut:]
    return value
