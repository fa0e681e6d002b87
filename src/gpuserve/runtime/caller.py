"""A loop in a thread of its own, whose heavy calls come back to the thread that waits for them.

So a server runs in a script, in a notebook (whose thread has a running loop already) or under a debugger alike:
its queue lives beside, and the model's own methods are called where the caller stands.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor, Future
from typing import Any, ParamSpec, TypeVar

from gpuserve.exceptions import EngineError

__all__ = ["CallerLoop"]

Params = ParamSpec("Params")
Value = TypeVar("Value")


class CallerLoop(Executor):
    """Waits for coroutines on its loop; what these hand to it as an executor runs in the waiting thread."""

    def __init__(self) -> None:
        self._todo: deque[Callable[[], None]] = deque()
        self._changed = threading.Condition()
        self._loop = asyncio.new_event_loop()
        self._hosts: list[asyncio.AbstractEventLoop] = []
        self._calling: set[int] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, name="gpuserve-queue", daemon=True)
        self._thread.start()

    def submit(self, fn: Callable[Params, Value], /, *args: Params.args, **kwargs: Params.kwargs) -> Future[Value]:
        """Have *fn* called by whoever waits."""
        future: Future[Value] = Future()

        def call() -> None:
            if not future.set_running_or_notify_cancel():
                return
            here = threading.get_ident()
            self._calling.add(here)
            try:
                future.set_result(fn(*args, **kwargs))
            except BaseException as error:
                future.set_exception(error)
                if not isinstance(error, Exception):
                    raise  # Ctrl-C and the debugger's quit belong to the caller too
            finally:
                self._calling.discard(here)

        with self._changed:
            self._todo.append(call)
            self._changed.notify_all()
        for host in self._hosts[-1:]:
            host.call_soon_threadsafe(self._call_next)
        return future

    @property
    def is_here(self) -> bool:
        """Whether the caller runs on this loop already."""
        return threading.current_thread() is self._thread

    def wait(self, coroutine: Coroutine[Any, Any, Value]) -> Value:
        """The coroutine's value, with its calls made in this thread.

        Raises:
            EngineError: Inside such a call: the queue waits for it, and it would wait for the queue.
        """
        self._refuse_itself(coroutine)
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        future.add_done_callback(self._tell_waiting)
        try:
            while not future.done():
                with self._changed:
                    self._changed.wait_for(lambda: self._todo or future.done())
                self._call_next()
        except BaseException:
            future.cancel()
            raise
        return future.result()

    async def wait_async(self, coroutine: Coroutine[Any, Any, Value]) -> Value:
        """The same, awaited on another loop, in whose thread the calls are made.

        Raises:
            EngineError: Inside such a call.
        """
        self._refuse_itself(coroutine)
        host = asyncio.get_running_loop()
        self._hosts.append(host)
        for _ in range(len(self._todo)):  # left by somebody who waits no longer
            host.call_soon(self._call_next)
        try:
            return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(coroutine, self._loop))
        finally:
            self._hosts.remove(host)

    def close(self) -> None:
        """End the loop and its thread."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _tell_waiting(self, _done: Future[Any]) -> None:
        with self._changed:
            self._changed.notify_all()

    def _call_next(self) -> None:
        with self._changed:
            call = self._todo.popleft() if self._todo else None
        if call is not None:  # somebody else who waits was quicker
            call()

    def _refuse_itself(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        if threading.get_ident() in self._calling:
            coroutine.close()
            raise EngineError("a server's own method cannot wait for its queue, which waits for it; call .local(batch)")
