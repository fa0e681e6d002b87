"""Secrets that a container is given, by name."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from gpuserve.specs.base import Spec

__all__ = ["SecretSpec"]


class SecretSpec(Spec):
    """A secret of the workspace, by name, and the keys that must be in it.

    A missing key stops the start of the container with an error that names the secret and the key.

    Examples:
        >>> SecretSpec(name="huggingface", required_keys=("HF_TOKEN",)).name
        'huggingface'
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
    """the secret's name, as `modal secret create NAME KEY=VALUE` gave it"""
    required_keys: tuple[Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")], ...] = ()
    """environment variables that the secret must bring"""
