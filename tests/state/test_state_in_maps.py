"""State shared by the containers of a map, on the real engine through the real client."""

import pytest

APP = """
    import os, time
    import modal, gpuserve

    app = modal.App("state")
    image = gpuserve.modal_image(gpuserve.ImageSpec.debian())
    texts, tokens = gpuserve.SeenSet("texts"), gpuserve.Counter("tokens")
    once, run = gpuserve.Counter("once"), gpuserve.Progress("run", every_s=0)
    api = gpuserve.RateLimiter("api", rate_per_s=20, burst=5)
    deaths = gpuserve.SeenSet("deaths")
    meeting = modal.Queue.from_name("meeting", create_if_missing=True)

    @app.function(image=image, max_containers=CONTAINERS, retries=modal.Retries(max_retries=3, initial_delay=0.0))
    def work(number):
        text = f"text {number % DISTINCT}"
        new = texts.add(text, by=modal.current_input_id())
        if number % DEATHS == 0 and deaths.add(number):
            os._exit(1)  # after it took its item: the input runs again
        if number in (1, 2):  # at work at the same time, so in two containers
            meeting.put("here", partition=str(3 - number))
            meeting.get(partition=str(number), timeout=60)
        if new:
            once.add(3, once=text)
            api.acquire()
            began = time.time()
        tokens.add(2)
        run.advance(1)
        return (new, os.getpid(), began if new else None)

    @app.local_entrypoint()
    def main():
        run.expect(ITEMS)
        answers = list(work.map(range(ITEMS)))
        report({"answers": answers, "tokens": tokens.value(), "once": once.value(),
                "run": [run.report().done, run.report().total, run.report().writers]})
"""


def _shared(run_app, items, distinct, containers, deaths):
    sizes = {"ITEMS": items, "DISTINCT": distinct, "CONTAINERS": containers, "DEATHS": deaths}
    source = APP
    for word, number in sizes.items():
        source = source.replace(word, str(number))
    found = run_app(source)
    answers = found["answers"]
    assert sum(new for new, _, _ in answers) == distinct
    assert {number % distinct for number, (new, _, _) in enumerate(answers) if new} == set(range(distinct))
    # each input counted once for certain: containers died before they added, never between adding and answering
    assert found["tokens"] == 2 * items
    assert found["once"] == 3 * distinct
    assert found["run"][:2] == [items, items]
    assert found["run"][2] > 1
    assert len({pid for _, pid, _ in answers}) > 1
    begun = sorted(at for new, _, at in answers if new)
    for first, start in enumerate(begun):
        for count, end in enumerate(begun[first:], start=1):
            # an acquired token is used a little later than it was taken, however little
            assert count <= (end - start + 0.25) * 20 + 5 + 1


def test_containers_of_a_map_count_deduplicate_limit_and_tell_together_although_some_die(run_app):
    _shared(run_app, items=30, distinct=15, containers=2, deaths=15)


@pytest.mark.heavy
def test_the_same_with_many_items_and_many_deaths(run_app):
    _shared(run_app, items=900, distinct=300, containers=4, deaths=60)
