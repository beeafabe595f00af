from __future__ import annotations

import numpy as np
import pytest

from hanax.searchers._reference_directions import reference_directions


@pytest.mark.parametrize(("n_objectives", "population", "published"), [
    (3, 92, 91), (5, 212, 210), (8, 156, 156), (10, 276, 275), (15, 136, 135),
])  # fmt: skip
def test_there_are_as_many_as_published(n_objectives: int, population: int, published: int) -> None:
    """Deb and Jain (2014), table I: one layer up to five objectives, two beyond."""
    directions = reference_directions(n_objectives, population)
    assert directions.shape == (published, n_objectives)
    assert len(np.unique(directions.round(9), axis=0)) == published


@pytest.mark.parametrize("n_objectives", range(1, 9))
@pytest.mark.parametrize("at_most", [8, 30, 100])
def test_they_lie_on_the_simplex_and_name_every_axis(n_objectives: int, at_most: int) -> None:
    directions = reference_directions(n_objectives, at_most)
    assert (directions >= 0).all()
    np.testing.assert_allclose(directions.sum(axis=1), 1.0)
    assert len(directions) <= at_most
    for axis in np.eye(n_objectives):
        assert (directions == axis).all(axis=1).any()


def test_four_divisions_of_two_objectives_by_hand() -> None:
    assert reference_directions(2, 5).tolist() == [[0.0, 1.0], [0.25, 0.75], [0.5, 0.5], [0.75, 0.25], [1.0, 0.0]]
    assert reference_directions(1, 5).tolist() == [[1.0]]


@pytest.mark.parametrize(("n_objectives", "at_most"), [(3, 2), (0, 5)])
def test_fewer_than_one_per_objective_are_refused(n_objectives: int, at_most: int) -> None:
    with pytest.raises(ValueError, match=f"{n_objectives} objectives, at most {at_most}"):
        reference_directions(n_objectives, at_most)
