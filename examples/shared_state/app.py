"""A map whose containers share what they know: each document once, a quota kept, tokens counted, progress told.

gpuserve local run app.py      # or modal run app.py
"""

from __future__ import annotations

import hashlib
import uuid

import modal

import gpuserve

app = modal.App("shared-state")
image = gpuserve.modal_image(gpuserve.ImageSpec.debian())


@app.function(image=image, max_containers=4, timeout=60, retries=modal.Retries(max_retries=2, initial_delay=0.0))
def annotate(run: str, text: str) -> str | None:
    """Annotate one text, unless another input has, or has had, the same text.

    Args:
        run: The name of the run: another run begins with nothing seen and nothing counted.
        text: The text.
    """
    seen = gpuserve.SeenSet(f"texts-{run}")
    tokens = gpuserve.Counter(f"tokens-{run}")
    quota = gpuserve.RateLimiter("annotation-api", rate_per_s=50, burst=10)  # one for all runs, as the quota is

    # a retried input keeps its id, so that a text whose container died is not lost
    if not seen.add(text, by=modal.current_input_id()):
        return None
    quota.acquire(timeout_s=30)
    annotation = hashlib.sha256(text.encode()).hexdigest()[:8]  # stands for the call of an API with a quota
    tokens.add(len(text.split()), once=text)
    return annotation


@app.local_entrypoint()
def main(copies: int = 3) -> None:
    """Annotate texts of which each is there several times."""
    run = uuid.uuid4().hex[:12]
    progress = gpuserve.Progress(f"texts-{run}")
    texts = [f"text number {number}" for number in range(10)] * copies
    progress.expect(len(texts))
    annotated = 0
    with progress:
        for annotation in annotate.map([run] * len(texts), texts, order_outputs=False):
            annotated += annotation is not None
            progress.advance(1)
    print(f"annotated: {annotated} of {len(texts)}")
    print(f"tokens: {gpuserve.Counter(f'tokens-{run}').value()}")
    print(progress.report())
