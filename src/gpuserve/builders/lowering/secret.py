"""A secret, declared to modal."""

from __future__ import annotations

import modal

from gpuserve.specs.secret import SecretSpec

__all__ = ["modal_secret"]


def modal_secret(spec: SecretSpec) -> modal.Secret:
    """The workspace's secret of that name; Modal refuses the deployment where a required key is missing."""
    return modal.Secret.from_name(spec.name, required_keys=list(spec.required_keys))
