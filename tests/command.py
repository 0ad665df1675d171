"""The command `visage` inside the test's process."""

from __future__ import annotations

import os
from unittest import mock

import pytest
from typer.testing import CliRunner, Result

from visage.cli import app


def visage(*words: object) -> Result:
    """What the command does with these words: `exit_code`, `stdout`, `stderr`. A fault of the code
    fails the test with its traceback."""
    with mock.patch.dict(os.environ):  # a command of the clone sets its libraries' variables
        result = CliRunner().invoke(app, list(map(str, words)), prog_name="visage")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def refused(*words: object) -> str:
    """The one line that refuses these words, without the command's name before it."""
    result = visage(*words)
    assert result.exit_code == 2, result.output
    lines = result.stderr.splitlines()
    prefix = f"visage {words[0]}: "
    mine = [line for line in lines if line.startswith(prefix)]
    if len(mine) != 1 or lines[-1] != mine[0]:
        pytest.fail(result.stderr)
    return mine[0].removeprefix(prefix)
