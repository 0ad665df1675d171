"""What a stage and whoever starts it agree on: how it ended, as an exit status, and how it is told
to need less memory.

| status | what it was | another try (flows/reproduce.py) |
|---|---|---|
| 0 | done | |
| 1 | a fault of this code: its traceback is printed | none |
| 2 | data, settings or a machine that a person must mend: ValueError, full disk, missing rights | none |
| 74 | input or output that broke off: connection, busy or failing device (EX_IOERR of sysexits.h) | after a pause |
| 137 | out of memory, by its own account or killed by the kernel (128 + SIGKILL) | in smaller batches |
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


# Of all that an operating system refuses. Connections and timeouts that broke are classes of their
# own.
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
FOR_A_PERSON = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}
NO_MEMORY = ("out of memory", "can't allocate memory")  # torch's RuntimeErrors: GPU, CPU
MICRO_BATCHES = "VISAGE_MICRO_BATCHES"


def exit_status_of(error: BaseException) -> ExitStatus:
    """The status that an exception ends a stage with."""
    if _is_memory(error):
        return ExitStatus.OUT_OF_MEMORY
    if isinstance(error, ConnectionError | TimeoutError):
        return ExitStatus.IO_ERROR
    if isinstance(error, OSError) and error.errno in MAY_PASS:
        return ExitStatus.IO_ERROR
    if isinstance(error, ValueError) or (
        isinstance(error, OSError) and error.errno in FOR_A_PERSON
    ):
        return ExitStatus.REFUSED
    return ExitStatus.FAULT


def _is_memory(error: BaseException) -> bool:
    """torch is not imported for this: most stages do without it."""
    if isinstance(error, MemoryError) or (
        isinstance(error, OSError) and error.errno == errno.ENOMEM
    ):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in NO_MEMORY)


def exit_status_of_process(status: int) -> ExitStatus:
    """What a process's exit status means: minus a signal's number, and the shell's 128 + number,
    are the same."""
    status = 128 - status if status < 0 else status
    return ExitStatus(status) if status in set(ExitStatus) else ExitStatus.FAULT


def micro_batches() -> int:
    """Into how many parts a training splits its batches, by how much the other stages divide
    theirs: 1, or what the environment says to a stage that ran out of memory before. What it
    changes is noted in what the stage writes."""
    return int(os.environ.get(MICRO_BATCHES, "1"))


def smaller(batch_size: int) -> int:
    """A batch of forward passes alone, whose size changes no result."""
    return max(1, batch_size // micro_batches())
