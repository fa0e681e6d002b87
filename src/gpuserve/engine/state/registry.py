"""Apps, functions and classes: what was declared, and what of it outlives the engine.

An ephemeral app lives in memory. A deployed one is written to the store with its functions and
classes in the transaction of its AppPublish, and read back when the engine starts. What each of its
versions defined is kept beside, for rollbacks and for look-ups of a certain version.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from gpuserve.engine.protocol import api_pb2
from gpuserve.engine.state.ids import new_id
from gpuserve.engine.state.variants import apply_options
from gpuserve.engine.store import Store

__all__ = ["App", "Deployment", "Function", "ModalClass", "Registry", "Stated"]

# An app's older versions are kept for rollbacks. Source: our choice; Modal states no number.
_MOST_VERSIONS = 100
# Lines of stopped apps in lists, of which the oldest are dropped. Source: our choice.
_MOST_STOPPED = 200

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

LIVE = frozenset(
    {
        api_pb2.APP_STATE_EPHEMERAL,
        api_pb2.APP_STATE_DETACHED,
        api_pb2.APP_STATE_DETACHED_DISCONNECTED,
        api_pb2.APP_STATE_DEPLOYED,
        api_pb2.APP_STATE_INITIALIZING,
    }
)


@dataclass(slots=True)
class Deployment:
    """One AppPublish of a deployed app; ``commit`` is its CommitInfo, in hexadecimal."""

    version: int
    deployed_at: float
    client_version: str = ""
    tag: str = ""
    commit: str = ""
    rollback_version: int = 0
    staged: bool = False
    function_ids: dict[str, str] = field(default_factory=dict)
    class_ids: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class App:
    """One app, ephemeral or deployed.

    Attributes:
        heartbeat_at: When its client was last heard of, in the seconds of a monotonic clock.
        version: The number of the deployment in force; 0 before the first.
    """

    id: str
    environment: str
    description: str
    state: int
    created_at: float
    name: str = ""
    deployed_at: float = 0.0
    stopped_at: float = 0.0
    heartbeat_at: float = 0.0
    tags: dict[str, str] = field(default_factory=dict)
    function_ids: dict[str, str] = field(default_factory=dict)
    class_ids: dict[str, str] = field(default_factory=dict)
    history: list[Deployment] = field(default_factory=list)
    version: int = 0

    @property
    def is_live(self) -> bool:
        """Whether the app may run containers."""
        return self.state in LIVE

    @property
    def is_deployed(self) -> bool:
        """Whether the app outlives its client."""
        return self.state == api_pb2.APP_STATE_DEPLOYED

    @property
    def newest(self) -> int:
        """The number of the newest deployment, staged ones included; 0 before the first."""
        return self.history[-1].version if self.history else 0

    def past(self, version: int) -> Deployment | None:
        """The deployment of that number."""
        return next((one for one in self.history if one.version == version), None)

    def to_json(self) -> str:
        """The app as it is stored."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> App:
        """Read back what `to_json` wrote."""
        body: dict[str, Any] = json.loads(text)
        history = [Deployment(**one) for one in body.pop("history")]
        version = body.pop("version", history[-1].version if history else 0)
        return cls(**body, history=history, version=version)


@dataclass(frozen=True, slots=True)
class Stated:
    """What one version says of a function."""

    definition: api_pb2.Function
    data: api_pb2.FunctionData
    definition_id: str


@dataclass(slots=True)
class Function:
    """One function, a variant of one, or one as an older version of its app had it.

    Attributes:
        staged: What the next publish puts in force.
        base_id: Of a variant: the function whose parameters or options it changes.
        pinned: Of an older version's function: the number of that version; ``origin_id`` is today's function.
        retired: The version in force has it no more; what waits for it is still run.
    """

    id: str
    app_id: str
    name: str
    definition: api_pb2.Function = field(default_factory=api_pb2.Function)
    data: api_pb2.FunctionData = field(default_factory=api_pb2.FunctionData)
    staged: Stated | None = None
    overrides: api_pb2.AutoscalerSettings = field(default_factory=api_pb2.AutoscalerSettings)
    base_id: str = ""
    serialized_params: bytes = b""
    options: bytes = b""
    pinned: int = 0
    origin_id: str = ""
    retired: bool = False
    definition_id: str = ""
    web_urls: dict[str, str] = field(default_factory=dict)

    @property
    def stated(self) -> Stated:
        """What is in force for it now."""
        return Stated(self.definition, self.data, self.definition_id)

    @property
    def place(self) -> tuple[str, bytes, bytes]:
        """What makes a variant the same variant."""
        return self.base_id, self.serialized_params, self.options

    def put_in_force(self, stated: Stated) -> None:
        """Make *stated* what its next containers run."""
        self.definition, self.data, self.definition_id = stated.definition, stated.data, stated.definition_id
        self.overrides = api_pb2.AutoscalerSettings()

    def follow(self, base: Function) -> None:
        """Of a variant: be *base* as it is now, under these options."""
        self.definition = api_pb2.Function()
        self.definition.CopyFrom(base.definition)
        apply_options(api_pb2.FunctionOptions.FromString(self.options), self.definition)
        self.data, self.definition_id, self.web_urls = base.data, base.definition_id, dict(base.web_urls)
        self.retired = base.retired

    def meta(self) -> str:
        """The small fields as they are stored."""
        return json.dumps(
            {
                "name": self.name,
                "base_id": self.base_id,
                "serialized_params": self.serialized_params.hex(),
                "options": self.options.hex(),
                "overrides": self.overrides.SerializeToString().hex(),
                "pinned": self.pinned,
                "origin_id": self.origin_id,
                "retired": self.retired,
                "definition_id": self.definition_id,
                "web_urls": self.web_urls,
            }
        )


@dataclass(slots=True)
class ModalClass:
    """A class: a name for the function that runs it."""

    id: str
    app_id: str
    function_id: str


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
        for (text,) in store.query("SELECT body FROM apps"):
            app = App.from_json(text)
            self.apps[app.id] = app
        for row in store.query("SELECT id, app_id, definition, data, meta FROM functions"):
            self._read_function(*row)
        for class_id, app_id, function_id in store.query("SELECT id, app_id, function_id FROM classes"):
            self.classes[class_id] = ModalClass(class_id, app_id, function_id)

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
        self.functions[function.id] = function
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
        rows = self._store.query("SELECT DISTINCT version FROM versions WHERE app_id = ?", (app.id,))
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
