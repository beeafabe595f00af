"""HELP on devices that mix three ways of costing: small enough to meta-train in a second."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from hanax.predictors import HelpPredictor, SourcePool, load_predictor, save_predictor
from hanax.predictors import _help_net as nets
from hanax.predictors._decision_nodes import decision_nodes
from hanax.predictors._help import _impute
from hanax.search_spaces import mobilenet_v3

D, OPTIONS = 5, 4
SIDE_BY_SIDE = np.zeros((D + 2, D + 2), dtype=bool)
SIDE_BY_SIDE[0, 1:-1] = SIDE_BY_SIDE[1:-1, -1] = True
N = 128
SMALL: dict[str, Any] = {"references": (3, 10, 27, 41, 50, 66, 71, 82, 101, 121), "width": 64, "n_episodes": 600}
TARGETS = ("target0", "target1", "target2", "target3")


def family() -> SourcePool:
    """128 architectures on 14 devices, each with a mixture of its own of three costs per option."""
    rng = np.random.default_rng(0)
    codes = rng.permuted(np.tile(np.arange(OPTIONS), (D, N // OPTIONS)), axis=1).T
    X = (codes[:, :, None] == np.arange(OPTIONS)).reshape(N, -1).astype(float)
    factors = rng.gamma(0.5, size=(D * OPTIONS, 3))
    mixtures = rng.dirichlet((0.5, 0.5, 0.5), size=14).T
    names = (*(f"source{k}" for k in range(8)), "valid0", "valid1", *TARGETS)
    costs = (0.3 + X @ factors @ mixtures) * rng.gamma(2.0, size=14)
    X = np.column_stack([rng.normal(size=N), X])  # what is not an option is left alone
    return SourcePool("family", {"noise": (0, 1), "options": (1, 1 + D * OPTIONS)}, X, costs, names)


FAMILY = family()
SOURCES = FAMILY.columns(FAMILY.devices[:8])
VALIDATION = FAMILY.columns(("valid0", "valid1"))
REFERENCES = np.array(SMALL["references"])


def target(name: str = "target0") -> np.ndarray:
    return FAMILY.costs[:, FAMILY.devices.index(name)]


@pytest.fixture(scope="module")
def trained() -> HelpPredictor:
    return HelpPredictor(SOURCES, **SMALL).meta_fit(VALIDATION)


def places_of_rates(predictor: HelpPredictor) -> slice:
    """Where the steps of the adaptation are among `meta_weights_`: after those of the modulator and the network."""
    shapes = predictor._network().net.shapes()
    return slice(sum(sum(map(math.prod, shapes[part].values())) for part in ("modulator", "net")), None)


def mean_correlation(predictor: HelpPredictor) -> float:
    """On new devices, from the costs of the references alone, over all other architectures."""
    rest = np.setdiff1d(np.arange(N), REFERENCES)
    return float(np.mean([
        spearmanr(predictor.fit(FAMILY.X[REFERENCES], y[REFERENCES]).predict(FAMILY.X[rest]), y[rest]).statistic
        for y in map(target, TARGETS)
    ]))  # fmt: skip


def test_meta_training_makes_the_same_network_learn_a_new_device_from_ten_measurements(trained: HelpPredictor) -> None:
    without = HelpPredictor(SOURCES, **SMALL | {"n_episodes": 0}).meta_fit()
    assert mean_correlation(trained) > max(0.7, mean_correlation(without) + 0.3)


def test_a_graph_encoder_learns_from_the_measurements() -> None:
    """Without meta-training: what it starts from knows nothing."""
    settings = SMALL | {"encoder": "graph", "adjacency": SIDE_BY_SIDE, "n_episodes": 0}
    predictor = HelpPredictor(SOURCES, **settings).meta_fit()
    assert predictor._network().net.own_links == ((0,), (0, 1)), "the output and the global node"
    X, y = FAMILY.X[REFERENCES], target()[REFERENCES]
    errors = []
    for rate in (0.02, 0.0):
        predictor.meta_weights_[places_of_rates(predictor)] = rate
        errors.append(np.abs(np.log(predictor.fit(X, y).predict(X) / y)).mean())
    assert errors[0] < errors[1]


def test_the_weights_kept_are_those_that_did_best_on_the_validation_devices(
    trained: HelpPredictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert trained.meta_scores_.shape == (SMALL["n_episodes"] / 50,)
    assert trained.best_episode_ == 50 * (1 + trained.meta_scores_.argmax())
    scores = iter([0.1, 0.3, 0.2])
    monkeypatch.setattr("hanax.predictors._help._Check.score", lambda *_: next(scores))
    kept = HelpPredictor(SOURCES, **SMALL | {"n_episodes": 150}).meta_fit(VALIDATION)
    assert kept.best_episode_ == 100
    scores = iter([0.1, 0.2])
    np.testing.assert_array_equal(
        kept.meta_weights_, HelpPredictor(SOURCES, **SMALL | {"n_episodes": 100}).meta_fit(VALIDATION).meta_weights_
    )


def test_a_seed_decides_every_number() -> None:
    settings = SMALL | {"n_episodes": 50}
    first, same, other = (HelpPredictor(SOURCES, **settings, seed=seed).meta_fit() for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.meta_weights_, same.meta_weights_)
    assert not np.array_equal(first.meta_weights_, other.meta_weights_)
    X, y = FAMILY.X[REFERENCES], target()[REFERENCES]
    np.testing.assert_array_equal(first.fit(X, y).predict(FAMILY.X), same.fit(X, y).predict(FAMILY.X))


def test_the_order_of_source_devices_does_not_matter() -> None:
    settings = SMALL | {"n_episodes": 50}
    shuffled = SOURCES.columns(tuple(np.random.default_rng(0).permutation(SOURCES.devices).tolist()))
    first, second = (HelpPredictor(pool, **settings).meta_fit() for pool in (SOURCES, shuffled))
    np.testing.assert_array_equal(first.meta_weights_, second.meta_weights_)


def test_costs_moved_along_a_rising_line_move_predictions_along_the_same_line(trained: HelpPredictor) -> None:
    X, y = FAMILY.X[REFERENCES], target()[REFERENCES]
    first = trained.fit(X, y).predict(FAMILY.X)
    second = trained.fit(X, 50.0 + 7.0 * y).predict(FAMILY.X)
    assert first.min() > y.min() / 2, "nothing is bent"
    np.testing.assert_allclose(second, 50.0 + 7.0 * first, rtol=1e-4)


def test_the_order_of_measurements_does_not_matter(trained: HelpPredictor) -> None:
    first = trained.fit(FAMILY.X[REFERENCES], target()[REFERENCES]).predict(FAMILY.X)
    second = trained.fit(FAMILY.X[REFERENCES[::-1]], target()[REFERENCES[::-1]]).predict(FAMILY.X)
    np.testing.assert_allclose(first, second, rtol=1e-4)


def test_references_found_among_the_measurements_are_as_good_as_references_given(trained: HelpPredictor) -> None:
    X, y = FAMILY.X[REFERENCES], target()[REFERENCES]
    found, given = (trained.fit(X, y, costs).predict(FAMILY.X) for costs in (None, y))
    np.testing.assert_array_equal(found, given)


def test_a_residual_is_what_a_model_without_that_measurement_misses_it_by(trained: HelpPredictor) -> None:
    rows, y = np.arange(11, 21), target()
    assert not set(rows) & set(REFERENCES)
    residuals = trained.fit(FAMILY.X[rows], y[rows], y[REFERENCES]).loo_residuals_
    others = rows[:-1]
    without = trained.fit(FAMILY.X[others], y[others], y[REFERENCES]).predict(FAMILY.X[rows])[-1]
    np.testing.assert_allclose(residuals[-1], np.log(y[rows[-1]] / without), atol=2e-3)  # the mean modulation for ten
    with_it = trained.fit(FAMILY.X[rows], y[rows], y[REFERENCES]).predict(FAMILY.X[rows])[-1]
    assert abs(np.log(with_it / without)) > 1e-2, "it does matter"


def test_the_mean_of_the_branches_predicts_what_the_mean_over_modulations_does(trained: HelpPredictor) -> None:
    predictor = trained.fit(FAMILY.X[REFERENCES], target()[REFERENCES])
    network, meta = predictor._network(), predictor._meta(predictor._network().net)
    inputs, embedding = network.inputs(FAMILY.X[:, 1:]), predictor.embedding_.astype(np.float32)
    labels = (0.05 + 0.9 * embedding).astype(np.float32)
    support = nets.Support(inputs[REFERENCES], labels, np.ones_like(labels), embedding)
    noise = np.random.default_rng(0).standard_normal((10, network.net.n_modulations)).astype(np.float32)

    def one(noise: jax.Array) -> jax.Array:
        start, _ = nets.modulate(network.net, meta, embedding, noise)
        return nets.predict_labels(
            network.net, nets.adapt(network.net, start, meta["rate"], (), support), (), inputs, embedding
        )

    apart = np.asarray(jax.jit(jax.vmap(one))(noise))
    many = nets.Support(*(array[None] for array in support))
    adapted, _ = nets.adapt_all(network.net, meta, (), many, noise)
    together = np.asarray(nets.predict_all(network.net, adapted, (), inputs, embedding[None]))[0]
    # A mean over ten modulations is itself that of all to within a third of their spread.
    assert np.abs(together - apart.mean(axis=0)).max() < 0.05 * apart.std(axis=0).mean()


def test_a_reference_that_is_left_out_is_left_out_of_the_embedding_too(trained: HelpPredictor) -> None:
    y = target()[REFERENCES]
    residuals = []
    for last in (y[-1], 1.3 * y[-1]):
        costs = np.append(y[:-1], last)
        residuals.append(trained.fit(FAMILY.X[REFERENCES], costs).loo_residuals_[-1])
    np.testing.assert_allclose(residuals[1] - residuals[0], np.log(1.3), atol=1e-4)


def test_what_the_sources_know_fills_in_a_cost() -> None:
    rng = np.random.default_rng(0)
    known = rng.normal(size=(12, 1)) + rng.normal(size=(12, 2)) @ rng.normal(size=(2, 6))
    assert abs(_impute(known[1:], known[0], 4) - known[0, 4]) < 0.02
    changed = np.where(np.arange(6) == 4, 99.0, known[0])
    assert _impute(known[1:], changed, 4) == _impute(known[1:], known[0], 4)


def test_intervals_reach_the_residual_of_the_rank_that_the_coverage_asks_for(trained: HelpPredictor) -> None:
    predictor = trained.fit(FAMILY.X[REFERENCES], target()[REFERENCES])
    predicted, spread = predictor.predict(FAMILY.X), np.sort(np.abs(predictor.loo_residuals_))
    lower, upper = predictor.predict_interval(FAMILY.X, 0.9)
    np.testing.assert_allclose(np.log(upper / predicted), spread[9])
    np.testing.assert_allclose(np.log(predicted / lower), spread[9])
    np.testing.assert_allclose(np.log(predictor.predict_interval(FAMILY.X, 0.5)[1] / predicted), spread[5])
    lower, upper = predictor.predict_interval(FAMILY.X[:2], 0.95)
    assert lower.tolist() == [0, 0]
    assert upper.tolist() == [np.inf, np.inf], "ten measurements cannot promise 95 %"
    with pytest.raises(ValueError, match=r"coverage is a probability between 0 and 1, such as 0\.9; got 1\.5"):
        predictor.predict_interval(FAMILY.X, 1.5)


def test_predictions_stay_above_zero_and_in_order(trained: HelpPredictor) -> None:
    predictor = trained.fit(FAMILY.X[REFERENCES], target()[REFERENCES])
    free = predictor.predict(FAMILY.X)
    predictor.least_cost_ = 4 * float(free.max())
    bent = predictor.predict(FAMILY.X)
    assert (bent > 0).all()
    np.testing.assert_array_equal(np.argsort(bent), np.argsort(free))


def test_many_draws_at_once_are_as_good_as_one_after_the_other(trained: HelpPredictor) -> None:
    rng, y = np.random.default_rng(0), target()
    rows = np.stack([rng.choice(N, 10, replace=False) for _ in range(3)])
    together = trained.fit_many(FAMILY.X[rows], y[rows], np.tile(y[REFERENCES], (3, 1)))
    for predictor, of_draw in zip(together, rows, strict=True):
        alone = trained.fit(FAMILY.X[of_draw], y[of_draw], y[REFERENCES])
        np.testing.assert_allclose(predictor.predict(FAMILY.X), alone.predict(FAMILY.X), rtol=1e-5)
        np.testing.assert_allclose(predictor.loo_residuals_, alone.loo_residuals_, atol=1e-5)


def test_nothing_is_compiled_again_for_other_episodes_devices_draws_or_numbers_of_architectures(
    trained: HelpPredictor,
) -> None:
    def visit(n: int) -> None:
        HelpPredictor(SOURCES, **SMALL | {"n_episodes": 50 * n}, seed=n).meta_fit(VALIDATION)
        for name in TARGETS[:n]:
            y = target(name)
            trained.fit(FAMILY.X[REFERENCES], y[REFERENCES]).predict(FAMILY.X[: 10 + n])
            trained.fit_many(FAMILY.X[[REFERENCES] * n], y[[REFERENCES] * n])

    visit(1)
    programs = (nets.run_episodes, nets.adapt_all, nets.predict_all)
    compiled = [program._cache_size() for program in programs]
    visit(3)
    assert [program._cache_size() for program in programs] == compiled


def test_meta_training_draws_the_middle_of_what_was_measured() -> None:
    costs = SOURCES.costs.copy()
    costs[np.setdiff1d(np.arange(0, N, 3), REFERENCES), 0] = np.nan
    predictor = HelpPredictor(replace(SOURCES, costs=costs), **SMALL | {"n_episodes": 60}, reference_share=0.25)
    network = predictor._network()
    source = predictor._source(predictor.pool, network)
    chunks = list(predictor._episodes(network.net, source, np.random.default_rng(0)))
    assert [len(chunk.devices) for chunk in chunks] == [50, 10]
    n_of_references = 0
    for place, device in np.ndenumerate(np.asarray(chunks[0].devices)):
        support, queries = np.asarray(chunks[0].support)[place], np.asarray(chunks[0].queries)[place]
        lower, upper = np.nanquantile(costs[:, device], [0.08, 0.92])
        of_references = set(support) == set(REFERENCES)
        n_of_references += of_references
        drawn = queries if of_references else np.append(support, queries)
        assert len(set(drawn)) == len(drawn)
        assert ((lower <= costs[drawn, device]) & (costs[drawn, device] <= upper)).all(), "nor is any of them NaN"
    assert 0.15 < n_of_references / 400 < 0.35


def test_a_clone_keeps_what_is_learned_of_the_pool_and_nothing_of_a_device(trained: HelpPredictor) -> None:
    trained.fit(FAMILY.X[REFERENCES], target()[REFERENCES])
    copy = clone(trained)
    assert copy.get_params(deep=False) == trained.get_params(deep=False)
    with pytest.raises(NotFittedError):
        copy.predict(FAMILY.X)
    copy.fit(FAMILY.X[REFERENCES], target()[REFERENCES])
    np.testing.assert_array_equal(copy.predict(FAMILY.X), trained.predict(FAMILY.X))


def test_a_saved_predictor_predicts_the_same_and_can_adapt_to_another_device(
    trained: HelpPredictor, tmp_path: Path
) -> None:
    space = mobilenet_v3()
    settings = trained.get_params(deep=False) | {"pool": replace(SOURCES, space_fingerprint=space.fingerprint)}
    predictor = HelpPredictor(**settings)
    predictor.meta_weights_ = trained.meta_weights_
    predictor.fit(FAMILY.X[REFERENCES], target()[REFERENCES])
    save_predictor(tmp_path / "p.npz", predictor, space, "latency_ms")
    loaded = load_predictor(tmp_path / "p.npz", space, "latency_ms")
    np.testing.assert_array_equal(loaded.predict_interval(FAMILY.X), predictor.predict_interval(FAMILY.X))
    X, y = FAMILY.X[REFERENCES], target("target1")[REFERENCES]
    np.testing.assert_array_equal(loaded.fit(X, y).predict(FAMILY.X), predictor.fit(X, y).predict(FAMILY.X))


# The network


NET = nets.HelpNet(n_references=3, n_features=6, width=4)
QUICK = {"xla_backend_optimization_level": 0}
QUICK_GRADIENT = jax.jit(nets.episode_gradient, static_argnums=0, compiler_options=QUICK)
QUICK_LOSSES = jax.jit(nets.episode_losses, static_argnums=0, compiler_options=QUICK)


def float64_meta(net: nets.HelpNet) -> nets.Meta:
    """Meta-weights of a tiny network, moved off the corners of its activations, with steps that are large."""
    rng = np.random.default_rng(1)
    meta = nets.initial_weights(net, rng)
    return {
        part: {name: jnp.asarray(array * (100.0 if part == "rate" else 1.0), jnp.float64) for name, array in of.items()}
        for part, of in meta.items()
    }


def test_the_meta_gradient_is_that_of_the_loss_and_leaves_no_second_derivative_out() -> None:
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        source = nets.Source(*map(jnp.asarray, (rng.normal(size=(30, 6)), rng.random((2, 30)), rng.random((2, 3)))))
        draw = nets.Draws(
            jnp.array([1, 0]), jnp.asarray(rng.integers(0, 30, (2, 5))), jnp.asarray(rng.integers(0, 30, (2, 9))),
            jnp.asarray(rng.normal(size=(2, NET.n_modulations))),
        )  # fmt: skip
        meta = float64_meta(NET)

        def loss(net: nets.HelpNet, meta: nets.Meta) -> jax.Array:
            return QUICK_LOSSES(net, meta, (), source, draw).mean()

        direction = jax.tree.map(lambda array: jnp.asarray(rng.normal(size=array.shape)), meta)
        slopes = {}
        for order in (True, False):
            _, gradient = QUICK_GRADIENT(replace(NET, is_second_order=order), meta, (), source, draw)
            slopes[order] = sum(
                float((part * along).sum())
                for part, along in zip(jax.tree.leaves(gradient), jax.tree.leaves(direction), strict=True)
            )
        there, back = (
            float(loss(NET, jax.tree.map(lambda array, along, step=step: array + step * along, meta, direction)))
            for step in (1e-6, -1e-6)
        )
        expected = (there - back) / 2e-6
        assert abs(slopes[True] - expected) < 1e-6 * abs(expected)
        assert abs(slopes[False] - expected) > 1e-3 * abs(expected)


def test_a_modulation_that_is_standard_normal_costs_nothing_and_moves_the_heads_alone() -> None:
    meta = nets.initial_weights(NET, np.random.default_rng(0))
    meta["modulator"] = {name: np.zeros_like(array) for name, array in meta["modulator"].items()}
    n = NET.n_modulations
    meta["modulator"]["1_b"][n:] = np.log(np.expm1(1.0))  # softplus of it is 1
    noise = np.arange(n, dtype=np.float32)
    weights, divergence = nets.modulate(NET, meta, np.ones(3, dtype=np.float32), noise)
    assert abs(float(divergence)) < 1e-4
    moved = {name for name, array in weights.items() if not np.array_equal(array, meta["net"][name])}
    assert moved == {"head0_arch_w", "head0_device_w", "head0_b", "head1_w", "head1_b", "head2_w", "head2_b"}
    w = NET.width
    for name, first in (("head0_arch_w", 0), ("head0_device_w", w), ("head1_w", 2 * w), ("head2_w", 4 * w)):
        expected = meta["net"][name] * (1 + 0.01 * noise[first : first + len(meta["net"][name])])[:, None]
        np.testing.assert_allclose(weights[name], expected, rtol=1e-6)
    np.testing.assert_allclose(weights["head1_b"], meta["net"]["head1_b"] + 0.01 * noise[6 * w + 1], rtol=1e-6)


def test_the_divergence_of_every_task_counts() -> None:
    rng = np.random.default_rng(0)
    meta = nets.initial_weights(NET, rng)
    embeddings = rng.random((2, 3)).astype(np.float32)
    source = nets.Source(np.zeros((4, 6), np.float32), np.zeros((2, 4), np.float32), embeddings)
    noise = np.zeros((2, NET.n_modulations), np.float32)
    rows = np.zeros((2, 2), np.int32)

    def loss(devices: list[int], net_scale: float) -> float:
        scaled = meta | {"net": {name: net_scale * array for name, array in meta["net"].items()}}
        draw = nets.Draws(np.array(devices), rows, rows, noise)
        return float(QUICK_GRADIENT(NET, scaled, (), source, draw)[0])

    divergences = [float(nets.modulate(NET, meta, embedding, noise[0])[1]) for embedding in embeddings]
    assert abs(divergences[0] - divergences[1]) > 0.03
    # Without weights the network predicts 0.01 * mean of a bias's modulation: the squared error is next to nothing.
    np.testing.assert_allclose(loss([0, 1], 0.0), nets.KL_WEIGHT * np.mean(divergences), rtol=1e-3)


def test_flat_weights_become_the_same_weights_again() -> None:
    weights = nets.initial_weights(NET, np.random.default_rng(0))["net"]
    batch = {name: np.stack([array, 2 * array]) for name, array in weights.items()}
    back = nets.unflatten(nets.flatten(batch, batch=1), NET.shapes()["net"])
    assert back.keys() == weights.keys()
    for name, array in back.items():
        np.testing.assert_array_equal(array, batch[name])


# What is refused


def test_settings_that_do_not_fit_the_pool_are_refused_with_what_they_are() -> None:
    for settings, message in (
        ({"encoder": "tree"}, "encoder must be one of one_hot, graph; got 'tree'"),
        ({"encoder": "graph"}, "needs the adjacency of the decisions"),
        ({"encoder": "graph", "adjacency": np.eye(9, k=1)}, "20 columns of options are not equally many for each of 7"),
        ({"references": (1, 1)}, r"two or more different rows of a pool of 128; got \(1, 1\)"),
        ({"references": (1, 128)}, r"two or more different rows of a pool of 128; got \(1, 128\)"),
        ({"n_support": 300}, "supports of 300 needs devices with more measurements"),
    ):
        with pytest.raises(ValueError, match=message):
            HelpPredictor(SOURCES, **SMALL | settings).meta_fit()
    with pytest.raises(ValueError, match="two or more source devices; the pool has 1"):
        HelpPredictor(SOURCES.columns(("source0",)), **SMALL).meta_fit()


def test_a_pool_without_the_cost_of_a_reference_is_refused_with_device_and_row() -> None:
    costs = SOURCES.costs.copy()
    costs[41, 2] = np.nan
    with pytest.raises(ValueError, match=r"measured on every device; on source2 rows \[41\] are not"):
        HelpPredictor(replace(SOURCES, costs=costs), **SMALL).meta_fit()
    with pytest.raises(ValueError, match="of the 10 reference architectures are not in the validation pool"):
        HelpPredictor(SOURCES, **SMALL).meta_fit(VALIDATION.rows(np.setdiff1d(np.arange(N), REFERENCES)))


def test_measurements_that_cannot_be_adapted_to_are_refused(trained: HelpPredictor) -> None:
    X, y = FAMILY.X[REFERENCES], target()[REFERENCES]
    with pytest.raises(RuntimeError, match="call meta_fit before fit"):
        HelpPredictor(SOURCES, **SMALL).fit(X, y)
    with pytest.raises(ValueError, match="2 of the 10 reference architectures are not in X"):
        trained.fit(X[2:], y[2:])
    with pytest.raises(ValueError, match=r"costs must be finite and above 0; the least is 0\.0"):
        trained.fit(X, np.append(y[:-1], 0.0))
    with pytest.raises(ValueError, match=r"there are 10 references; the shape of reference_costs is \(3,\)"):
        trained.fit(X, y, y[:3])
    with pytest.raises(ValueError, match=r"references all cost 2\.0 on a device"):
        trained.fit(X, np.full(10, 2.0))


def test_graph_convolutions_with_shared_nodes_are_those_of_the_whole_graph() -> None:
    options = FAMILY.X[:40, 1:]
    nodes = decision_nodes((OPTIONS,) * D, SIDE_BY_SIDE, options)
    net = nets.HelpNet(n_references=3, n_features=nodes.n_features, width=4, own_links=nodes.own_links)
    weights = nets.initial_weights(net, np.random.default_rng(0))["net"]
    embedding = np.array([0.0, 0.3, 1.0], dtype=np.float32)
    table = (nodes.shared_features, nodes.shared_links)
    found = nets.predict_labels(net, weights, table, jnp.asarray(nodes.inputs(options)), embedding)

    hears = np.eye(D + 3)
    hears[:-1, :-1] += SIDE_BY_SIDE.T
    hears[-1] = 1
    states = np.zeros((40, D + 3, nodes.n_features))
    states[:, 1:-2, :OPTIONS] = options.reshape(40, D, OPTIONS)
    states[:, [0, -2, -1], [OPTIONS, OPTIONS + 1, OPTIONS + 2]] = 1
    for layer in range(4):
        states = np.maximum(hears @ states @ weights[f"arch{layer}_w"] + weights[f"arch{layer}_b"], 0)
    device = embedding
    for layer in range(2):
        device = np.maximum(device @ weights[f"device{layer}_w"] + weights[f"device{layer}_b"], 0)
    both = np.concatenate([states[:, -1], np.tile(device, (40, 1))], axis=1)
    head0 = np.concatenate([weights["head0_arch_w"], weights["head0_device_w"]])
    hidden = np.maximum(both @ head0 + weights["head0_b"], 0)
    hidden = np.maximum(hidden @ weights["head1_w"] + weights["head1_b"], 0)
    np.testing.assert_allclose(found, (hidden @ weights["head2_w"] + weights["head2_b"])[:, 0], rtol=1e-4)
    assert np.std(found) > 0
