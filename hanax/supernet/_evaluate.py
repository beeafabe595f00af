"""What a subnet is worth: calibration of the batch norms and scoring in one pass, many subnets as a trie.

Inherited weights were never trained with one subnet's own batch-norm statistics, so they must be recomputed for it
(Cai et al., 2020: on training images). Here calibration images and images to score go through each block together:
the statistics come from the first, exactly, and normalise both. A subnet cannot be scored without them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import numpy as np
from jaxtyping import Float, Int, UInt8

from hanax.search_spaces import RESOLUTION, Arch, SearchSpace
from hanax.supernet._blocks import net_of
from hanax.supernet._chain import Params, Progress, compile_chain, evaluate_block, prepare
from hanax.supernet._images import Split
from hanax.supernet._layers import Statistics
from hanax.supernet._subnet import Subnet
from hanax.supernet._weights import Weights


class Evaluator:
    """Scores and extracts subnets of one trained supernet on one set of images.

    Args:
        space: The supernet's search space.
        params: Its weights.
        split: Calibration images come from its training part, images to score from its validation part.
        n_calibration: Training images that set the batch norms; the first ones, so every subnet sees the same.
        n_validation: Validation images to score on.

    Raises:
        ValueError: A count is below 1, or the split has fewer images than asked for.
    """

    def __init__(
        self, space: SearchSpace, params: Params, split: Split, *, n_calibration: int, n_validation: int
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
        self._images: UInt8[np.ndarray, "n h w c"] = np.concatenate(
            [split.x_train[:n_calibration], split.x_validation[:n_validation]]
        )
        self._labels: Int[np.ndarray, " n"] = split.y_validation[:n_validation]

    def compile(self, on_progress: Progress | None = None) -> None:
        """Compile every executable now, in parallel; otherwise each is compiled when first needed."""
        compile_chain(
            self.space, self.params, len(self._images), n_statistics=self.n_calibration, on_progress=on_progress
        )

    def _prepared(self, arch: Arch) -> jax.Array:
        images: jax.Array = prepare(self._images, self.split.mean, self.split.std, self.space.resolution(arch))
        return images

    def accuracies(
        self, archs: Sequence[Arch], on_result: Callable[[Arch, float], None] | None = None
    ) -> Float[np.ndarray, " n"]:
        """Validation accuracy of each of `archs` after calibration, in [0, 1].

        Architectures are visited as a trie over their blocks: what two in a row share from the start is computed once.

        Args:
            on_result: Called with each architecture and its accuracy as soon as it is known, in the order of visiting.
        """
        paths = [
            [(RESOLUTION, (self.space.resolution(arch),)), *((b.slot.name, b.choice) for b in self.space.blocks(arch))]
            for arch in archs
        ]
        order = sorted(range(len(archs)), key=paths.__getitem__)
        accuracies = np.full(len(archs), np.nan)
        outputs: list[jax.Array] = []
        previous: list[tuple[str, tuple[int, ...]]] = []
        for index in order:
            shared = _common_length(previous, paths[index])
            del outputs[shared:]
            if not outputs:
                outputs.append(self._prepared(archs[index]))
            for placed in self.space.blocks(archs[index])[len(outputs) - 1 :]:
                outputs.append(evaluate_block(placed, self.params, outputs[-1], self.n_calibration)[0])
            predicted = np.asarray(outputs[-1][self.n_calibration :]).argmax(axis=1)
            accuracies[index] = float((predicted == self._labels).mean())
            previous = paths[index]
            if on_result is not None:
                on_result(archs[index], accuracies[index])
        return accuracies

    def logits(self, arch: Arch) -> Float[np.ndarray, "n classes"]:
        """Logits for the validation images, with the batch norms calibrated on the calibration images."""
        logits, _ = self._run(arch)
        return logits

    def _run(self, arch: Arch) -> tuple[Float[np.ndarray, "n classes"], dict[str, Statistics]]:
        x = self._prepared(arch)
        statistics: dict[str, Statistics] = {}
        for placed in self.space.blocks(arch):
            x, found = evaluate_block(placed, self.params, x, self.n_calibration)
            statistics |= {f"{placed.slot.name}.{name}": values for name, values in found.items()}
        return np.asarray(x[self.n_calibration :]), statistics

    def extract(self, arch: Arch) -> Subnet:
        """`arch` as a network of its own: sliced weights and batch norms calibrated on training images.

        Its logits equal those of `logits(arch)` up to rounding.
        """
        _, statistics = self._run(arch)
        weights = slice_weights(self.space, self.params, arch)
        for name, (mean, variance) in statistics.items():
            weights[name] |= {"mean": np.asarray(mean), "variance": np.asarray(variance)}
        return Subnet(
            arch=arch,
            graph=self.space.graph(arch),
            weights=weights,
            space_fingerprint=self.space.fingerprint,
            input_mean=tuple(map(float, self.split.mean)),
            input_std=tuple(map(float, self.split.std)),
            n_calibration=self.n_calibration,
        )


def _common_length(first: Sequence[object], second: Sequence[object]) -> int:
    length = 0
    for left, right in zip(first, second, strict=False):
        if left != right:
            break
        length += 1
    return length


def slice_weights(space: SearchSpace, params: Params, arch: Arch) -> Weights:
    """The part of the supernet's weights that `arch` uses, by operator; batch norms without statistics.

    Such weights are not a usable network yet: everything that runs or exports them asks for calibrated statistics.
    """
    graph = space.graph(arch)
    shapes = {op.name: op.kernel_shape for op in graph.operators if op.is_weighted}
    weights: Weights = {}
    for placed in space.blocks(arch):
        slot = placed.slot
        for name, arrays in net_of(slot.block).weights_for(slot.block, params[slot.name], placed.choice).items():
            full_name = f"{slot.name}.{name}"
            weights[full_name] = {key: np.asarray(array) for key, array in arrays.items()}
            weights[full_name]["kernel"] = weights[full_name]["kernel"].reshape(shapes[full_name])
    return weights
