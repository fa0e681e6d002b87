"""Schedules of plain Modal apps: fired once deployed, never before, until the app is stopped."""

from __future__ import annotations

import time

APP = """
import modal
app = modal.App("clockwork")
heard = modal.Queue.from_name("beats", create_if_missing=True)

@app.function(schedule=modal.Period(seconds=1), retries=1)
def beat(): heard.put("beat")

@app.function(schedule=modal.Cron("0 2 * * *", timezone="Europe/Berlin"))
def nightly(): heard.put("night")

@app.function()
def plain(): heard.put("plain")

@app.local_entrypoint()
def main():
    import time
    time.sleep(1.5)
"""


def test_a_deployed_period_fires_an_ephemeral_one_does_not_and_a_stopped_one_no_more(program, engine):
    found = program(
        """
        heard = modal.Queue.from_name("beats", create_if_missing=True)
        cli("run", "app.py")
        found["ephemeral"] = heard.len()
        cli("deploy", "app.py")
        found["deployed"] = [heard.get(timeout=30) for _ in range(2)]
        found["list"] = "clockwork" in cli("app", "list")
        cli("app", "stop", "clockwork", "--yes")
        heard.clear()
        import time; time.sleep(1.5)
        found["stopped"] = heard.len()
        """,
        app=APP,
    )
    assert found == {"ephemeral": 0, "deployed": ["beat"] * 2, "list": True, "stopped": 0}
    assert engine.status()["schedules"] == []


def test_the_status_tells_when_what_is_due_next(program, engine):
    program('cli("deploy", "app.py")', app=APP)
    lines = {line["function"]: line for line in engine.status()["schedules"]}
    assert lines.keys() == {"beat", "nightly"}
    assert lines["nightly"]["schedule"] == "cron 0 2 * * * in Europe/Berlin"
    assert lines["nightly"]["last"] is None
    assert lines["beat"]["next"] < lines["nightly"]["next"]
    assert lines["beat"]["next"] > time.strftime("%Y-%m-%d", time.gmtime(time.time() - 100))
