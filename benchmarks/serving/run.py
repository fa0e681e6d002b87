"""Every side in a process of its own, loaded in turn; the medians of the rounds beside their bars."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import numpy as np

from benchmarks.record import keep, machine, median
from benchmarks.serving import peers
from benchmarks.serving.engine import deployed
from benchmarks.serving.load import find_wrk, wrk
from benchmarks.serving.processes import answer, free_port, process, wait_for
from benchmarks.serving.summary import summary_of
from gpuserve.models.embeddings import LONGEST
from gpuserve.quickstart.corpus import standard_library_docstrings

__all__ = ["CASES", "main"]

CASES = ("noop", "embed")
_START_S = 90.0
_WARM_S = 1
# One client and the model alone are asked in turns of so many texts, so that both meet the same neighbours.
_TURNS, _A_TURN = 50, 4
# Float32's rounding over a dozen layers; see `gpuserve.models.encoder`.
_TOLERANCE = 1e-5
# Reported, not raced: they are loaded alone, because they are busy while they idle.
_REPORTED = ("ray_serve", "bento")


def main(*, rounds: int = 5, seconds: int = 2, embed_seconds: int = 4, only: tuple[str, ...] = CASES) -> dict[str, Any]:
    """Measure every case; keep the figures of a whole run.

    Args:
        rounds: How often each side is measured.
        seconds: How long the no-op model is loaded at a time.
        embed_seconds: How long MiniLM is loaded at a time.
        only: The cases.
    """
    find_wrk()
    for name in ("lit", *_REPORTED):
        peers.python(name)
    raw: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="gsb") as folder:
        for case in only:
            measure = _Measure(case, Path(folder), rounds, seconds if case == "noop" else embed_seconds)
            raw[case] = measure.noop() if case == "noop" else measure.embed()
    report = {
        "machine": machine(("modal", "gpuserve", "fastapi", "uvicorn", "uvloop", "httptools", "orjson", "torch")),
        "counts": {"rounds": rounds, "clients": 32, "seconds": seconds, "embed_seconds": embed_seconds},
        "peers": peers.versions(),
        "summary": summary_of(raw),
        "raw": raw,
    }
    if set(only) == set(CASES):
        keep("serving", report)
    return report


class _Measure:
    """One case: its sides, and what is asked of them."""

    def __init__(self, case: str, folder: Path, rounds: int, seconds: int) -> None:
        self._case, self._folder, self._rounds, self._seconds = case, folder, rounds, seconds
        self._key = secrets.token_urlsafe(24)
        self._bodies = folder / f"{case}.jsonl"
        self._requests = folder / f"{case}-requests.jsonl"
        texts = ["hello"]
        if case == "embed":
            texts = [one.text[:LONGEST] for one in standard_library_docstrings()]
        self._bodies.write_text("".join(json.dumps({"input": text}) + "\n" for text in texts))
        self._found: dict[str, list[dict[str, Any]]] = {}

    def noop(self) -> dict[str, Any]:
        """The no-op model, everywhere."""
        with contextlib.ExitStack() as stack:
            urls = self._start(stack, "predict")
            self._load_all(urls)
        self._check_log()
        for name in _REPORTED:
            with contextlib.ExitStack() as stack:
                try:
                    url = self._peer(stack, name)
                except RuntimeError as error:
                    sys.stderr.write(f"{name} is left out: {error}\n")
                    continue
                for number in range(self._rounds):
                    self._load(name, url, number)
        return dict(self._found)

    def embed(self) -> dict[str, Any]:
        """MiniLM, where it is to be compared, and what needs no server."""
        with contextlib.ExitStack() as stack:
            offline = stack.enter_context(_Offline(self._bodies))
            urls = self._start(stack, "embed")
            offline.wait()
            difference = self._largest_difference(urls, offline)
            alone: dict[str, list[float]] = {"encode": [], "matmul": []}
            for number in range(self._rounds):
                self._load_all(urls, only_round=number)
                alone["encode"].append(offline.ask("encode", 300, number))
                alone["matmul"].append(offline.ask("matmul", 300, number))
                _tell(number, alone)
        self._check_log()
        return {**self._found, "alone": {**alone, **self._one_client()}, "largest_difference": difference}

    def _one_client(self) -> dict[str, list[float]]:
        """The milliseconds for one text, by the model and over HTTP, with nobody beside: LitServe idles busily."""
        found: dict[str, list[float]] = {"direct_ms": [], "one_client_ms": []}
        with contextlib.ExitStack() as stack:
            offline = stack.enter_context(_Offline(self._bodies))
            url = self._ours(stack, "embed")
            wait_for(url, self._key, _START_S)
            offline.wait()
            for number in range(self._rounds):
                direct, asked = self._in_turns(url, offline, number)
                found["direct_ms"].append(direct)
                found["one_client_ms"].append(asked)
                _tell(number, found)
        return found

    def _in_turns(self, url: str, offline: _Offline, number: int) -> tuple[float, float]:
        """The medians of milliseconds for one text: by the model alone, and over HTTP; in turns, a few texts each."""
        direct: list[float] = []
        asked: list[float] = []
        with contextlib.closing(_Client(url, self._key)) as client:
            for part in range(_TURNS):
                seed = _TURNS * number + part
                direct += offline.ask("direct", _A_TURN, seed)
                asked += [client.ask(text) for text in offline.sample(_A_TURN, seed)]
        return median(direct), median(asked)

    def _check_log(self) -> None:
        """A request log that leaves requests out would be a cheap one."""
        lines = [json.loads(line) for line in self._requests.read_text().splitlines()]
        logged = sum(line["event"] == "request" for line in lines)
        answered = sum(one["requests"] for one in self._found["ours"])
        if logged < answered or any(line["event"] == "log_dropped" for line in lines):
            raise RuntimeError(f"the log has {logged} lines for {answered} requests")

    def _start(self, stack: contextlib.ExitStack, method: str) -> dict[str, str]:
        urls = {name: self._peer(stack, name, wait=False) for name in ("plain_fastapi", "lit")}
        urls["ours"] = self._ours(stack, method)
        asgi, served = stack.enter_context(deployed(self._case, self._key, free_port(), self._folder))
        urls |= {"ingress": f"{served}/{method}", "asgi": f"{asgi}/{method}"}
        for url in urls.values():
            wait_for(url, self._key, _START_S)
        return urls

    def _ours(self, stack: contextlib.ExitStack, method: str) -> str:
        port = free_port()
        command = [sys.executable, "-m", "benchmarks.serving.ours", self._case, str(port), str(self._requests)]
        environment = {"GPUSERVE_API_KEYS": f"bench:{self._key}", "OMP_WAIT_POLICY": "PASSIVE"}
        with (self._folder / f"{self._case}-ours.log").open("a") as log:
            stack.enter_context(process(command, environment, log))
        return f"http://127.0.0.1:{port}/{method}"

    def _peer(self, stack: contextlib.ExitStack, name: str, *, wait: bool = True) -> str:
        port = free_port()
        url = f"http://127.0.0.1:{port}/predict"
        command = [peers.python(name), str(peers.PROGRAMS / f"{name}.py"), self._case, str(port)]
        if name == "bento":
            command = [peers.python(name), "-m", "bentoml", "serve", "bento:Noop", "--port", str(port)]
        with (self._folder / f"{name}.log").open("w") as log:
            running = stack.enter_context(process(command, {}, log, peers.PROGRAMS))
        if wait:
            wait_for(url, self._key, _START_S, running)
        return url

    def _load_all(self, urls: dict[str, str], only_round: int | None = None) -> None:
        for number in range(self._rounds) if only_round is None else (only_round,):
            names = list(urls) if number % 2 == 0 else list(reversed(urls))
            for name in names:
                self._load(name, urls[name], number)

    def _load(self, name: str, url: str, number: int) -> None:
        if number == 0:
            wrk(url, self._bodies, key=self._key, seconds=_WARM_S)
        found = wrk(url, self._bodies, key=self._key, seconds=self._seconds, seed=number)
        self._found.setdefault(name, []).append(found)
        sys.stderr.write(
            f"{self._case} round {number} {name}: {found['per_s']:.1f} req/s, "
            f"p50 {found['p50_ms']:.2f} ms, p99 {found['p99_ms']:.2f} ms\n"
        )

    def _largest_difference(self, urls: dict[str, str], offline: _Offline) -> float:
        """Between what each side answers and `encode`, over some texts; one that differs is not worth a race."""
        texts = offline.sample(32, 7)
        expected = np.array(offline.ask("vectors", 32, 7))
        largest = 0.0
        for name, url in urls.items():
            found = float(np.abs(np.array([answer(url, text, self._key) for text in texts]) - expected).max())
            if found > _TOLERANCE:
                raise RuntimeError(f"{name} answers differently from encode by {found:.1e}")
            largest = max(largest, found)
        return largest


def _tell(number: int, found: dict[str, list[float]]) -> None:
    sys.stderr.write(f"round {number} { ({key: round(value[-1], 2) for key, value in found.items()}) }\n")


class _Offline:
    """The process that computes without a server."""

    def __init__(self, bodies: Path) -> None:
        self._texts = [json.loads(line)["input"] for line in bodies.read_text().splitlines()]
        command = [sys.executable, "-m", "benchmarks.serving.offline", str(bodies)]
        environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.communicate()

    def wait(self) -> None:
        """Wait until it is ready."""
        self._line()

    def ask(self, command: str, count: int, seed: int) -> Any:
        """Its answer to one command."""
        if self._process.stdin is None:
            raise RuntimeError("no pipe")
        self._process.stdin.write(f"{command} {count} {seed}\n")
        self._process.stdin.flush()
        return self._line()

    def sample(self, count: int, seed: int) -> list[str]:
        """The texts that it takes for the same count and seed."""
        import random

        return random.Random(seed).sample(self._texts, count)  # noqa: S311 (no secret)

    def _line(self) -> Any:
        line = self._process.stdout.readline() if self._process.stdout is not None else ""
        if not line:
            raise RuntimeError("benchmarks.serving.offline ended")
        return json.loads(line)


class _Client:
    """One client, with a connection that it keeps, and next to no work of its own."""

    def __init__(self, url: str, key: str) -> None:
        address = urlsplit(url)
        self._head = (
            f"POST {address.path} HTTP/1.1\r\nHost: {address.netloc}\r\nAuthorization: Bearer {key}\r\n"
            f"Content-Type: application/json\r\nContent-Length: "
        ).encode()
        self._socket = socket.create_connection((str(address.hostname), int(address.port or 80)), timeout=60)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def ask(self, text: str) -> float:
        """The milliseconds that the answer takes."""
        body = json.dumps({"input": text}).encode()
        request = self._head + f"{len(body)}\r\n\r\n".encode() + body
        began = time.perf_counter()
        self._socket.sendall(request)
        head, _, answer = self._until(b"\r\n\r\n").partition(b"\r\n\r\n")
        length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        missing = int(length.partition(b":")[2]) - len(answer)
        while missing > 0:
            missing -= len(self._received())
        spent = 1000 * (time.perf_counter() - began)
        if not head.startswith(b"HTTP/1.1 200 "):
            raise RuntimeError(f"answered with {head[:200]!r}")
        return spent

    def _until(self, end: bytes) -> bytes:
        found = b""
        while end not in found:
            found += self._received()
        return found

    def _received(self) -> bytes:
        found = self._socket.recv(1 << 16)
        if not found:
            raise RuntimeError("the server hung up")
        return found

    def close(self) -> None:
        self._socket.close()
