"""`bide train run` in float8, from rows to a model: trained, stopped and resumed, its documents kept apart."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("safetensors")
pytest.importorskip("tokenizers")

from bide.train import float8  # noqa: E402
from bide.train.attention_backends import BACKENDS  # noqa: E402
from bide.train.float8 import Float8Linear, unscaled, use_float8  # noqa: E402
from bide.train.self_test import SelfTestError  # noqa: E402
from tiny_models import config_of, save_model  # noqa: E402
from train_runs import QUIET, arguments, losses, same, start, sums, train, weights  # noqa: E402

pytestmark = QUIET
torch.set_num_threads(1)
LAYERS = 2 * 7


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"), config_of("Qwen2"), shape=False)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sums(tmp_path_factory.mktemp("data") / "rows.jsonl")


@pytest.mark.parametrize("kind", ["tensorwise", "rowwise"])
def test_it_trains_and_goes_on_after_a_stop(kind: str, model: Path, rows: Path, tmp_path: Path) -> None:
    whole, again, plain = tmp_path / "whole", tmp_path / "again", tmp_path / "plain"
    train(model, rows, whole, float8=kind)
    train(model, rows, plain)
    receipt = json.loads((whole / "receipt.json").read_text())
    assert (receipt["settings"]["float8"], receipt["settings"]["float8_layers"]) == (kind, LAYERS)
    assert losses(whole)[-1] < 0.9 * losses(whole)[0]
    assert losses(whole) != losses(plain) and losses(whole) == pytest.approx(losses(plain), rel=0.05)
    train(model, rows, again, "--steps=2", float8=kind)
    train(model, rows, again, float8=kind)
    assert losses(again) == losses(whole) and same(weights(again / "model"), weights(whole / "model"))


def test_two_processes_gather_eight_bits(model: Path, rows: Path, tmp_path: Path) -> None:
    """The self-test comes before the first pass that measures weights by itself."""
    one, two = tmp_path / "one", tmp_path / "two"
    train(model, rows, one, float8="tensorwise")
    process = start(arguments(model, rows, two, float8="tensorwise"), processes=2)
    said, _ = process.communicate(timeout=240)
    assert process.returncode == 0, said
    assert json.loads((two / "receipt.json").read_text())["settings"]["gathered_in_float8"] == LAYERS
    assert losses(two) == pytest.approx(losses(one), rel=0.02)  # other packs, so other scales


@pytest.mark.parametrize("kind", ["tensorwise", "rowwise"])
def test_documents_that_see_each_other_are_found(
    kind: str, model: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    apart = BACKENDS["plain"].forward

    def together(query: Any, key: Any, value: Any, bounds: Any, sizes: Sequence[int], scale: float) -> Any:
        return apart(query, key, value, bounds, [sum(sizes), *[0] * (len(sizes) - 1)], scale)

    monkeypatch.setattr(BACKENDS["plain"], "forward", together)
    done = train(model, rows, tmp_path / "run", float8=kind, code=2)
    assert isinstance(done.exception, SelfTestError) and "see each other" in str(done.exception)


def test_without_scales_no_token_moves_another() -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(32, 16)
    use_float8(torch.nn.ModuleList([layer]), "tensorwise")
    x = torch.randn(16, 32)
    other = x.clone()
    other[3] *= 7
    assert isinstance(layer, Float8Linear)

    def apart() -> Any:
        return (layer(x) - layer(other)).abs().amax(1)

    def by_hand(rows: Any) -> Any:
        scale = layer.weight.abs().max() / 448
        kept = [one.clamp(-448, 448).to(float8.E4M3).float() for one in (rows, layer.weight / scale)]
        return kept[0] @ kept[1].T * scale + layer.bias

    assert bool((apart() > 0).all())  # one number's size decides how all are rounded
    with unscaled(layer):
        assert (apart() > 0).nonzero().flatten().tolist() == [3]
        assert torch.allclose(layer(x), by_hand(x), atol=1e-5)
    assert bool((apart() > 0).all())


def test_nothing_is_compiled_for_it() -> None:
    torch._dynamo.reset()
    model = torch.nn.Sequential(torch.nn.Linear(32, 16))
    use_float8(model, "tensorwise")
    counted: list[int] = []

    def count(graph: Any, inputs: Any) -> Any:
        counted.append(1)
        return graph.forward

    run = torch.compile(model, backend=count)
    x = torch.randn(16, 32)
    with unscaled(model), torch.no_grad():
        run(x)
    assert not counted
    with torch.no_grad():
        first = run(x)
        with unscaled(model):
            run(x)
        assert torch.equal(run(x), first)
    assert len(counted) == 1
