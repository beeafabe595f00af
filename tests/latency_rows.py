"""A row of a latency table, for tests."""

from __future__ import annotations

from hanax.search_spaces import Arch


def latency_row(arch: Arch | str, latency_ms: float, spread: float = 0.01, **fields: object) -> dict[str, object]:
    return {
        "arch": str(arch),
        "latency_ms": latency_ms,
        "latency_low_ms": latency_ms * (1 - spread),
        "latency_high_ms": latency_ms * (1 + spread),
        "min_ms": latency_ms * 0.97,
        "p10_ms": latency_ms,
        "median_ms": latency_ms * 1.05,
        "iqr_ms": 0.0,
        "cpu_ms": latency_ms,
        "n_runs": 90,
        "n_rounds": 9,
        "rejected_rounds": 0,
        "converged": True,
        "device": "onnxruntime-fp32",
        "runtime": "onnxruntime",
        "runtime_version": "1.20.0",
        "precision": "fp32",
        "threads": 1,
        "batch": 1,
        "load_average": float("nan"),
        "measured_at": "2025-01-01T00:00:00+00:00",
        "purpose": "table",
    } | fields
