"""`bide train run --deterministic`: what is switched on, refused and told. On a CPU runs are the same bytes anyway."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("safetensors")
pytest.importorskip("tokenizers")

from bide.errors import UnknownNameError, UsageError  # noqa: E402
from bide.train import choosing  # noqa: E402
from bide.train.attention import choose_backend  # noqa: E402
from bide.train.attention_backends import BACKENDS  # noqa: E402
from bide.train.choosing import RunSettings  # noqa: E402
from bide.train.determinism import WORKSPACE, NotDeterministicError, deterministic  # noqa: E402
from bide.train.plan import Plan  # noqa: E402
from bide.train.recipe import s1  # noqa: E402
from bide.train.shapes import SHAPES  # noqa: E402
from bide.train.sharding import World  # noqa: E402
from bide.train.trainee import Assembled  # noqa: E402
from bide.train.trainer import Trainer  # noqa: E402
from tiny_models import config_of, save_model  # noqa: E402
from train_runs import QUIET, losses, same, sums, train, weights  # noqa: E402

pytestmark = QUIET
torch.set_num_threads(1)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"), config_of("Qwen2"), shape=False)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sums(tmp_path_factory.mktemp("data") / "rows.jsonl")


@pytest.fixture(scope="module")
def whole(model: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was not told to be deterministic."""
    out = tmp_path_factory.mktemp("whole") / "run"
    train(model, rows, out)
    return out


def switches() -> dict[str, Any]:
    return {
        "operators": torch.are_deterministic_algorithms_enabled(),
        "warn only": torch.is_deterministic_algorithms_warn_only_enabled(),
        "compiler": torch._inductor.config.deterministic,
        "filled": torch.utils.deterministic.fill_uninitialized_memory,
        "without caches": torch.compiler.config.force_disable_caches,
        "workspace": os.environ.get(WORKSPACE),
    }


def told(run: Path) -> Any:
    return json.loads((run / "receipt.json").read_text())["settings"]["deterministic"]


def test_a_deterministic_run_computes_the_same_and_says_so(
    model: Path, rows: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[dict[str, Any]] = []
    before, step = switches(), Trainer._step
    monkeypatch.setattr(Trainer, "_step", lambda *a: (found.append(switches()), step(*a))[1])
    done = train(model, rows, tmp_path / "run", "--deterministic", "--steps=2")
    train(model, rows, tmp_path / "run", "--deterministic")
    assert losses(tmp_path / "run") == losses(whole)
    assert same(weights(tmp_path / "run" / "model"), weights(whole / "model"))
    assert "recompute none, deterministic\n" in done.stderr
    assert told(tmp_path / "run") is True and told(whole) is False
    assert "| deterministic | True |" in (tmp_path / "run" / "receipt.md").read_text()
    on = {"operators": True, "warn only": False, "compiler": True, "filled": False, "without caches": True}
    assert found == [on | {"workspace": ":4096:8"}] * 6
    assert switches() == before and not before["operators"]


def test_a_run_may_change_over_and_the_receipt_tells_from_when(model: Path, rows: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    train(model, rows, out, "--steps=2")
    train(model, rows, out, "--deterministic", "--steps=3")
    train(model, rows, out, "--deterministic", "--steps=4")
    assert told(out) == "from step 3 on"
    train(model, rows, out)
    assert told(out) is False and len(losses(out)) == 6


def test_attention_whose_gradients_vary_is_not_taken() -> None:
    choices = {(kind, on): choose_backend(None, device=kind, deterministic=on) for kind in ("cpu", "cuda")
               for on in (False, True)}  # fmt: skip
    assert choices == {
        ("cpu", False): "plain", ("cpu", True): "plain", ("cuda", False): "cudnn", ("cuda", True): "varlen",
    }  # fmt: skip
    for name in ("cudnn", "cudnn-repeated"):
        assert choose_backend(name, device="cuda", deterministic=False) == name
        with pytest.raises(UsageError, match=f"'{name}' adds gradients in an order that varies") as raised:
            choose_backend(name, device="cuda", deterministic=True)
        assert "varlen" in str(raised.value.hint) and "cudnn" not in str(raised.value.hint)
    assert choose_backend("varlen-repeated", device="cuda", deterministic=True) == "varlen-repeated"
    with pytest.raises(UnknownNameError):
        choose_backend("cuddn", device="cuda", deterministic=True)
    assert {name for name, backend in BACKENDS.items() if not backend.repeatable} == {"cudnn", "cudnn-repeated"}


def test_what_contradicts_it_is_refused_before_anything_is_written(model: Path, rows: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not go with --deterministic"):
        train(model, rows, tmp_path / "run", "--deterministic", "--attention=cudnn")
    assert not (tmp_path / "run").exists() and not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize(("gpus", "on", "told"), [(1, True, False), (2, True, True), (2, False, False)])
def test_over_several_gpus_it_is_told_that_their_sums_are_not_fixed(
    gpus: int, on: bool, told: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choosing, "device_name", lambda _: "a GPU without a forecast")
    world = World(0, gpus, torch.device("cuda"), None)
    monkeypatch.setattr(World, "gather", lambda world, mine: [mine] * gpus)
    plan = Plan.make([100, 90, 80, 70], s1().with_(batch_size=2), SHAPES["qwen2.5-0.5b"])
    ready = choosing.choose(plan, RunSettings(out=tmp_path, deterministic=on), world)
    assert any("NCCL adds over GPUs" in note for note in ready.notes) is told


@pytest.mark.parametrize("before", [None, ":16:8", ":0:0"])
def test_the_workspace_of_matrix_products(before: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(WORKSPACE, raising=False)
    if before is not None:
        monkeypatch.setenv(WORKSPACE, before)
    if before == ":0:0":
        with pytest.raises(UsageError, match="':0:0'"), deterministic(on_gpu=True):
            pass
    else:
        with deterministic(on_gpu=True):
            assert os.environ[WORKSPACE] == (before or ":4096:8")
    assert os.environ.get(WORKSPACE) == before
    with deterministic(on_gpu=False):  # where it means nothing
        pass
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    if before is None:
        with pytest.raises(UsageError, match="before CUDA starts"), deterministic(on_gpu=True):
            pass


def test_an_operator_that_refuses_is_told_in_one_line(
    model: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compute(*_: Any, **__: Any) -> Any:
        return torch.zeros(2).put_(torch.tensor([0]), torch.ones(1))  # PyTorch has one way to do this, for races

    monkeypatch.setattr(Assembled, "compute", compute)
    with pytest.raises(NotDeterministicError, match=r"^put_ has no way to compute the same bytes twice") as raised:
        train(model, rows, tmp_path / "run", "--deterministic")
    assert "\n" not in str(raised.value) and raised.value.hint == "run without --deterministic"
    with pytest.raises(RuntimeError, match=r"^something else$"), deterministic(on_gpu=False):
        raise RuntimeError("something else")
