"""A container that is killed takes no input with it; one that is killed again and again says why."""

import pickle

from gpuserve.engine.protocol import api_pb2

APP = """
    import os, signal, threading
    import modal
    app = modal.App("killed")
    tries = modal.Dict.from_name("tries", create_if_missing=True)

    def kill(): os.kill(os.getpid(), signal.SIGKILL)

    @app.function()
    def once(name):
        seen = tries.get(name, 0)
        tries[name] = seen + 1
        if not seen: kill()
        return seen

    @app.function(max_containers=1)
    def dies_later(name):
        if tries.get(name, 0) == 0:
            tries[name] = 1
            threading.Timer(0.2, kill).start()
        return name

    @app.function()
    @modal.batched(max_batch_size=4, wait_ms=500)
    def batched(names):
        if tries.put(names[0], 1, skip_if_exists=True): kill()
        return names

    @app.function()
    def always(name):
        tries[name] = tries.get(name, 0) + 1
        print("try", tries[name], flush=True)
        kill()

    def within(seconds, call): return call.get(timeout=seconds)
"""


def test_what_a_container_ran_when_it_was_killed_is_run_again(run_app):
    found = run_app(
        APP
        + """
    @app.local_entrypoint()
    def main():
        report([once.remote("a"), sorted(once.map(["b", "c", "d"])), sorted(batched.map(["e", "f", "g", "h"]))])
    """
    )

    assert found == [1, [1, 1, 1], ["e", "f", "g", "h"]]


def test_an_idle_container_that_is_killed_takes_no_later_input(run_app):
    found = run_app(
        APP
        + """
    @app.local_entrypoint()
    def main():
        first = dies_later.remote("x")
        stopped = threading.Event()
        while dies_later.get_current_stats().num_total_runners and not stopped.wait(0.05): pass
        report([first, *(within(20, dies_later.spawn(name)) for name in ("x", "y"))])
    """
    )

    assert found == ["x", "x", "y"]


def test_an_input_that_kills_its_container_each_time_fails_with_the_last_log_lines(run_app):
    found = run_app(
        APP
        + """
    @app.local_entrypoint()
    def main():
        try: always.remote("z")
        except modal.exception.RemoteError as error: report([str(error), tries["z"], once.remote("other")])
    """
    )

    message, tries, other = found
    assert "was killed by signal 9" in message
    assert f"try {tries}" in message
    assert (tries, other) == (4, 1)


def test_a_client_that_is_gone_takes_no_item_out_of_a_queue(rpc):
    queue = rpc("QueueGetOrCreate", object_creation_type=api_pb2.OBJECT_CREATION_TYPE_EPHEMERAL).queue_id

    rpc("QueueGet", queue_id=queue, timeout=30, leave_after_s=0.2)
    rpc("QueuePut", queue_id=queue, values=[pickle.dumps(1)])

    assert rpc("QueueGet", queue_id=queue, timeout=5).values == [pickle.dumps(1)]
