"""The folder of a run: what is done stays done, what changed is done again, what was interrupted goes on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from hanax.experiments import RunFolderError, stage_states
from hanax.experiments._folder import RunFolder, Stage, stage_keys


def stage(name: str, work: Callable[[Path], None], needs: tuple[str, ...] = (), **settings: object) -> Stage:
    return Stage(name, settings, needs, work)


def execute(folder: RunFolder, stages: list[Stage]) -> list[str]:
    """Names of the stages that did something."""
    folder.write_plan(stages)
    keys = stage_keys(stages)
    return [part.name for part in stages if folder.execute(part, keys[part.name])]


def nothing(folder: Path) -> None:
    (folder / "result").write_text("done")


def test_a_stage_is_done_once(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "run") as folder:
        assert execute(folder, [stage("a", nothing), stage("b", nothing, ("a",))]) == ["a", "b"]
        assert execute(folder, [stage("a", nothing), stage("b", nothing, ("a",))]) == []


def test_a_changed_setting_redoes_its_stage_and_those_that_need_it_and_no_other(tmp_path: Path) -> None:
    def stages(x: int) -> list[Stage]:
        return [stage("a", nothing, x=x), stage("b", nothing, ("a",)), stage("c", nothing)]

    with RunFolder(tmp_path / "run") as folder:
        execute(folder, stages(1))
        assert execute(folder, stages(2)) == ["a", "b"]


def test_an_interrupted_stage_finds_what_it_left_and_one_of_other_settings_does_not(tmp_path: Path) -> None:
    found: list[bool] = []

    def work(folder: Path) -> None:
        found.append((folder / "partial").exists())
        (folder / "partial").write_text("half")
        if len(found) < 3:
            raise KeyboardInterrupt

    with RunFolder(tmp_path / "run") as folder:
        for x in (1, 1, 2):
            try:
                execute(folder, [stage("a", work, x=x)])
            except KeyboardInterrupt:
                assert [state for _, state, _ in stage_states(tmp_path / "run")] == ["unfinished"]
    assert found == [False, True, False]
    assert [state for _, state, _ in stage_states(tmp_path / "run")] == ["done"]


def test_a_forgotten_stage_starts_anew(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "run") as folder:
        stages = [stage("a", nothing), stage("b", nothing)]
        execute(folder, stages)
        folder.forget(["b"])
        assert [state for _, state, _ in stage_states(tmp_path / "run")] == ["done", "not started"]
        assert execute(folder, stages) == ["b"]


def test_two_processes_cannot_work_in_one_folder(tmp_path: Path) -> None:
    with (
        RunFolder(tmp_path / "run"),
        pytest.raises(RunFolderError, match=r"in use by process \d+"),
        RunFolder(tmp_path / "run"),
    ):
        pass
    with RunFolder(tmp_path / "run"):
        pass


def test_an_unwritable_folder_is_refused_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(RunFolderError, match=r"cannot write to the run folder .*choose another with --out"):
        RunFolder(tmp_path / "file" / "run").__enter__()


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="holds no run"):
        stage_states(tmp_path)
