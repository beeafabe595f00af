"""How sensitive layers are to rounding: against exact Hessians, exact losses, and all assignments of a small net."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from networks import case
from scipy.stats import kendalltau

from hanax.search_spaces import INPUT, Graph, Operator, mobilenet_v3
from hanax.supernet import (
    FoldedNet,
    PolicyEvaluator,
    Sensitivities,
    StaticNet,
    fold_batch_norm,
    hessian_traces,
    hutchinson_traces,
    kernel_layers,
    load_images,
    random_weights,
    sensitivities,
    slot_layers,
)
from hanax.supernet._folded_net import compute, cross_entropies, network_input

LAYERS = {name: (name,) for name in ("conv", "depthwise", "pointwise", "hidden", "classify")}
FORMATS = [("int2", "float32"), ("int3", "float32"), ("int4", "float32")]
N_IMAGES = 256


def digits_graph(width: int) -> Graph:
    """Every kind of layer with a kernel, on images of 8 x 8 pixels."""
    wide = 2 * width
    return Graph(
        (1, 8, 8),
        (
            Operator("conv", "conv", (INPUT,), (1, 8, 8), (width, 4, 4), 3, 2, has_bias=True, activation="relu"),
            Operator("depthwise", "conv", ("conv",), (width, 4, 4), (width, 4, 4), 3, 1, width, has_bias=True,
                     activation="relu"),
            Operator("pointwise", "conv", ("depthwise",), (width, 4, 4), (wide, 4, 4), has_bias=True,
                     activation="relu"),
            Operator("pool", "global_pool", ("pointwise",), (wide, 4, 4), (wide, 1, 1)),
            Operator("hidden", "dense", ("pool",), (wide, 1, 1), (wide, 1, 1), has_bias=True, activation="hswish"),
            Operator("classify", "dense", ("hidden",), (wide, 1, 1), (10, 1, 1), has_bias=True),
        ),
    )  # fmt: skip


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray]:
    """Normalised images and their classes."""
    dataset = load_images("digits")
    return dataset.x_train.astype(np.float32).transpose(0, 3, 1, 2) / 64 - 1, dataset.y_train


@pytest.fixture(scope="module")
def nets(digits: tuple[np.ndarray, np.ndarray]) -> list[FoldedNet]:
    """The net, trained a little from three seeds."""
    graph, optimizer = digits_graph(12), optax.adam(5e-3)

    @jax.jit
    def step(params, state, x, labels):
        def loss(params):
            kernels, biases = ({name: entries[of] for name, entries in params.items()} for of in ("kernel", "bias"))
            return cross_entropies(compute(graph, kernels, biases, x, twice=True)[0], labels).mean()

        updates, state = optimizer.update(jax.grad(loss)(params), state)
        return optax.apply_updates(params, updates), state

    images, labels = digits
    trained = []
    for seed in range(3):
        rng = np.random.default_rng(seed)
        params = jax.tree.map(jnp.asarray, random_weights(graph, rng))
        state = optimizer.init(params)
        for _ in range(400):
            rows = rng.integers(0, len(images), 128)
            params, state = step(params, state, network_input(images[rows]), jnp.asarray(labels[rows], jnp.int32))
        trained.append(FoldedNet(graph, jax.tree.map(np.asarray, params)))
    return trained


@pytest.fixture(scope="module")
def small() -> tuple[FoldedNet, np.ndarray, np.ndarray]:
    """A net of few weights, for which the whole Hessian fits, and images."""
    rng = np.random.default_rng(0)
    graph = digits_graph(3)
    images = rng.standard_normal((20, 1, 8, 8), dtype=np.float32)
    return FoldedNet(graph, random_weights(graph, rng)), images, rng.integers(0, 10, 20)


@pytest.fixture(scope="module")
def exact(small: tuple[FoldedNet, np.ndarray, np.ndarray]) -> tuple[dict, dict]:
    """Gradient and whole Hessian of the loss of `small` by its kernels, by JAX."""
    net, images, labels = small

    def loss(kernels):
        logits, _ = compute(net.graph, kernels, net.biases, network_input(images), twice=True)
        return cross_entropies(logits, jnp.asarray(labels)).mean()

    return jax.jit(lambda kernels: (jax.grad(loss)(kernels), jax.hessian(loss)(kernels)))(net.kernels)


@pytest.mark.parametrize("name", ["random 1", "5x5 on 7 px", "5 channels of 3 px"])
@pytest.mark.parametrize("twice", [False, True])
def test_a_folded_net_computes_what_the_flax_net_does(name: str, twice: bool) -> None:
    graph, weights, images, logits = case(name)
    net = FoldedNet(graph, fold_batch_norm(graph, weights))
    run = jax.jit(lambda x: compute(graph, net.kernels, net.biases, x, twice=twice)[0],
                  compiler_options={"xla_backend_optimization_level": 0})  # fmt: skip
    assert np.asarray(run(network_input(images))) == pytest.approx(logits, rel=1e-3, abs=1e-3)


def test_traces_of_a_known_quadratic() -> None:
    rng = np.random.default_rng(0)
    root = rng.normal(size=(7, 7))
    hessian = root @ root.T
    like = {"a": jnp.zeros(4), "b": jnp.zeros((3, 1))}

    def product(v: dict) -> dict:
        found = hessian @ np.concatenate([np.ravel(v["a"]), np.ravel(v["b"])])
        return {"a": jnp.asarray(found[:4]), "b": jnp.asarray(found[4:, None])}

    traces = hutchinson_traces(product, like, n_probes=400)
    for name, part in (("a", slice(4)), ("b", slice(4, None))):
        expected = np.trace(hessian[part, part])
        assert abs(traces[name].mean - expected) < 4 * traces[name].standard_error < 0.3 * expected
    diagonal = hutchinson_traces(lambda v: {"a": 3.0 * v["a"]}, {"a": jnp.zeros(5)}, n_probes=2)
    assert (diagonal["a"].mean, diagonal["a"].standard_error) == (15.0, 0.0)
    with pytest.raises(ValueError, match="at least 2"):
        hutchinson_traces(product, like, n_probes=1)


def test_traces_of_a_net_are_those_of_its_whole_hessian(small, exact) -> None:
    net, images, labels = small
    traces = hessian_traces(net, images, labels, n_probes=200)
    for name, trace in traces.items():
        size = trace.n_values
        expected = float(np.trace(np.asarray(exact[1][name][name]).reshape(size, size)))
        assert abs(trace.mean - expected) < 4 * trace.standard_error
    assert {"conv", "pointwise"} < {name for name, trace in traces.items() if trace.standard_error < trace.mean / 4}


def test_hessian_terms_are_those_of_the_whole_hessian(small, exact) -> None:
    net, images, labels = small
    found = sensitivities(net, images, labels, FORMATS[:2], layers=LAYERS, method="hessian")
    gradient, hessian = jax.tree.map(np.asarray, exact)
    names = list(LAYERS)
    errors = {
        (layer, option): net.rounded_kernels(2 + option)[name]["kernel"] - net.weights[name]["kernel"]
        for (layer, name), option in itertools.product(enumerate(names), range(2))
    }

    def product(first: tuple[int, int], second: tuple[int, int]) -> float:
        a, b = errors[first], errors[second]
        return float(a.ravel() @ hessian[names[first[0]]][names[second[0]]].reshape(a.size, b.size) @ b.ravel())

    for (layer, option), error in errors.items():
        expected = float((gradient[names[layer]] * error).sum()) + product((layer, option), (layer, option)) / 2
        assert found.single[layer, option] == pytest.approx(expected, rel=1e-3, abs=1e-5)
    for first, second in itertools.product(errors, errors):
        expected = product(first, second) if first[0] != second[0] else 0.0
        assert found.pairs[(*first, *second)] == pytest.approx(expected, rel=1e-3, abs=1e-5)
    assert found.n_evaluations == 11


def test_hawq_terms_are_traces_times_rounding_errors(small) -> None:
    net, images, labels = small
    found = sensitivities(net, images, labels, FORMATS[:1], layers=LAYERS, method="hawq", n_probes=4)
    error = net.rounded_kernels(2)["hidden"]["kernel"] - net.weights["hidden"]["kernel"]
    trace = found.traces["hidden"]
    assert found.single[3, 0] == pytest.approx(trace.mean / trace.n_values * np.square(error).sum() / 2)
    assert found.n_evaluations == 5 and not found.pairs.any()


def test_perturbations_predict_one_and_two_rounded_layers_exactly(small) -> None:
    net, images, labels = small
    options = [("int2", "int4"), ("e2m1", "e4m3"), ("float32", "float32")]
    found = sensitivities(net, images, labels, options, layers=LAYERS)
    choices = np.full((100, 5), 2)
    pairs = itertools.combinations(itertools.product(range(5), range(2)), 2)
    for row, two in zip(choices, pairs, strict=False):
        for layer, option in two:
            row[layer] = option
    true = PolicyEvaluator(net, images, labels, options, layers=LAYERS)(choices)
    assert found.predict(choices) == pytest.approx(true.losses, abs=1e-5)
    assert found.n_evaluations == 1 + 10 + 40
    assert not found.single[:, 2].any(), "float32 adds nothing"
    text = str(found)
    assert "int2/int4" in text and "depthwise" in text and "largest term of a pair" in text


@pytest.mark.parametrize("seed", range(3))
def test_terms_of_pairs_order_all_assignments_better_than_a_diagonal_hessian(nets, digits, seed: int) -> None:
    net, images, labels = nets[seed], digits[0][:N_IMAGES], digits[1][:N_IMAGES]
    choices = np.array(list(itertools.product(range(3), repeat=5)))
    true = PolicyEvaluator(net, images, labels, FORMATS, layers=LAYERS)(choices).losses

    def tau(found: Sensitivities, *, with_pairs: bool = True) -> float:
        return float(kendalltau(found.predict(choices, with_pairs=with_pairs), true)[0])

    hawq, hessian, perturbation = (
        sensitivities(net, images, labels, FORMATS, layers=LAYERS, method=method)
        for method in ("hawq", "hessian", "perturbation")
    )
    assert tau(perturbation) > 0.75
    assert tau(perturbation) > tau(hessian) > max(tau(hawq), tau(hessian, with_pairs=False))
    assert tau(perturbation) > tau(perturbation, with_pairs=False)


def test_layers_of_a_space_are_those_that_its_policy_decides_about() -> None:
    space = mobilenet_v3(resolutions=(8,), n_classes=10, image_channels=1, kernel_sizes=(3,), expand_ratios=(2,),
                         depths=(1, 2), stage_widths=(8,), stage_strides=(1,), stage_activations=("relu",),
                         stage_squeeze_excite=(True,), stem_width=8)  # fmt: skip
    layers = slot_layers(space, space.smallest)
    assert list(layers) == ["first", "stage1.block1"]
    assert layers["stage1.block1"] == tuple(f"stage1.block1.{name}" for name in ("expand", "depthwise", "project"))
    own = kernel_layers(space.graph(space.smallest))
    assert {"stem.conv", "head.expand"} == set(own) - {name for names in layers.values() for name in names}


def test_what_a_base_of_8_bits_says_of_layers_without_options(small) -> None:
    net, images, labels = small
    evaluate = PolicyEvaluator(net, images, labels, [("int8", "int8")], layers=LAYERS, base=("int8", "int8"))
    scores = evaluate(np.array([[-1] * 5, [0] * 5]))
    assert scores.losses[0] == scores.losses[1]
    logits = StaticNet(net.graph, net.weights)(images)
    expected = float(cross_entropies(logits, jnp.asarray(labels)).mean())
    assert scores.losses[0] == pytest.approx(expected, abs=0.02)
    assert 0 <= scores.accuracies[0] <= 1


def test_what_does_not_fit_is_refused(small) -> None:
    net, images, labels = small
    with pytest.raises(ValueError, match="must be float32"):
        sensitivities(net, images, labels, [("int4", "int8")], layers=LAYERS, method="hawq")
    with pytest.raises(ValueError, match="layer x has none"):
        PolicyEvaluator(net, images, labels, FORMATS, layers={"x": ()})
    with pytest.raises(ValueError, match="pool is not"):
        PolicyEvaluator(net, images, labels, FORMATS, layers={"x": ("pool",)})
    with pytest.raises(ValueError, match="0 images"):
        PolicyEvaluator(net, images[:0], labels[:0], FORMATS, layers=LAYERS)
    with pytest.raises(ValueError, match=r"shape \(m, 5\)"):
        PolicyEvaluator(net, images, labels, FORMATS, layers=LAYERS)(np.zeros((1, 4), int))
