"""The end of a window: its shard, its dead letters, and the record that makes both count."""

from __future__ import annotations

import json
import time
from typing import Any

from gpuserve.runtime.batch.events import BatchCommitted, BatchReport, ShardEntry
from gpuserve.runtime.batch.folder import OutputFolder
from gpuserve.runtime.batch.ids import KnownIds
from gpuserve.runtime.batch.journal import Journal
from gpuserve.runtime.batch.ledger import Commit, PublishedFile
from gpuserve.runtime.batch.rows import Item
from gpuserve.runtime.batch.shards import ShardWriter
from gpuserve.runtime.batch.trials import DeadLetter
from gpuserve.runtime.batch.windows import OpenWindow
from gpuserve.runtime.weights.steps import sync_folder

__all__ = ["Committer", "entry_of"]


def entry_of(file: PublishedFile) -> ShardEntry:
    """A committed file, as reports tell it."""
    return ShardEntry(file.name, file.rows, file.bytes, file.sha256)


class Committer:
    """Commits windows, one after the other; all of it runs in the ledger's thread."""

    def __init__(self, folder: OutputFolder, journal: Journal, writer: ShardWriter, ids: KnownIds | None) -> None:
        self._folder, self._journal, self._writer, self._ids = folder, journal, writer, ids

    def commit(self, window: OpenWindow, spent_usd: float, worked_s: float) -> BatchCommitted:
        """Write the window's files, and then the record that makes them count.

        Raises:
            FencedError: If another driver has taken the run over.
            DiskFullError: If there is no room.
            AnswerError: If the answers are not of the type of the shards before.
        """
        folder, index = self._folder, window.window.index
        schema = folder.state.schema
        shard, dead = None, None
        if window.answers:
            items = [item for place, item in enumerate(window.window.items) if place in window.answers]
            answers = [window.answers[place] for place in sorted(window.answers)]
            name = f"part-{index:06}{self._writer.suffix}"
            with folder.new_file(f"{index:06}-{folder.owner}{self._writer.suffix}") as path:
                schema = self._writer.write(path, items, answers, schema)
            shard = folder.published(path, name, len(items))
        if window.dead:
            with folder.new_file(f"{index:06}-{folder.owner}.dead") as path, path.open("w", encoding="utf-8") as out:
                for place in sorted(window.dead):
                    out.write(_dead_line(window.window.items[place], window.dead[place]) + "\n")
            dead = folder.published(path, f"ledger/dead/{index:06}.jsonl", len(window.dead))
        if self._ids is not None:
            self._ids.sync()
        sync_folder(folder.incomplete)
        folder.commit(
            Commit(
                folder.owner, index, len(window.window.items), len(window.answers), len(window.dead), shard, dead,
                window.window.fingerprint, window.window.cursor, schema, spent_usd, worked_s, time.time(),
            )
        )  # fmt: skip
        self._journal.close(index)
        folder.settle_window(index, dead)
        folder.share()
        told = entry_of(shard) if shard is not None else None
        return BatchCommitted(index, len(window.answers), len(window.dead), told, time.time())

    def write_manifest(self) -> None:
        """List every committed file with its digest; the same bytes whatever happened on the way."""
        state = self._folder.state
        identity = self._folder.identity()
        shards = [_listed(one.shard) for one in state.commits if one.shard is not None]
        manifest = {
            "format": 1,
            "source": identity.get("source"),
            "target": identity.get("target"),
            "items": state.done,
            "shards": shards,
        }
        with self._folder.new_file(f"manifest-{self._folder.owner}") as path:
            path.write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n")
        path.replace(self._folder.root / "manifest.json")
        sync_folder(self._folder.root)

    def report(
        self,
        *,
        reason: str,
        total: int | None,
        elapsed_s: float,
        done_here: int,
        cost_usd: float | None,
        retries: int,
        throughput: tuple[tuple[float, int], ...],
    ) -> BatchReport:
        """How it ended."""
        state, root = self._folder.state, self._folder.root
        stopped = not state.finished
        go_on = f"it stopped at its {reason}; run the same again to go on from there" if stopped else ""
        if state.failed and not stopped:
            go_on = f"{state.failed} items are in {root / 'dead-letters.jsonl'}; mend the cause, then retry_failed()"
        return BatchReport(
            run_id=self._folder.identity()["run_id"],
            output=str(root),
            status="stopped" if stopped else "finished",
            reason=reason,
            done=state.done,
            failed=state.failed,
            total=total,
            elapsed_s=elapsed_s,
            items_per_s=done_here / elapsed_s if elapsed_s else 0.0,
            cost_usd=cost_usd,
            retries=retries,
            shards=tuple(entry_of(one.shard) for one in state.commits if one.shard is not None),
            dead_letters=str(root / "dead-letters.jsonl") if state.failed else "",
            throughput=throughput,
            how_to_go_on=go_on,
        )


def _listed(file: PublishedFile) -> dict[str, Any]:
    return {"name": file.name, "rows": file.rows, "bytes": file.bytes, "sha256": file.sha256}


def _dead_line(item: Item, letter: DeadLetter) -> str:
    value: Any = item.row.value if not item.row.fault or not item.row.raw else item.row.raw
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        value = repr(value)
    told = {
        "id": item.id,
        "position": item.position,
        "where": item.row.where,
        "input": value,
        "error_type": letter.failure.error_type,
        "message": letter.failure.message,
        "kind": letter.failure.kind.value if not item.row.fault else "input",
        "traceback": letter.failure.traceback,
        "attempts": letter.attempts,
    }
    return json.dumps(told)
