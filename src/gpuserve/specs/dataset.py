"""Where the rows that a model is tuned on come from: a file, a volume, the hub."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, field_validator

from gpuserve.specs.base import Spec

__all__ = ["AnyDataset", "FileDataset", "HubDataset", "VolumeDataset"]

# Source: the hub's own rule for repository names (huggingface_hub, validate_repo_id).
_REPO = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,95}(/[A-Za-z0-9][A-Za-z0-9._-]{0,95})?$"
_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"
_SUFFIXES = (".jsonl", ".parquet")


def _readable(path: str) -> str:
    if PurePosixPath(path).suffix.lower() not in _SUFFIXES:
        raise ValueError(f"{path!r} is neither .jsonl nor .parquet; convert it, or override rows()")
    return path


class FileDataset(Spec):
    """A JSONL or Parquet file that the container sees, e.g. one that the image brings with ``local_file``.

    Examples:
        >>> FileDataset("/root/feedback.jsonl").path
        '/root/feedback.jsonl'
    """

    kind: Literal["file"] = "file"
    path: str
    """the file, absolute where a container reads it"""

    if TYPE_CHECKING:

        def __init__(self, path: str | Path, /) -> None: ...

    else:

        def __init__(self, path: Any = "", /, **data: Any) -> None:
            super().__init__(**({"path": str(path)} if path else {}), **data)

    @field_validator("path")
    @classmethod
    def _known_form(cls, value: str) -> str:
        return _readable(value)

    def __str__(self) -> str:
        return self.path


class VolumeDataset(Spec):
    """A JSONL or Parquet file in a Modal Volume, which training mounts read-only.

    Examples:
        >>> VolumeDataset("feedback", "2026/november.jsonl").mount_path
        '/gpuserve-dataset/feedback'
    """

    kind: Literal["volume"] = "volume"
    volume: Annotated[str, Field(pattern=_NAME)]
    """the volume's name"""
    path: Annotated[str, Field(max_length=1000)]
    """the file in it"""

    if TYPE_CHECKING:

        def __init__(self, volume: str, path: str, /) -> None: ...

    else:

        def __init__(self, volume: Any = "", path: Any = "", /, **data: Any) -> None:
            given = {"volume": volume} if volume else {}
            super().__init__(**given, **({"path": path} if path else {}), **data)

    @field_validator("path")
    @classmethod
    def _inside(cls, value: str) -> str:
        if value.startswith("/") or ".." in value.split("/"):
            raise ValueError("leads out of the volume; write it relative to the volume's root")
        return _readable(value)

    @property
    def mount_path(self) -> str:
        """Where training sees the volume."""
        return f"/gpuserve-dataset/{self.volume}"

    def __str__(self) -> str:
        return f"{self.volume}:{self.path}"


class HubDataset(Spec):
    """A dataset of the Hugging Face Hub, read by ``datasets.load_dataset``; no code of the repository is run.

    Examples:
        >>> str(HubDataset("your-org/daily-feedback", split="train[:90%]"))
        'your-org/daily-feedback@main[train[:90%]]'
    """

    kind: Literal["hub"] = "hub"
    repo: Annotated[str, Field(pattern=_REPO)]
    """the repository, as in 'your-org/daily-feedback'"""
    split: Annotated[str, Field(min_length=1, max_length=200)] = "train"
    """the split, as in 'train' or 'train[:90%]'"""
    subset: Annotated[str, Field(max_length=200)] = ""
    """the dataset's configuration, where it has several"""
    revision: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,199}$")] = "main"
    """a commit of 40 hexadecimal digits; a branch may mean other rows tomorrow, and a run is then not resumed"""

    if TYPE_CHECKING:

        def __init__(self, repo: str, /, *, split: str = "train", subset: str = "", revision: str = "main") -> None: ...

    else:

        def __init__(self, repo: Any = "", /, **data: Any) -> None:
            super().__init__(**({"repo": repo} if repo else {}), **data)

    def __str__(self) -> str:
        return f"{self.repo}@{self.revision}[{self.split}]"


AnyDataset = Annotated[FileDataset | VolumeDataset | HubDataset, Field(discriminator="kind")]
