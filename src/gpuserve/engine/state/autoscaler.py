"""How many containers a function should have. Pure arithmetic over one pool's figures.

Source:
    Modal's documented settings (modal 1.6.4, ``AutoscalerSettings`` and ``Function``):
    ``min_containers``, ``max_containers``, ``buffer_containers``, ``scaledown_window``, target concurrency.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from gpuserve.engine.protocol import api_pb2

__all__ = ["DEFAULT_SCALEDOWN_WINDOW_S", "Scaling", "desired_containers", "scaling_of", "settings_of"]

# Source: modal.com/docs/guide/scale: idle containers stay 60 s unless told otherwise.
DEFAULT_SCALEDOWN_WINDOW_S = 60
# What containers that only wait may add to this machine's cap: a function that calls itself without end
# must not take the machine with it. Source: as many as Modal's smallest plan has in all.
_MOST_WAITING = 100


@dataclass(frozen=True, slots=True)
class Scaling:
    """The settings of one function, with the defaults filled in.

    Attributes:
        target: Inputs that one container should hold at a time, ≥ 1.
        most: Cap on containers, ≥ 1.
        yields: The cap is this machine's and not the user's: containers that only wait do not count.
    """

    least: int
    most: int
    buffer: int
    scaledown_window_s: float
    target: int
    yields: bool = False

    def cap(self, waiting: int = 0) -> int:
        """The most containers while *waiting* inputs do nothing but wait for what others do.

        An input that waits for its children, or for others to meet it at a queue, holds its container.
        Were it counted, a function that calls itself would stop for good at the machine's cap.

        Examples:
            >>> few = Scaling(least=0, most=4, buffer=0, scaledown_window_s=60, target=1, yields=True)
            >>> few.cap(), few.cap(waiting=4)
            (4, 8)
        """
        return self.most + min(math.ceil(waiting / self.target), _MOST_WAITING) if self.yields else self.most


def settings_of(function: api_pb2.Function, overrides: api_pb2.AutoscalerSettings) -> api_pb2.AutoscalerSettings:
    """The settings in force: what was changed while it runs, over what was declared, over older fields."""
    settings = api_pb2.AutoscalerSettings(
        min_containers=function.warm_pool_size,
        max_containers=function.concurrency_limit,
        buffer_containers=function._experimental_buffer_containers,
        scaledown_window=function.task_idle_timeout_secs,
    )
    settings.MergeFrom(function.autoscaler_settings)
    settings.MergeFrom(overrides)
    settings.scaledown_window = settings.scaledown_window or DEFAULT_SCALEDOWN_WINDOW_S
    return settings


def scaling_of(
    function: api_pb2.Function,
    overrides: api_pb2.AutoscalerSettings,
    machine_cap: int,
    *,
    keeps_none: bool = False,
) -> Scaling:
    """Read the settings of *function*.

    *machine_cap* stands in where no ``max_containers`` was given. With *keeps_none* there is no
    minimum and no buffer: the function was removed, or cannot start without parameters.
    """
    settings = settings_of(function, overrides)
    buffer = 0 if keeps_none else settings.buffer_containers
    least = 0 if keeps_none else settings.min_containers
    most = settings.max_containers or max(machine_cap, least + buffer)
    target = function.target_concurrent_inputs or function.max_concurrent_inputs or function.batch_max_size or 1
    if function.is_server:
        target = max(1, int(settings.target_concurrency_float) or function.max_concurrent_inputs or 1)
    return Scaling(
        least=min(least, most),
        most=most,
        buffer=buffer,
        scaledown_window_s=float(settings.scaledown_window),
        target=max(1, target),
        yields=not settings.max_containers,
    )


def desired_containers(scaling: Scaling, *, queued: int, running: int, alone: int = 0, waiting: int = 0) -> int:
    """How many containers the load asks for, within the limits.

    *alone* of the *queued* inputs take a whole container each; *waiting* of the *running* ones wait
    for others.

    Examples:
        >>> few = Scaling(least=0, most=3, buffer=0, scaledown_window_s=60, target=1)
        >>> desired_containers(few, queued=0, running=0), desired_containers(few, queued=9, running=1)
        (0, 3)
    """
    wanted = math.ceil((queued - alone + running) / scaling.target) + alone
    if wanted:
        wanted += scaling.buffer
    return max(scaling.least, min(wanted, scaling.cap(waiting)))
