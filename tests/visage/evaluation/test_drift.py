"""Drift: what a summary keeps, and that faces of the same kind do not look drifted while others
do."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from stages.presets import read_params
from tests.conftest import REPOSITORY
from tests.small_model import small_config, small_network, some_crops
from visage.evaluation.drift import (
    NUM_BINS,
    Summary,
    Totals,
    drift,
    feature_distance,
    population_stability_index,
)
from visage.inference.faces import CropPredictor

SETTINGS = read_params(REPOSITORY / "params.yaml")["drift"]
THRESHOLDS = SETTINGS["max_value_psi"], SETTINGS["max_feature_distance"]
FEW, MANY = SETTINGS["min_faces"], 2000
Draw = tuple[np.ndarray, np.ndarray]


def summary(
    values: np.ndarray, features: np.ndarray, window_faces: int = 10**6, block_faces: int = 10**6
) -> Summary:
    made = Summary("of one model", 0.0, 100.0, window_faces=window_faces, block_faces=block_faces)
    made.add(values, features)
    return made


def people(
    rng: np.random.Generator, count: int, older_years: float = 0.0, brighter: float = 0.0
) -> Draw:
    """Ages of two generations, and features as a network has them: never below 0, skewed, most of
    them depending on age."""
    age = np.clip(
        np.where(rng.random(count) < 0.6, rng.normal(27, 6, count), rng.normal(52, 12, count)),
        1,
        99,
    )
    age = np.clip(age + older_years, 1, 99)
    slope = np.random.default_rng(5).normal(size=32)
    activation = np.maximum(slope * (age[:, None] - 40) / 20 + brighter, 0)
    features = activation + rng.gamma(0.5, 0.5, (count, 32))
    return np.clip(age + rng.normal(0, 3, count), 0, 100), features.astype(np.float32)


def looks_drifted(served: Callable[[np.random.Generator], Draw], num_draws: int) -> float:
    """Share of seeded draws in which FEW served faces are beyond a threshold."""
    beyond = 0
    for seed in range(num_draws):
        rng = np.random.default_rng(seed)
        found = drift(summary(*people(rng, MANY)), summary(*served(rng)))
        beyond += found.value_psi > THRESHOLDS[0] or found.feature_distance > THRESHOLDS[1]
    return beyond / num_draws


def test_few_faces_of_the_same_kind_do_not_look_drifted() -> None:
    assert looks_drifted(lambda rng: people(rng, FEW), 400) <= 0.01


def test_older_people_and_brighter_photos_do() -> None:
    assert looks_drifted(lambda rng: people(rng, FEW, older_years=10), 100) == 1
    assert looks_drifted(lambda rng: people(rng, FEW, brighter=0.6), 100) == 1
    assert (
        looks_drifted(lambda rng: (people(rng, FEW)[0] + 10, people(rng, FEW)[1]), 100) == 1
    )  # the values alone


def test_a_network_s_features_tell_brighter_photos() -> None:
    crops, heard = some_crops(600), []
    config, network = small_config(), small_network(small_config())
    for photos in (
        crops[:400],
        crops[400:],
        (crops[400:].float() * 1.6).clamp(max=255).to(torch.uint8),
    ):
        heard.append(Summary.of(config, window_faces=1000, block_faces=1000))
        CropPredictor(network, config, observe=heard[-1].add).predict_crops(photos)
    same, brighter = (drift(heard[0], other).feature_distance for other in heard[1:])
    assert same < THRESHOLDS[1] < brighter


@pytest.mark.parametrize("count", [100, 200, 400])
def test_sampling_alone_adds_nothing_on_average(count: int) -> None:
    """Where the corrections are exact: even bins, Gaussian features. Without them the means are 19
    and 1.5 / count."""
    found = []
    for seed in range(300):
        rng = np.random.default_rng(seed)
        draws = [
            (rng.uniform(0, 100, size), rng.normal(3, 2, (size, 8)).astype(np.float32))
            for size in (1000, count)
        ]
        found.append(drift(*(summary(*draw) for draw in draws)))
    assert abs(np.mean([each.value_psi for each in found])) < 3 / count
    assert abs(np.mean([each.feature_distance for each in found])) < 0.1 / count


def test_both_measures_against_plain_lines(rng: np.random.Generator) -> None:
    old_B, new_B = np.array([5.0, 0, 20, 0, 75]), np.array([0.0, 0, 30, 10, 10])
    p, q = (
        np.array([each[0], each[2], each[3], each[4]]) + 0.5 for each in (old_B, new_B)
    )  # one bin is nobody's
    p, q = p / p.sum(), q / q.sum()
    expected = sum((b - a) * np.log(b / a) for a, b in zip(p, q, strict=True)) - 3 * (
        1 / 100 + 1 / 50
    )
    assert population_stability_index(old_B, new_B) == pytest.approx(expected)
    old_NC, new_NC = rng.gamma(2, 3, (60, 4)), rng.gamma(3, 3, (40, 4))
    totals = [
        summary(np.zeros(len(rows)), rows.astype(np.float32)).totals() for rows in (old_NC, new_NC)
    ]
    moved = (old_NC.mean(0) - new_NC.mean(0)) ** 2 + (
        old_NC.std(0, ddof=1) - new_NC.std(0, ddof=1)
    ) ** 2
    by_chance = 1.5 * (old_NC.var(0, ddof=1) / 60 + new_NC.var(0, ddof=1) / 40)
    expected = (moved - by_chance).sum() / old_NC.var(0, ddof=1).sum()
    assert feature_distance(*totals) == pytest.approx(expected, rel=1e-5)


def same_totals(left: Totals, right: Totals) -> None:
    for name, value in vars(left).items():
        np.testing.assert_allclose(value, getattr(right, name), rtol=1e-9)


def test_batches_add_up_and_ends_of_the_grid_count(rng: np.random.Generator) -> None:
    values, features = people(rng, 101)
    values[:3] = 0.0, 100.0, 100.0 + 1e-9
    at_once = summary(values, features)
    parts = summary(values[:1], features[:1])
    for rows in np.array_split(np.arange(1, 101), 7):
        parts.add(values[rows], features[rows])
    same_totals(parts.totals(), at_once.totals())
    assert at_once.totals().histogram.sum() == 101
    assert at_once.totals().histogram[-1] >= 2
    np.testing.assert_allclose(at_once.totals().mean_C(), features.mean(0), rtol=1e-5)


def test_the_newest_faces_are_kept_in_constant_memory(rng: np.random.Generator) -> None:
    values, features = people(rng, 1000)
    rolling = Summary("of one model", 0.0, 100.0, window_faces=100, block_faces=25)
    sizes = []
    for start in range(0, 1000, 5):
        rolling.add(values[start : start + 5], features[start : start + 5])
        sizes.append(rolling.totals().num_faces)
    assert sizes[:20] == list(range(5, 101, 5))
    assert set(sizes[20:]) == {80, 85, 90, 95, 100}
    same_totals(rolling.totals(), summary(values[900:], features[900:]).totals())
    assert len(rolling._blocks) == 4


def test_threads_lose_no_face(rng: np.random.Generator) -> None:
    values, features = people(rng, 1)
    shared = Summary("of one model", 0.0, 100.0, window_faces=10**6, block_faces=10**6)

    def add() -> None:
        for _ in range(500):
            shared.add(values, features)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=add) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert shared.totals().num_faces == 4000
    assert shared.totals().histogram.sum() == 4000


def test_a_document_brings_everything_back(rng: np.random.Generator) -> None:
    made = Summary.of(small_config(), window_faces=50, block_faces=10)
    empty = Summary.from_document(json.loads(json.dumps(made.as_document())), "here")
    assert empty.as_document() == made.as_document()
    assert empty.totals().num_faces == 0
    made.add(*people(rng, 30))
    document = json.loads(json.dumps(made.as_document()))
    assert Summary.from_document(document, "here").as_document() == document
    assert document["num_faces"] == 30
    assert len(document["histogram"]) == NUM_BINS


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"format": 7}, "format 7 is not 1"),
        ({"histogram": [1.0] * NUM_BINS}, "20 bins do not hold its 30 faces"),
        ({"histogram": [30.0]}, "20 bins do not hold"),
        ({"num_faces": "many"}, "many"),
        ({"num_faces": 10**400}, "not a summary"),
        ({"value_sum": float("nan")}, "not finite"),
        ({"value_sum": [1.0]}, "a list where a number should be"),
        ({"feature_sums": "x"}, "not a summary"),
        ({"feature_sums": [[1.0]]}, "a list where a number should be"),
        ({"feature_sums": [1.0]}, "features do not fit"),
        ({"minimum": None}, "not a summary"),
    ],
)
def test_a_damaged_document_is_refused(
    rng: np.random.Generator, changes: dict[str, Any], complaint: str
) -> None:
    document = summary(*people(rng, 30)).as_document()
    with pytest.raises(ValueError, match=rf"^http://server: .*{complaint}"):
        Summary.from_document(document | changes, "http://server")


@pytest.mark.parametrize("document", [None, [], {}, {"format": 1}, "text"])
def test_what_is_no_summary_is_refused(document: Any) -> None:
    with pytest.raises(ValueError, match=r"^here: not a summary of faces"):
        Summary.from_document(document, "here")


def test_what_cannot_be_compared_is_refused(rng: np.random.Generator) -> None:
    old, other = (
        summary(*people(rng, 50)),
        Summary("another", 0.0, 100.0, window_faces=10, block_faces=10),
    )
    other.add(*people(rng, 10))
    with pytest.raises(ValueError, match=r"model another .* training faces of model of one model"):
        drift(old, other)
    with pytest.raises(ValueError, match="1 served and 50 training faces"):
        drift(old, summary(*people(rng, 1)))
    with pytest.raises(ValueError, match="all have the same features"):
        drift(summary(np.full(9, 30.0), np.ones((9, 4), np.float32)), old)
