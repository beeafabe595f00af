"""What an architecture costs on a device: agents that run models, measurement, and tables of latencies."""

from hanax._files import InUseError
from hanax.devices._atlas import Atlas, AtlasDevice, load_atlas
from hanax.devices._bitfusion import BitFusion, BitFusionCost, BitFusionTable, Bits, FitError
from hanax.devices._block_table import (
    BLOCKS,
    BlockCost,
    BlockKey,
    SumError,
    block_costs,
    block_nets,
    blocks_of,
    collect_blocks,
    compare_with_nets,
    overhead_ms,
    sum_of_blocks,
    unique_blocks,
)
from hanax.devices._bundle import BoardResults, BundleError, import_results, read_results, write_bundle
from hanax.devices._collect import collect_latency
from hanax.devices._cost_models import CostModel, PolicyModel, code_costs, cost_column, cost_device, graph_costs
from hanax.devices._cost_table import CostDevice, CostTable, collect_costs
from hanax.devices._counts import Macs, Params, PeakMemory
from hanax.devices._device_table import DeviceTable, TableKind
from hanax.devices._end_to_end import END_TO_END, collect_end_to_end, measure_end_to_end
from hanax.devices._instructions import collect_instructions, count_instructions
from hanax.devices._iree_compiler import CompileError, compile_with_iree
from hanax.devices._ledger import Ledger
from hanax.devices._load_guard import BusyMachineError, LoadGuard, LoadWatch
from hanax.devices._local_agent import Agent, AgentError, LocalAgent, agent_command
from hanax.devices._measure import Measurement, Method, measure, median_interval
from hanax.devices._merge_tables import ConflictError, merge_tables
from hanax.devices._modelled import COST_MODELS, ModelFileError, cost_model_names, find_cost_model
from hanax.devices._parity import Parity, check_parity, runtime_outputs
from hanax.devices._places import Place, PlaceError, find_place, start_agent_at
from hanax.devices._policy_costs import BitOperations, ModelSize, kernel_precisions, operator_bits, policy_costs
from hanax.devices._reliability import Reliability
from hanax.devices._requests import (
    STAGES,
    AgentStats,
    DeviceIdentity,
    Round,
    agent_stats,
    identify,
    load_model,
    run_model,
    unload_model,
)
from hanax.devices._roofline import DeviceProfile, Roofline, roofline_latency_s
from hanax.devices._runtimes import (
    RUNTIMES,
    InstallError,
    Runtime,
    RuntimeMissingError,
    install_runtime,
    runtime_python,
)
from hanax.devices._specs import (
    DEVICES,
    DeviceSpec,
    DeviceStatus,
    UnknownDeviceError,
    device_statuses,
    find_device,
    install_command,
)
from hanax.devices._stored_table import DeviceMismatchError, Fingerprinted, TableError
from hanax.devices._systolic import LayerCost, SystolicArray, Technology
from hanax.devices._table import COLUMNS, LatencyTable, Purpose
from hanax.devices._table_checks import Finding, describe_table, open_table, validate_table

__all__ = [
    "BLOCKS",
    "COLUMNS",
    "COST_MODELS",
    "DEVICES",
    "END_TO_END",
    "RUNTIMES",
    "STAGES",
    "Agent",
    "AgentError",
    "AgentStats",
    "Atlas",
    "AtlasDevice",
    "BitFusion",
    "BitFusionCost",
    "BitFusionTable",
    "BitOperations",
    "Bits",
    "BlockCost",
    "BlockKey",
    "BoardResults",
    "BundleError",
    "BusyMachineError",
    "CompileError",
    "ConflictError",
    "CostDevice",
    "CostModel",
    "CostTable",
    "DeviceIdentity",
    "DeviceMismatchError",
    "DeviceProfile",
    "DeviceSpec",
    "DeviceStatus",
    "DeviceTable",
    "Finding",
    "Fingerprinted",
    "FitError",
    "InUseError",
    "InstallError",
    "LatencyTable",
    "LayerCost",
    "Ledger",
    "LoadGuard",
    "LoadWatch",
    "LocalAgent",
    "Macs",
    "Measurement",
    "Method",
    "ModelFileError",
    "ModelSize",
    "Params",
    "Parity",
    "PeakMemory",
    "Place",
    "PlaceError",
    "PolicyModel",
    "Purpose",
    "Reliability",
    "Roofline",
    "Round",
    "Runtime",
    "RuntimeMissingError",
    "SumError",
    "SystolicArray",
    "TableError",
    "TableKind",
    "Technology",
    "UnknownDeviceError",
    "agent_command",
    "agent_stats",
    "block_costs",
    "block_nets",
    "blocks_of",
    "check_parity",
    "code_costs",
    "collect_blocks",
    "collect_costs",
    "collect_end_to_end",
    "collect_instructions",
    "collect_latency",
    "compare_with_nets",
    "compile_with_iree",
    "cost_column",
    "cost_device",
    "cost_model_names",
    "count_instructions",
    "describe_table",
    "device_statuses",
    "find_cost_model",
    "find_device",
    "find_place",
    "graph_costs",
    "identify",
    "import_results",
    "install_command",
    "install_runtime",
    "kernel_precisions",
    "load_atlas",
    "load_model",
    "measure",
    "measure_end_to_end",
    "median_interval",
    "merge_tables",
    "open_table",
    "operator_bits",
    "overhead_ms",
    "policy_costs",
    "read_results",
    "roofline_latency_s",
    "run_model",
    "runtime_outputs",
    "runtime_python",
    "start_agent_at",
    "sum_of_blocks",
    "unique_blocks",
    "unload_model",
    "validate_table",
    "write_bundle",
]
