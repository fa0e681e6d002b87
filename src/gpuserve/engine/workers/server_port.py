"""The port that the code of an ``@app.server`` or a ``@web_server`` listens on by itself."""

from __future__ import annotations

import socket

from gpuserve.engine.protocol import WEB_SERVER_ADDRESS, api_pb2
from gpuserve.exceptions import EngineError

__all__ = ["port_of", "refuse_taken_port"]


def port_of(definition: api_pb2.Function) -> int:
    """The port that containers of this function listen on; 0 for most functions."""
    if definition.is_server:
        return definition.http_config.port
    hooks = [definition.webhook_config, *(one.webhook_config for one in definition.method_definitions.values())]
    ports = (hook.web_server_port for hook in hooks if hook.type == api_pb2.WEBHOOK_TYPE_WEB_SERVER)
    return next(ports, 0)


def refuse_taken_port(definition: api_pb2.Function) -> None:
    """Refuse to start a container beside a program that has its port: requests would reach that program.

    Raises:
        EngineError: If something answers there already.
    """
    port = port_of(definition)
    if not port:
        return
    for address in ("127.0.0.1", WEB_SERVER_ADDRESS):
        with socket.socket() as probe:
            if probe.connect_ex((address, port)) == 0:
                raise EngineError(
                    f"port {port} of this machine is in use by another program or container, and "
                    f"{definition.function_name} listens on it: stop the other one, or use another port"
                )
