"""Secrets: kept by key, merged into a container's environment, never logged."""

from __future__ import annotations

import shlex
from collections.abc import Iterable

from grpclib import Status

from gpuserve.engine.protocol import Empty, api_pb2
from gpuserve.engine.rpc import Caller, refuse
from gpuserve.engine.services.environments import DEFAULT_ENVIRONMENT, require_environment
from gpuserve.engine.services.named import NamedObject, NamedObjects
from gpuserve.engine.store import Store

__all__ = ["SecretService"]


def _pack(values: dict[str, str]) -> bytes:
    return api_pb2.SecretGetOrCreateRequest(env_dict=values).SerializeToString(deterministic=True)


def _unpack(body: bytes) -> dict[str, str]:
    return dict(api_pb2.SecretGetOrCreateRequest.FromString(body).env_dict)


def _creation(name: str, environment: str, keys: Iterable[str], force: str = "") -> str:
    """The command to type; on this engine with `gpuserve local` before it in place of `modal`."""
    where = "" if environment == DEFAULT_ENVIRONMENT else f"--env {shlex.quote(environment)} "
    pairs = " ".join(f"{shlex.quote(key)}=VALUE" for key in keys)
    return f"modal secret create {where}{force}{shlex.quote(name)} {pairs} (here: gpuserve local secret create …)"


class SecretService:
    """All Secret RPCs."""

    def __init__(self, store: Store) -> None:
        """Keep secrets in *store*, a file that only its owner can read."""
        self._store, self._objects = store, NamedObjects(store, "secret", "st")

    def environment_of(self, secret_ids: Iterable[str]) -> dict[str, str]:
        """The variables of these secrets; a later one wins."""
        merged: dict[str, str] = {}
        for secret_id in secret_ids:
            merged.update(_unpack(self._objects.get(secret_id).body))
        return merged

    def _metadata(self, one: NamedObject) -> api_pb2.SecretMetadata:
        return api_pb2.SecretMetadata(
            name=one.name,
            creation_info=one.creation_info,
            keys=sorted(_unpack(one.body)),
            environment_name=one.environment,
        )

    def SecretGetOrCreate(
        self, request: api_pb2.SecretGetOrCreateRequest, caller: Caller
    ) -> api_pb2.SecretGetOrCreateResponse:
        """Find or create a secret; a missing required key is refused by name."""
        if (
            caller.is_container
            and request.object_creation_type == api_pb2.OBJECT_CREATION_TYPE_CREATE_OVERWRITE_IF_EXISTS
        ):
            refuse(Status.PERMISSION_DENIED, "a container may not overwrite a secret")
        name, environment = request.deployment_name, request.environment_name or DEFAULT_ENVIRONMENT
        require_environment(self._store, environment)
        looked_up = request.object_creation_type == api_pb2.OBJECT_CREATION_TYPE_UNSPECIFIED
        if looked_up and self._objects.find(name, environment) is None:
            command = _creation(name, environment, request.required_keys or ["KEY"])
            refuse(Status.NOT_FOUND, f"secret '{name}' does not exist in environment '{environment}': {command}")
        one = self._objects.get_or_create(
            request.deployment_name,
            request.environment_name,
            request.object_creation_type,
            app_id=request.app_id,
            body=_pack(dict(request.env_dict)),
        )
        missing = sorted(set(request.required_keys) - set(_unpack(one.body)))
        if missing:
            command = _creation(one.name, one.environment, sorted({*_unpack(one.body), *missing}), "--force ")
            refuse(
                Status.FAILED_PRECONDITION,
                f"secret '{one.name}' lacks the required keys: {', '.join(missing)}. Give it all its keys: {command}",
            )
        return api_pb2.SecretGetOrCreateResponse(secret_id=one.id, metadata=self._metadata(self._objects.get(one.id)))

    def SecretUpdate(self, request: api_pb2.SecretUpdateRequest, _caller: Caller) -> Empty:
        """Set keys; containers that start from now on see the new values."""
        values = _unpack(self._objects.get(request.secret_id).body)
        for update in request.updates:
            values[update.key] = update.value
        self._objects.set_body(request.secret_id, _pack(values))
        return Empty()

    async def SecretGetInfo(
        self, request: api_pb2.SecretGetInfoRequest, _caller: Caller
    ) -> api_pb2.SecretGetInfoResponse:
        """The keys of a secret, never its values."""
        return api_pb2.SecretGetInfoResponse(metadata=self._metadata(self._objects.get(request.secret_id)))

    async def SecretList(self, request: api_pb2.SecretListRequest, _caller: Caller) -> api_pb2.SecretListResponse:
        """Named secrets, newest first."""
        items = [
            api_pb2.SecretListItem(
                label=one.name,
                created_at=one.created_at,
                environment_name=one.environment,
                secret_id=one.id,
                metadata=self._metadata(one),
            )
            for one in self._objects.list(request.environment_name, request.pagination)
        ]
        return api_pb2.SecretListResponse(items=items, environment_name=request.environment_name)

    def SecretDelete(self, request: api_pb2.SecretDeleteRequest, _caller: Caller) -> Empty:
        """Delete a secret; running containers keep what they were given."""
        self._objects.delete(request.secret_id)
        return Empty()
