"""The Hugging Face Hub as a source: listed and fetched by huggingface_hub, verified by us."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, cast
from urllib.parse import urlsplit

from gpuserve.exceptions import GatedSourceError, WeightsSourceError
from gpuserve.runtime.weights.workspace import Entry, Part
from gpuserve.specs.source import HubSource

__all__ = ["HubOrigin"]

_BAD_RANGE = 416
_QUERY = re.compile(r"\?[^\s'\")]+")


class HubOrigin:
    """A repository at one commit; every address that is asked for carries that commit."""

    def __init__(self, source: HubSource) -> None:
        """Use ``HF_ENDPOINT`` and ``HF_TOKEN`` of the environment, as huggingface_hub does."""
        from huggingface_hub import HfApi

        self.source = source
        self._endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/") or None
        self._api = HfApi(endpoint=self._endpoint, library_name="gpuserve")

    def listing(self) -> tuple[str, list[Entry]]:
        """The commit, and its files with what the hub says of them.

        Raises:
            WeightsSourceError: If the hub refuses, or answers for another commit.
        """
        from huggingface_hub.hf_api import RepoFile

        with _named(self.source):
            commit = self._api.model_info(self.source.repo, revision=self.source.revision).sha or ""
            if not HubSource(self.source.repo, revision=commit or "-").is_pinned:
                raise WeightsSourceError(f"{self.source}: the hub names no commit for it, but {commit!r}")
            if self.source.is_pinned and commit != self.source.revision:
                raise WeightsSourceError(f"{self.source}: the hub answers for the commit {commit} instead")
            tree = list(self._api.list_repo_tree(self.source.repo, recursive=True, revision=commit))
        files = [one for one in tree if isinstance(one, RepoFile)]
        return commit, [
            Entry(
                path=one.path,
                size=one.lfs.size if one.lfs is not None else one.size,
                sha256=one.lfs.sha256 if one.lfs is not None else None,
                git_oid=one.blob_id,
            )
            for one in files
        ]

    def download(self, commit: str, part: Part) -> None:
        """Fetch what *part* lacks; whether it is right is for the caller to see.

        Raises:
            WeightsSourceError: If the hub refuses, or answers for another commit.
        """
        from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
        from huggingface_hub.errors import HfHubHTTPError
        from huggingface_hub.file_download import http_get

        if part.size == part.entry.size:
            return
        with _named(self.source):
            url = hf_hub_url(self.source.repo, part.entry.path, revision=commit, endpoint=self._endpoint)
            headers: dict[str, str] = dict(self._api._build_hf_headers())
            found = get_hf_file_metadata(url, headers=headers, retry_on_errors=True)
            if found.commit_hash != commit:
                raise WeightsSourceError(
                    f"{part.entry.path} of {self.source}: asked for commit {commit}, the hub serves {found.commit_hash}"
                )
            if urlsplit(found.location).netloc != urlsplit(url).netloc:
                headers.pop("authorization", None)  # a token is for the hub, not for whom it sends us to
            headers["Accept-Encoding"] = "identity"
            try:
                http_get(
                    found.location,
                    cast("BinaryIO", part),
                    resume_size=part.size,
                    headers=headers,
                    # past this size its client would ask for xet; whether all came is seen by the digest
                    expected_size=part.entry.size if part.entry.size <= constants.MAX_HTTP_DOWNLOAD_SIZE else None,
                    displayed_filename=part.entry.path,
                    tqdm_class=_silent_bar(),
                )
            except HfHubHTTPError as error:
                if error.response is None or error.response.status_code != _BAD_RANGE:
                    raise
                part.restart()  # the server does not know what we hold; the second try begins anew


@functools.cache
def _silent_bar() -> type[Any]:
    """The hub's own progress bar, shown nowhere: progress is told through our callback."""
    from huggingface_hub.utils.tqdm import tqdm

    class Silent(tqdm):  # type: ignore[misc, unused-ignore]
        monitor_interval = 0  # or a thread is started to watch bars that nobody sees

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(  # type: ignore[no-untyped-call]
                *args, **{**kwargs, "disable": True}
            )

    return Silent


@contextmanager
def _named(source: HubSource) -> Iterator[None]:
    """Tell the hub's refusals in our words, with the way out."""
    import httpx2
    from huggingface_hub.errors import (
        FileMetadataError,
        GatedRepoError,
        HfHubHTTPError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    token = "pass the hub's token: token=gpuserve.SecretSpec(name='huggingface', required_keys=('HF_TOKEN',))"  # noqa: S105 (advice)
    try:
        yield
    except GatedRepoError as error:
        raise GatedSourceError(
            f"{source.repo} is gated: accept its terms at https://huggingface.co/{source.repo}, and {token}"
        ) from error
    except RepositoryNotFoundError as error:
        raise WeightsSourceError(
            f"the hub knows no {source.repo}, or shows it only to those who may see it: correct the name, or {token}"
        ) from error
    except RevisionNotFoundError as error:
        raise WeightsSourceError(f"{source.repo} has no revision {source.revision}; correct it") from error
    except OfflineModeIsEnabled as error:
        raise WeightsSourceError(f"{source}: HF_HUB_OFFLINE is set; unset it where weights are fetched") from error
    except (HfHubHTTPError, httpx2.HTTPError, FileMetadataError) as error:
        # the address of a second host may carry its own key in the query: it is not told, nor is the cause
        lines = _QUERY.sub("", str(error)).strip().splitlines()
        raise WeightsSourceError(
            f"{source}: {type(error).__name__}: {lines[0] if lines else 'no answer'}; what came is kept, fetch again"
        ) from None
