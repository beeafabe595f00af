"""ncnn computes from our files what the network computes."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator

import numpy as np
import pytest
from networks import GRAPHS, case

from hanax.devices import DEVICES, RUNTIMES, AgentError, LocalAgent, check_parity, load_model, run_model, runtime_python
from hanax.supernet import to_ncnn

MAX_ERROR = 1e-4
"""Of a logit, where the logits spread over about 20."""

pytestmark = pytest.mark.skipif(
    runtime_python(RUNTIMES["ncnn"]) is None,
    reason="the Python package ncnn is missing; `hanax devices install ncnn-fp32` adds it",
)


@pytest.fixture(scope="module")
def agent() -> Iterator[LocalAgent]:
    with LocalAgent(DEVICES["ncnn-fp32"]) as running:
        yield running


@pytest.mark.parametrize("name", GRAPHS)
def test_a_model_computes_what_the_network_computes(agent: LocalAgent, name: str) -> None:
    graph, weights, images, logits = case(name)
    assert check_parity(agent, name, to_ncnn(graph, weights), images, logits).max_error <= MAX_ERROR


def test_the_images_of_a_batch_are_run_one_after_another(agent: LocalAgent) -> None:
    graph, weights, images, logits = case("5 channels of 3 px")
    sha256 = load_model(agent, "four", to_ncnn(graph, weights, batch=4), (4, *graph.input_shape), seed=0)
    np.testing.assert_allclose(run_model(agent, "four", sha256, images[:4]), logits[:4], atol=MAX_ERROR)


def test_images_of_another_shape_are_refused(agent: LocalAgent) -> None:
    graph, weights, _, _ = case("5 channels of 3 px")
    with pytest.raises(AgentError, match=r"images of \[1, 5, 3, 4\] are not what the model takes: Input image"):
        load_model(agent, "model", to_ncnn(graph, weights), (1, 5, 3, 4), seed=0)


def test_a_model_without_all_of_its_weights_is_refused(agent: LocalAgent) -> None:
    graph, weights, _, _ = case("5 channels of 3 px")
    whole, cut = zipfile.ZipFile(io.BytesIO(to_ncnn(graph, weights))), io.BytesIO()
    with whole, zipfile.ZipFile(cut, "w") as files:
        files.writestr("model.param", whole.read("model.param"))
        files.writestr("model.bin", whole.read("model.bin")[:-8])
    with pytest.raises(AgentError, match="ncnn cannot read the model"):
        load_model(agent, "model", cut.getvalue(), (1, *graph.input_shape), seed=0)
