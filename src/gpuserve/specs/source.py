"""Where model weights come from: the hub, a folder, another volume; or an adapter from any of these."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from gpuserve.specs.base import Spec

__all__ = [
    "AdapterSource",
    "AliasSource",
    "AnySource",
    "DeclaredSource",
    "FolderSource",
    "HubSource",
    "PlainSource",
    "VolumeSource",
]

# Source: the hub's own rule for repository names (huggingface_hub, validate_repo_id), 96 characters at most.
_REPO = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,95}(/[A-Za-z0-9][A-Za-z0-9._-]{0,95})?$"
_COMMIT = re.compile(r"[0-9a-f]{40}")
_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,95}$"
_DIGEST = r"^[0-9a-f]{64}$"


class _Selection(Spec):
    """Which files of the source are taken."""

    include: tuple[Annotated[str, Field(min_length=1, max_length=300)], ...] = ()
    """patterns of the files to take, as in '*.json'; all safe ones unless given"""
    exclude: tuple[Annotated[str, Field(min_length=1, max_length=300)], ...] = ()
    """patterns of files to leave"""
    allow_unsafe: tuple[Annotated[str, Field(min_length=1, max_length=300)], ...] = ()
    """files that may run code when loaded, each by its path, as in 'pytorch_model.bin'"""

    @field_validator("allow_unsafe")
    @classmethod
    def _named(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if any(mark in name for mark in "*?[") or PurePosixPath(name).is_absolute() or ".." in name.split("/"):
                raise ValueError(f"{name!r} is not one file; write each by its path, without patterns")
        return value

    @property
    def selection_digest(self) -> str:
        """Eight hexadecimal digits that tell one selection of files from another."""
        chosen = [sorted(self.include), sorted(self.exclude), sorted(self.allow_unsafe)]
        return hashlib.sha256(json.dumps(chosen).encode()).hexdigest()[:8]


class HubSource(_Selection):
    """A model repository on the Hugging Face Hub, at a commit.

    Examples:
        >>> HubSource("org/model", revision="0123456789abcdef0123456789abcdef01234567").is_pinned
        True
        >>> HubSource("org/model").is_pinned
        False
    """

    kind: Literal["hub"] = "hub"
    repo: Annotated[str, Field(pattern=_REPO)]
    """the repository, as in 'sentence-transformers/all-MiniLM-L6-v2'"""
    revision: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,199}$")] = "main"
    """a commit of 40 hexadecimal digits; a branch is resolved once, at the first fetch, and recorded"""

    if TYPE_CHECKING:

        def __init__(self, repo: str, /, *, revision: str = "main", include: tuple[str, ...] = (),
                     exclude: tuple[str, ...] = (), allow_unsafe: tuple[str, ...] = ()) -> None: ...  # fmt: skip

    else:

        def __init__(self, repo: Any = "", /, **data: Any) -> None:
            super().__init__(**({"repo": repo} if repo else {}), **data)

    @field_validator("repo", "revision")
    @classmethod
    def _no_way_out(cls, value: str) -> str:
        if ".." in value or "--" in value or value.endswith((".git", "/")):
            raise ValueError("holds '..' or '--', or ends with '.git' or '/'; write it as the hub shows it")
        return value

    @property
    def is_pinned(self) -> bool:
        """Whether the revision is a commit, which can never mean anything else tomorrow."""
        return _COMMIT.fullmatch(self.revision) is not None

    @property
    def label(self) -> str:
        """The source's name in one word, fit for a folder's name."""
        return f"hub--{self.repo.replace('/', '--')}"

    @property
    def alias(self) -> str:
        """The name under which what this source was resolved to is recorded."""
        return f"{self.label}--{self.revision.replace('/', '--')}--{self.selection_digest}"

    def __str__(self) -> str:
        return f"{self.repo}@{self.revision}"


class FolderSource(_Selection):
    """A folder that the fetch can see: of the image, of a mount, of this machine.

    Examples:
        >>> FolderSource("/root/my-model").name
        'my-model'
    """

    kind: Literal["folder"] = "folder"
    path: str
    """the folder, absolute where a container fetches"""
    name: Annotated[str, Field(pattern=_NAME)] = ""
    """what the snapshot is called; the folder's own name unless given"""
    digest: Annotated[str | None, Field(pattern=_DIGEST)] = None
    """the content's digest, as a fetch reports it; another content is then refused"""

    if TYPE_CHECKING:

        def __init__(self, path: str | Path, /, *, name: str = "", digest: str | None = None,
                     include: tuple[str, ...] = (), exclude: tuple[str, ...] = (),
                     allow_unsafe: tuple[str, ...] = ()) -> None: ...  # fmt: skip

    else:

        def __init__(self, path: Any = "", /, **data: Any) -> None:
            super().__init__(**({"path": str(path)} if path else {}), **data)

    @model_validator(mode="before")
    @classmethod
    def _named_after_the_folder(cls, data: object) -> object:
        if isinstance(data, dict) and not data.get("name") and isinstance(data.get("path"), str):
            return {**data, "name": PurePosixPath(data["path"]).name}
        return data

    @property
    def label(self) -> str:
        """The source's name in one word, fit for a folder's name."""
        return f"{self.kind}--{self.name}"

    @property
    def alias(self) -> str:
        """The name under which what this source was resolved to is recorded."""
        return f"{self.label}--{self.selection_digest}"

    def __str__(self) -> str:
        return self.path


class VolumeSource(_Selection):
    """A folder of another Modal Volume, which the fetch mounts read-only.

    Examples:
        >>> VolumeSource("training", path="runs/7/final", name="support-bot").mount_path
        '/gpuserve-source/training'
    """

    kind: Literal["volume"] = "volume"
    volume: Annotated[str, Field(pattern=_NAME)]
    """the volume's name"""
    path: Annotated[str, Field(max_length=1000)] = ""
    """the folder in it"""
    name: Annotated[str, Field(pattern=_NAME)] = ""
    """what the snapshot is called; the folder's own name, or the volume's, unless given"""
    digest: Annotated[str | None, Field(pattern=_DIGEST)] = None
    """the content's digest, as a fetch reports it; another content is then refused"""

    if TYPE_CHECKING:

        def __init__(self, volume: str, /, *, path: str = "", name: str = "", digest: str | None = None,
                     include: tuple[str, ...] = (), exclude: tuple[str, ...] = (),
                     allow_unsafe: tuple[str, ...] = ()) -> None: ...  # fmt: skip

    else:

        def __init__(self, volume: Any = "", /, **data: Any) -> None:
            super().__init__(**({"volume": volume} if volume else {}), **data)

    @model_validator(mode="before")
    @classmethod
    def _named_after_the_folder(cls, data: object) -> object:
        if isinstance(data, dict) and not data.get("name"):
            return {**data, "name": PurePosixPath(str(data.get("path") or "")).name or data.get("volume")}
        return data

    @field_validator("path")
    @classmethod
    def _inside(cls, value: str) -> str:
        if value.startswith("/") or ".." in value.split("/"):
            raise ValueError("leads out of the volume; write it relative to the volume's root")
        return value

    @property
    def mount_path(self) -> str:
        """Where the fetch sees the volume."""
        return f"/gpuserve-source/{self.volume}"

    @property
    def label(self) -> str:
        """The source's name in one word, fit for a folder's name."""
        return f"{self.kind}--{self.name}"

    @property
    def alias(self) -> str:
        """The name under which what this source was resolved to is recorded."""
        return f"{self.label}--{self.selection_digest}"

    def __str__(self) -> str:
        return f"{self.volume}:{self.path}"


PlainSource = Annotated[HubSource | FolderSource | VolumeSource, Field(discriminator="kind")]


class AdapterSource(Spec):
    """A LoRA adapter from any of the other sources: its two files and the tokenizer's, and nothing else.

    Examples:
        >>> adapter = AdapterSource(FolderSource("/runs/7"), base="org/model")
        >>> adapter.label
        'adapter--folder--7'
    """

    kind: Literal["adapter"] = "adapter"
    origin: PlainSource
    """where the adapter lies"""
    base: Annotated[str | None, Field(pattern=_REPO)] = None
    """the model that it adapts; an adapter of another one is refused"""

    if TYPE_CHECKING:

        def __init__(self, origin: HubSource | FolderSource | VolumeSource, /, *, base: str | None = None) -> None: ...

    else:

        def __init__(self, origin: Any = None, /, **data: Any) -> None:
            super().__init__(**({"origin": origin} if origin else {}), **data)

    @property
    def label(self) -> str:
        """The source's name in one word, fit for a folder's name."""
        return f"adapter--{self.origin.label}"

    @property
    def alias(self) -> str:
        """The name under which what this source was resolved to is recorded."""
        return f"adapter--{self.origin.alias}"

    def narrowed(self) -> HubSource | FolderSource | VolumeSource:
        """The origin, with only an adapter's files taken."""
        patterns = ("adapter_config.json", "adapter_model.safetensors", "*token*", "*.jinja", "vocab.*", "merges.txt")
        return self.origin.model_copy(update={"include": (*self.origin.include, *patterns)})

    def __str__(self) -> str:
        return f"the adapter {self.origin}"

    @classmethod
    def of(cls, origin: HubSource | FolderSource | VolumeSource, *, base: str | None = None) -> Self:
        """The same, by a name that reads well in a pipeline."""
        return cls(origin, base=base)


class AliasSource(Spec):
    """Whatever snapshot of the volume is in service under a name: what a `FineTuneJob` or a person promoted last.

    A container that starts reads the name once, and then loads that snapshot, verified as any other.

    Examples:
        >>> AliasSource("support-bot").label
        'alias--support-bot'
    """

    kind: Literal["alias"] = "alias"
    name: Annotated[str, Field(pattern=_NAME)]
    """the served name, as in `gpuserve weights promote NAME SNAPSHOT`"""

    if TYPE_CHECKING:

        def __init__(self, name: str, /) -> None: ...

    else:

        def __init__(self, name: Any = "", /, **data: Any) -> None:
            super().__init__(**({"name": name} if name else {}), **data)

    @property
    def label(self) -> str:
        """The source's name in one word."""
        return f"alias--{self.name}"

    @property
    def alias(self) -> str:
        """The same: an alias stands for what is promoted, and is resolved to nothing else."""
        return self.label

    def __str__(self) -> str:
        return f"the served alias {self.name}"


AnySource = Annotated[HubSource | FolderSource | VolumeSource | AdapterSource, Field(discriminator="kind")]
DeclaredSource = Annotated[
    HubSource | FolderSource | VolumeSource | AdapterSource | AliasSource, Field(discriminator="kind")
]
