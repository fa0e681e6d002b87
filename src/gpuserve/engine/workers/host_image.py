"""What an image asks for, read from its layers, and whether this interpreter has it (host mode).

Nothing is built: ``ENV``, ``WORKDIR`` and ``COPY`` are applied, what pip, uv and poetry would install is
compared with what is installed, and every other command is reported as not done.

Source:
    The Dockerfile commands that modal 1.6.4's ``modal/_image.py`` sends for each of its methods.
"""

from __future__ import annotations

import importlib.metadata
import os
import posixpath
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from packaging.requirements import Requirement
from packaging.version import InvalidVersion, Version

from gpuserve.engine.protocol import api_pb2
from gpuserve.engine.workers.dockerfile import Instruction, arguments, assignments, expand, instructions
from gpuserve.engine.workers.image_files import HostFile, ImageFiles
from gpuserve.engine.workers.image_installs import Step, read_run
from gpuserve.engine.workers.import_guard import normalised

__all__ = ["ImagePlan", "Install", "LayerContext", "check_image", "importable", "judge_image", "plan_image"]

# The first commands of `debian_slim`, which Modal writes and no user asked for.
_DEBIAN_SLIM = ("apt-get update", "apt-get install -y gcc gfortran build-essential")
_UNASKED = {"ln -s /usr/local/bin/python3 /usr/local/bin/python"}
_SILENT = {"LABEL", "MAINTAINER", "EXPOSE", "USER", "SHELL", "CMD", "HEALTHCHECK", "STOPSIGNAL", "VOLUME"}
_PYTHON = (
    re.compile(r"FROM (?:\S*/)?python:(\d+\.\d+)"),
    re.compile(r"RUN micromamba install -n base -y python=(\d+\.\d+)"),
)
_STANDALONE = re.compile(r"python-build-standalone\.\d+\.(\d+\.\d+)")
# What the official Python images bring besides Python.
_WITH_PYTHON = ("pip", "wheel", "uv", *(("setuptools",) if sys.version_info < (3, 12) else ()))
# What builds an image and is not needed in its containers.
_TOOLS = {"pip", "uv", "wheel", "setuptools", "poetry"}


@dataclass(frozen=True, slots=True)
class ImagePlan:
    """An image in what host mode can do about it.

    Attributes:
        python: The minor version of Python that it names, if it does.
        unclear: Installs whose packages cannot be told.
        files: What ``COPY`` brings, by absolute path.
        installs: The commands that install packages, in their order.
    """

    env: Mapping[str, str] = field(default_factory=dict)
    workdir: str | None = None
    requirements: tuple[str, ...] = ()
    not_done: tuple[str, ...] = ()
    unclear: tuple[str, ...] = ()
    python: str | None = None
    files: Mapping[str, HostFile] = field(default_factory=dict)
    installs: tuple[Install, ...] = ()


@dataclass(frozen=True, slots=True)
class LayerContext:
    """What was sent along with a layer.

    Attributes:
        name: Of the mount with its files.
        files: By their path.
        secrets: Variables of its build.
    """

    name: str
    files: Mapping[str, HostFile]
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class Install:
    """A command that installs packages, and the image as it finds it.

    Attributes:
        env: The image's variables.
        files: What was copied into the image by then.
        secrets: Variables that nothing but this command sees, and that no cache knows of.
    """

    step: Step
    env: Mapping[str, str]
    files: Mapping[str, HostFile]
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)


@dataclass(slots=True)
class _Reading:
    """The state of an image between two instructions."""

    env: dict[str, str] = field(default_factory=dict)
    arguments: dict[str, str] = field(default_factory=dict)
    workdir: str | None = None
    requirements: list[str] = field(default_factory=list)
    not_done: list[str] = field(default_factory=list)
    unclear: list[str] = field(default_factory=list)
    python: str | None = None
    files: ImageFiles = field(default_factory=ImageFiles)
    installs: list[Install] = field(default_factory=list)
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)

    def expanded(self, text: str) -> str:
        # the host's own PATH stands for the base image's
        return expand(text, {"PATH": os.environ.get("PATH", ""), **self.arguments, **self.env})

    def take(self, one: Instruction, context: Mapping[str, HostFile]) -> None:
        if one.word == "ENV":
            self.env.update({name: self.expanded(value) for name, value in assignments(one.rest).items()})
        elif one.word == "ARG":
            for name, value in assignments(one.rest if "=" in one.rest else f"{one.rest}=").items():
                self.arguments.setdefault(name, self.expanded(value))
        elif one.word == "WORKDIR":
            path = " ".join(shlex.split(self.expanded(one.rest)))
            self.workdir = posixpath.normpath(posixpath.join(self.workdir or "/", path))
        elif one.word in {"COPY", "ADD"}:
            self._copy(one, context)
        elif one.word == "RUN":
            self._run(one.rest)
        elif one.word == "ENTRYPOINT" and one.rest != "[]":
            self.not_done.append(f"ENTRYPOINT {one.rest}")
        elif one.word not in {*_SILENT, "FROM", "ENTRYPOINT"}:
            self.not_done.append(f"{one.word} {one.rest}".strip())

    def _copy(self, one: Instruction, context: Mapping[str, HostFile]) -> None:
        shown = f"{one.word} {one.rest}"
        flags, words = arguments(self.expanded(one.rest))
        if flags.get("from", "").startswith("ghcr.io/astral-sh/uv") or words[:1] == ["/python/."]:
            return  # Modal's own way to bring uv and Python
        if "from" in flags or "<<" in one.rest or len(words) < 2:  # noqa: PLR2004 (a source and a destination)
            self.not_done.append(shown)
            return
        mode = int(flags["chmod"], 8) if flags.get("chmod", "").isdigit() else None
        missing = self.files.copy(words[:-1], words[-1], context, workdir=self.workdir or "/", mode=mode)
        self.not_done += [f"{one.word} {source} {words[-1]} (no such file was sent)" for source in missing]

    def _run(self, text: str) -> None:
        if text in _UNASKED or _PYTHON[1].match(f"RUN {text}"):
            return
        while text.startswith("--"):
            text = text.partition(" ")[2].strip()
        found = read_run(self.expanded(text), self.workdir or "/", self.files.read)
        self.requirements += found.requirements
        self.unclear += found.unclear
        self.not_done += found.others if found.is_install else [text]
        self.installs += [Install(one, dict(self.env), dict(self.files.by_path), self.secrets) for one in found.steps]


def plan_image(layers: Sequence[api_pb2.Image], context_of: Callable[[api_pb2.Image], LayerContext]) -> ImagePlan:
    """Read the layers of an image, base first; *context_of* gives the files that were sent with one."""
    reading = _Reading()
    for layer in layers:
        context = context_of(layer)
        commands = instructions(layer.dockerfile_commands)
        runs = [one.rest for one in commands if one.word == "RUN"]
        for line in layer.dockerfile_commands:
            reading.python = next((found[1] for found in map(_matcher(line), _PYTHON) if found), reading.python)
        standalone = _STANDALONE.search(context.name)
        reading.python = standalone[1] if standalone else reading.python
        if not layer.base_images and tuple(runs[:2]) == _DEBIAN_SLIM:
            continue
        reading.arguments, reading.secrets = dict(layer.build_args), context.secrets
        for one in commands:
            reading.take(one, context.files)
        if layer.HasField("build_function"):
            reading.not_done.append("run_function(…)")
    return ImagePlan(
        reading.env,
        reading.workdir,
        tuple(reading.requirements),
        tuple(reading.not_done),
        tuple(reading.unclear),
        reading.python,
        reading.files.by_path,
        tuple(reading.installs),
    )


def _matcher(line: str) -> Callable[[re.Pattern[str]], re.Match[str] | None]:
    return lambda pattern: pattern.match(line.strip())


def judge_image(plan: ImagePlan, installed: Mapping[str, str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What is wrong with an image here, and what else there is to say of it."""
    notes = [f"not done in host mode: {line}" for line in plan.not_done]
    notes += [f"not compared in host mode: {line}" for line in plan.unclear]
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    if plan.python not in {None, here}:
        notes.append(f"this image has Python {plan.python}, and containers run on Python {here} here (host mode)")
    return check_image(plan, installed), tuple(notes)


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
    for text, wanted in _in_force(plan.requirements).items():
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


def _in_force(requirements: Iterable[str]) -> dict[str, Requirement]:
    """The requirements that an image ends up with: a later one for the same package has the last word."""
    last: dict[str, tuple[str, Requirement]] = {}
    for text in requirements:
        wanted = Requirement(text)
        name = normalised(wanted.name)
        if name not in _TOOLS and (wanted.specifier or name not in last):
            last[name] = (text, wanted)
    return dict(last.values())


def importable(plan: ImagePlan) -> frozenset[str]:
    """The distributions that the image brings: what it asks for, modal, and what these need."""
    todo: list[tuple[str, str]] = [(name, "") for name in ("modal", *_WITH_PYTHON)]
    for text in plan.requirements:
        wanted = Requirement(text)
        todo += [(normalised(wanted.name), extra) for extra in ("", *wanted.extras)]
    found: set[tuple[str, str]] = set()
    while todo:
        one = todo.pop()
        if one not in found:
            found.add(one)
            todo += _needs(*one)
    return frozenset(name for name, _extra in found)


def _needs(name: str, extra: str) -> list[tuple[str, str]]:
    """What a distribution needs, with one of its extras or (``""``) without any."""
    try:
        lines = importlib.metadata.requires(name) or []
    except importlib.metadata.PackageNotFoundError:
        return []
    needed: list[tuple[str, str]] = []
    for line in lines:
        one = Requirement(line)
        if one.marker is None or one.marker.evaluate({"extra": extra}):
            needed += [(normalised(one.name), inner) for inner in ("", *one.extras)]
    return needed
