"""The base of every declaration: frozen, checked at once, and faults told as sentences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self

from pydantic import BaseModel, ConfigDict, ModelWrapValidatorHandler, ValidationError, model_validator

from gpuserve.exceptions import DeclarationError

__all__ = ["Spec", "faults_of"]


class Spec(BaseModel):
    """A frozen declaration; making a wrong one raises one `DeclarationError` with every fault.

    Examples:
        >>> from gpuserve import DeclarationError, Scaling
        >>> try:
        ...     Scaling(max_containers=0, min_containers=-1)
        ... except DeclarationError as error:
        ...     print(len(error.faults))
        2
    """

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True, use_attribute_docstrings=True)

    @model_validator(mode="wrap")
    @classmethod
    def _named_by_text(cls, data: Any, make: ModelWrapValidatorHandler[Self]) -> Self:
        """Refuse a mapping that stands for a declaration and has names that are no text: Python itself would raise."""
        if isinstance(data, Mapping) and not all(isinstance(name, str) for name in data):
            known = ", ".join(sorted(cls.model_fields))
            raise ValueError(f"holds a name that is not text; write fields of {cls.__name__}: {known}")
        return make(data)

    if not TYPE_CHECKING:  # checkers keep pydantic's own signature, field by field

        def __init__(self, **data: Any) -> None:
            try:
                super().__init__(**data)
            except ValidationError as error:
                raise DeclarationError(type(self).__name__, faults_of(error, type(self))) from None


def faults_of(error: ValidationError, spec: type[BaseModel]) -> tuple[str, ...]:
    """One sentence a fault: the field, what it got, what is allowed, what the field is for."""
    faults: list[str] = []
    for one in error.errors(include_url=False):
        name = ".".join(str(part) for part in one["loc"])
        field = spec.model_fields.get(str(one["loc"][0])) if one["loc"] else None
        if one["type"] == "extra_forbidden":
            known = ", ".join(sorted(spec.model_fields))
            faults.append(f"{name} is not a field; write one of {known}")
            continue
        message = one["msg"].removeprefix("Value error, ")
        if not name:
            faults.append(message)
            continue
        got = "nothing" if one["type"] == "missing" else repr(one.get("input"))
        meaning = f" ({field.description.rstrip('.')})" if field is not None and field.description else ""
        faults.append(f"{name} got {got}: {message[:1].lower()}{message[1:]}{meaning}")
    return tuple(faults)
