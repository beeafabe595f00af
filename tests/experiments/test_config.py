"""Experiment files: what is accepted, and what the errors say."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from plain_space import plain_space

from hanax.experiments import ExperimentError, load_experiment, make_experiment

ROOT = Path(__file__).parents[2]


def write(folder: Path, text: str) -> Path:
    file = folder / "experiment.yaml"
    file.write_text(text)
    return file


@pytest.mark.parametrize("file", sorted((ROOT / "experiments").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_experiment_file_that_comes_with_hanax_is_valid(file: Path) -> None:
    assert load_experiment(file).name == file.stem


@pytest.mark.parametrize(
    ("text", "where", "nearest"),
    [
        ("supernet: {epoch: 3}", "supernet.epoch", "epochs"),
        ("sed: 3", "sed", "seed"),
        ("devices: [{name: onnxruntime-fp32, arch: 20}]", "devices.0.arch", "archs"),
        ("search: {searcher: {kind: nsga2, popultion: 20}}", "search.searcher.popultion", "population"),
        ("supernet: {augmentation: {flp: true}}", "supernet.augmentation.flp", "flip"),
        ("search: {constraints: [{cost: macs, atmost: 3}]}", "search.constraints.0.atmost", "at_most"),
    ],
)
def test_an_unknown_key_is_refused_and_the_nearest_known_one_named(
    tmp_path: Path, text: str, where: str, nearest: str
) -> None:
    with pytest.raises(ExperimentError) as caught:
        load_experiment(write(tmp_path, text))
    assert f"{where}: unknown key; did you mean {nearest!r}?" in str(caught.value)


def test_all_problems_are_listed_at_once_with_what_was_given(tmp_path: Path) -> None:
    with pytest.raises(ExperimentError) as caught:
        load_experiment(write(tmp_path, "seed: -1\nsupernet: {epochs: 0, optimizer: adam}"))
    message = str(caught.value)
    assert "seed" in message and "-1" in message
    assert "supernet.epochs" in message
    assert "'sgd' or 'adamw'" in message and "'adam'" in message


def test_a_setting_is_overridden_by_its_path_also_within_lists(tmp_path: Path) -> None:
    file = write(tmp_path, "devices: [{name: onnxruntime-fp32}]")
    experiment = load_experiment(file, ["supernet.epochs=2.5", "devices.0.archs=20", "data.path=/there"])
    assert experiment.supernet.epochs == 2.5
    assert experiment.devices[0].archs == 20
    assert experiment.data.path == "/there"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("supernet.epochs", "expected KEY=VALUE"),
        ("supernet.epoch=2", "did you mean 'epochs'?"),
        ("seed.x=2", "seed is 0, not a section"),
        ("devices.5.archs=20", "not an index of a list of 1"),
    ],
)
def test_a_wrong_override_is_refused(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(ExperimentError, match=message.replace("?", r"\?")):
        load_experiment(write(tmp_path, "seed: 0\ndevices: [{name: onnxruntime-fp32}]"), [override])


def test_a_missing_or_damaged_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExperimentError, match="no experiment file"):
        load_experiment(tmp_path / "none.yaml")
    with pytest.raises(ExperimentError, match="cannot be read as YAML"):
        load_experiment(write(tmp_path, "a: [1"))
    with pytest.raises(ExperimentError, match="must hold sections"):
        load_experiment(write(tmp_path, "just text"))


def test_a_folder_of_the_same_name_does_not_hide_an_experiment_that_comes_with_hanax(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "quickstart").mkdir()
    monkeypatch.chdir(tmp_path)
    assert load_experiment("quickstart").name == "quickstart"


def test_a_device_listed_twice_and_a_constraint_without_a_bound_are_refused() -> None:
    device = {"name": "onnxruntime-fp32"}
    with pytest.raises(ExperimentError, match="listed 2 times"):
        make_experiment({"name": "x", "devices": [device, device]}, "test")
    with pytest.raises(ExperimentError, match="needs at_most, at_least or both"):
        make_experiment({"name": "x", "search": {"constraints": [{"cost": "macs"}]}}, "test")


@pytest.mark.parametrize("name", ["onnxruntime-int8", "ncnn-aarch64-instructions", "litert-int8"])
def test_a_run_refuses_devices_that_do_not_time_the_networks_that_it_ships(name: str) -> None:
    with pytest.raises(ExperimentError, match=f"{name} .* cannot be one of its devices; `hanax collect latency`"):
        make_experiment({"name": "x", "devices": [{"name": name}]}, "test")


def test_a_device_may_be_here_and_elsewhere_and_is_called_after_its_place() -> None:
    places = [None, "ssh://me@pi/?python=/opt/python", "ssh://pi:2222/", "adb://emulator-5554"]
    devices = [{"name": "onnxruntime-fp32", "place": place} for place in places]
    experiment = make_experiment({"name": "x", "devices": devices}, "here")
    labels = [device.label for device in experiment.devices]
    ends = ["", "@pi", "@pi-2222", "@emulator-5554"]
    assert labels == [device.spec().name for device in experiment.devices]
    assert labels == [f"onnxruntime-fp32{end}" for end in ends]
    with pytest.raises(ExperimentError, match=r"device onnxruntime-fp32@pi is listed 2 times"):
        make_experiment({"name": "x", "devices": [devices[1], {**devices[1], "place": "ssh://you@pi/"}]}, "here")


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("pi", r"devices.0.place: 'pi' is not a place"),
        ("ssh://pi/?pyton=x", r"devices.0.place: .* did you mean 'python'"),
    ],
)
def test_a_wrong_place_is_refused_where_it_stands(place: str, message: str) -> None:
    with pytest.raises(ExperimentError, match=message):
        make_experiment({"name": "x", "devices": [{"place": place}]}, "here")


@pytest.mark.parametrize("kind", ["nas_bench_201", "fbnet"])
def test_a_space_without_a_supernet_is_refused_with_the_reason(kind: str) -> None:
    with pytest.raises(ExperimentError, match=f"space.kind: an experiment trains a supernet, .* given: '{kind}'"):
        make_experiment({"name": "x", "space": {"kind": kind}}, "here")


def test_an_experiment_survives_being_written_and_read() -> None:
    experiment = load_experiment(ROOT / "experiments" / "quickstart.yaml")
    again = make_experiment(yaml.safe_load(yaml.safe_dump(experiment.model_dump(mode="json"))), "test")
    assert again == experiment


def test_certified_constraints_come_from_the_file_and_are_refused_where_they_mean_nothing() -> None:
    def constraints(device: dict[str, object], constraint: dict[str, object]) -> list[str]:
        settings = {"name": "x", "devices": [device], "search": {"constraints": [constraint]}}
        experiment = make_experiment(settings, "here")
        return [str(part) for part in experiment.constraints(experiment.devices[0])]

    device = {"max_latency_ms": 2.0, "max_latency_probability": 0.95}
    assert constraints(device, {"cost": "accuracy", "at_least": 0.9, "probability": 0.9}) == [
        "accuracy at least 0.9 with probability 0.9",
        "latency_ms at most 2 ms with probability 0.95",
    ]
    macs = {"cost": "macs", "at_most": 1e9}
    with pytest.raises(ExperimentError, match=r"macs is known exactly, .* leave probability out"):
        constraints(device, macs | {"probability": 0.9})
    with pytest.raises(ExperimentError, match="says how surely max_latency_ms is kept; set that as well"):
        constraints({"max_latency_probability": 0.95}, macs)
    with pytest.raises(ExperimentError, match=r"probability 0.999 takes at least 499 measured networks; device .* 60"):
        constraints(device | {"max_latency_probability": 0.999}, macs)
    with pytest.raises(ExperimentError, match=r"probability 0.999 takes at least 499 measured networks; accuracy has"):
        constraints(device, {"cost": "accuracy", "at_least": 0.9, "probability": 0.999})


@pytest.mark.parametrize(
    ("searcher", "name"),
    [
        ({"kind": "random"}, "RandomSearcher"),
        ({"kind": "grid"}, "GridSearcher"),
        ({"kind": "local", "starts": 3}, "LocalSearcher"),
        ({"kind": "aging", "population": 20, "sample": 5}, "AgingSearcher"),
        ({"kind": "aging", "weights": [1.0, 0.1]}, "AgingSearcher"),
        ({"kind": "reinforce", "weights": [1.0, 0.1]}, "Reinforce"),
    ],
)
def test_baselines_are_chosen_by_their_kind(searcher: dict[str, object], name: str) -> None:
    experiment = make_experiment({"name": "x", "search": {"searcher": searcher}}, "here")
    built = experiment.search.searcher.build(plain_space(3, 2), 2, 0)
    assert type(built).__name__ == name
    assert len(built.ask()) > 0
    assert make_experiment(experiment.model_dump(mode="json"), "again") == experiment


@pytest.mark.parametrize(
    ("searcher", "message"),
    [
        ({"kind": "reinforce"}, r"search\.searcher\.weights: Field required"),
        ({"kind": "reinforce", "weights": [1.0]}, r"a weight for each of accuracy, latency_ms; given: \[1\.0\]"),
        ({"kind": "aging", "sample": 200}, "sample is at most the population of 100; given: 200"),
        ({"kind": "local", "start": 3}, r"search\.searcher\.start: unknown key; did you mean 'starts'\?"),
        ({"kind": "optuna", "sampler": "linas"}, "which takes hours for 5000; set evaluations to at most 1000"),
        ({"kind": "greedy"}, "'random', 'grid', 'local', 'aging', 'reinforce'"),
    ],
)
def test_settings_of_baselines_that_do_not_fit_are_refused(searcher: dict[str, object], message: str) -> None:
    with pytest.raises(ExperimentError, match=message):
        make_experiment({"name": "x", "search": {"searcher": searcher}}, "here")


def test_a_grid_over_a_space_that_cannot_be_listed_is_refused_before_anything_is_trained() -> None:
    images = SimpleNamespace(name="images", image_size=(32, 32), channels=3, n_classes=10)
    experiment = make_experiment({"name": "x", "search": {"searcher": {"kind": "grid"}}}, "here")
    with pytest.raises(ExperimentError, match=r"search\.searcher: .* only up to 100000 can be listed; choose another"):
        experiment.build_space(images)  # type: ignore[arg-type]


def quantized(**section: object) -> dict[str, object]:
    return {"name": "x", "quantization": section}


def test_a_run_that_quantizes_is_for_a_device_that_runs_integers() -> None:
    experiment = make_experiment(quantized(), "here")
    assert [device.name for device in experiment.devices] == ["onnxruntime-int8"]
    chosen = make_experiment(quantized() | {"devices": [{"name": "litert-int8"}]}, "here")
    assert make_experiment(chosen.model_dump(mode="json"), "again") == chosen
    for name in ("onnxruntime-fp32", "onnxruntime-dynamic-int8", "ncnn-aarch64-instructions"):
        with pytest.raises(ExperimentError, match=rf"{name} .* there are onnxruntime-int8, .* in float32 is measured"):
            make_experiment(quantized() | {"devices": [{"name": name}]}, "here")
    with pytest.raises(ExperimentError, match="with a section `quantization` a run ships integer models"):
        make_experiment({"name": "x", "devices": [{"name": "onnxruntime-int8"}]}, "here")


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"weights": ["int9"]}, r"quantization\.weights: .* int2 to int8"),
        ({"activations": ["e4m3"]}, r"quantization\.activations: .* formats are int2 to int8; e4m3 is none"),
        ({"weights": ["float32"]}, "float32 is none of them"),
        ({"weights": []}, r"quantization\.weights: .* at least 1 item"),
        ({"epochs": -1}, r"quantization\.epochs: .* given: -1"),
        ({"learning_rate": 0}, r"quantization\.learning_rate: .* greater than 0"),
        ({"granularity": "layer"}, r"quantization\.granularity: .* 'block' or 'network'; given: 'layer'"),
        ({"calibration": "max"}, r"quantization\.calibration: .* 'minmax', 'percentile' or 'mse'; given: 'max'"),
        ({"epoch": 3}, r"quantization\.epoch: unknown key; did you mean 'epochs'\?"),
    ],
)
def test_a_wrong_setting_of_quantization_is_refused_with_what_would_be_right(
    section: dict[str, object], message: str
) -> None:
    with pytest.raises(ExperimentError, match=message):
        make_experiment(quantized(**section), "here")


def test_costs_that_formats_decide_are_refused_without_formats() -> None:
    search = {"search": {"objectives": ["accuracy", "size_bytes"]}}
    assert [part.unit for part in make_experiment(quantized() | search, "here").objectives()] == ["", "bytes"]
    with pytest.raises(ExperimentError, match="size_bytes is decided by number formats; add a section `quantization`"):
        make_experiment({"name": "x"} | search, "here")


def test_a_heading_with_nothing_below_it_quantizes_and_an_override_can_take_it_away(tmp_path: Path) -> None:
    file = write(tmp_path, "quantization:\n")
    assert load_experiment(file) == make_experiment(quantized() | {"name": "experiment"}, "here")
    assert load_experiment(file, ["quantization.epochs=0"]).quantization.epochs == 0  # type: ignore[union-attr]
    assert load_experiment(file, ["quantization=null"]) == make_experiment({"name": "experiment"}, "here")


def test_the_quantized_phase_is_a_fifth_of_the_supernets_training_at_a_tenth_of_its_rate() -> None:
    settings = quantized() | {"supernet": {"epochs": 20, "learning_rate": 0.01, "schedule": "progressive_shrinking"}}
    experiment = make_experiment(settings, "here")
    assert experiment.quantization is not None
    recipe = experiment.quantization.recipe(experiment.supernet, 5)
    assert recipe is not None
    assert (recipe.epochs, recipe.schedule, recipe.seed) == (4.0, "sandwich", 5)
    assert recipe.learning_rate == pytest.approx(0.001)
    post_training = make_experiment(quantized(epochs=0), "here")
    assert post_training.quantization is not None
    assert post_training.quantization.recipe(post_training.supernet, 0) is None
