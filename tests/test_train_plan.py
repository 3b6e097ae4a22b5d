"""The plan: every layout holds the same samples, packs are near the best there are, weights add up, the hash is pinned.

Oracles: all ways to share small steps, the reference's own way simulated, published figures of balance.
"""

from __future__ import annotations

import itertools
import json
import math
import random
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bide.errors import UnknownNameError, UsageError
from bide.train.lengths import LAWS, histogram, law_lengths, limited, read_lengths
from bide.train.packing import cost_of_passes, pack
from bide.train.plan import Plan
from bide.train.recipe import PRESETS, TrainRecipe, load_recipe, s1
from bide.train.same_run import identity
from bide.train.shapes import SHAPES

QWEN = SHAPES["qwen2.5-32b"]
S1K = Plan.make(law_lengths("s1k"), s1(), QWEN)


# Packing


def best_makespan(costs: Sequence[float], bins: int) -> float:
    """By trying everything."""
    return min(
        max(sum(cost for cost, there in zip(costs, where) if there == one) for one in range(bins))
        for where in itertools.product(range(bins), repeat=len(costs))
    )


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=7), st.integers(1, 3))
def test_one_pass_is_within_lpt_s_bound_of_the_best(costs: list[int], bins: int) -> None:
    packs = pack(costs, costs, bins)
    assert all(len(rank) == 1 for rank in packs)
    best = best_makespan(costs, bins)
    assert best <= cost_of_passes(packs, costs) <= (Fraction(4, 3) - Fraction(1, 3 * bins)) * best  # Graham 1969


def test_moves_and_swaps_find_what_longest_first_misses() -> None:
    costs = [3, 3, 2, 2, 2]  # longest first: 7 and 5
    assert cost_of_passes(pack(costs, costs, 2), costs) == 6 == best_makespan(costs, 2)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 100), st.integers(1, 1000)), min_size=1, max_size=20),
    st.integers(1, 8),
    st.one_of(st.none(), st.integers(100, 400)),
)
def test_any_layout_is_a_partition_that_fits(items: list[tuple[int, int]], world: int, most: int | None) -> None:
    tokens, costs = [n for n, _ in items], [cost for _, cost in items]
    packs = pack(costs, tokens, world, most)
    assert len(packs) == world
    assert len({len(rank) for rank in packs}) == 1, "all ranks pass the layers together"
    assert sorted(i for rank in packs for one in rank for i in one) == list(range(len(tokens)))
    if most is not None:
        assert all(sum(tokens[i] for i in one) <= most for rank in packs for one in rank)
        assert any(one for rank in packs for one in rank[-1:]), "no pass is empty"
    assert pack(costs, tokens, world, most) == packs


def test_a_sample_longer_than_a_pack_is_refused() -> None:
    with pytest.raises(UsageError, match="sample 2 of a step has 11 tokens, a pack holds 10"):
        pack([1, 2], [5, 11], 2, 10)
    with pytest.raises(UsageError, match="number of GPUs"):
        pack([1], [1], 0)


def random_share(costs: Sequence[float], world: int, draw: random.Random) -> float:
    """The reference's way: one random sequence for each GPU in each pass."""
    order = draw.sample(list(costs), len(costs))
    return sum(max(order[i : i + world]) for i in range(0, len(order), world))


@pytest.mark.parametrize(
    ("world", "theirs", "longest_first"), [(2, 0.84, 0.99), (4, 0.74, 0.975), (8, 0.69, 0.93), (16, 0.64, 0.64)]
)
def test_balance_on_lengths_like_s1k_s(world: int, theirs: float, longest_first: float) -> None:
    """Against a simulation of the reference's way, and what an earlier simulation of both said, to 0.02."""
    draw = random.Random(world)
    done = taken = 0.0
    for step in S1K.steps:
        costs = [S1K.cost(i) for i in step.samples]
        done += sum(costs)
        taken += world * random_share(costs, world, draw)
    assert done / taken == pytest.approx(theirs, abs=0.02)
    ours = S1K.balance(world)
    assert ours > longest_first - 0.005
    assert ours >= done / taken


def test_several_passes_stay_balanced() -> None:
    for world, most, least in ((4, 21_000, 0.97), (4, 16_000, 0.96), (2, 21_000, 0.98), (1, 16_000, 0.999)):
        assert S1K.balance(world, most) > least


# Steps and weights


def recipe(**changes: Any) -> TrainRecipe:
    return s1().with_(**{"epochs": 2, "batch_size": 4, **changes})


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(10, 900), min_size=1, max_size=30),
    st.sampled_from(["wrap", "drop", "short"]),
    st.integers(0, 3),
    st.sampled_from([1, 2, 3, 4, 8]),
    st.one_of(st.none(), st.just(1000)),
)
def test_every_layout_of_a_step_holds_its_samples(
    lengths: list[int], last: str, seed: int, world: int, most: int | None
) -> None:
    chosen = recipe(last_batch=last, seed=seed)
    if last == "drop" and len(lengths) < 4:
        with pytest.raises(UsageError, match="no whole batch"):
            Plan.make(lengths, chosen, QWEN)
        return
    plan = Plan.make(lengths, chosen, QWEN)
    per_epoch = {"wrap": math.ceil(len(lengths) / 4), "short": math.ceil(len(lengths) / 4), "drop": len(lengths) // 4}
    assert [step.epoch for step in plan.steps] == sorted([0, 1] * per_epoch[last])
    assert [step.number for step in plan.steps] == list(range(len(plan.steps)))
    for number, step in enumerate(plan.steps):
        packs = plan.layout(number, world, most)
        assert Counter(i for rank in packs for one in rank for i in one) == Counter(step.samples)
        weights = plan.weights(number)
        assert math.isclose(sum(weights[i] * plan.loss_tokens[i] for i in step.samples), 1.0)
    for epoch in (0, 1):
        seen = Counter(i for step in plan.steps if step.epoch == epoch for i in step.samples)
        if last == "drop":
            assert max(seen.values()) == 1 and sum(seen.values()) == per_epoch[last] * 4
        else:
            assert set(seen) == set(range(len(lengths)))
        if last == "short" or len(lengths) % 4 == 0:
            assert set(seen.values()) == {1}


def test_s1_has_315_steps_and_wraps() -> None:
    assert len(S1K.steps) == 315 and all(len(step.samples) == 16 for step in S1K.steps)
    first, last = S1K.steps[0], S1K.steps[62]
    assert last.samples[8:] == first.samples[:8], "the last batch of an epoch is filled from its beginning"
    assert S1K.steps[0].samples != S1K.steps[63].samples, "each epoch has an order of its own"


def test_weights_are_the_objectives_they_are_named_for() -> None:
    lengths, loss = [10, 20, 40, 80], [5, 18, 30, 7]
    nll = {i: [0.1 * (i + 1) * (k % 7) for k in range(count)] for i, count in enumerate(loss)}
    for name, expected in {
        "sample_mean": sum(sum(values) / len(values) for values in nll.values()) / 4,  # 16 processes do the like
        "token_mean": sum(map(sum, nll.values())) / sum(loss),
    }.items():
        plan = Plan.make(lengths, recipe(loss_weighting=name, epochs=1), QWEN, loss_lengths=loss)
        weights = plan.weights(0)
        assert sum(weights[i] * sum(nll[i]) for i in plan.steps[0].samples) == pytest.approx(expected, rel=1e-12)


def test_a_sample_that_wraps_into_its_own_batch_counts_twice() -> None:
    plan = Plan.make([10, 30], recipe(epochs=1), QWEN)
    (step,) = plan.steps
    assert sorted(step.samples) == [0, 0, 1, 1]
    assert plan.weights(0) == {0: 1 / 40, 1: 1 / 120}
    for world in (1, 2, 4):
        packs = plan.layout(0, world)
        assert sorted(i for rank in packs for one in rank for i in one) == [0, 0, 1, 1]


STEPS = [(2, 5, 3, 4), (0, 1, 2, 5), (4, 0, 3, 2), (1, 5, 4, 0)]
"""By `for i in 0 1 2 3 4 5; do echo "$(printf "42:0:$i" | sha256sum) $i"; done | sort`, for epoch 0 and 1."""
GOLDEN = "c587da75a4d56da7713afed3e0dc7f0de00d9d03b635281a78bae7ccbaa015f0"
"""By sha256sum, of the JSON written by hand."""


def test_the_hash_is_pinned_and_knows_no_gpu() -> None:
    plan = Plan.make([100, 200, 300, 400, 500, 600], recipe(), QWEN, loss_lengths=[90, 150, 250, 300, 400, 500])
    assert [step.samples for step in plan.steps] == STEPS
    assert plan.hash == GOLDEN
    assert Plan.make(plan.tokens, recipe(), SHAPES["qwen2.5-7b"], loss_lengths=plan.loss_tokens).hash == plan.hash
    for other in (
        Plan.make(plan.tokens, recipe(seed=43), QWEN, loss_lengths=plan.loss_tokens),
        Plan.make(plan.tokens, recipe(loss_weighting="token_mean"), QWEN, loss_lengths=plan.loss_tokens),
        Plan.make(plan.tokens, recipe(), QWEN),
        Plan.make(plan.tokens, recipe(epochs=3), QWEN, loss_lengths=plan.loss_tokens),
        Plan.make(plan.tokens, recipe(), QWEN, loss_lengths=plan.loss_tokens, data="other"),
    ):
        assert other.hash != plan.hash


def test_a_plan_comes_back_from_its_file(tmp_path: Path) -> None:
    plan = Plan.make([100, 200, 300], recipe(max_length=None), QWEN, data="abc")
    plan.save(tmp_path / "plan.json")
    assert list(tmp_path.iterdir()) == [tmp_path / "plan.json"]
    again = Plan.load(tmp_path / "plan.json")
    assert again == plan and again.hash == plan.hash
    found = json.loads((tmp_path / "plan.json").read_text())
    found["steps"][0]["samples"] = found["steps"][0]["samples"][::-1]
    (tmp_path / "plan.json").write_text(json.dumps(found))
    with pytest.raises(UsageError, match="changed after it was made"):
        Plan.load(tmp_path / "plan.json")
    for text, message in (("{}", "version None"), ("[", "cannot be read"), ('{"version": 1}', "is no plan")):
        (tmp_path / "plan.json").write_text(text)
        with pytest.raises(UsageError, match=message):
            Plan.load(tmp_path / "plan.json")


def test_plans_that_cannot_be() -> None:
    with pytest.raises(UsageError, match="no samples"):
        Plan.make([], s1(), QWEN)
    with pytest.raises(UsageError, match="sample 2: 0 of 5 tokens carry loss"):
        Plan.make([5, 5], s1(), QWEN, loss_lengths=[1, 0])
    with pytest.raises(UsageError, match=r"sample 977 has [\d,]+ tokens, a pack holds 4,096"):
        S1K.layout(0, 4, 4096)


# Recipes


def test_presets_say_what_the_papers_say() -> None:
    s1_recipe, s1_1, limo = (PRESETS[name]() for name in ("s1", "s1.1", "limo"))
    assert (s1_recipe.epochs, s1_recipe.batch_size, s1_recipe.learning_rate) == (5, 16, 1e-5)
    assert (s1_recipe.beta1, s1_recipe.beta2, s1_recipe.weight_decay, s1_recipe.max_grad_norm) == (0.9, 0.95, 1e-4, 1.0)
    assert math.ceil(315 * s1_recipe.warmup_fraction) == 16 and s1_recipe.schedule == "cosine"
    assert s1_1.with_(name="s1", description=s1_recipe.description, max_length=32_768) == s1_recipe
    assert s1_1.max_length == 20_000
    assert (limo.epochs, limo.batch_size, limo.learning_rate, limo.max_length) == (15, 64, 5e-6, 16_384)
    assert len(Plan.make([10] * 817, limo, QWEN).steps) == 195
    assert {recipe.too_long for recipe in (s1_recipe, s1_1, limo)} == {"refuse"}


def test_settings_are_checked_by_name_type_and_value() -> None:
    assert s1().with_settings({"epochs": "3", "learning_rate": "2e-5", "compile": "false", "max_length": "none"}) == (
        s1().with_(epochs=3, learning_rate=2e-5, compile=False, max_length=None)
    )
    for settings_, message in (
        ({"epoch": "3"}, "unknown setting"),
        ({"epochs": "3.5"}, "epochs is a whole number, not '3.5'"),
        ({"epochs": "0"}, "epochs is at least 1"),
        ({"compile": "yes"}, "compile is true or false"),
        ({"loss_weighting": "mean"}, "loss_weighting is one of 'sample_mean', 'token_mean'"),
        ({"recompute": "some"}, "unknown recompute policy"),
        ({"format": "s2"}, "unknown reasoning format"),
        ({"quantized_base": "true"}, "needs adapters"),
        ({"lora_dropout": "0.1"}, "lora_dropout would have no effect without adapters"),
        ({"lora_alpha": "99"}, "lora_alpha would have no effect without adapters"),
        ({"lora_rank": "8", "weights": "bf16"}, "weights would have no effect under adapters"),
        ({"lora_rank": "8", "weights": "fp32"}, "weights would have no effect under adapters"),
        ({"too_long": "drop", "max_length": "none"}, "too_long would have no effect without max_length"),
        ({"schedule": "constant", "min_learning_rate_ratio": "0.1"}, "the schedule is constant"),
        ({"seed": "-1"}, "seed is from 0 to 4294967295"),
        ({"seed": "18446744073709551616"}, "seed is from 0 to 4294967295"),
        ({"system": "a \udcff"}, "system holds half of a surrogate pair or no UTF-8: 'a "),
        ({"model": ""}, "model is a directory or a model of the hub"),
        ({"beta2": "1"}, "beta2 is from 0 to below 1"),
        ({"learning_rate": "nan"}, "learning_rate is above 0"),
        ({"max_length": "1"}, "max_length is at least 2"),
    ):
        with pytest.raises(UsageError, match=message):
            s1().with_settings(settings_)
    assert s1().with_settings({"lora_rank": "8", "lora_alpha": "99"}).lora_alpha == 99
    assert s1().with_(weights="bf16").with_settings({"lora_rank": "8"}).lora_rank == 8  # as a forecast proposes it
    assert s1().with_(learning_rate=1).learning_rate == 1
    for changes in ({"epochs": 2.0}, {"epochs": True}, {"compile": 1}, {"max_length": "5"}, {"model": None}):
        with pytest.raises(UsageError):
            s1().with_(**changes)
    assert TrainRecipe.from_json(json.loads(json.dumps(s1().to_json()))) == s1()
    with pytest.raises(UsageError) as raised:  # of a recipe file, which has both
        s1().with_(lora_rank=8, lora_alpha=32).with_settings({"lora_rank": "0"})
    assert raised.value.hint == "set lora_rank, or lora_alpha=16.0"


@pytest.mark.parametrize(
    ("told", "idle"),
    [
        ({}, {"lora_alpha": 32.0, "lora_dropout": 0.1}),
        ({"max_length": None}, {"too_long": "drop"}),
        ({"schedule": "constant"}, {"min_learning_rate_ratio": 0.1}),
        ({"lora_rank": 4}, {"weights": "bf16"}),
    ],
)
def test_what_older_versions_took_without_effect_is_read_as_not_said(
    told: dict[str, Any], idle: dict[str, Any], tmp_path: Path
) -> None:
    recipe = s1().with_(**told)
    plan = Plan.make([10] * 20, recipe, QWEN)
    older = json.loads(json.dumps(plan.to_json()))
    older["recipe"] |= idle
    (tmp_path / "plan.json").write_text(json.dumps(older))
    assert Plan.load(tmp_path / "plan.json") == plan
    assert identity(plan.hash, older["recipe"]) == identity(plan.hash, recipe.to_json())


def test_other_json_is_no_plan(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text("[1]")
    with pytest.raises(UsageError, match="this is no plan"):
        Plan.load(tmp_path / "plan.json")


@pytest.mark.parametrize("seed", [-7, 2**40])
def test_a_seed_that_older_versions_took_is_read_and_not_said(seed: int, tmp_path: Path) -> None:
    plan = Plan.make([10] * 20, s1().with_(seed=seed), QWEN)
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json").recipe.with_(model="elsewhere").seed == seed
    assert identity(plan.hash, plan.recipe.to_json())["seed"] == seed
    path = tmp_path / "mine.py"
    path.write_text(f"from bide.train.recipe import s1\n\ndef recipe():\n    return s1().with_(seed={seed})\n")
    with pytest.raises(UsageError, match="seed is from 0 to 4294967295"):
        load_recipe(str(path))


def test_a_recipe_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("from bide.train.recipe import s1\n\ndef recipe():\n    return s1().with_(name='mine', epochs=2)\n")
    assert load_recipe(str(path)) == s1().with_(name="mine", epochs=2)
    path.write_text(path.read_text().replace("epochs=2", "lora_rank=8"))
    assert load_recipe(str(path)).lora_rank == 8
    path.write_text(path.read_text().replace("lora_rank=8", "lora_rank=8, weights='bf16'"))
    with pytest.raises(UsageError, match="weights would have no effect under adapters"):
        load_recipe(str(path))
    path.write_text("def recipe():\n    return 5\n")
    with pytest.raises(UsageError, match=r"recipe\(\) returned int"):
        load_recipe(str(path))
    path.write_text("import nothing_like_this")
    with pytest.raises(UsageError, match="cannot be run: ModuleNotFoundError"):
        load_recipe(str(path))
    with pytest.raises(UnknownNameError, match="unknown recipe 's2'"):
        load_recipe("s2")
    with pytest.raises(UsageError, match="there is no file"):
        load_recipe(str(tmp_path / "other.py"))


# Lengths


def test_laws_are_what_is_known_of_the_sets() -> None:
    lengths = law_lengths("s1k")
    assert sum(lengths) / 1000 == pytest.approx(5200, rel=0.005)
    assert sum(n < 4096 for n in lengths) == 260 and 9000 < max(lengths) <= 9109
    r1 = law_lengths("s1k-1.1", 100)
    assert sum(r1) / 100 == pytest.approx(9655, rel=0.01)
    assert min(r1) >= 1367 and max(r1) <= 17_908
    assert sorted(r1)[49:51] == pytest.approx([9198, 9198], rel=0.02)


def test_files_of_lengths(tmp_path: Path) -> None:
    path = tmp_path / "lengths"
    for text in ("5\n7\n", "[5, 7]", '{"tokens": 5}\n\n{"tokens": 7}\n', "5,5\n7 7\n", '[{"tokens": 5}, [7, 7]]'):
        path.write_text(text)
        assert read_lengths(str(path)) == ([5, 7], [5, 7])
    path.write_text('5 3\n{"tokens": 7, "loss_tokens": 2}')
    assert read_lengths(str(path)) == ([5, 7], [3, 2])
    for text, message in (
        ("5\nfive", "entry 2: 'five' is no length"),
        ("5 6", "entry 1"),
        ("0", "entry 1"),
        ("[true]", "entry 1"),
        ("[5", "cannot be read"),
        ("", "holds no lengths"),
    ):
        path.write_text(text)
        with pytest.raises(UsageError, match=message):
            read_lengths(str(path))
    with pytest.raises(UsageError, match="there is no file") as error:
        read_lengths(str(tmp_path / "none"))
    assert "or one of: s1k" in error.value.hint
    assert read_lengths("s1k")[0] == law_lengths("s1k") and set(LAWS) == {"s1k", "s1k-1.1"}


def test_lengths_obey_max_length() -> None:
    assert limited([5, 9], [4, 8], s1()) == ([5, 9], [4, 8])
    with pytest.raises(UsageError, match="1 samples are longer than max_length"):
        limited([5, 9], [4, 8], s1().with_(max_length=6))
    assert limited([5, 9], [4, 8], s1().with_(max_length=6, too_long="drop")) == ([5], [4])
    assert limited([5, 9], [4, 8], s1().with_(max_length=6, too_long="truncate")) == ([5, 6], [4, 5])


@given(st.lists(st.integers(1, 100_000), min_size=1, max_size=50))
def test_a_histogram_counts_each_once(lengths: list[int]) -> None:
    rows = histogram(lengths)
    assert len(rows) <= 12
    for low, high, count in rows:
        assert count == sum(low <= n < high for n in lengths)
    assert sum(count for _, _, count in rows) == len(lengths)
