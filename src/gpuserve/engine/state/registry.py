"""Apps, functions and classes: what was declared, and what of it outlives the engine.

An ephemeral app lives in memory. A deployed one is written to the store with its functions and
classes in the transaction of its AppPublish, and read back when the engine starts. What each of its
versions defined is kept beside, for rollbacks and for look-ups of a certain version.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from dataclasses import fields
from typing import Any, TypeVar

from gpuserve.engine.protocol import api_pb2
from gpuserve.engine.state.ids import new_id
from gpuserve.engine.state.records import App, Function, ModalClass, Stated
from gpuserve.engine.store import Store

__all__ = ["Registry"]

# An app's older versions are kept for rollbacks. Source: our choice; Modal states no number.
_MOST_VERSIONS = 100
# Lines of stopped apps in lists, of which the oldest are dropped. Source: our choice.
_MOST_STOPPED = 200
# The number under which definitions are kept that were sent and not published yet: versions count from 1.
_SENT = 0

_TABLES = """
CREATE TABLE IF NOT EXISTS apps (id TEXT PRIMARY KEY, body TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS functions (
    id TEXT PRIMARY KEY, app_id TEXT NOT NULL, definition BLOB NOT NULL, data BLOB NOT NULL, meta TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS classes (id TEXT PRIMARY KEY, app_id TEXT NOT NULL, function_id TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS versions (
    app_id TEXT NOT NULL, version INTEGER NOT NULL, function_id TEXT NOT NULL,
    definition BLOB NOT NULL, data BLOB NOT NULL, definition_id TEXT NOT NULL,
    PRIMARY KEY (app_id, version, function_id));
CREATE TABLE IF NOT EXISTS images (id TEXT PRIMARY KEY, body BLOB NOT NULL);
"""

_FORGET = (
    "DELETE FROM functions WHERE app_id = ?",
    "DELETE FROM classes WHERE app_id = ?",
    "DELETE FROM versions WHERE app_id = ?",
)

_Kept = TypeVar("_Kept", App, Function, ModalClass)


class Registry:
    """All apps, functions, classes and images, with their durable half in the store."""

    def __init__(self, store: Store) -> None:
        """Read back everything that was deployed."""
        self._store = store
        store.create_tables(_TABLES)
        self.apps: dict[str, App] = {}
        self.functions: dict[str, Function] = {}
        self.classes: dict[str, ModalClass] = {}
        self.bound: dict[tuple[str, bytes, bytes], str] = {}
        self.reread()

    def reread(self) -> None:
        """Be again what the store has, where a transaction did not come about; what was never stored stays."""
        stored = {
            app.id: app for app in (App.from_json(text) for (text,) in self._store.query("SELECT body FROM apps"))
        }
        for app in list(self.apps.values()):
            if app.is_deployed and app.id not in stored:
                del self.apps[app.id]
        for app in stored.values():
            _take_in(self.apps, app, keep={"heartbeat_at"})
        for row in self._store.query("SELECT id, app_id, definition, data, meta FROM functions"):
            self._read_function(*row)
        for class_id, app_id, function_id in self._store.query("SELECT id, app_id, function_id FROM classes"):
            _take_in(self.classes, ModalClass(class_id, app_id, function_id))
        for app in stored.values():
            for function_id, stated in self.stated_in(app, _SENT).items():
                function = self.functions[function_id]
                function.staged = function.staged or stated

    def after_commit(self, action: Callable[[], None]) -> None:
        """Run *action* once the present transaction is on disk; not at all if it does not come about."""
        self._store.after_commit(action)

    def _read_function(self, function_id: str, app_id: str, definition: bytes, data: bytes, meta: str) -> None:
        fields: dict[str, Any] = json.loads(meta)
        function = Function(
            id=function_id,
            app_id=app_id,
            name=fields["name"],
            definition=api_pb2.Function.FromString(definition),
            data=api_pb2.FunctionData.FromString(data),
            base_id=fields["base_id"],
            serialized_params=bytes.fromhex(fields["serialized_params"]),
            options=bytes.fromhex(fields.get("options", "")),
            overrides=api_pb2.AutoscalerSettings.FromString(bytes.fromhex(fields.get("overrides", ""))),
            pinned=fields.get("pinned", 0),
            origin_id=fields.get("origin_id", ""),
            retired=fields.get("retired", False),
            definition_id=fields["definition_id"],
            web_urls=fields["web_urls"],
        )
        _take_in(self.functions, function, keep={"staged"})
        if function.base_id:
            self.bound[function.place] = function.id

    def deployed(self, name: str, environment: str) -> App | None:
        """The live deployed app of that name."""
        for app in self.apps.values():
            if app.is_deployed and app.name == name and app.environment == environment:
                return app
        return None

    def stopped(self, name: str, environment: str) -> App | None:
        """The app of that name that was stopped last."""
        found = [
            app
            for app in self.apps.values()
            if app.state == api_pb2.APP_STATE_STOPPED and app.name == name and app.environment == environment
        ]
        return max(found, key=lambda app: app.stopped_at, default=None)

    def functions_of(self, app_id: str) -> list[Function]:
        """Every function of an app, bound ones included."""
        return [function for function in self.functions.values() if function.app_id == app_id]

    def add_app(self, app: App) -> App:
        """Take in a new app."""
        self.apps[app.id] = app
        return app

    def save_app(self, app: App) -> None:
        """Write a deployed app with all that belongs to it."""
        self._store.execute("INSERT OR REPLACE INTO apps (id, body) VALUES (?, ?)", (app.id, app.to_json()))
        for function in self.functions_of(app.id):
            self.save_function(function)
        for one in self.classes.values():
            if one.app_id == app.id:
                self.save_class(one)

    def save_class(self, one: ModalClass) -> None:
        """Write one class."""
        self._store.execute(
            "INSERT OR REPLACE INTO classes (id, app_id, function_id) VALUES (?, ?, ?)",
            (one.id, one.app_id, one.function_id),
        )

    def save_function(self, function: Function) -> None:
        """Write one function."""
        self._store.execute(
            "INSERT OR REPLACE INTO functions (id, app_id, definition, data, meta) VALUES (?, ?, ?, ?, ?)",
            (
                function.id,
                function.app_id,
                function.definition.SerializeToString(),
                function.data.SerializeToString(),
                function.meta(),
            ),
        )

    def save_sent(self, app: App, function: Function, stated: Stated) -> None:
        """Keep what was sent of a deployed app's function, so that a kill before the publish loses nothing of it."""
        function.retired = function.retired or function.id not in app.function_ids.values()  # until it is published
        self.save_function(function)
        self.save_version(app, _SENT, {function.id: stated})

    def drop_sent(self, app: App, function: Function) -> None:
        """What was sent has become a version."""
        statement = "DELETE FROM versions WHERE app_id = ? AND version = ? AND function_id = ?"
        self._store.execute(statement, (app.id, _SENT, function.id))
        self.after_commit(function.drop_staged)

    def save_version(self, app: App, version: int, functions: dict[str, Stated]) -> None:
        """Keep what a version of *app* says of its functions, by their ids; the oldest versions are let go."""
        for function_id, stated in functions.items():
            self._store.execute(
                "INSERT OR REPLACE INTO versions (app_id, version, function_id, definition, data, definition_id) "
                "VALUES (?, ?, ?, ?, ?, ?)",
                (
                    app.id,
                    version,
                    function_id,
                    stated.definition.SerializeToString(),
                    stated.data.SerializeToString(),
                    stated.definition_id,
                ),
            )
        oldest = version - _MOST_VERSIONS
        self._store.execute("DELETE FROM versions WHERE app_id = ? AND version <= ?", (app.id, oldest))

    def stated_in(self, app: App, version: int) -> dict[str, Stated]:
        """What a version of *app* said of its functions, by their ids; empty if that is not known any more."""
        rows = self._store.query(
            "SELECT function_id, definition, data, definition_id FROM versions WHERE app_id = ? AND version = ?",
            (app.id, version),
        )
        return {
            ident: Stated(api_pb2.Function.FromString(definition), api_pb2.FunctionData.FromString(data), made)
            for ident, definition, data, made in rows
        }

    def kept_versions(self, app: App) -> frozenset[int]:
        """The versions of *app* whose definitions are kept."""
        rows = self._store.query("SELECT DISTINCT version FROM versions WHERE app_id = ? AND version > 0", (app.id,))
        return frozenset(version for (version,) in rows)

    def pin(self, app: App, version: int) -> dict[str, str]:
        """The functions of *app* as *version* had them, by name: each with containers of its own."""
        past = app.past(version)
        known = {one.origin_id: one for one in self.functions_of(app.id) if one.pinned == version and not one.base_id}
        stated = {} if past is None or len(known) >= len(past.function_ids) else self.stated_in(app, version)
        pinned: dict[str, str] = {}
        for name, origin_id in past.function_ids.items() if past is not None else ():
            function = known.get(origin_id)
            if function is None:
                if origin_id not in stated:
                    return {}
                function = self.new_function(app.id, name)
                function.pinned, function.origin_id = version, origin_id
                function.put_in_force(stated[origin_id])
                self.save_function(function)
            pinned[name] = function.id
        return pinned

    def save_image(self, image_id: str, image: api_pb2.Image) -> None:
        """Write an image layer; ids are derived from content, so a second time changes nothing."""
        self._store.execute(
            "INSERT OR IGNORE INTO images (id, body) VALUES (?, ?)", (image_id, image.SerializeToString())
        )

    def image_layers(self, image_id: str) -> list[api_pb2.Image]:
        """The layers of an image from base to top; empty for an unknown id."""
        layers: list[api_pb2.Image] = []
        while image_id:
            row = self._store.one("SELECT body FROM images WHERE id = ?", (image_id,))
            if row is None:
                break
            layer = api_pb2.Image.FromString(row[0])
            layers.append(layer)
            image_id = layer.base_images[0].image_id if layer.base_images else ""
        return layers[::-1]

    def new_function(self, app_id: str, name: str) -> Function:
        """Make room for a function that is about to be defined."""
        function = Function(id=new_id("fu"), app_id=app_id, name=name)
        self.functions[function.id] = function
        return function

    def drop_app(self, app: App) -> None:
        """Forget the functions and classes of a stopped app; its line in lists stays a while."""
        for function in self.functions_of(app.id):
            del self.functions[function.id]
        for one in [one for one in self.classes.values() if one.app_id == app.id]:
            del self.classes[one.id]
        self.bound = {key: value for key, value in self.bound.items() if value in self.functions}
        for statement in _FORGET:
            self._store.execute(statement, (app.id,))
        stopped = [one for one in self.apps.values() if one.state == api_pb2.APP_STATE_STOPPED]
        stopped.sort(key=lambda one: one.stopped_at)
        for old in stopped[:-_MOST_STOPPED]:
            del self.apps[old.id]
            self._store.execute("DELETE FROM apps WHERE id = ?", (old.id,))


def _take_in(known: dict[str, _Kept], fresh: _Kept, keep: AbstractSet[str] = frozenset()) -> None:
    """Give the object of the same id, to which others hold on, the values of *fresh*, but for those to *keep*."""
    one = known.setdefault(fresh.id, fresh)
    for slot in fields(fresh):
        if slot.name not in keep:
            setattr(one, slot.name, getattr(fresh, slot.name))
