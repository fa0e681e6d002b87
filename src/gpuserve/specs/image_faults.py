"""What can be wrong with an image's declaration, each as a sentence with the line to write instead."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath

from gpuserve.specs.secret import SecretSpec

__all__ = [
    "apt_faults",
    "index_faults",
    "is_here",
    "line_faults",
    "local_faults",
    "name_faults",
    "path_faults",
    "project_faults",
    "python_faults",
    "reference_faults",
    "secret_faults",
    "variable_faults",
]

_PYTHONS = ("3.11", "3.12", "3.13", "3.14", "3.15")  # Source: modal 1.6.4's supported versions
_APT = re.compile(r"[a-z0-9][a-z0-9+.:-]*(=[A-Za-z0-9.+:~-]+)?")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_INDEX = re.compile(r"https?://[^\s@'\"\\]+")
# Source: the grammar of distribution/reference, which Docker and the registries follow.
_PART = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_REFERENCE = re.compile(
    rf"(?:[A-Za-z0-9.-]+(?::[0-9]+)?/)?{_PART}(?:/{_PART})*(?::[A-Za-z0-9_][A-Za-z0-9_.-]{{0,127}})?"
)
# Source: the name rule of the Python packaging specifications, which groups and extras follow too.
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
_MODULE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


def is_here() -> bool:
    """Whether this is the machine that the image is declared on: a container lacks the files that went into it."""
    return os.environ.get("MODAL_IS_REMOTE") != "1"


def _is_one_line(text: str) -> bool:
    return text.isprintable()


def python_faults(python: str | None) -> Iterator[str]:
    """For a minor version of Python, if one is named."""
    if python is not None and python not in _PYTHONS:
        yield f"python got {python!r}; write one of {', '.join(_PYTHONS)}"


def reference_faults(reference: str) -> Iterator[str]:
    """For an image of a registry."""
    name, at, digest = reference.partition("@")
    tag = name.rpartition("/")[2].partition(":")[2]
    if not _REFERENCE.fullmatch(name):
        yield f"reference got {reference!r}; write repository:tag or repository@sha256:digest"
    elif at and not _DIGEST.fullmatch(digest):
        yield f"reference got the digest {digest!r}; write sha256: and 64 hexadecimal digits"
    elif not digest and tag in {"", "latest"}:
        yield f"reference got {reference!r}, which may change; add a tag or @sha256:digest"


def apt_faults(packages: Iterable[str]) -> Iterator[str]:
    """For Debian packages."""
    for name in packages:
        if not _APT.fullmatch(name):
            yield f"packages got {name!r}; write a Debian package's name, as in 'ffmpeg' or 'git=1:2.39.5-0+deb12u2'"


def index_faults(**addresses: str | None) -> Iterator[str]:
    """For package indexes, by the name of the argument."""
    for name, url in addresses.items():
        if url is not None and not _INDEX.fullmatch(url):
            yield (
                f"{name} got {url!r}; write an http(s) address without a password in it "
                f"(a private index: secrets=(SecretSpec(name=…),) with UV_INDEX_…_PASSWORD or a netrc)"
            )


def line_faults(name: str, texts: Iterable[str], what: str) -> Iterator[str]:
    """For what stands on one line of the build."""
    for text in texts:
        if not text.strip() or not _is_one_line(text):
            yield f"{name} got {text!r}; write {what} on one line"


def name_faults(field: str, names: Iterable[str], example: str) -> Iterator[str]:
    """For the names of groups and extras."""
    for name in names:
        if not _NAME.fullmatch(name):
            yield f"{field} got {name!r}; write a name of letters, digits, '.', '_' and '-', as in {example!r}"


def variable_faults(field: str, values: Mapping[str, str]) -> Iterator[str]:
    """For environment variables and build arguments."""
    for name, value in values.items():
        if not _VARIABLE.fullmatch(name):
            yield f"{field} got the name {name!r}; write one of letters, digits and _"
        if not isinstance(value, str) or not (value == "" or _is_one_line(value)):
            yield f"{field} got {name}={value!r}; write a str on one line"


def secret_faults(secrets: Iterable[object]) -> Iterator[str]:
    """For the secrets of a build."""
    for one in secrets:
        if not isinstance(one, SecretSpec):
            yield f"secrets got {one!r}; write SecretSpec(name='NAME', required_keys=('KEY',))"


def path_faults(path: str) -> Iterator[str]:
    """For a path in the container."""
    if not PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts or not _is_one_line(path):
        yield f"the path in the container got {path!r}; write an absolute one, as in '/data'"


# Too long a path, one with a NUL, and ~ of nobody are no files: os.path says so, pathlib raises.
def _is_file(path: str) -> bool:
    return os.path.isfile(os.path.expanduser(path))  # noqa: PTH111, PTH113


def _is_folder(path: str) -> bool:
    return os.path.isdir(os.path.expanduser(path))  # noqa: PTH111, PTH112


def local_faults(field: str, source: str, kind: str) -> Iterator[str]:
    """For a file (``file``), a folder (``dir``) or a module (``python``) of this machine."""
    if kind == "python":
        if not _MODULE.fullmatch(source):
            yield f"{field} got {source!r}; write the name of a module, as in 'shop' or 'shop.prices'"
        return
    if is_here() and not (_is_file(source) if kind == "file" else _is_folder(source)):
        wanted = "a file" if kind == "file" else "a folder"
        yield (
            f"{field} got {source!r}, which is not {wanted} in {Path.cwd()}; "
            f"write it from the app's own place: Path(__file__).parent / {PurePosixPath(source).name!r}"
        )


def project_faults(project_dir: str) -> Iterator[str]:
    """For a project that ``uv sync`` installs."""
    if not is_here():
        return
    if not _is_file(f"{project_dir}/pyproject.toml"):
        yield f"project_dir got {project_dir!r}, which has no pyproject.toml; write the folder that has one"
    elif not _is_file(f"{project_dir}/uv.lock"):
        yield f"project_dir got {project_dir!r}, which has no uv.lock; make one: uv lock --project {project_dir}"
