"""What a weights cache declares: a source, a volume, and how it is fetched."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import Field, field_validator

from gpuserve.specs.base import Spec
from gpuserve.specs.image import ImageSpec
from gpuserve.specs.secret import SecretSpec
from gpuserve.specs.source import DeclaredSource

__all__ = ["WeightsDeclaration"]

_DAY_S = 24 * 3600


class WeightsDeclaration(Spec):
    """The fields of a `VolumeWeightsCache`; see there."""

    source: DeclaredSource
    """where the weights come from, e.g. HubSource('org/model', revision='<commit>')"""
    volume: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")] = "gpuserve-weights"
    """the Modal Volume that holds them; several caches may share one"""
    mount_path: str = ""
    """where readers see the volume; /gpuserve-weights/VOLUME unless given"""
    token: SecretSpec | None = None
    """the secret with HF_TOKEN, for private and gated repositories"""
    env: Mapping[str, str] = {}
    """environment variables of the fetch, e.g. HF_ENDPOINT"""
    image: ImageSpec | None = None
    """the fetch's image, which must bring huggingface_hub; one is made unless given"""
    workers: Annotated[int, Field(ge=1, le=64)] = 8
    """files fetched at once, 1 to 64"""
    cpu: Annotated[float, Field(gt=0, le=64)] = 2.0
    """physical cores of the fetch"""
    memory_mib: Annotated[int, Field(ge=128, le=344_064)] = 2048
    """MiB of memory of the fetch"""
    timeout_s: Annotated[int, Field(ge=60, le=_DAY_S)] = 6 * 3600
    """seconds that a fetch may take, 60 to 86,400"""

    @field_validator("mount_path")
    @classmethod
    def _absolute(cls, value: str) -> str:
        if value and (not value.startswith("/") or ".." in value.split("/") or value == "/"):
            raise ValueError(f"{value!r} is not a folder to mount at; write an absolute path such as '/weights'")
        return value

    @property
    def mounted_at(self) -> str:
        """Where the volume is mounted."""
        return self.mount_path or f"/gpuserve-weights/{self.volume}"
