"""What a stage and its caller agree on: the exit status, and how to make the stage use less memory.

| status | what it was | another try (flows/reproduce.py) |
|---|---|---|
| 0 | done | |
| 1 | a fault of this code: its traceback is printed | none |
| 2 | refused: a person must correct data, settings or machine | none |
| 74 | input or output broke off (EX_IOERR of sysexits.h) | after a pause |
| 137 | out of memory (128 + SIGKILL) | in smaller batches |

Status 2 is for a ValueError, a full disk and missing rights; 74 for a connection and for a busy or
failing device; 137 for a stage that reports it and for one that the kernel killed.
"""

from __future__ import annotations

import errno
import os
from enum import IntEnum


class ExitStatus(IntEnum):
    """A stage's exit status; see the module docstring."""

    DONE = 0
    FAULT = 1
    REFUSED = 2
    IO_ERROR = 74
    OUT_OF_MEMORY = 137


# Errors of the operating system that may pass. Broken connections and timeouts are exception
# classes of their own.
MAY_PASS = {
    errno.EIO,
    errno.EREMOTEIO,
    errno.EAGAIN,
    errno.EBUSY,
    errno.EINTR,
    errno.ESTALE,
    errno.ENOLCK,
    errno.ENETDOWN,
    errno.ENETUNREACH,
    errno.ENETRESET,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
}
# Errors that only a person can remove.
FOR_A_PERSON = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}
# Texts of torch's RuntimeErrors: GPU, CPU.
NO_MEMORY = ("out of memory", "can't allocate memory")
MICRO_BATCHES = "VISAGE_MICRO_BATCHES"


def exit_status_of(error: BaseException) -> ExitStatus:
    """The status that an exception ends a stage with."""
    if _is_memory(error):
        return ExitStatus.OUT_OF_MEMORY

    if isinstance(error, ConnectionError | TimeoutError):
        return ExitStatus.IO_ERROR
    if isinstance(error, OSError) and error.errno in MAY_PASS:
        return ExitStatus.IO_ERROR

    if isinstance(error, ValueError):
        return ExitStatus.REFUSED
    if isinstance(error, OSError) and error.errno in FOR_A_PERSON:
        return ExitStatus.REFUSED
    return ExitStatus.FAULT


def _is_memory(error: BaseException) -> bool:
    """torch's error is known by its text, not its class: most stages do without torch."""
    if isinstance(error, MemoryError):
        return True
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in NO_MEMORY)


def exit_status_of_process(status: int) -> ExitStatus:
    """What a process's exit status means. A signal is reported as minus its number, or by a shell
    as 128 + number; both mean the same."""
    status = 128 - status if status < 0 else status
    return ExitStatus(status) if status in set(ExitStatus) else ExitStatus.FAULT


def micro_batches() -> int:
    """The number of parts that training splits its batches into, and that other stages divide
    their batch size by. It is 1, or the environment's value for a stage that ran out of memory
    before. A training records it in its output."""
    return int(os.environ.get(MICRO_BATCHES, "1"))


def smaller(batch_size: int) -> int:
    """The batch size for forward passes alone, where it changes no result."""
    return max(1, batch_size // micro_batches())
