"""Where a training compiles: before its first step, all that its steps will run, the same after a stop."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("safetensors")
pytest.importorskip("tokenizers")

from functorch.compile import make_boxed_func  # noqa: E402
from torch._dynamo.backends.common import aot_autograd  # noqa: E402

from bide.train import recompute, running  # noqa: E402
from bide.train.curve import read_curve  # noqa: E402
from bide.train.sharding import World  # noqa: E402
from bide.train.trainee import Assembled  # noqa: E402
from bide.train.trainer import Trainer  # noqa: E402
from tiny_models import config_of, save_model  # noqa: E402
from train_runs import QUIET, losses, same, train, weights, written  # noqa: E402

pytestmark = QUIET
torch.set_num_threads(1)
CHOICE = "attention,matmuls:fit"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"), config_of("Qwen2", num_hidden_layers=2), shape=False)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of many lengths."""
    found = [{"question": f"{k}?", "thinking": "Hm, so. " * (1 + 2 * k), "answer": str(k)} for k in range(10)]
    return written(tmp_path_factory.mktemp("data") / "rows.jsonl", found)


class RoomUntil:
    """All layers have room for the second policy, until so many packs have asked: then not the first one any more."""

    def __init__(self, packs: int) -> None:
        self.packs = packs

    def layers(self, tokens: int) -> int:
        self.packs -= 1
        return 2 if self.packs >= 0 else 1


@pytest.fixture
def compiling(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[tuple[str, int]]]:
    """Trainings whose layers are compiled, as on a GPU, with a room for so many packs. Returns what is filled with each
    graph that is compiled for a training, and the tokens of the row for which it is."""
    choose, assemble, wrap = running.choose, running.assemble, recompute.wrap_layers

    def begin(packs: int) -> list[tuple[str, int]]:
        torch._dynamo.reset()
        recompute._COMPILED.clear()
        found: list[tuple[str, int]] = []

        def keep(kind: str, graph: Any, inputs: Any) -> Any:
            sizes = {s.node.hint for x in inputs if isinstance(x, torch.Tensor) for s in x.shape
                     if isinstance(s, torch.SymInt)}  # fmt: skip
            found.append((kind, max(sizes)))
            return make_boxed_func(graph.forward)

        backend = aot_autograd(
            fw_compiler=partial(keep, "forward"), bw_compiler=partial(keep, "backward"),
            inference_compiler=lambda graph, inputs: make_boxed_func(graph.forward),
        )  # fmt: skip
        monkeypatch.setattr(recompute, "wrap_layers", partial(wrap, backend=backend))
        monkeypatch.setattr(running, "assemble", partial(assemble, compiled=True))
        monkeypatch.setattr(running, "choose", lambda *a: replace(choose(*a), recomputed=CHOICE, room=RoomUntil(packs)))
        return found

    return begin


def warm(run: Path) -> list[bool]:
    return [point.warm for point in read_curve(run / "curve.jsonl")]


def test_a_resumed_run_compiles_what_the_uninterrupted_one_did_and_no_step_waits(
    model: Path, rows: Path, tmp_path: Path, compiling: Callable[[int], list[Any]]
) -> None:
    """Of a step on, packs leave room for one layer less: it is of a kind that the resumed run had not met in a step."""
    found = compiling(100)
    train(model, rows, tmp_path / "whole")
    assert len(found) == 4, "two kinds of layers, forward and backward"
    plan = json.loads((tmp_path / "whole" / "plan.json").read_text())
    steps = [sum(plan["tokens"][i] for i in step["samples"]) for step in plan["steps"]]
    rows_of_steps = [-(-tokens // 16) * 16 for tokens in steps]
    assert {row for _, row in found} == {rows_of_steps[0]} != {rows_of_steps[2]}
    again = compiling(2)
    train(model, rows, tmp_path / "parts", "--steps=2")
    assert again == found
    again = compiling(3)
    train(model, rows, tmp_path / "parts")
    assert again == found, "the same graphs, for the same row, whatever the step"
    assert warm(tmp_path / "whole") == [False] + [True] * 5
    assert warm(tmp_path / "parts") == [False, True, False] + [True] * 3
    assert losses(tmp_path / "parts") == pytest.approx(losses(tmp_path / "whole"), rel=1e-6)


def test_what_is_compiled_before_the_first_step_leaves_nothing_behind(
    model: Path, rows: Path, tmp_path: Path, compiling: Callable[[int], list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    compiling(100)
    train(model, rows, tmp_path / "warmed", epochs=1)
    compiling(100)
    monkeypatch.setattr(Trainer, "_warm_up", lambda _: None)
    train(model, rows, tmp_path / "cold", epochs=1)
    assert losses(tmp_path / "warmed") == losses(tmp_path / "cold")
    assert same(weights(tmp_path / "warmed" / "model"), weights(tmp_path / "cold" / "model"))


def test_a_step_that_compiles_is_not_timed(
    model: Path, rows: Path, tmp_path: Path, compiling: Callable[[int], list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Trainer, "_warm_up", lambda _: None)
    compiling(3)  # the fourth step has another kind of layer
    train(model, rows, tmp_path / "run")
    assert warm(tmp_path / "run") == [False, True, True, False, True, True]


def test_all_processes_wait_for_the_one_that_compiles(
    model: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process, of which this one only sees sums, compiles in the third step."""
    summed, steps = World.sum, [0]

    def with_another(world: World, numbers: Any) -> list[float]:
        mine = summed(world, numbers)
        if len(mine) == 3:
            steps[0] += 1
            mine[2] += steps[0] == 3
        return mine

    monkeypatch.setattr(World, "sum", with_another)
    train(model, rows, tmp_path / "run")
    assert warm(tmp_path / "run") == [False, True, False, True, True, True]


def test_moments_are_there_when_the_first_pack_is_computed(
    model: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The memory of a first step is that of the others."""
    found: list[bool] = []
    compute = Assembled.compute
    monkeypatch.setattr(
        Assembled, "compute",
        lambda made, batch, **more: (
            found.append(all(made.optimizer.state.get(p) for group in made.optimizer.param_groups
                             for p in group["params"])),
            compute(made, batch, **more),
        )[1],
    )  # fmt: skip
    train(model, rows, tmp_path / "run", "--steps=1")
    assert found == [True]


def test_a_warning_that_is_known_is_not_told_and_others_are(
    model: Path, rows: Path, tmp_path: Path, compiling: Callable[[int], list[Any]]
) -> None:
    told: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            told.append(record.getMessage())

    logger, handler = logging.getLogger("torch._higher_order_ops.wrap"), Keep()
    logger.addHandler(handler)
    try:
        torch._logging._internal.warning_once.cache_clear()  # this process may have had it
        compiling(100)
        train(model, rows, tmp_path / "run", "--steps=1")
        assert torch._logging._internal.warning_once.cache_info().currsize, "torch has not warned: is the test of use?"
        logger.warning("something else")
    finally:
        logger.removeHandler(handler)
    assert told == ["something else"]
