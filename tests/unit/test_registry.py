"""What an app's versions, variants and settings are is read back as it was."""

import pytest

from gpuserve.engine.protocol import api_pb2
from gpuserve.engine.state import registry as module
from gpuserve.engine.state.records import App, Deployment, Stated
from gpuserve.engine.state.registry import Registry
from gpuserve.engine.store import Store


@pytest.fixture
def stores(tmp_path):
    opened = []

    def again():
        for store in opened:
            store.close()
        opened[:] = [Store(tmp_path)]
        return Registry(opened[0])

    yield again
    opened[0].close()


def stated(code):
    return Stated(api_pb2.Function(function_name="f", module_name=code), api_pb2.FunctionData(), f"de-{code}")


def deployed(registry, *codes):
    """An app with one function, and a version for each of *codes*."""
    app = registry.add_app(App("ap", "main", "name", api_pb2.APP_STATE_DEPLOYED, 0.0, name="name"))
    function = registry.new_function("ap", "f")
    for version, code in enumerate(codes, 1):
        function.put_in_force(stated(code))
        app.function_ids, app.version = {"f": function.id}, version
        app.history.append(Deployment(version, 0.0, function_ids={"f": function.id}))
        registry.save_version(app, version, {function.id: function.stated})
    registry.save_app(app)
    return app, function


def variant(registry, base, parameters=b"", **options):
    made = registry.new_function(base.app_id, base.name)
    made.base_id, made.serialized_params = base.id, parameters
    made.options = api_pb2.FunctionOptions(**options).SerializeToString()
    made.follow(base)
    registry.bound[made.place] = made.id
    registry.save_function(made)
    return made


def test_variants_of_one_function_are_told_apart_after_a_restart(stores):
    registry = stores()
    _app, base = deployed(registry, "one")
    plain, with_options = variant(registry, base, b"p"), variant(registry, base, b"p", timeout_secs=5)
    again = stores()
    assert again.bound == {plain.place: plain.id, with_options.place: with_options.id}
    assert again.functions[plain.id].definition.timeout_secs == 0
    assert again.functions[with_options.id].definition.timeout_secs == 5


def test_a_setting_that_was_changed_is_still_changed_after_a_restart(stores):
    registry = stores()
    _app, function = deployed(registry, "one")
    function.overrides.min_containers = 0
    registry.save_function(function)
    read = stores().functions[function.id].overrides
    assert read.HasField("min_containers")
    assert not read.HasField("max_containers")


def test_an_older_version_is_pinned_once_and_stays_pinned(stores):
    registry = stores()
    app, function = deployed(registry, "one", "two")
    pinned = registry.pin(app, 1)
    assert registry.pin(app, 1) == pinned
    again = stores()
    assert again.pin(again.apps["ap"], 1) == pinned
    old = again.functions[pinned["f"]]
    assert (old.definition.module_name, old.pinned, old.origin_id) == ("one", 1, function.id)
    assert again.functions[function.id].definition.module_name == "two"
    assert again.pin(again.apps["ap"], 7) == {}


def test_only_the_newest_versions_are_kept(stores, monkeypatch):
    monkeypatch.setattr(module, "_MOST_VERSIONS", 2)
    registry = stores()
    app, _function = deployed(registry, "one", "two", "three")
    assert registry.kept_versions(app) == {2, 3}
    assert registry.pin(app, 1) == {}


def test_what_a_stopped_app_ran_is_forgotten_and_its_line_stays_a_while(stores, monkeypatch):
    monkeypatch.setattr(module, "_MOST_STOPPED", 2)
    registry = stores()
    app, function = deployed(registry, "one")
    app.state, app.stopped_at = api_pb2.APP_STATE_STOPPED, 1.0
    registry.save_app(app)
    registry.drop_app(app)
    assert function.id not in registry.functions
    assert registry.kept_versions(app) == frozenset()
    assert registry.stopped("name", "main") is app
    for number in (2, 3):
        ended = App(f"ap-{number}", "main", "", api_pb2.APP_STATE_STOPPED, 0.0, stopped_at=float(number))
        registry.drop_app(registry.add_app(ended))
    assert set(registry.apps) == {"ap-2", "ap-3"}
    assert set(stores().apps) == set()
