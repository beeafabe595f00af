"""The commands about tables: public data, merging, validating, describing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import TINY, CommandLine
from latency_rows import latency_row

from hanax.devices import DeviceIdentity, LatencyTable
from hanax.devices.public import SOURCES, PublicTable
from hanax.experiments._cli_parts import space_of
from hanax.search_spaces import SearchSpace

pytestmark = pytest.mark.slow

MACRO = {"test_acc": [90.0, 91.0, 92.0], "mean_acc": 91.0, "std": 0.8, "params": 1000, "flops": 2000}


@pytest.fixture(scope="module")
def tiny_space(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SearchSpace]:
    """An experiment file and its search space."""
    file = tmp_path_factory.mktemp("space") / "tiny.yaml"
    file.write_text(TINY)
    space = space_of(str(file), ())
    assert isinstance(space, SearchSpace)
    return file, space


@pytest.fixture
def table(tiny_space: tuple[Path, SearchSpace]) -> LatencyTable:
    _, space = tiny_space
    identity = DeviceIdentity("Test CPU", 2, "onnxruntime", "1.20.0", "fp32", 1, 1)
    return LatencyTable.empty(space, identity).append(
        [latency_row(space.largest, 2.0), latency_row(space.smallest, 1.0)]
    )


def test_data_list_names_every_source_with_its_licence(command_line: CommandLine, tmp_path: Path) -> None:
    status, output = command_line.run("data", "list", "--json", cwd=tmp_path)
    assert status == 0
    listed = json.loads(output)["sources"]
    assert [source["name"] for source in listed] == list(SOURCES)
    assert all(source["licence"] and source["url"].startswith("https://") and source["files"] for source in listed)
    status, output = command_line.run("data", "list", cwd=tmp_path)
    assert status == 0
    assert all(name in output for name in SOURCES)


def test_data_import_writes_tables_and_says_what_is_in_them(command_line: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "nas-bench-macro_cifar10.json").write_text(json.dumps({"00000000": MACRO, "01200000": MACRO}))
    status, output = command_line.run("data", "import", "nas-bench-macro", ".", "--out", "new/tables", cwd=tmp_path)
    assert status == 0, output
    assert "new/tables/nas_bench_macro.parquet: 2 rows of arch, macs, params, accuracy" in output
    assert "beware: 2 architectures; the space has 6561" in output
    table = PublicTable.read(tmp_path / "new/tables/nas_bench_macro.parquet")
    assert table.frame["arch"].tolist() == ["0.0.0.0.0.0.0.0", "0.1.2.0.0.0.0.0"]
    summary = json.loads((tmp_path / "new/tables/nas-bench-macro.json").read_text())
    assert summary["provenance"]["licence"] == "Apache-2.0"
    assert list(summary["provenance"]["files"]) == ["nas-bench-macro_cifar10.json"]
    assert summary["facts"]["architectures"] == 2
    assert summary["tables"]["nas_bench_macro"]["columns"]["accuracy"]["unit"] == "%"
    command = ("data", "import", "nas-bench-macro", ".", "--out", "again", "--json")
    status, output = command_line.run(*command, cwd=tmp_path)
    assert (status, json.loads(output)) == (0, summary)


def test_data_import_of_damaged_files_is_one_message_and_writes_nothing(
    command_line: CommandLine, tmp_path: Path
) -> None:
    (tmp_path / "nas-bench-macro_cifar10.json").write_text("{")
    status, output = command_line.run("data", "import", "nas-bench-macro", ".", "--out", "out", cwd=tmp_path)
    assert status == 2
    assert output.startswith("error: nas-bench-macro_cifar10.json is not JSON")
    assert "Traceback" not in output
    assert not (tmp_path / "out").exists()
    status, output = command_line.run("data", "import", "macro", ".", "--out", "out", cwd=tmp_path)
    assert (status, "did you mean 'nas-bench-macro'" in output) == (2, True)


def test_table_merge_refuses_conflicts_unless_a_file_wins(
    command_line: CommandLine, tmp_path: Path, table: LatencyTable
) -> None:
    table.write(tmp_path / "a.parquet")
    largest = table.frame["arch"][0]
    LatencyTable.append(
        LatencyTable(table.frame.iloc[:0], table.space_fingerprint, table.device_fingerprint),
        [latency_row(largest, 2.5)],
    ).write(tmp_path / "b.parquet")
    status, output = command_line.run("table", "merge", "a.parquet", "b.parquet", "--out", "c.parquet", cwd=tmp_path)
    assert status == 2
    assert f"{largest!r} 'table' differs between a.parquet and b.parquet in latency_ms" in output
    assert not (tmp_path / "c.parquet").exists()
    merge = ("table", "merge", "a.parquet", "b.parquet", "--out", "c.parquet", "--wins", "b.parquet")
    status, output = command_line.run(*merge, cwd=tmp_path)
    assert (status, "c.parquet: 2 rows of 3 in 2 tables" in output) == (0, True)
    assert LatencyTable.read(tmp_path / "c.parquet").frame["latency_ms"].tolist() == [2.5, 1.0]
    status, output = command_line.run(*merge, cwd=tmp_path)
    assert (status, "c.parquet exists" in output) == (2, True)


def test_table_validate_has_an_exit_status_for_continuous_integration(
    command_line: CommandLine, tmp_path: Path, table: LatencyTable, tiny_space: tuple[Path, SearchSpace]
) -> None:
    file, space = tiny_space
    table.write(tmp_path / "good.parquet")
    status, output = command_line.run("table", "validate", "good.parquet", "--space", file, cwd=tmp_path)
    assert (status, output.strip()) == (0, "good.parquet: nothing is wrong")
    wrong = table.append([latency_row(space.smallest, 3.0, purpose="winner", n_rounds=0, converged=False)])
    wrong.write(tmp_path / "wrong.parquet")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    validate = ("table", "validate", "good.parquet", "wrong.parquet", "broken.parquet", "none.parquet", "--json")
    status, output = command_line.run(*validate, cwd=tmp_path)
    assert status == 1
    answer = json.loads(output)
    assert answer["ok"] is False
    texts = {name: [finding["text"] for finding in findings] for name, findings in answer["tables"].items()}
    assert texts["good.parquet"] == []
    assert texts["wrong.parquet"][0].startswith("n_rounds must be 1 or more in 1 of 3 rows")
    assert "not a readable table" in texts["broken.parquet"][0]
    assert "No such file" in texts["none.parquet"][0]


def test_table_validate_takes_warnings_as_errors_if_asked_to(
    command_line: CommandLine, tmp_path: Path, table: LatencyTable, tiny_space: tuple[Path, SearchSpace]
) -> None:
    file, space = tiny_space
    table.append([latency_row(space.largest, 2.0, purpose="winner", converged=False)]).write(tmp_path / "t.parquet")
    validate = ("table", "validate", "t.parquet", "--space", file)
    status, output = command_line.run(*validate, cwd=tmp_path)
    assert (status, "warning: 1 of 3 rows did not converge" in output) == (0, True)
    status, _ = command_line.run(*validate, "--strict", cwd=tmp_path)
    assert status == 1


def test_table_describe_says_what_a_table_holds(command_line: CommandLine, tmp_path: Path, table: LatencyTable) -> None:
    table.write(tmp_path / "t.parquet")
    status, output = command_line.run("table", "describe", "t.parquet", "--json", cwd=tmp_path)
    assert status == 0
    facts = json.loads(output)["tables"]["t.parquet"]
    assert (facts["rows"], facts["latency_ms"], facts["converged_share"]) == (2, [1.0, 1.5, 2.0], 1.0)
    status, output = command_line.run("table", "describe", "t.parquet", cwd=tmp_path)
    assert status == 0
    assert "1 / 1.5 / 2" in output
    assert table.device_fingerprint in output
