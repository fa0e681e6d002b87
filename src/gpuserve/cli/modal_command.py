"""Every command of the modal CLI, run on the local engine."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType

import click

__all__ = ["INTERRUPTED", "KNOWN", "call_modal", "modal_commands"]

INTERRUPTED = 130
_PR_SET_PDEATHSIG = 1

# So that a known command need not wait for modal's import here. Source: modal 1.6.4's entry point.
KNOWN = frozenset(
    {
        "app", "billing", "changelog", "config", "container", "curl", "dashboard", "deploy", "dict", "endpoint",
        "environment", "function", "image", "nfs", "profile", "queue", "run", "secret", "serve", "server", "setup",
        "shell", "skills", "token", "volume", "workspace",
    }
)  # fmt: skip


def modal_commands() -> dict[str, click.Command]:
    """Modal's own commands by name, in its own order."""
    from modal.cli.entry_point import entrypoint_cli

    return dict(entrypoint_cli.commands)


def call_modal(arguments: list[str], engine: Mapping[str, str]) -> int:
    """Run ``modal ARGUMENTS``, and return its exit code; 130 where it was broken off.

    Ctrl-C reaches the whole foreground group, so modal has it too; SIGTERM reaches us alone, and is passed on
    as what modal ends gracefully for. If we are killed, so is modal.
    """
    with _noting_signals() as noted:
        us = os.getpid()
        child = subprocess.Popen(
            [sys.executable, "-P", "-m", "modal", *arguments],
            env={**os.environ, **engine},
            preexec_fn=lambda: _die_with(us),  # noqa: PLW1509 (this process has one thread)
        )
        noted.adopt(child)
        code = child.wait()
    if noted.broken_off:
        return INTERRUPTED
    return 128 - code if code < 0 else code


class _Noted:
    """Whether somebody broke it off, and whom to tell."""

    def __init__(self) -> None:
        self.broken_off = self._terminated = False
        self._child: subprocess.Popen[bytes] | None = None

    def adopt(self, child: subprocess.Popen[bytes]) -> None:
        self._child = child
        if self._terminated:
            child.send_signal(signal.SIGINT)

    def on_signal(self, number: int, _frame: FrameType | None) -> None:
        self.broken_off = True
        if number == signal.SIGTERM:
            self._terminated = True
            if self._child is not None:
                self._child.send_signal(signal.SIGINT)


@contextmanager
def _noting_signals() -> Iterator[_Noted]:
    noted = _Noted()
    before = {number: signal.signal(number, noted.on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield noted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _die_with(parent: int) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(INTERRUPTED)
