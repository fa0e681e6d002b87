"""The apps that the tests of changed clocks deploy; `tell` is put before each, and says to the test that one runs."""


def _app(name, **schedules):
    """Plain functions of Modal's, each with a schedule."""
    functions = [
        f"@app.function(schedule={one})\ndef {name}():\n    tell({name!r})\n" for name, one in schedules.items()
    ]
    return "\n".join([f"app = modal.App({name!r})", *functions])


PLAIN = _app(
    "plain",
    half="modal.Cron('30 2 * * *', timezone='Europe/Berlin')",
    two="modal.Cron('0 2 * * *', timezone='Europe/Berlin')",
    hourly="modal.Cron('0 * * * *', timezone='Europe/Berlin')",
    minutely="modal.Cron('* * * * *', timezone='Europe/Berlin')",
    often="modal.Period(minutes=1)",
)

PERIODS = _app("periods", **{f"p{number}": f"modal.Period(seconds={s})" for number, s in enumerate((1, 1, 1.5, 2, 2))})

JOBS = """
import gpuserve
app = modal.App("jobs")

class Told(gpuserve.ScheduledJob):
    schedule = gpuserve.Schedule.cron("* * * * *", zone="Europe/Berlin")
    image = gpuserve.ImageSpec.debian()
    overlap = "allow"
    max_containers = 4
    def run(self, run):
        tell(run.job, nominal=run.idempotency_key, fence=run.fence)

@gpuserve.register(app)
class Native(Told):
    pass

@gpuserve.register(app)
class Ticked(Told):
    clock = "tick"
"""

SECONDS = """
import gpuserve
app = modal.App("seconds")

class Told(gpuserve.ScheduledJob):
    schedule = gpuserve.Schedule.period(seconds=2)
    image = gpuserve.ImageSpec.debian()
    overlap = "allow"
    max_containers = 4
    def run(self, run):
        tell(run.job, nominal=run.idempotency_key, fence=run.fence)

@gpuserve.register(app)
class Native(Told):
    pass

@gpuserve.register(app)
class Ticked(Told):
    schedule = gpuserve.Schedule.cron("* * * * *")
    clock = "tick"
"""

APART = """
import time, modal
app = modal.App("apart")

@app.function()
def double(number):
    return 2 * number

@app.function()
def count_to(number):
    yield from range(number)

@app.local_entrypoint()
def main():
    assert double.remote(1) == 2
    assert list(double.map(range(20))) == [2 * number for number in range(20)]
    assert double.spawn(3).get(timeout=20) == 6
    assert list(count_to.remote_gen(3)) == [0, 1, 2]
    with modal.Queue.ephemeral() as queue, modal.Dict.ephemeral() as shelf, modal.Volume.ephemeral() as volume:
        queue.put("x", partition="p", partition_ttl=60)
        assert queue.get(partition="p", timeout=5) == "x"
        shelf["a"] = 1
        assert shelf["a"] == 1
        with volume.batch_upload() as batch:
            batch.put_file("apart.py", "f")
        assert b"".join(volume.read_file("f"))
    modal.Dict.from_name("kept", create_if_missing=True)["a"] = 1
    assert modal.Dict.from_name("kept")["a"] == 1
    print("all is well")
"""
