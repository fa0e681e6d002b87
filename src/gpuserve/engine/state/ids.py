"""Identifiers with Modal's prefixes: random, so that an id of an earlier engine never means another thing."""

from __future__ import annotations

import secrets
import string

__all__ = ["new_id"]

_ALPHABET = string.ascii_letters + string.digits
_LENGTH = 22


def new_id(prefix: str) -> str:
    """A fresh id such as ``fu-`` and 22 random letters and digits (131 bits).

    Examples:
        >>> len(new_id("fu"))
        25
    """
    return f"{prefix}-{''.join(secrets.choice(_ALPHABET) for _ in range(_LENGTH))}"
