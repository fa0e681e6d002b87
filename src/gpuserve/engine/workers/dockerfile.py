"""The language of Dockerfiles, as far as an image's layers use it."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

__all__ = ["Instruction", "arguments", "assignments", "expand", "instructions"]

_VARIABLE = re.compile(r"\\\$|\$\{(\w+)(?::([-+])([^}]*))?\}|\$(\w+)")
_HEREDOC = re.compile(r"<<-?\s*[\"']?(\w+)[\"']?")


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction: its word in capitals, and the rest of it in one line (or with its here-document)."""

    word: str
    rest: str


def instructions(lines: Iterable[str]) -> list[Instruction]:
    r"""Read lines into instructions: comments go, continued lines are joined.

    Examples:
        >>> instructions(["# why", "run make \\", "  # and", "  install"])
        [Instruction(word='RUN', rest='make install')]
    """
    found: list[Instruction] = []
    pending = ""
    rest = iter("\n".join(lines).splitlines())
    for raw in rest:
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        if line.endswith("\\"):
            pending += f"{line[:-1].strip()} "
            continue
        whole, pending = (pending + line).strip(), ""
        heredoc = _HEREDOC.search(whole)
        if heredoc is not None and whole.upper().startswith(("RUN", "COPY", "ADD")):
            for inner in rest:
                whole += f"\n{inner}"
                if inner.strip() == heredoc[1]:
                    break
        found.append(_instruction(whole))
    if pending.strip():
        found.append(_instruction(pending.strip()))
    return found


def _instruction(text: str) -> Instruction:
    word, _, rest = text.partition(" ")
    return Instruction(word.upper(), rest.strip())


def expand(text: str, variables: Mapping[str, str]) -> str:
    """Put variables in, as Docker does.

    Examples:
        >>> expand("${A:-x}/$B/${C:+y}", {"B": "b", "C": "c"})
        'x/b/y'
    """

    def value(match: re.Match[str]) -> str:
        if match[0] == "\\$":
            return "$"
        found = variables.get(match[1] or match[4], "")
        if match[2] == "-":
            return found or match[3]
        if match[2] == "+":
            return match[3] if found else ""
        return found

    return _VARIABLE.sub(value, text)


def assignments(rest: str) -> dict[str, str]:
    """The variables of ``ENV`` or ``ARG``; a name without a value gets an empty one.

    Examples:
        >>> assignments("A=1 B='two words'"), assignments("OLD way of it")
        ({'A': '1', 'B': 'two words'}, {'OLD': 'way of it'})
    """
    if "=" not in rest.split(" ", 1)[0]:
        name, _, value = rest.partition(" ")
        return {name: value.strip()}
    pairs = (part.partition("=") for part in shlex.split(rest))
    return {name: value for name, _, value in pairs}


def arguments(rest: str) -> tuple[dict[str, str], list[str]]:
    """The flags and the words of an instruction, in its plain or its JSON form.

    Examples:
        >>> arguments("--chmod=755 --link a b /c")
        ({'chmod': '755', 'link': ''}, ['a', 'b', '/c'])
    """
    flags: dict[str, str] = {}
    while rest.startswith("--"):
        word, _, rest = rest.partition(" ")
        name, _, value = word[2:].partition("=")
        flags[name], rest = value, rest.strip()
    if rest.startswith("["):
        return flags, [str(one) for one in json.loads(rest)]
    return flags, shlex.split(rest)
