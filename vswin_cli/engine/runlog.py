"""The folder of an evaluation: who may write, what is done, and how it survives being killed.

    header.json        the fingerprint: what must agree for results to belong together
    rows-0000.jsonl    one line per finished video, appended by rank 0 (rows-0001: rank 1, ...)
    scores-0000.bin    its averaged probabilities, float16, one record per row without error
    plan.json          the open videos of this launch, and the ranks that may take them
    lock-0000          held while a rank writes
    summary.json, scores.bin, per_class.csv, confusions.csv, run.json   written at the end

A record is on disk before the row that names it, and a row counts only if it is whole: both carry a
checksum. What is torn or corrupt is simply done again.
"""

from __future__ import annotations

import json
import os
import secrets
import threading
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np
import numpy.typing as npt
from filelock import FileLock, Timeout

from vswin_cli.checkpoints.files import atomic_file
from vswin_cli.engine.distributed import Place
from vswin_cli.errors import OutputError

SCHEMA = 1
HELLO_SECONDS = 0.2
JOIN_SECONDS = 600.0
Row = dict[str, Any]
Scores = npt.NDArray[np.float32]


def write_json(path: Path, data: Any) -> None:
    """Write a JSON file atomically, keys in a fixed order."""
    with atomic_file(path) as temporary:
        temporary.write_text(
            json.dumps(data, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8"
        )


def read_json(path: Path) -> Any:
    """The JSON of a file; None where it is not there, or not whole."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None


def _sealed(row: Row) -> bytes:
    """A row as a line, with a checksum of the rest as its last entry."""
    text = json.dumps(row, ensure_ascii=False, separators=(",", ":"))
    return f'{text[:-1]},"crc":{zlib.crc32(text.encode())}}}\n'.encode()


def _opened(line: bytes) -> Row | None:
    """The row of a line; None if the line is torn or corrupt."""
    head, mark, tail = line.rstrip(b"\n").rpartition(b',"crc":')
    if not mark or not tail.endswith(b"}") or not tail[:-1].isdigit():
        return None
    if zlib.crc32(head + b"}") != int(tail[:-1]):
        return None
    try:
        row = json.loads(head + b"}")
    except ValueError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("id"), str) else None


class RunLog:
    """One rank's hold on an evaluation folder. A context manager: the lock is held inside.

    ids:     all videos, in the order of the result
    classes: length of a score record
    Raises OutputError: another run holds the folder, another fingerprint is in it, the disk is full.
    """

    def __init__(
        self, folder: Path, fingerprint: Mapping[str, Any], ids: Sequence[str], classes: int, place: Place
    ) -> None:
        self.folder, self.place = folder, place
        self.fingerprint = json.loads(json.dumps({**fingerprint, "schema": SCHEMA}))
        self.ids, self.classes = tuple(ids), classes
        self._known = set(self.ids)
        self.rows: dict[str, Row] = {}
        self.corrupt = 0
        self._offsets: dict[Path, int] = {}
        self._rows_file: IO[bytes] | None = None
        self._scores_file: IO[bytes] | None = None
        self._lock = FileLock(folder / f"lock-{place.rank:04d}")
        self._nonce = secrets.token_hex(8)
        self._nonces: dict[str, str] = {}
        self._arrived: set[int] = set()
        self._leaving = threading.Event()
        self._greeter: threading.Thread | None = None

    # -------------------------------------------------------------------- opening and closing

    def __enter__(self) -> Self:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=0)
        except Timeout:
            raise OutputError(
                f"{self.folder} is in use by another run (rank {self.place.rank})",
                "wait for it, stop it, or give this one another folder with --out",
            ) from None
        except OSError as error:
            raise OutputError(f"{self.folder}: cannot be used ({error.strerror or error})") from error
        try:
            self._check_header()
            with _disk_errors(self.folder):
                self._rows_file = self._reopen(self._rank_path("rows", "jsonl"), None)
                self._scores_file = self._reopen(self._rank_path("scores", "bin"), 2 * self.classes)
                self.refresh(verify=True)
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in (self._rows_file, self._scores_file):
            if file is not None:
                with suppress(OSError):  # what counts was synced row by row
                    file.close()
        self._leaving.set()
        if self._greeter is not None:
            self._greeter.join()
        self._lock.release()

    def _rank_path(self, name: str, suffix: str) -> Path:
        return self.folder / f"{name}-{self.place.rank:04d}.{suffix}"

    def _check_header(self) -> None:
        """Refuse a folder with another fingerprint, naming the first field that differs."""
        path = self.folder / "header.json"
        found = read_json(path)
        if found is None:
            if path.exists() and any(self.folder.glob("rows-*.jsonl")):
                raise OutputError(f"{path} is damaged", "restore it, or give another folder with --out")
            if self.place.is_first:
                write_json(path, self.fingerprint)
                return
            deadline = time.monotonic() + 600
            while (found := read_json(path)) is None:
                if time.monotonic() > deadline:
                    raise OutputError(f"{path} was not written by rank 0 within 10 minutes")
                time.sleep(0.1)
        for name in sorted(set(self.fingerprint) | set(found)):
            ours, theirs = self.fingerprint.get(name), found.get(name)
            if ours != theirs:
                raise OutputError(
                    f"{self.folder} holds results of another evaluation: {name} is {_short(theirs)} there, "
                    f"{_short(ours)} here",
                    "give this one another folder with --out",
                )

    @staticmethod
    def _reopen(path: Path, record: int | None) -> IO[bytes]:
        """Open for appending, after cutting off what a kill left torn at the end."""
        with path.open("ab"):
            pass
        size = path.stat().st_size
        whole = size - size % record if record else path.read_bytes().rfind(b"\n") + 1
        if whole != size:
            os.truncate(path, whole)
        return path.open("ab", buffering=0)

    # -------------------------------------------------------------------- reading and appending

    def refresh(self, verify: bool = False) -> None:
        """Take in the rows that any rank has appended since the last call.

        ``verify`` also reads their scores: rows without them do not count, so their videos are open.
        """
        for path in sorted(self.folder.glob("rows-*.jsonl")):
            start = self._offsets.get(path, 0)
            with path.open("rb") as file:
                file.seek(start)
                data = file.read()
            whole = data.rfind(b"\n") + 1
            self._offsets[path] = start + whole
            for line in data[:whole].splitlines():
                row = _opened(line)
                if row is None or row["id"] not in self._known:
                    self.corrupt += 1
                    continue
                row["rank"] = int(path.stem.rpartition("-")[2])
                if verify and "record" in row and self.scores_of(row) is None:
                    self.corrupt += 1
                    continue
                self.rows.setdefault(row["id"], row)

    def append(self, row: Row, scores: Scores | None) -> None:
        """Make one video's result last: its scores first, then its row, both synced. Raises OutputError."""
        assert self._rows_file is not None
        assert self._scores_file is not None
        row = dict(row)
        with _disk_errors(self.folder):
            if scores is not None:
                record = scores.astype("<f2").tobytes()
                place = self._scores_file.seek(0, os.SEEK_END)
                row["record"] = place // len(record)
                row["scores_crc"] = zlib.crc32(record)
                _write(self._scores_file, record)
            _write(self._rows_file, _sealed(row))
        self.rows[row["id"]] = {**row, "rank": self.place.rank}

    def scores_of(self, row: Row) -> npt.NDArray[np.float16] | None:
        """The averaged probabilities of a row (classes,); None where the record is lost or corrupt."""
        size = 2 * self.classes
        try:
            with (self.folder / f"scores-{row['rank']:04d}.bin").open("rb") as file:
                file.seek(row["record"] * size)
                record = file.read(size)
        except OSError:
            return None
        if len(record) != size or zlib.crc32(record) != row["scores_crc"]:
            return None
        return np.frombuffer(record, "<f2")

    def forget(self, ids: Iterable[str]) -> None:
        """Treat these videos as open (in this launch): their next row replaces the old one.

        The old rows are taken out of the files, so only a run of one process may do it.
        """
        gone = set(ids)
        if not gone:
            return
        assert self._rows_file is not None
        for path in sorted(self.folder.glob("rows-*.jsonl")):
            lines = path.read_bytes().splitlines(keepends=True)
            kept = [line for line in lines if (row := _opened(line)) is not None and row["id"] not in gone]
            if len(kept) != len(lines):
                if path == self._rank_path("rows", "jsonl"):
                    self._rows_file.close()
                with atomic_file(path) as temporary:
                    temporary.write_bytes(b"".join(kept))
        if self._rows_file.closed:
            self._rows_file = self._rank_path("rows", "jsonl").open("ab", buffering=0)
        self.rows.clear()
        self._offsets.clear()
        self.corrupt = 0
        self.refresh(verify=True)

    # -------------------------------------------------------------------- sharing the work

    @property
    def _hello_path(self) -> Path:
        return self.folder / f"hello-{self.place.rank:04d}.json"

    def share(self, wanted: Sequence[str]) -> list[str]:
        """The videos of this rank: every world-th of the wanted ones that are open.

        Ranks start at different moments, so rank 0 fixes the list of open videos in plan.json. A rank
        must not take an older launch's plan for this one's: it says hello with a random number and
        waits until a thread of rank 0 has put that number into the plan.
        """
        if self.place.is_first:
            self._open = [i for i in wanted if i not in self.rows]
            if self.place.world > 1:
                self._write_plan()
                self._greeter = threading.Thread(target=self._welcome, name="welcome", daemon=True)
                self._greeter.start()
            return self._open[:: self.place.world]
        write_json(self._hello_path, {"nonce": self._nonce, "world": self.place.world})
        while True:
            plan = read_json(self.folder / "plan.json")
            if plan is not None and plan["nonces"].get(str(self.place.rank)) == self._nonce:
                hello = {"nonce": self._nonce, "world": self.place.world, "joined": plan["launch"]}
                write_json(self._hello_path, hello)
                taken: list[str] = plan["open"][self.place.rank :: self.place.world]
                return [i for i in taken if i in self._known]
            time.sleep(0.1)

    def _welcome(self) -> None:
        """Rank 0's thread: admit ranks as they say hello."""
        while not self._leaving.wait(HELLO_SECONDS):
            with suppress(OSError, OutputError):  # a full disk is reported by the next row
                found = {}
                for rank in range(1, self.place.world):
                    hello = read_json(self.folder / f"hello-{rank:04d}.json")
                    if isinstance(hello, dict) and hello.get("world") == self.place.world:
                        found[str(rank)] = hello["nonce"]
                        if hello.get("joined") == self._nonce:
                            self._arrived.add(rank)
                if not found.items() <= self._nonces.items():
                    self._nonces |= found
                    self._write_plan()

    def wait_for_ranks(self) -> None:
        """Rank 0, before it leaves: every rank must have its answer, or it would wait for ever.

        One that has not come within ten minutes is not coming: its launcher has ended it, or will.
        """
        deadline = time.monotonic() + JOIN_SECONDS
        while self.place.world > 1 and time.monotonic() < deadline:
            if len(self._arrived) == self.place.world - 1:
                return
            time.sleep(HELLO_SECONDS)

    def _write_plan(self) -> None:
        write_json(
            self.folder / "plan.json", {"launch": self._nonce, "nonces": self._nonces, "open": self._open}
        )


def _write(file: IO[bytes], data: bytes) -> None:
    """Append all of ``data`` and sync it."""
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]
    os.fsync(file.fileno())


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."


@contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    """Turn a failing disk into one clear error that says how to go on."""
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"{folder}: results cannot be written ({error.strerror or error})",
            "nothing that was finished is lost: make room, then run the same command again",
        ) from error
