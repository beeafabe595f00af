"""`hanax collect latency` on devices whose costs are computed."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import TINY, CommandLine

from hanax.devices import CostTable

pytestmark = pytest.mark.slow


def test_collect_makes_a_table_of_a_models_costs_and_says_where_they_are_from(
    command_line: CommandLine, tmp_path: Path
) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY)
    arguments = ["collect", "latency", "--space", "tiny.yaml", "--out", "t.parquet", "--archs", "12"]
    systolic = [*arguments, "--device", "systolic-16x16-ws", "--cost", "energy_mj"]
    status, output = command_line.run(*systolic, cwd=tmp_path)
    assert status == 0, output
    assert "12 networks on systolic-16x16-ws, energy_mj from" in output
    assert "doi:10.1109/ISSCC.2014.6757323" in output
    table = CostTable.read(tmp_path / "t.parquet")
    assert (len(table.frame), table.cost) == (12, "energy_mj")
    assert "rows 16" in table.device_description

    status, output = command_line.run(*arguments, "--device", "macs", cwd=tmp_path)
    assert status != 0
    assert "made on systolic-16x16-ws" in output and "the device here is macs" in output


def test_collect_asks_for_the_file_that_a_model_needs(command_line: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY)
    arguments = ["--space", "tiny.yaml", "--out", "t.parquet", "--device", "bitfusion-w8a8"]
    status, output = command_line.run("collect", "latency", *arguments, cwd=tmp_path)
    assert status != 0
    assert "HANAX_BITFUSION" in output and "--model-file" in output
    assert not (tmp_path / "t.parquet").exists()
