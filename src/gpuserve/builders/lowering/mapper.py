"""A mapper's driver, declared to modal, so that no laptop has to stay on."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Callable
from typing import Any

import modal

from gpuserve.builders.batch import BatchMapper
from gpuserve.builders.detached import MapperHandle
from gpuserve.builders.lowering.image import modal_image
from gpuserve.exceptions import DeclarationError, GpuserveError, RegistrationError
from gpuserve.runtime.batch.volumes import mounted_at
from gpuserve.specs.batch import Shards
from gpuserve.specs.image import ImageSpec

__all__ = ["RegisteredMapper", "register_mapper"]

_DAY_S = 24 * 3600
# Source: modal 1.6.4's Retries takes up to 10; each goes on where the one before was.
_ATTEMPTS = 10


class RegisteredMapper(modal.Cls):
    """A ``modal.Cls`` in all things; calling it gives a `MapperHandle`."""

    _gpuserve_plain: type[BatchMapper]
    _gpuserve_where: tuple[str, str]

    def __call__(self, **declared: Any) -> Any:
        """A mapper with *declared* over what the class declares, whose run may be detached."""
        return MapperHandle(self._gpuserve_plain(**declared), super().__call__(), declared, self._gpuserve_where)

    def __mro_entries__(self, _bases: tuple[Any, ...]) -> tuple[type, ...]:
        """Refuse to be a base class.

        Raises:
            RegistrationError: Always.
        """
        raise RegistrationError("a registered mapper cannot be subclassed; subclass its unregistered base")


def register_mapper(app: modal.App, **modal_arguments: Any) -> Callable[[type[BatchMapper]], Any]:
    """Declare the driver of a mapper on *app*: ``Mapper().run(detach=True)`` then runs it in Modal.

    The ledger and the output are in the volume that ``output=Shards(…, volume=…)`` names. A driver that is preempted,
    killed or out of time is run again by Modal, and goes on where it was.

    Args:
        app: The app that it belongs to.
        modal_arguments: Handed on to ``modal.App.cls``, e.g. ``volumes`` with the source.

    Raises:
        RegistrationError: If what is decorated is no mapper.
        DeclarationError: If its output names no volume.

    Examples:
        >>> import modal, gpuserve
        >>> app = modal.App("lengths")
        >>> @gpuserve.register_mapper(app)
        ... class Lengths(gpuserve.BatchMapper):
        ...     target = "lengths/count"
        ...     source = ["a", "bc"]
        ...     output = gpuserve.Shards("runs/lengths", volume="results")
        >>> isinstance(Lengths, modal.Cls)
        True
    """

    def decorate(cls: type[BatchMapper]) -> Any:
        if not (isinstance(cls, type) and issubclass(cls, BatchMapper)):
            raise RegistrationError(f"{cls!r} is not a BatchMapper; write class Name(gpuserve.BatchMapper)")
        output = cls.output
        if not isinstance(output, Shards) or output.volume is None:
            fault = f"output got {output!r}; it needs a volume: output = Shards('runs/docs', volume='results')"
            raise DeclarationError(cls.__qualname__, (fault,))
        volumes = {mounted_at(output.volume): modal.Volume.from_name(output.volume, create_if_missing=True)}
        arguments: dict[str, Any] = {
            "image": modal_image(cls.image if cls.image is not None else _image(output)),
            "timeout": _DAY_S,
            "retries": modal.Retries(max_retries=_ATTEMPTS, initial_delay=1.0),
            "max_containers": 1,
            **modal_arguments,
            "volumes": {**volumes, **modal_arguments.get("volumes", {})},
        }
        registered: Any = app.cls(**arguments)(_driver_class(cls))
        registered.__class__ = RegisteredMapper
        registered._gpuserve_plain, registered._gpuserve_where = cls, (app.name, cls.__name__)
        return registered

    return decorate


def _driver_class(cls: type[BatchMapper]) -> type:
    """What Modal finds under the mapper's name when it imports the file in the container."""

    async def drive(_self: Any, declared: dict[str, Any], retry: int | None = None) -> Any:
        from gpuserve.builders.batch_run import detached_driver_for

        try:
            # in a thread: it waits for files and volumes
            driver = await asyncio.to_thread(detached_driver_for, cls(**declared).declaration(), retry)
            return await driver.run()
        except GpuserveError as error:  # raised, Modal would run it again ten times, and each would end the same
            traceback.print_exc()
            return error

    drive.__qualname__ = f"{cls.__qualname__}.drive"
    body = {"drive": modal.method()(drive), "__module__": cls.__module__, "__qualname__": cls.__qualname__}
    return type(cls.__name__, (), {**body, "__doc__": cls.__doc__})


def _image(output: Shards) -> ImageSpec:
    spec = ImageSpec.debian()
    if output.format != "parquet":
        return spec
    import importlib.metadata

    return spec.pip(f"pyarrow=={importlib.metadata.version('pyarrow')}")
