"""Errors that reach a person as one line; anything else is a bug and shows only with --debug."""

from __future__ import annotations


class RedraftError(Exception):
    """Something failed while it ran: exit status 1. The message is one line that says why."""

    exit_code = 1


class RequestError(RedraftError):
    """The request itself is wrong (unknown model, bad flag, bad file): exit status 2. The message says what to do."""

    exit_code = 2
