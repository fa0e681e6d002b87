"""An image's installs as commands of uv, and the digests that name what they make."""

from __future__ import annotations

import hashlib
import json
import posixpath
import shlex
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from gpuserve.engine.workers.host_image import ImagePlan, Install
from gpuserve.engine.workers.image_files import HostFile
from gpuserve.engine.workers.image_installs import WITH_VALUE

__all__ = ["chain", "lay_out_context", "notes_of_venv", "outside", "uv_command", "variables_of"]

# Another form of the folders that are made: none of an earlier release is taken for one of this.
_FORM = "1"
# What pip has and uv has not, or what would lead it out of the environment that is being made.
_DROPPED = {
    "--no-cache", "--no-cache-dir", "--user", "--system", "--no-warn-script-location", "--break-system-packages",
    "--disable-pip-version-check", "--no-input", "--no-warn-conflicts", "--prefer-binary",
}  # fmt: skip
_DROPPED_WITH_VALUE = {
    "--python", "-p", "--cache-dir", "--progress-bar", "--root-user-action", "--timeout", "--retries",
    "--default-timeout", "--log", "--report", "--upgrade-strategy",
}  # fmt: skip
# They install elsewhere: on this machine that would be its own folders.
_OUTSIDE = {"--target", "-t", "--prefix", "--root"}
_PATHS = {"-r", "--requirement", "--requirements", "-c", "--constraint", "--constraints", "-e", "--editable"}
_PATHS |= {"-f", "--find-links", "--project", "--directory", "-b", "--build-constraints", "--override", "--overrides"}
# Of this machine's variables, what uv and the builds that it starts need to reach indexes and compilers.
_KEPT = ("PATH", "HOME", "LANG", "TMPDIR", "SSL_CERT_FILE", "SSL_CERT_DIR", "XDG_CACHE_HOME", "CUDA_HOME", "NETRC")
_KEPT_IN_ANY_CASE = {"http_proxy", "https_proxy", "no_proxy", "all_proxy"}


def outside(install: Install) -> str | None:
    """The option that makes an install write outside of the image's environment, if it has one."""
    return next((name for name, _value in _options(install.step.arguments) if name in _OUTSIDE), None)


def notes_of_venv(plan: ImagePlan) -> tuple[str, ...]:
    """What venv mode leaves out of an image."""
    led_out = [one for one in plan.installs if outside(one) is not None]
    return (
        *(f"not done in venv mode: {line}" for line in plan.not_done),
        *(f"not done in venv mode: pip install {shlex.join(one.step.arguments)} ({outside(one)})" for one in led_out),
    )


def chain(python: str, installs: Iterable[Install]) -> list[str]:
    """A digest for the empty environment of an interpreter, and one for it after each install."""
    found = [hashlib.sha256(f"{_FORM}\n{python}".encode()).hexdigest()]
    for one in installs:
        step = one.step
        asked = {
            "below": found[-1],
            "step": [step.tool, step.arguments, step.folder, step.variables],
            "env": sorted(one.env.items()),
            # a file lies under the digest of its content
            "files": sorted((path, file.host.name) for path, file in _needed(one)),
        }
        found.append(hashlib.sha256(json.dumps(asked).encode()).hexdigest())
    return found


def _needed(install: Install) -> list[tuple[str, HostFile]]:
    """The files that a command may read: all of the image's, or none where it names only packages."""
    step = install.step
    if step.tool == "pins":
        return []
    reads = any(name in _PATHS or (not name and _is_path(value)) for name, value in _options(step.arguments))
    return list(install.files.items()) if reads or step.tool == "sync" else []


def _is_path(word: str) -> bool:
    return word.startswith(("/", "./", "../")) or word in {".", ".."}


def _options(words: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Each option with its value, if it takes one, and each word that is none, with an empty name."""
    rest = iter(words)
    for word in rest:
        if not word.startswith("-"):
            yield "", word
            continue
        name, equals, value = word.partition("=") if word.startswith("--") else (word, "", "")
        if not equals and (name in WITH_VALUE or name in _PATHS or name in _DROPPED_WITH_VALUE or name in _OUTSIDE):
            value = next(rest, "")
        yield name, value


def lay_out_context(install: Install, folder: Path) -> None:
    """Copy what the command may read to *folder*, as if that were the image's root."""
    for path, file in _needed(install):
        target = folder / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.host.read_bytes())
        target.chmod(file.mode)
    (folder / install.step.folder.lstrip("/")).mkdir(parents=True, exist_ok=True)


def uv_command(install: Install, uv: str, venv: Path, context: Path) -> list[str]:
    """The command that does in *venv* what the image's command does in the image."""
    step = install.step
    python = ["--python", str(venv / "bin" / "python")]
    if step.tool == "pins":
        return [uv, "pip", "install", *python, "--no-deps", "--compile-bytecode", *step.arguments]
    words = list(_translated(step.arguments, context))
    if step.tool == "sync":
        return [uv, "sync", *python, *words]
    # pip compares all indexes, uv takes a package from the first that has it
    alike = ["--index-strategy", "unsafe-best-match"] if step.tool == "pip" else []
    return [uv, "pip", "install", *python, *alike, *words]


def _translated(words: Iterable[str], context: Path) -> Iterator[str]:
    for name, value in _options(words):
        if name in _DROPPED or name in _DROPPED_WITH_VALUE:
            continue
        shown = "--allow-insecure-host" if name == "--trusted-host" else name
        moved = f"{context}{value}" if value.startswith("/") and (name in _PATHS or not name) else value
        if not name:
            yield moved
        elif value:
            yield from ([f"{shown}={moved}"] if shown.startswith("--") else [shown, moved])
        else:
            yield shown


def variables_of(install: Install | None, host: Mapping[str, str], venv: Path) -> dict[str, str]:
    """The environment that a command of uv runs in."""
    kept = {
        name: value
        for name, value in host.items()
        if name in _KEPT or name.lower() in _KEPT_IN_ANY_CASE or name.startswith("UV_")
    }
    asked = {**install.env, **install.secrets, **dict(install.step.variables)} if install is not None else {}
    path = asked.get("PATH", kept.get("PATH", ""))
    return {
        **kept,
        **asked,
        "PATH": posixpath.join(venv, "bin") + (f":{path}" if path else ""),
        "VIRTUAL_ENV": str(venv),
        "UV_PROJECT_ENVIRONMENT": str(venv),
        "UV_PYTHON_DOWNLOADS": "never",
        "UV_NO_PROGRESS": "1",
        "NO_COLOR": "1",
    }
