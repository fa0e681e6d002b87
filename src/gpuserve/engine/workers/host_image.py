"""What an image asks for, read from its layers, and whether this interpreter has it (host mode).

Nothing is built: ``ENV`` and ``WORKDIR`` are applied, pip requirements are compared with what is
installed, and every other command is reported as not done.

Source:
    The Dockerfile commands that modal 1.6.4's ``modal/_image.py`` sends for each of its methods.
"""

from __future__ import annotations

import importlib.metadata
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from packaging.requirements import InvalidRequirement, Requirement
from packaging.version import InvalidVersion, Version

from gpuserve.engine.protocol import api_pb2
from gpuserve.engine.workers.import_guard import normalised

__all__ = ["ImagePlan", "check_image", "importable", "plan_image"]

_PIP = re.compile(r"(?:python3? -m )?(?:uv )?pip install\s+(?P<rest>.*)|/?\S*uv pip install\s+(?P<uv>.*)")
_WITH_VALUE = {"--index-url", "--extra-index-url", "--find-links", "-f", "-i", "--python", "--index-strategy", "-c"}
_SUBSTITUTION = re.compile(r"\$\([^)]*\)")
_FILE_FLAGS = {"-r", "--requirement", "--requirements"}
# What Modal adds to each image by itself, and what modal needs.
_BASE_NOISE = ("FROM ", "COPY ", "ARG ", "ENTRYPOINT", "CMD ", "SHELL", "#", "USER ", "EXPOSE", "LABEL ")


@dataclass(frozen=True, slots=True)
class ImagePlan:
    """An image in what host mode can do about it."""

    env: Mapping[str, str] = field(default_factory=dict)
    workdir: str | None = None
    requirements: tuple[str, ...] = ()
    not_done: tuple[str, ...] = ()


def plan_image(layers: Sequence[api_pb2.Image]) -> ImagePlan:
    """Read the layers of an image, base first."""
    env: dict[str, str] = {}
    workdir: str | None = None
    requirements: list[str] = []
    not_done: list[str] = []
    for number, layer in enumerate(layers):
        contexts = {one.filename.lstrip("/."): one.data for one in layer.context_files}
        for command in _joined(layer.dockerfile_commands):
            word, _, rest = command.partition(" ")
            if word == "ENV":
                env.update(_variables(rest))
            elif word == "WORKDIR":
                workdir = rest.strip()
            elif word == "RUN":
                asked = _requirements(rest, contexts)
                if asked:
                    # the base image's own layer installs what modal itself needs
                    requirements.extend(asked if number else ())
                else:
                    not_done.append(rest.strip())
            elif not command.startswith(_BASE_NOISE):
                not_done.append(command)
    base_noise = _base_commands(layers)
    return ImagePlan(env, workdir, tuple(requirements), tuple(line for line in not_done if line not in base_noise))


def _base_commands(layers: Sequence[api_pb2.Image]) -> frozenset[str]:
    """The RUN lines of a base layer, which Modal writes and no user asked for."""
    first = layers[0] if layers and not layers[0].base_images else None
    if first is None:
        return frozenset()
    return frozenset(
        line.partition(" ")[2].strip() for line in _joined(first.dockerfile_commands) if line.startswith("RUN ")
    )


def _joined(commands: Iterable[str]) -> list[str]:
    text = "\n".join(commands).replace("\\\n", " ")
    return [line.strip() for line in text.splitlines() if line.strip()]


def _variables(rest: str) -> dict[str, str]:
    if "=" not in rest.split(" ", 1)[0]:
        name, _, value = rest.partition(" ")
        return {name: value}
    return dict(part.split("=", 1) for part in shlex.split(rest) if "=" in part)


def _requirements(command: str, contexts: Mapping[str, bytes]) -> list[str]:
    found = _PIP.search(command)
    if found is None:
        return []
    words = shlex.split(_SUBSTITUTION.sub("_", found["rest"] or found["uv"] or ""))
    asked: list[str] = []
    skip = False
    for place, word in enumerate(words):
        if skip:
            skip = False
        elif word in _FILE_FLAGS:
            skip = True
            asked += _read_file(words[place + 1] if place + 1 < len(words) else "", contexts)
        elif word in _WITH_VALUE:
            skip = True
        elif word in {"&&", ";", "|"}:
            break
        elif not word.startswith("-"):
            asked.append(word)
    return asked or ["pip"]


def _read_file(path: str, contexts: Mapping[str, bytes]) -> list[str]:
    for name, data in contexts.items():
        if path.lstrip("/.").endswith(name) or name.endswith(path.lstrip("/.")):
            lines = (line.partition("#")[0].strip() for line in data.decode().splitlines())
            return [line.partition(" --")[0] for line in lines if line and not line.startswith("-")]
    return []


def check_image(plan: ImagePlan, installed: Mapping[str, str]) -> tuple[str, ...]:
    """One sentence for each requirement that this interpreter does not meet.

    Args:
        plan: What the image asks for.
        installed: Normalised distribution names and their versions.

    Examples:
        >>> check_image(ImagePlan(requirements=("six==1.0",)), {"six": "1.17.0"})
        ('six==1.0 is asked for, and 1.17.0 is installed',)
    """
    problems: list[str] = []
    for text in plan.requirements:
        try:
            wanted = Requirement(text)
        except InvalidRequirement:
            continue  # a path or an address: nothing to compare it with
        if wanted.marker is not None and not wanted.marker.evaluate():
            continue
        have = installed.get(normalised(wanted.name))
        if have is None:
            problems.append(f"{text} is asked for, and {wanted.name} is not installed")
        elif not _meets(have, wanted):
            problems.append(f"{text} is asked for, and {have} is installed")
    return tuple(problems)


def _meets(have: str, wanted: Requirement) -> bool:
    try:
        version = Version(have)
    except InvalidVersion:
        return have in str(wanted.specifier)
    public = Version(version.public)
    bare = Requirement(re.sub(r"\+[A-Za-z0-9.]+", "", str(wanted)))
    return wanted.specifier.contains(version, prereleases=True) or bare.specifier.contains(public, prereleases=True)


def importable(plan: ImagePlan) -> frozenset[str]:
    """The distributions that the image brings: what it asks for, modal, and what these need."""
    todo = ["modal"]
    extras: dict[str, set[str]] = {}
    for text in plan.requirements:
        try:
            wanted = Requirement(text)
        except InvalidRequirement:
            continue
        todo.append(normalised(wanted.name))
        extras.setdefault(normalised(wanted.name), set()).update(wanted.extras)
    found: set[str] = set()
    while todo:
        name = todo.pop()
        if name in found:
            continue
        found.add(name)
        todo += _needs(name, extras)
    return frozenset(found)


def _needs(name: str, extras: dict[str, set[str]]) -> list[str]:
    try:
        lines = importlib.metadata.requires(name) or []
    except importlib.metadata.PackageNotFoundError:
        return []
    needed: list[str] = []
    for line in lines:
        one = Requirement(line)
        contexts = [{"extra": extra} for extra in (*extras.get(name, ()), "")]
        if one.marker is None or any(one.marker.evaluate(context) for context in contexts):
            extras.setdefault(normalised(one.name), set()).update(one.extras)
            needed.append(normalised(one.name))
    return needed
