"""The app that the load deploys; VERSION is replaced with a number."""

import os
import subprocess
import sys
from pathlib import Path

import modal

app = modal.App("shelf")
volume = modal.Volume.from_name("files", create_if_missing=True)
notes = modal.Dict.from_name("notes", create_if_missing=True)


@app.function()
def version() -> int:
    return VERSION  # noqa: F821


@app.function()
def double(number: int) -> int:
    return 2 * number


@app.function(volumes={"/files": volume})
def write(name: str, text: str) -> str:
    for folder in ("drafts", "written"):
        Path("/files", folder).mkdir(exist_ok=True)
    draft = Path("/files/drafts", name)
    draft.write_text(text)
    draft.rename(Path("/files/written", name))  # it may be looked at while a caller that was killed is not told of it
    volume.commit()
    return text


@app.function()
def note(key: str, value: str) -> str:
    notes[key] = value
    return value


@app.function(secrets=[modal.Secret.from_name("keys")], single_use_containers=True)
def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith("KEY_")}


@app.function()
def litter(mark: str) -> None:
    """Leave behind a daemon that has left its parent, its session and its environment."""
    daemon = f"import os; os.setsid(); os.execve('/bin/sleep', ['{mark}', '600'], {{}})"
    subprocess.run([sys.executable, "-c", f"import os\nif os.fork() == 0:\n    {daemon}"], check=True)
    if os.fork() == 0:  # and one that was only forked
        os.execve("/bin/sleep", [mark, "600"], {})
