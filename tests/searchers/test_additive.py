"""Tables of additive costs: found from a function, and what is said where it is not additive."""

from __future__ import annotations

import numpy as np
import pytest

from hanax.search_spaces import Decision, SearchSpace, fbnet, graph_features, mobilenet_v3, nas_bench_201
from hanax.searchers import TooLargeError, additive_groups, every_network, exact_front, fit_additive


def _fit_macs(space, **settings):
    return fit_additive(space, lambda codes: {"macs": graph_features(space, codes)[1][:, 0]}, ["macs"], **settings)[
        "macs"
    ]


def test_groups_are_what_shapes_a_block_together() -> None:
    groups = additive_groups(mobilenet_v3())
    assert groups[:4] == (
        ("resolution",),
        ("stage1.depth",),
        ("stage1.block1.kernel_size", "stage1.block1.expand_ratio"),
        ("stage1.block2.kernel_size", "stage1.block2.expand_ratio"),
    )
    assert len(groups) == 1 + 5 * 5
    edges = ("edge01", "edge02", "edge12", "edge03", "edge13", "edge23")
    assert additive_groups(nas_bench_201()) == (("resolution",), edges)
    assert additive_groups(fbnet())[1:] == tuple((f"layer{number}",) for number in range(1, 23))


def test_macs_add_up_over_blocks_at_each_resolution_and_the_tables_give_them_for_every_network(toy) -> None:
    fit = _fit_macs(toy.space, per=("resolution",))
    assert fit.is_exact()
    np.testing.assert_allclose(fit.cost(toy.codes), toy.macs, rtol=1e-9)


def test_macs_do_not_add_up_over_blocks_and_resolutions(toy) -> None:
    fit = _fit_macs(toy.space)
    assert not fit.is_exact()
    there = np.abs(fit.cost(toy.codes) - toy.macs).max()
    assert 0.01 * fit.spread < fit.max_residual <= there * (1 + 1e-9)


def test_the_front_of_found_tables_is_the_true_one(toy) -> None:
    def evaluate(codes):
        costs = toy.evaluate(codes)
        return {"latency_ms": costs["latency_ms"], "loss": -costs["macs"]}

    fits = fit_additive(toy.space, evaluate, ["loss", "latency_ms"], per=("resolution",))
    assert all(fit.is_exact() for fit in fits.values())
    steps = {f"{part}_step": fits[name].step for part, name in (("loss", "loss"), ("cost", "latency_ms"))}
    front = exact_front(fits["loss"].cost, fits["latency_ms"].cost, **steps)
    points = np.column_stack([-toy.macs, toy.latency_ms])
    best = {}
    for loss, cost in points[np.lexsort((points[:, 0], points[:, 1]))].tolist():
        if not best or loss < min(best.values()):
            best[cost] = loss
    np.testing.assert_allclose(front.costs, list(best), rtol=1e-7)
    np.testing.assert_allclose(front.losses, list(best.values()), rtol=1e-7)


def test_macs_add_up_over_layers_that_are_always_there() -> None:
    space = fbnet()
    fit = _fit_macs(space, n_random=0, n_checked=20)
    assert fit.is_exact()
    codes = space.sample(np.random.default_rng(1), 5)
    np.testing.assert_allclose(fit.cost(codes), graph_features(space, codes)[1][:, 0])


def test_a_space_of_resolutions_alone_is_one_table() -> None:
    space = SearchSpace("plain", 3, 2, (Decision("resolution", (8, 16, 24)),), ())
    evaluate = {"pixels": np.array([64.0, 256.0, 576.0])}
    fit = fit_additive(space, lambda codes: {"pixels": evaluate["pixels"][codes[:, 0]]}, ["pixels"], per=["resolution"])
    np.testing.assert_allclose(fit["pixels"].cost(np.arange(3, dtype=np.int32)[:, None]), evaluate["pixels"])


def test_tables_too_large_to_fit_are_refused() -> None:
    with pytest.raises(TooLargeError, match="the tables of 2 groups have 15626 entries; at most 4096"):
        _fit_macs(nas_bench_201())


def test_groups_that_overlap_and_conditional_decisions_in_per_are_refused(toy) -> None:
    with pytest.raises(ValueError, match="resolution is named more than once"):
        _fit_macs(toy.space, groups=[("resolution",)], per=("resolution",))
    with pytest.raises(ValueError, match=r"stage1\.block2\.kernel_size has a condition"):
        _fit_macs(toy.space, per=("stage1.block2.kernel_size",))


def test_the_same_seed_gives_the_same_fit(tiny) -> None:
    first, second = (fit_additive(tiny.space, tiny.evaluate, ["accuracy"], seed=3)["accuracy"] for _ in range(2))
    np.testing.assert_array_equal(first.cost(every_network(tiny.space)), second.cost(every_network(tiny.space)))
    assert 0 < first.max_residual < first.spread
