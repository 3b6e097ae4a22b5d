"""Receipts, calibration and curves: numbers worked out by hand, or by the forecast itself."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from bide.errors import UsageError
from bide.train.calibration import Calibration
from bide.train.curve import SMOOTHED, CurveFile, Point, deviation, draw, read_curve, read_reference
from bide.train.forecast import Forecast, forecast
from bide.train.gpus import Machine, parse_machine
from bide.train.memory import GIB
from bide.train.plan import Plan
from bide.train.receipt import PAGE, RECEIPT, Receipt, add_to_calibration, make_receipt
from bide.train.recipe import s1
from bide.train.shapes import SHAPES

LENGTHS = [1_000 + 37 * (i * i % 211) for i in range(48)]


def point(step: int, seconds: float = 2.0, loss: float = 1.0, *, warm: bool = True) -> Point:
    return Point(step, step / 3, loss, 0.5, 1e-5, 100, seconds, warm)


@pytest.fixture
def plan() -> Plan:
    recipe = s1().with_(epochs=2, weights="bf16")
    return Plan.make(LENGTHS, recipe, SHAPES["qwen2.5-7b"], loss_lengths=[n - 100 for n in LENGTHS])


def receipt_of(
    plan: Plan,
    machine: Machine | None,
    told: Forecast | None,
    seconds: list[float],
    peak: float,
    *,
    began: int = 0,
    cold: tuple[int, ...] = (0,),
) -> Receipt:
    """cold: places of the steps that were not warm."""
    points = [point(k + 1, spent, 1.0 - 0.1 * k, warm=k not in cold) for k, spent in enumerate(seconds)]
    return make_receipt(
        plan,
        points,
        device="NVIDIA H200",
        gpus=4,
        began=began,
        max_tokens=None,
        peak_gib=peak,
        reserved_gib=peak + 1,
        machine=machine,
        price=None if machine is None else 4.0,
        told=told,
        settings={"recompute": told.recompute if told else "full"},
        versions={"bide": "1"},
    )


def test_a_receipt_adds_up(plan: Plan, tmp_path: Path) -> None:
    seconds = [60.0, 2.0, 4.0, 3.0, 2.0, 4.0]
    receipt = receipt_of(plan, parse_machine("h200:4"), None, seconds, 50.0)
    assert receipt.finished and receipt.steps == receipt.steps_of_plan == 6
    assert receipt.gpu_hours == pytest.approx(75 * 4 / 3600) and receipt.dollars == pytest.approx(75 * 16 / 3600)
    assert receipt.seconds_per_step == pytest.approx(3.0)  # the first one compiled kernels
    tokens = [sum(LENGTHS[i] for i in step.samples) for step in plan.steps]
    assert receipt.tokens == sum(tokens) == 2 * sum(LENGTHS)
    assert receipt.tokens_per_second_per_gpu == pytest.approx(sum(tokens[1:]) / 15 / 4)
    shape = SHAPES["qwen2.5-7b"]
    flops = sum(shape.flops_of_document(LENGTHS[i]) for step in plan.steps[1:] for i in step.samples)
    assert receipt.mfu == pytest.approx(flops / 15 / 4 / 989e12)
    receipt.save(tmp_path)
    assert json.loads((tmp_path / RECEIPT).read_text())["first_loss"] == 1.0
    assert "| GPU-hours | 0.083 |" in (tmp_path / PAGE).read_text()


def test_a_stopped_run_says_so(plan: Plan) -> None:
    receipt = receipt_of(plan, None, None, [3.0, 2.0], 0.0)
    assert not receipt.finished and "2 of 6 (stopped)" in receipt.page()
    assert receipt.mfu is None and receipt.dollars is None


def test_steps_that_compiled_are_told_and_count_for_nothing_else(plan: Plan, tmp_path: Path) -> None:
    machine, path = parse_machine("h200:4"), tmp_path / "calibration.json"
    told = forecast(plan, machine)
    warm = [2.0, 3.0, 4.0, 3.0]
    plain = receipt_of(plan, machine, told, [3.0, *warm[:3], 3.0, warm[3]], 50.0, cold=(0, 4))
    slow = receipt_of(plan, machine, told, [22.0, *warm[:3], 8.0, warm[3]], 50.0, cold=(0, 4))
    assert slow.seconds_per_step == 3.0 and slow.forecast["time_ratio"] == plain.forecast["time_ratio"]
    assert (slow.cold_steps, slow.cold_seconds) == (2, pytest.approx(22.0 + 8.0 - 2 * 3.0))
    assert "| first steps and compiling | 2 steps, 24.0 s more than others |" in slow.page()
    assert "compiling" not in plain.page() and slow.hours > plain.hours
    slow.save(tmp_path)
    known = json.loads((tmp_path / RECEIPT).read_text())
    del known["cold_steps"], known["cold_seconds"]  # of an older version
    (tmp_path / RECEIPT).write_text(json.dumps(known))
    assert Receipt.load(tmp_path).cold_steps == 0
    none = receipt_of(plan, machine, told, [22.0, 9.0], 50.0, cold=(0, 1))
    assert none.seconds_per_step == 15.5 and none.forecast["time_ratio"] is None
    assert "s a step, measured not;" in none.page() and not none.cold_steps
    assert not add_to_calibration(path, none, plan, machine) and not path.exists()


def test_memory_is_held_against_the_steps_that_ran_this_time(plan: Plan) -> None:
    """A pack for each GPU: the forecast of a plan that has only those steps."""
    machine = parse_machine("h200:4")
    told = forecast(plan, machine)
    counted = {}
    for first, last in ((0, 6), (0, 2), (2, 6), (5, 6)):
        part = replace(plan, steps=plan.steps[first:last])
        alone = forecast(part, machine, max_tokens=told.max_tokens)
        assert alone.recompute == told.recompute
        counted[first, last] = alone.memory.allocated / GIB
        found = receipt_of(plan, machine, told, [2.0] * last, 1.01 * counted[first, last], began=first)
        assert found.forecast["memory_ratio"] == pytest.approx(1.01), (first, last)
        assert found.forecast["peak_gib"] == counted[0, 6] == told.memory.allocated / GIB
        over = f"measured +1.0 % over the {counted[first, last]:.1f} of these steps |"
        assert (over in found.page()) == (round(counted[first, last] - counted[0, 6], 1) != 0)
    assert len({round(size, 1) for size in counted.values()}) > 1, "all alike: the test shows nothing"
    nothing = receipt_of(plan, machine, told, [2.0] * 6, 20.0, began=6)  # only exported, this time
    assert nothing.forecast["memory_ratio"] is None


@pytest.mark.parametrize("slower", [0.8, 1.3])
def test_a_calibrated_forecast_is_what_was_measured(plan: Plan, tmp_path: Path, slower: float) -> None:
    machine, path = parse_machine("h200:4"), tmp_path / "calibration.json"
    told = forecast(plan, machine)
    mean = plan.total_flops / len(plan.steps)
    heavy = [sum(plan.cost(i) for i in step.samples) / mean for step in plan.steps]
    seconds = [slower * told.seconds_per_step * work for work in heavy]
    receipt = receipt_of(plan, machine, told, seconds, 1.1 * told.memory.allocated / GIB)
    assert receipt.forecast["time_ratio"] == pytest.approx(slower)
    assert receipt.forecast["memory_ratio"] == pytest.approx(1.1)
    assert add_to_calibration(path, receipt, plan, machine)
    again = forecast(plan, machine, calibration=Calibration.read(path))
    assert again.recompute == told.recompute
    assert again.seconds_per_step == pytest.approx(slower * told.seconds_per_step)
    assert again.memory.allocated == pytest.approx(1.1 * told.memory.allocated)
    second = receipt_of(plan, machine, again, seconds, 1.1 * told.memory.allocated / GIB)
    assert second.forecast["time_ratio"] == pytest.approx(1.0)
    assert add_to_calibration(path, second, plan, machine)  # over the forecast without calibration, once more
    first, other = Calibration.read(path).measurements
    assert other.seconds == pytest.approx(first.seconds) and other.bytes == pytest.approx(first.bytes)


def test_adapters_are_not_credited_with_gradients_they_spare(plan: Plan) -> None:
    adapted = replace(plan, recipe=plan.recipe.with_(lora_rank=8))
    machine = parse_machine("h200:4")
    whole, part = (receipt_of(one, machine, None, [3.0] * 6, 1.0).mfu for one in (plan, adapted))
    assert whole is not None and part is not None
    assert 0.66 < part / whole < 0.70  # 4 of 6 FLOPs a weight, attention as before


def test_a_curve_file_forgets_what_was_not_saved(tmp_path: Path) -> None:
    first = CurveFile(tmp_path, 0)
    for step in range(1, 6):
        first.add(point(step))
    first.close()
    with first.path.open("a") as file:
        file.write('{"step": 6, "epo')  # a kill in the middle of a line
    assert [found.step for found in read_curve(first.path)] == [1, 2, 3, 4, 5]
    second = CurveFile(tmp_path, 3)
    second.add(point(4, loss=0.25))
    second.close()
    assert [(found.step, found.loss) for found in read_curve(first.path)] == [(1, 1.0), (2, 1.0), (3, 1.0), (4, 0.25)]


def test_a_curve_file_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "curve.jsonl"
    path.write_text('{"step": 1}\n')
    with pytest.raises(UsageError, match="line 1: not a step"):
        read_curve(path)


REFERENCES = {
    "wandb.csv": '"Step","s1 - train/loss","s1 - train/loss__MIN"\n1,0.5,0.4\n2,,\n3,0.25,0.2\n',
    "evaluated.csv": "step,eval/loss,train/loss,loss\n1,9,0.5,7\n2,9,NaN,7\n3,9,0.25,7\n",
    "summed.csv": "\ufeff_step,eval_loss,train_loss\n1,9,0.5\n3,9,0.25\n",
    "plain.csv": "global_step,val_loss,loss\n1,9,0.5\n2,9,inf\n3,9,0.3\n3,9,0.25\n",
    "run-eval-tag-train_loss.csv": "Wall time,Step,Value\n1700000000.5,1,0.5\n1700000009.5,3,0.25\n",
    "tensorboard.csv": "Wall time,Step,Value\n1700000000.5,1,0.5\n1700000009.5,3,0.25\n",
    "trainer_state.json": json.dumps(
        {
            "global_step": 3,
            "log_history": [
                {"step": 1, "loss": 0.5, "learning_rate": 1e-5},
                {"step": 2, "loss": math.nan},
                {"step": 3, "eval_loss": 9.0},
                {"step": 3, "loss": 0.25},
                {"step": 3, "train_loss": 0.4},
            ],
        }
    ),
    "curve.jsonl": "\n".join(json.dumps(asdict(point(step, loss=loss))) for step, loss in ((1, 0.5), (3, 0.25))),
}
"""One curve in each form."""


@pytest.mark.parametrize("name", REFERENCES)
def test_references_are_read_as_they_are_exported(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text(REFERENCES[name], encoding="utf-8")
    assert read_reference(path) == {1: 0.5, 3: 0.25}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("r.csv", "a,b\n1,2\n", "no columns step and loss, but: a, b"),
        ("r.csv", "", "no columns step and loss, but: none"),
        ("r.csv", "step,eval/loss\n1,2\n", "no columns step and loss, but: step, eval/loss"),
        ("r.csv", "loss\n1\n", "no columns step and loss, but: loss"),
        ("r.csv", "Step,a - loss,b - loss\n1,2,3\n", "several losses of a training: a - loss, b - loss"),
        ("r.csv", "step,loss\n1,\n2,nan\n", "holds no step with a loss"),
        ("r.csv", "step,loss\n1,2\n2,two\n", "row 2: step '2' with loss 'two'"),
        ("r.csv", "step,loss\n,2\n", "row 1: step '' with loss '2'"),
        ("r.csv", "step,loss\ninf,2\n", "row 1: step 'inf' with loss '2'"),
        ("run-x-tag-eval_loss.csv", "Wall time,Step,Value\n1,1,2\n", "named as a curve of an evaluation, eval_loss"),
        ("run-x-tag-loss_Validation.csv", "Wall time,Step,Value\n1,1,2\n", "an evaluation, loss_Validation"),
        ("r.jsonl", '{"loss": 1}\n', "r.jsonl, line 1: not a step of a curve: no "),
        ("r.json", "[1]", "no log_history"),
        ("r.json", '{"log_history": 5}', "no log_history"),
        ("r.json", '{"log_history": [{"loss": 2}]}', "row 1: step None with loss 2"),
        ("r.json", '{"log_history": [5]}', "holds no step with a loss"),
        ("r.jsonl", "\xff", "is no text in UTF-8"),
        ("r.csv", "\xff", "is no text in UTF-8"),
    ],
)
def test_references_that_are_none(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text, encoding="latin-1")
    with pytest.raises(UsageError, match=message):
        read_reference(tmp_path / name)


def test_deviation_is_the_mean_of_the_last_steps_over_theirs() -> None:
    reference = {step: 0.5 for step in range(1, 40)}
    points = [point(step, loss=9.0 if step <= 20 else 0.6) for step in range(1, 30)]
    assert deviation(points[: SMOOTHED - 1], reference) is None
    assert deviation(points, reference) == pytest.approx(0.2)
    assert deviation(points, {}) is None


def test_a_drawn_curve_falls_where_the_loss_does() -> None:
    mine = {step: 2.0 - step / 50 for step in range(1, 51)}
    drawn = draw([("mine", mine), ("other", {step: 1.0 for step in mine})], width=50, height=11, last_step=100)
    lines = drawn.splitlines()
    rows = [next(y for y, line in enumerate(lines[:11]) if line[10:][x : x + 1] == "●") for x in range(25)]
    assert rows == sorted(rows) and rows[0] == 0 and rows[-1] == 10
    assert lines[0].lstrip().startswith("1.970") and "● mine   · other" in lines[-1]
    assert all("●" not in line[10 + 25 :] for line in lines[:11])  # the second half is still to come
    assert draw([("none", {1: math.nan})]) == ""
