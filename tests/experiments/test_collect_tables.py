"""The commands that collect tables of a device, from the command line."""

from __future__ import annotations

import re
import time
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
from command_line import TINY, CommandLine

from hanax.devices import DEVICES, LatencyTable, Ledger, RuntimeMissingError, block_nets
from hanax.experiments._export import graph_model_builder
from hanax.search_spaces import mobilenet_v3

BRIEF = ("--device", "onnxruntime-fp32", "--target-relative-ci", "0.3", "--wait-for-idle", "0")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    return path


@pytest.mark.slow
def test_a_killed_second_pass_goes_on_and_nothing_is_measured_twice_in_a_pass(
    file: Path, command_line: CommandLine, tmp_path: Path
) -> None:
    out = tmp_path / "table.parquet"
    arguments = ["collect", "latency", "--space", file, "--archs", "16", "--out", out, *BRIEF]
    process = command_line.start(*arguments, cwd=tmp_path)
    while process.poll() is None and (not out.exists() or not LatencyTable.read(out).archs("table", passes=2)):
        time.sleep(0.01)
    process.kill()
    process.communicate()
    half = LatencyTable.read(out)
    done = half.archs("table", passes=2)
    assert len(half.frame) == 16
    assert 0 < len(done) < 16

    status, output = command_line.run(*arguments, cwd=tmp_path)
    assert status == 0, output
    table = LatencyTable.read(out)
    assert len(table.archs("table", passes=2)) == 16
    firsts = [of_passes[0] for of_passes in table.frame["pass_latency_ms"]]
    assert firsts == [of_passes[0] for of_passes in half.frame["pass_latency_ms"]]
    asked = Counter(entry["arch"] for entry in Ledger(tmp_path / "table.ledger.jsonl").entries())
    assert {asked[str(arch)] for arch in done} == {2}
    assert set(asked.values()) <= {2, 3}  # three: it was under way when the process died
    assert re.search(r"reliability of 16 networks measured twice: Spearman [01]\.\d+, Kendall tau [01]\.\d+", output)
    reliability = table.reliability()
    assert reliability is not None
    assert ("below 0.98" in output) == (not reliability.is_reliable)


@pytest.mark.slow
def test_blocks_are_compared_with_whole_networks(file: Path, command_line: CommandLine, tmp_path: Path) -> None:
    whole, blocks = tmp_path / "whole.parquet", tmp_path / "blocks.parquet"
    status, output = command_line.run(
        "collect", "latency", "--space", file, "--archs", "6", "--passes", "1", "--out", whole, *BRIEF, cwd=tmp_path
    )
    assert status == 0, output
    assert "measured once, so its reliability is unknown" in output
    arguments = ["collect", "blocks", "--space", file, "--out", blocks, "--against", whole, *BRIEF]
    status, output = command_line.run(*arguments, cwd=tmp_path)
    assert status == 0, output
    assert re.search(r"blocks of mobilenet_v3 on onnxruntime-fp32 from \d+ small networks; a run costs 0\.\d+", output)
    assert re.search(r"against 6 networks measured whole: mean absolute error \d+\.\d+%, bias [+-]", output)
    status, again = command_line.run(*arguments, cwd=tmp_path)
    assert again.splitlines()[-1] == output.splitlines()[-1]
    asked = Counter(entry["arch"] for entry in Ledger(tmp_path / "blocks.ledger.jsonl").entries())
    assert set(asked.values()) == {1}


@pytest.mark.slow
def test_the_parts_of_an_inference_are_told(file: Path, command_line: CommandLine, tmp_path: Path) -> None:
    out = tmp_path / "parts.parquet"
    arguments = ["collect", "end-to-end", "--space", file, "--archs", "3", "--image-size", "40", "--out", out, *BRIEF]
    status, output = command_line.run(*arguments, cwd=tmp_path)
    assert status == 0, output
    shares = [float(share) for share in re.findall(r"(?:preprocess|copy|compute|postprocess) (\d+\.\d)%", output)]
    assert len(shares) == 4
    assert sum(shares) == pytest.approx(100, abs=10)
    assert set(pd.read_parquet(out)["image_size"]) == {"40"}


@pytest.mark.slow
@pytest.mark.parametrize("model_format", sorted({spec.model_format for spec in DEVICES.values()}))
def test_a_block_by_itself_is_exported_to_every_format(model_format: str) -> None:
    space = mobilenet_v3(
        resolutions=(16,), n_classes=4, depths=(1, 2), stem_width=8, stage_widths=(8, 16), stage_strides=(2, 1),
        stage_activations=("relu", "hswish"), stage_squeeze_excite=(False, True), head_width=16, feature_width=16,
        kernel_sizes=(3,), expand_ratios=(3,),
    )  # fmt: skip
    try:
        build = graph_model_builder(model_format, 1, 0)
        for graph in block_nets(space).values():
            assert len(build(graph)) > 0
    except RuntimeMissingError as missing:
        pytest.skip(str(missing))
