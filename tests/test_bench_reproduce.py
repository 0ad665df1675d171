"""The bench of the flow: its workspace is one that DVC runs, and whose results are found."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from bench import reproduce as bench
from flows.pipeline.stage_outputs import EVALUATION, outputs_of
from flows.pipeline.stage_runner import StageRunner


def test_workspace_runs_and_leaves_what_is_recorded(tmp_path: Path) -> None:
    root = bench.workspace(tmp_path)
    (root / "start").write_text("0", encoding="utf-8")
    with closing(StageRunner(root)) as runner:
        stages = runner.stages(print)
        assert [runner.run(stage.name, print) for stage in stages] == ["ran"] * (
            bench.NUM_OTHERS + 1
        )
        assert [runner.run(stage.name, print) for stage in stages] == ["fresh"] * (
            bench.NUM_OTHERS + 1
        )
    found = outputs_of(root, stages)
    assert found.metrics[EVALUATION].is_file()
    assert found.predictions[EVALUATION].is_file()
