"""Checkpoints of the Hugging Face hub, by its own library: its cache, its token, its endpoint."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vswin_cli.checkpoints.download import Tell, cannot_be_had, transfer_at
from vswin_cli.errors import DownloadError

#: Suffixes of the files in a repository that can be meant.
CHECKPOINTS = (".safetensors", ".pth", ".pt", ".bin")
INDEX = ".safetensors.index.json"


def fetch_hub(repo: str, revision: str | None, file: str | None, progress: Tell | None = None) -> Path:
    """A checkpoint of a repository, from or into the hub's own cache, with the hub's own token.

    Without ``file`` the repository's one checkpoint is found by name: model.safetensors first. Shards of an
    index and a config.json beside the file (class names) come with it. Raises DownloadError.
    """
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub import errors as hub

    place = f"hf:{repo}" + (f"@{revision}" if revision else "")
    address = f"{HfApi().endpoint}/{repo}"
    try:
        names, trouble = _names(repo, revision)
        if file is None:
            file = choose(names, place)
        elif file not in names:
            if trouble is not None:
                raise trouble
            raise DownloadError(f"{place}: no file {file} in it", f"it holds {', '.join(names[:12])}")

        def get(name: str) -> Path:
            return Path(
                hf_hub_download(
                    repo,
                    name,
                    revision=revision,
                    tqdm_class=_bar(f"{place}/{name}", progress),
                    # Else the library tries for half a minute to reach what cannot be reached.
                    local_files_only=trouble is not None,
                )
            )

        folder = file.rpartition("/")[0] + "/" if "/" in file else ""
        path = get(file)
        if path.name.endswith(INDEX):
            from vswin_cli.checkpoints.files import files_of

            for part in files_of(path)[1:]:
                get(folder + part.name)
        if folder + "config.json" in names:
            get(folder + "config.json")
        return path
    except hub.GatedRepoError as error:
        raise DownloadError(
            f"{place}: only for those who accepted its terms",
            f"accept them at {address}, then: hf auth login",
        ) from error
    except hub.RepositoryNotFoundError as error:
        raise DownloadError(
            f"{place}: no such repository, or a private one",
            "look at its name; for a private one: hf auth login",
        ) from error
    except hub.HFValidationError as error:
        raise DownloadError(f"{place}: cannot be a repository ({str(error)[:200]})") from error
    except hub.RevisionNotFoundError as error:
        raise DownloadError(f"{place}: no such revision", f"look at {address}") from error
    except (OSError, _http_error()) as error:
        reason = str(error.__cause__ or error).strip() or type(error).__name__
        raise cannot_be_had(f"{place}/{file or ''}".rstrip("/"), address, reason, None) from error


def _http_error() -> type[Exception]:
    import httpx2

    return httpx2.HTTPError


def _names(repo: str, revision: str | None) -> tuple[list[str], Exception | None]:
    """Files of a repository: (the hub's word, None), or where the hub cannot be reached, (what the cache
    holds, the reason)."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        about = HfApi().model_info(repo, revision=revision)
        return [entry.rfilename for entry in about.siblings or []], None
    except (OSError, _http_error()) as error:
        if isinstance(error, HfHubHTTPError) and error.response.status_code < 500:
            raise  # an answer
        for copy in hub_cache().get(repo, []):
            if (revision or "main") in copy.names:
                return list(copy.files), error
        raise


def choose(names: list[str], place: str) -> str:
    """The checkpoint among a repository's files. Raises DownloadError unless there is exactly one."""
    for preferred in ("model.safetensors", "model" + INDEX, "pytorch_model.bin"):
        if preferred in names:
            return preferred
    found = sorted(n for n in names if "/" not in n and n.endswith(CHECKPOINTS))
    if len(found) == 1:
        return found[0]
    example = found[0] if found else "FILE"
    raise DownloadError(
        f"{place}: {len(found)} checkpoints in it" + (f": {', '.join(found[:6])}" if found else ""),
        f"name the file: {place}/{example}",
    )


@dataclass(frozen=True)
class HubCopy:
    """One revision of a repository in the hub's cache.

    names: its commit, branches and tags
    files: paths in the repository
    """

    folder: Path
    commit: str
    names: tuple[str, ...]
    files: tuple[str, ...]
    nbytes: int


def hub_cache() -> dict[str, list[HubCopy]]:
    """What the hub's cache holds: repository -> its revisions."""
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        info = scan_cache_dir()
    except (CacheNotFound, OSError, ValueError):  # there is none, or none that can be read
        return {}
    return {
        repo.repo_id: [
            HubCopy(
                r.snapshot_path,
                r.commit_hash,
                (r.commit_hash, *sorted(r.refs)),
                tuple(sorted(f.file_path.relative_to(r.snapshot_path).as_posix() for f in r.files)),
                r.size_on_disk,
            )
            for r in sorted(repo.revisions, key=lambda r: r.last_modified, reverse=True)
        ]
        for repo in info.repos
        if repo.repo_type == "model"
    }


def remove_hub(repo: str) -> int:
    """Remove all revisions of a repository from the hub's cache; the bytes that this freed."""
    from huggingface_hub import scan_cache_dir

    commits = [copy.commit for copy in hub_cache().get(repo, [])]
    if not commits:
        return 0
    plan = scan_cache_dir().delete_revisions(*commits)
    plan.execute()
    return plan.expected_freed_size


def _bar(name: str, progress: Tell | None) -> type[Any]:
    """A progress bar for the hub's library that draws nothing and tells ``progress``."""
    from huggingface_hub.utils.tqdm import tqdm

    class Bar(tqdm):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            # The library turns its bars off where stderr is no terminal.
            options |= {"disable": progress is None, "file": io.StringIO()}
            super().__init__(*arguments, **options)  # type: ignore[no-untyped-call]

        def display(self, *_: Any, **__: Any) -> bool:
            if progress is not None and self.unit == "B" and self.n:
                now = self.format_dict
                rate = now["rate"] or self.n / max(1e-9, now["elapsed"])
                progress(transfer_at(name, int(self.n), self.total and int(self.total), rate))
            return True

    return Bar
