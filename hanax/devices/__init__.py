"""What an architecture costs on a device: agents that run models, measurement, and tables of latencies."""

from hanax.devices._collect import collect_latency
from hanax.devices._ledger import Ledger
from hanax.devices._local_agent import Agent, AgentError, LocalAgent, agent_command
from hanax.devices._measure import Measurement, Method, measure, median_interval
from hanax.devices._requests import AgentStats, DeviceIdentity, Round, agent_stats, identify
from hanax.devices._specs import (
    DEVICES,
    DeviceSpec,
    DeviceStatus,
    UnknownDeviceError,
    device_statuses,
    find_device,
)
from hanax.devices._table import (
    COLUMNS,
    DeviceMismatchError,
    LatencyTable,
    Purpose,
    TableError,
)

__all__ = [
    "COLUMNS",
    "DEVICES",
    "Agent",
    "AgentError",
    "AgentStats",
    "DeviceIdentity",
    "DeviceMismatchError",
    "DeviceSpec",
    "DeviceStatus",
    "LatencyTable",
    "Ledger",
    "LocalAgent",
    "Measurement",
    "Method",
    "Purpose",
    "Round",
    "TableError",
    "UnknownDeviceError",
    "agent_command",
    "agent_stats",
    "collect_latency",
    "device_statuses",
    "find_device",
    "identify",
    "measure",
    "median_interval",
]
