from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from hanax.experiments import _reproduce_apq
from hanax.experiments._config import load_experiment
from hanax.experiments._frames import write_frame
from hanax.experiments._reproduce_apq import (
    FLOAT_TABLE,
    QUANTIZED_TABLE,
    TransferData,
    cifar10_space,
    load_tables,
    reproduce_apq,
)
from hanax.search_spaces import SearchSpace, architecture_columns, float_space, precision_columns


def _effects(space: SearchSpace, codes: np.ndarray) -> np.ndarray:
    """Percent that every option adds where it counts: blocks differ, and more bits are better."""
    size = np.random.default_rng(5).uniform(0.2, 1.0, size=len(space.decisions))
    return (space.active(codes) * codes * size).sum(axis=1)


def _made_up() -> TransferData:
    space = cifar10_space()
    plain = float_space(space)
    rng = np.random.default_rng(0)
    float_codes, codes = plain.sample(rng, 300), space.sample(rng, 150)
    columns = architecture_columns(space)

    def float_accuracy(codes: np.ndarray) -> np.ndarray:
        return 80.0 + _effects(plain, codes)

    bits = codes[:, precision_columns(space)].mean(axis=1)
    return TransferData(
        space, float_codes, float_accuracy(float_codes), codes, float_accuracy(codes[:, columns]) - 3.0 + bits
    )


def _frame(space: SearchSpace, n: int) -> pd.DataFrame:
    archs = space.decode(space.sample(np.random.default_rng(1), n))
    return pd.DataFrame({"arch": [str(arch) for arch in archs], "accuracy": np.linspace(0.8, 0.9, n)})


def test_every_number_of_samples_has_its_rows_and_transfer_is_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_reproduce_apq, "N_TEST", 60)
    monkeypatch.setattr(_reproduce_apq, "SAMPLE_SIZES", (25, 30))
    monkeypatch.setattr(_reproduce_apq, "PROCESS_SIZES", (25,))
    said: list[str] = []
    result = reproduce_apq(_made_up, 1, said.append)
    figures = {row.metric: row for row in result.rows}
    assert [row.metric for row in result.rows][:8] == [
        "float", "transfer_25", "transfer_30", "scratch_25", "scratch_30", "scratch_75", "scratch_90",
        "process_transfer_25",
    ]  # fmt: skip
    assert figures["transfer_25"].ours > figures["scratch_75"].ours > figures["scratch_25"].ours
    assert {"transfer_25_mae", "scratch_75_pairwise", "transfer_30_coverage_90", "float_pairwise"} <= set(figures)
    assert "float_mae" not in figures and figures["scratch_75"].n == 75
    assert len(said) == 1 and "transfer_25" in said[0]


def test_tables_of_a_collection_are_read(tmp_path: Path) -> None:
    space, plain = cifar10_space(), float_space(cifar10_space())
    write_frame(tmp_path / "f", _frame(plain, 20), plain)
    write_frame(tmp_path / "q", _frame(space, 230), space)
    data = load_tables(tmp_path / "f", tmp_path / "q")
    assert data.float_codes.shape == (20, 22) and len(data.accuracy) == 230
    assert data.accuracy[0] == pytest.approx(80.0)
    write_frame(tmp_path / "q", _frame(space, 210), space)
    with pytest.raises(ValueError, match="has 210 networks; 200 are for testing and at least 25 to learn from"):
        load_tables(tmp_path / "f", tmp_path / "q")


def test_the_tables_that_come_with_hanax_are_of_one_supernet_space_and_the_same_images() -> None:
    from hanax.experiments._frames import read_frame

    data = load_tables()
    _, of_float = read_frame(FLOAT_TABLE, float_space(data.space))
    _, of_quantized = read_frame(QUANTIZED_TABLE, data.space)
    assert of_float["data_fingerprint"] == of_quantized["data_fingerprint"]
    assert len(np.unique(data.codes, axis=0)) == len(data.codes)
    assert 0.0 <= data.accuracy.min() < data.accuracy.max() < 100.0


def test_the_space_of_the_tables_is_that_of_the_experiment() -> None:
    experiment = load_experiment("quantized_cifar10")
    assert experiment.searched_space(experiment.space.build(32, 3, 10)).fingerprint == cifar10_space().fingerprint
