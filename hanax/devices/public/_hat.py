"""HAT's latencies of transformers (Wang et al., 2020, arXiv:2005.14187): eight sets of task and device."""

from __future__ import annotations

import numpy as np

from hanax.devices.public._csv import read_csv
from hanax.devices.public._folder import PublicDataError, PublicFolder
from hanax.devices.public._public_table import Column, PublicTable
from hanax.devices.public._source import Imported

SETS = {
    "iwslt14deen_gpu_titanxp_all.csv": ("iwslt14.de-en", "titan_xp"),
    "wmt14ende_cpu_raspberrypi_all.csv": ("wmt14.en-de", "raspberry_pi"),
    "wmt14ende_cpu_xeon_all.csv": ("wmt14.en-de", "xeon"),
    "wmt14ende_gpu_titanxp_all.csv": ("wmt14.en-de", "titan_xp"),
    "wmt14enfr_cpu_raspberrypi_all.csv": ("wmt14.en-fr", "raspberry_pi"),
    "wmt14enfr_cpu_xeon_all.csv": ("wmt14.en-fr", "xeon"),
    "wmt14enfr_gpu_titanxp_all.csv": ("wmt14.en-fr", "titan_xp"),
    "wmt19ende_gpu_titanxp_all.csv": ("wmt19.en-de", "titan_xp"),
}
"""Translation task and device of each file."""

FEATURES = {
    "encoder_embed_dim": Column("int64", "embedding width of the encoder", "values"),
    "encoder_layer_num": Column("int64", "encoder layers", "layers"),
    "encoder_ffn_embed_dim_avg": Column("float64", "hidden width of the encoder's feed-forward parts, mean", "values"),
    "encoder_self_attention_heads_avg": Column("float64", "heads of the encoder's self-attention, mean", "heads"),
    "decoder_embed_dim": Column("int64", "embedding width of the decoder", "values"),
    "decoder_layer_num": Column("int64", "decoder layers", "layers"),
    "decoder_ffn_embed_dim_avg": Column("float64", "hidden width of the decoder's feed-forward parts, mean", "values"),
    "decoder_self_attention_heads_avg": Column("float64", "heads of the decoder's self-attention, mean", "heads"),
    "decoder_ende_attention_heads_avg": Column("float64", "heads of attention to the encoder, mean", "heads"),
    "decoder_arbitrary_ende_attn_avg": Column("float64", "encoder layers that the decoder attends to, mean", "layers"),
}
LATENCIES = {
    "latency_mean_encoder": ("encoder_ms", Column("float64", "mean latency of the encoder, batch 1", "ms")),
    "latency_mean_decoder": ("decoder_ms", Column("float64", "mean latency of the whole decoding, batch 1", "ms")),
    "latency_std_encoder": ("encoder_std_ms", Column("float64", "standard deviation over the encoder's runs", "ms")),
    "latency_std_decoder": ("decoder_std_ms", Column("float64", "standard deviation over the decoder's runs", "ms")),
}
COLUMNS = {
    "task": Column("str", "translation task, which sets vocabulary and sentence length"),
    "device": Column("str", "device"),
    **FEATURES,
    **dict(LATENCIES.values()),
    "is_outlier": Column("bool", "whether the encoder took more than three times the median of its task and device"),
}
N_ROWS = 2000
OUTLIER_FACTOR = 3.0


def read_hat(folder: PublicFolder) -> Imported:
    """One table of all eight sets. A row gives means over layers, so networks are described, not identified."""
    import pandas as pd

    frames, defects = [], []
    for file, (task, device) in SETS.items():
        kinds = {name: column.kind for name, column in FEATURES.items()} | dict.fromkeys(LATENCIES, "float64")
        frame = read_csv(folder, file, kinds)
        means = frame[["latency_mean_encoder", "latency_mean_decoder"]].to_numpy()
        if not (np.isfinite(means) & (means > 0)).all():
            raise PublicDataError(f"{folder.path / file}: a mean latency is not a positive number")
        frame = frame.rename(columns={name: ours for name, (ours, _) in LATENCIES.items()})
        frame.insert(0, "task", task)
        frame.insert(1, "device", device)
        outlier = frame["encoder_ms"] > OUTLIER_FACTOR * frame["encoder_ms"].median()
        frames.append(frame.assign(is_outlier=outlier))
        if len(frame) != N_ROWS:
            defects.append(f"{file} holds {len(frame)} rows; the published file holds {N_ROWS}")
        if outlier.any():
            factor = (frame["encoder_ms"] / frame["encoder_ms"].median()).max()
            defects.append(
                f"{file}: {int(outlier.sum())} of {len(frame)} encoders took more than {OUTLIER_FACTOR:g} times the "
                f"median, up to {factor:.1f} times"
            )
        if again := int(frame.duplicated(list(FEATURES)).sum()):
            defects.append(f"{file}: {again} rows have the features of an earlier row")
    table = PublicTable("hat_latency", pd.concat(frames, ignore_index=True), COLUMNS)
    facts = {"sets": len(SETS), "rows": len(table.frame), "fewest rows of a set": min(map(len, frames))}
    return Imported((table,), facts, tuple(defects))
