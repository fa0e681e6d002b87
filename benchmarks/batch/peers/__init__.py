"""The peers, each in an environment of its own beside this one; `python -m benchmarks.batch --install` makes them.

They share this environment's torch and transformers, so that all sides run the same model. Celery's Redis is Debian's:
``apt-get install redis-server``.
"""

from __future__ import annotations

from benchmarks.environments import Environments

__all__ = ["ENVIRONMENTS"]

ENVIRONMENTS = Environments(
    {
        "ray_data": ("ray[data]==2.60.0",),
        "huey_sqlite": ("huey==3.5.4",),
        "celery_redis": ("celery==5.7.0", "redis==8.1.0"),
    },
    hint="python -m benchmarks.batch --install",
)
