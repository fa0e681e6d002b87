"""What is typed: the engine's own commands, modal's on the engine, and what is neither."""

import json
import os
import random
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from gpuserve.cli.main import cli as gpuserve
from gpuserve.cli.modal_command import KNOWN, modal_commands
from gpuserve.cli.reference import render


def test_up_leaves_one_engine_and_a_second_up_changes_nothing(cli):
    first = cli.json("local", "up")
    assert first["was_up"] is False
    second = cli.json("local", "up")

    assert second == {**first, "was_up": True}
    assert "up already" in cli("local", "up").stdout
    assert first["server_url"].startswith("unix://")
    assert len([one for one in cli.processes() if "gpuserve.engine" in one.cmdline()]) == 1


def test_down_ends_it_and_a_second_down_changes_nothing(cli):
    pid = cli.json("local", "up")["pid"]

    assert cli.json("local", "down") == {"was_up": True, "pid": pid}
    assert cli.processes() == []
    assert not (cli.home / "engine.json").exists()
    assert cli.json("local", "down") == {"was_up": False, "pid": None}
    assert "no engine is up" in cli("local", "down").stdout


def test_down_lets_exit_hooks_run(cli, until):
    mark = cli.folder / "left"
    cli.write(
        "hook.py",
        f"""
        import modal
        app = modal.App("hook")
        @app.cls(min_containers=1)
        class Held:
            @modal.exit()
            def leave(self):
                open({str(mark)!r}, "w").write("left")
            @modal.method()
            def nothing(self): pass
        """,
    )
    cli("local", "up")
    cli("local", "deploy", "hook.py")
    until(lambda: cli.json("local", "status")["containers"] == 1)
    held = "import modal; modal.Cls.from_name('hook', 'Held')().nothing.remote()"
    subprocess.run([sys.executable, "-c", held], env=cli.environment(**cli.json("local", "env")), check=True)

    cli("local", "down")

    assert mark.read_text() == "left"


def test_status_tells_what_the_engine_itself_says(up):
    up.write_app()
    up("local", "deploy", "kept.py")

    facts = up.json("local", "status")
    assert {name: facts[name] for name in ("up", "home", "image_check", "containers", "transient")} == {
        "up": True,
        "home": str(up.home),
        "image_check": "error",
        "containers": 0,
        "transient": False,
    }
    assert facts["isolation"]
    assert 0 <= facts["uptime_s"] < 600
    assert [(app["name"], app["state"], app["version"]) for app in facts["apps"]] == [("kept", "deployed", 1)]
    text = up("local", "status").stdout
    for word in (str(facts["pid"]), facts["server_url"], str(up.home), "kept", "deployed", facts["isolation"]):
        assert word in text


def test_env_is_what_a_shell_needs_to_reach_the_engine_even_from_odd_folders(new_cli, tmp_path):
    odd = new_cli(home=tmp_path / "a b'c$(false)")
    odd("local", "up")
    script = '"$0" -m gpuserve.cli local env > variables; . ./variables; exec "$0" -m modal "$@"'

    done = subprocess.run(
        ["sh", "-euc", script, sys.executable, "environment", "list", "--json"],
        env=odd.environment(MODAL_PROFILE="a-team", MODAL_OAUTH_CLIENT_ID="oc-1"),
        cwd=odd.folder,
        capture_output=True,
        text=True,
        check=True,
    )

    assert [one["name"] for one in json.loads(done.stdout)] == ["main"]
    variables = odd.json("local", "env")
    assert variables["MODAL_CONFIG_PATH"] == str(odd.home / "modal.toml")
    assert variables["MODAL_SERVER_URL"] == odd.json("local", "status")["server_url"]


def test_options_that_the_running_engine_does_not_have_are_refused(up):
    told = up.refused("local", "--image-check", "warn", "app", "list")
    assert "has --image-check error, and warn was asked for" in told
    assert "--port 7 was asked for. Stop it first: gpuserve local down" in up.refused("local", "up", "--port", "7")
    assert "--image-check error" in up.refused("local", "up", "--image-check", "warn")
    assert up.json("local", "up", "--image-check", "error")["was_up"] is True


def test_an_engine_listens_on_the_port_that_was_asked_for_with_the_checks_that_were(cli):
    cli("local", "up", "--port", "0", "--image-check", "warn")
    facts = cli.json("local", "status")

    assert facts["server_url"].startswith("http://127.0.0.1:")
    assert facts["image_check"] == "warn"
    assert cli.apps() == []
    assert cli.json("local", "up", "--port", "0")["was_up"] is True


def test_a_modal_command_starts_an_engine_that_ends_with_it(cli):
    cli.write_app()

    assert "doubled 42" in cli("local", "run", "kept.py").stdout
    assert cli.processes() == []
    cli("local", "deploy", "kept.py")
    assert cli.apps() == ["kept"]
    assert cli.processes() == []


def test_up_keeps_an_engine_that_a_command_started_and_its_end_leaves_it(cli, until):
    cli.write("wait.py", "import modal\napp = modal.App('wait')\n@app.local_entrypoint()\ndef main(): input()\n")
    with subprocess.Popen(
        [sys.executable, "-m", "gpuserve.cli", "local", "run", "wait.py"],
        env=cli.environment(),
        cwd=cli.folder,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
    ) as running:
        until(lambda: cli.json("local", "status").get("apps"))
        assert "until the command ends" in cli("local", "status").stdout
        kept = cli.json("local", "up")
        assert kept["was_up"] is True
        running.communicate(b"\n")

    assert running.returncode == 0
    assert cli.json("local", "status")["pid"] == kept["pid"]


def test_files_of_the_users_folder_do_not_stand_in_for_modules_of_python(cli):
    cli.write_app()
    for name in ("logging.py", "queue.py", "socket.py", "random.py"):
        cli.write(name, "raise SystemExit('shadowed')")

    assert cli.json("local", "up")["was_up"] is False
    assert cli.json("local", "environment", "list")[0]["name"] == "main"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["local", "frobnicate"], ["command 'frobnicate'", "gpuserve local --help"]),
        (["local", "dpeloy", "app.py"], ["command 'dpeloy'", "Did you mean deploy?"]),
        (["local", "dwon"], ["Did you mean down?"]),
        (["local", "--image-check", "strict", "run", "app.py"], ["--image-check", "'strict'", "'error', 'warn'"]),
        (["local", "up", "--image-check", "off"], ["--image-check", "'off'", "'error', 'warn'"]),
        (["local", "up", "--port", "70000"], ["--port", "70000", "0<=x<=65535"]),
        (["local", "up", "--port", "http"], ["--port", "'http'"]),
        (["local", "status", "--jsn"], ["--jsn", "--json"]),
        (["local", "down", "now"], ["extra argument", "now"]),
        (["completion", "tcsh"], ["'tcsh'", "'bash', 'zsh', 'fish'"]),
        (["frobnicate"], ["frobnicate"]),
        (["quickstart", "--limit", "0"], ["--limit", "0"]),
    ],
    ids=" ".join,
)
def test_a_misused_command_names_what_it_got_and_what_is_allowed(arguments, words, cli):
    told = cli.refused(*arguments)

    for word in words:
        assert word in told
    assert not cli.home.exists()


def test_modal_itself_refuses_a_misuse_of_its_commands(up):
    assert "FUNC_REF" in up("local", "run", code=2).stderr
    assert "No such option" in up.refused("local", "app", "list", "--frobnicate")
    assert "No such command 'frobnicate'" in up.refused("local", "app", "frobnicate")


def test_three_hundred_misused_commands_end_with_code_2_and_no_traceback():
    noise = random.Random(20261124)  # the seed
    words = ["local", "up", "down", "status", "env", "run", "completion", "bash", "quickstart", "--port", "--json"]
    words += ["-x", "--limit", "-1", "", "é", "\udc80", "a" * 5000, "--image-check", "warn", "--", "\n", "%s", "{0}"]
    runner = CliRunner()
    for _ in range(300):
        arguments = [*noise.choices(words, k=noise.randrange(6)), noise.choice(["--frobnicate", "--port=x", "--no"])]
        if "run" in arguments or "--" in arguments:
            arguments.insert(0, "--frobnicate")  # modal's, or text: not for us to refuse
        result = runner.invoke(gpuserve, arguments)
        assert result.exit_code == 2, (arguments, result.output)
        assert isinstance(result.exception, SystemExit)
        assert "Error: " in result.output, arguments


# -- help and completion -----------------------------------------------------------------------------


def test_help_lists_ours_and_modals_commands():
    text = CliRunner().invoke(gpuserve, ["local", "--help"], terminal_width=120).output

    ours, _, theirs = text.partition("Modal's commands, on the engine:")
    for name in ("up", "down", "status", "env"):
        assert f"\n  {name} " in ours
    for name, command in modal_commands().items():
        assert (f"\n  {name} " in theirs) is not command.hidden


def test_the_names_that_need_no_import_are_modals():
    assert set(modal_commands()) == KNOWN


def test_every_option_and_command_has_a_help_text():
    def walk(command, path):
        assert command.help, path
        for parameter in command.params:
            assert getattr(parameter, "help", None) or isinstance(parameter, click.Argument), (path, parameter.name)
        for name, below in getattr(command, "commands", {}).items():
            walk(below, f"{path} {name}")

    walk(gpuserve, "gpuserve")


def completions(*words, cli):
    """What bash is offered for the last of *words*, by the script that `gpuserve completion bash` prints."""
    done = subprocess.run(
        [sys.executable, "-m", "gpuserve.cli"],
        env=cli.environment(
            _GPUSERVE_COMPLETE="bash_complete", COMP_WORDS=" ".join(words), COMP_CWORD=str(len(words) - 1)
        ),
        capture_output=True,
        text=True,
        check=False,
    )
    return {line.partition(",")[2] for line in done.stdout.splitlines()}


def test_completion_knows_our_commands_and_modals_and_their_options(cli):
    assert completions("gpuserve", "lo", cli=cli) == {"local", "lock"}
    assert {"up", "deploy", "volume"} <= completions("gpuserve", "local", "", cli=cli)
    assert completions("gpuserve", "local", "volume", "cr", cli=cli) == {"create"}
    assert "--detach" in completions("gpuserve", "local", "run", "--d", cli=cli)
    assert completions("gpuserve", "local", "up", "--image-check", "", cli=cli) == {"error", "warn"}
    assert not cli.home.exists()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_completion_script_of_each_shell_calls_us(shell, cli):
    script = cli("completion", shell).stdout

    assert f"_GPUSERVE_COMPLETE={shell}_complete" in script
    if shell == "bash":
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)


def test_the_reference_of_the_command_line_is_the_one_that_is_generated(pytestconfig):
    page = pytestconfig.rootpath / "docs/reference/cli.md"

    assert page.read_text() == render(), f"{sys.executable} -m gpuserve.cli.reference > {page}"


def test_a_reader_that_leaves_early_is_no_error_worth_a_traceback(up):
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as pipe:
        done = subprocess.run(
            [sys.executable, "-m", "gpuserve.cli", "local", "status"],
            env=up.environment(),
            stdout=pipe,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert (done.returncode, done.stderr) == (1, "")
