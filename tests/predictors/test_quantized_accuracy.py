from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from sklearn.base import clone

from hanax.predictors import (
    QuantizedAccuracyPredictor,
    load_predictor,
    quantized_feature_groups,
    quantized_features,
    save_predictor,
)
from hanax.predictors._quantized_accuracy_net import (
    BITS,
    STRETCH,
    Tangent,
    along_tangent,
    initial_weights,
    moved_weights,
    outputs,
)
from hanax.search_spaces import (
    SearchSpace,
    float_space,
    mobilenet_v3,
    precision_columns,
    quantized_space,
)

SMALL = {"hidden": (32, 32), "n_nets": 3}
GROUPS = {"architecture": (0, 12), "bits": (12, 20)}


@pytest.fixture(scope="module")
def space() -> SearchSpace:
    return quantized_space(
        mobilenet_v3(
            resolutions=(16,), n_classes=4, stem_width=8, stage_widths=(8, 16), stage_strides=(2, 2),
            stage_activations=("relu", "hswish"), stage_squeeze_excite=(False, True), depths=(1, 2),
            expand_ratios=(2, 3), kernel_sizes=(3, 5), head_width=16, feature_width=16,
        )
    )  # fmt: skip


class Problem:
    """Accuracies that saturate in the architecture's quality; bits take points away, more from good architectures."""

    def __init__(self, seed: int, n_float: int = 400, n: int = 500) -> None:
        rng = np.random.default_rng(seed)
        self.quality, self.harm = rng.normal(size=12), rng.uniform(0.0, 0.5, size=8)
        self.X_float = rng.integers(0, 2, size=(n_float, 12)).astype(float)
        self.y_float = self._accuracy(self.X_float) + 0.1 * rng.normal(size=n_float)
        architecture, bits = rng.integers(0, 2, size=(n, 12)), rng.integers(0, 2, size=(n, 8))
        self.X = np.concatenate([architecture, bits], axis=1).astype(float)
        without = self._accuracy(self.X[:, :12])
        harm = (self.X[:, 12:] @ self.harm) * (1.0 + 0.1 * (without - without.mean()))
        self.y = 88.0 + 1.2 * (without - 90.0) - harm + 0.1 * rng.normal(size=n)

    def _accuracy(self, architecture: np.ndarray) -> np.ndarray:
        pairs = architecture[:, :6] * architecture[:, 6:]
        return 92.0 - 3.0 * np.exp(-0.4 * (architecture @ self.quality) - 0.5 * pairs.sum(axis=1) + 0.8)


@pytest.fixture(scope="module")
def problem() -> Problem:
    return Problem(0)


@pytest.fixture(scope="module")
def pretrained(problem: Problem) -> QuantizedAccuracyPredictor:
    return QuantizedAccuracyPredictor(GROUPS, **SMALL).pretrain(problem.X_float, problem.y_float)


def _error(predictor: QuantizedAccuracyPredictor, problem: Problem, n: int) -> float:
    fitted = predictor.fit(problem.X[:n], problem.y[:n])
    return float(np.mean(np.abs(fitted.predict(problem.X[300:]) - problem.y[300:])))


# ---- features ---------------------------------------------------------------------------------------------------


def test_changing_only_bits_changes_the_columns_of_bits_and_no_others(space: SearchSpace) -> None:
    codes = space.sample(np.random.default_rng(0), 30)
    start, stop = quantized_feature_groups(space)["bits"]
    before = quantized_features(space, codes)
    for column in precision_columns(space):
        changed = codes.copy()
        changed[:, column] = (changed[:, column] + 1) % 3
        is_active = space.active(codes)[:, column]
        after = quantized_features(space, changed)
        np.testing.assert_array_equal(after[:, :start], before[:, :start])
        np.testing.assert_array_equal((after != before)[:, start:stop].any(axis=1), is_active)


def test_columns_of_the_architecture_are_the_features_of_the_float_space(space: SearchSpace) -> None:
    codes = space.sample(np.random.default_rng(1), 20)
    n_architecture = len(float_space(space).decisions)
    start, stop = quantized_feature_groups(space)["architecture"]
    of_float = quantized_features(float_space(space), codes[:, :n_architecture])
    np.testing.assert_array_equal(quantized_features(space, codes)[:, start:stop], of_float)
    assert quantized_feature_groups(float_space(space))["bits"] == (stop, stop)


def test_absent_blocks_have_no_bits(space: SearchSpace) -> None:
    start, _ = quantized_feature_groups(space)["bits"]
    bits = quantized_features(space, space.encode([space.smallest, space.largest]))[:, start:]
    n_own = sum(len(space.decisions[column].options) for column in precision_columns(space))
    present = [int(space.active(space.encode([a]))[0, precision_columns(space)].sum())
               for a in (space.smallest, space.largest)]  # fmt: skip
    np.testing.assert_array_equal(bits[:, :n_own].sum(axis=1), present)
    assert present[0] < present[1]


# ---- the network ------------------------------------------------------------------------------------------------


def test_moves_change_the_output_by_the_kernels() -> None:
    rng = np.random.default_rng(2)
    weights = initial_weights(5, (7, 6), rng)
    x, bits, of_bits, of_rest = rng.normal(size=(9, 5)), rng.normal(size=(9, 3)), *rng.normal(size=(2, 9))
    tangent = Tangent.at(weights, x)
    moves = moved_weights(tangent, bits, of_bits, of_rest)
    output, change = along_tangent(weights, moves, x, bits)
    np.testing.assert_allclose(output, outputs(weights, x))
    np.testing.assert_allclose(change, tangent.bits_kernel(bits) @ of_bits + tangent.network_kernel() @ of_rest)


def test_the_tangent_is_the_derivative_of_the_network() -> None:
    rng = np.random.default_rng(3)
    weights, x = initial_weights(5, (7, 6), rng), rng.normal(size=(9, 5))
    moves = moved_weights(Tangent.at(weights, x), np.zeros((9, 3)), np.zeros(9), rng.normal(size=9))
    moves[STRETCH] = np.zeros(1)
    step = 1e-6
    moved = {name: array + step * moves[name] for name, array in weights.items()}
    _, change = along_tangent(weights, moves, x, np.zeros((9, 3)))
    np.testing.assert_allclose((outputs(moved, x) - outputs(weights, x)) / step, change, rtol=1e-3, atol=1e-4)


# ---- the predictor ----------------------------------------------------------------------------------------------


def test_changing_only_bits_changes_the_prediction(problem: Problem, pretrained: QuantizedAccuracyPredictor) -> None:
    fitted = clone(pretrained).fit(problem.X[:60], problem.y[:60])
    fewer = problem.X.copy()
    fewer[:, 12:] = 0.0
    is_changed = (fewer != problem.X).any(axis=1)
    assert (np.abs(fitted.predict(fewer) - fitted.predict(problem.X))[is_changed] > 1e-6).all()


def test_without_moves_the_prediction_is_that_of_the_float_networks(
    problem: Problem, pretrained: QuantizedAccuracyPredictor
) -> None:
    fitted = clone(pretrained).fit(problem.X[:30], problem.y[:30])
    for moves in fitted.moves_:
        for array in moves.values():
            array[:] = 0.0
    fitted.shifts_[:] = 0.0
    np.testing.assert_allclose(fitted.predict(problem.X), pretrained.predict_float(problem.X[:, :12]), rtol=1e-12)
    assert fitted.moves_[0][BITS].shape == (8, 32)


@pytest.mark.parametrize("n", [20, 40])
def test_transfer_needs_a_third_of_the_samples_of_learning_from_scratch(n: int) -> None:
    with_transfer, from_scratch = [], []
    for seed in range(3):
        problem = Problem(seed)
        learner = QuantizedAccuracyPredictor(GROUPS, **SMALL).pretrain(problem.X_float, problem.y_float)
        with_transfer.append(_error(learner, problem, n))
        from_scratch.append(_error(QuantizedAccuracyPredictor(GROUPS, **SMALL), problem, 3 * n))
    assert np.mean(with_transfer) < np.mean(from_scratch)


def test_both_ways_to_learn_unquantized_accuracies_rank_new_ones(
    problem: Problem, pretrained: QuantizedAccuracyPredictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hanax.predictors._quantized_accuracy.MOST_SOLVED", 100)
    by_gradients = QuantizedAccuracyPredictor(GROUPS, **SMALL).pretrain(problem.X_float, problem.y_float)
    assert by_gradients.counts_output_ and not pretrained.counts_output_
    new = np.random.default_rng(7).integers(0, 2, size=(300, 12)).astype(float)
    truth = problem._accuracy(new)
    for learned in (by_gradients, pretrained):
        said = learned.predict_float(new)
        assert np.corrcoef(said, truth)[0, 1] > 0.85
        assert 0.5 < learned.float_error_ / np.sqrt(np.mean((said - truth) ** 2) + 0.1**2) < 2.0
    fitted = clone(by_gradients).fit(problem.X[:100], problem.y[:100])
    assert np.corrcoef(fitted.predict(problem.X[300:]), problem.y[300:])[0, 1] > 0.85


def test_float_networks_that_say_nothing_do_little_harm(problem: Problem) -> None:
    shuffled = np.random.default_rng(4).permutation(problem.y_float)
    learner = QuantizedAccuracyPredictor(GROUPS, **SMALL).pretrain(problem.X_float, shuffled)
    scratch = QuantizedAccuracyPredictor(GROUPS, **SMALL)
    assert _error(learner, problem, 200) < 1.3 * _error(scratch, problem, 200)


def test_intervals_cover_what_they_promise() -> None:
    shares: dict[float, list[float]] = {0.8: [], 0.9: []}
    for seed in range(4):
        problem = Problem(seed, n=700)
        learner = QuantizedAccuracyPredictor(GROUPS, **SMALL).pretrain(problem.X_float, problem.y_float)
        learner.fit(problem.X[:60], problem.y[:60])
        for coverage, held in shares.items():
            lower, upper = learner.predict_interval(problem.X[60:], coverage)
            held.append(float(np.mean((lower <= problem.y[60:]) & (problem.y[60:] <= upper))))
    for coverage, held in shares.items():
        assert coverage - 0.08 < np.mean(held) < coverage + 0.08


def test_what_is_left_out_is_predicted_as_by_a_fit_without_it(
    problem: Problem, pretrained: QuantizedAccuracyPredictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hanax.predictors._quantized_accuracy.SIGNALS", (3.0,))
    X, y = problem.X[:30], problem.y[:30]
    residuals = clone(pretrained).fit(X, y).loo_residuals_
    without = np.arange(30) != 7
    left_out = clone(pretrained).fit(X[without], y[without])
    # the scale of the columns of bits is that of the samples, so the two fits differ slightly
    assert residuals[7] == pytest.approx(y[7] - left_out.predict(X[[7]])[0], abs=0.05)


def test_too_few_samples_promise_nothing(problem: Problem, pretrained: QuantizedAccuracyPredictor) -> None:
    lower, upper = clone(pretrained).fit(problem.X[:8], problem.y[:8]).predict_interval(problem.X[:3])
    assert np.isneginf(lower).all() and np.isposinf(upper).all()


def test_a_clone_keeps_what_was_learned_from_unquantized_networks(
    problem: Problem, pretrained: QuantizedAccuracyPredictor
) -> None:
    copy = clone(pretrained)
    assert copy.is_pretrained and not hasattr(copy, "moves_")
    first, second = (clone(copy).fit(problem.X[:40], problem.y[:40]).predict(problem.X) for _ in range(2))
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("is_pretrained", [True, False])
def test_it_comes_back_from_a_file_bit_for_bit(
    space: SearchSpace, problem: Problem, pretrained: QuantizedAccuracyPredictor, is_pretrained: bool, tmp_path: Path
) -> None:
    predictor = clone(pretrained) if is_pretrained else QuantizedAccuracyPredictor(GROUPS, **SMALL)
    predictor.fit(problem.X[:40], problem.y[:40])
    save_predictor(tmp_path / "p", predictor, space, "accuracy")
    loaded = load_predictor(tmp_path / "p", space, "accuracy")
    assert loaded.groups == GROUPS and loaded.hidden == (32, 32) and loaded.is_pretrained == is_pretrained
    np.testing.assert_array_equal(loaded.predict(problem.X), predictor.predict(problem.X))
    np.testing.assert_array_equal(loaded.predict_interval(problem.X), predictor.predict_interval(problem.X))
    again = clone(loaded).fit(problem.X[:40], problem.y[:40])
    np.testing.assert_array_equal(again.predict(problem.X), predictor.predict(problem.X))


def test_ten_thousand_networks_take_little_time(problem: Problem, pretrained: QuantizedAccuracyPredictor) -> None:
    fitted = clone(pretrained).fit(problem.X[:40], problem.y[:40])
    many = np.tile(problem.X, (20, 1))
    started = time.process_time()
    fitted.predict(many)
    assert len(many) == 10_000 and time.process_time() - started < 2.0


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"n_nets": 0}, "n_nets must be at least 1; got 0"),
        ({"hidden": ()}, "hidden has the units of one layer or more"),
        ({"groups": {"bits": (0, 2)}}, "groups must be of architecture and bits; got bits"),
        ({"groups": {"architecture": (0, 2), "bits": (2, 5)}}, "group bits is columns 2 to 5; X has 4 columns"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        QuantizedAccuracyPredictor(**settings).fit(np.eye(4), np.arange(4.0))


def test_columns_of_another_space_are_refused(problem: Problem, pretrained: QuantizedAccuracyPredictor) -> None:
    with pytest.raises(ValueError, match="X has 11 columns about the architecture; pretrain had 12"):
        clone(pretrained).set_params(groups={"architecture": (0, 11), "bits": (11, 20)}).fit(problem.X, problem.y)


def test_nothing_is_said_of_unquantized_networks_before_they_were_seen() -> None:
    with pytest.raises(RuntimeError, match="call pretrain before predict_float"):
        QuantizedAccuracyPredictor().predict_float(np.eye(4))


def test_the_last_columns_count_blocks_of_each_weight_and_each_activation_format(space: SearchSpace) -> None:
    codes = space.sample(np.random.default_rng(6), 20)
    active = space.active(codes)
    for kind, place in (("weight_bits", slice(-6, -3)), ("activation_bits", slice(-3, None))):
        columns = [c for c in precision_columns(space) if space.decisions[c].name.endswith(kind)]
        counted = [[np.sum(active[row, columns] & (codes[row, columns] == option)) for option in range(3)]
                   for row in range(20)]  # fmt: skip
        np.testing.assert_array_equal(quantized_features(space, codes)[:, place], counted)
