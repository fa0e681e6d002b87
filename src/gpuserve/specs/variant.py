"""Variants of a server: development, staging, production, each an overlay over one declaration."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from gpuserve.specs.base import Spec
from gpuserve.specs.http import Http
from gpuserve.specs.scaling import Scaling

__all__ = ["VARIANT", "Variant", "chosen_variant", "variant_faults"]

VARIANT = "GPUSERVE_VARIANT"
"""The variable that chooses; in a container it says what was chosen when the app was deployed."""


class Variant(Spec):
    """What differs in one variant; what is left out is as the class has it.

    Examples:
        >>> Variant(gpu="T4", scaling=Scaling(max_containers=2)).overlay()["gpu"]
        'T4'
    """

    gpu: Any = None
    """a GPU as in 'L4', or several in the order of preference"""
    scaling: Scaling | None = None
    """how many containers, e.g. Scaling(max_containers=2)"""
    secrets: tuple[Any, ...] | None = None
    """SecretSpec or modal.Secret objects, in place of the class's own"""
    http: Http | None = None
    """the HTTP face, in place of the class's own"""
    domain: Annotated[str | None, Field(pattern=r"^([a-z0-9]([a-z0-9-]*[a-z0-9])?\.)+[a-z]{2,}$")] = None
    """the domain that the HTTP face answers at, as in 'staging.example.com'"""

    def overlay(self) -> dict[str, Any]:
        """The declarations to put over the class's own."""
        fields = {name: getattr(self, name) for name in self.model_fields_set}
        return {name: value for name, value in fields.items() if name != "domain"}


def chosen_variant(variants: Mapping[str, Variant], environment: Mapping[str, str] | None = None) -> str | None:
    """The name of the variant that is chosen for a class with these; ``None`` for the class as it is.

    Raises:
        ValueError: If it has none of that name.
    """
    name = (os.environ if environment is None else environment).get(VARIANT, "")
    if not variants or not name:
        return None
    if name not in variants:
        raise ValueError(
            f"{VARIANT}={name!r} is no variant of it; choose one of {', '.join(variants)}, or none to take it as it is"
        )
    return name


def variant_faults(variants: Any) -> list[str]:
    """What is wrong with a class's ``variants`` as a whole."""
    if not isinstance(variants, Mapping):
        return [f"variants got {variants!r}; write {{'staging': gpuserve.Variant(gpu='T4')}}"]
    return [
        f"variants[{name!r}] got {one!r}; write {name!r}: gpuserve.Variant(gpu='T4')"
        for name, one in variants.items()
        if not (isinstance(one, Variant) and isinstance(name, str) and name.isidentifier())
    ]
