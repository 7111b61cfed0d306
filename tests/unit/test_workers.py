"""Decoding workers: a crash, a hang or a bug costs one task; nothing is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import av
import numpy as np
import pytest

from tests import clips
from vswin_cli.config import PROTOCOLS
from vswin_cli.errors import ContainerError, DecodeError, WorkerError
from vswin_cli.video import worker_main, workers
from vswin_cli.video.views import prepare
from vswin_cli.video.workers import DecodePool

K400 = PROTOCOLS["k400-4x3"]
REPOSITORY = Path(__file__).parents[2]
posix = pytest.mark.skipif(os.name != "posix", reason="signals as on POSIX")


def crash(number: int) -> None:
    os.kill(os.getpid(), number)


def crash_while_sending() -> bytes:
    """A result whose process dies when half of it is sent, as by the out-of-memory killer."""

    def write_half(stream: IO[bytes], data: bytes | memoryview) -> None:
        stream.write(len(data).to_bytes(8, "big"))
        stream.write(data[: len(data) // 2])
        stream.flush()
        os.kill(os.getpid(), signal.SIGKILL)

    worker_main.write_block = write_half  # in the worker process only
    return b"x" * 80_000_000


def sleep(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def loaded_modules() -> list[str]:
    return sorted(sys.modules)


def process_id() -> int:
    return os.getpid()


def bug() -> None:
    raise KeyError("a bug")


def chatter() -> str:
    print("to stdout")
    os.write(1, b"more\n")
    return "quiet"


def interrupt() -> str:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.05)
    return "still here"


def big(size: int) -> np.ndarray:
    return np.arange(size, dtype=np.uint8)


def threads_of_opencv() -> int:
    import cv2

    return cv2.getNumThreads()


def fail_to_travel() -> None:
    class LocalError(Exception):
        pass

    raise LocalError("cannot be pickled")


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{pid}/stat")
    return not (status.exists() and status.read_text().rsplit(")", 1)[1].split()[0] == "Z")


def gone(pid: int, seconds: float = 5.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not alive(pid):
            return True
        time.sleep(0.02)
    return False


@pytest.fixture(scope="module")
def pool() -> Iterator[DecodePool]:
    with DecodePool(workers=1, timeout=20.0) as shared:
        yield shared


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clips.write_clip(tmp_path_factory.mktemp("clips") / "a.mp4", 80)


def test_a_video_comes_back_as_it_would_here(pool: DecodePool, video: Path) -> None:
    there, here = pool.submit(video, K400).result(), prepare(video, K400)
    assert np.array_equal(there.frames, here.frames)
    assert np.array_equal(there.clips, here.clips)
    assert there.frames.flags.c_contiguous
    assert there.frames.flags.writeable  # torch.from_numpy warns about read-only arrays
    assert (there.path, there.total, there.sampled_frames) == (str(video), 80, here.sampled_frames)


def test_errors_keep_their_type_and_hint(pool: DecodePool, tmp_path: Path) -> None:
    with pytest.raises(ContainerError, match="does not exist") as missing:
        pool.submit(tmp_path / "none.mp4", K400).result()
    assert missing.value.hint == "check the path"
    with pytest.raises(DecodeError, match="no video stream"):
        pool.submit(clips.write_audio(tmp_path / "sound.mp4"), K400).result()


@posix
def test_a_crash_costs_only_its_own_video(pool: DecodePool, video: Path) -> None:
    futures = [
        pool.call(crash, signal.SIGSEGV, name="bad.mp4"),
        pool.submit(video, K400),
        pool.call(os._exit, 3, name="exits.mp4"),
        pool.submit(video, K400),
    ]
    with pytest.raises(WorkerError, match=r"bad\.mp4: the decoding process was ended by SIGSEGV") as caught:
        futures[0].result()
    assert caught.value.hint
    assert futures[1].result().total == 80
    with pytest.raises(WorkerError, match=r"exits\.mp4: the decoding process ended with exit code 3"):
        futures[2].result()
    assert futures[3].result().total == 80


@posix
def test_an_orderly_end_of_the_whole_group_costs_no_video(pool: DecodePool) -> None:
    """timeout, systemd and SLURM signal the decoders, too; only their parent decides."""
    pid = pool.call(process_id).result()
    waiting = pool.call(sleep, 0.5)
    time.sleep(0.1)
    for number in (signal.SIGTERM, signal.SIGINT):
        os.kill(pid, number)
    assert waiting.result() == 0.5


@posix
def test_a_death_while_sending_costs_only_its_own_video(pool: DecodePool, video: Path) -> None:
    with pytest.raises(WorkerError, match=r"SIGKILL \(out of memory\?\)"):
        pool.call(crash_while_sending).result(timeout=20)
    assert pool.submit(video, K400).result(timeout=20).total == 80


@posix
def test_a_worker_that_dies_idle_costs_nothing(pool: DecodePool, video: Path) -> None:
    pid = pool.call(process_id).result()
    os.kill(pid, signal.SIGKILL)
    assert gone(pid)
    assert pool.submit(video, K400).result().total == 80


def test_a_hang_costs_only_its_own_video(video: Path) -> None:
    with DecodePool(workers=1, timeout=1.0) as pool:
        pool.call(process_id).result()  # started: what follows measures no imports
        start = time.monotonic()
        stuck = pool.call(sleep, 1000.0, name="endless.mp4")
        with pytest.raises(WorkerError, match=r"endless\.mp4: decoding did not finish in 1 s") as caught:
            stuck.result()
        assert 0.9 < time.monotonic() - start < 3
        assert "--timeout" in str(caught.value.hint)
        assert pool.submit(video, K400).result().total == 80


def test_waiting_in_the_queue_does_not_count(video: Path) -> None:
    with DecodePool(workers=1, timeout=1.5) as pool:
        futures = [pool.call(sleep, 0.6) for _ in range(4)]  # the last one starts after 1.8 s
        assert [f.result() for f in futures] == [0.6] * 4


def test_two_workers_work_side_by_side() -> None:
    with DecodePool(workers=2, timeout=20.0) as pool:
        first = [pool.call(sleep, 0.3), pool.call(sleep, 0.3)]
        [f.result() for f in first]
        assert len({f.result() for f in [pool.call(process_id_after, 0.3) for _ in range(2)]}) == 2


def process_id_after(seconds: float) -> int:
    time.sleep(seconds)
    return os.getpid()


def test_workers_are_light(pool: DecodePool) -> None:
    heavy = {"torch", "typer", "pandas", "rich", "multiprocessing.resource_tracker"}
    assert not heavy & set(pool.call(loaded_modules).result())
    assert pool.call(threads_of_opencv).result() == 1


def test_workers_are_replaced_after_some_tasks() -> None:
    with DecodePool(workers=1, timeout=20.0, tasks_per_worker=2) as pool:
        pids = [pool.call(process_id).result() for _ in range(4)]
    assert pids[0] == pids[1] != pids[2] == pids[3]


def test_a_bug_keeps_its_type_and_shows_the_workers_traceback(pool: DecodePool) -> None:
    with pytest.raises(KeyError, match="a bug") as caught:
        pool.call(bug).result()
    assert "in bug" in caught.value.__notes__[0]
    with pytest.raises(RuntimeError, match="cannot be pickled"):
        pool.call(fail_to_travel).result()
    assert pool.call(process_id).result() > 0


def test_prints_do_not_disturb_the_results(pool: DecodePool, capfd: pytest.CaptureFixture[str]) -> None:
    assert pool.call(chatter).result() == "quiet"
    assert capfd.readouterr() == ("", "")


@posix
def test_ctrl_c_is_left_to_the_parent(pool: DecodePool) -> None:
    assert pool.call(interrupt).result() == "still here"


def test_large_results_arrive_whole(pool: DecodePool) -> None:
    size = 30_000_001
    assert np.array_equal(pool.call(big, size).result(), big(size))


def test_closing_leaves_no_process_and_no_waiting_future() -> None:
    pool = DecodePool(workers=2, timeout=60.0)
    pids = [f.result() for f in [pool.call(process_id_after, 0.2) for _ in range(2)]]
    running = [pool.call(sleep, 1000.0) for _ in range(2)]
    queued = pool.call(sleep, 1000.0)
    time.sleep(0.2)
    start = time.monotonic()
    pool.close()
    assert time.monotonic() - start < 5
    assert queued.cancelled()
    for future in running:
        assert isinstance(future.exception(timeout=1), WorkerError)
    if os.name == "posix":
        assert not any(alive(pid) for pid in pids)
    pool.close()  # twice is fine
    with pytest.raises(WorkerError, match="closed"):
        pool.call(process_id)


def run_script(script: str, tmp_path: Path, *arguments: str, **kwargs: Any) -> subprocess.Popen[str]:
    path = tmp_path / "script.py"
    path.write_text(script)
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    return subprocess.Popen(
        [sys.executable, str(path), *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **kwargs,
    )


@posix
@pytest.mark.parametrize("busy", [False, True])
def test_workers_end_when_the_parent_is_killed(tmp_path: Path, busy: bool) -> None:
    script = (
        "import os, time\nfrom vswin_cli.video.workers import DecodePool\n"
        "pool = DecodePool(workers=1, timeout=600)\n"
        "print(pool.call(os.getpid).result(), flush=True)\n"
        f"pool.call(time.sleep, 600) if {busy} else None\n"
        "time.sleep(0.3)\nprint('ready', flush=True)\ntime.sleep(600)\n"
    )
    parent = run_script(script, tmp_path)
    assert parent.stdout is not None
    assert parent.stderr is not None
    with parent.stdout, parent.stderr:
        worker = int(parent.stdout.readline())
        assert parent.stdout.readline() == "ready\n"
        assert alive(worker)
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        assert gone(worker)


def test_a_script_needs_no_main_guard(tmp_path: Path, video: Path) -> None:
    """Workers do not import the caller's script: nothing starts twice, and its torch stays out of them."""
    script = (
        "import sys\nprint('top of the script', flush=True)\n"
        "from vswin_cli.config import PROTOCOLS\nfrom vswin_cli.video.workers import DecodePool\n"
        "with DecodePool() as pool:\n"
        "    print(pool.submit(sys.argv[1], PROTOCOLS['k400-4x3']).result().total)\n"
    )
    done = run_script(script, tmp_path, str(video))
    assert done.communicate(timeout=60) == ("top of the script\n80\n", "")


def test_a_pool_that_nobody_closed_does_not_keep_python_running(tmp_path: Path) -> None:
    script = (
        "import os, time\nfrom vswin_cli.video.workers import DecodePool\n"
        "pool = DecodePool()\nprint(pool.call(os.getpid).result())\npool.call(time.sleep, 600)\n"
    )
    out, err = run_script(script, tmp_path).communicate(timeout=30)
    assert err == ""
    if os.name == "posix":
        assert gone(int(out))


def test_a_worker_that_cannot_start_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """No endless respawning: after a first failed start every task fails at once, with the reason."""
    monkeypatch.setattr(workers, "_BOOT", "import no_such_module_at_all")
    started: list[int] = []
    real = subprocess.Popen

    def counting(*args: Any, **kwargs: Any) -> Any:
        started.append(1)
        return real(*args, **kwargs)

    monkeypatch.setattr(subprocess, "Popen", counting)
    with DecodePool(workers=1, timeout=20.0) as pool:
        futures = [pool.call(process_id) for _ in range(20)]
        for future in futures:
            with pytest.raises(
                WorkerError, match=r"exit code 1 while starting: ModuleNotFoundError: .*no_such_module"
            ):
                future.result(timeout=20)
    assert len(started) == 1


def test_a_worker_that_never_gets_ready_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_BOOT", "import time; time.sleep(1000)")
    with (
        DecodePool(workers=1, start_timeout=0.5) as pool,
        pytest.raises(WorkerError, match=r"did not start within 0\.5 s"),
    ):
        pool.call(process_id).result(timeout=20)


def test_a_pool_needs_sense() -> None:
    for bad in ({"workers": 0}, {"timeout": 0.0}):
        with pytest.raises(ValueError, match="a pool needs"):
            DecodePool(**bad)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text",
    [
        "#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\n{}\n#EXT-X-ENDLIST\n",
        "ffconcat version 1.0\nfile '{}'\n",
    ],
    ids=["hls", "ffconcat"],
)
def test_a_playlist_named_mp4_reads_no_other_file(
    pool: DecodePool, tmp_path: Path, video: Path, text: str
) -> None:
    secret = tmp_path / "secret.mp4"
    secret.write_bytes(video.read_bytes())
    path = tmp_path / "clip.mp4"
    path.write_text(text.format(secret.name))
    if "ffconcat" in text:  # the danger is real: FFmpeg, asked plainly, opens the other file
        with av.open(str(path)) as opened:
            assert opened.streams.video[0].width == clips.WIDTH
    os.utime(secret, (1, 1))
    secret.read_bytes()
    recorded = secret.stat().st_atime != 1  # some systems are set not to note reading
    os.utime(secret, (1, 1))
    with pytest.raises(ContainerError, match=r"playlist|concat list"):
        pool.submit(path, K400).result()
    assert not recorded or secret.stat().st_atime == 1
