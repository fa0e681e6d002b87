"""Secrets: by name with the keys that they must bring, made at run time, and rotated without a new deployment.

modal secret create huggingface-token HF_TOKEN=hf_...
modal secret create wandb-credentials WANDB_API_KEY=... WANDB_PROJECT=my-project
modal secret create aws-role ROLE_ARN=arn:aws:iam::123456789012:role/modal-access AWS_DEFAULT_REGION=us-east-1 ...
modal deploy app.py
"""

from __future__ import annotations

import os

import modal

import gpuserve

app = modal.App("secrets")

hub = gpuserve.SecretSpec(name="huggingface-token", required_keys=("HF_TOKEN",))
tracking = gpuserve.SecretSpec(name="wandb-credentials", required_keys=("WANDB_API_KEY", "WANDB_PROJECT"))
role = gpuserve.SecretSpec(name="aws-role", required_keys=("ROLE_ARN", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"))

plain = gpuserve.modal_image(gpuserve.ImageSpec.debian())
aws = gpuserve.modal_image(gpuserve.ImageSpec.debian().pip("boto3==1.44.8"))


@app.function(
    image=plain,
    secrets=[gpuserve.modal_secret(hub), gpuserve.modal_secret(tracking)],
    max_containers=1,
    timeout=7200,
)
def train_with_tracking() -> dict[str, str]:
    """Begin a run with credentials that are there: a key that is missing is told before anything is paid for.

    What is returned shows which project and the end of which token; a secret itself is never returned nor printed.
    """
    gpuserve.require_keys([hub, tracking])
    # huggingface_hub and wandb read HF_TOKEN and WANDB_API_KEY themselves
    return {"project": os.environ["WANDB_PROJECT"], "token_ends_with": os.environ["HF_TOKEN"][-2:]}


@app.function(image=plain, max_containers=2, timeout=60)
def who_am_i() -> str:
    """Work that needs credentials and is deployed with none: its caller brings them."""
    gpuserve.require_keys(
        [gpuserve.SecretSpec(name="temporary-credentials", required_keys=("AWS_ACCESS_KEY_ID", "AWS_SESSION_TOKEN"))]
    )
    return os.environ["AWS_ACCESS_KEY_ID"]


@app.function(image=aws, secrets=[gpuserve.modal_secret(role)], max_containers=1, timeout=120)
def with_temporary_credentials() -> str:
    """Assume a role for as long as the work takes, and hand its credentials to another function."""
    import boto3

    gpuserve.require_keys([role])
    assumed = boto3.client("sts").assume_role(RoleArn=os.environ["ROLE_ARN"], RoleSessionName="modal-session")
    temporary = modal.Secret.from_dict(
        {
            "AWS_ACCESS_KEY_ID": assumed["Credentials"]["AccessKeyId"],
            "AWS_SECRET_ACCESS_KEY": assumed["Credentials"]["SecretAccessKey"],
            "AWS_SESSION_TOKEN": assumed["Credentials"]["SessionToken"],
        }
    )
    # a pool of its own: containers that were started without these credentials never see them
    return who_am_i.with_options(secrets=[temporary], max_containers=1).remote()


@app.local_entrypoint()
def main() -> None:
    """Show both."""
    print(train_with_tracking.remote())
    print(with_temporary_credentials.remote())
