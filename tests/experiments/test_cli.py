"""The commands beside ``run``, on a finished run; and what they say to wrong input."""

from __future__ import annotations

import dataclasses
import json
import platform
import re
import signal
import socket
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from command_line import CommandLine, TinyRun

from hanax.experiments import stage_states

pytestmark = pytest.mark.slow


def test_help_and_import_load_none_of_the_heavy_packages() -> None:
    program = (
        "import sys, hanax; from hanax.experiments._cli import app\n"
        "heavy = {'jax', 'flax', 'pandas', 'sklearn', 'onnx', 'optuna', 'pyarrow', 'plotly', 'pydantic'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_status_lists_every_stage_as_done(tiny_run: TinyRun, command_line: CommandLine, tmp_path: Path) -> None:
    status, output = command_line.run("status", tiny_run.folder, cwd=tmp_path)
    assert status == 0
    assert "10 of 10 stages done" in output


def test_report_writes_the_report_again(tiny_run: TinyRun, command_line: CommandLine, tmp_path: Path) -> None:
    (tiny_run.folder / "report.html").unlink()
    status, output = command_line.run("report", tiny_run.folder, cwd=tmp_path)
    assert status == 0, output
    assert (tiny_run.folder / "report.html").exists()


def test_devices_as_json_has_the_promised_fields(command_line: CommandLine, tmp_path: Path) -> None:
    status, output = command_line.run("devices", "--json", cwd=tmp_path)
    assert status == 0
    listed = json.loads(output)["devices"]
    assert {"onnxruntime-fp32", "xla-fp32"} <= {device["name"] for device in listed}
    assert all(set(device) == {"name", "kind", "available", "missing", "install"} for device in listed)


def test_devices_check_says_how_far_a_device_is_from_the_network(command_line: CommandLine, tmp_path: Path) -> None:
    status, output = command_line.run("devices", "check", "onnxruntime-int8", "--images", "4", cwd=tmp_path)
    assert status == 0, output
    said = re.fullmatch(
        r"onnxruntime-int8: 4 images; largest difference of a logit ([\d.]+), root mean square ([\d.]+)% of .*\n",
        output,
    )
    assert said is not None, output
    assert 0 < float(said[1]) < 0.3 and 0 < float(said[2]) < 10


def test_devices_install_has_nothing_to_do_for_what_is_there(command_line: CommandLine, tmp_path: Path) -> None:
    status, output = command_line.run("devices", "install", "onnxruntime-int8", cwd=tmp_path)
    assert (status, output) == (0, f"onnxruntime-int8: onnxruntime is installed for {sys.executable}\n")


def test_devices_says_which_kernels_the_supernet_uses(command_line: CommandLine, tmp_path: Path) -> None:
    without = dataclasses.replace(command_line, settings={"HANAX_NATIVE": "0"})
    status, output = without.run("devices", cwd=tmp_path)
    assert status == 0
    last = output.splitlines()[-1]
    assert last == "The supernet is trained and scored with plain XLA kernels: switched off by HANAX_NATIVE=0"


def test_doctor_as_json_has_the_promised_fields(command_line: CommandLine, tmp_path: Path) -> None:
    settings = {"HANAX_NATIVE": "0", "GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"}
    status, output = dataclasses.replace(command_line, settings=settings).run("doctor", "--json", cwd=tmp_path)
    assert status == 0
    facts = json.loads(output)
    packages = ("hanax", "jax", "jaxlib", "flax", "optax", "optuna", "onnxruntime")
    assert facts["versions"] == {"python": platform.python_version()} | {name: version(name) for name in packages}
    assert facts["backend"] == "cpu" and len(facts["devices"]) == 1
    assert 1 <= facts["cores"]["usable"] <= facts["cores"]["all"]
    assert facts["native_kernels"] == {"used": False, "reason": "switched off by HANAX_NATIVE=0"}
    assert facts["cache"] == {"folder": str(command_line.cache), "compiled_code": str(command_line.cache / "xla")}
    assert set(facts["memory"]) == {"malloc", "keeps_freed_memory", "huge_pages"}
    assert facts["memory"]["huge_pages"] == {
        "system": facts["memory"]["huge_pages"]["system"], "malloc_setting": "glibc.malloc.hugetlb=0", "used": False
    }  # fmt: skip


def test_doctor_tells_a_person_the_same(command_line: CommandLine, tmp_path: Path) -> None:
    status, output = dataclasses.replace(command_line, settings={"HANAX_NATIVE": "0"}).run("doctor", cwd=tmp_path)
    assert status == 0
    assert "not in use: switched off by HANAX_NATIVE=0" in output
    assert f"{version('jaxlib')} " in output and str(command_line.cache / "xla") in output


def test_a_ctrl_c_that_comes_during_garbage_collection_is_not_lost() -> None:
    program = """
import gc, time
from hanax.experiments._cli import keep_ctrl_c

def interrupt(*_):
    gc.callbacks.remove(interrupt)
    raise KeyboardInterrupt  # Python ignores what is raised here

keep_ctrl_c()
gc.callbacks.append(interrupt)
try:
    gc.collect()
    time.sleep(60)
except KeyboardInterrupt:
    print("it came")
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=50, check=True)
    assert (ran.stdout, ran.stderr) == ("it came\n", "")


def test_ctrl_c_during_a_finetune_says_how_to_go_on(
    tiny_run: TinyRun, command_line: CommandLine, tmp_path: Path
) -> None:
    out, log = tmp_path / "net", tmp_path / "net" / "training" / "metrics.jsonl"
    arguments = ["finetune", tiny_run.folder, "--arch", "smallest", "--out", out, "--epochs", "400.0", "--test"]
    process = command_line.start(*arguments, cwd=tmp_path)
    while process.poll() is None and (not log.exists() or log.stat().st_size == 0):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert f"{out} keeps what was trained; to go on:\n    hanax {' '.join(map(str, arguments))}" in output


def test_a_subnet_that_was_trained_on_its_own_is_exported(
    tiny_run: TinyRun, command_line: CommandLine, tmp_path: Path
) -> None:
    out, model = tmp_path / "net", tmp_path / "net.onnx"
    arguments = ["train", tiny_run.folder, "--arch", "smallest", "--out", out, "--epochs", "0.2", "--test"]
    status, output = command_line.run(*arguments, "--set", "watch_epochs=0", cwd=tmp_path)
    assert status == 0, output
    card = json.loads((out / "card.json").read_text())
    assert f"{card['test']['accuracy']:.1%} on {card['test']['n_images']} test images" in output
    status, output = command_line.run("export", out, "--out", model, cwd=tmp_path)
    assert status == 0, output
    assert f"{model}: {len(model.read_bytes()) / 1024:.0f} KiB" in output


def test_two_processes_train_together_and_the_first_goes_on_alone(
    tiny_run: TinyRun, command_line: CommandLine, tmp_path: Path
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    arguments = ["run", tiny_run.file, "--out", tmp_path / "run", "--coordinator", address, "--processes", "2"]
    arguments += ["--set", "supernet.epochs=0.2", "--set", "supernet.n_shards=2", "--set", "supernet.watch_epochs=0"]
    first, second = (command_line.start(*arguments, "--process", str(process), cwd=tmp_path) for process in (0, 1))
    try:
        second_output, _ = second.communicate(timeout=300)
        assert second.returncode == 0, second_output
        assert "The supernet is trained; process 0 does the other stages" in second_output
        stages = tmp_path / "run" / "stages"
        while first.poll() is None and not (stages / "accuracy" / "done.json").exists():
            time.sleep(0.05)
        assert first.poll() is None, first.communicate()
        assert (tmp_path / "run" / ".lock").read_text() == str(first.pid)
        first.send_signal(signal.SIGINT)
        first_output, _ = first.communicate(timeout=60)
    finally:
        first.kill()
        second.kill()
    assert first.returncode == 130, first_output
    again = " ".join(["hanax", *map(str, arguments[:4]), *arguments[8:], *map(str, arguments[4:8])])
    assert f"to go on:\n    {again} --process 0" in first_output
    assert [name for name, state, _ in stage_states(tmp_path / "run") if state == "done"][:3] == [
        "data", "supernet", "accuracy"
    ]  # fmt: skip
    lines = (stages / "supernet" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, len(lines) + 1))
    assert len(pd.read_parquet(stages / "accuracy" / "accuracy.parquet")) == 16


def test_search_on_tables_alone_keeps_a_bound(tiny_run: TinyRun, command_line: CommandLine, tmp_path: Path) -> None:
    out = tmp_path / "front.csv"
    status, output = command_line.run("search", tiny_run.folder, "--out", out, cwd=tmp_path)
    assert status == 0, output
    free = pd.read_csv(out, dtype={"arch": str})
    bound = float(free["latency_ms"].median())
    arguments = ["search", tiny_run.folder, "--out", out, "--at-most", f"latency_ms={bound}"]
    assert command_line.run(*arguments, cwd=tmp_path)[0] == 0
    bounded = pd.read_csv(out, dtype={"arch": str})
    assert len(bounded) and (bounded["latency_ms"] <= bound).all()
    assert (np.diff(bounded["latency_ms"]) >= 0).all()


def test_an_infeasible_bound_ends_with_the_closest_value(
    tiny_run: TinyRun, command_line: CommandLine, tmp_path: Path
) -> None:
    arguments = ["search", tiny_run.folder, "--out", tmp_path / "front.csv", "--at-most", "latency_ms=1e-6"]
    status, output = command_line.run(*arguments, cwd=tmp_path)
    assert status == 2
    assert "keeps latency_ms at most 1e-06 ms; the closest has 0.0" in output
    assert "Traceback" not in output


def test_extract_then_export_gives_the_model_of_the_run(
    tiny_run: TinyRun, command_line: CommandLine, tmp_path: Path
) -> None:
    winners = pd.read_parquet(tiny_run.folder / "pareto.parquet")
    row = winners.iloc[0]
    folder, model = tmp_path / "net", tmp_path / "net.onnx"
    status, output = command_line.run("extract", tiny_run.folder, "--arch", row["arch"], "--out", folder, cwd=tmp_path)
    assert status == 0, output
    status, output = command_line.run("export", folder, "--out", model, cwd=tmp_path)
    assert status == 0, output
    assert model.read_bytes() == (tiny_run.folder / row["model_path"]).read_bytes()
    for name, start, begins in (("tflite", 4, b"TFL3"), ("ncnn", 0, b"PK"), ("mlir", 0, b"ML\xefR")):
        other = tmp_path / f"net.{name}"
        status, output = command_line.run("export", folder, "--format", name, "--out", other, cwd=tmp_path)
        assert status == 0, output
        assert other.read_bytes()[start:].startswith(begins)


def test_collect_accuracy_agrees_with_the_run(tiny_run: TinyRun, command_line: CommandLine, tmp_path: Path) -> None:
    out = tmp_path / "accuracy.parquet"
    arguments = ["collect", "accuracy", tiny_run.folder, "--archs", "8", "--out", out, "--seed", "3"]
    status, output = command_line.run(*arguments, cwd=tmp_path)
    assert status == 0, output
    ours = pd.read_parquet(tiny_run.folder / "stages" / "accuracy" / "accuracy.parquet").iloc[:8]
    frame = pd.read_parquet(out)
    pd.testing.assert_frame_equal(frame.drop(columns="seconds"), ours.reset_index(drop=True).drop(columns="seconds"))


@pytest.mark.parametrize("race", [(), ("--race",)])
def test_an_accuracy_table_killed_half_way_is_completed_without_scoring_anything_twice(
    race: tuple[str, ...], tiny_run: TinyRun, command_line: CommandLine, tmp_path: Path
) -> None:
    out, ledger = tmp_path / "accuracy.parquet", tmp_path / "accuracy.ledger.jsonl"
    arguments = ["collect", "accuracy", tiny_run.folder, "--archs", "60", "--out", out, *race]
    process = command_line.start(*arguments, cwd=tmp_path)
    while process.poll() is None and (not ledger.exists() or ledger.read_text().count("\n") < 4):
        time.sleep(0.005)
    process.kill()
    process.communicate()
    before = ledger.read_text().splitlines()
    assert 3 < len(before) < 61 and not out.exists()
    status, output = command_line.run(*arguments, cwd=tmp_path)
    assert status == 0, output
    lines = ledger.read_text().splitlines()
    assert lines[: len(before) - 1] == before[:-1], "what was known stays"  # the last one may have been torn
    scored = [(line["arch"], line["scored_on"]["first"]) for line in map(json.loads, lines[1:])]
    assert len(scored) == len(set(scored)) == 60
    assert pd.read_parquet(out)["arch"].is_unique


def test_accuracies_of_another_supernet_are_refused(
    tiny_run: TinyRun, command_line: CommandLine, tmp_path: Path
) -> None:
    out, ledger = tmp_path / "accuracy.parquet", tmp_path / "accuracy.ledger.jsonl"
    theirs = json.loads((tiny_run.folder / "stages" / "accuracy" / "accuracy.ledger.jsonl").read_text().splitlines()[0])
    ledger.write_text(json.dumps(theirs | {"supernet_fingerprint": "0" * 16}) + "\n")
    arguments = ["collect", "accuracy", tiny_run.folder, "--archs", "8", "--out", out]
    status, output = command_line.run(*arguments, cwd=tmp_path)
    assert status == 2
    assert f"supernet_fingerprint was {'0' * 16}, is {theirs['supernet_fingerprint']}" in output
    assert "Traceback" not in output


def test_a_table_of_another_space_is_refused_with_both_fingerprints(
    tiny_run: TinyRun, command_line: CommandLine, tmp_path: Path
) -> None:
    from hanax.search_spaces import mobilenet_v3

    table = tiny_run.folder / "stages" / "latency" / "onnxruntime-fp32" / "table.parquet"
    other = tmp_path / "other.yaml"
    other.write_text(tiny_run.file.read_text().replace("depths: [1, 2]", "depths: [1]"))
    status, output = command_line.run(
        "run", other, "--out", tmp_path / "run", "--set", f"devices.0.table={table}", "--set", "supernet.epochs=0.1",
        cwd=tmp_path,
    )  # fmt: skip
    assert status == 2, output
    assert "fingerprint" in output and "Traceback" not in output
    spaces = {mobilenet_v3().fingerprint}
    assert not any(fingerprint in output for fingerprint in spaces)
    assert len({word.strip(";,.") for word in output.split() if len(word.strip(";,.")) == 16 and _is_hex(word)}) == 2


def _is_hex(word: str) -> bool:
    return all(letter in "0123456789abcdef" for letter in word.strip(";,."))


SHARED = ("run", "quickstart.yaml", "--coordinator", "127.0.0.1:7000")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "none.yaml"], "no experiment file none.yaml"),
        (["status", "."], "holds no run"),
        (["report", "."], "holds no run"),
        (["run", "quickstart.yaml", "--set", "devices.0.name=onnxrutime"], "did you mean 'onnxruntime-fp32'?"),
        (["run", "quickstart.yaml", "--set", "data.path=nowhere"], "nowhere"),
        (["run", "quickstart.yaml", "--set", "supernet.epoch=1"], "did you mean 'epochs'?"),
        (["run", "quickstart.yaml", "--set", "devices.0.table=t.parquet"], "there is no latency table t.parquet"),
        (["export", "nothing", "--out", "m.onnx"], "nothing"),
        (["finetune", ".", "--arch", "largest", "--out", "net"], "holds no run"),
        (["train", ".", "--arch", "largest", "--out", "net"], "holds no run"),
        ([*SHARED, "--processes", "2"], "belong together; missing: --process"),
        ([*SHARED, "--processes", "2", "--process", "2"], "--process 2: 2 processes are numbered 0 to 1"),
        ([*SHARED, "--processes", "2", "--process", "0"], "n_shards must be a multiple of 2"),
        (["run", "quickstart.yaml", "--coordinator", "7000", "--processes", "2", "--process", "0"], "HOST:PORT"),
    ],
)
def test_wrong_input_ends_in_one_message_and_status_2(
    command_line: CommandLine, tmp_path: Path, arguments: list[str], message: str
) -> None:
    source = Path(__file__).parents[2] / "experiments" / "quickstart.yaml"
    (tmp_path / "quickstart.yaml").write_text(source.read_text())
    status, output = command_line.run(*arguments, cwd=tmp_path)
    assert status == 2, output
    assert message in output
    assert "Traceback" not in output


def test_workers_search_one_front_together_and_the_same_command_goes_on(
    tiny_run: TinyRun, command_line: CommandLine, tmp_path: Path
) -> None:
    def command(total: int, *more: str) -> list[str | Path]:
        study = ["--storage", str(tmp_path / "journal"), "--searcher", "random", "--evaluations", str(total)]
        return ["search", tiny_run.folder, *study, "--at-most", "latency_ms=1000", *more]

    workers = [command_line.start(*command(12, "--out", f"{name}.parquet"), cwd=tmp_path) for name in "ab"]
    outputs = [worker.communicate(timeout=300)[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], outputs
    fronts = [pd.read_parquet(tmp_path / f"{name}.parquet") for name in "ab"]
    pd.testing.assert_frame_equal(*fronts)
    assert "accuracy, %" in outputs[0] and "predicted latency, ms" in outputs[0] and "MACs, M" in outputs[0]
    arguments = command(3, "--evaluate", "supernet", "--study", "real", "--out", "real.parquet")
    status, output = command_line.run(*arguments, cwd=tmp_path)
    assert status == 0, output
    real = pd.read_parquet(tmp_path / "real.parquet")
    n_validation = 300
    np.testing.assert_allclose(real["accuracy"] * n_validation, (real["accuracy"] * n_validation).round(), atol=1e-6)
    assert {"arch", "accuracy", "latency_ms", "predicted_accuracy"} <= set(real.columns)
