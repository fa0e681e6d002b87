"""What a batch run shows: a live bar, plain lines or a cell's output while it goes, and a page when it has ended."""

from __future__ import annotations

from gpuserve.tools.batch.progress import BatchProgress
from gpuserve.tools.batch.report import batch_report_html, write_batch_report

__all__ = ["BatchProgress", "batch_report_html", "write_batch_report"]
