"""Facts known from the publications and from independent readings of the same files, and what damaged files do."""

from __future__ import annotations

import itertools
import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr
from tar_files import tar_gz

from hanax.devices.public import SOURCES, Imported, PublicDataError, PublicTable, find_source, import_source
from hanax.devices.public import _nas_bench_201 as nas_bench_201
from hanax.devices.public._help import FBNET_OPERATORS, N_POOL, SPLITS, trimmed_query
from hanax.devices.public._latency import check_latencies
from hanax.search_spaces import mobilenet_v3

Import = Callable[[str], Imported]
Table = Callable[[str, str], PublicTable]
Data = Callable[[str], Path]

SPACES = {"nasbench201": 25, "fbnet": 27, "ofa": 12}
HAT, MACRO, LAYERS = "iwslt14deen_gpu_titanxp_all.csv", "nas-bench-macro_cifar10.json", "BitFusion_new.b1.dict"
ANB, LUT = "anb_dataset_jsons.tar.gz", "block_lut.tar.gz"
FILES_OF_SPACES = {"nasbench201": "nb201", "fbnet": "fbnet", "ofa": "ofa"}


def matrix(table: PublicTable) -> pd.DataFrame:
    """Latencies with one row per architecture and one column per device."""
    return table.frame.pivot(index="index", columns="device", values="latency_ms")


# ---- every source ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SOURCES)
def test_every_table_has_its_provenance_and_documented_columns(name: str, imported: Import, tmp_path: Path) -> None:
    tables = imported(name).tables
    assert len({table.name for table in tables}) == len(tables)
    for table in tables:
        assert table.provenance is not None
        assert table.provenance.source == name
        assert all(re.fullmatch("[0-9a-f]{64}", checksum) for checksum in table.provenance.files.values())
        assert table.provenance.files
        for column_name, column in table.columns.items():
            assert column.meaning
            if column_name.endswith("_ms"):
                assert column.unit == "ms" or column.kind == "bool"
        if "arch" in table.columns:
            codes = table.codes()
            assert codes.shape == (len(table.frame), len(table.decisions))
            assert (codes < [len(options) for options in table.decisions.values()]).all()
        path = tmp_path / f"{table.name}.parquet"
        table.write(path)
        back = PublicTable.read(path)
        pd.testing.assert_frame_equal(back.frame, table.frame, check_dtype=False)
        assert back.describe() == json.loads(json.dumps(table.describe()))


def test_an_unknown_source_is_named_with_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"no public data set is called 'helo'; .*did you mean 'help'"):
        find_source("helo")


@pytest.mark.parametrize("name", SOURCES)
def test_an_empty_folder_is_an_error_that_names_the_file(name: str, tmp_path: Path) -> None:
    with pytest.raises(PublicDataError, match=f"{tmp_path} holds no file "):
        import_source(SOURCES[name], tmp_path)


# ---- HELP ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("space", "n_devices"), SPACES.items())
def test_help_latencies_are_those_of_an_independent_reading(
    space: str, n_devices: int, public_table: Table, shared_data: Data
) -> None:
    """Equal to the bit once rounded to the single precision of the other file; so are the order and the devices."""
    arrays = np.load(shared_data(f"latency/{FILES_OF_SPACES[space]}.npz"))
    latency = matrix(public_table("help", f"help_{space}_latency"))
    assert latency.shape == (len(arrays["latency_ms"]), n_devices)
    for device in latency.columns:
        other = arrays["latency_ms"][:, arrays["devices"].tolist().index(device)]
        np.testing.assert_array_equal(latency[device].to_numpy(dtype=np.float32), other)


@pytest.mark.parametrize("space", SPACES)
def test_help_architectures_are_those_of_an_independent_reading(
    space: str, public_table: Table, shared_data: Data
) -> None:
    arrays = np.load(shared_data(f"latency/{FILES_OF_SPACES[space]}.npz"))
    archs = public_table("help", f"help_{space}_archs")
    assert sorted(archs.frame.index[archs.frame["is_reference"]]) == sorted(arrays["hw_embed_index"])
    if space != "ofa":
        np.testing.assert_array_equal(archs.codes(), arrays["arch"])
        np.testing.assert_array_equal(archs.frame["params"], arrays["params"])
        return
    space_of_arch = mobilenet_v3(width_mult=1.2)
    assert archs.for_space(space_of_arch) is archs
    codes = archs.codes()
    options = [dict(zip(archs.decisions, row, strict=True)) for row in codes]
    for number in range(0, len(codes), 97):
        chosen = {name: archs.decisions[name][index] for name, index in options[number].items()}
        assert chosen["resolution"] == arrays["r"][number]
        for slot in np.flatnonzero(arrays["active"][number]):
            block = f"stage{slot // 4 + 1}.block{slot % 4 + 1}"
            assert chosen[f"{block}.kernel_size"] == arrays["ks"][number, slot]
            assert chosen[f"{block}.expand_ratio"] == arrays["e"][number, slot]


def test_macs_of_cells_are_the_published_flops(public_table: Table, shared_data: Data) -> None:
    published = np.load(shared_data("latency/nb201.npz"))["flops"]
    np.testing.assert_array_equal(public_table("help", "help_nasbench201_archs").frame["macs"], published)


def test_macs_of_fbnet_and_its_normalisation_are_the_published_flops(public_table: Table, shared_data: Data) -> None:
    """The published count adds, per value, 2 for a batch norm and 1 for a bias, which depthwise and skips have."""
    arrays = np.load(shared_data("latency/fbnet.npz"))
    archs = public_table("help", "help_fbnet_archs")
    more = np.zeros((22, len(FBNET_OPERATORS)))
    before, side, layer = 16, 32, 0
    for n_layers, channels, first in (
        *((1, 16, 1), (4, 24, 1), (4, 32, 2), (4, 64, 2)),
        *((4, 112, 1), (4, 184, 2), (1, 352, 1)),
    ):
        for stride in (first, *[1] * (n_layers - 1)):
            after = side // stride
            for option, operator in enumerate(FBNET_OPERATORS[:-1]):
                middle = before * int(operator.split("_")[1][1:])
                more[layer, option] = middle * (2 * side**2 + 3 * after**2) + 2 * channels * after**2
            if (before, side) != (channels, after):
                more[layer, -1] = 3 * channels * after**2
            before, side, layer = channels, after, layer + 1
    left = arrays["flops"] - archs.frame["macs"] - more[np.arange(22), archs.codes()].sum(axis=1)
    assert left.nunique() == 1, "what is left is the normalisation of stem and head"


def test_flops_rank_cells_about_as_help_published(public_table: Table) -> None:
    """HELP's table 3, of its own draw of queries; ours are the thousand after the pool. Published mean: .787."""
    published = {"titan_rtx_256": 0.950, "gold_6226": 0.826, "pixel2": 0.765}
    published |= {"raspi4": 0.846, "eyeriss": 0.437, "fpga": 0.900}
    macs = public_table("help", "help_nasbench201_archs").frame["macs"].to_numpy()
    latency = matrix(public_table("help", "help_nasbench201_latency"))
    ours = {}
    for device in published:
        column = latency[device].to_numpy()
        query = trimmed_query(column, N_POOL["nasbench201"])
        assert len(query) == 800
        ours[device] = spearmanr(macs[query], column[query]).statistic
    assert ours == pytest.approx(published, abs=0.055)
    assert np.mean(list(ours.values())) == pytest.approx(0.787, abs=0.005)


def test_macs_rank_as_known_on_helps_test_devices(imported: Import, public_table: Table, shared_data: Data) -> None:
    facts = imported("help").facts
    fact = "{} rank correlation of MACs, HELP's test devices and trimmed queries"
    assert facts[fact.format("NAS-Bench-201")] == 0.783
    assert facts[fact.format("FBNet")] == 0.923
    flops = np.load(shared_data("latency/fbnet.npz"))["flops"]
    latency = matrix(public_table("help", "help_fbnet_latency"))
    queries = [
        (latency[device].to_numpy(), trimmed_query(latency[device].to_numpy(), 4000))
        for device in SPLITS["fbnet"]["test"]
    ]
    with_normalisation = np.mean([spearmanr(flops[query], column[query]).statistic for column, query in queries])
    assert with_normalisation == pytest.approx(0.924, abs=5e-4), "FLOPs that count normalisation too give .924"


def test_cells_without_a_path_are_flagged_and_so_are_those_optimised_away(
    imported: Import, public_table: Table
) -> None:
    assert imported("help").facts["NAS-Bench-201 cells without a path"] == 341
    latency = public_table("help", "help_nasbench201_latency").frame
    counts = latency.groupby(["device", "flag"]).size().unstack(fill_value=0)
    assert counts["optimised away"].to_dict() == dict.fromkeys(counts.index, 0) | {"raspi4": 157, "pixel3": 202}
    assert (counts["optimised away"] + counts["no path"] == 341).all()
    low = latency[latency["latency_ms"] < 0.1]
    assert set(low["flag"]) == {"optimised away"}


def test_devices_with_ties_are_flagged(public_table: Table) -> None:
    devices = public_table("help", "help_nasbench201_devices").frame.set_index("device")
    assert set(devices.index[devices["whole_ms"]]) == {"pixel2", "samsung_s7", "samsung_a50", "essential_ph_1"}
    assert devices.loc[["eyeriss", "fpga", "pixel2"], "n_values"].tolist() == [27, 84, 42]
    assert set(devices.index[devices["near_duplicate"]]) == {"1080ti_256", "titanx_256"}
    assert set(devices["group"]) == {"train", "valid", "test", ""}


# ---- NAS-Bench-201 ---------------------------------------------------------------------------------------------------


def test_every_cell_is_joined_with_its_accuracies(public_table: Table) -> None:
    archs = public_table("help", "help_nasbench201_archs").frame
    accuracies = public_table("nas-bench-201", "nas_bench_201_accuracy").frame
    joined = archs.merge(accuracies, on=["arch", "index", "cell", "macs", "params", "has_path"], validate="one_to_one")
    assert len(joined) == 15_625
    assert joined["index"].tolist() == list(range(15_625))
    assert joined[[f"{name}_accuracy" for name in ("cifar10", "cifar100", "imagenet16_120")]].notna().all(axis=None)


def test_the_best_cell_and_its_accuracy_are_the_published_ones(imported: Import) -> None:
    """94.37 % (Dong & Yang, 2020, table 5: optimal)."""
    facts = imported("nas-bench-201").facts
    assert facts["best CIFAR-10 accuracy, %"] == 94.37


def test_just_the_cells_without_a_path_are_as_accurate_as_guessing(public_table: Table) -> None:
    """A wrong order of cells on either side could not pass this."""
    accuracies = public_table("nas-bench-201", "nas_bench_201_accuracy").frame
    dead = accuracies[~accuracies["has_path"]]
    assert set(dead["cifar10_accuracy"]) == {10.0}
    assert set(dead["cifar100_accuracy"]) == {1.0}
    assert accuracies.loc[accuracies["has_path"], "cifar10_accuracy"].min() > 40


def test_cell_strings_and_codes_are_inverse_for_all_cells() -> None:
    texts = set()
    for codes in itertools.product(range(5), repeat=6):
        text = nas_bench_201.cell_text(codes)
        assert nas_bench_201.parse_cell(text) == codes
        texts.add(text)
    assert len(texts) == 15_625
    for wrong in (
        "",
        "|none~0|",
        "|none~0|+|none~0|none~1|+|none~0|none~1|none~1|",
        "|x~0|+|none~0|none~1|+|none~0|none~1|none~2|",
    ):
        with pytest.raises(ValueError, match="not a cell of NAS-Bench-201"):
            nas_bench_201.parse_cell(wrong)


def test_eagle_did_not_measure_just_the_cells_without_a_path(imported: Import, public_table: Table) -> None:
    frame = public_table("nb201-latency", "nb201_latency").frame
    devices = public_table("nb201-latency", "nb201_devices").frame.set_index("device")
    assert len(devices) == 35
    missing = devices["n_missing"][devices["group"] == "EAGLE"]
    assert sorted(missing) == [341] * 8 + [364] * 2
    without = public_table("nb201-latency", "nb201_archs").frame.query("not has_path")["arch"]
    on_edge_tpu = frame[(frame["device"] == "embedded_tpu_edge_tpu_int8") & (frame["flag"] == "not measured")]
    assert set(on_edge_tpu["arch"]) == set(without)


def test_the_public_core_i7_column_is_unmasked_as_a_gpu(imported: Import, public_table: Table) -> None:
    devices = public_table("nb201-latency", "nb201_devices").frame.set_index("device")
    i7, gpu = "desktop_cpu_core_i7_7820x_fp32", "desktop_gpu_gtx_1080ti_fp32"
    assert devices.loc[i7, "nearest_device"] == gpu
    assert round(devices.loc[i7, "nearest_spearman"], 3) == 0.997
    assert any(i7 in defect and gpu in defect for defect in imported("nb201-latency").defects)


# ---- the others ------------------------------------------------------------------------------------------------------


def test_hat_holds_eight_sets_of_two_thousand(imported: Import, public_table: Table) -> None:
    frame = public_table("hat", "hat_latency").frame
    assert frame.groupby(["task", "device"]).size().tolist() == [2000] * 8
    assert frame["encoder_layer_num"].unique().tolist() == [6]
    pi = frame[(frame["task"] == "wmt14.en-de") & (frame["device"] == "raspberry_pi")]
    assert pi["is_outlier"].sum() == 108
    assert any("wmt14ende_cpu_raspberrypi" in defect for defect in imported("hat").defects)


def test_accel_nas_bench_holds_5138_networks_and_what_was_not_measured_is_missing(
    imported: Import, public_table: Table
) -> None:
    archs = public_table("accel-nas-bench", "accel_nas_bench_archs").frame
    performance = public_table("accel-nas-bench", "accel_nas_bench_performance").frame
    assert archs["record"].tolist() == list(range(5138))
    assert archs["arch"].nunique() == 5125
    assert len(performance) == 6 * 5138
    by_device = performance.set_index("device")["throughput_images_per_s"].isna().groupby("device").sum()
    assert by_device.to_dict() == {"a100": 0, "3090": 3, "tpuv2": 37, "tpuv3": 44, "zcu102": 2, "vck190": 2}
    a100 = performance[performance["device"] == "a100"]["throughput_images_per_s"].to_numpy()
    assert spearmanr(archs["macs"], a100).statistic < -0.6


def test_nas_bench_macro_is_the_whole_space(imported: Import, public_table: Table) -> None:
    table = public_table("nas-bench-macro", "nas_bench_macro")
    assert len(table.frame) == 3**8 == len(np.unique(table.codes(), axis=0))
    assert imported("nas-bench-macro").facts["best accuracy, %"] == 93.13
    deepest = table.frame.set_index("arch").loc["2.2.2.2.2.2.2.2"]
    assert (deepest["macs"], deepest["params"]) == (105_660_928, 2_932_586)


def test_flops_of_nas_bench_macro_are_macs(public_table: Table) -> None:
    """The fifth layer has 128 channels on an 8 x 8 map; its weights times 64 are the published difference."""
    frame = public_table("nas-bench-macro", "nas_bench_macro").frame.set_index("arch")
    with_it, without = frame.loc["0.0.0.0.1.0.0.0"], frame.loc["0.0.0.0.0.0.0.0"]
    weights = 2 * 128 * 384 + 9 * 384
    assert with_it["macs"] - without["macs"] == weights * 8 * 8
    assert with_it["params"] - without["params"] == weights + 4 * 384 + 2 * 128


def test_dynas_t_traces_are_networks_of_our_space_with_the_published_costs(public_table: Table) -> None:
    table = public_table("dynas-t", "dynas_t")
    space = mobilenet_v3(resolutions=(224,))
    assert table.for_space(space) is table
    assert table.frame.groupby("search").size().to_dict() == {"linas": 554, "nsga2": 540, "unsga3": 554}
    for _, trace in table.frame.groupby("search"):
        assert trace["step"].tolist() == list(range(len(trace)))
    graph = space.graph(space.decode(table.codes()[:1])[0])
    assert (graph.macs, graph.params) == (table.frame["macs"][0], table.frame["params"][0]) == (255_502_624, 5_029_656)


def test_traces_of_accuracy_alone_are_read_where_they_are(shared_data: Data, tmp_path: Path) -> None:
    for file in shared_data("dynas-t").glob("*.csv"):
        head = "".join(file.read_text().splitlines(keepends=True)[:11])
        (tmp_path / file.name).write_text(head)
        (tmp_path / "mbnv3w10_evoga_acc.csv").write_text(head)
    (table,) = import_source(SOURCES["dynas-t"], tmp_path).tables
    assert table.frame.groupby("search").size().to_dict() == dict.fromkeys(["ga", "linas", "nsga2", "unsga3"], 10)
    assert table.provenance is not None
    assert len(table.provenance.files) == 4


def test_placeholder_latencies_are_left_out_and_said(imported: Import) -> None:
    (table,) = imported("dynas-t").tables
    assert not any("latency" in name for name in table.columns)
    assert sum("a placeholder" in defect for defect in imported("dynas-t").defects) == 3


def test_bitfusion_holds_6567_layers_and_the_fixed_parts(public_table: Table) -> None:
    frame = public_table("bitfusion", "bitfusion").frame
    layers = frame[frame["in_channels"] > 0]
    assert len(layers) == 6567
    assert set(frame["layer"]) - set(layers["layer"]) == {"head", "tail"}
    assert layers.groupby(["weight_bits", "activation_bits"]).ngroups == 9
    first = layers.set_index("layer").loc["(96, 456, 14, 1, 1, 0, 1)-W4A4"]
    assert (first["macs"], first["latency_ms"]) == (96 * 456 * 14 * 14, 0.062192)


def test_bitfusion_layers_that_cost_less_with_more_bits_are_counted(imported: Import, public_table: Table) -> None:
    frame = public_table("bitfusion", "bitfusion").frame.set_index("layer")
    odd = frame.loc[["(160, 160, 28, 5, 1, 2, 160)-W4A6", "(160, 160, 28, 5, 1, 2, 160)-W6A6"], "energy_mj"]
    assert odd.iloc[0] > odd.iloc[1]
    assert any("saves energy with more bits" in defect for defect in imported("bitfusion").defects)


def test_spaceevo_holds_342000_samples(public_table: Table) -> None:
    frame = public_table("spaceevo", "spaceevo_blocks").frame
    assert len(frame) == 342_000
    tables = frame.groupby(["device", "stage", "block_type", "width_window"]).size()
    assert len(tables) == 342
    assert set(tables) == {1000}
    assert frame.groupby("device")["block_type"].nunique().to_dict() == {"pixel4_int8": 7, "xeon_vnni_int8": 6}
    assert set(frame["resolution"]) == {160, 192, 224}
    assert (frame["resolution"] % frame["in_side"] == 0).all()


# ---- damaged files ---------------------------------------------------------------------------------------------------


@pytest.fixture
def help_copy(shared_data: Data, tmp_path: Path) -> Path:
    """A copy of HELP's files that a test may damage."""
    folder = tmp_path / "help"
    shutil.copytree(shared_data("help"), folder, copy_function=shutil.copyfile)
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return folder


def test_a_missing_or_renamed_device_is_named(help_copy: Path) -> None:
    (help_copy / "nasbench201/latency/pixel2.pt").rename(help_copy / "nasbench201/latency/pixel2_new.pt")
    with pytest.raises(PublicDataError, match=r"latency lacks pixel2\.pt, .*they do not use: .*pixel2_new"):
        import_source(SOURCES["help"], help_copy)


def test_a_file_that_would_run_a_command_stops_the_import(
    help_copy: Path, pt_file: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    victim = tmp_path / "was_here"
    (help_copy / "nasbench201/str_arch2idx.pt").write_bytes(pt_file(b"cos\nsystem\n(Vtouch %s\ntR." % bytes(victim)))
    with pytest.raises(PublicDataError, match=r"str_arch2idx\.pt, byte 0: it wants to import 'os system'"):
        import_source(SOURCES["help"], help_copy)
    assert not victim.exists()


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ([1.0, 2], "holds 2 latencies for 3 architectures"),
        ([1.0, 2, math.nan], "latency 2 is nan; it must be a positive number"),
        ([1.0, 2, -2], "latency 2 is -2.0; it must be a positive number"),
        ([1.0, 2, "2"], "is not a list of numbers"),
        ([1.0, 2, True], "is not a list of numbers"),
        ({"latency": [1.0]}, "is not a list of numbers"),
    ],
)
def test_latencies_that_cannot_be_true_are_refused(values: object, complaint: str) -> None:
    with pytest.raises(PublicDataError, match=f"^fpga:? {re.escape(complaint)}"):
        check_latencies(values, 3, "fpga")


@pytest.mark.parametrize(
    ("name", "file", "content", "complaint"),
    [
        ("nas-bench-macro", MACRO, b"[]", "is not an object of architectures"),
        ("nas-bench-macro", MACRO, b'{"0123": {}}', "'0123' is not 8 digits from 0 to 2"),
        ("nas-bench-macro", MACRO, b'{"00000000": {}}', "a record lacks 'test_acc'"),
        ("bitfusion", LAYERS, b'{"os.system": {}}', "'os.system' is neither"),
        ("bitfusion", LAYERS, b'{"head": {"latency": NaN, "energy": 1}}', "the costs of head must be positive"),
        ("bitfusion", LAYERS, b"{'head': 1}", "is not JSON"),
        ("nas-bench-201", "nb201_acc.npz", b"PK", "is not a readable zip archive"),
        ("hat", HAT, b"a,b\n1,2\n", "has the columns a, b; they should be encoder_embed_dim"),
        ("hat", HAT, b"", "is not a table"),
        ("accel-nas-bench", ANB, tar_gz(("a/result_0.json", b"{}")), "result_0.json: it lacks 'arch"),
        ("accel-nas-bench", ANB, tar_gz(("a/x.py", b"")), "a/x.py is not a file result_N.json"),
        ("accel-nas-bench", ANB, tar_gz(("../result_0.json", b"{}")), "would lead out of the archive"),
        ("spaceevo", LUT, tar_gz(("onnxw/stage1_9_0.csv", b"")), "onnxw has block types 0 to 5"),
        ("spaceevo", LUT, tar_gz(("onnxw/stage1_0_0.csv", b"3#8#None,1x8x7x7,1,1,1,-1")), "row 1 is no sample"),
        ("spaceevo", LUT, tar_gz(("onnxw/stage1_0_0.csv", b"3#8#None,1x8x9x9,1,1,1,1")), "none of the resolutions"),
        ("spaceevo", LUT, b"\x1f\x8b", "is not a readable .tar.gz archive"),
    ],
)
def test_files_that_are_not_what_they_should_be_are_refused(
    name: str, file: str, content: bytes, complaint: str, tmp_path: Path
) -> None:
    (tmp_path / file).write_bytes(content)
    with pytest.raises(PublicDataError, match=re.escape(complaint)):
        import_source(SOURCES[name], tmp_path)


def test_a_record_of_a_trace_is_never_evaluated(tmp_path: Path) -> None:
    victim = tmp_path / "was_here"
    header = "Sub-network,Date,Model Parameters,Latency (ms),MACs,Top-1 Acc (%)\n"
    code = f"__import__('os').system('touch {victim}')"
    (tmp_path / "mbnv3w10_evonsga2_acc_macs.csv").write_text(f'{header}"{code}",2022,1,0,1,75\n')
    with pytest.raises(PublicDataError, match="is not a record"):
        import_source(SOURCES["dynas-t"], tmp_path)
    assert not victim.exists()
