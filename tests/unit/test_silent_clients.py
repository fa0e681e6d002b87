"""An app lasts as long as its client is heard of, by the time that the engine's clock tells."""

import asyncio

import pytest

from gpuserve.engine.protocol import api_pb2
from gpuserve.engine.rpc import Caller
from gpuserve.engine.services.apps import AppService
from gpuserve.engine.state.calls import CallTable
from gpuserve.engine.state.records import App
from gpuserve.engine.state.registry import Registry
from gpuserve.engine.store import Store

PATIENCE_S = 60.0


class World:
    """The apps of an engine whose clock stands still unless it is told to go on; what was stopped is kept."""

    def __init__(self, store: Store) -> None:
        self.now, self.stopped = 1000.0, list[str]()
        self.service = AppService(
            Registry(store),
            CallTable(),
            scheduler=None,  # nothing runs in these apps
            stop_app=self._stop,
            require_environment=lambda _name: None,
            expect_containers=lambda: None,
            clock=lambda: self.now,
        )

    async def _stop(self, app: App) -> None:
        app.state = api_pb2.APP_STATE_STOPPED
        self.stopped.append(app.description)

    def create(self, name: str, state: int = api_pb2.APP_STATE_EPHEMERAL) -> str:
        request = api_pb2.AppCreateRequest(description=name, app_state=state)
        return self.service.AppCreate(request, Caller()).app_id

    async def look(self) -> list[str]:
        """Do what the engine does from time to time; all that was stopped until now."""
        self.service.leave_silent(PATIENCE_S)
        await asyncio.gather(*self.service._stopping.values())
        return list(self.stopped)


@pytest.fixture
def world(tmp_path):
    store = Store(tmp_path)
    yield World(store)
    store.close()


def test_an_app_that_keeps_beating_outlives_the_time_out_and_ends_once_it_stops(world):
    async def run():
        beating, _silent = world.create("beating"), world.create("silent")
        beat = api_pb2.AppHeartbeatRequest(app_id=beating)
        for _ in range(20):  # each as late as a client's own beats come: every 15 s
            world.now += 15
            await world.service.AppHeartbeat(beat, Caller())
            yield await world.look()
        world.now += PATIENCE_S
        yield await world.look()
        world.now += 0.1
        yield await world.look()

    async def collected():
        return [stopped async for stopped in run()]

    *beats, patient, late = asyncio.run(collected())
    assert beats == [[]] * 4 + [["silent"]] * 16
    assert patient == ["silent"]
    assert late == ["silent", "beating"]


def test_a_deployed_app_needs_no_client(world):
    async def run():
        request = api_pb2.AppGetOrCreateRequest(app_name="deployed", object_creation_type=1)
        world.service.AppGetOrCreate(request, Caller())
        world.now += 100 * PATIENCE_S
        return await world.look()

    assert asyncio.run(run()) == []
