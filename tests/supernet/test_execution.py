"""The chain and the masked net take each other's place, and the faster one is taken where it must be measured."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hanax.search_spaces import SearchSpace, mobilenet_v3
from hanax.supernet import Execution, Params, _execution, choose_execution, init_params
from hanax.supernet._execution import EXECUTIONS, step_seconds

BATCH_SIZE = 4
TINY = mobilenet_v3(
    resolutions=(8,), n_classes=10, image_channels=1, kernel_sizes=(3, 5), expand_ratios=(2, 3), depths=(1, 2),
    stem_width=8, stem_stride=1, stage_widths=(8,), stage_strides=(1,), stage_activations=("relu",),
    stage_squeeze_excite=(False,), head_width=16, feature_width=16,
)  # fmt: skip


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as the choice can tell."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")


def seconds(chain_s: float, masked_s: float) -> Callable[..., list[float]]:
    """In place of measurements, of which these are the medians."""
    medians = {"chain": chain_s, "masked": masked_s}
    return lambda execution, *_, **__: [0.0, medians[execution.name], 9.0]


def not_measured(*_: Any, **__: Any) -> NoReturn:
    raise AssertionError("nothing is to be measured here")


def test_both_add_up_the_same_gradient_over_subnets(random_params: Callable[[SearchSpace, int], Params]) -> None:
    params = random_params(TINY, 0)
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(1, 8, 8, BATCH_SIZE)).astype(np.float32))
    dlogits = jnp.asarray(rng.normal(size=(BATCH_SIZE, 10)).astype(np.float32))
    found = {}
    for name, execution in EXECUTIONS.items():
        gradient: Params = jax.tree.map(jnp.zeros_like, params)
        logits = []
        for arch in (TINY.largest, TINY.smallest):
            output, tape = execution.forward_with_tape(TINY, params, arch, x)
            execution.backward_along(tape, dlogits, gradient)
            assert not tape
            logits.append(output)
        found[name] = (logits, gradient)
    for chain, masked in zip(*map(jax.tree.leaves, found.values()), strict=True):
        np.testing.assert_allclose(masked, chain, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["chain", "masked"])
def test_logits_without_a_tape_are_those_with_one(
    name: str, dtype: Any, random_params: Callable[[SearchSpace, int], Params]
) -> None:
    execution = dataclasses.replace(EXECUTIONS[name], dtype=dtype)
    params = random_params(TINY, 0)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 8, 8, BATCH_SIZE)).astype(np.float32))
    logits = execution.logits(TINY, params, TINY.largest, x)
    expected, _ = execution.forward_with_tape(TINY, params, TINY.largest, x)
    assert logits.dtype == expected.dtype == jnp.float32
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)
    exact = EXECUTIONS["chain"].logits(TINY, params, TINY.largest, x)
    assert np.allclose(logits, exact, rtol=1e-4, atol=1e-4) == (dtype == "float32")
    assert np.corrcoef(np.ravel(logits), np.ravel(exact))[0, 1] > 0.999


def test_a_step_of_either_can_be_measured() -> None:
    params = init_params(TINY, 0)
    for execution in EXECUTIONS.values():
        seconds = step_seconds(execution, TINY, params, BATCH_SIZE, repeats=2)
        assert len(seconds) == 2
        assert min(seconds) > 0.0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))  # and are still there


def test_on_a_cpu_the_chain_is_taken_unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_execution, "step_seconds", not_measured)
    chosen = choose_execution(TINY, init_params(TINY, 0), BATCH_SIZE)
    assert chosen == Execution("chain", "on a CPU, where the masked net would compute the largest subnet each time")


@pytest.mark.usefixtures("on_gpu")
@pytest.mark.parametrize("setting", ["chain", "masked"])
def test_a_setting_decides_unmeasured(setting: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_execution, "step_seconds", not_measured)
    chosen = choose_execution(TINY, init_params(TINY, 0), BATCH_SIZE, setting=setting)
    assert chosen == Execution(setting, "as the recipe says")


@pytest.mark.usefixtures("on_gpu")
@pytest.mark.parametrize(("chain_s", "masked_s", "faster"), [(0.25, 0.5, "chain"), (0.5, 0.25, "masked")])
def test_elsewhere_the_faster_one_is_taken_and_says_by_how_much(
    chain_s: float, masked_s: float, faster: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_execution, "step_seconds", seconds(chain_s, masked_s))
    chosen = choose_execution(TINY, init_params(TINY, 0), BATCH_SIZE, dtype="bfloat16")
    assert (chosen.name, chosen.dtype, chosen.chain_s, chosen.masked_s) == (faster, "bfloat16", chain_s, masked_s)
    assert f"{chain_s * 1e3:.1f} ms as a chain and {masked_s * 1e3:.1f} ms as the masked net" in chosen.reason
