"""A repeated key has one effect and one answer, for every RPC that changes something stored."""

import hashlib
import uuid

import pytest

from gpuserve.engine.protocol import RPCS, api_pb2
from gpuserve.engine.rpc import _REPEATABLE
from gpuserve.engine.services.calls import CallService
from gpuserve.engine.services.containers import ContainerService
from gpuserve.engine.services.functions import FunctionService
from gpuserve.engine.services.streams import StreamService

CREATE, ANONYMOUS = api_pb2.OBJECT_CREATION_TYPE_CREATE_IF_MISSING, api_pb2.OBJECT_CREATION_TYPE_EPHEMERAL
DEPLOYED, DETACHED = api_pb2.APP_STATE_DEPLOYED, api_pb2.APP_STATE_DETACHED
Entry = api_pb2.DictEntry


def name():
    return f"n-{uuid.uuid4().hex}"


def app_client_disconnect(w):
    app = w.app(DETACHED)
    return w.case({"app_id": app}, {"app_id": w.app(DETACHED)}, lambda: w.apps()[app])


def app_create(w):
    return w.case({"description": "one"}, {"description": "two"}, lambda: len(w.apps()))


def app_get_or_create(w):
    fields = {"app_name": name(), "object_creation_type": CREATE}
    return w.case(fields, {**fields, "app_name": name()}, lambda: len(w.apps()))


def app_publish(w):
    fields = {"app_id": w.app(), "name": name(), "app_state": DEPLOYED}

    def history():
        return len(w.call("AppDeploymentHistory", app_id=fields["app_id"]).app_deployment_histories)

    return w.case(fields, {**fields, "deployment_tag": "other"}, history)


def versions(w, *, staged=False):
    """An app with two deployments, the second of which may be only staged, and how many it has."""
    fields = {"app_id": w.app(), "name": name(), "app_state": DEPLOYED}
    w.call("AppPublish", **fields)
    w.call("AppPublish", **fields, staged=staged)

    def history():
        return len(w.call("AppDeploymentHistory", app_id=fields["app_id"]).app_deployment_histories)

    return fields["app_id"], history


def app_promote(w):
    app, history = versions(w, staged=True)
    return w.case({"app_id": app, "version": 2}, {"app_id": app, "version": 1}, history)


def app_rollback(w):
    app, history = versions(w)
    return w.case({"app_id": app, "version": 1}, {"app_id": app, "version": 2}, history)


def app_rollover(w):
    app, history = versions(w)
    return w.case({"app_id": app}, {"app_id": versions(w)[0]}, history)


def app_set_tags(w):
    app = w.app()

    def between():
        w.call("AppSetTags", app_id=app, tags={"a": "later"})

    def tags():
        return dict(w.call("AppGetTags", app_id=app).tags)

    return w.case({"app_id": app, "tags": {"a": "1"}}, {"app_id": app, "tags": {}}, tags, between)


def app_stop(w):
    app = w.app()
    return w.case({"app_id": app}, {"app_id": w.app()}, lambda: w.apps()[app])


def blob_create(w):
    return w.case({"content_length": 1}, {"content_length": 2}, between=lambda: None)  # the answer is the effect


def dict_clear(w):
    ident = w.dict(a=b"1")

    def between():
        w.call("DictUpdate", dict_id=ident, updates=[Entry(key=b"b", value=b"2")])

    return w.case({"dict_id": ident}, {"dict_id": w.dict()}, lambda: w.entries(ident), between)


def dict_delete(w):
    ident = w.dict()
    return w.case({"dict_id": ident}, {"dict_id": w.dict()}, lambda: w.exists(ident))


def get_or_create(kind, **fields):
    def case(w):
        given = {"object_creation_type": ANONYMOUS, **fields}
        return w.case(given, {**given, "object_creation_type": CREATE}, lambda: w.ids(kind))

    return case


def dict_pop(w):
    ident = w.dict(a=b"1")

    def between():
        w.call("DictUpdate", dict_id=ident, updates=[Entry(key=b"a", value=b"2")])

    fields = {"dict_id": ident, "key": b"a"}
    return w.case(fields, {**fields, "key": b"b"}, lambda: w.entries(ident), between)


def dict_update(w):
    ident = w.dict()

    def between():
        w.call("DictUpdate", dict_id=ident, updates=[Entry(key=b"a", value=b"later")])

    fields = {"dict_id": ident, "updates": [Entry(key=b"a", value=b"1")]}
    return w.case(fields, {**fields, "if_not_exists": True}, lambda: w.entries(ident), between)


def environments(w):
    return {one.name for one in w.call("EnvironmentList").items}


def environment_create(w):
    return w.case({"name": name()}, {"name": name()}, lambda: environments(w))


def environment_get_or_create(w):
    fields = {"deployment_name": name(), "object_creation_type": CREATE}
    return w.case(fields, {**fields, "deployment_name": name()}, lambda: environments(w))


def image_get_or_create(w):
    def images():
        return w.core.store.query("SELECT id FROM images")

    image = api_pb2.Image(dockerfile_commands=[f"# {name()}"])
    return w.case({"image": image}, {"image": api_pb2.Image()}, images)


def queue_clear(w):
    ident = w.queue(b"a")

    def between():
        w.call("QueuePut", queue_id=ident, values=[b"b"])

    return w.case({"queue_id": ident}, {"queue_id": ident, "all_partitions": True}, lambda: w.items(ident), between)


def queue_delete(w):
    ident = w.queue()
    return w.case({"queue_id": ident}, {"queue_id": w.queue()}, lambda: w.exists(ident))


def queue_get(w):
    ident = w.queue(b"a", b"b", b"c")
    return w.case({"queue_id": ident}, {"queue_id": ident, "n_values": 2}, lambda: w.items(ident))


def queue_put(w):
    ident = w.queue()
    fields = {"queue_id": ident, "values": [b"a"]}
    return w.case(fields, {**fields, "values": [b"b"]}, lambda: w.items(ident))


def secret_delete(w):
    ident = w.secret()
    return w.case({"secret_id": ident}, {"secret_id": w.secret()}, lambda: w.exists(ident))


def secret_update(w):
    ident = w.secret(A="0")

    def update(value):
        return {"secret_id": ident, "updates": [api_pb2.SecretUpdateRequest.Update(key="A", value=value)]}

    def between():
        w.call("SecretUpdate", **update("later"))

    return w.case(update("1"), update("2"), lambda: w.core.secrets.environment_of([ident]), between)


def unchanging(w):
    return w.case({"volume_id": w.volume()}, {"volume_id": w.volume()}, between=lambda: None)


def volume_copy(w):
    ident = w.volume(a="1")
    fields = {"volume_id": ident, "src_paths": ["a"], "dst_path": "b"}
    return w.case(fields, {**fields, "dst_path": "c"}, lambda: w.files(ident), lambda: w.write(ident, "b", "later"))


def volume_delete(w):
    ident = w.volume()
    return w.case({"volume_id": ident}, {"volume_id": w.volume()}, lambda: w.exists(ident))


def volume_put(w):
    ident = w.volume()
    fields = {"volume_id": ident, "files": [api_pb2.VolumePutFiles2Request.File(path="a")]}
    other = {**fields, "disallow_overwrite_existing_files": True}
    return w.case(fields, other, lambda: w.files(ident), lambda: w.write(ident, "a", "later"))


def volume_put_whole(w):
    ident, data = w.volume(), b"one"
    digest = hashlib.sha256(data).hexdigest()
    w.call("MountPutFile", sha256_hex=digest, data=data)
    fields = {"volume_id": ident, "files": [api_pb2.MountFile(filename="a", sha256_hex=digest)]}
    other = {**fields, "disallow_overwrite_existing_files": True}
    return w.case(fields, other, lambda: w.files(ident), lambda: w.write(ident, "a", "later"))


def tokens(w):
    return {one.token_id: one.name for one in w.call("WebhookTokenList").tokens}


def token_create(w):
    return w.case({"name": "one"}, {"name": "two"}, lambda: tokens(w))


def token_update(w):
    ident = w.call("WebhookTokenCreate", name="one").token_id

    def between():
        w.call("WebhookTokenUpdate", token_id=ident, name="later")

    fields = {"token_id": ident, "name": "two"}
    return w.case(fields, {**fields, "name": "three"}, lambda: tokens(w)[ident], between)


def token_delete(w):
    ident = w.call("WebhookTokenCreate", name="one").token_id
    other = w.call("WebhookTokenCreate", name="two").token_id
    return w.case({"token_id": ident}, {"token_id": other}, lambda: tokens(w))


def volume_remove(w):
    ident = w.volume(a="1")
    fields = {"volume_id": ident, "path": "a"}
    return w.case(fields, {**fields, "path": "b"}, lambda: w.files(ident), lambda: w.write(ident, "a", "later"))


def volume_rename(w):
    ident, first, later = w.volume(), name(), name()

    def between():
        w.call("VolumeRename", volume_id=ident, name=later)

    def called():
        return w.call("VolumeGetById", volume_id=ident).metadata.name

    fields = {"volume_id": ident, "name": first}
    return w.case(fields, {**fields, "name": name()}, called, between)


STORED = {
    "AppClientDisconnect": app_client_disconnect,
    "AppCreate": app_create,
    "AppGetOrCreate": app_get_or_create,
    "AppPublish": app_publish,
    "AppPromote": app_promote,
    "AppRollback": app_rollback,
    "AppRollover": app_rollover,
    "AppSetTags": app_set_tags,
    "AppStop": app_stop,
    "BlobCreate": blob_create,
    "DictClear": dict_clear,
    "DictDelete": dict_delete,
    "DictGetOrCreate": get_or_create("dict"),
    "DictPop": dict_pop,
    "DictUpdate": dict_update,
    "EnvironmentCreate": environment_create,
    "EnvironmentGetOrCreate": environment_get_or_create,
    "ImageGetOrCreate": image_get_or_create,
    "MountGetOrCreate": get_or_create("mount"),
    "QueueClear": queue_clear,
    "QueueDelete": queue_delete,
    "QueueGet": queue_get,
    "QueueGetOrCreate": get_or_create("queue"),
    "QueuePut": queue_put,
    "SecretDelete": secret_delete,
    "SecretGetOrCreate": get_or_create("secret", env_dict={"A": "1"}),
    "SecretUpdate": secret_update,
    "VolumeCommit": unchanging,
    "VolumeCopyFiles": volume_copy,
    "VolumeCopyFiles2": volume_copy,
    "VolumeDelete": volume_delete,
    "VolumeGetOrCreate": get_or_create("volume"),
    "VolumePutFiles": volume_put_whole,
    "VolumePutFiles2": volume_put,
    "VolumeReload": unchanging,
    "VolumeRemoveFile": volume_remove,
    "VolumeRemoveFile2": volume_remove,
    "VolumeRename": volume_rename,
    "WebhookTokenCreate": token_create,
    "WebhookTokenDelete": token_delete,
    "WebhookTokenUpdate": token_update,
}
# They change nothing; that an answer is kept for them is harmless.
READS = {"AppCountLogs", "AppDeploymentHistory", "AppFetchLogs"}


@pytest.mark.parametrize("rpc", STORED)
def test_a_repeated_key_has_one_effect_and_one_answer(rpc, world):
    world.replay(rpc, STORED[rpc](world))


def test_every_built_rpc_that_changes_what_is_stored_is_tried_here(engine):
    elsewhere = (CallService, ContainerService, FunctionService, StreamService)
    built = {one for one in engine.core.servicer.implemented if not RPCS[one].streams}

    changing = {one for one in built - _REPEATABLE if not any(hasattr(service, one) for service in elsewhere)}

    assert changing - READS == set(STORED)
