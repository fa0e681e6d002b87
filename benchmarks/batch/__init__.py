"""BatchMapper beside offline `encode`, the guide's own listing, Ray Data, Huey and Celery."""
