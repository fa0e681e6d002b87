"""Where a run's metrics are tracked. Each attempt of a run finds the one that the attempt before it made."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from gpuserve.exceptions import TrainingError
from gpuserve.specs.tuning import MlflowTracking, WandbTracking

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

__all__ = ["Mlflow", "Tracker", "Wandb", "opened"]

_TAG = "gpuserve.run"
# Source: MLflow's limits on the values of parameters and tags.
_LONGEST = 5000


class Tracker(Protocol):
    """Takes what a run tells."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Metrics at a step; those of a step that was told before are left out."""

    def finish(self, state: str, files: Sequence[Path]) -> None:
        """The attempt is over: the run is ``finished``, ``continued`` or ``diverged``."""


def opened(
    tracking: Sequence[MlflowTracking | WandbTracking],
    *,
    name: str,
    run: str,
    parameters: Mapping[str, Any],
    folder: Path,
) -> list[Tracker]:
    """The declared trackers of a run, begun or taken up again.

    Raises:
        TrainingError: If one cannot be reached, or its package is missing.
    """
    found: list[Tracker] = []
    for one in tracking:
        kind: Any = Mlflow if isinstance(one, MlflowTracking) else Wandb
        try:
            found.append(kind(one, name=name, run=run, parameters=parameters, folder=folder))
        except ImportError as error:
            raise TrainingError(
                f"tracking asks for {one.kind}, which the image does not bring; add .pip('{one.kind}==VERSION')"
            ) from error
    return found


class Mlflow:
    """A run on an MLflow tracking server, found by its tag."""

    def __init__(
        self, tracking: MlflowTracking, *, name: str, run: str, parameters: Mapping[str, Any], folder: Path
    ) -> None:
        """Find the run, or make it.

        Raises:
            TrainingError: If there is no address, or the server refuses.
        """
        from mlflow.exceptions import MlflowException
        from mlflow.tracking import MlflowClient

        del folder
        uri = tracking.uri or os.environ.get("MLFLOW_TRACKING_URI")
        if not uri:
            raise TrainingError(
                "MlflowTracking has no uri and MLFLOW_TRACKING_URI is not set; write "
                "secret=SecretSpec(name='mlflow-credentials', required_keys=('MLFLOW_TRACKING_URI',))"
            )
        self._client: MlflowClient = MlflowClient(tracking_uri=uri)
        self._told: dict[str, int] = {}
        try:
            self._id = self._found(tracking.experiment, f"{name}/{run}", parameters)
        except MlflowException as error:
            raise TrainingError(f"the tracking server at {uri} refused: {error}") from error

    def _found(self, experiment: str, tag: str, parameters: Mapping[str, Any]) -> str:
        client = self._client
        known = client.get_experiment_by_name(experiment)
        place = known.experiment_id if known is not None else client.create_experiment(experiment)
        quoted = tag.replace("'", "")
        runs = client.search_runs([place], filter_string=f"tags.`{_TAG}` = '{quoted}'", max_results=1)
        if runs:
            identifier = str(runs[0].info.run_id)
            client.update_run(identifier, status="RUNNING")
            for metric in runs[0].data.metrics:
                steps = [one.step for one in client.get_metric_history(identifier, metric)]
                self._told[metric] = max(steps, default=-1)
            return identifier
        made = client.create_run(place, run_name=tag, tags={_TAG: tag})
        for key, value in parameters.items():
            client.log_param(made.info.run_id, key, str(value)[:_LONGEST])
        return str(made.info.run_id)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Metrics at a step, but for those that an attempt before this one has told."""
        for key, value in metrics.items():
            if step > self._told.get(key, -1) and math.isfinite(value):
                self._client.log_metric(self._id, key, value, step=step)
                self._told[key] = step

    def finish(self, state: str, files: Sequence[Path]) -> None:
        """End the run, or leave it open for the next attempt; *files* become its artifacts."""
        if state == "continued":
            return
        for file in files:
            self._client.log_artifact(self._id, str(file))
        self._client.set_terminated(self._id, status="FINISHED" if state == "finished" else "FAILED")


class Wandb:
    """A run on Weights & Biases, by an id that every attempt works out alike."""

    def __init__(
        self, tracking: WandbTracking, *, name: str, run: str, parameters: Mapping[str, Any], folder: Path
    ) -> None:
        """Begin the run, or go on with it.

        Raises:
            TrainingError: If it is neither offline nor has a key.
        """
        import wandb

        if not tracking.offline and not os.environ.get("WANDB_API_KEY"):
            raise TrainingError(
                "WandbTracking has no key: WANDB_API_KEY is not set; write secret=SecretSpec(name=…, "
                "required_keys=('WANDB_API_KEY',)), or offline=True"
            )
        folder.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            project=tracking.project,
            entity=tracking.entity,
            name=f"{name}/{run}",
            id=hashlib.sha256(f"{name}/{run}".encode()).hexdigest()[:16],
            resume="allow",
            mode="offline" if tracking.offline else "online",
            dir=str(folder),
            config={key: str(value) for key, value in parameters.items()},
            reinit="create_new",
        )

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Metrics at a step; a step that was told before is dropped by W&B itself."""
        self._run.log(dict(metrics), step=step)

    def finish(self, state: str, files: Sequence[Path]) -> None:
        """End the run's writing."""
        if state != "continued":
            for file in files:
                self._run.save(str(file), base_path=str(file.parent), policy="now")
        self._run.summary["gpuserve_state"] = state
        self._run.finish(exit_code=0 if state != "diverged" else 1)
