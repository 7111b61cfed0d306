"""Decoding in processes of its own, so that a video can crash, hang or leak without taking the run along.

One thread here looks after one worker process and its pair of pipes; nothing is shared between workers. A
pool with one shared pipe (pebble, concurrent.futures) stops for good when a worker is killed while it sends
a result, as the out-of-memory killer does. Workers are plain interpreters that run worker_main.serve, not
multiprocessing children: those import the caller's main script again, with torch and whatever else it loads,
and need an ``if __name__ == "__main__"`` guard in it.
"""

from __future__ import annotations

import json
import os
import pickle
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Self, TypeVar

from vswin_cli.config import ViewProtocol
from vswin_cli.errors import WorkerError
from vswin_cli.video.worker_main import read_message, write_block

if TYPE_CHECKING:
    from vswin_cli.video.views import PreparedVideo

T = TypeVar("T")

#: A worker is replaced after this many videos: decoders are known to leak.
TASKS_PER_WORKER = 200
#: Seconds for an interpreter to start and import OpenCV and PyAV, on a busy machine.
START_SECONDS = 60.0
#: After so many failed starts in a row (the first counts alone) the pool stops trying.
START_ATTEMPTS = 3

_BOOT = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from vswin_cli.video.worker_main import serve; serve(int(sys.argv[2]))"
)


class DecodePool:
    """Prepares videos in ``workers`` processes, each video with a limit of ``timeout`` seconds.

    Use as a context manager. ``submit`` returns at once; a finished PreparedVideo (some 30 MB) waits in
    memory until its future is dropped, so bound the number of futures in flight: a few more than ``workers``.
    The time limit runs while a worker has the video, not while it is queued.
    """

    def __init__(
        self,
        workers: int = 1,
        timeout: float = 60.0,
        *,
        tasks_per_worker: int = TASKS_PER_WORKER,
        start_timeout: float = START_SECONDS,
    ) -> None:
        if workers < 1 or timeout <= 0:
            raise ValueError(f"a pool needs a worker and a positive time limit, not {workers} and {timeout}")
        self._timeout = timeout
        self._tasks_per_worker = tasks_per_worker
        self._start_timeout = start_timeout
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._closed = False
        self._started_once = False
        self._failed_starts = 0
        self._broken: WorkerError | None = None
        self._workers: set[_Worker] = set()
        self._threads = [
            threading.Thread(target=self._look_after_worker, name=f"decode-{i}", daemon=True)
            for i in range(workers)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, path: str | os.PathLike[str], protocol: ViewProtocol) -> Future[PreparedVideo]:
        """Queue one video. The future's ``result()`` gives the PreparedVideo or raises a VideoError."""
        from vswin_cli.video.views import prepare  # late: the pool itself needs no OpenCV

        return self.call(prepare, os.fspath(path), protocol, name=os.fspath(path))

    def call(self, function: Callable[..., T], *arguments: Any, name: str = "the task") -> Future[T]:
        """Queue ``function(*arguments)``, which a worker imports by name; ``name`` is for error messages."""
        job = _Job(function, arguments, name)
        with self._lock:
            if self._closed:
                raise WorkerError("the decoding pool is closed")
            self._jobs.put(job)
        return job.future

    def close(self) -> None:
        """Drop what is queued, stop what runs, and wait until no worker process is left."""
        with self._lock:
            if not self._closed:
                self._closed = True
                for _ in self._threads:
                    self._jobs.put(None)
            workers = list(self._workers)
        for worker in workers:
            worker.kill()
        for thread in self._threads:
            thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _look_after_worker(self) -> None:
        """One thread: take a job, see that a worker runs, hand the job over, deliver the outcome."""
        worker: _Worker | None = None
        try:
            while (job := self._jobs.get()) is not None:
                if self._closed:
                    job.future.cancel()
                if not job.future.set_running_or_notify_cancel():
                    continue
                try:
                    if worker is None:
                        worker = self._start_worker()
                    try:
                        outcome = worker.run(job, self._timeout)
                    except _IdleDeathError:  # no fault of this job: once more, in a new process
                        self._drop(worker)
                        worker = None
                        worker = self._start_worker()
                        outcome = worker.run(job, self._timeout)
                except BaseException as error:  # noqa: BLE001
                    # Whatever happens belongs to the caller who waits for this future, bugs included.
                    job.future.set_exception(error)
                else:
                    job.future.set_result(outcome)
                del job
                outcome = None  # this thread must not keep 25 MB alive until its next job
                if worker is not None and (not worker.usable or worker.tasks >= self._tasks_per_worker):
                    self._drop(worker)
                    worker = None
        finally:
            if worker is not None:
                self._drop(worker)

    def _start_worker(self) -> _Worker:
        with self._lock:
            if self._broken is not None:
                raise WorkerError(self._broken.message, self._broken.hint)
            if self._closed:
                raise WorkerError("the decoding pool is closed")
            worker = _Worker()
            self._workers.add(worker)
        try:
            worker.wait_until_ready(self._start_timeout)
        except WorkerError as error:
            self._drop(worker)
            with self._lock:
                self._failed_starts += 1
                if not self._started_once or self._failed_starts >= START_ATTEMPTS:
                    self._broken = error
            raise
        with self._lock:
            self._started_once = True
            self._failed_starts = 0
        return worker

    def _drop(self, worker: _Worker) -> None:
        worker.close()
        with self._lock:
            self._workers.discard(worker)


class _IdleDeathError(WorkerError):
    """The process had ended before it took the job."""


class _Job:
    """A call to make in a worker, and the future that its caller holds."""

    def __init__(self, function: Callable[..., Any], arguments: tuple[Any, ...], name: str) -> None:
        self.function = function
        self.arguments = arguments
        self.name = name
        self.future: Future[Any] = Future()


class _Worker:
    """A worker process seen from the parent: its pipes and its end. Used by one thread; ``kill`` by any."""

    def __init__(self) -> None:
        self.tasks = 0
        self.usable = True  # not asked of the system: a killed process still counts as alive for a moment
        # Kept to quote from where a worker dies; a file, because an unread pipe would fill up and block.
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  (closed in close)
        try:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-c",
                    _BOOT,
                    json.dumps([str(Path(p).absolute()) for p in sys.path]),
                    str(os.getpid()),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
            )
        except OSError as error:
            self._errors.close()
            raise WorkerError(f"no decoding process can be started: {error.strerror}") from error
        assert self._process.stdin is not None  # it is PIPE
        assert self._process.stdout is not None
        self._to: IO[bytes] = self._process.stdin
        self._from: IO[bytes] = self._process.stdout

    def kill(self) -> None:
        self._process.kill()

    def close(self) -> None:
        """End the process at once (it holds nothing worth saving) and leave no zombie."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._to, self._from, self._errors):
            try:
                pipe.close()
            except BrokenPipeError:
                continue  # closing flushes; the reader is gone, and so is the need to write

    def wait_until_ready(self, seconds: float) -> None:
        """Return when the worker's imports are done; raises WorkerError if they fail or take too long."""
        timed_out, message = self._receive(seconds)
        if message is not None:
            return
        hint = f"check that this works: {sys.executable} -c 'import av, cv2, vswin_cli'"
        if timed_out:
            raise WorkerError(f"a decoding process did not start within {seconds:g} s", hint)
        raise WorkerError(f"a decoding process {self._ending()} while starting{self._last_words()}", hint)

    def run(self, job: _Job, seconds: float) -> Any:
        """The job's result. Raises what the job raised, or WorkerError if the process ends or is too slow."""
        self.tasks += 1
        request = pickle.dumps((job.function, job.arguments))
        try:
            write_block(self._to, request)
            self._to.flush()
            timed_out, message = self._receive(seconds)  # 'started'
        except BrokenPipeError:
            timed_out, message = False, None
        if message is None and not timed_out:
            self.usable = False
            raise _IdleDeathError(f"{job.name}: the decoding process {self._ending()} before it began")
        if message is not None:
            timed_out, message = self._receive(seconds)
        if message is not None:
            done, value = message
            if done:
                return value
            raise value
        self.usable = False
        if timed_out:
            raise WorkerError(
                f"{job.name}: decoding did not finish in {seconds:g} s and was stopped",
                "allow more with --timeout SECONDS, or convert the video",
            )
        raise WorkerError(
            f"{job.name}: the decoding process {self._ending()}{self._last_words()}",
            "the file may be damaged: try to convert it, for example with ffmpeg -i INPUT OUTPUT.mp4",
        )

    def _receive(self, seconds: float) -> tuple[bool, Any]:
        """(timed out, message); the message is None where the process ended or was stopped first.

        The timer kills the process, which ends a blocked read on every platform.
        """
        lock = threading.Lock()
        finished = expired = False

        def stop() -> None:
            nonlocal expired
            with lock:  # never kill the process over a message that has just arrived
                if not finished:
                    expired = True
                    self._process.kill()

        timer = threading.Timer(seconds, stop)
        timer.daemon = True
        timer.start()
        try:
            message = read_message(self._from)
        except EOFError:
            message = None
        with lock:
            finished = True
        timer.cancel()
        if expired:
            self.usable = False
        return expired, message

    def _ending(self) -> str:
        """How the process ended, in words."""
        try:
            code = self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            return "closed its pipe"
        if code >= 0:
            return f"ended with exit code {code}"
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        note = " (out of memory?)" if name == "SIGKILL" else ""
        return f"was ended by {name}{note}"

    def _last_words(self) -> str:
        """The last line that the process wrote to stderr, which for Python is the exception."""
        size = self._errors.seek(0, os.SEEK_END)
        self._errors.seek(max(0, size - 4096))
        lines = self._errors.read().decode("utf-8", errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        return f": {last[:200]}" if last else ""
