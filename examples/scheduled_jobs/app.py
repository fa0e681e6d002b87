"""Embeddings of products that changed, refreshed every hour, and a report on them every night in Berlin.

psql postgresql://... -f schema.sql
modal secret create database-credentials DATABASE_URL=postgresql://...
modal secret create slack GPUSERVE_ALERT_WEBHOOK=https://hooks.slack.com/...
modal deploy app.py
gpuserve jobs list --app scheduled-jobs
gpuserve jobs run RefreshProductEmbeddings --app scheduled-jobs
"""

from __future__ import annotations

import os
from datetime import UTC, timedelta
from typing import Any

import modal

import gpuserve

app = modal.App("scheduled-jobs")

MODEL = "BAAI/bge-base-en-v1.5"
REVISION = "a5beb1e3e68b9ab74eb54cfd186867f64f240e1a"
PORTION = 256  # products that are embedded, stored and done with before the next are read
CONNECT_TIMEOUT_S = 10
database = gpuserve.SecretSpec(name="database-credentials", required_keys=("DATABASE_URL",))
alerts = gpuserve.JobAlerts(webhook=gpuserve.SecretSpec(name="slack", required_keys=("GPUSERVE_ALERT_WEBHOOK",)))
plain = gpuserve.ImageSpec.debian("3.11").pip("psycopg[binary]==3.3.9")
embedding = plain.pip("sentence-transformers==6.2.0", "torch==2.13.0")

# Products whose text is not the one that was embedded, as of the time that the run is for. Not by comparing times: a
# change may be committed after the run that its time would have belonged to, and the next run must see it.
CHANGED = """
SELECT id, updated_at, concat_ws(' ', title, description) FROM products
WHERE embedding_of IS DISTINCT FROM updated_at AND updated_at <= %(until)s AND id > %(after)s
ORDER BY id LIMIT %(portion)s
"""
# Nothing newer is overwritten: not by an older run that was taken for dead and was not, whose fence is the smaller,
# and not where the text changed while its embedding was made.
STORE = """
UPDATE products SET embedding = %(embedding)s, embedding_of = %(seen)s, embedding_refreshed_at = %(until)s,
    embedding_fence = %(fence)s
WHERE id = %(id)s AND updated_at = %(seen)s AND embedding_fence <= %(fence)s
"""
# The hour at which one report ends is the first of the next one's.
REPORT = """
INSERT INTO embedding_reports (key, since, until, refreshed)
SELECT %(key)s, %(since)s, %(until)s, count(*) FROM products
WHERE embedding_refreshed_at >= %(since)s AND embedding_refreshed_at < %(until)s
ON CONFLICT (key) DO NOTHING
"""
REPORTED = "SELECT refreshed FROM embedding_reports WHERE key = %(key)s"


def connect() -> Any:
    """A connection without a transaction that stays open while the model works."""
    import psycopg

    return psycopg.connect(os.environ["DATABASE_URL"], autocommit=True, connect_timeout=CONNECT_TIMEOUT_S)


@gpuserve.register(app)
class RefreshProductEmbeddings(gpuserve.ScheduledJob):
    """Every hour: embed what changed. A run that is late, or repeated by hand, does what is left of its hour."""

    schedule = gpuserve.Schedule.period(hours=1)
    catch_up = "one"
    retries = 2
    timeout_s = 1800
    image = embedding
    gpu = "T4"
    secrets = (database,)
    alerts = alerts

    def run(self, run: gpuserve.JobRun) -> dict[str, Any]:
        model, after, embedded = None, 0, 0
        with connect() as connection:
            while True:
                wanted = {"until": run.nominal_time, "after": after, "portion": PORTION}
                rows = connection.execute(CHANGED, wanted).fetchall()
                if not rows:
                    return {"embedded": embedded}
                if model is None:
                    model = load()
                vectors = model.encode([text for _, _, text in rows], normalize_embeddings=True)
                values = [
                    {
                        "id": ident,
                        "seen": seen,
                        "embedding": str(vector.tolist()),
                        "until": run.nominal_time,
                        "fence": run.fence,
                    }
                    for (ident, seen, _), vector in zip(rows, vectors, strict=True)
                ]
                run.check()
                with connection.transaction(), connection.cursor() as cursor:
                    cursor.executemany(STORE, values)
                    embedded += cursor.rowcount
                after = rows[-1][0]


def load() -> Any:
    """The model; an hour in which nothing changed does without it."""
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(MODEL, revision=REVISION)


@gpuserve.register(app)
class NightlyReport(gpuserve.ScheduledJob):
    """At two in the morning in Berlin: how many embeddings were refreshed since the night before.

    The day is as long as the clocks make it, 23, 24 or 25 hours: no hour is counted twice, and none is left out.
    """

    schedule = gpuserve.Schedule.cron("0 2 * * *", zone="Europe/Berlin")
    clock = "tick"
    overlap = "queue_one"
    catch_up = "all"
    catch_up_window_s = 7 * 24 * 3600
    retries = 3
    timeout_s = 600
    image = plain
    secrets = (database,)
    alerts = alerts

    def run(self, run: gpuserve.JobRun) -> dict[str, Any]:
        # in UTC, since a moment before three is no time of day in the night that has no two
        before = run.nominal_time.astimezone(UTC) - timedelta(microseconds=1)
        since = self.schedule.latest_until(before)
        night = {"key": run.idempotency_key, "since": since, "until": run.nominal_time}
        with connect() as connection:
            connection.execute(REPORT, night)
            [refreshed] = connection.execute(REPORTED, night).fetchone()
        return {"key": run.idempotency_key, "refreshed": refreshed}
