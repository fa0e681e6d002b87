"""What is wrong with a function as it was declared, beyond what the client checks itself."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from gpuserve.calendar import cron_faults, period_faults, zone_faults
from gpuserve.engine.protocol import api_pb2

__all__ = ["GPU_TYPES", "gpu_faults", "schedule_faults"]

# By name, the most that one container may have. Source: Modal's guide to GPU acceleration.
GPU_TYPES = {
    "T4": 8, "L4": 8, "A10": 4, "L40S": 8, "A100": 8, "A100-40GB": 8, "A100-80GB": 8, "RTX-PRO-6000": 8, "H100": 8,
    "H100!": 8, "H200": 8, "B200": 8, "B200+": 8,
}  # fmt: skip
# Taken for another by Modal, and so still written. Source: older editions of the same guide.
_ALIASES = {"A10G": "A10", "ANY": "T4"}


def gpu_faults(definitions: Iterable[api_pb2.Function]) -> tuple[str, ...]:
    """What is wrong with the GPUs that these alternatives of one function ask for."""
    faults: list[str] = []
    for definition in definitions:
        config = definition.resources.gpu_config
        if not config.gpu_type:
            continue
        most = GPU_TYPES.get(_ALIASES.get(config.gpu_type, config.gpu_type))
        if most is None:
            near = difflib.get_close_matches(config.gpu_type, GPU_TYPES, n=1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            faults.append(f"gpu got '{config.gpu_type}', and Modal has {', '.join(GPU_TYPES)}{hint}")
        elif not 1 <= config.count <= most:
            faults.append(f"gpu got '{config.gpu_type}:{config.count}', and a container has 1 to {most} of them")
    return tuple(faults)


def schedule_faults(schedule: api_pb2.Schedule) -> tuple[str, ...]:
    """What is wrong with a schedule."""
    kind = schedule.WhichOneof("schedule_oneof")
    if kind == "cron":
        cron = schedule.cron
        faults = [*cron_faults(cron.cron_string), *zone_faults(cron.timezone or "UTC")]
        return (f"schedule Cron('{cron.cron_string}'): {', '.join(faults)}",) if faults else ()
    if kind == "period":
        period = schedule.period
        units = {field.name: getattr(period, field.name) for field in period.DESCRIPTOR.fields}
        faults = [*period_faults(**units)]
        return (f"schedule Period: {', '.join(faults)}",) if faults else ()
    return ()
