"""The values of secrets, blotted out of whatever gpuserve writes."""

from __future__ import annotations

import json
import os
import re
import urllib.parse
from collections.abc import Iterable, Mapping

from gpuserve.specs.http import API_KEYS
from gpuserve.specs.secret import SecretSpec
from gpuserve.specs.telemetry import ALERT_WEBHOOK

__all__ = ["Redactor", "redactor"]

# Shorter ones are words and numbers that stand everywhere; nobody should have such a secret.
_SHORTEST = 8
_BLOT = "[redacted]"
_ALWAYS = (API_KEYS, ALERT_WEBHOOK, "HF_TOKEN", "MODAL_TOKEN_SECRET")


class Redactor:
    """Knows what must not be seen.

    Examples:
        >>> hidden = Redactor()
        >>> hidden.add(["correct horse battery"])
        >>> hidden("the password is 'correct horse battery'")
        "the password is '[redacted]'"
        >>> hidden
        Redactor(2 values)
    """

    def __init__(self) -> None:
        self._values: set[str] = set()
        self._pattern: re.Pattern[str] | None = None

    def add(self, values: Iterable[str]) -> None:
        """Blot these out from now on, also as JSON or an address has them."""
        for value in values:
            if len(value) >= _SHORTEST:
                self._values |= {value, json.dumps(value)[1:-1], urllib.parse.quote(value, safe="")}
        longest_first = sorted(self._values, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None

    def add_secrets(self, secrets: Iterable[SecretSpec], environment: Mapping[str, str] = os.environ) -> None:
        """Blot out what the declared secrets brought, and each of the server's keys."""
        names = {*_ALWAYS, *(key for secret in secrets for key in secret.required_keys)}
        values = [environment[name] for name in names if name in environment]
        pairs = (part.strip() for part in environment.get(API_KEYS, "").split(","))
        self.add([*values, *(pair.partition(":")[2] for pair in pairs)])

    def __call__(self, text: str) -> str:
        """*text* without them."""
        return self._pattern.sub(_BLOT, text) if self._pattern is not None else text

    def __repr__(self) -> str:
        return f"Redactor({len(self._values)} values)"


redactor = Redactor()
"""What this process must not show."""
