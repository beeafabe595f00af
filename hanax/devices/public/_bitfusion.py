"""APQ's table of the BitFusion accelerator (Wang et al., 2020, arXiv:2006.08509): layers at 4, 6 and 8 bits.

`hanax.devices.BitFusionTable` reads the layers, and looks up what networks of ours cost; here they become a table.
"""

from __future__ import annotations

import re

from hanax.devices._bitfusion import FILE_KEYS, BitFusionTable, Bits, Layer
from hanax.devices._stored_table import TableError
from hanax.devices.public._folder import PublicDataError, PublicFolder, check_positive
from hanax.devices.public._public_table import MACS, Column, PublicTable
from hanax.devices.public._source import Imported

FILE = "BitFusion_new.b1.dict"
FIXED = ("head", "tail")
"""The parts of the source's network before and after the searched layers; the file does not say what they are."""
KEY = re.compile(r"\((\d+, ){6}\d+\)-W[468]A[468]")
N_LAYERS, N_BITS = 6567, 9

SHAPE = {
    "in_channels": Column(
        "int64", "channels of the input; 0 for head and tail, as in the columns after it", "channels"
    ),
    "out_channels": Column("int64", "channels of the output", "channels"),
    "in_side": Column("int64", "height and width of the input", "px"),
    "kernel_size": Column("int64", "height and width of the kernel", "px"),
    "stride": Column("int64", "stride", "px"),
    "padding": Column("int64", "zeros on each side of the input", "px"),
    "groups": Column("int64", "groups of channels; depthwise: as many as channels"),
}
BITS = {
    "weight_bits": Column("int64", "bits of a weight", "bits"),
    "activation_bits": Column("int64", "bits of an activation", "bits"),
}
COSTS = {
    "latency_ms": Column("float64", "simulated latency, batch 1", "ms"),
    "energy_mj": Column("float64", "simulated energy, batch 1", "mJ"),
}
COLUMNS = {
    "layer": Column("str", "the source's key; `head` and `tail` are fixed parts of its network, without a shape"),
    **SHAPE,
    **BITS,
    "macs": MACS,
    **COSTS,
}


def read_bitfusion(folder: PublicFolder) -> Imported:
    """One table, in the file's order; head and tail are its last rows."""
    import pandas as pd

    where = str(folder.path / FILE)
    records = folder.json(FILE)
    if not isinstance(records, dict):
        raise PublicDataError(f"{where} is not an object of layers")
    if odd := [key for key in records if key not in FIXED and KEY.fullmatch(key) is None]:
        raise PublicDataError(
            f"{where}: {odd[0]!r} is neither head nor tail nor (in, out, side, kernel, stride, padding, groups)-WxAy "
            "with 4, 6 or 8 bits"
        )
    try:
        table = BitFusionTable.read(where)
    except TableError as error:
        raise PublicDataError(str(error)) from error
    rows = [_row(f"{layer}-W{bits[0]}A{bits[1]}", layer, bits, costs) for (layer, bits), costs in table.rows.items()]
    for name in FIXED:
        if name in records:
            costs = [check_positive(records[name].get(key), key, f"{where}: {name}") for key in FILE_KEYS]
            rows.append(_row(name, (0, 0, 0, 0, 0, 0, 0), (0, 0), (costs[0], costs[1])))
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    layers = frame[~frame["layer"].isin(FIXED)]
    defects = []
    if len(layers) != N_LAYERS:
        defects.append(f"{len(layers)} layers; the published file holds {N_LAYERS}")
    if absent := [name for name in FIXED if name not in records]:
        defects.append(f"no entry {', '.join(absent)}")
    shapes = list(SHAPE)
    per_shape = layers.groupby(shapes).size()
    if partial := int((per_shape < N_BITS).sum()):
        defects.append(f"{partial} of {len(per_shape)} layer shapes lack some of the {N_BITS} pairs of bits")
    cheaper = 0
    for bits, other in (("weight_bits", "activation_bits"), ("activation_bits", "weight_bits")):
        steps = layers.sort_values(bits).groupby([*shapes, other])[list(COSTS)].diff()
        cheaper += int((steps < 0).any(axis=1).sum())
    if cheaper:
        defects.append(f"{cheaper} times a layer gets faster or saves energy with more bits of one operand")
    facts = {
        "layers and bits": len(layers),
        "layer shapes": len(per_shape),
        "latency of head and tail, ms": round(float(frame.loc[frame["layer"].isin(FIXED), "latency_ms"].sum()), 6),
    }
    return Imported((PublicTable("bitfusion", frame, COLUMNS),), facts, tuple(defects))


def _row(key: str, layer: Layer, bits: Bits, costs: tuple[float, float]) -> tuple[object, ...]:
    """A row with the values of `COLUMNS`."""
    in_channels, out_channels, side, kernel_size, stride, padding, groups = layer
    macs = 0
    if in_channels:
        weights = kernel_size**2 * in_channels * out_channels // groups
        macs = weights * ((side + 2 * padding - kernel_size) // stride + 1) ** 2
    return key, *layer, *bits, macs, *costs
