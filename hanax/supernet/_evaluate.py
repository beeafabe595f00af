"""What a subnet is worth: calibration of the batch norms and scoring in one pass, many subnets as a trie.

Inherited weights were never trained with one subnet's own batch-norm statistics, so they must be recomputed for it
(Cai et al., 2020: on training images). Here calibration images and images to score go through each block together:
the statistics come from the first, exactly, and normalise both. A subnet cannot be scored without them. Only a race
scores more images in a second pass, with the statistics that the first one found.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from hanax.search_spaces import INPUT, Arch, SearchSpace, precision_plan
from hanax.supernet._blocks import Norms, net_of
from hanax.supernet._chain import Params, Progress, compile_chain, evaluate_block, prepare
from hanax.supernet._fake_quant import Calibration, learned_factor
from hanax.supernet._images import Split
from hanax.supernet._layers import Statistics
from hanax.supernet._quantized_blocks import STEPS, range_name
from hanax.supernet._quantized_net import QuantizedNet, assemble, check_integers, quantized_kernel
from hanax.supernet._racing import OnScored, Outcome, Rules, best_rules, drawn_order, front_rules, hold_race, looks_of
from hanax.supernet._subnet import Subnet
from hanax.supernet._trie import BlockPath, block_path, visits
from hanax.supernet._weights import Weights

FoundStatistics = dict[BlockPath, dict[str, Statistics]]
"""Batch-norm statistics per operator of the block at the end of a path."""


class Evaluator:
    """Scores and extracts subnets of one trained supernet on one set of images.

    Args:
        space: The supernet's search space.
        params: Its weights.
        split: Calibration images come from its training part, images to score from its validation part.
        n_calibration: Training images that set the batch norms; the first ones, so every subnet sees the same.
        n_validation: Validation images to score on.
        calibration: How the ranges of quantized tensors are found on the calibration images, see `activation_range`.

    Raises:
        ValueError: A count is below 1, or the split has fewer images than asked for.
    """

    def __init__(
        self,
        space: SearchSpace,
        params: Params,
        split: Split,
        *,
        n_calibration: int,
        n_validation: int,
        calibration: Calibration = "minmax",
    ) -> None:
        for name, wanted, there in (
            ("n_calibration", n_calibration, len(split.x_train)),
            ("n_validation", n_validation, len(split.x_validation)),
        ):
            if not 1 <= wanted <= there:
                raise ValueError(f"{name} must lie between 1 and the {there} images there are; got {wanted}")
        self.space = space
        self.params = params
        self.split = split
        self.n_calibration = n_calibration
        self.n_validation = n_validation
        self.calibration: Calibration = calibration
        self._validation: UInt8[np.ndarray, "n h w c"] = split.x_validation[:n_validation]
        self._images: UInt8[np.ndarray, "n h w c"] = np.concatenate([split.x_train[:n_calibration], self._validation])
        self._labels: Int[np.ndarray, " n"] = split.y_validation[:n_validation]

    def compile(self, on_progress: Progress | None = None, *, first: int | None = None) -> None:
        """Compile every executable now, in parallel; otherwise each is compiled when first needed.

        Args:
            first: Compile for a race that scores that many images at a time; by default for scores on all images.
        """
        n_scored = self.n_validation if first is None else min(first, self.n_validation)
        compile_chain(
            self.space,
            self.params,
            self.n_calibration + n_scored,
            n_statistics=self.n_calibration,
            n_given=n_scored if n_scored < self.n_validation else None,
            calibration=self.calibration,
            on_progress=on_progress,
        )

    def _prepared(self, arch: Arch, images: UInt8[np.ndarray, "n h w c"] | None = None) -> jax.Array:
        """Input of `arch`, for the calibration images and those to score unless other `images` are given."""
        chosen = self._images if images is None else images
        prepared: jax.Array = prepare(chosen, self.split.mean, self.split.std, self.space.resolution(arch))
        return prepared

    def _predictions(
        self,
        archs: Sequence[Arch],
        images: UInt8[np.ndarray, "n h w c"],
        norms: Callable[[BlockPath], Norms],
        found: FoundStatistics | None = None,
    ) -> Iterator[tuple[int, Int[np.ndarray, " n"]]]:
        """Index of each of `archs` and its class for each of `images`, in the order of visiting.

        Args:
            norms: What normalises the block at the end of a path, see `evaluate_block`.
            found: Gets the statistics of every block run.
        """
        outputs: dict[int, jax.Array] = {}  # by how many parts of the path they are the output of
        for visit in visits(self.space, archs):
            arch = archs[visit.index]
            outputs = {length: output for length, output in outputs.items() if length <= visit.n_shared}
            x = outputs[visit.n_shared] if visit.n_shared else self._prepared(arch, images)
            blocks = [None, *self.space.blocks(arch)]
            for length in range(visit.n_shared, len(blocks)):
                placed, path = blocks[length], visit.path[: length + 1]
                if placed is not None:
                    x, statistics = evaluate_block(placed, self.params, x, norms(path), calibration=self.calibration)
                    if found is not None:
                        found[path] = statistics
                if length + 1 in visit.branches:
                    outputs[length + 1] = x
            yield visit.index, np.asarray(x).argmax(axis=1)

    def correct(self, archs: Sequence[Arch], on_scored: OnScored | None = None) -> Bool[np.ndarray, "m n"]:
        """Whether each of `archs`, after calibration, is right on each of the images to score.

        Architectures are visited as a trie over their blocks: what two share from the start is computed once.

        Args:
            on_scored: Called with each architecture, 0, and its row as soon as it is known, in the order of visiting.
        """
        correct = np.zeros((len(archs), self.n_validation), dtype=bool)
        for index, predicted in self._predictions(archs, self._images, lambda _: self.n_calibration):
            correct[index] = predicted[self.n_calibration :] == self._labels
            if on_scored is not None:
                on_scored(archs[index], 0, correct[index])
        return correct

    def accuracies(
        self, archs: Sequence[Arch], on_result: Callable[[Arch, float], None] | None = None
    ) -> Float[np.ndarray, " m"]:
        """Validation accuracy of each of `archs` after calibration, in [0, 1]; see `correct`.

        Args:
            on_result: Called with each architecture and its accuracy as soon as it is known, in the order of visiting.
        """

        def pass_on(arch: Arch, _: int, right: Bool[np.ndarray, " n"]) -> None:
            if on_result is not None:
                on_result(arch, float(right.mean()))

        accuracies: Float[np.ndarray, " m"] = self.correct(archs, pass_on).mean(axis=1)
        return accuracies

    def race(
        self,
        archs: Sequence[Arch],
        costs: Float[np.ndarray, "m c"] | None = None,
        *,
        keep: int | None = None,
        first: int = 500,
        confidence: float = 0.99,
        known: Mapping[Arch, Bool[np.ndarray, " n"]] | None = None,
        on_scored: OnScored | None = None,
        on_result: Callable[[Outcome], None] | None = None,
    ) -> list[Outcome]:
        """How each of `archs` fares on the images to score when those that are beaten beyond doubt are stopped.

        All are calibrated and scored on `first` images. Those that are still in the race are scored on `first` more,
        with the statistics that were found, and so on to the last image. Who is scored on all images has the accuracy
        that `accuracies` gives, but for rounding. The top of ``_racing.py`` says how subnets are compared.

        Args:
            costs: Of each architecture, lower is better: what is not on the front of costs and accuracy is out.
            keep: In place of `costs`: what is not among the `keep` most accurate is out.
            first: Images to score at a time (all, if there are fewer).
            confidence: Probability of putting out nothing that belongs to the front, or to the best.
            known: From an interrupted race with the same `first`: whether an architecture was right on each image so
                far, in the order of the race. Such scores are taken over; calibration, if it goes on, is done again.
            on_scored: Called with each architecture, the position of the first image just scored in the order of the
                race, and whether it was right on each, as soon as that is known.
            on_result: Called with each outcome as soon as it is known.

        Returns:
            The outcomes, in the order of `archs`.

        Raises:
            ValueError: Neither or both of `costs` and `keep` are given, there is not one row of costs for each of
                `archs`, or an argument is out of its range.
        """
        if first < 1:
            raise ValueError(f"first must be at least 1; got {first}")
        first = min(first, self.n_validation)
        found: FoundStatistics = {}
        return hold_race(
            archs,
            self._rules(len(archs), costs, keep, confidence, looks_of(self.n_validation, first)),
            self.n_validation,
            first,
            lambda racing, start, stop: self._score(racing, start, stop, first, found),
            known=known,
            on_scored=on_scored,
            on_result=on_result,
        )

    @staticmethod
    def _rules(
        n_archs: int, costs: Float[np.ndarray, "m c"] | None, keep: int | None, confidence: float, n_looks: int
    ) -> Rules:
        if costs is None and keep is not None:
            return best_rules(n_archs, keep, confidence=confidence, n_looks=n_looks)
        if costs is None or keep is not None:
            raise ValueError("a race needs either costs or keep, which say what is put out; give one of them")
        if len(costs) != n_archs:
            raise ValueError(f"costs must have a row for each of {n_archs} architectures; got {len(costs)} rows")
        return front_rules(costs, confidence=confidence, n_looks=n_looks)

    def _score(
        self, archs: Sequence[Arch], start: int, stop: int, first: int, found: FoundStatistics
    ) -> Iterator[tuple[int, Bool[np.ndarray, " n"]]]:
        """Index of each of `archs` and whether it is right on images `start` to `stop` in the order of a race.

        Args:
            first: Images in a pass, so that all passes share executables; the last one is filled up.
            found: Statistics of all blocks that have been calibrated; gets those of the others.
        """
        order = drawn_order(self.n_validation)
        uncalibrated = [index for index, arch in enumerate(archs) if block_path(self.space, arch) not in found]
        images = np.concatenate([self._images[: self.n_calibration], self._validation[order[:first]]])
        calibrated = self._predictions(
            [archs[index] for index in uncalibrated], images, lambda _: self.n_calibration, found
        )
        for position, predicted in calibrated:  # after an interruption also of images that were scored before it
            if start == 0:
                yield uncalibrated[position], predicted[self.n_calibration :] == self._labels[order[:first]]
        if start > 0:
            chosen = np.pad(order[start:stop], (0, first - (stop - start)), mode="edge")
            for index, predicted in self._predictions(archs, self._validation[chosen], found.__getitem__):
                yield index, (predicted == self._labels[chosen])[: stop - start]

    def logits(self, arch: Arch) -> Float[np.ndarray, "n classes"]:
        """Logits for the validation images, with the batch norms calibrated on the calibration images."""
        logits, _ = self._run(arch)
        return logits

    def _run(self, arch: Arch) -> tuple[Float[np.ndarray, "n classes"], dict[str, Statistics]]:
        x = self._prepared(arch)
        statistics: dict[str, Statistics] = {}
        for placed in self.space.blocks(arch):
            x, found = evaluate_block(placed, self.params, x, self.n_calibration, calibration=self.calibration)
            statistics |= {f"{placed.slot.name}.{name}": values for name, values in found.items()}
        return np.asarray(x[self.n_calibration :]), statistics

    def extract(self, arch: Arch) -> Subnet:
        """`arch` as a network of its own: sliced weights and batch norms calibrated on training images.

        Its logits equal those of `logits(arch)` up to rounding.

        Raises:
            ValueError: The space decides about precision: `quantize` makes a network of such an architecture.
        """
        if any(placed.precision is not None for placed in self.space.blocks(arch)):
            raise ValueError(
                f"a network of {self.space.name} is quantized, and extract() makes those that compute in float; use "
                "quantize(), or extract from the float space"
            )
        _, statistics = self._run(arch)
        weights = slice_weights(self.space, self.params, arch)
        _calibrate(weights, statistics)
        return Subnet(
            arch=arch,
            graph=self.space.graph(arch),
            weights=weights,
            space_fingerprint=self.space.fingerprint,
            input_mean=tuple(map(float, self.split.mean)),
            input_std=tuple(map(float, self.split.std)),
            n_calibration=self.n_calibration,
        )

    def quantize(self, arch: Arch) -> QuantizedNet:
        """`arch` as integers: its policy's formats, learned steps, and ranges and batch norms found in calibration.

        Its logits equal those of `logits(arch)` up to rounding: a value that lies between two integers may fall to
        either.

        Raises:
            ValueError: The space does not decide about precision, or a format has no integers.
        """
        plan = precision_plan(self.space, arch)
        check_integers(plan)
        _, statistics = self._run(arch)
        weights = slice_weights(self.space, self.params, arch)
        _calibrate(weights, statistics)
        names, factors = self._inputs(arch), dict[str, float]()
        for placed in self.space.blocks(arch):
            for name, steps in self.params[placed.slot.name].get(STEPS, {}).items():
                own = f"{placed.slot.name}.{name}"
                name = names.get(own, own)
                kernel = name.removesuffix(".kernel")
                code = plan.tensors[name] if kernel == name else plan.kernels[kernel]
                factors[name] = float(learned_factor(steps, code, 1))
        ranges = {}
        for key, (low, high) in statistics.items():
            if key.endswith(range_name("")):
                own = key.removesuffix(range_name(""))
                factor = factors.get(names.get(own, own), 1.0)
                ranges[names.get(own, own)] = (float(low) * factor, float(high) * factor)
        integers = {}
        for name, entries in weights.items():
            factor = factors.get(f"{name}.kernel", 1.0)
            integers[name] = (plan.kernels[name], *quantized_kernel(entries["kernel"], plan.kernels[name], factor))
        return assemble(
            arch, self.space.graph(arch), weights, plan, integers, ranges,
            space_fingerprint=self.space.fingerprint, input_mean=tuple(map(float, self.split.mean)),
            input_std=tuple(map(float, self.split.std)), n_calibration=self.n_calibration,
            calibration=self.calibration,
        )  # fmt: skip

    def _inputs(self, arch: Arch) -> dict[str, str]:
        """What the graph calls the input of each block of `arch`: the network's, or the output of the block before."""
        operators = [op.name for op in self.space.graph(arch).operators]
        names, source = {}, INPUT
        for placed in self.space.blocks(arch):
            names[f"{placed.slot.name}.input"] = source
            source = [name for name in operators if name.startswith(f"{placed.slot.name}.")][-1]
        return names


def _calibrate(weights: Weights, statistics: Mapping[str, Statistics]) -> None:
    """Give the batch norms of `weights` their statistics."""
    for name, entries in weights.items():
        if name in statistics:
            mean, variance = statistics[name]
            entries |= {"mean": np.asarray(mean), "variance": np.asarray(variance)}


def supernet_fingerprint(params: Params) -> str:
    """Hash of a supernet's weights, 16 hexadecimal digits. What is found out about its subnets carries it."""
    digest = hashlib.sha256()
    for path, array in jax.tree_util.tree_leaves_with_path(params):
        values = np.ascontiguousarray(array)
        digest.update(f"{jax.tree_util.keystr(path)} {values.dtype} {values.shape}".encode())
        digest.update(values.data)
    return digest.hexdigest()[:16]


def slice_weights(space: SearchSpace, params: Params, arch: Arch) -> Weights:
    """The part of the supernet's weights that `arch` uses, by operator; batch norms without statistics.

    Such weights are not a usable network yet: everything that runs or exports them asks for calibrated statistics.
    """
    graph = space.graph(arch)
    shapes = {op.name: op.kernel_shape for op in graph.operators if op.is_weighted}
    weights: Weights = {}
    for placed in space.blocks(arch):
        slot = placed.slot
        used = net_of(slot.block).weights_for(slot.block, params[slot.name], placed.choice)
        for name, arrays in used.items():
            if name == STEPS:
                continue
            full_name = f"{slot.name}.{name}"
            weights[full_name] = {key: np.asarray(array) for key, array in arrays.items()}
            weights[full_name]["kernel"] = weights[full_name]["kernel"].reshape(shapes[full_name])
    return weights
