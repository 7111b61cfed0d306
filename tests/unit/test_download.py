"""The downloader against a server that misbehaves: what is asked for, what ends up in the cache."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import pytest

from tests.servers import Given, Web, closed_port, serving
from vswin_cli.checkpoints import download
from vswin_cli.checkpoints.download import Transfer, fetch, file_name_of, record_of
from vswin_cli.checkpoints.zoo import place_of_url
from vswin_cli.errors import DownloadError

BODY = bytes(i * 7 % 251 for i in range(50_000))
SHA = hashlib.sha256(BODY).hexdigest()


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    monkeypatch.setattr(download, "PAUSE_SECONDS", 0.001)
    monkeypatch.setenv("NO_PROXY", "*")
    with serving() as server:
        yield server


@pytest.fixture
def get(web: Web, tmp_path: Path) -> Callable[..., Path]:
    """Fetch /w.pth of the server into the cache."""

    def run(sha256: str = "", path: Path | None = None, progress: download.Tell | None = None) -> Path:
        place = path or tmp_path / "cache" / "w.pth"
        return fetch(f"{web.address}/w.pth", place, sha256=sha256, insecure=True, progress=progress)

    return run


def left(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir() if p.suffix != ".lock"}


def test_a_file_comes_once(web: Web, get: Callable[..., Path]) -> None:
    web.files["/w.pth"] = Given(BODY)
    seen: list[Transfer] = []
    path = get(SHA, progress=seen.append)
    assert path.read_bytes() == BODY
    assert left(path.parent) == {"w.pth", "w.pth.sha256"}
    assert record_of(path).read_text() == f"{SHA}  w.pth\n"
    assert (seen[-1].done, seen[-1].total, seen[-1].name) == (len(BODY), len(BODY), "w.pth")
    assert seen[-1].per_second > 0
    assert seen[-1].eta_seconds == 0
    get()
    assert len(web.asked) == 1
    assert web.asked[0][1]["Accept-Encoding"] == "identity"


def test_cut_connections_are_resumed(web: Web, get: Callable[..., Path]) -> None:
    web.files["/w.pth"] = Given(BODY, cut=[20_000, 10_000])
    assert get(SHA).read_bytes() == BODY
    ranges = [(headers.get("Range"), headers.get("If-Range")) for _, headers in web.asked]
    assert ranges == [(None, None), ("bytes=20000-", '"one"'), ("bytes=30000-", '"one"')]


def test_a_later_run_resumes(web: Web, get: Callable[..., Path], tmp_path: Path) -> None:
    web.files["/w.pth"] = Given(BODY, cut=[9_000, 1, 1, 1, 1, 1])
    with pytest.raises(DownloadError, match="cannot be downloaded"):
        get()
    assert left(tmp_path / "cache") == {"w.pth.part", "w.pth.part.etag"}
    web.files["/w.pth"] = Given(BODY)
    web.asked.clear()
    assert get().read_bytes() == BODY
    assert [headers.get("Range") for _, headers in web.asked] == ["bytes=9004-"]


@pytest.mark.parametrize("ignore", [True, False])
def test_another_version_or_no_ranges_start_again(web: Web, get: Callable[..., Path], ignore: bool) -> None:
    web.files["/w.pth"] = Given(b"x" * 40_000, cut=[30_000, 0, 0, 0, 0])
    with pytest.raises(DownloadError):
        get()
    web.files["/w.pth"] = Given(BODY, etag='"one"' if ignore else '"two"', ignore=ignore)
    assert get(SHA).read_bytes() == BODY
    assert len(web.asked) == 6


@pytest.mark.parametrize("etag", ["", 'W/"weak"'])
def test_without_a_version_nothing_is_resumed(web: Web, get: Callable[..., Path], etag: str) -> None:
    web.files["/w.pth"] = Given(BODY, etag=etag, cut=[30_000])
    assert get(SHA).read_bytes() == BODY
    assert "Range" not in web.asked[1][1]


def test_a_part_longer_than_the_file_is_dropped(web: Web, get: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache/w.pth.part").write_bytes(b"x" * 60_000)
    (tmp_path / "cache/w.pth.part.etag").write_text('"one"')
    web.files["/w.pth"] = Given(BODY)
    assert get(SHA).read_bytes() == BODY


def test_errors_of_the_server(web: Web, get: Callable[..., Path]) -> None:
    web.files["/w.pth"] = Given(BODY, fail=[500, 503, 429, 502])
    assert get(SHA).read_bytes() == BODY
    assert len(web.asked) == 5


def test_what_does_not_help_is_not_tried_again(web: Web, get: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="404 Not Found") as caught:
        get()
    assert len(web.asked) == 1
    assert str(tmp_path / "cache/w.pth") in (caught.value.hint or "")
    assert "--weights camera-motion" in (caught.value.hint or "")
    web.files["/w.pth"] = Given(BODY, fail=[500] * 9)
    with pytest.raises(DownloadError, match="500 Internal Server Error"):
        get()
    assert len(web.asked) == 1 + 1 + download.RETRIES
    assert left(tmp_path / "cache") == set()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (Given(b"<html>", kind="text/html; charset=utf-8"), "web page"),
        (Given(BODY, encoding="gzip"), "compressed"),
        (Given(BODY, length=str(10**12)), "more than any checkpoint"),
    ],
)
def test_what_is_no_checkpoint(web: Web, get: Callable[..., Path], given: Given, message: str) -> None:
    web.files["/w.pth"] = given
    with pytest.raises(DownloadError, match=message):
        get()


def test_endless_answers_end(web: Web, get: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "MAX_BYTES", 20_000)
    web.files["/w.pth"] = Given(BODY)
    with pytest.raises(DownloadError, match="more than any checkpoint"):
        get()


def test_a_silent_server(web: Web, get: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "TIMEOUT_SECONDS", 0.2)
    monkeypatch.setattr(download, "RETRIES", 1)
    web.files["/w.pth"] = Given(BODY, delay=2.0)
    with pytest.raises(DownloadError, match="timed out"):
        get()


def test_a_slow_server(web: Web, get: Callable[..., Path]) -> None:
    web.files["/w.pth"] = Given(BODY, delay=0.01)
    seen: list[Transfer] = []
    assert get(SHA, progress=seen.append).read_bytes() == BODY
    assert len(seen) > 2
    middle = seen[len(seen) // 2]
    assert 0 < middle.done < len(BODY)
    assert middle.eta_seconds == pytest.approx((len(BODY) - middle.done) / middle.per_second)


# ------------------------------------------------------------------------------------------------
# SHA-256


def test_wrong_hash(web: Web, get: Callable[..., Path], tmp_path: Path) -> None:
    web.files["/w.pth"] = Given(BODY)
    with pytest.raises(DownloadError, match=r"not the published file.*00000000 is published"):
        get("00000000")
    assert left(tmp_path / "cache") == set()
    assert get(SHA[:8]).read_bytes() == BODY


def test_a_file_changed_in_the_cache(web: Web, get: Callable[..., Path]) -> None:
    web.files["/w.pth"] = Given(BODY)
    path = get()
    path.write_bytes(BODY[:-1] + b"x")
    with pytest.raises(DownloadError, match="changed since its first use") as caught:
        get()
    assert str(record_of(path)) in (caught.value.hint or "")
    path.unlink()
    assert get().read_bytes() == BODY


def test_a_file_changed_upstream(web: Web, get: Callable[..., Path]) -> None:
    web.files["/w.pth"] = Given(BODY)
    path = get()
    path.unlink()
    web.files["/w.pth"] = Given(BODY + b"more")
    with pytest.raises(DownloadError, match="not the one of its first use here"):
        get()
    assert left(path.parent) == {"w.pth.sha256"}
    record_of(path).unlink()
    assert get().read_bytes() == BODY + b"more"


def test_a_file_put_there_by_hand(web: Web, get: Callable[..., Path], tmp_path: Path) -> None:
    path = tmp_path / "cache/w.pth"
    path.parent.mkdir()
    path.write_bytes(BODY)
    with pytest.raises(DownloadError, match="not the published file"):
        get("12345678")
    assert get(SHA[:8]) == path
    assert record_of(path).read_text().startswith(SHA)
    assert web.asked == []
    record_of(path).write_text("nonsense")
    with pytest.raises(DownloadError, match="holds no SHA-256"):
        get()


# ------------------------------------------------------------------------------------------------
# Where requests and files may go


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("file:///etc/passwd", "redirects to file:/+etc/passwd: only https"),
        ("ftp://127.0.0.1/w.pth", "only https"),
        ("data:text/plain,hello", "only https"),
        ("https://user:word@127.0.0.1/w.pth", "holds a user name"),
        ("https:///w.pth", "names no server|not a URL"),
        ("http://[::1/w.pth", "not a URL"),
    ],
)
def test_redirects_that_are_not_followed(
    web: Web, get: Callable[..., Path], target: str, message: str
) -> None:
    web.files["/w.pth"] = Given(redirect=target)
    with pytest.raises(DownloadError, match=message):
        get()


def test_redirects_that_are(web: Web, get: Callable[..., Path]) -> None:
    web.files["/w.pth"] = Given(redirect="/other")
    web.files["/other"] = Given(BODY, cut=[30_000])
    assert get(SHA).read_bytes() == BODY
    assert [path for path, _ in web.asked] == ["/w.pth", "/other"] * 2
    assert web.asked[-1][1]["Range"] == "bytes=30000-"


def test_a_ring_of_redirects(web: Web, get: Callable[..., Path]) -> None:
    web.files["/w.pth"] = Given(redirect="/w.pth")
    with pytest.raises(DownloadError, match="more than 10 redirects"):
        get()


def test_https_does_not_lead_to_http(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def answer(request: httpx2.Request) -> httpx2.Response:
        assert request.url.scheme == "https"
        return httpx2.Response(302, headers={"Location": "http://elsewhere.example/w.pth"})

    real = httpx2.Client
    monkeypatch.setattr(
        httpx2, "Client", lambda **options: real(transport=httpx2.MockTransport(answer), **options)
    )
    with pytest.raises(DownloadError, match=r"redirects to http://elsewhere.example/w.pth: http is not safe"):
        fetch("https://server.example/w.pth", tmp_path / "w.pth")


def test_http_is_asked_for(web: Web, tmp_path: Path) -> None:
    web.files["/w.pth"] = Given(BODY)
    with pytest.raises(DownloadError, match="http is not safe") as caught:
        fetch(f"{web.address}/w.pth", tmp_path / "w.pth")
    assert "--insecure" in (caught.value.hint or "")
    assert web.asked == []
    assert left(tmp_path) == set()


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://a.b/x/swin_tiny.pth", "swin_tiny.pth"),
        ("https://a.b/x/swin.pth?download=true#part", "swin.pth"),
        ("https://a.b/../../etc/passwd", "passwd"),
        ("https://a.b/x/..%2f..%2f..%2fetc%2fpasswd", "passwd"),
        ("https://a.b/x/..%5c..%5cboot.ini", "boot.ini"),
        ("https://a.b/x/.bashrc", "bashrc"),
        ("https://a.b/x/..", "weights"),
        ("https://a.b/", "weights"),
        ("https://a.b", "weights"),
        ("https://a.b/%00%0a:w*.pth", "___w_.pth"),
        ("https://a.b/" + "w" * 300 + ".pth", "w" * 96 + ".pth"),
    ],
)
def test_names_stay_in_the_cache(
    url: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VSWIN_CACHE", str(tmp_path))
    assert file_name_of(url) == name
    place = place_of_url(url)
    assert place.resolve().parent.parent == tmp_path.resolve() / "url"
    assert place_of_url(url.partition("#")[0] + "?other") != place


def test_no_network(web: Web, tmp_path: Path) -> None:
    address = f"{closed_port()}/swin.pth"
    with pytest.raises(DownloadError) as caught:
        fetch(address, tmp_path / "swin.pth", insecure=True)
    assert caught.value.message.startswith(f"swin.pth: cannot be downloaded from {address} (")
    assert "\n" not in caught.value.message + (caught.value.hint or "")
    assert f"put the file at {tmp_path / 'swin.pth'} by hand" in (caught.value.hint or "")


def test_a_cache_that_cannot_be_written(web: Web, get: Callable[..., Path], tmp_path: Path) -> None:
    web.files["/w.pth"] = Given(BODY)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DownloadError, match="the cache cannot be used") as caught:
        get(path=tmp_path / "file" / "w.pth")
    assert "VSWIN_CACHE" in (caught.value.hint or "")


# ------------------------------------------------------------------------------------------------
# Two at once


def test_two_processes_download_once(web: Web, tmp_path: Path) -> None:
    web.files["/w.pth"] = Given(BODY, delay=0.02)
    code = (
        "import sys; from pathlib import Path; from vswin_cli.checkpoints.download import fetch\n"
        "fetch(sys.argv[1], Path(sys.argv[2]), insecure=True)"
    )
    command = [sys.executable, "-W", "error", "-c", code, f"{web.address}/w.pth", str(tmp_path / "w.pth")]
    root = str(Path(__file__).parents[2])
    both = [subprocess.Popen(command, env=os.environ | {"PYTHONPATH": root}) for _ in range(2)]
    assert [process.wait(60) for process in both] == [0, 0]
    assert len(web.asked) == 1
    assert (tmp_path / "w.pth").read_bytes() == BODY


def test_who_waits_is_told(web: Web, get: Callable[..., Path]) -> None:
    web.files["/w.pth"] = Given(BODY, delay=0.03)
    begun = threading.Event()
    seen: list[Transfer] = []
    first = threading.Thread(target=get, kwargs={"progress": lambda _: begun.set()})
    first.start()
    assert begun.wait(20)
    assert get(progress=seen.append).read_bytes() == BODY
    first.join()
    assert len(web.asked) == 1
    assert seen
    assert all(now.waits and now.total is None for now in seen)
