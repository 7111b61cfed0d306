"""A file from the network into a cache folder: resumed, checked, written atomically, once.

Beside a file in the cache stand

    FILE.sha256      its SHA-256 at first use, in the format of sha256sum; kept when FILE is removed
    FILE.lock        held by the process that downloads
    FILE.part        what has arrived of it, and
    FILE.part.etag   which version of the server's file that is (RFC 9110: If-Range)

No downloader on PyPI that is kept up does all of this (pooch checks hashes, but neither resumes nor looks
at where a redirect leads), so it is written here upon httpx2, the client that huggingface_hub brings.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from filelock import FileLock, Timeout

from vswin_cli import __version__
from vswin_cli.errors import DownloadError

if TYPE_CHECKING:
    import httpx2

TIMEOUT_SECONDS = 30.0  # without a single byte
CONNECT_SECONDS = 10.0
RETRIES = 4  # in a row that brought less than GAIN_BYTES
PAUSE_SECONDS = 0.5  # before the first of them; doubled before each other
GAIN_BYTES = 2**20
REDIRECTS = 10
MAX_BYTES = 32 * 2**30  # a training state of the largest Swin has 3 GB
TELL_SECONDS = 0.1

#: What to do without a network.
OFFLINE = "or use the model that ships with vswin: --weights camera-motion"


@dataclass(frozen=True)
class Transfer:
    """Where a download stands. Bytes, bytes per second, seconds.

    waits: another process downloads the file; ``done`` is what it has
    """

    name: str
    done: int
    total: int | None
    per_second: float = 0.0
    eta_seconds: float | None = None
    waits: bool = False


Tell = Callable[[Transfer], None]


def fetch(
    url: str, path: Path, *, sha256: str = "", insecure: bool = False, progress: Tell | None = None
) -> Path:
    """Bring the file of a URL to ``path``, unless it is there already, and check it. Returns ``path``.

    ``sha256`` is what is published of the file's SHA-256 (first digits, or all, or nothing). Its SHA-256 at
    first use is written down, and it must be the same ever after. ``insecure`` allows http. Raises
    DownloadError.
    """
    try:
        if not path.exists():
            check_url(url, insecure)
            path.parent.mkdir(parents=True, exist_ok=True)
            with _locked(path, progress):
                if not path.exists():  # another process may have brought it in the meantime
                    _bring(url, path, sha256, insecure, progress)
        return _checked(path, sha256)
    except OSError as error:
        raise DownloadError(
            f"{path}: the cache cannot be used ({error.strerror or error})",
            "VSWIN_CACHE names another folder",
        ) from error


def file_name_of(url: str) -> str:
    """A plain file name for what a URL names: letters, digits and ``._-``, no leading dot."""
    try:
        path = urlsplit(url).path
    except ValueError:
        path = ""  # no URL, as check_url says
    last = unquote(path).replace("\\", "/").rpartition("/")[2]
    return re.sub(r"[^A-Za-z0-9._-]", "_", last).lstrip(".")[-100:] or "weights"


def record_of(path: Path) -> Path:
    """Where the SHA-256 of a cached file is written down."""
    return path.with_name(path.name + ".sha256")


def check_url(url: str, insecure: bool, origin: str = "") -> None:
    """Raise DownloadError unless a URL may be fetched; ``origin`` is the URL that redirected to it."""
    about = f"{origin}: redirects to {url[:200]}" if origin else url[:200]
    try:
        if not url.isprintable():
            raise ValueError("it holds characters that no URL has")
        parts = urlsplit(url)
        host, named, _ = parts.hostname, parts.username or parts.password, parts.port
    except ValueError as error:
        raise DownloadError(f"{about}: not a URL ({error})") from error
    if parts.scheme == "http" and not insecure:
        raise DownloadError(
            f"{about}: http is not safe: anybody on the way can change the file",
            "use https, or take the risk with --insecure",
        )
    if parts.scheme not in ("https", "http"):
        raise DownloadError(f"{about}: only https is followed", "give a local file by its path")
    if not host:
        raise DownloadError(f"{about}: names no server")
    if named:
        raise DownloadError(
            f"{parts.scheme}://...@{host}: the URL holds a user name, which results would show",
            "download the file yourself, then give its path",
        )


# ------------------------------------------------------------------------------------------------
# Checking


@lru_cache(maxsize=256)
def _sha256(path: Path, _stamp: tuple[int, int]) -> str:
    """SHA-256 of a file; it is hashed once per process as long as its size and time stand."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _hash(path: Path) -> str:
    now = path.stat()
    return _sha256(path, (now.st_size, now.st_mtime_ns))


def _recorded(path: Path) -> str | None:
    """The SHA-256 at first use; None where the file was not used yet."""
    try:
        words = record_of(path).read_text(encoding="utf-8").split()
    except FileNotFoundError:
        return None
    except ValueError:
        words = []
    if not words or not re.fullmatch("[0-9a-f]{64}", words[0]):
        raise DownloadError(f"{record_of(path)}: holds no SHA-256", "remove it to trust the file as it is")
    return words[0]


def _record(path: Path, digest: str) -> None:
    temporary = record_of(path).with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(f"{digest}  {path.name}\n", encoding="utf-8")
    temporary.replace(record_of(path))


def _checked(path: Path, published: str) -> Path:
    """A cached file that is what was published, and what it was at first use."""
    digest, before = _hash(path), _recorded(path)
    if not digest.startswith(published):
        raise DownloadError(
            f"{path}: not the published file: its SHA-256 starts with {digest[: len(published)]}, "
            f"{published} is published",
            f"remove it, and it is downloaded again: {path}",
        )
    if before is None:
        with suppress(OSError):  # a cache that others fill may be read-only
            _record(path, digest)
    elif before != digest:
        raise DownloadError(
            f"{path}: changed since its first use: SHA-256 {digest[:16]}..., {before[:16]}... then",
            f"remove it, and it is downloaded again; or trust it: remove {record_of(path)}",
        )
    return path


# ------------------------------------------------------------------------------------------------
# Bringing


@contextmanager
def _locked(path: Path, progress: Tell | None) -> Iterator[None]:
    """Hold the lock of a file in the cache; while another process holds it, tell how far that one is."""
    lock = FileLock(path.with_name(path.name + ".lock"))
    while True:
        try:
            lock.acquire(timeout=0.5)
            break
        except Timeout:
            if progress is not None:
                progress(Transfer(path.name, _size(_part_of(path)), None, waits=True))
    try:
        yield
    finally:
        lock.release()


def _part_of(path: Path) -> Path:
    return path.with_name(path.name + ".part")


def _etag_of(part: Path) -> Path:
    return part.with_name(part.name + ".etag")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _bring(url: str, path: Path, published: str, insecure: bool, progress: Tell | None) -> None:
    """Download, check, and put in place."""
    part = _part_of(path)
    _download(url, part, path, insecure, progress)
    digest, before = _hash(part), _recorded(path)
    if not digest.startswith(published) or (before is not None and before != digest):
        part.unlink()
        _etag_of(part).unlink(missing_ok=True)
        if not digest.startswith(published):
            raise DownloadError(
                f"{url}: what came is not the published file: its SHA-256 starts with "
                f"{digest[: len(published)]}, {published} is published",
                f"try again; else put the right file at {path}, {OFFLINE}",
            )
        raise DownloadError(
            f"{url}: the server's file is not the one of its first use here: SHA-256 {digest[:16]}..., "
            f"{before[:16] if before else ''}... then",
            f"if the new one is to be trusted, remove {record_of(path)} and run again",
        )
    _record(path, digest)
    with part.open("rb+") as file:
        os.fsync(file.fileno())
    _etag_of(part).unlink(missing_ok=True)
    part.replace(path)


class _PassingError(Exception):
    """The server may give the file at another try."""


def _download(url: str, part: Path, path: Path, insecure: bool, progress: Tell | None) -> None:
    """Fill ``part``, going on where it ends; tries again while that helps."""
    import httpx2

    failures = 0
    timeout = httpx2.Timeout(TIMEOUT_SECONDS, connect=CONNECT_SECONDS)
    # Compressed bytes could not be resumed.
    headers = {"User-Agent": f"vswin/{__version__}", "Accept-Encoding": "identity"}
    with httpx2.Client(timeout=timeout, headers=headers) as client:
        while True:
            before = _size(part)
            try:
                return _attempt(client, url, part, path, insecure, progress)
            except httpx2.InvalidURL as error:
                raise DownloadError(f"{url[:200]}: not a URL ({error})") from error
            except (httpx2.HTTPError, _PassingError) as error:
                failures = 1 if _size(part) - before >= GAIN_BYTES else failures + 1
                # Without a network nobody should have to wait for the news.
                no_network = isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout) and not before
                if failures > (1 if no_network else RETRIES):
                    raise cannot_be_had(path.name, url, str(error) or type(error).__name__, path) from error
            time.sleep(PAUSE_SECONDS * 2 ** (failures - 1))


def cannot_be_had(name: str, url: str, reason: str, path: Path | None) -> DownloadError:
    """The error of a file that the network does not give, with the ways to do without."""
    reason = " ".join(reason.split())[:300]
    by_hand = (
        f"put the file at {path} by hand" if path else "download it elsewhere and give its path to --weights"
    )
    return DownloadError(f"{name}: cannot be downloaded from {url} ({reason})", f"{by_hand}, {OFFLINE}")


def _attempt(
    client: httpx2.Client, url: str, part: Path, path: Path, insecure: bool, progress: Tell | None
) -> None:
    """One request, and what it brings. Raises _PassingError, httpx2.HTTPError, DownloadError."""
    start, etag = _size(part), ""
    if start and _etag_of(part).exists():
        etag = _etag_of(part).read_text(encoding="utf-8")
    if not etag:
        start = 0  # without knowing which version it is a part of, it is of no use
    asked = {"Range": f"bytes={start}-", "If-Range": etag} if start else {}
    response = _open(client, url, asked, insecure)
    try:
        if response.status_code == 206 and start:
            found = re.fullmatch(
                r"bytes (\d{1,15})-\d{1,15}/(\d{1,15}|\*)", response.headers.get("Content-Range", "").strip()
            )
            if found is None or int(found[1]) != start:
                part.unlink()
                raise _PassingError("the server sends another range than asked for")
            total = None if found[2] == "*" else int(found[2])
        elif response.status_code == 416 and start:
            part.unlink()
            raise _PassingError("the server's file is shorter than what came of it before")
        elif response.status_code == 200:
            length, start = response.headers.get("Content-Length", ""), 0
            total = int(length) if length.isdecimal() else None
            _check_kind(response, url)
            _etag_of(part).write_text(_version(response), encoding="utf-8")
        elif response.status_code >= 500 or response.status_code in (408, 425, 429):
            raise _PassingError(_status(response))
        else:
            raise cannot_be_had(path.name, url, _status(response), path)
        if total is not None and total > MAX_BYTES:
            raise DownloadError(f"{url}: {total:,} bytes, more than any checkpoint has")
        done = _receive(response, part, start, total, url, path.name, progress)
        if total is not None and done != total:
            raise _PassingError(f"{done:,} of {total:,} bytes came")
    finally:
        response.close()


def _open(client: httpx2.Client, url: str, headers: dict[str, str], insecure: bool) -> httpx2.Response:
    """The answer after redirects, each of which must lead to where we may go; its body is still to come."""
    address = url
    for _ in range(REDIRECTS + 1):
        check_url(address, insecure, "" if address == url else url)
        request = client.build_request("GET", address, headers=headers)
        response = client.send(request, stream=True, follow_redirects=False)
        if not response.has_redirect_location:
            return response
        response.close()
        address = str(request.url.join(response.headers["Location"]))
    raise DownloadError(f"{url}: more than {REDIRECTS} redirects")


def _status(response: httpx2.Response) -> str:
    return f"the server says {response.status_code} {response.reason_phrase}".rstrip()


def _check_kind(response: httpx2.Response, url: str) -> None:
    if response.headers.get("Content-Type", "").partition(";")[0].strip().lower() == "text/html":
        raise DownloadError(
            f"{url}: the server sends a web page, not a file", "give the address of the file itself"
        )
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise DownloadError(f"{url}: the server sends the file compressed, though asked not to")


def _version(response: httpx2.Response) -> str:
    """What If-Range may name: a strong ETag, else the date; '' where the server tells neither."""
    etag = response.headers.get("ETag", "")
    version = etag if etag and not etag.startswith("W/") else response.headers.get("Last-Modified", "")
    return version if version.isascii() and version.isprintable() else ""


def _receive(
    response: httpx2.Response,
    part: Path,
    start: int,
    total: int | None,
    url: str,
    name: str,
    progress: Tell | None,
) -> int:
    """Write the body behind the first ``start`` bytes; the length of the part then."""
    begin = told = time.monotonic()
    done = start
    with part.open("ab" if start else "wb") as file:
        for block in response.iter_raw():
            done += len(block)
            if done > MAX_BYTES:
                raise DownloadError(f"{url}: more than {MAX_BYTES:,} bytes, more than any checkpoint has")
            file.write(block)
            now = time.monotonic()
            if progress is not None and (now - told >= TELL_SECONDS or done == total):
                told = now
                progress(transfer_at(name, done, total, (done - start) / max(1e-9, now - begin)))
    return done


def transfer_at(name: str, done: int, total: int | None, rate: float) -> Transfer:
    """Where a download of so many bytes per second stands."""
    left = None if total is None or rate <= 0 else max(0.0, (total - done) / rate)
    return Transfer(name, done, total, rate, left)
