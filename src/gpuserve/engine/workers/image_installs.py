"""The packages that a ``RUN`` line installs: pip, uv and poetry; what it does besides is only told."""

from __future__ import annotations

import posixpath
import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from packaging.requirements import InvalidRequirement, Requirement

from gpuserve.engine.workers.image_locks import LockError, poetry_requirements, uv_requirements

__all__ = ["WITH_VALUE", "Installs", "Step", "read_run"]

_SUBSTITUTION = re.compile(r"\$\([^)]*\)")
_ASSIGNMENT = re.compile(r"\w+=.*")
_FILES = {"-r", "--requirement", "--requirements"}
# Options that take a value. Source: `pip install --help` and `uv pip install --help`.
WITH_VALUE = {
    "-c", "--constraint", "--constraints", "-i", "--index-url", "--extra-index-url", "-f", "--find-links", "-t",
    "--target", "--prefix", "--root", "--src", "--platform", "--python-version", "--implementation", "--abi",
    "--python", "-p", "--index-strategy", "--prerelease", "--resolution", "--exclude-newer", "--link-mode", "--index",
    "--default-index", "--keyring-provider", "--no-binary", "--only-binary", "--trusted-host", "--cache-dir",
    "--timeout", "--retries", "--proxy", "--progress-bar", "--upgrade-strategy", "-C", "--config-settings", "--report",
    "--log", "--override", "--overrides", "--build-constraints", "-b", "--torch-backend", "--python-platform",
    "--upgrade-package", "-P", "--reinstall-package", "--no-build-isolation-package", "--allow-insecure-host",
}  # fmt: skip
_EDITABLE = {"-e", "--editable"}
# Commands that only prepare an install beside them in the same line.
_PREPARES = {"cd", "set", "true", "export", ":"}


@dataclass(frozen=True, slots=True)
class Step:
    """One command that installs packages.

    Attributes:
        tool: ``pip`` (pip's own), ``uv`` (``uv pip``), ``sync`` (``uv sync``) or ``pins`` (a lock of another tool).
        arguments: What follows ``pip install`` or ``uv sync``; for ``pins`` the requirements.
        folder: Where it runs.
        variables: What stands before it, as in ``MAX_JOBS=4 pip install …``.
    """

    tool: str
    arguments: tuple[str, ...]
    folder: str
    variables: tuple[tuple[str, str], ...] = ()


@dataclass(slots=True)
class Installs:
    """What one line asks for.

    Attributes:
        steps: The commands that install.
        requirements: What can be compared with this interpreter.
        unclear: Installs whose packages cannot be told from the text alone.
        others: Commands that install nothing.
    """

    requirements: list[str] = field(default_factory=list)
    unclear: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)

    @property
    def is_install(self) -> bool:
        """Whether the line installs anything."""
        return bool(self.requirements or self.unclear)


def read_run(text: str, workdir: str, read: Callable[[str], str | None]) -> Installs:
    """Find the installs of one ``RUN`` line.

    Args:
        text: The line, without the word ``RUN``.
        workdir: The folder that it runs in.
        read: The text of a file of the image.

    Examples:
        >>> found = read_run("pip install 'torch==2.13.0' && make x", "/", lambda path: None)
        >>> found.requirements, found.others
        (['torch==2.13.0'], ['make x'])
    """
    found = Installs()
    folder = workdir
    for words in _commands(text):
        shown = shlex.join(words)
        variables: list[tuple[str, str]] = []
        while words and _ASSIGNMENT.fullmatch(words[0]):
            name, _, value = words[0].partition("=")
            variables.append((name, value))
            words = words[1:]  # noqa: PLW2901 (what is left of the command)
        program, rest = posixpath.basename(words[0]) if words else "", words[1:]
        if re.fullmatch(r"python[\d.]*", program) and rest[:1] == ["-m"]:
            program, rest = (rest[1] if len(rest) > 1 else ""), rest[2:]
        tool = "uv" if program == "uv" else "pip"
        if program == "uv" and rest[:1] == ["pip"]:
            program, rest = "pip", rest[1:]
        if program == "cd" and rest:
            folder = posixpath.join(folder, rest[0])
        elif re.fullmatch(r"pip[\d.]*", program) and rest[:1] == ["install"]:
            _read_pip(rest[1:], shown, folder, read, found)
            found.steps.append(Step(tool, tuple(rest[1:]), folder, tuple(variables)))
        elif [program, *rest[:1]] in (["uv", "sync"], ["poetry", "install"]):
            try:
                reader = uv_requirements if program == "uv" else poetry_requirements
                pins = reader(rest[1:], folder, read)
                found.requirements += pins
                kind, told = ("sync", rest[1:]) if program == "uv" else ("pins", pins)
                found.steps.append(Step(kind, tuple(told), folder, tuple(variables)))
            except LockError as error:
                found.unclear.append(f"{shown} ({error})")
        elif program not in _PREPARES and [program, *rest[:1]] != ["poetry", "config"]:
            found.others.append(shown)
    return found


def _commands(text: str) -> list[list[str]]:
    """The simple commands of a line, each in its words; one that the shell alone can read stays whole."""
    if text.startswith("[") or "\n" in text:
        return [[text]]
    lexer = shlex.shlex(_SUBSTITUTION.sub("_", text), posix=True, punctuation_chars="&|;()")
    lexer.whitespace_split = True
    lexer.commenters = ""
    try:
        words = list(lexer)
    except ValueError:
        return [[text]]
    commands: list[list[str]] = [[]]
    for word in words:
        if word and not word.strip("&|;()"):
            commands.append([])
        else:
            commands[-1].append(word)
    return [command for command in commands if command]


def _read_pip(
    words: Sequence[str], shown: str, folder: str, read: Callable[[str], str | None], found: Installs
) -> None:
    rest = iter(words)
    for word in rest:
        name, _, value = word.partition("=") if word.startswith("--") else (word, "", "")
        if name in _FILES:
            path = posixpath.join(folder, value or next(rest, ""))
            _read_file(path, read, found)
        elif name in _EDITABLE:
            found.unclear.append(f"{value or next(rest, '')} (editable)")
        elif name in WITH_VALUE:
            if not value:
                next(rest, "")
        elif not word.startswith("-"):
            _add(word, found)
    if not found.is_install:
        found.unclear.append(shown)


def _read_file(path: str, read: Callable[[str], str | None], found: Installs) -> None:
    text = read(path)
    if text is None:
        found.unclear.append(f"{path} (no such file was sent with the image)")
        return
    for raw in text.replace("\\\n", " ").splitlines():
        line = re.sub(r"(^|\s)#.*", "", raw).strip()
        words = line.split()
        if words and words[0] in _FILES and len(words) > 1:
            _read_file(posixpath.join(posixpath.dirname(path), words[1]), read, found)
        elif words and words[0] in _EDITABLE:
            found.unclear.append(f"{line.partition(' ')[2]} (editable)")
        elif line and not line.startswith("-"):
            _add(line.partition(" --")[0].strip(), found)


def _add(text: str, found: Installs) -> None:
    try:
        Requirement(text)
    except InvalidRequirement:
        named = re.search(r"#egg=([\w.-]+)", text)
        if named is not None:
            found.requirements.append(named[1])
        else:
            found.unclear.append(text)
    else:
        found.requirements.append(text)
