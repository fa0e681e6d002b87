"""A tracking server of MLflow's own, asked over its REST API."""

import contextlib
import signal
import socket
import subprocess
import sys

import httpx


@contextlib.contextmanager
def running_server(folder):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    store = ["--backend-store-uri", f"sqlite:///{folder}/db", "--artifacts-destination", str(folder / "artifacts")]
    with subprocess.Popen([*command, *store], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        url = f"http://127.0.0.1:{port}"
        for line in process.stdout:
            if "startup complete" in line.lower():
                break
        with contextlib.suppress(httpx.HTTPError):
            assert httpx.get(f"{url}/health", timeout=30).status_code == 200
        yield url
        process.send_signal(signal.SIGTERM)
        process.stdout.read()


def runs_of(url, experiment):
    """Asked over MLflow's REST API, without its client."""
    with httpx.Client(base_url=f"{url}/api/2.0/mlflow", timeout=60) as client:
        found = client.get("/experiments/get-by-name", params={"experiment_name": experiment}).json()
        place = found["experiment"]["experiment_id"]
        runs = client.post("/runs/search", json={"experiment_ids": [place]}).json().get("runs", [])
        for run in runs:
            asked = {"run_id": run["info"]["run_id"], "metric_key": "loss"}
            run["losses"] = client.get("/metrics/get-history", params=asked).json().get("metrics", [])
            listed = client.get("/artifacts/list", params={"run_id": run["info"]["run_id"]}).json()
            run["files"] = sorted(one["path"] for one in listed.get("files", []))
    return runs
