"""Serves a model until a signal stops it.

visage serve --model NAME-or-FOLDER [--host 127.0.0.1] [--port 5001] [--poll SECONDS]
"""

from __future__ import annotations

import os
from pathlib import Path

import uvicorn
from fastapi import FastAPI

import visage
from visage.server.admission import AdmissionSettings
from visage.server.application import ServerSettings, build_app
from visage.server.connections import PromptProtocol, allow_many_connections
from visage.server.limits import LIMITS
from visage.server.logs import log_config
from visage.server.models import FolderSource
from visage.server.pictures import quiet_decoders

# Requests that wait to be answered, beside those that run; each holds at most max_request_bytes
MAX_WAITING = 32
# Of all places, those that one address may hold
SHARE_OF_ADDRESS = 0.75
MAX_ARRIVING = 256
MAX_ARRIVING_BYTES = 512_000_000
ARRIVAL_SECONDS = 30.0  # for all of a request to arrive
ANSWER_SECONDS = 60.0
SECONDS_TO_FINISH = 30  # for requests in flight after SIGTERM
HOST = "127.0.0.1"
PORT = 5001


def server_settings(num_at_once: int, poll_seconds: float) -> ServerSettings:
    """The settings of a server on this machine that predicts `num_at_once` requests at once."""
    max_inside = num_at_once + MAX_WAITING
    admission = AdmissionSettings(
        max_arriving=MAX_ARRIVING,
        max_arriving_bytes=MAX_ARRIVING_BYTES,
        arrival_seconds=ARRIVAL_SECONDS,
        max_inside=max_inside,
        max_inside_of_address=round(SHARE_OF_ADDRESS * max_inside),
    )
    return ServerSettings(
        num_at_once=num_at_once,
        answer_seconds=ANSWER_SECONDS,
        poll_seconds=poll_seconds,
        admission=admission,
    )


def run(app: FastAPI, host: str, port: int) -> None:
    """Serves until SIGTERM or SIGINT; requests in flight are finished first."""
    quiet_decoders()
    allow_many_connections()
    uvicorn.run(
        app,
        host=host,
        port=port,
        http=PromptProtocol,
        ws="none",
        access_log=False,
        server_header=False,
        log_config=log_config(),
        timeout_graceful_shutdown=SECONDS_TO_FINISH,
    )


def serve(folder: Path, host: str, port: int, poll_seconds: float) -> None:
    """Serves the model in a folder. ValueError where there is none, or a damaged one."""
    source = FolderSource(folder=folder, name=folder.name, limits=LIMITS)
    settings = server_settings(len(os.sched_getaffinity(0)), poll_seconds)
    run(build_app(source, settings, visage.__version__), host, port)
