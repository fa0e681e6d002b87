"""The one file that touches Modal's private names.

Everything else in the engine imports protobuf messages and the RPC list from here, so that a new
modal release is one file's work (and `tests/test_rpc_coverage.py` says what it brought).

Source:
    The wheel ``modal==1.6.4``: ``modal_proto.api_pb2`` and its service descriptor.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from modal_proto import api_pb2

__all__ = [
    "CONTAINER_ENTRYPOINT",
    "IMAGE_BUILDER_VERSION",
    "RPCS",
    "SERVICE",
    "WEB_SERVER_ADDRESS",
    "ContainerRuntime",
    "Empty",
    "Message",
    "Rpc",
    "adapt_runtime",
    "api_pb2",
    "container_runtime",
    "forget_client",
    "runtime_packages",
    "runtime_requirements",
]

SERVICE = "modal.client.ModalClient"
# What `python -m` runs in a container.
CONTAINER_ENTRYPOINT = "modal._container_entrypoint"
# How modal writes an image's layers, and what its client needs in containers. Source: a file of its ``modal/builder``.
IMAGE_BUILDER_VERSION = "2025.06"
# Where the port of a `@web_server` is looked for.
WEB_SERVER_ADDRESS = "127.0.0.2"


@dataclass(frozen=True, slots=True)
class Rpc:
    """One RPC of Modal's service, as its descriptor has it."""

    name: str
    request: type[Message]
    reply: type[Message]
    streams: bool

    @property
    def path(self) -> str:
        """The HTTP/2 path that a client calls."""
        return f"/{SERVICE}/{self.name}"


def _read_descriptor() -> dict[str, Rpc]:
    service: Any = api_pb2.DESCRIPTOR.services_by_name["ModalClient"]
    return {
        method.name: Rpc(
            name=method.name,
            request=GetMessageClass(method.input_type),
            reply=GetMessageClass(method.output_type),
            streams=bool(method.server_streaming),
        )
        for method in service.methods
    }


RPCS: dict[str, Rpc] = _read_descriptor()


@dataclass(frozen=True, slots=True)
class ContainerRuntime:
    """Modal's container runtime, as ``python -m`` `CONTAINER_ENTRYPOINT` runs it.

    Attributes:
        module: The module, whose ``__main__`` a container believes itself to be.
        reported: What it raises once a failed start was told by TaskResult.
    """

    module: ModuleType
    reported: type[BaseException]

    def run(self, arguments: bytes) -> None:
        """Serve inputs until the engine ends it; *arguments* is a serialised ContainerArguments."""
        from modal.client import Client

        adapt_runtime(arguments)
        self.module.main(api_pb2.ContainerArguments.FromString(arguments), Client.from_env())


def adapt_runtime(arguments: bytes) -> None:
    """Change in this process what Modal's runtime takes for granted of Modal's machines.

    It asks for the address of ``eth0``, to reach the server that a ``@web_server`` starts. Here that is
    a loopback address which is not 127.0.0.1: a server bound to 127.0.0.1 alone fails as it does on Modal.
    """
    definition = api_pb2.ContainerArguments.FromString(arguments).function_def
    hooks = [definition.webhook_config, *(one.webhook_config for one in definition.method_definitions.values())]
    if any(hook.type == api_pb2.WEBHOOK_TYPE_WEB_SERVER for hook in hooks):
        from modal._runtime import asgi

        def get_ip_address(ifname: bytes) -> str:  # noqa: ARG001 (the name it is called by)
            return WEB_SERVER_ADDRESS

        asgi.get_ip_address = get_ip_address


def container_runtime() -> ContainerRuntime:
    """Import the runtime: the slow part of a container's start, done once, before the fork."""
    import modal._container_entrypoint as module
    from modal._runtime.task_lifecycle_manager import UserException

    return ContainerRuntime(module, UserException)


def forget_client() -> None:
    """Close the client that modal keeps for the whole process, and forget what was looked up through it.

    The next use of modal reads the environment again. Apps, functions and named objects that a module defines
    are as they were when it had just been imported.
    """
    import gc

    from modal._environments import ENVIRONMENT_CACHE
    from modal._object import _Object
    from modal.client import Client, _Client

    known = _Client._client_from_env
    if known is None:
        return
    Client.from_env().close()  # the wrapper of the same client: it closes on modal's own loop
    ENVIRONMENT_CACHE.clear()
    for one in gc.get_objects():
        if issubclass(type(one), _Object) and getattr(one, "_client", None) is known:
            one._unhydrate()


def runtime_packages() -> list[Path]:
    """The folders of modal's client, which Modal mounts in every container beside the image's own packages.

    Source:
        modal 1.6.4's ``modal/mount.py``: ``_create_client_mount``.
    """
    import importlib

    names = ("modal", "modal_proto", "modal_version", "synchronicity")
    return [Path(str(importlib.import_module(name).__path__[0])) for name in names]


def runtime_requirements() -> str:
    """What the client needs in a container, pinned, as pip reads it."""
    import modal

    path = Path(str(modal.__path__[0])) / "builder" / f"{IMAGE_BUILDER_VERSION}.txt"
    return path.read_text(encoding="utf-8")
