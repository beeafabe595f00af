"""A subnet in the supernet is the subnet on its own; calibration decides what it is worth and sees training images."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hanax.search_spaces import Arch, SearchSpace, SpaceMismatchError
from hanax.supernet import (
    Evaluator,
    Params,
    Split,
    StaticNet,
    Subnet,
    UncalibratedError,
    Weights,
    check_onnx,
    shared_work,
    slice_weights,
    supernet_fingerprint,
    to_mlir,
    to_onnx,
    to_stablehlo,
)
from hanax.supernet._trie import BlockPath, block_path, common_length, visits

QUICK = {"xla_backend_optimization_level": 0}  # each is run once: the compiler's own time is what counts
MakeEvaluator = Callable[..., Evaluator]
RandomParams = Callable[[SearchSpace, int], Params]


def sample(space: SearchSpace, seed: int, n: int) -> list[Arch]:
    return space.decode(space.sample(np.random.default_rng(seed), n))


def validation_images(evaluator: Evaluator, arch: Arch) -> np.ndarray:
    """The images that `evaluator` scores `arch` on, as inputs of a network of its own."""
    return np.asarray(evaluator._prepared(arch)).transpose(3, 0, 1, 2)[evaluator.n_calibration :]


def logits_of(subnet: Subnet, images: np.ndarray) -> np.ndarray:
    return np.asarray(jax.jit(StaticNet(subnet.graph, subnet.weights), compiler_options=QUICK)(images))


def statistics_of(weights: Weights) -> dict[str, np.ndarray]:
    return {
        f"{name}.{entry}": entries[entry] for name, entries in weights.items() for entry in ("mean", "variance")
        if entry in entries
    }  # fmt: skip


# ---- slice = extract -------------------------------------------------------------------------------------------


@pytest.mark.slow
@settings(max_examples=10)
@given(data=st.data(), seed=st.integers(0, 1000))
def test_a_subnet_in_the_supernet_gives_the_logits_of_the_extracted_one(
    data: st.DataObject, seed: int, space: SearchSpace, make_evaluator: MakeEvaluator, random_params: RandomParams
) -> None:
    indices = [data.draw(st.integers(0, int(count) - 1)) for count in space.option_counts]
    arch = space.decode(space.canonical(np.array([indices])))[0]
    evaluator = make_evaluator(random_params(space, seed))
    in_supernet = evaluator.logits(arch)
    alone = logits_of(evaluator.extract(arch), validation_images(evaluator, arch))
    error = np.abs(in_supernet - alone) / np.maximum(1.0, np.abs(in_supernet))
    assert error.max() < 1e-5, (str(arch), error.max())


def test_the_largest_and_smallest_subnet_of_a_trained_supernet_extract_exactly_too(
    space: SearchSpace, evaluator: Evaluator
) -> None:
    for arch in (space.largest, space.smallest):
        in_supernet = evaluator.logits(arch)
        alone = logits_of(evaluator.extract(arch), validation_images(evaluator, arch))
        np.testing.assert_array_less(np.abs(in_supernet - alone), 1e-5 * np.maximum(1.0, np.abs(in_supernet)))


def test_the_exported_onnx_model_gives_the_logits_of_the_flax_net(space: SearchSpace, evaluator: Evaluator) -> None:
    for arch in [space.largest, *sample(space, 7, 2)]:
        subnet = evaluator.extract(arch)
        model = to_onnx(subnet.graph, subnet.weights, batch=None)
        assert check_onnx(model, subnet.graph, subnet.weights, validation_images(evaluator, arch)) <= 1e-4


def test_a_subnet_takes_the_first_blocks_of_a_stage(space: SearchSpace, trained: Any) -> None:
    slots = {
        name.rpartition(".")[0].removesuffix(".se") for name in slice_weights(space, trained.params, space.smallest)
    }
    assert slots == {"stem", "first", "stage1.block1", "stage2.block1", "head"}


# ---- scores ----------------------------------------------------------------------------------------------------


def test_scoring_together_gives_exactly_the_accuracies_of_scoring_one_by_one(
    space: SearchSpace, evaluator: Evaluator, blocks_run: list[int]
) -> None:
    archs = sample(space, 1, 12)
    archs += archs[:2]  # duplicates are welcome
    one_by_one = [evaluator.accuracies([arch])[0] for arch in archs]
    needed = len(blocks_run)
    results: list[tuple[Arch, float]] = []
    together = evaluator.accuracies(archs, on_result=lambda arch, accuracy: results.append((arch, accuracy)))
    np.testing.assert_array_equal(together, one_by_one)
    assert 0 < len(blocks_run) - needed < 0.8 * needed, "shared beginnings are computed once"
    assert sorted(map(str, (arch for arch, _ in results))) == sorted(map(str, archs))
    assert all(together[archs.index(arch)] == accuracy for arch, accuracy in results)
    assert len(set(together)) > 3, "the subnets differ"


def test_accuracy_is_the_share_of_validation_images_that_the_extracted_net_gets_right(
    space: SearchSpace, split: Split, evaluator: Evaluator
) -> None:
    arch = space.largest
    predicted = logits_of(evaluator.extract(arch), validation_images(evaluator, arch)).argmax(axis=1)
    expected = (predicted == split.y_validation[: evaluator.n_validation]).mean()
    assert evaluator.accuracies([arch])[0] == expected > 0.8


def block_runs(paths: list[BlockPath], order: tuple[int, ...]) -> int:
    """Blocks to run in that order when each visit reuses what it has in common with the one before."""
    ordered = [(), *(paths[index] for index in order)]
    return sum(
        # The first part of a path is its resolution, which takes no block.
        len(path) - max(common_length(before, path), 1)
        for before, path in itertools.pairwise(ordered)
    )


def test_no_order_of_visiting_runs_fewer_blocks(space: SearchSpace) -> None:
    for seed in range(4):
        archs = sample(space, seed, 6)
        paths = [block_path(space, arch) for arch in archs]
        runs = [block_runs(paths, order) for order in itertools.permutations(range(6))]
        ours = block_runs(paths, tuple(visit.index for visit in visits(space, archs)))
        nodes = {path[:length] for path in paths for length in range(2, len(path) + 1)}
        assert ours == min(runs) == len(nodes) == shared_work(space, archs).block_runs
        assert ours < max(runs), "the order matters"


def test_shared_work_is_the_work_that_is_done(space: SearchSpace, evaluator: Evaluator, blocks_run: list[int]) -> None:
    archs = sample(space, 4, 20)
    archs += archs[:3]
    evaluator.accuracies(archs)
    work = shared_work(space, archs)
    assert len(blocks_run) == work.block_runs < work.block_runs_alone == sum(len(space.blocks(arch)) for arch in archs)
    assert work.macs_alone == sum(space.graph(arch).macs for arch in archs)
    assert work.macs_ratio == work.macs / work.macs_alone < 1.0
    alone = shared_work(space, archs[:1])
    assert alone.macs_ratio == 1.0 and alone.macs == space.graph(archs[0]).macs
    assert shared_work(space, []).macs_ratio == 1.0


def test_outputs_are_kept_only_where_a_later_subnet_goes_another_way(space: SearchSpace) -> None:
    archs = sample(space, 5, 30)
    walk = visits(space, archs)
    for position, visit in enumerate(walk):
        later = {common_length(visit.path, other.path) for other in walk[position + 1 :]}
        assert later - {0} <= visit.branches, "all that is needed again is kept"
        kept_anew = {length for length in visit.branches if length > visit.n_shared}
        assert kept_anew <= later, "and nothing else"


def test_the_fingerprint_of_a_supernet_follows_its_weights(space: SearchSpace, random_params: RandomParams) -> None:
    params = random_params(space, 0)
    assert supernet_fingerprint(params) == supernet_fingerprint(random_params(space, 0))
    changed = jax.tree.map(jax.numpy.array, params)
    changed["head"]["classify"]["bias"] = changed["head"]["classify"]["bias"].at[0].add(1e-6)
    assert supernet_fingerprint(changed) != supernet_fingerprint(params)


def test_no_subnets_have_no_accuracies(evaluator: Evaluator) -> None:
    assert evaluator.accuracies([]).shape == (0,)


@pytest.mark.parametrize(("counts", "message"), [
    ({"n_calibration": 0}, r"n_calibration must lie between 1 and the 1151 images there are; got 0"),
    ({"n_calibration": 1152}, r"n_calibration must lie between 1 and the 1151 images there are; got 1152"),
    ({"n_validation": 288}, r"n_validation must lie between 1 and the 287 images there are; got 288"),
])  # fmt: skip
def test_more_images_than_there_are_are_refused(
    counts: dict[str, int], message: str, space: SearchSpace, split: Split, trained: Any
) -> None:
    with pytest.raises(ValueError, match=message):
        Evaluator(space, trained.params, split, **({"n_calibration": 8, "n_validation": 8} | counts))


# ---- calibration -----------------------------------------------------------------------------------------------


def test_without_calibration_a_subnet_is_far_worse(space: SearchSpace, split: Split, evaluator: Evaluator) -> None:
    labels = split.y_validation[: evaluator.n_validation]
    for arch in (space.largest, space.smallest):
        subnet, images = evaluator.extract(arch), validation_images(evaluator, arch)
        neutral = {"mean": 0.0, "variance": 1.0}
        uncalibrated = dataclasses.replace(subnet, weights={
            operator: {name: np.full_like(array, neutral.get(name, 0.0)) if name in neutral else array
                       for name, array in entries.items()}
            for operator, entries in subnet.weights.items()
        })  # fmt: skip
        calibrated_accuracy, accuracy = (
            (logits_of(net, images).argmax(axis=1) == labels).mean() for net in (subnet, uncalibrated)
        )
        assert calibrated_accuracy > 0.6
        assert accuracy < calibrated_accuracy - 0.3


def test_statistics_of_another_subnet_do_not_do(space: SearchSpace, split: Split, evaluator: Evaluator) -> None:
    """Why each subnet is calibrated: with the largest one's statistics, where they fit, a small one is worse."""
    labels = split.y_validation[: evaluator.n_validation]
    arch = space.smallest
    subnet, images = evaluator.extract(arch), validation_images(evaluator, arch)
    largest = statistics_of(evaluator.extract(space.largest).weights)
    borrowed = dataclasses.replace(subnet, weights={
        operator: {name: largest.get(f"{operator}.{name}", array)[: len(array)] for name, array in entries.items()}
        for operator, entries in subnet.weights.items()
    })  # fmt: skip
    own, foreign = ((logits_of(net, images).argmax(axis=1) == labels).mean() for net in (subnet, borrowed))
    assert foreign < own


def test_statistics_come_from_the_training_images_alone(
    space: SearchSpace, split: Split, make_evaluator: MakeEvaluator
) -> None:
    def statistics(**changes: np.ndarray) -> dict[str, np.ndarray]:
        subnet = make_evaluator(split=dataclasses.replace(split, **changes)).extract(space.largest)
        return statistics_of(subnet.weights)

    original = statistics()
    assert len(original) == 2 * sum(op.has_norm for op in space.graph(space.largest).operators)
    of_other_validation = statistics(
        x_validation=255 - split.x_validation, y_validation=(split.y_validation + 1) % space.n_classes
    )
    of_other_labels = statistics(y_train=(split.y_train + 1) % space.n_classes)
    of_other_training = statistics(x_train=255 - split.x_train)
    for name, values in original.items():
        np.testing.assert_array_equal(of_other_validation[name], values, err_msg=name)
        np.testing.assert_array_equal(of_other_labels[name], values, err_msg=name)
        # The mean of what directly follows a batch norm is the same for all images.
        assert name.endswith("mean") or not np.allclose(of_other_training[name], values, rtol=1e-3), name


def test_statistics_are_those_of_the_first_operator_over_the_training_images(
    space: SearchSpace, split: Split, evaluator: Evaluator
) -> None:
    weights = evaluator.extract(space.smallest).weights["stem.conv"]
    images = np.asarray(evaluator._prepared(space.smallest))[..., : evaluator.n_calibration]  # 1 channel
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(images[0], ((1, 1), (1, 1), (0, 0))), (3, 3), (0, 1))
    convolved = np.einsum("hwnab,oab->ohwn", windows.astype(np.float64), weights["kernel"][:, 0])
    np.testing.assert_allclose(weights["mean"], convolved.mean(axis=(1, 2, 3)), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(weights["variance"], convolved.var(axis=(1, 2, 3)), rtol=1e-4)


@pytest.mark.parametrize("use", ["Subnet", "StaticNet", "to_onnx", "to_stablehlo", "to_mlir"])
def test_a_subnet_without_statistics_is_refused(use: str, space: SearchSpace, trained: Any) -> None:
    arch = space.largest
    graph, weights = space.graph(arch), slice_weights(space, trained.params, arch)
    uses: dict[str, Callable[[], object]] = {
        "Subnet": lambda: Subnet(arch, graph, weights, space.fingerprint, (0.0,), (1.0,), 1),
        "StaticNet": lambda: StaticNet(graph, weights),
        "to_onnx": lambda: to_onnx(graph, weights),
        "to_stablehlo": lambda: to_stablehlo(graph, weights),
        "to_mlir": lambda: to_mlir(graph, weights),
    }
    with pytest.raises(
        UncalibratedError, match=r"batch norms have no mean and variance, the first after first\.depthwise"
    ):
        uses[use]()


# ---- subnets on disk -------------------------------------------------------------------------------------------


def test_a_saved_subnet_comes_back_whole(space: SearchSpace, evaluator: Evaluator, tmp_path: Path) -> None:
    subnet = evaluator.extract(space.smallest)
    subnet.save(tmp_path / "winner")
    loaded = Subnet.load(tmp_path / "winner", space)
    for field in dataclasses.fields(Subnet):
        if field.name != "weights":
            assert getattr(loaded, field.name) == getattr(subnet, field.name)
    jax.tree.map(np.testing.assert_array_equal, loaded.weights, subnet.weights)
    assert sorted(path.name for path in (tmp_path / "winner").iterdir()) == ["subnet.json", "weights.npz"]


def test_a_subnet_of_another_space_is_refused(space: SearchSpace, evaluator: Evaluator, tmp_path: Path) -> None:
    evaluator.extract(space.smallest).save(tmp_path)
    other = dataclasses.replace(space, image_channels=3)
    with pytest.raises(SpaceMismatchError, match=f"{space.fingerprint}.*{other.fingerprint}"):
        Subnet.load(tmp_path, other)
