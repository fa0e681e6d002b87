"""What belonged to nobody any more goes; what a client still uses stays, through a kill as well."""

import pytest
from grpclib import GRPCError

from gpuserve.engine.protocol import api_pb2
from gpuserve.engine.services.environments import EnvironmentService
from gpuserve.engine.services.named import NamedObjects
from gpuserve.engine.store import Store

EPHEMERAL, OWNED = api_pb2.OBJECT_CREATION_TYPE_EPHEMERAL, api_pb2.OBJECT_CREATION_TYPE_ANONYMOUS_OWNED_BY_APP


def there(engine, rpc, **fields):
    try:
        engine.rpc(rpc, **fields)
    except GRPCError:
        return False
    return True


def test_after_a_kill_only_what_still_has_an_owner_is_kept(chaos, tmp_path_factory):
    engine = chaos.Engine(tmp_path_factory.mktemp("e")).start()
    run = engine.rpc("AppCreate", description="run").app_id
    deployed = engine.rpc("AppGetOrCreate", app_name="deployed", object_creation_type=1).app_id
    lost, kept = (
        engine.rpc("SecretGetOrCreate", object_creation_type=OWNED, app_id=app, env_dict={"A": "1"}).secret_id
        for app in (run, deployed)
    )
    files = engine.rpc("VolumeGetOrCreate", object_creation_type=OWNED, app_id=run).volume_id
    used = engine.rpc("DictGetOrCreate", object_creation_type=EPHEMERAL).dict_id
    assert (engine.home / "volumes" / files).is_dir()

    engine.kill()
    engine.start()

    assert not there(engine, "SecretGetInfo", secret_id=lost)
    assert not there(engine, "VolumeGetById", volume_id=files)
    assert not (engine.home / "volumes" / files).exists()
    assert there(engine, "SecretGetInfo", secret_id=kept)
    assert there(engine, "DictHeartbeat", dict_id=used)
    assert engine.stop() == 0


@pytest.fixture
def clock():
    class Clock:
        now = 1000.0

        def __call__(self):
            return self.now

    return Clock()


def test_an_ephemeral_object_lives_as_long_as_its_client_is_heard_of(tmp_path, clock):
    store = Store(tmp_path)
    EnvironmentService(store)  # objects stand in an environment
    objects = NamedObjects(store, "dict", "di", clock)
    left, used = (objects.get_or_create("", "", EPHEMERAL).id for _ in range(2))
    owned = objects.get_or_create("", "", OWNED, app_id="ap-1").id

    clock.now += 600
    objects.touch(used)
    clock.now += 600

    assert objects.unused() == (left,)
    later = NamedObjects(store, "dict", "di", clock)  # an engine that was started just now has heard of nobody yet
    assert later.unused() == ()
    clock.now += 1000
    assert set(later.unused()) == {left, used}
    assert later.owned_by("ap-1") == (owned,)
    store.close()
