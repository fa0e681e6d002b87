"""Reproducible environments: Debian with pins, CUDA with an extra index, a Dockerfile, a package with a build step.

Each image is declared once and shown by a function that says what it finds in it.
"""

from __future__ import annotations

from pathlib import Path

import modal

import gpuserve

HERE = Path(__file__).parent
app = modal.App("images")

# System packages come first in the build, whatever the order here; every package is pinned.
ml = (
    gpuserve.ImageSpec.debian("3.11")
    .pip(
        "accelerate==1.15.0",
        "bitsandbytes==0.50.2",
        "protobuf==7.36.2",
        "sentencepiece==0.2.3",
        "torch==2.13.0",
        "transformers==5.23.0",
    )
    .apt("libgomp1")
)

# NVIDIA's image has no Python; CUDA builds of torch lie in an index of their own.
cuda = gpuserve.ImageSpec.cuda("12.8.1-cudnn-devel-ubuntu22.04", python="3.11").pip(
    "torch==2.13.0+cu128", extra_index="https://download.pytorch.org/whl/cu128"
)

# A Dockerfile of your own; what it copies comes from the build context.
dockerfile = gpuserve.ImageSpec.dockerfile(HERE / "Dockerfile.ml", context_dir=HERE / "build_context", python="3.11")

# flash-attn is compiled against torch, in a layer of its own, so that it is compiled once.
vllm = (
    gpuserve.ImageSpec.cuda("12.8.1-devel-ubuntu22.04", python="3.12")
    .pip("ninja==1.13.0", "packaging==26.3", "setuptools==80.9.0", "vllm==0.33.0", "wheel==0.45.1")
    .run("MAX_JOBS=4 pip install flash-attn==2.8.3.post2 --no-build-isolation", gpu="A10")
)

# Files of yours are attached when a container starts: editing the prompts rebuilds nothing.
prompts = (
    gpuserve.ImageSpec.debian("3.11")
    .pip("pyyaml==6.0.4")
    .env(PROMPTS="/app/prompts.yaml")
    .local_file(HERE / "prompts.yaml", "/app/prompts.yaml")
)


@app.function(image=gpuserve.modal_image(ml), max_containers=1, timeout=120)
def ml_versions() -> dict[str, str]:
    """What the Debian image brings."""
    from importlib.metadata import version

    return {name: version(name) for name in ("accelerate", "bitsandbytes", "torch", "transformers")}


@app.function(image=gpuserve.modal_image(cuda), gpu="T4", max_containers=1, timeout=120)
def cuda_version() -> str | None:
    """The CUDA that torch was built for."""
    import torch

    return torch.version.cuda


@app.function(image=gpuserve.modal_image(dockerfile), max_containers=1, timeout=120)
def dockerfile_says() -> str:
    """What the Dockerfile copied from its context."""
    return Path("/build_context/greeting.txt").read_text()


@app.function(image=gpuserve.modal_image(vllm), gpu="A10", max_containers=1, timeout=600)
def vllm_versions() -> dict[str, str]:
    """What was installed and what was compiled."""
    from importlib.metadata import version

    return {name: version(name) for name in ("vllm", "flash-attn")}


@app.function(image=gpuserve.modal_image(prompts), max_containers=1, timeout=60)
def prompt(name: str) -> str:
    """One of the prompts."""
    import os

    import yaml

    return yaml.safe_load(Path(os.environ["PROMPTS"]).read_text())[name]


@app.local_entrypoint()
def main(name: str = "summary") -> None:
    """Show a prompt."""
    print(prompt.remote(name))
