"""What is in service under a name: an append-only history of promotions and rollbacks, written whole each time."""

from __future__ import annotations

import datetime as dt
import hashlib
import hmac
import json
from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gpuserve.exceptions import WeightsCorruptError, WeightsNotFoundError
from gpuserve.runtime.weights.manifest import strict_json

__all__ = ["AliasEntry", "ServedAlias"]

_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,95}$"


class AliasEntry(BaseModel):
    """One promotion, or one rollback.

    Attributes:
        verb: What was done.
        snapshot: What is in service since.
        at: When, in UTC.
        metrics: What the promoted one was measured at.
        evaluated_on: The digest of the rows that it was measured on; none where nobody measured.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    verb: Literal["promote", "rollback"]
    snapshot: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,400}$")]
    at: Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$")]
    metrics: Mapping[str, float] = {}
    evaluated_on: str = ""


class ServedAlias(BaseModel):
    """A name, and all that was in service under it.

    Examples:
        >>> alias = ServedAlias(name="bot").promoted("first").promoted("second")
        >>> alias.served.snapshot, alias.rolled_back().served.snapshot
        ('second', 'first')
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    schema_version: Literal[1] = 1
    name: Annotated[str, Field(pattern=_NAME)]
    history: Annotated[tuple[AliasEntry, ...], Field(strict=False)] = ()

    @property
    def standing(self) -> tuple[AliasEntry, ...]:
        """The promotions that no rollback took back, the one in service last."""
        standing: list[AliasEntry] = []
        for one in self.history:
            if one.verb == "promote":
                standing.append(one)
            elif standing:
                standing.pop()
        return tuple(standing)

    @property
    def served(self) -> AliasEntry | None:
        """What is in service; ``None`` if nothing was promoted yet."""
        return self.standing[-1] if self.standing else None

    def promoted(self, snapshot: str, metrics: Mapping[str, float] | None = None, evaluated_on: str = "") -> Self:
        """The same with *snapshot* in service; the same alias if it is already."""
        if self.served is not None and self.served.snapshot == snapshot:
            return self
        entry = AliasEntry(
            verb="promote", snapshot=snapshot, at=_now(), metrics=metrics or {}, evaluated_on=evaluated_on
        )
        return self.model_copy(update={"history": (*self.history, entry)})

    def rolled_back(self) -> Self:
        """The same with what was in service before.

        Raises:
            WeightsNotFoundError: If there is nothing before.
        """
        standing = self.standing
        if len(standing) < 2:  # noqa: PLR2004 (the one in service, and one before)
            have = standing[0].snapshot if standing else "nothing"
            raise WeightsNotFoundError(
                f"{self.name} has nothing to roll back to: {have} is in service, and nothing was before; "
                f"promote another: gpuserve weights promote {self.name} SNAPSHOT"
            )
        entry = AliasEntry(verb="rollback", snapshot=standing[-2].snapshot, at=_now())
        return self.model_copy(update={"history": (*self.history, entry)})

    def to_bytes(self) -> bytes:
        """The one form in which it is written."""
        body = self.model_dump(mode="json")
        return _canonical({**body, "checksum": hashlib.sha256(_canonical(body)).hexdigest()})

    @classmethod
    def from_bytes(cls, data: bytes, *, name: str) -> Self:
        """Read what `to_bytes` wrote, for the alias *name*.

        Raises:
            WeightsCorruptError: If it is anything else.
        """
        body = strict_json(data, f"{name}.json")
        if not isinstance(body, dict):
            raise WeightsCorruptError(f"{name}.json", "it is not a JSON object")
        body.pop("checksum", None)
        try:
            found = cls.model_validate_json(json.dumps(body))
        except ValidationError as error:
            raise WeightsCorruptError(f"{name}.json", str(error).splitlines()[-1]) from None
        if not hmac.compare_digest(found.to_bytes(), data) or found.name != name:
            raise WeightsCorruptError(f"{name}.json", "its checksum is not the one of its text, or it is another's")
        return found


def _now() -> str:
    return dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _canonical(body: object) -> bytes:
    return json.dumps(body, sort_keys=True, indent=1, ensure_ascii=True).encode() + b"\n"
