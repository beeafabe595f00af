"""The only place that joins the parts: experiment files, stages, run folders, reports, the command line."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__all__ = [
    "Adaptation",
    "AdaptationCard",
    "Experiment",
    "ExperimentError",
    "Formats",
    "ParityCertificate",
    "QuantizedSupernetCard",
    "ReportData",
    "RunFolderError",
    "SearchOutcome",
    "SubnetCard",
    "SurrogateBenchmark",
    "TabularBenchmark",
    "accel_nas_bench_benchmark",
    "adapt",
    "adapt_from_table",
    "bundle_for_adapting",
    "certify",
    "deploy_quantized",
    "finetune",
    "load_experiment",
    "make_experiment",
    "nas_bench_macro_benchmark",
    "nb201_benchmark",
    "nb201_benchmarks",
    "ofa_benchmark",
    "quantize_supernet",
    "quantized_evaluator",
    "run_experiment",
    "search",
    "stage_states",
    "train",
    "write_report",
]

_HOME = {
    "Adaptation": "_adapt",
    "AdaptationCard": "_adaptation_card",
    "Experiment": "_config",
    "ExperimentError": "_config",
    "Formats": "_run_quantized",
    "ParityCertificate": "_parity_certificate",
    "QuantizedSupernetCard": "_run_quantized",
    "ReportData": "_report",
    "RunFolderError": "_folder",
    "SearchOutcome": "_api",
    "SubnetCard": "_after",
    "SurrogateBenchmark": "_tabular_benchmarks",
    "TabularBenchmark": "_tabular_benchmarks",
    "accel_nas_bench_benchmark": "_tabular_benchmarks",
    "adapt": "_adapt",
    "adapt_from_table": "_adapt",
    "bundle_for_adapting": "_adapt",
    "certify": "_parity_certificate",
    "deploy_quantized": "_deploy",
    "finetune": "_after",
    "load_experiment": "_config",
    "make_experiment": "_config",
    "nas_bench_macro_benchmark": "_tabular_benchmarks",
    "nb201_benchmark": "_tabular_benchmarks",
    "nb201_benchmarks": "_tabular_benchmarks",
    "ofa_benchmark": "_tabular_benchmarks",
    "quantize_supernet": "_run_quantized",
    "quantized_evaluator": "_run_quantized",
    "run_experiment": "_run",
    "search": "_api",
    "stage_states": "_folder",
    "train": "_after",
    "write_report": "_report",
}

if TYPE_CHECKING:
    from hanax.experiments._adapt import Adaptation, adapt, adapt_from_table, bundle_for_adapting
    from hanax.experiments._adaptation_card import AdaptationCard
    from hanax.experiments._after import SubnetCard, finetune, train
    from hanax.experiments._api import SearchOutcome, search
    from hanax.experiments._config import Experiment, ExperimentError, load_experiment, make_experiment
    from hanax.experiments._deploy import deploy_quantized
    from hanax.experiments._folder import RunFolderError, stage_states
    from hanax.experiments._parity_certificate import ParityCertificate, certify
    from hanax.experiments._report import ReportData, write_report
    from hanax.experiments._run import run_experiment
    from hanax.experiments._run_quantized import (
        Formats,
        QuantizedSupernetCard,
        quantize_supernet,
        quantized_evaluator,
    )
    from hanax.experiments._tabular_benchmarks import (
        SurrogateBenchmark,
        TabularBenchmark,
        accel_nas_bench_benchmark,
        nas_bench_macro_benchmark,
        nb201_benchmark,
        nb201_benchmarks,
        ofa_benchmark,
    )
else:

    def __getattr__(name: str) -> object:
        """Load on first use: the command line must answer before pandas and scikit-learn are there."""
        if name in _HOME:
            return getattr(importlib.import_module(f"hanax.experiments.{_HOME[name]}"), name)
        raise AttributeError(f"module 'hanax.experiments' has no attribute {name!r}")
