"""What both sides of `hanax reproduce ofa-search` are given is the same; the `ofa` package itself only where it is."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from hanax._files import cache_folder
from hanax.devices import code_costs
from hanax.experiments import _ofa_environment
from hanax.experiments._reproduce_ofa_search import (
    Peer,
    Predictors,
    largest_difference,
    make_predictors,
    modelled_devices,
    ofa_archs,
    ofa_keys,
    write_for_peer,
)
from hanax.search_spaces import INPUT, graph_features, mobilenet_v3

SIDES = (112, 224)
DEVICES = modelled_devices()[::13]
MIDDLE = 1


@pytest.fixture(scope="module")
def predictors(tmp_path_factory: pytest.TempPathFactory) -> Predictors:
    return make_predictors(mobilenet_v3(resolutions=SIDES), tmp_path_factory.mktemp("none"), DEVICES, epochs=1)


@pytest.fixture(scope="module")
def codes(predictors: Predictors) -> np.ndarray:
    return predictors.space.sample(np.random.default_rng(0), 20)


@pytest.fixture(scope="module")
def folder(predictors: Predictors, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("peer")
    write_for_peer(predictors, path)
    return path


def test_latencies_are_those_of_the_rooflines_with_an_overhead_per_operator(predictors, codes) -> None:
    names, sums = graph_features(predictors.space, codes)
    latencies = predictors.latency(codes)
    assert latencies.shape == (20, 3)
    for device, (roofline, overhead_ms) in enumerate(DEVICES):
        expected = code_costs(roofline, predictors.space, codes)[:, 0] + overhead_ms * sums[:, names.index("operators")]
        np.testing.assert_allclose(latencies[:, device], expected, rtol=1e-5)


def test_the_entries_for_ofa_add_up_to_the_same_latency(predictors, codes, folder) -> None:
    space = predictors.space
    for arch, latency_ms in zip(space.decode(codes), predictors.latency_on(MIDDLE)(codes), strict=True):
        table = json.loads((folder / f"{space.resolution(arch)}_lookup_table.yaml").read_text())
        shape, total = space.input_shape(arch), 0.0
        for placed in space.blocks(arch):
            operators = placed.slot.block.lower("block", placed.choice, INPUT, shape)
            out = operators[-1].out_shape
            keys = ofa_keys(placed.slot.block, placed.choice, shape, out, operators[0].out_shape)
            total += sum(table[key]["mean"] for key in keys)
            shape = out
        assert total == pytest.approx(latency_ms, rel=1e-5)


def test_the_weights_for_ofa_predict_the_same_from_its_features(predictors, codes, folder) -> None:
    weights = np.load(folder / "accuracy.npz")
    features = []
    for arch in ofa_archs(predictors.space, codes):
        assert [len(arch[name]) for name in ("ks", "e", "d")] == [20, 20, 5]
        row = [float(arch["image_size"] == side) for side in SIDES]
        for values, options in ((arch["ks"], (3, 5, 7)), (arch["e"], (3, 4, 6))):
            for block, value in enumerate(values):
                row += [float(value == option and block % 4 < arch["d"][block // 4]) for option in options]
        features.append(row)
    x = np.array(features)
    assert x.shape == (20, 122)
    for layer in range(3):
        x = np.maximum(x @ weights[f"layers.{layer}.0.weight"].T + weights[f"layers.{layer}.0.bias"], 0)
    expected = (x @ weights["layers.3.weight"].T + weights["base_acc"])[:, 0]
    np.testing.assert_allclose(predictors.accuracy(codes), expected, rtol=1e-4)


def test_a_worker_that_cannot_start_is_an_error(tmp_path: Path) -> None:
    with (
        pytest.raises(RuntimeError, match="worker of ofa ended with status 1 at the command 'info'"),
        Peer.start(Path(sys.executable), tmp_path) as peer,
    ):
        peer.ask("info")


def test_the_ofa_package_predicts_the_same_and_searches(predictors, folder) -> None:
    python = cache_folder() / _ofa_environment.FOLDER / "bin" / "python"
    if not python.exists():
        pytest.skip(f"{python} does not exist; `hanax reproduce ofa-search` makes the environment of ofa")
    budget_ms = float(np.median(predictors.latency_on(MIDDLE)(predictors.space.sample(np.random.default_rng(3), 99))))
    with Peer.start(python, folder) as peer:
        assert largest_difference(predictors, MIDDLE, peer, 10) < 1e-5
        found = peer.ask("search", budget_ms=budget_ms, population=8, generations=2, seed=0)
    assert found["latency_ms"] <= budget_ms
    assert 0 < found["accuracy"] < 1
    assert found["seconds"] > 0
