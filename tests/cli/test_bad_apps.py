"""Apps that cannot run as written: one clear error, the exit code, and nothing of it left behind."""

import json
import subprocess
import sys

import pytest

from gpuserve.engine.state.declarations import GPU_TYPES
from gpuserve.specs.gpu import CATALOGUE

pytestmark = pytest.mark.wide

HEAD = "import modal\napp = modal.App('bad')\n"
OTHER = "other = modal.App('other')\n@other.function()\ndef g(): pass\n"
FUNCTION = "@app.function({})\ndef f(): return 1\n"


def app(arguments="", below=""):
    return HEAD + FUNCTION.format(arguments) + below


def heavy(*values):
    return pytest.param(*values, marks=pytest.mark.heavy)


@pytest.fixture(scope="module")
def kept(up):
    """An engine that has the app ``kept`` and a secret that lacks a key."""
    up.write_app()
    up("local", "deploy", "kept.py")
    up("local", "secret", "create", "half", "A=1")
    return up


def names(cli):
    """Of the apps that live."""
    return [app["name"] for app in cli.json("local", "status")["apps"]]


def plain_modal(cli, *arguments):
    return subprocess.run(
        [sys.executable, "-P", "-m", "modal", *arguments],
        env=cli.environment(**cli.json("local", "env")),
        cwd=cli.folder,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("source", "command", "words"),
    [
        ("import modal\napp = modal.App('x'\n", "run", ["SyntaxError", "was never closed", "bad.py:2"]),
        heavy("import modal\n1 / 0\n", "run", ["ZeroDivisionError", "bad.py:2"]),
        heavy("import modal\nimport no_such_module\n", "run", ["ModuleNotFoundError", "no_such_module"]),
        heavy("x = 1\n", "run", ["bad.py", "no entrypoints"]),
        heavy(
            app(below="other = modal.App('other')\n@other.function()\ndef g(): pass\n"),
            "run",
            ["bad.py::f", "- f", "- g"],
        ),
        (app(), "run bad.py::nope", ["Could not find 'nope'", "- f"]),
        (None, "run missing.py", ["No such file", "missing.py"]),
        heavy("import modal\none = modal.App('one')\ntwo = modal.App('two')\n", "deploy", ["bad"]),
    ],
    ids=["syntax", "raises", "import", "no app", "two apps", "no function", "no file", "two to deploy"],
)
def test_what_modal_refuses_before_it_asks_us_is_modals_alone(source, command, words, kept):
    if source is not None:
        kept.write("bad.py", source)
    command = command.split() if " " in command else [command, "bad.py"]

    done, modal = kept("local", *command, code=1), plain_modal(kept, *command)

    assert (done.returncode, done.stdout, done.stderr) == (modal.returncode, modal.stdout, modal.stderr)
    for word in words:
        assert word in done.stderr
    assert "gpuserve" not in done.stderr


REFUSED = [
    (
        'secrets=[modal.Secret.from_name("absent")]',
        ["secret 'absent' does not exist in environment 'main'", "modal secret create absent KEY=VALUE"],
    ),
    (
        'secrets=[modal.Secret.from_name("half", required_keys=["A", "B"])]',
        ["secret 'half' lacks the required keys: B", "modal secret create --force half A=VALUE B=VALUE"],
    ),
    ('gpu="H9000"', ["gpu got 'H9000'", ", ".join(GPU_TYPES), "did you mean H200?"]),
    ('gpu=["H100", "A10:8"]', ["gpu got 'A10:8'", "1 to 4"]),
    ('gpu="T4:0"', ["gpu got 'T4:0'", "1 to 8"]),
    (
        'schedule=modal.Cron("61 99 * * *")',
        ["Cron('61 99 * * *')", "minute got 61, and 0 to 59 is allowed", "hour got 99, and 0 to 23 is allowed"],
    ),
    ('schedule=modal.Cron("0 0 30 2 *")', ["it never comes", "day 30"]),
    ('schedule=modal.Cron("* * * *")', ["4 fields", "minute, hour, day of month, month, day of week"]),
    ('schedule=modal.Cron("0 0 * * *", timezone="Mars/Phobos")', ["time zone 'Mars/Phobos' is not known", "IANA"]),
    ('schedule=modal.Cron("0 0 * * *", timezone="Europe/Berln")', ["did you mean Europe/Berlin?"]),
    ("schedule=modal.Period()", ["Period: it is 0 s long", "1 s or more"]),
    ('schedule=modal.Period(days=-1, seconds=float("nan"))', ["days got -1", "seconds got nan"]),
    ('schedule=modal.Cron("99 * * * *"), gpu="X"', ["gpu got 'X'", "minute got 99"]),
]
DEPLOY_EACH = """
import json, modal, sys
told = []
for number, arguments in enumerate(json.load(sys.stdin)):
    app = modal.App(f"bad-{number}")
    try:
        app.function(serialized=True, **eval(f"dict({arguments})"))(lambda: 1)
        app.deploy()
    except modal.exception.Error as error:
        told.append(str(error))
    else:
        told.append("accepted")
print(json.dumps(told))
"""


@pytest.mark.parametrize(("arguments", "words"), [REFUSED[0], REFUSED[-1]])
def test_what_cannot_run_as_declared_is_one_error_with_all_its_faults_at_the_shell(arguments, words, kept):
    kept.write("bad.py", app(arguments))

    told = kept.refused("local", "deploy", "bad.py", code=1)

    for word in words:
        assert word in told
    assert "bad" not in names(kept)


def deployed_each(kept, declarations):
    """What one program was told of each of several apps."""
    environment = kept.environment(**kept.json("local", "env"))
    done = subprocess.run(
        [sys.executable, "-c", DEPLOY_EACH],
        input=json.dumps(declarations),
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_every_declaration_that_cannot_run_is_refused_by_its_faults(kept):
    told = deployed_each(kept, [arguments for arguments, _words in REFUSED])

    missing = {
        arguments: (word, text)
        for (arguments, words), text in zip(REFUSED, told, strict=True)
        for word in words
        if word not in text
    }
    assert missing == {}
    assert [name for name in names(kept) if name.startswith("bad")] == []


def test_what_modal_accepts_is_accepted(kept):
    accepted = [
        'schedule=modal.Cron("*/15 9-17 1,15 jan-mar mon-fri", timezone="America/New_York")',
        'schedule=modal.Cron("0 0 29 2 sun")',
        "schedule=modal.Period(months=1, seconds=0.5)",
        'gpu=["h100!:2", "b200+", "a10g", "rtx-pro-6000"]',
    ]
    assert deployed_each(kept, accepted) == ["accepted"] * 4


def test_a_bad_new_version_leaves_the_old_one_in_force(kept):
    source = (kept.folder / "kept.py").read_text()
    kept.write("kept_too.py", source.replace("2 * x", "3 * x").replace("@app.function()", '@app.function(gpu="H9000")'))

    assert "gpu got 'H9000'" in kept.refused("local", "deploy", "kept_too.py", code=1)

    call = "import modal; print(modal.Function.from_name('kept', 'double').remote(4))"
    environment = kept.environment(**kept.json("local", "env"))
    done = subprocess.run([sys.executable, "-c", call], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "8\n"
    assert [app["version"] for app in kept.json("local", "status")["apps"] if app["name"] == "kept"] == [1]


def test_options_at_the_call_are_judged_as_well(kept):
    call = "import modal; modal.Function.from_name('kept', 'double').with_options(gpu='H9000').remote(4)"
    environment = kept.environment(**kept.json("local", "env"))
    done = subprocess.run([sys.executable, "-c", call], env=environment, capture_output=True, text=True, check=False)

    assert done.returncode == 1
    assert "gpu got 'H9000'" in done.stderr
    assert "InvalidError" in done.stderr


def test_an_environment_that_does_not_exist_is_refused_with_those_that_do(kept):
    for told in (
        kept.refused("local", "run", "--env", "staging", "kept.py", code=1),
        kept.refused("local", "run", "kept.py", code=1, MODAL_ENVIRONMENT="staging"),
        kept.refused("local", "dict", "create", "--env", "staging", "numbers", code=1),
    ):
        assert "environment 'staging' does not exist; there is main" in told
        assert "modal environment create staging" in told


def test_a_missing_secret_of_another_environment_names_it(kept):
    kept("local", "environment", "create", "quality")
    kept.write("bad.py", app('secrets=[modal.Secret.from_name("absent", required_keys=["TOKEN"])]'))

    told = kept.refused("local", "run", "--env", "quality", "bad.py", code=1)

    assert "secret 'absent' does not exist in environment 'quality'" in told
    assert "modal secret create --env quality absent TOKEN=VALUE" in told


def test_the_exit_code_of_the_users_own_program_is_kept(cli):
    cli.write("leaves.py", app(below="@app.local_entrypoint()\ndef main():\n    raise SystemExit(7)\n"))
    cli.write("fails.py", app(below="@app.local_entrypoint()\ndef main():\n    raise ValueError('mine')\n"))

    cli("local", "run", "leaves.py", code=7)
    assert "ValueError: mine" in cli("local", "run", "fails.py", code=1).stderr
    assert cli.processes() == []


def test_the_engine_and_the_declarations_know_the_same_gpus():
    assert {name.rstrip("!+") for name in GPU_TYPES} - {"A100"} == set(CATALOGUE)
    for name, kind in CATALOGUE.items():
        assert GPU_TYPES[name] == kind.max_count


def test_all_of_it_left_nothing_but_what_was_deployed(kept):
    facts = kept.json("local", "status")

    assert [app for app in facts["apps"] if app["state"] != "deployed"] == []
    assert (kept.home / "engine.log").read_text() == ""
