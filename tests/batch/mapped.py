"""The app that the tests map over, deployed on an engine."""

import builtins
import hashlib
import os
import time

import modal

app = modal.App("mapped")


def answer(text):
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@app.function(max_containers=2)
def digests(batch):
    for text in batch:
        if text.startswith("raise"):
            kind = getattr(builtins, text.split()[1], ValueError)
            raise kind(f"no digest of {text}")
        if text.startswith("exit"):
            os._exit(3)
        if text.startswith("text slow"):
            time.sleep(0.05)
    return [answer(text) for text in batch]
