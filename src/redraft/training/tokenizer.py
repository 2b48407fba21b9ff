"""A byte-level BPE tokenizer trained on the corpus, written as Hugging Face's tokenizer files."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from redraft.errors import RequestError
from redraft.files import write_atomically

EOS, USER, ASSISTANT, SYSTEM, MASK, NULL, EDIT, DRAFT = (
    "<|eos|>",
    "<|user|>",
    "<|assistant|>",
    "<|system|>",
    "<|mask|>",
    "<|null|>",
    "<|edit|>",
    "<|draft|>",
)
SPECIALS = [
    EOS,
    USER,
    ASSISTANT,
    SYSTEM,
    MASK,
    NULL,
    EDIT,
    "<|fill|>",
    DRAFT,
    "<|reserved|>",
]

# A turn ends where the next role token begins, so a transcript grows without ever being encoded anew.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message.role not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('roles are system, user and assistant, not ' + message.role) }}{% endif %}"
    "{{ '<|' + message.role + '|>' + message.content }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)

# GPT-4-style words, but digits one by one: numbers are times, prices and telephone numbers, never words.
WORDS = (
    r"'(?:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Byte-level BPE over `texts`, special tokens first. Any Unicode text round-trips byte for byte."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[AddedToken(s, special=True) for s in SPECIALS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """tokenizer.json and tokenizer_config.json with the chat template."""
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": EOS,
        "pad_token": EOS,
        "mask_token": MASK,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    write_atomically(folder / "tokenizer.json", tokenizer.to_str().encode())
    write_atomically(folder / "tokenizer_config.json", (json.dumps(config, indent=2) + "\n").encode())


def load_tokenizer(data: Path) -> Tokenizer:
    """The tokenizer of a prepared folder; RequestError when it has none."""
    path = data / "tokenizer.json"
    if not path.exists():
        raise RequestError(f"{data} holds no tokenizer.json; run redraft prepare first")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise RequestError(f"{path} can't be read ({error}); run redraft prepare again") from None
