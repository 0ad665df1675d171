"""The log of a server that is attacked."""

from __future__ import annotations

import logging
import logging.config

from visage.server.logs import BURST, PERIOD, RateLimit, log_config


class Clock:
    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def record(line: int, text: str = "odd request %d") -> logging.LogRecord:
    return logging.LogRecord("a", logging.WARNING, "a.py", line, text, (7,), None)


def test_a_place_logs_a_few_lines_a_minute_and_says_how_many_it_left_out() -> None:
    clock = Clock()
    limit = RateLimit(clock)
    passed = [limit.filter(record(1)) for _ in range(1000)]
    assert sum(passed) == BURST
    assert limit.filter(record(2))

    clock.seconds = PERIOD
    later = record(1)
    assert limit.filter(later)
    assert later.getMessage() == "odd request 7 (990 more like it were left out)"
    quiet = record(2)
    clock.seconds = 3 * PERIOD
    assert limit.filter(quiet)
    assert quiet.getMessage() == "odd request 7"


def test_uvicorn_s_configuration_is_one_that_logging_takes() -> None:
    before = logging.getLogger().handlers[:]
    try:
        logging.config.dictConfig(log_config())
        [handler] = [each for each in logging.getLogger().handlers if each not in before]
        assert any(isinstance(each, RateLimit) for each in handler.filters)
    finally:
        logging.getLogger().handlers[:] = before
        logging.getLogger().setLevel(logging.WARNING)
        logging.getLogger("PIL").setLevel(logging.NOTSET)
