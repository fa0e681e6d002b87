"""How many containers a function should have. Pure arithmetic over one pool's figures.

Source:
    Modal's documented settings (modal 1.6.4, ``AutoscalerSettings`` and ``Function``):
    ``min_containers``, ``max_containers``, ``buffer_containers``, ``scaledown_window``, target concurrency.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from gpuserve.engine.protocol import api_pb2

__all__ = ["DEFAULT_SCALEDOWN_WINDOW_S", "Scaling", "desired_containers", "scaling_of"]

# Source: modal.com/docs/guide/scale: idle containers stay 60 s unless told otherwise.
DEFAULT_SCALEDOWN_WINDOW_S = 60


@dataclass(frozen=True, slots=True)
class Scaling:
    """The settings of one function, with the defaults filled in.

    Attributes:
        target: Inputs that one container should hold at a time, ≥ 1.
        most: Cap on containers, ≥ 1.
    """

    least: int
    most: int
    buffer: int
    scaledown_window_s: float
    target: int


def scaling_of(function: api_pb2.Function, overrides: api_pb2.AutoscalerSettings, machine_cap: int) -> Scaling:
    """Read the settings of *function*; *machine_cap* stands in where no ``max_containers`` was given."""
    settings = api_pb2.AutoscalerSettings()
    settings.CopyFrom(function.autoscaler_settings)
    settings.MergeFrom(overrides)
    most = settings.max_containers or function.concurrency_limit or machine_cap
    least = min(settings.min_containers or function.warm_pool_size, most)
    window = settings.scaledown_window or function.task_idle_timeout_secs or DEFAULT_SCALEDOWN_WINDOW_S
    target = function.target_concurrent_inputs or function.max_concurrent_inputs or function.batch_max_size or 1
    if function.is_server:
        target = max(1, int(settings.target_concurrency_float) or function.max_concurrent_inputs or 1)
    buffer = settings.buffer_containers or function._experimental_buffer_containers
    return Scaling(least, most, buffer, float(window), max(1, target))


def desired_containers(scaling: Scaling, *, queued: int, running: int) -> int:
    """How many containers the load asks for, within the limits.

    Examples:
        >>> few = Scaling(least=0, most=3, buffer=0, scaledown_window_s=60, target=1)
        >>> desired_containers(few, queued=0, running=0), desired_containers(few, queued=9, running=1)
        (0, 3)
    """
    wanted = math.ceil((queued + running) / scaling.target)
    if wanted:
        wanted += scaling.buffer
    return max(scaling.least, min(wanted, scaling.most))
