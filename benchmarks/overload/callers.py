"""`python -m benchmarks.overload.callers URL KEY CLIENTS SECONDS SEED`: callers that do as they are told.

Each keeps its connection, asks again as soon as it is answered, and where it is refused waits as long as Retry-After
says. Prints the seconds that answers and refusals took.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from dataclasses import asdict, dataclass, field
from urllib.parse import urlsplit

__all__: list[str] = []

_OK = 200
_REFUSED = frozenset({429, 503})
# Callers that came at the same moment do not come back at the same moment.
_SPREAD = (0.5, 1.5)
_SETTLE_S = 1.0


@dataclass
class Figures:
    """Seconds of answers and of refusals, once the callers have settled."""

    answered: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    others: dict[int, int] = field(default_factory=dict)


async def _call(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> tuple[int, float, bool]:
    """The status, the seconds to come back after, and whether the connection stays."""
    writer.write(request)
    head = await reader.readuntil(b"\r\n\r\n")
    status = int(head.split(b" ", 2)[1])
    headers = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:] if b": " in line)
    await reader.readexactly(int(headers.get(b"content-length", b"0")))
    return status, float(headers.get(b"retry-after", b"1")), headers.get(b"connection") != b"close"


async def _caller(
    address: tuple[str, int], request: bytes, until: float, figures: Figures, dice: random.Random
) -> None:
    settled = until - float(sys.argv[4])
    await asyncio.sleep(dice.random() * _SETTLE_S)
    writer: asyncio.StreamWriter | None = None
    while (begun := time.perf_counter()) < until:
        try:
            if writer is None:
                reader, writer = await asyncio.open_connection(*address)
            status, wait_s, stays = await _call(reader, writer, request)
        except (ConnectionError, asyncio.IncompleteReadError):
            status, wait_s, stays = 0, 1.0, False
        spent = time.perf_counter() - begun
        if begun >= settled:
            if status == _OK:
                figures.answered.append(spent)
            elif status in _REFUSED:
                figures.refused.append(spent)
            else:
                figures.others[status] = figures.others.get(status, 0) + 1
        if not stays and writer is not None:
            writer.close()
            writer = None
        if status != _OK:
            await asyncio.sleep(wait_s * dice.uniform(*_SPREAD))
    if writer is not None:
        writer.close()


async def main() -> None:
    """Call, and print what came."""
    url, key, clients, seconds, seed = sys.argv[1:]
    address = urlsplit(url)
    body = json.dumps({"input": "hello"}).encode()
    request = (
        f"POST {address.path} HTTP/1.1\r\nHost: {address.netloc}\r\nAuthorization: Bearer {key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode() + body
    figures = Figures()
    until = time.perf_counter() + 2 * _SETTLE_S + float(seconds)
    where = (str(address.hostname), int(address.port or 80))
    dices = [random.Random(f"{seed} {number}") for number in range(int(clients))]  # noqa: S311 (no secret)
    await asyncio.gather(*(_caller(where, request, until, figures, dice) for dice in dices))
    sys.stdout.write(json.dumps(asdict(figures)) + "\n")


if __name__ == "__main__":
    asyncio.run(main())
