"""Environments of images: one virtual environment a recipe, built once, kept by content (``venv`` mode).

An environment is named by a digest of its interpreter and of every install up to it, so that an
image that adds one begins with a copy of what is there. It is made under another name and renamed when
it is whole: whoever is killed midway leaves nothing that could be taken for one.

Modal's own client is beside it, as on Modal's machines: its packages come first on the path, what they
need comes last, after all that the image brings.

Source:
    modal 1.6.4's ``modal/mount.py``: ``/pkg``, ``/__modal/deps`` and ``sitecustomize.py``.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import importlib.metadata
import json
import os
import shlex
import shutil
import signal
import sys
import tempfile
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from gpuserve.engine.protocol import runtime_packages, runtime_requirements
from gpuserve.engine.workers.host_image import ImagePlan, Install
from gpuserve.engine.workers.interpreters import Interpreter, find_interpreter
from gpuserve.engine.workers.venv_steps import chain, lay_out_context, outside, uv_command, variables_of
from gpuserve.exceptions import EngineError

__all__ = ["Build", "Venv", "Venvs", "find_uv"]

_UNFINISHED = ".building-"
_RUNTIME = "runtime-"
# How much of a failed command's output its error has. Source: our choice.
_LAST_LINES = 20
# A command that ends with the engine, however that ends. Source: prctl(2), PR_SET_PDEATHSIG and SIGKILL.
_MORTAL = """\
import ctypes, os, sys
libc = ctypes.CDLL(None)
hasattr(libc, "prctl") and libc.prctl(1, 9, 0, 0, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""
_SITECUSTOMIZE = """\
# What modal needs is found after all that the image brings.
import pathlib, sys
sys.path.append(str(pathlib.Path(__file__).resolve().parent.parent / "deps"))
"""


@dataclass(frozen=True, slots=True)
class Venv:
    """An image's environment.

    Attributes:
        folder: The virtual environment.
        runtime: The folder with modal's client (``pkg``) and what it needs (``deps``).
    """

    folder: Path
    runtime: Path

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.folder / "bin" / "python"

    @property
    def packages(self) -> Path:
        """Where modal's client is."""
        return self.runtime / "pkg"


class Build:
    """The making of one environment, from its first line to its end."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.task: asyncio.Task[Venv] | None = None
        self._changed = asyncio.Event()

    def begin(self, work: Coroutine[Any, Any, Venv]) -> None:
        """Start the work."""
        self.task = asyncio.get_running_loop().create_task(work)
        self.task.add_done_callback(self._end)

    def _end(self, task: asyncio.Task[Venv]) -> None:
        if not task.cancelled():
            task.exception()  # whoever waits is told; nobody may
        self._changed.set()

    def say(self, line: str) -> None:
        """Add a line to the log."""
        self.lines.append(line)
        self._changed.set()

    @property
    def is_over(self) -> bool:
        """Whether it has ended, well or not."""
        return self.task is None or self.task.done()

    async def follow(self, start: int) -> AsyncIterator[tuple[int, str]]:
        """The lines from the one of number *start* on, each with the number of the next, to the end of the build."""
        while True:
            self._changed.clear()
            over = self.is_over
            for line in self.lines[start:]:
                start += 1
                yield start, line
            if over:
                return
            if start == len(self.lines):
                await self._changed.wait()

    async def result(self) -> Venv:
        """What it made.

        Raises:
            EngineError: With uv's last words, if it failed.
        """
        if self.task is None:
            raise EngineError("the build has not begun")
        return await asyncio.shield(self.task)


def find_uv() -> str:
    """The uv to build with.

    Raises:
        EngineError: If there is none.
    """
    try:
        from uv import find_uv_bin
    except ModuleNotFoundError:
        found = shutil.which("uv")
    else:
        found = str(find_uv_bin())
    if found is None:
        raise EngineError("image mode venv builds with uv, which is not here: pip install 'gpuserve[images]'")
    return found


class Venvs:
    """All environments of one engine."""

    def __init__(self, folder: Path, uv: str) -> None:
        """Keep them in *folder*, which no other engine uses; what an earlier one left unfinished is removed."""
        self._folder, self._uv = folder, uv
        self._builds: dict[str, Build] = {}
        self._making: dict[str, asyncio.Lock] = {}
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for unfinished in folder.glob(f"{_UNFINISHED}*"):
            shutil.rmtree(unfinished, ignore_errors=True)

    def begin(self, plan: ImagePlan) -> Build:
        """The build of an image's environment: the one that runs, or that made what is there, or a new one.

        Raises:
            EngineError: If this machine lacks the Python.
        """
        interpreter, installs = find_interpreter(plan.python), _inside(plan)
        digests = chain(f"{interpreter.path} {interpreter.version}", installs)
        known = self._builds.get(digests[-1])
        if known is not None and (not known.is_over or (self._folder / digests[-1]).is_dir()):
            return known
        build = self._builds[digests[-1]] = Build()
        build.begin(self._run(build, interpreter, digests, installs))
        return build

    def name_of(self, plan: ImagePlan) -> str | None:
        """The name of an image's environment; nothing where this machine lacks its Python."""
        try:
            interpreter = find_interpreter(plan.python)
        except EngineError:
            return None
        return chain(f"{interpreter.path} {interpreter.version}", _inside(plan))[-1]

    def is_there(self, plan: ImagePlan) -> bool:
        """Whether nothing is left to build."""
        name = self.name_of(plan)
        return name is not None and (self._folder / name).is_dir()

    async def _run(
        self, build: Build, interpreter: Interpreter, digests: Sequence[str], installs: Sequence[Install]
    ) -> Venv:
        runtime = await self._runtime(build, interpreter)
        there = max((place for place, name in enumerate(digests) if (self._folder / name).is_dir()), default=-1)
        for place in range(there + 1, len(digests)):
            if place == 0:
                make = partial(self._empty, build, interpreter)
            else:
                make = partial(self._install, build, installs[place - 1], self._folder / digests[place - 1])
            await self._once(digests[place], make)
        return Venv(self._folder / digests[-1], runtime)

    async def _once(self, name: str, make: Callable[[Path], Awaitable[None]]) -> None:
        """Make a folder whole, or wait for whoever is making it; *make* gets an empty one, and fills ``made`` in it."""
        async with self._making.setdefault(name, asyncio.Lock()):
            if (self._folder / name).is_dir():
                return
            draft = Path(tempfile.mkdtemp(prefix=_UNFINISHED, dir=self._folder))
            try:
                await make(draft)
                await asyncio.to_thread(os.sync)  # else a power cut could leave a whole name with half of its files
                (draft / "made").rename(self._folder / name)
            finally:
                await asyncio.to_thread(shutil.rmtree, draft, ignore_errors=True)

    async def _empty(self, build: Build, interpreter: Interpreter, draft: Path) -> None:
        build.say(f"Python {interpreter.version} at {interpreter.path}")
        made = draft / "made"
        command = [self._uv, "venv", "--relocatable", "--no-project", "--python", str(interpreter.path), str(made)]
        variables = variables_of(None, os.environ, made)
        try:
            await self._tell(build, [*command, "--seed"], draft, variables, quietly=True)
        except EngineError as error:
            build.say(f"pip is not in the image's environment here: {error}")
            shutil.rmtree(made, ignore_errors=True)
            await self._tell(build, command, draft, variables, quietly=True)

    async def _install(self, build: Build, install: Install, below: Path, draft: Path) -> None:
        made, context = draft / "made", draft / "context"
        await asyncio.to_thread(shutil.copytree, below, made, symlinks=True, copy_function=os.link)
        context.mkdir()
        lay_out_context(install, context)
        step = install.step
        build.say(f"uv {'sync' if step.tool == 'sync' else 'pip install'} {shlex.join(step.arguments)}")
        folder = context / step.folder.lstrip("/")
        await self._tell(
            build, uv_command(install, self._uv, made, context), folder, variables_of(install, os.environ, made)
        )

    async def _runtime(self, build: Build, interpreter: Interpreter) -> Path:
        """Modal's client for an interpreter: a copy of this process's, and what Modal's machines have for it."""
        packages, requirements = runtime_packages(), runtime_requirements()
        name = _runtime_name(interpreter)

        async def make(draft: Path) -> None:
            made = draft / "made"
            for package in packages:
                ignored = shutil.ignore_patterns("__pycache__")
                await asyncio.to_thread(shutil.copytree, package, made / "pkg" / package.name, ignore=ignored)
            (made / "pkg" / "sitecustomize.py").write_text(_SITECUSTOMIZE)
            target = ["--python", str(interpreter.path), "--target", str(made / "deps"), "--compile-bytecode"]
            command = [self._uv, "pip", "install", "--no-deps", *target, "-r", "requirements.txt"]
            variables = variables_of(None, os.environ, made)
            (draft / "requirements.txt").write_text(requirements)
            try:
                await self._tell(build, command, draft, variables, quietly=True)
            except EngineError as error:
                why = str(error).splitlines()[-1].strip()
                build.say(f"Modal's pins of what its client needs cannot be had here, this machine's are taken: {why}")
                (draft / "requirements.txt").write_text(_as_installed_here(requirements))
                await self._tell(build, command, draft, variables, quietly=True)
            compile_all = [str(interpreter.path), "-m", "compileall", "-q", str(made / "pkg")]
            await self._tell(build, compile_all, draft, variables, quietly=True)

        await self._once(name, make)
        return self._folder / name

    async def _tell(
        self, build: Build, command: Sequence[str], folder: Path, variables: dict[str, str], *, quietly: bool = False
    ) -> None:
        """Run a command, and add what it says to the log.

        Raises:
            EngineError: With its last lines, if it fails.
        """
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-S", "-c", _MORTAL),
            *command,
            cwd=folder,
            env=variables,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
            limit=1 << 20,
        )
        last: deque[str] = deque(maxlen=_LAST_LINES)
        try:
            if process.stdout is not None:
                async for raw in process.stdout:
                    line = raw.decode(errors="replace").rstrip().replace(f"{folder}/", "")
                    last.append(line)
                    if not quietly:
                        build.say(line)
            code = await process.wait()
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
            raise
        if code != 0:
            raise EngineError("\n".join(last) or f"{shlex.join(command)} failed with exit code {code}")

    def prune(self, plans: Iterable[ImagePlan]) -> tuple[int, int]:
        """Remove the environments of no image among *plans*, and the clients beside them that nobody uses.

        Returns:
            How many were removed, and how many bytes that freed (files that uv's cache shares are not counted).
        """
        kept: set[str | None] = set()
        for plan in plans:
            if (name := self.name_of(plan)) is not None:
                kept |= {name, _runtime_name(find_interpreter(plan.python))}
        if any(not build.is_over for build in self._builds.values()):
            return 0, 0  # what is being built stands on what others have built
        count = freed = 0
        for folder in list(self._folder.iterdir()):
            if folder.name not in kept:
                count += not folder.name.startswith(_RUNTIME)
                freed += _size(folder)
                gone = folder.rename(self._folder / f"{_UNFINISHED}{folder.name}")
                shutil.rmtree(gone, ignore_errors=True)
        return count, freed

    async def close(self) -> None:
        """Break off what is being built."""
        tasks = [build.task for build in self._builds.values() if build.task is not None and not build.task.done()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _runtime_name(interpreter: Interpreter) -> str:
    told = [interpreter.version, str(interpreter.path), *map(str, runtime_packages()), runtime_requirements()]
    return f"{_RUNTIME}{hashlib.sha256(json.dumps(told).encode()).hexdigest()}"


def _as_installed_here(requirements: str) -> str:
    """The same packages in the versions that this process runs its own client with; any where it has none."""
    found: list[str] = []
    for line in requirements.splitlines():
        wanted = Requirement(line)
        marker = f" ; {wanted.marker}" if wanted.marker is not None else ""
        try:
            found.append(f"{wanted.name}=={importlib.metadata.version(wanted.name)}{marker}")
        except importlib.metadata.PackageNotFoundError:
            found.append(f"{wanted.name}{marker}")
    return "".join(f"{line}\n" for line in dict.fromkeys(found))


def _inside(plan: ImagePlan) -> tuple[Install, ...]:
    """The installs that stay in the image's environment."""
    return tuple(one for one in plan.installs if outside(one) is None)


def _size(folder: Path) -> int:
    found = 0
    for path in folder.rglob("*"):
        about = path.lstat()
        found += about.st_size if about.st_nlink == 1 and path.is_file() else 0
    return found
