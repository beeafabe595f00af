"""Accuracy of real OFA-MobileNetV3 subnets, from DyNAS-T's published search traces."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

from hanax.predictors import (
    AccuracyPredictor,
    RidgePredictor,
    accuracy_feature_groups,
    accuracy_features,
    predictor_features,
)
from hanax.search_spaces import SearchSpace, graph_features, mobilenet_v3, unique_rows

Table = tuple[SearchSpace, np.ndarray, np.ndarray]


def _codes(space: SearchSpace, subnets: pd.Series) -> np.ndarray:
    """Codes of DyNAS-T's records: kernel size and expansion of 4 blocks in each of 5 stages, and the depths."""
    rows = []
    for record in map(ast.literal_eval, subnets):
        options = {"resolution": record["r"][0]}
        for stage, depth in enumerate(record["d"], start=1):
            options[f"stage{stage}.depth"] = depth
        for slot, (kernel_size, expand_ratio) in enumerate(zip(record["ks"], record["e"], strict=True)):
            block = f"stage{slot // 4 + 1}.block{slot % 4 + 1}"
            options |= {f"{block}.kernel_size": kernel_size, f"{block}.expand_ratio": expand_ratio}
        rows.append([decision.options.index(options[decision.name]) for decision in space.decisions])
    return space.canonical(np.array(rows, dtype=np.int32))


@pytest.fixture(scope="module")
def traces(shared_data: Callable[[str], Path]) -> Table:
    """Space, codes and ImageNet top-1 accuracy of every different subnet; the MACs are checked against the graph."""
    files = sorted(shared_data("dynas-t").glob("*.csv"))
    table = pd.concat([pd.read_csv(file) for file in files])
    space = mobilenet_v3(resolutions=(224,))
    codes = _codes(space, table["Sub-network"])
    names, sums = graph_features(space, codes)
    np.testing.assert_array_equal(sums[:, names.index("macs")], table["MACs"])
    first = unique_rows(codes)
    return space, codes[first], table["Top-1 Acc (%)"].to_numpy()[first] / 100


def test_fifty_subnets_rank_the_other_fifteen_hundred(traces: Table) -> None:
    """Published simple result with 50 samples: rank correlation .977, mean absolute error .24 points."""
    space, codes, accuracy = traces
    X = predictor_features(space, codes)
    ranks, errors, coverages = [], [], []
    for seed in range(30):
        order = np.random.default_rng(seed).permutation(len(codes))
        known, new = order[:50], order[50:]
        predictor = RidgePredictor().fit(X[known], accuracy[known])
        predicted = predictor.predict(X[new])
        lower, upper = predictor.predict_interval(X[new], 0.9)
        ranks.append(spearmanr(predicted, accuracy[new]).statistic)
        errors.append(np.mean(np.abs(predicted - accuracy[new])))
        coverages.append(np.mean((lower <= accuracy[new]) & (accuracy[new] <= upper)))
    assert np.mean(ranks) > 0.98
    assert np.min(ranks) > 0.95
    assert np.mean(errors) < 0.0024
    assert 0.85 < np.mean(coverages) < 0.95


def test_effects_shared_between_blocks_halve_the_error(traces: Table) -> None:
    space, codes, accuracy = traces
    X, groups = accuracy_features(space, codes), accuracy_feature_groups(space)
    errors, coverages = [], []
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(len(codes))
        known, new = order[:50], order[50:]
        predictor = AccuracyPredictor(groups).fit(X[known], accuracy[known])
        lower, upper = predictor.predict_interval(X[new], 0.9)
        errors.append(np.mean(np.abs(predictor.predict(X[new]) - accuracy[new])))
        coverages.append(np.mean((lower <= accuracy[new]) & (accuracy[new] <= upper)))
    assert np.mean(errors) < 0.0013
    assert 0.85 < np.mean(coverages) < 0.97
