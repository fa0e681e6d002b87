"""Secrets, seen from the container that was given them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping

from gpuserve.exceptions import SecretError
from gpuserve.specs.secret import SecretSpec

__all__ = ["require_keys"]


def require_keys(secrets: Iterable[SecretSpec], environment: Mapping[str, str] | None = None) -> None:
    """See that each secret brought the keys that it must, and that none is empty.

    Modal looks when an app is deployed; a secret that was changed since is only seen by the containers
    that start with it. A server calls this before it loads; call it first in a function of your own.

    Raises:
        SecretError: With every key that is missing and its secret; never with a value.

    Examples:
        >>> require_keys([SecretSpec(name="hub", required_keys=("HF_TOKEN",))], {"HF_TOKEN": "hf_x"})
    """
    given = os.environ if environment is None else environment
    missing = {spec.name: [key for key in spec.required_keys if not given.get(key)] for spec in secrets}
    missing = {name: keys for name, keys in missing.items() if keys}
    if missing:
        raise SecretError(missing)
