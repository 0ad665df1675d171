"""Serving: time to start, latency and throughput by number of clients, the gain of batching, and
memory over many requests.

    python -m bench.serving                       # about 4 minutes
    python -m bench.serving --requests 10000      # also memory over 10,000 requests: minutes more

The released model is packaged into its own store and served by `python -m model_registry.serve`, a
real process on loopback, on all cores. The clients are threads of this process and use the same
cores. Photos are synthetic faces of 200 to 600 px; aligned faces are their crops. Other load
affects wall times, but not processor times (of the server, or of one thread here).
"""

from __future__ import annotations

import argparse
import base64
import functools
import http.client
import io
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import psutil
import torch
from PIL import Image

from model_registry.mlflow_client import connect
from model_registry.package import PackageSettings, package
from stages.settings import load_section
from visage.detection.image_io import read_photo
from visage.inference.photos import Predictor
from visage.synthetic import encode_face, sample_person, sample_photo

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "model_registry" / "released" / "tiny-utkface-all-ages"
SIDES = (200, 250, 300, 400, 500, 600, 350, 225)
CLIENTS = (1, 4, 16)
TURNS = 9  # the first warms up
NAME = "bench"


def drawn_photos() -> list[bytes]:
    rng = np.random.default_rng(0)
    return [encode_face(sample_photo(sample_person(rng), rng, clean=True), px) for px in SIDES]


def aligned_faces(predictor: Predictor, photos: Sequence[bytes]) -> list[bytes]:
    """The photos' largest faces as PNG crops."""
    faces = []
    for photo, result in zip(photos, predictor.predict_photos(photos), strict=True):
        if result.faces:
            stream = io.BytesIO()
            face = predictor.align(
                read_photo(photo), np.array(result.faces[0].landmarks, np.float32)
            )
            Image.fromarray(face.crop_HWC).save(stream, "PNG")
            faces.append(stream.getvalue())
    return faces


def request_of(column: str, picture: bytes) -> bytes:
    return json.dumps(
        {"dataframe_records": [{column: base64.b64encode(picture).decode()}]}
    ).encode()


def registered(folder: Path) -> None:
    """The released model as version 1 of NAME in a store in `folder`."""
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder / 'mlflow.db'}"
    client = connect()
    run = client.create_run(
        client.create_experiment(NAME, artifact_location=(folder / "artifacts").as_uri())
    )
    settings = load_section(ROOT / "params.yaml", "package", PackageSettings)
    package(MODEL, run.info.run_id, PackageSettings(**{**vars(settings), "model": NAME}))


@contextmanager
def served(port: int) -> Iterator[tuple[int, float]]:
    """A server's process id, and the seconds from its start until GET /ready succeeds."""
    words = f"-m model_registry.serve --model models:/{NAME}/1 --port {port}".split()
    command = [sys.executable, *words]
    begin = time.perf_counter()
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        while not is_ready(port):
            if process.poll() is not None:
                raise SystemExit("the server ended while it started")
            time.sleep(0.05)
        yield process.pid, time.perf_counter() - begin
    finally:
        process.terminate()
        process.wait()


def is_ready(port: int) -> bool:
    """Whether the server reports a loaded model."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/ready")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def load(
    port: int, requests: Sequence[bytes], num_clients: int, count: int
) -> tuple[list[float], float]:
    """Seconds of each of `count` requests, and of all together.

    Each of the `num_clients` clients has its own connection.
    """
    seconds: list[float] = []
    turns = iter(range(count))
    lock = threading.Lock()

    def client() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        while True:
            with lock:
                turn = next(turns, None)
            if turn is None:
                connection.close()
                return
            begin = time.perf_counter()
            connection.request(
                "POST",
                "/invocations",
                requests[turn % len(requests)],
                {"Content-Type": "application/json"},
            )
            response = connection.getresponse()
            body = response.read()
            if response.status != 200:
                raise SystemExit(f"{response.status}: {body[:300]!r}")
            seconds.append(time.perf_counter() - begin)

    threads = [threading.Thread(target=client) for _ in range(num_clients)]
    begin = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return seconds, time.perf_counter() - begin


def processor_seconds(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def print_load(port: int, pid: int, kind: str, requests: Sequence[bytes], count: int) -> float:
    """Prints a table row for each number of clients; gives the server's processor seconds per
    request with one client."""
    alone = 0.0
    for num_clients in CLIENTS:
        before = processor_seconds(pid)
        seconds, total = load(port, requests, num_clients, count)
        busy = (processor_seconds(pid) - before) / count
        alone = alone or busy
        p50, p99 = np.percentile(seconds, [50, 99])
        print(
            f"{kind:8} {num_clients:7} {1e3 * p50:9.1f} {1e3 * p99:9.1f} {count / total:14.1f} "
            f"{1e3 * busy:14.1f}",
            flush=True,
        )
    return alone


def processor_medians(forms: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Processor seconds of each, taking turns."""
    seconds: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(TURNS):
        for name, run in forms.items():
            begin = time.process_time()
            run()
            seconds[name].append(time.process_time() - begin)
    return {name: statistics.median(values[1:]) for name, values in seconds.items()}


def each_of(predict: Callable[[Any], object], pictures: Any, slices: Sequence[slice]) -> None:
    for part in slices:
        predict(pictures[part])


def print_shares(
    predictor: Predictor, photos: Sequence[bytes], crops: torch.Tensor, alone: dict[str, float]
) -> None:
    """Prints where a request's time goes, and what joining requests of clients would save."""
    torch.set_num_threads(1)
    count = len(photos)
    same = [photos[0]] * count
    parts: dict[int, list[slice]] = {}
    for size in (1, 2, count):
        parts[size] = [slice(start, start + size) for start in range(0, count, size)]

    forms: dict[str, Callable[[], object]] = {}
    for size, slices in parts.items():
        forms[f"forward {size}"] = functools.partial(
            each_of, predictor.predict_crops, crops, slices
        )
        forms[f"photo {size}"] = functools.partial(
            each_of, predictor.predict_photos, photos, slices
        )
        forms[f"same {size}"] = functools.partial(each_of, predictor.predict_photos, same, slices)
    each = {name: seconds / count for name, seconds in processor_medians(forms).items()}

    print(f"\nprocessor ms on one thread   {'alone':>8} {'2 joined':>9} {f'{count} joined':>9}")
    for kind, words in (
        ("forward", "face, forward pass only"),
        ("photo", "photo, eight sizes"),
        ("same", "photo, one size (200 px)"),
    ):
        row = [each[f"{kind} {size}"] for size in parts]
        saved = ", ".join(f"{1 - joined / row[0]:.0%}" for joined in row[1:])
        print(
            f"{words:28} {1e3 * row[0]:8.1f} {1e3 * row[1]:9.1f} {1e3 * row[2]:9.1f}   saved "
            f"{saved}"
        )

    for kind, seconds in alone.items():
        print(
            f"{kind}: {1 - each['forward 1'] / seconds:.0%} of {1e3 * seconds:.1f} ms outside the "
            f"forward pass"
        )


def print_memory(port: int, pid: int, requests: Sequence[bytes], count: int) -> None:
    """Prints the server's resident memory after the first tenth and later; four clients."""
    process = psutil.Process(pid)
    done = 0
    print("\nrequests  resident MB")
    for share in (0.1, 0.25, 0.5, 0.75, 1.0):
        part = round(count * share) - done
        load(port, requests, 4, part)
        done += part
        print(f"{done:8} {process.memory_info().rss / 1e6:12.1f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.serving", description=__doc__)
    parser.add_argument("--count", type=int, default=320, help="requests at each number of clients")
    parser.add_argument(
        "--requests", type=int, default=0, help="requests over which memory is measured"
    )
    arguments = parser.parse_args()

    predictor, photos = Predictor.load(MODEL), drawn_photos()
    faces = aligned_faces(predictor, photos)
    with tempfile.TemporaryDirectory() as folder:
        registered(Path(folder))
        port = free_port()
        with served(port) as (pid, seconds):
            print(
                f"{len(os.sched_getaffinity(0))} cores; {seconds:.1f} s from the start until ready"
            )
            print("what     clients    p50 ms    p99 ms     requests/s   processor ms")
            requests: dict[str, list[Any]] = {
                "photo": [request_of("photo", photo) for photo in photos],
                "face": [request_of("face", face) for face in faces],
            }
            alone = {
                kind: print_load(port, pid, kind, bodies, arguments.count)
                for kind, bodies in requests.items()
            }
            if arguments.requests:
                print_memory(port, pid, requests["face"], arguments.requests)
        mlflow.set_tracking_uri("")

    crops = np.stack([read_photo(face) for face in faces])
    print_shares(predictor, photos, torch.from_numpy(crops).permute(0, 3, 1, 2), alone)


if __name__ == "__main__":
    main()
