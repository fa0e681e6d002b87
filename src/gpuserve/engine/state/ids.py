"""Identifiers with Modal's prefixes: random, so that an id of an earlier engine never means another thing."""

from __future__ import annotations

import secrets
import string

__all__ = ["new_id"]

_ALPHABET = string.ascii_letters + string.digits
_LENGTH = 22
_HOW_MANY = len(_ALPHABET) ** _LENGTH


def new_id(prefix: str) -> str:
    """A fresh id such as ``fu-`` and 22 random letters and digits (131 bits).

    Examples:
        >>> len(new_id("fu"))
        25
    """
    number = secrets.randbelow(_HOW_MANY)  # asks the kernel once, where a choice of each letter asks it 22 times
    letters: list[str] = []
    for _ in range(_LENGTH):
        number, place = divmod(number, len(_ALPHABET))
        letters.append(_ALPHABET[place])
    return f"{prefix}-{''.join(letters)}"
