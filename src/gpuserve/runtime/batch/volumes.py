"""An output folder in a Modal Volume: committed as it goes, and fenced by an entry that all drivers share.

On a volume the last write of a file wins, and a container sees what others wrote only after a reload. So the order of
records in the ledger cannot tell drivers apart; an entry in a ``modal.Dict`` does, which is read before each commit.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Protocol

from gpuserve.exceptions import FencedError
from gpuserve.runtime.batch.folder import OutputFolder, driver_name

__all__ = ["FenceEntry", "VolumeFolder", "mounted_at"]

_COMMIT_EVERY_S = 5.0


def mounted_at(volume: str) -> str:
    """Where a driver in Modal sees the volume of its output."""
    return f"/gpuserve-batch/{volume}"


class FenceEntry(Protocol):
    """One entry that all drivers of an output share."""

    def claim(self, owner: str) -> None:
        """Put this driver in."""

    def holder(self) -> str:
        """Who was put in last."""


class VolumePort(Protocol):
    """A volume that is mounted here."""

    def commit(self) -> None:
        """Make what was written visible to other containers."""

    def reload(self) -> None:
        """See what others committed."""


class VolumeFolder(OutputFolder):
    """An output folder that others see as it grows."""

    def __init__(self, root: Path, volume: VolumePort, fence: FenceEntry) -> None:
        super().__init__(root)
        self._volume, self._fence = volume, fence
        self._committed_at = 0.0
        volume.reload()

    def begun(self) -> None:
        """Fence off every driver before this one."""
        self._fence.claim(self.owner)
        self._volume.commit()

    def require_mine(self) -> None:
        """Go on only as the driver.

        Raises:
            FencedError: If another one has taken the run over.
        """
        super().require_mine()
        holder = self._fence.holder()
        if holder != self.owner:
            raise FencedError(
                f"{self.root} was taken over by driver {holder} while this one ({driver_name()}) stood still; "
                f"nothing of this one's was committed after that, and nothing is lost"
            )

    def heartbeat(self) -> None:
        """Say that this driver lives, and let others see how far it is."""
        super().heartbeat()
        if self._committed_at and time.monotonic() - self._committed_at > _COMMIT_EVERY_S:
            self.share()

    def share(self) -> None:
        """Commit the volume."""
        self._volume.commit()
        self._committed_at = time.monotonic()

    def leave(self) -> None:
        """Let go of the ledger, and let others see the end."""
        super().leave()
        self.share()
