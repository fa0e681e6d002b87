"""Which tokens of a row are learnt, under which template, and how many batches make one step of the optimiser."""

from __future__ import annotations

import json

import pytest
from training_tiny import CHAT, MARKED_CHAT, digest_of, write_rows

pytestmark = pytest.mark.wide

CHATS = [
    {
        "messages": [
            {"role": "user", "content": f"Is {name} one?"},
            {"role": "assistant", "content": f"{name} is."},
            {"role": "user", "content": f"What does {name} do?"},
            {"role": "assistant", "content": f"{name} does much."},
        ]
    }
    for name in ("json", "re", "random", "shelve")
]
PAIRS = [{"prompt": f"{name}: ", "completion": f"the module {name}."} for name in ("json", "re", "random", "shelve")]
TEXTS = [{"text": f"{name}: the module {name}."} for name in ("json", "re", "random", "shelve")]


def as_chat(row, until=4):
    return "".join(f"<{one['role']}>{one['content']}</s>" for one in row["messages"][:until])


def answers(row):
    return [f"{one['content']}</s>" for one in row["messages"] if one["role"] == "assistant"]


@pytest.fixture(scope="module")
def learn(trainers, tmp_path_factory):
    """Train, and give the report, the folder and all that TRL computed a loss of, batch by batch."""
    root = tmp_path_factory.mktemp("learnt")

    def train(run, rows, **declared):
        watch = root / f"{run}.learnt"
        file = write_rows(root / f"{run}.jsonl", rows)
        declared = {"steps": 2, "batch_size": 4, "max_length": 128, "lora": {"rank": 4, "dropout": 0.0}, **declared}
        report = trainers.train(root, run, rows=file, watch=watch, declared=declared)
        return report, root / "runs/tuned" / run, [json.loads(line) for line in watch.read_text().splitlines()]

    return train


def pairs_of(batches):
    return {(row["read"], row["learnt"]) for one in batches for row in one["rows"]}


@pytest.mark.parametrize(
    ("run", "rows", "declared", "wanted"),
    [
        ("text", TEXTS, {}, {(f"{one['text']}</s>", f"{one['text']}</s>") for one in TEXTS}),
        (
            "completion",
            PAIRS,
            {},
            {(f"{one['prompt']}{one['completion']}</s>", f"{one['completion']}</s>") for one in PAIRS},
        ),
        (
            "all-of-a-pair",
            PAIRS,
            {"loss": "all"},
            {(f"{one['prompt']}{one['completion']}</s>",) * 2 for one in PAIRS},
        ),
        (
            "last-answer",
            CHATS,
            {"chat_template": CHAT},
            {(as_chat(one), answers(one)[-1]) for one in CHATS},
        ),
        (
            "assistant",
            CHATS,
            {"chat_template": MARKED_CHAT, "loss": "assistant"},
            {(as_chat(one), "".join(answers(one))) for one in CHATS},
        ),
        (
            "all-of-a-chat",
            CHATS,
            {"chat_template": CHAT, "loss": "all"},
            {(as_chat(one),) * 2 for one in CHATS},
        ),
    ],
)
def test_what_is_declared_is_learnt_and_no_token_more(learn, run, rows, declared, wanted):
    report, folder, batches = learn(run, rows, **declared)
    assert report["state"] == "finished"
    assert pairs_of(batches) == wanted
    template = folder / "adapter/chat_template.jinja"
    assert (template.read_text() if template.exists() else None) == declared.get("chat_template")


def test_another_part_that_is_learnt_makes_another_adapter(learn):
    """Masked tokens weigh nothing: the same rows, read alike, are tuned to differently."""
    _, completion, _ = learn("one-part", PAIRS)
    _, whole, _ = learn("both-parts", PAIRS, loss="all")
    assert digest_of(completion / "adapter") != digest_of(whole / "adapter")


def test_a_chat_without_a_template_and_one_that_marks_no_answers_are_refused(trainers, tmp_path):
    rows = write_rows(tmp_path / "rows.jsonl", CHATS)
    found = trainers.run(root=tmp_path, run="none", rows=rows)
    assert (found["error"], "has no chat template; write chat_template" in found["text"]) == ("DatasetError", True)
    found = trainers.run(root=tmp_path, run="bare", rows=rows, declared={"chat_template": CHAT, "loss": "assistant"})
    assert (found["error"], "marks the answers with {% generation %}" in found["text"]) == ("DatasetError", True)


def test_two_batches_of_two_rows_make_the_step_of_one_batch_of_four(learn):
    from safetensors.numpy import load_file

    rows = [{"text": "module " * (1 + number % 5) + str(number)} for number in range(16)]  # of several lengths
    steps = {"steps": 6, "learning_rate": 1e-2}
    _, whole, at_once = learn("at-once", rows, **steps)
    report, halved, in_two = learn("in-two", rows, **steps, batch_size=2, gradient_accumulation=2)
    assert report["step"] == 6
    assert [one["step"] for one in at_once] == [1, 2, 3, 4, 5, 6]
    assert [one["step"] for one in in_two] == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6]
    both = [[row["read"] for one in batches for row in one["rows"]] for batches in (at_once, in_two)]
    assert both[0] == both[1]
    one, other = (load_file(folder / "adapter/adapter_model.safetensors") for folder in (whole, halved))
    assert one.keys() == other.keys()
    assert max(abs(one[name] - other[name]).max() for name in one) < 1e-4
    # the measure is not blind: half of the rows a step lead elsewhere
    _, fewer, _ = learn("fewer", rows, **steps, batch_size=2)
    less = load_file(fewer / "adapter/adapter_model.safetensors")
    assert max(abs(one[name] - less[name]).max() for name in one) > 1e-2
