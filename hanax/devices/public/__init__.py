"""Public data of others as tidy tables: latencies, accuracies and block costs, from the files as published."""

from hanax.devices.public._folder import PublicDataError, PublicFolder
from hanax.devices.public._help import N_POOL as HELP_POOL_SIZES
from hanax.devices.public._help import SPLITS as HELP_SPLITS
from hanax.devices.public._help import trimmed_query
from hanax.devices.public._import import SOURCES, find_source, import_source, write_import
from hanax.devices.public._plain_pickle import read_plain_pickle, read_pt
from hanax.devices.public._public_table import Column, Provenance, PublicTable
from hanax.devices.public._source import Imported, Source

__all__ = [
    "HELP_POOL_SIZES",
    "HELP_SPLITS",
    "SOURCES",
    "Column",
    "Imported",
    "Provenance",
    "PublicDataError",
    "PublicFolder",
    "PublicTable",
    "Source",
    "find_source",
    "import_source",
    "read_plain_pickle",
    "read_pt",
    "trimmed_query",
    "write_import",
]
