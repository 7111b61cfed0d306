"""Every error that vswin reports as one line, and nothing else.

    VswinError
    ├── UsageError            the options contradict each other                    (exit code 2)
    ├── OutputError           a file cannot be written, or would be overwritten
    ├── CheckpointError       a weights file cannot be used
    │   ├── UnreadableError   not a checkpoint, damaged, or unsafe to read
    │   ├── DownloadError     cannot be fetched, or is not the file that it was
    │   ├── DialectError      readable, but not a Swin that we know
    │   └── MismatchError     keys or shapes do not fit the model
    ├── DataError             a data set or its annotations cannot be used
    ├── ModelInputError       a clip has the wrong rank or number of channels
    ├── ModelOutputError      the model's output is not finite
    └── VideoError            a video cannot be turned into views
        ├── ContainerError    not a video container that we open
        ├── DecodeError       the decoder failed
        └── WorkerError       the decoding process crashed or ran out of time

An error is a message (what, where, the numbers) and a hint (what to type next). The command line
prints both and exits with ``exit_code``; any other exception is a bug and shows its traceback.
"""

from __future__ import annotations

from unicodedata import category

_OBEYED = ("Cc", "Cs", "Cn", "Zl", "Zp")  # controls, lone surrogates, unassigned, line and paragraph ends
_REVERSING = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
MAX_LENGTH = 4000  # of a message; names in a file can be of any length


def printable(text: str) -> str:
    """``text`` as one line that no terminal obeys: messages hold names out of files that strangers made."""
    if len(text) > MAX_LENGTH:
        text = f"{text[: MAX_LENGTH // 2]} [...] {text[-MAX_LENGTH // 2 :]}"
    if text.isprintable():
        return text
    return "".join(ascii(c)[1:-1] if category(c) in _OBEYED or c in _REVERSING else c for c in text)


class VswinError(Exception):
    """Base of all expected errors: a one-line message and an optional hint."""

    exit_code = 1

    def __init__(self, message: str, hint: str | None = None) -> None:
        message = printable(message)
        super().__init__(message)
        self.message = message
        self.hint = None if hint is None else printable(hint)

    def __reduce__(self) -> tuple[type[VswinError], tuple[str, str | None]]:
        # Errors cross process borders (decoding workers), and the hint must survive that.
        return type(self), (self.message, self.hint)


class UsageError(VswinError):
    """The options given contradict each other or cannot be parsed."""

    exit_code = 2


class OutputError(VswinError):
    """A file cannot be written, or exists already."""


class CheckpointError(VswinError):
    """A weights file cannot be used."""


class UnreadableError(CheckpointError):
    """The bytes are no checkpoint, are damaged, or are not safe to read."""


class DownloadError(CheckpointError):
    """The file cannot be fetched, or is not the one that was published or used before."""


class DialectError(CheckpointError):
    """The file was read, but it is no Swin Transformer that we know how to name."""


class MismatchError(CheckpointError):
    """Keys or shapes of the file do not fit the model."""


class DataError(VswinError):
    """A data set on disk, or the file that lists its videos, cannot be used."""


class ModelInputError(VswinError):
    """A clip has the wrong rank or number of channels."""


class ModelOutputError(VswinError):
    """The model's output holds NaN or infinity, so it ranks nothing."""


class VideoError(VswinError):
    """A video cannot be turned into views."""


class ContainerError(VideoError):
    """The first bytes are not those of a video container that we open."""


class DecodeError(VideoError):
    """The decoder failed on this file."""


class WorkerError(VideoError):
    """The process that decodes crashed or ran out of time."""
