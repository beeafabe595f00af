"""Number formats as decisions: what they are called, which networks are the same, and what each operator is given."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from hanax.search_spaces import (
    FLOAT32,
    INPUT,
    INT8,
    RESOLUTION,
    Arch,
    Decision,
    MBConv,
    SearchSpace,
    Slot,
    architecture_columns,
    fbnet,
    float_arch,
    float_space,
    format_bits,
    format_name,
    format_options,
    minifloat,
    mobilenet_v3,
    nas_bench_201,
    number_format,
    operator_precision,
    policy_of,
    precision_columns,
    precision_plan,
    quantized_space,
    uniform_plan,
    with_precision,
)

SMALL = mobilenet_v3(
    resolutions=(16,), n_classes=4, image_channels=1, kernel_sizes=(3, 5), expand_ratios=(2, 4), depths=(1, 2),
    stem_width=8, stage_widths=(8, 16), stage_strides=(1, 2), stage_activations=("relu", "hswish"),
    stage_squeeze_excite=(False, True), head_width=16, feature_width=16,
)  # fmt: skip
FASHION = mobilenet_v3(
    resolutions=(28,), n_classes=10, image_channels=1, stem_width=16, stem_stride=2, stage_widths=(24, 32, 48),
    stage_strides=(2, 1, 2), stage_activations=("relu", "hswish", "hswish"), stage_squeeze_excite=(False, True, True),
    depths=(1, 2, 3), head_width=192, feature_width=256,
)  # fmt: skip
SPACE = quantized_space(SMALL, weights=("int2", "int4", "e4m3"), activations=("int4", "int8", "float32"))


def sample(n: int, seed: int = 0) -> np.ndarray:
    return SPACE.sample(np.random.default_rng(seed), n)


# ---- formats --------------------------------------------------------------------------------------------------


def test_formats_have_names_codes_and_bits() -> None:
    known = {"int2": (2, 2), "int8": (8, 8), "e4m3": (143, 8), "e2m1": (121, 4), "float32": (FLOAT32, 32)}
    for name, (code, bits) in known.items():
        assert (number_format(name), number_format(code), format_bits(code)) == (code, code, bits)
        assert format_name(code) == name
    assert number_format("E5M2") == minifloat(5, 2)


@pytest.mark.parametrize("name", ["int9", "int1", "int1000", "int143", 1, 0, -4, 9, "4", "e4", "float16", ""])
def test_an_unknown_format_is_named_with_those_there_are(name: str | int) -> None:
    with pytest.raises(ValueError, match=f"no number format {name!r}; there are int2 to int8"):
        number_format(name)


@pytest.mark.parametrize(("name", "given"), [("e9m9", "E9M9, 19 bits"), (101, "E0M1, 2 bits"), (999, "E89M9, 99 bits")])
def test_an_impossible_minifloat_is_refused_with_its_bits(name: str | int, given: str) -> None:
    with pytest.raises(ValueError, match=f"1 to 5 bits of exponent, .* got {given}"):
        number_format(name)
    if isinstance(name, int):
        with pytest.raises(ValueError, match=given):
            format_bits(name)
        with pytest.raises(ValueError, match=given):
            format_name(name)


def test_a_space_refuses_unknown_formats_and_a_second_precision() -> None:
    with pytest.raises(ValueError, match="no number format 'int9'"):
        quantized_space(SMALL, weights=("int9",))
    with pytest.raises(ValueError, match="no number format 'half'"):
        quantized_space(SMALL, ends=("int8", "half"))
    with pytest.raises(ValueError, match="decides about precision already"):
        quantized_space(SPACE)


# ---- spaces ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("granularity", ["block", "network"])
@pytest.mark.parametrize("space", [SMALL, FASHION, nas_bench_201(), fbnet()], ids=lambda space: space.name)
def test_a_quantized_space_without_precision_is_the_space_itself(space: SearchSpace, granularity: str) -> None:
    quantized = quantized_space(space, granularity=granularity)  # type: ignore[arg-type]
    assert float_space(quantized) == space
    assert float_space(quantized).fingerprint == space.fingerprint != quantized.fingerprint
    assert quantized.size > space.size


def test_spaces_without_precision_keep_their_fingerprints() -> None:
    """Artefacts made before spaces could decide about precision still belong to them."""
    found = [space.fingerprint for space in (mobilenet_v3(), FASHION, nas_bench_201(), fbnet())]
    assert found == ["f223bdff6147f7fa", "71dc54422141f169", "c08bf6e99b4bc5cc", "2ea17ee808e9d60f"]


def test_one_precision_for_the_whole_network_takes_two_decisions() -> None:
    network = quantized_space(SMALL, weights=(4, 8), activations=(6, 8), granularity="network")
    assert [network.decisions[column].name for column in precision_columns(network)] == [
        "weight_bits", "activation_bits",
    ]  # fmt: skip
    assert network.size == 4 * SMALL.size
    arch = network.arch({"weight_bits": 4, "activation_bits": 6})
    policy = policy_of(network, arch)
    assert policy.pop("stem") == policy.pop("head") == (INT8, INT8)
    assert set(policy.values()) == {(4, 6)}


def test_the_number_of_networks_counts_each_policy_of_the_blocks_there_are() -> None:
    space = quantized_space(SMALL, weights=(4, 8), activations=(8,))
    per_block = 2 * 2 * 2  # kernel, expansion, weight format
    assert space.size == 2 * (per_block + per_block**2) ** 2  # the block before the stages has a format too


def test_bits_of_absent_blocks_are_canonical_and_change_nothing() -> None:
    codes = sample(300)
    rng = np.random.default_rng(1)
    columns = precision_columns(SPACE)
    redrawn = codes.copy()
    redrawn[:, columns] = rng.integers(0, SPACE.option_counts[columns], (len(codes), len(columns)))
    counts = SPACE.active(codes)
    changed = np.where(counts, codes, redrawn)
    assert (changed != codes).any(axis=1).mean() > 0.5, "most networks have absent blocks"
    assert np.array_equal(SPACE.canonical(changed), codes)
    for one, other in zip(SPACE.decode(codes[:20]), SPACE.decode(changed[:20]), strict=True):
        assert SPACE.graph(one) == SPACE.graph(other)
        assert SPACE.blocks(one) == SPACE.blocks(other)
        assert precision_plan(SPACE, one) == precision_plan(SPACE, other)
        assert policy_of(SPACE, one) == policy_of(SPACE, other)


def test_networks_with_different_codes_differ() -> None:
    archs = SPACE.decode(np.unique(sample(200), axis=0))
    networks = {str((SPACE.blocks(arch), SPACE.resolution(arch))) for arch in archs}
    assert len(networks) == len(archs)


def test_every_format_is_reached_by_sampling_mutation_and_crossover() -> None:
    rng = np.random.default_rng(0)
    columns = precision_columns(SPACE)
    n_options = SPACE.option_counts[columns]
    first, second = sample(400, 1), sample(400, 2)
    deepest = SPACE.encode([SPACE.largest] * 400)  # every block is there
    reached = {
        "sample": sample(400, 3),
        "mutate": SPACE.mutate(rng, deepest, 0.5),
        "crossover": SPACE.crossover(rng, first, second),
    }
    for name, codes in reached.items():
        active = SPACE.active(codes)
        for column, count in zip(columns, n_options, strict=True):
            assert set(codes[active[:, column], column]) == set(range(count)), (name, SPACE.decisions[column].name)
    children = reached["crossover"]
    both = SPACE.active(first) & SPACE.active(second) & SPACE.active(children)
    assert ((children == first) | (children == second))[both].all()


# ---- architectures and policies -------------------------------------------------------------------------------


def test_with_precision_gives_every_block_one_policy_and_keeps_the_architecture() -> None:
    codes = SMALL.sample(np.random.default_rng(0), 50)
    made = with_precision(SPACE, codes, "e4m3", 8)
    assert np.array_equal(made[:, architecture_columns(SPACE)], codes)
    assert np.array_equal(SPACE.canonical(made), made)
    for arch, source in zip(SPACE.decode(made), SMALL.decode(codes), strict=True):
        assert float_arch(SPACE, arch) == source
        policy = policy_of(SPACE, arch)
        assert policy.pop("stem") == policy.pop("head") == (INT8, INT8)
        assert set(policy.values()) == {(minifloat(4, 3), 8)}
        assert SPACE.graph(arch) == SMALL.graph(source)


def test_with_precision_refuses_formats_that_are_not_offered() -> None:
    codes = SMALL.sample(np.random.default_rng(0), 1)
    message = r"first.weight_bits: int8 is not offered; mobilenet_v3, quantized offers int2, int4, e4m3"
    with pytest.raises(ValueError, match=message):
        with_precision(SPACE, codes, 8, 8)
    with pytest.raises(ValueError, match="no number format"):
        with_precision(SPACE, codes, "int99", 8)


def test_a_float_space_has_no_policy_and_no_plan() -> None:
    with pytest.raises(ValueError, match="mobilenet_v3 does not decide about precision"):
        policy_of(SMALL, SMALL.largest)
    with pytest.raises(ValueError, match="mobilenet_v3 says nothing about the precision of stem"):
        precision_plan(SMALL, SMALL.largest)


# ---- plans ----------------------------------------------------------------------------------------------------


def test_a_plan_says_what_each_operator_and_tensor_is_in() -> None:
    space = quantized_space(SMALL)
    arch = space.arch(
        {"stage1.depth": 1, "stage2.depth": 1, "first.weight_bits": 4, "first.activation_bits": 6,
         "stage1.block1.weight_bits": 8, "stage1.block1.activation_bits": 4,
         "stage2.block1.weight_bits": 6, "stage2.block1.activation_bits": 4}
    )  # fmt: skip
    plan = precision_plan(space, arch)
    assert plan.kernels == {
        "stem.conv": 8, "first.depthwise": 4, "first.project": 4,
        "stage1.block1.expand": 8, "stage1.block1.depthwise": 8, "stage1.block1.project": 8,
        "stage2.block1.expand": 6, "stage2.block1.depthwise": 6, "stage2.block1.se.reduce": 8,
        "stage2.block1.se.expand": 8, "stage2.block1.project": 6,
        "head.expand": 8, "head.mix": 8, "head.classify": 8,
    }  # fmt: skip
    assert plan.tensors == {
        INPUT: 8, "stem.conv": 6, "first.depthwise": 6, "first.project": 8, "first.add": 4,
        "stage1.block1.expand": 4, "stage1.block1.depthwise": 4, "stage1.block1.project": 8, "stage1.block1.add": 4,
        "stage2.block1.expand": 4, "stage2.block1.depthwise": 8, "stage2.block1.se.pool": 8,
        "stage2.block1.se.reduce": 8, "stage2.block1.se.expand": 8, "stage2.block1.se.scale": 4,
        "stage2.block1.project": 8,
        "head.expand": 8, "head.pool": 8, "head.mix": 8, "head.classify": 8,
    }  # fmt: skip


def test_the_plan_of_one_precision_everywhere_is_the_uniform_plan() -> None:
    space = quantized_space(SMALL, ends=("int4", "int6"))
    codes = with_precision(space, SMALL.sample(np.random.default_rng(0), 5), 4, 6)
    for arch in space.decode(codes):
        graph = space.graph(arch)
        assert precision_plan(space, arch) == uniform_plan(graph, 4, "int6")
        default = uniform_plan(graph)
        assert set(default.kernels.values()) == set(default.tensors.values()) == {INT8}
        assert set(default.tensors) == {INPUT, *(op.name for op in graph.operators)}


def test_nothing_is_in_8_bits_where_nothing_is_quantized() -> None:
    graph = SMALL.graph(SMALL.largest)
    plan = uniform_plan(graph, "float32", "float32")
    assert set(plan.kernels.values()) == set(plan.tensors.values()) == {FLOAT32}
    plain = next(op for op in graph.operators if op.is_weighted and not op.has_norm)
    assert operator_precision(plain, (4, FLOAT32)) == (INT8, FLOAT32)
    assert operator_precision(plain, (4, 4)) == (INT8, INT8)
    assert operator_precision(plain, None) == (FLOAT32, FLOAT32)


def test_a_slot_whose_name_begins_like_another_gets_its_own_formats() -> None:
    block = MBConv(8, 8, 1, (3,), (2,), "relu", False)
    names = ("net", "net.a", "net.a.b", "net.ab")
    slots = tuple(Slot(name, block, (3, 2), precision=(bits, bits)) for bits, name in enumerate(names, start=3))
    space = SearchSpace("names", 8, 4, (Decision(RESOLUTION, (8,)),), slots)
    kernels = precision_plan(space, Arch((0,))).kernels
    assert {name: kernels[f"{name}.expand"] for name in names} == dict(zip(names, (3, 4, 5, 6), strict=True))


def test_plans_lower_every_block_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    lower = MBConv.lower

    def counting(self: MBConv, name: str, *given: object) -> object:
        calls.append(name)
        return lower(self, name, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(MBConv, "lower", counting)
    precision_plan(SPACE, SPACE.largest)
    assert len(calls) == len(set(calls)) == len(SPACE.slots) - 2


@pytest.mark.parametrize("space", [nas_bench_201(), fbnet()], ids=lambda space: space.name)
def test_spaces_of_other_blocks_have_policies_and_plans(space: SearchSpace) -> None:
    quantized = quantized_space(space)
    for arch in quantized.decode(quantized.sample(np.random.default_rng(0), 3)):
        plan, graph = precision_plan(quantized, arch), quantized.graph(arch)
        assert set(plan.kernels) == {op.name for op in graph.operators if op.is_weighted}
        assert set(plan.tensors) == {INPUT, *(op.name for op in graph.operators)}
        assert len(policy_of(quantized, arch)) == len(quantized.blocks(arch))


def test_the_precision_of_a_slot_must_be_set_by_a_decision() -> None:
    slots = (dataclasses.replace(SMALL.slots[0], precision=("nothing", 8)), *SMALL.slots[1:])
    with pytest.raises(ValueError, match="precision of stem is set by 'nothing', no decision"):
        dataclasses.replace(SMALL, slots=slots)


@pytest.mark.parametrize("granularity", ["block", "network"])
def test_the_formats_on_offer_are_those_that_were_given(granularity: str) -> None:
    space = quantized_space(SMALL, weights=("int4", "int8"), activations=("int6",), granularity=granularity)  # type: ignore[arg-type]
    assert format_options(space) == ((4, 8), (6,))


def test_a_space_that_decides_about_no_formats_offers_none() -> None:
    with pytest.raises(ValueError, match="offers no formats; make a space that does by quantized_space"):
        format_options(SMALL)
