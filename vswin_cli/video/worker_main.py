"""Inside a worker process: `serve`, and the messages that pass between it and workers.py."""

from __future__ import annotations

import os
import pickle
import signal
import struct
import sys
import threading
import time
from pathlib import Path
from typing import IO, Any

import numpy as np

from vswin_cli.errors import VswinError, WorkerError

_LENGTH = struct.Struct("!Q")


def write_block(stream: IO[bytes], data: bytes | memoryview) -> None:
    """A length and the bytes."""
    stream.write(_LENGTH.pack(len(data)))
    stream.write(data)


def read_block(stream: IO[bytes]) -> memoryview:
    """The bytes of one write_block."""
    (length,) = _LENGTH.unpack(_read_exactly(stream, _LENGTH.size))
    return _read_exactly(stream, length)


def _read_exactly(stream: IO[bytes], length: int) -> memoryview:
    """``length`` bytes in a writable buffer; raises EOFError where the pipe ends first."""
    # np.empty and not bytearray, which writes 25 MB of zeros first: a third of the transport's time.
    view, done = np.empty(length, np.uint8).data, 0
    while done < length:
        got = stream.readinto(view[done:])  # type: ignore[attr-defined]  # IO[bytes] of a pipe has it
        if not got:
            raise EOFError
        done += got
    return view


def read_message(stream: IO[bytes]) -> Any:
    """A pickled object and the large arrays that travel beside it, so that they are copied only once."""
    head = read_block(stream)
    (buffers,) = _LENGTH.unpack(_read_exactly(stream, _LENGTH.size))
    return pickle.loads(head, buffers=[read_block(stream) for _ in range(buffers)])


def write_message(stream: IO[bytes], message: Any) -> None:
    """The inverse of read_message."""
    buffers: list[pickle.PickleBuffer] = []
    head = pickle.dumps(message, protocol=5, buffer_callback=buffers.append)
    write_block(stream, head)
    stream.write(_LENGTH.pack(len(buffers)))
    for buffer in buffers:
        write_block(stream, buffer.raw())
    stream.flush()


def serve(parent: int) -> None:
    """A worker's whole life: read a call from stdin, say so, make it, write its outcome; end with stdin."""
    # Ctrl-C and an orderly end are for the parent, which then kills its workers: a signal to the whole group
    # must not make a good video look as if it had crashed its decoder.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _end_with(parent)
    calls = os.fdopen(os.dup(0), "rb")
    results = os.fdopen(os.dup(1), "wb")
    # Libraries that print must not write into the results.
    os.dup2(2, 1)
    with Path(os.devnull).open("rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    import cv2

    cv2.setNumThreads(1)  # the pool has the right number of processes already
    from vswin_cli.video import views  # noqa: F401  (imported now, so that no video pays for it)

    write_message(results, "ready")
    while True:
        try:
            request = read_block(calls)
        except EOFError:
            return
        write_message(results, "started")
        write_message(results, _outcome(request))


def _outcome(request: memoryview) -> tuple[bool, Any]:
    """(True, result) or (False, exception) of one pickled call."""
    try:
        function, arguments = pickle.loads(request)
        return True, function(*arguments)
    except VswinError as error:
        return False, error
    except MemoryError:
        return False, WorkerError("decoding ran out of memory", "use fewer workers, or scale the video down")
    except Exception as error:  # noqa: BLE001
        # A bug: the parent raises it, with the traceback of this process attached.
        import traceback

        error.add_note("in the decoding process:\n" + "".join(traceback.format_exception(error)))
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:  # noqa: BLE001  (some exceptions cannot travel: send the text instead)
            return False, RuntimeError("".join(traceback.format_exception(error)))
        return False, error


def _end_with(parent: int) -> None:
    """See to it that this process ends when its parent does, even by SIGKILL and in the middle of a call."""
    if sys.platform == "linux":
        import ctypes

        # PR_SET_PDEATHSIG: also ends a decoder that loops in C and never lets a Python thread run.
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    if os.name == "posix":
        threading.Thread(target=watch, name="parent-watch", daemon=True).start()
