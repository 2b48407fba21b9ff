"""A model's chat template: a conversation written as the one text that the model was trained on.

The template is somebody else's program: it runs in jinja2's immutable sandbox and can reach nothing but its
inputs.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from redraft.errors import RequestError

ROLES = ("system", "user", "assistant", "tool")


class ChatTemplate:
    """Jinja source as in tokenizer_config.json. variables: bos_token and the like, by name."""

    def __init__(self, source: str, variables: dict[str, str] | None = None) -> None:
        """Raises RequestError when the source isn't a template."""
        from jinja2 import TemplateError
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
        environment.filters["tojson"] = _to_json
        self.source = source
        self.variables = dict(variables or {})
        try:
            self._template = environment.from_string(source)
        except TemplateError as error:
            raise RequestError(f"the model's chat template can't be read: {_one_line(error)}") from None

    def render(self, messages: Sequence[dict[str, Any]], add_generation_prompt: bool = True) -> str:
        """The conversation as text; with add_generation_prompt it ends where the assistant begins to
        speak.
        """
        try:
            return self._template.render(
                messages=list(messages),
                add_generation_prompt=add_generation_prompt,
                tools=None,
                documents=None,
                **self.variables,
            )
        except RequestError:
            raise
        except Exception as error:  # whatever a template does wrong, from a type error to a loop without end
            raise RequestError(f"the model's chat template failed: {_one_line(error)}") from None


def check_messages(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Copies of the messages; raises RequestError, one line that names the message, unless each has a role
    and a text.
    """
    if isinstance(messages, str | bytes) or not isinstance(messages, Sequence):
        raise RequestError("messages must be a list of {role, content} objects")
    if not messages:
        raise RequestError("messages is empty: give at least one user message")
    for number, message in enumerate(messages):
        if not isinstance(message, dict):
            raise RequestError(
                f"message {number} must be an object with role and content, not {type(message).__name__}"
            )
        if message.get("role") not in ROLES:
            raise RequestError(
                f"message {number}: role must be one of {', '.join(ROLES)}, not {message.get('role')!r}"
            )
        if not isinstance(message.get("content"), str):
            raise RequestError(f"message {number}: content must be a string")
    try:
        copy = json.loads(json.dumps(list(messages), ensure_ascii=False).encode())
    except UnicodeEncodeError:
        raise RequestError("a message isn't valid UTF-8: convert it first") from None
    except (TypeError, ValueError) as error:
        raise RequestError(f"messages hold something that isn't JSON: {_one_line(error)}") from None
    return list(copy)


def load_template(folder: Path) -> ChatTemplate | None:
    """The folder's template with the names of its special tokens; see template_source."""
    source = template_source(folder)
    if source is None:
        return None
    config = _read_object(folder / "tokenizer_config.json")
    names = (k for k in config if k.endswith("_token"))
    variables = {k: v["content"] if isinstance(v, dict) else v for k in names if (v := config[k])}
    return ChatTemplate(source, {k: v for k, v in variables.items() if isinstance(v, str)})


def template_source(folder: Path) -> str | None:
    """chat_template.jinja, else chat_template of tokenizer_config.json, else None. Raises RequestError if
    unreadable.
    """
    source = _read_object(folder / "tokenizer_config.json").get("chat_template")
    if isinstance(source, list):  # several by name; "default" is the one for plain conversations
        source = {t.get("name"): t.get("template") for t in source if isinstance(t, dict)}.get("default")
    try:
        source = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        raise RequestError(f"{folder / 'chat_template.jinja'} can't be read: {_one_line(error)}") from None
    if source is not None and not isinstance(source, str):
        raise RequestError(f"{folder / 'tokenizer_config.json'}: chat_template must be a string")
    return source


def _read_object(path: Path) -> dict[str, Any]:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise RequestError(f"{path} can't be read as JSON: {_one_line(error)}") from None
    if not isinstance(raw, dict):
        raise RequestError(f"{path} must hold a JSON object")
    return raw


def _refuse(message: object) -> NoReturn:
    """What a template calls when a conversation isn't one that it can write."""
    raise RequestError(f"the model's chat template refuses these messages: {_one_line(message)}")


def _to_json(value: Any, indent: int | None = None, ensure_ascii: bool = False) -> str:
    """jinja's own tojson escapes HTML, which a chat template never wants."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)


def _one_line(message: object) -> str:
    return " ".join(str(message).split()) or type(message).__name__
