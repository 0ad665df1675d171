"""The loop against a naive one, its exact resumption, its checkpoints and its refusals."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.small_faces import RECIPE
from visage.networks import FaceBatch, Outputs
from visage.training import loop
from visage.training.loop import Batch, Task, fit
from visage.training.optim import RecipeSettings, learning_rate

NUM_BATCHES = 3
HAS_BFLOAT16 = torch.cpu._is_avx512_bf16_supported()
PRECISIONS = [
    "float32",
    pytest.param(
        "bfloat16", marks=pytest.mark.skipif(not HAS_BFLOAT16, reason="this CPU has no bfloat16")
    ),
]


class Killed(Exception):
    """Stands for a kill between two steps."""


class Layers(nn.Sequential):
    """Layers one after the other that take and give what a network does."""

    def forward(self, faces: FaceBatch) -> Outputs:  # type: ignore[override]
        logits_BK = super().forward(faces.view_BCHW)
        return Outputs(logits_BK=logits_BK, features_BC=logits_BK, auxiliary=())


def small_network(seed: int = 0) -> Layers:
    torch.manual_seed(seed)
    return Layers(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 1)
    )


def bright(faces_BCHW: Tensor) -> Batch:
    """Faces whose target is their mean."""
    return Batch(FaceBatch(faces_BCHW, None), (faces_BCHW.mean(dim=(1, 2, 3)),))


def batches(generator: torch.Generator) -> Iterator[Batch]:
    """The last one is smaller."""
    for size in (6, 6, 3):
        yield bright(torch.randn(size, 3, 8, 8, generator=generator))


def squared_error(logits_B1: Tensor, target_B: Tensor) -> Tensor:
    return functional.mse_loss(logits_B1[:, 0], target_B)


def task(**changes: Any) -> Task:
    fields: dict[str, Any] = {
        "batches": batches,
        "num_batches": NUM_BATCHES,
        "loss": squared_error,
        "auxiliary_weight": 1.0,
    }
    return Task(**(fields | {"validate": lambda _network: {}} | changes))


def silent(_step: int, _values: Any) -> None:
    """No report."""


def run(
    folder: Path,
    how: RecipeSettings = RECIPE,
    *,
    epochs: int = 3,
    seed: int = 0,
    what: Task | None = None,
    report: Callable[..., None] = silent,
    fingerprint: str = "this run",
) -> tuple[dict[str, Tensor], list[dict[str, float]]]:
    network, history = fit(
        small_network(),
        what or task(),
        how,
        epochs=epochs,
        seed=seed,
        checkpoint=folder / "last.pt",
        fingerprint=fingerprint,
        report=report,
    )
    return {name: value.clone() for name, value in network.state_dict().items()}, history


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first)


# -------------------------------------------------------------------------------
# What the loop computes
# -------------------------------------------------------------------------------


def test_loop_equals_a_naive_one(tmp_path: Path) -> None:
    how = dataclasses.replace(RECIPE, ema_decay=0.0, weight_decay=0.0, channels_last=False)
    found, history = run(tmp_path, how, epochs=2, seed=4)
    network, losses = small_network(), []
    optimiser = torch.optim.Adam(network.parameters())
    for epoch in range(2):
        total = 0.0
        for index, (faces, (target_B,)) in enumerate(
            batches(torch.Generator().manual_seed(4 * 1_000_003 + epoch))
        ):
            optimiser.param_groups[0]["lr"] = learning_rate(how, (3 * epoch + index) / 6)
            loss = squared_error(network(faces).logits_BK, target_B)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            total += loss.item() * len(target_B)
        losses.append(total / 15)
    for name, value in network.state_dict().items():
        torch.testing.assert_close(found[name], value)
    assert [row["train_loss"] for row in history] == pytest.approx(losses)
    assert [row["epoch"] for row in history] == [1, 2]
    assert history[-1]["learning_rate"] == pytest.approx(learning_rate(how, 5 / 6))


def test_returned_model_is_the_average_and_validation_looks_at_it(tmp_path: Path) -> None:
    seen: list[tuple[bool, float]] = []
    what = task(
        validate=lambda network: (
            seen.append((network.training, network[4].bias.item())) or {"val_x": 7.0}
        )
    )
    found, history = run(tmp_path, what=what)
    assert [training for training, _ in seen] == [False] * 3
    assert seen[-1][1] == found["4.bias"].item()
    assert [row["val_x"] for row in history] == [7.0] * 3
    raw = torch.load(tmp_path / "last.pt", weights_only=True)["network"]
    assert not torch.equal(raw["4.weight"], found["4.weight"])


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_network_trains_in_training_mode_after_validation_left_it_in_another(
    tmp_path: Path, ema_decay: float
) -> None:
    modes: list[bool] = []
    network = small_network()
    network.register_forward_hook(lambda module, _inputs, _outputs: modes.append(module.training))
    what = task(validate=lambda model: model.eval() and {})
    fit(
        network,
        what,
        dataclasses.replace(RECIPE, ema_decay=ema_decay),
        epochs=2,
        seed=0,
        checkpoint=tmp_path / "last.pt",
        fingerprint="x",
        report=silent,
    )
    assert modes == [True] * 6
    assert not network.training or ema_decay > 0


def test_report_is_called_once_an_epoch_with_the_rows_of_the_history(tmp_path: Path) -> None:
    reported: list[tuple[int, dict[str, float]]] = []
    _, history = run(tmp_path, report=lambda step, values: reported.append((step, dict(values))))
    assert reported == [(index + 1, row) for index, row in enumerate(history)]


def test_training_lowers_the_loss(tmp_path: Path) -> None:
    _, history = run(tmp_path, dataclasses.replace(RECIPE, learning_rate=1e-2), epochs=20)
    assert history[-1]["train_loss"] < 0.2 * history[0]["train_loss"]


@pytest.mark.skipif(not HAS_BFLOAT16, reason="this CPU has no bfloat16")
def test_bfloat16_rounds_the_convolutions_and_keeps_weights_and_loss_in_float32(
    tmp_path: Path,
) -> None:
    types: list[torch.dtype] = []
    what = task(
        loss=lambda logits, target: types.append(logits.dtype) or squared_error(logits, target)
    )
    low, _ = run(tmp_path / "low", dataclasses.replace(RECIPE, precision="bfloat16"), what=what)
    high, _ = run(tmp_path / "high")
    assert set(types) == {torch.float32}
    assert {value.dtype for value in low.values() if value.is_floating_point()} == {torch.float32}
    assert not same(low, high)
    torch.testing.assert_close(low["0.weight"], high["0.weight"], atol=0.02, rtol=0)


def without_batch_norm() -> Layers:
    torch.manual_seed(0)
    return Layers(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 1))


def trained(
    folder: Path, network: nn.Module, micro_batches: int, what: Task | None = None, epochs: int = 2
) -> Any:
    how = dataclasses.replace(RECIPE, ema_decay=0.0)
    return fit(
        network,
        what or task(),
        how,
        epochs=epochs,
        seed=0,
        checkpoint=folder / "last.pt",
        fingerprint="x",
        report=silent,
        micro_batches=micro_batches,
    )


def test_gradient_in_parts_is_that_of_the_whole_batch(tmp_path: Path) -> None:
    """Of unequal parts too: 7 faces are 4 and 3, or 3, 2 and 2; in more parts no batch is split."""

    def seven(generator: torch.Generator) -> Iterator[Batch]:
        yield bright(torch.randn(7, 3, 8, 8, generator=generator))

    gradients: dict[int, list[Tensor]] = {}
    for number in (1, 2, 3, 4):
        network = without_batch_norm()
        trained(tmp_path / str(number), network, number, task(batches=seven, num_batches=1), 1)
        gradients[number] = [
            parameter.grad for parameter in network.parameters() if parameter.grad is not None
        ]
    assert len(gradients[1]) == 4
    for number in (2, 3, 4):
        for mine, whole in zip(gradients[number], gradients[1], strict=True):
            torch.testing.assert_close(mine, whole, rtol=1e-4, atol=1e-6)


class TwoHeads(Layers):
    """A second head that only trains looks at the landmarks."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__(*layers)
        self.second = nn.Linear(10, 1)

    def forward(self, faces: FaceBatch) -> Outputs:  # type: ignore[override]
        logits_BK = nn.Sequential(*list(self)[:-1])(faces.view_BCHW)
        assert faces.landmarks_B52 is not None
        second_BK = self.second(faces.landmarks_B52.flatten(1))
        return Outputs(logits_BK=logits_BK, features_BC=logits_BK, auxiliary=(second_BK, second_BK))


def two_heads() -> TwoHeads:
    torch.manual_seed(0)
    return TwoHeads(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 1))


def with_landmarks(generator: torch.Generator) -> Iterator[Batch]:
    faces, targets = bright(torch.randn(7, 3, 8, 8, generator=generator))
    landmarks_B52 = torch.rand(7, 5, 2, generator=generator)
    yield Batch(faces._replace(landmarks_B52=landmarks_B52), targets)


@pytest.mark.parametrize("weight", [0.0, 0.25])
@pytest.mark.parametrize("micro_batches", [1, 2])
def test_loss_of_heads_that_only_train_is_added_with_its_weight(
    tmp_path: Path, weight: float, micro_batches: int
) -> None:
    """Two of them here; their landmarks are split with the faces."""
    network = two_heads()
    what = task(batches=with_landmarks, num_batches=1, auxiliary_weight=weight)
    _, history = trained(tmp_path, network, micro_batches, what, epochs=1)
    plain = two_heads()
    (batch,) = with_landmarks(torch.Generator().manual_seed(0))
    outputs = plain(batch.faces)
    loss = squared_error(outputs.logits_BK, *batch.targets)
    loss = loss + 2 * weight * squared_error(outputs.auxiliary[0], *batch.targets)
    loss.backward()  # type: ignore[no-untyped-call]
    assert history[0]["train_loss"] == pytest.approx(loss.item(), rel=1e-5)
    for mine, whole in zip(network.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, whole.grad, rtol=1e-4, atol=1e-6)
    assert (plain.second.weight.grad.abs().max() > 0) == (weight > 0)  # type: ignore[union-attr]


def test_parts_are_smaller_and_take_as_many_steps(tmp_path: Path) -> None:
    sizes: list[int] = []
    network = small_network()
    network.register_forward_hook(
        lambda _module, inputs, _outputs: sizes.append(len(inputs[0].view_BCHW))
    )
    _, history = trained(tmp_path, network, 2, epochs=1)
    assert sizes == [3, 3, 3, 3, 3]  # batches of 6, 6 and 3, which is too small for two
    assert (
        torch.load(tmp_path / "last.pt", weights_only=True)["optimiser"]["state"][0]["step"]
        == NUM_BATCHES
    )
    assert [row["micro_batches"] for row in history] == [2.0]


def test_a_training_goes_on_in_smaller_parts_and_says_so(tmp_path: Path) -> None:
    _, first = trained(tmp_path, small_network(), 1, epochs=1)
    _, history = trained(tmp_path, small_network(), 2, epochs=2)
    assert history[0] == first[0]
    assert ["micro_batches" in row for row in history] == [False, True]


# -------------------------------------------------------------------------------
# Reproducibility and resumption (see also tests/test_resume.py: processes killed at any moment)
# -------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", PRECISIONS)
def test_same_seed_same_weights_other_seed_others(tmp_path: Path, precision: Any) -> None:
    how = dataclasses.replace(RECIPE, precision=precision)
    first, again, other = (
        run(tmp_path / str(index), how, seed=seed)[0] for index, seed in enumerate((1, 1, 2))
    )
    assert same(first, again)
    assert not same(first, other)


def test_epochs_do_not_repeat_each_others_batches(tmp_path: Path) -> None:
    first_faces: list[float] = []

    def watched(generator: torch.Generator) -> Iterator[Batch]:
        for index, batch in enumerate(batches(generator)):
            if index == 0:
                first_faces.append(batch.faces.view_BCHW.sum().item())
            yield batch

    for seed in (0, 1):
        run(tmp_path / str(seed), what=task(batches=watched), seed=seed)
    assert len(set(first_faces)) == 6


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
@pytest.mark.parametrize("channels_last", [True, False])
def test_run_stopped_after_any_epoch_or_within_one_ends_in_the_same_weights(
    tmp_path: Path, precision: Any, ema_decay: float, channels_last: bool
) -> None:
    how = dataclasses.replace(
        RECIPE, precision=precision, ema_decay=ema_decay, channels_last=channels_last
    )
    whole, history = run(tmp_path / "whole", how)
    for stop_at in range(9):  # steps of three epochs
        steps = iter(range(9))

        def stopping(
            logits_B1: Tensor, target_B: Tensor, steps: Iterator[int] = steps, stop: int = stop_at
        ) -> Tensor:
            if next(steps) == stop:
                raise Killed
            return squared_error(logits_B1, target_B)

        folder = tmp_path / str(stop_at)
        with pytest.raises(Killed):
            run(folder, how, what=task(loss=stopping))
        resumed, rows = run(folder, how)
        assert same(resumed, whole)
        assert [row["train_loss"] for row in rows] == [row["train_loss"] for row in history]


def test_dropout_of_a_resumed_run_is_that_of_a_whole_one(tmp_path: Path) -> None:
    """And of any run: it does not hang on what was drawn from torch's global generator before."""
    recipe = dataclasses.replace(RECIPE, ema_decay=0.0)

    def dropped_out(folder: Path, *, epochs: int, disturbance: int) -> dict[str, Tensor]:
        network = small_network()
        network.insert(4, nn.Dropout(0.5))
        torch.manual_seed(disturbance)
        how = dataclasses.replace(recipe, schedule="step", decay_factor=1.0)
        fit(
            network,
            task(),
            how,
            epochs=epochs,
            seed=0,
            checkpoint=folder / "last.pt",
            fingerprint="x",
            report=silent,
        )
        return network.state_dict()

    whole = dropped_out(tmp_path / "whole", epochs=2, disturbance=1)
    dropped_out(tmp_path / "resumed", epochs=1, disturbance=2)
    assert same(whole, dropped_out(tmp_path / "resumed", epochs=2, disturbance=3))


def test_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    whole, history = run(tmp_path)
    reported: list[int] = []
    again, rows = run(tmp_path, report=lambda step, _values: reported.append(step))
    assert same(whole, again)
    assert (rows, reported) == (history, [])


def test_checkpoint_of_another_run_is_started_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path, seed=5)
    fresh, _ = run(tmp_path / "elsewhere")
    found, history = run(tmp_path, fingerprint="another run")
    assert same(found, fresh)
    assert len(history) == 3
    assert "starting over" in capsys.readouterr().out
    assert torch.load(tmp_path / "last.pt", weights_only=True)["fingerprint"] == "another run"


# -------------------------------------------------------------------------------
# Refusals
# -------------------------------------------------------------------------------


def damage(path: Path, share: float) -> None:
    """Cuts a checkpoint; a `share` of 1 leaves its length, and flips a byte of a tensor."""
    data = path.read_bytes()
    damaged = data[: int(share * len(data))]
    if share == 1:
        tensor = torch.load(path, weights_only=True)["network"]["4.weight"].numpy().tobytes()
        place = data.index(tensor)
        damaged = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
    path.unlink()  # the file may have another name as well
    path.write_bytes(damaged)


SHARES = [0.0, 0.01, 0.3, 0.9, 0.999, 1.0]


@pytest.mark.parametrize("share", SHARES)
def test_damaged_checkpoint_costs_one_epoch(
    tmp_path: Path, share: float, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, _ = run(tmp_path / "whole", epochs=4)
    with pytest.raises(Killed):
        run(tmp_path, epochs=4, report=kill_at(3))
    damage(tmp_path / "last.pt", share)
    reported: list[int] = []
    found, history = run(tmp_path, epochs=4, report=lambda step, _values: reported.append(step))
    assert reported == [3, 4]
    assert [row["epoch"] for row in history] == [1, 2, 3, 4]
    assert same(found, whole)
    said = capsys.readouterr().out
    assert "last.pt: this checkpoint cannot be read" in said
    assert "going on from the checkpoint before it, last.before.pt, of epoch 2" in said
    assert "remove it" not in said


def kill_at(epoch: int) -> Callable[..., None]:
    """A report that dies with this epoch's checkpoint just written."""

    def report(step: int, _values: Any) -> None:
        if step == epoch:
            raise Killed

    return report


def test_damage_again_and_again_costs_an_epoch_each_time(tmp_path: Path) -> None:
    """The damaged file never takes the place of the one before."""
    whole, _ = run(tmp_path / "whole", epochs=4)
    for stop_at in (3, 3, 4, 4):
        with pytest.raises(Killed):
            run(tmp_path, epochs=4, report=kill_at(stop_at))
        damage(tmp_path / "last.pt", 0.5)
    found, _ = run(tmp_path, epochs=4)
    assert same(found, whole)


def test_kill_between_any_two_renames_leaves_a_whole_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the epoch before at least, also when the newest was damaged."""
    whole, _ = run(tmp_path / "whole")
    rename = Path.replace
    for number in range(5):
        folder = tmp_path / str(number)
        with pytest.raises(Killed):
            run(folder, report=kill_at(2))
        damage(folder / "last.pt", 0.5)
        count = iter(range(5))

        def dying(
            path: Path, target: Path, count: Iterator[int] = count, number: int = number
        ) -> Path:
            if next(count) == number:
                raise Killed
            return rename(path, target)

        monkeypatch.setattr(Path, "replace", dying)
        with pytest.raises(Killed):
            run(folder)
        monkeypatch.setattr(Path, "replace", rename)
        reported: list[int] = []
        found, _ = run(folder, report=lambda step, _values, seen=reported: seen.append(step))
        assert reported[0] > 1
        assert same(found, whole)


@pytest.mark.parametrize("share", SHARES)
def test_damaged_checkpoint_without_one_before_is_refused_with_a_remedy(
    tmp_path: Path, share: float
) -> None:
    run(tmp_path, epochs=1)
    damage(tmp_path / "last.pt", share)
    with pytest.raises(ValueError, match=r"last\.pt: this checkpoint cannot be read .*remove it"):
        run(tmp_path)


def test_two_damaged_checkpoints_are_refused_and_the_newest_removed_starts_over(
    tmp_path: Path,
) -> None:
    whole, _ = run(tmp_path)
    damage(tmp_path / "last.pt", 0.5)
    damage(tmp_path / "last.before.pt", 0.5)
    with pytest.raises(ValueError, match=r"last\.pt: this checkpoint cannot be read .*remove it"):
        run(tmp_path)
    (tmp_path / "last.pt").unlink()
    reported: list[int] = []
    found, _ = run(tmp_path, report=lambda step, _values: reported.append(step))
    assert reported == [1, 2, 3]
    assert same(found, whole)


def test_the_checkpoint_before_of_another_run_is_not_taken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path, seed=5)
    damage(tmp_path / "last.pt", 0.5)
    fresh, _ = run(tmp_path / "elsewhere")
    found, _ = run(tmp_path, fingerprint="another run")
    assert same(found, fresh)
    assert "last.before.pt: of another run" in capsys.readouterr().out
    run(tmp_path, epochs=1, fingerprint="a third run")
    assert not (tmp_path / "last.before.pt").exists()


@pytest.mark.parametrize(
    "content",
    [
        b"hello",
        b"PK\x03\x04 no archive",
        b"\x00" * 1000,
        b"\x89PNG\r\n\x1a\n",
        b"cposix\nsystem\n.",
    ],
    ids=["text", "zip", "zeros", "picture", "attack"],
)
def test_foreign_file_in_the_checkpoints_place_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "last.pt").write_bytes(content)
    with pytest.raises(ValueError, match=r"last\.pt: this checkpoint cannot be read"):
        run(tmp_path)


def test_other_tensors_in_the_checkpoints_place_are_refused(tmp_path: Path) -> None:
    for content in ({"state": torch.zeros(3)}, [1, 2]):
        torch.save(content, tmp_path / "last.pt")
        with pytest.raises(ValueError, match=r"last\.pt: this checkpoint cannot be read"):
            run(tmp_path)


def test_no_epoch_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="epochs is 0"):
        run(tmp_path, epochs=0)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_loss_that_is_not_finite_ends_the_run_and_keeps_the_last_good_checkpoint(
    tmp_path: Path, value: float
) -> None:
    run(tmp_path, epochs=1, fingerprint="x")
    before = (tmp_path / "last.pt").read_bytes()
    broken = task(loss=lambda logits, target: squared_error(logits, target) * value)
    with pytest.raises(
        ValueError, match=r"epoch 2: the training loss is (nan|inf); lower learning_rate"
    ):
        run(tmp_path, what=broken, fingerprint="x")
    assert (tmp_path / "last.pt").read_bytes() == before


def test_every_checkpoint_is_a_new_file_put_in_place_of_the_old(tmp_path: Path) -> None:
    """Never the same file written over: a kill would leave a part of it."""
    inodes: list[int] = []
    run(tmp_path, report=lambda _step, _values: inodes.append((tmp_path / "last.pt").stat().st_ino))
    assert inodes[0] != inodes[1] != inodes[2]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.before.pt", "last.pt"]
    assert (tmp_path / "last.before.pt").stat().st_ino == inodes[1]


def test_checkpoint_that_could_not_be_written_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path, epochs=1, fingerprint="x")
    before = (tmp_path / "last.pt").read_bytes()

    def die_halfway(_state: Any, path: Path) -> None:
        path.write_bytes(before[:100])
        raise OSError("disk full")

    monkeypatch.setattr(loop.torch, "save", die_halfway)
    with pytest.raises(OSError, match="disk full"):
        run(tmp_path, fingerprint="x")
    assert (tmp_path / "last.pt").read_bytes() == before
