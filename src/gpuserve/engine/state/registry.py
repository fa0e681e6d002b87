"""Apps, functions and classes: what was declared, and what of it outlives the engine.

An ephemeral app lives in memory. A deployed one is written to the store with its functions and
classes in the transaction of its AppPublish, and read back when the engine starts.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from gpuserve.engine.protocol import api_pb2
from gpuserve.engine.state.ids import new_id
from gpuserve.engine.store import Store

__all__ = ["App", "Deployment", "Function", "ModalClass", "Registry"]

_TABLES = """
CREATE TABLE IF NOT EXISTS apps (id TEXT PRIMARY KEY, body TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS functions (
    id TEXT PRIMARY KEY, app_id TEXT NOT NULL, definition BLOB NOT NULL, data BLOB NOT NULL, meta TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS classes (id TEXT PRIMARY KEY, app_id TEXT NOT NULL, function_id TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS images (id TEXT PRIMARY KEY, body BLOB NOT NULL);
"""

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
    """One AppPublish of a deployed app."""

    version: int
    deployed_at: float
    client_version: str = ""
    tag: str = ""
    rollback_version: int = 0
    function_ids: dict[str, str] = field(default_factory=dict)
    class_ids: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class App:
    """One app, ephemeral or deployed."""

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

    @property
    def is_live(self) -> bool:
        """Whether the app may run containers."""
        return self.state in LIVE

    @property
    def is_deployed(self) -> bool:
        """Whether the app outlives its client."""
        return self.state == api_pb2.APP_STATE_DEPLOYED

    @property
    def version(self) -> int:
        """The number of the newest deployment; 0 before the first."""
        return self.history[-1].version if self.history else 0

    def to_json(self) -> str:
        """The app as it is stored."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> App:
        """Read back what `to_json` wrote."""
        body: dict[str, Any] = json.loads(text)
        history = [Deployment(**one) for one in body.pop("history")]
        return cls(**body, history=history)


@dataclass(slots=True)
class Function:
    """One function, or one set of parameters of a class (then ``base_id`` names the class's own)."""

    id: str
    app_id: str
    name: str
    definition: api_pb2.Function = field(default_factory=api_pb2.Function)
    data: api_pb2.FunctionData = field(default_factory=api_pb2.FunctionData)
    staged: api_pb2.Function | None = None
    overrides: api_pb2.AutoscalerSettings = field(default_factory=api_pb2.AutoscalerSettings)
    base_id: str = ""
    serialized_params: bytes = b""
    definition_id: str = ""
    web_urls: dict[str, str] = field(default_factory=dict)

    def meta(self) -> str:
        """The small fields as they are stored."""
        return json.dumps(
            {
                "name": self.name,
                "base_id": self.base_id,
                "serialized_params": self.serialized_params.hex(),
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
            definition_id=fields["definition_id"],
            web_urls=fields["web_urls"],
        )
        self.functions[function.id] = function
        if function.base_id:
            self.bound[function.base_id, function.serialized_params, b""] = function.id

    def deployed(self, name: str, environment: str) -> App | None:
        """The live deployed app of that name."""
        for app in self.apps.values():
            if app.is_deployed and app.name == name and app.environment == environment:
                return app
        return None

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
        """Forget the functions and classes of a stopped ephemeral app; its line in lists stays."""
        for function in self.functions_of(app.id):
            del self.functions[function.id]
        for one in [one for one in self.classes.values() if one.app_id == app.id]:
            del self.classes[one.id]
        self.bound = {key: value for key, value in self.bound.items() if value in self.functions}
