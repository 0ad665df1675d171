"""Serving, as ratios within one run: clients over cores, HTTP over the bare predictor, the share of
a request outside detector and network, and memory over many requests.

    python -m bench.serving                       # about 3 minutes
    python -m bench.serving --requests 10000      # also memory over 10,000 requests: minutes more

A released model is served by `visage serve`, a real process on loopback, one thread
an answer. The clients are threads of this process and use the same cores. Photos are drawn faces of
200 to 640 px, sent to POST /predict as they are. What is compared takes turns, so that other load
meets both; processor times hardly feel it, wall times do.
"""

from __future__ import annotations

import argparse
import http.client
import os
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil

from visage.detection.image_io import read_photo
from visage.detection.mtcnn import Detector, DetectorSettings
from visage.inference.photos import Model
from visage.synthetic import encode_face, sample_person, sample_photo
from visage.weights import load_model

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "visage" / "released" / "tiny-utkface-all-ages"
SIDES = (200, 250, 300, 400, 500, 600, 640, 225)
TURNS = 7  # the first warms up
SHARES = (0.1, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True, kw_only=True)
class Load:
    """Some requests: their seconds, all together, the server's processor seconds for them, and the
    seconds in which its threads ran or could have run, had a core been free."""

    seconds: list[float]
    total: float
    processor: float
    runnable: float

    @property
    def rate(self) -> float:
        return len(self.seconds) / self.total


def drawn_photos() -> list[bytes]:
    rng = np.random.default_rng(0)
    return [encode_face(sample_photo(sample_person(rng), rng, clean=True), px) for px in SIDES]


@contextmanager
def served(port: int) -> Iterator[tuple[int, float]]:
    """A server's process id, and the processor seconds until GET /ready succeeds."""
    command = [sys.executable, "-m", "visage.cli", "serve", "--model", str(MODEL)]
    process = subprocess.Popen(
        [*command, "--port", str(port)],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        while not is_ready(port):
            if process.poll() is not None:
                raise SystemExit("the server ended while it started")
            time.sleep(0.05)
        yield process.pid, processor_seconds(process.pid)
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


def processor_seconds(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def runnable_seconds(pid: int) -> float:
    """Seconds in which the process's threads ran or waited for a core (Linux's schedstat); a thread
    that waits for another one of the process does neither."""
    nanoseconds = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        ran, waited, _ = (task / "schedstat").read_text().split()
        nanoseconds += int(ran) + int(waited)
    return nanoseconds / 1e9


def load(port: int, pid: int, photos: Sequence[bytes], num_clients: int, count: int) -> Load:
    """`count` requests of `num_clients` clients, each with its own connection."""
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
            photo = photos[turn % len(photos)]
            connection.request("POST", "/predict", photo, {"Content-Type": "image/jpeg"})
            response = connection.getresponse()
            body = response.read()
            if response.status != 200:
                raise SystemExit(f"{response.status}: {body[:300]!r}")
            seconds.append(time.perf_counter() - begin)

    threads = [threading.Thread(target=client) for _ in range(num_clients)]
    before = processor_seconds(pid)
    before_runnable = runnable_seconds(pid)
    begin = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    total = time.perf_counter() - begin
    return Load(
        seconds=seconds,
        total=total,
        processor=processor_seconds(pid) - before,
        runnable=runnable_seconds(pid) - before_runnable,
    )


def print_clients(port: int, pid: int, photos: Sequence[bytes], num_cores: int) -> None:
    """Prints what several clients get over one client, in turns."""
    count = 4 * len(photos)
    alone: list[Load] = []
    together: list[Load] = []
    for _ in range(TURNS):
        alone.append(load(port, pid, photos, 1, count))
        together.append(load(port, pid, photos, 2 * num_cores, count))

    pairs = list(zip(alone[1:], together[1:], strict=True))
    rates = [more.rate / one.rate for one, more in pairs]
    processor = [more.processor / one.processor for one, more in pairs]
    busy = [more.processor / more.total for _, more in pairs]
    usable = [more.runnable / more.total for _, more in pairs]
    print(f"\n{num_cores} cores, {2 * num_cores} clients against 1, median of {len(pairs)} turns")
    print(f"requests a second           x {statistics.median(rates):.2f} (best {max(rates):.2f})")
    print(f"processor time a request    x {statistics.median(processor):.2f}")
    print(f"cores that the server had     {statistics.median(busy):.2f}")
    print(f"cores that it could have used {statistics.median(usable):.2f}")


def each(predict: Callable[[bytes], object], photos: Sequence[bytes]) -> tuple[float, float]:
    """Processor and median wall seconds of a photo."""
    seconds = []
    begin = time.process_time()
    for photo in photos:
        start = time.perf_counter()
        predict(photo)
        seconds.append(time.perf_counter() - start)
    return (time.process_time() - begin) / len(photos), statistics.median(seconds)


def print_parts(port: int, pid: int, photos: Sequence[bytes]) -> None:
    """Prints HTTP against the bare predictor, and what a request does besides finding faces and
    predicting them."""
    predictor = Model(*load_model(MODEL))
    detector = Detector(DetectorSettings(**vars(predictor.config.detector)))
    pixels = {photo: read_photo(photo) for photo in photos}
    aligned = {}
    for photo in photos:
        result = predictor.predict(photo, keep_crops=True)
        aligned[photo] = [face.aligned for face in result.faces if face.aligned is not None]

    rows: list[tuple[float, ...]] = []
    for _ in range(TURNS):
        over_http = load(port, pid, photos, 1, len(photos))
        bare, bare_wall = each(predictor.predict, photos)
        found, _ = each(lambda photo: detector.detect([pixels[photo]]), photos)
        network, _ = each(lambda photo: predictor.predict_aligned(aligned[photo]), photos)
        http_processor = over_http.processor / len(photos)
        http_wall = statistics.median(over_http.seconds)
        rows.append((http_processor, http_wall, bare, bare_wall, found, network))

    medians = [statistics.median(column) for column in zip(*rows[1:], strict=True)]
    http_processor, http_wall, bare, bare_wall, found, network = medians
    print(f"\nmilliseconds of a photo, median of {TURNS - 1} turns: processor (wall)")
    print(f"over HTTP, one client       {1e3 * http_processor:6.1f} ({1e3 * http_wall:.1f})")
    print(f"the bare predictor          {1e3 * bare:6.1f} ({1e3 * bare_wall:.1f})")
    print(f"  detector                  {1e3 * found:6.1f}")
    print(f"  network                   {1e3 * network:6.1f}")
    print(f"HTTP over bare            x {http_processor / bare:6.2f} ({http_wall / bare_wall:.2f})")
    print(f"outside detector, network   {1 - (found + network) / http_processor:6.0%}")


def print_memory(port: int, pid: int, photos: Sequence[bytes], count: int) -> None:
    """Prints the server's resident memory after the first tenth and later; four clients."""
    process = psutil.Process(pid)
    done = 0
    first = 0.0
    print("\nrequests  resident MB  over the first tenth's")
    for share in SHARES:
        part = round(count * share) - done
        load(port, pid, photos, 4, part)
        done += part
        megabytes = process.memory_info().rss / 1e6
        first = first or megabytes
        print(f"{done:8} {megabytes:12.1f} {megabytes / first:12.3f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.serving", description=__doc__)
    parser.add_argument(
        "--requests", type=int, default=500, help="requests over which memory is measured"
    )
    arguments = parser.parse_args()

    photos = drawn_photos()
    port = free_port()
    with served(port) as (pid, seconds):
        print(f"{seconds:.1f} processor seconds from the start until ready")
        print_clients(port, pid, photos, len(os.sched_getaffinity(0)))
        print_parts(port, pid, photos)
        print_memory(port, pid, photos[:1], arguments.requests)


if __name__ == "__main__":
    main()
