"""Recomputation that each pack decides by the room it leaves (`bide.train.room`)."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from bide.errors import UsageError
from bide.train.gpus import parse_machine
from bide.train.memory import limit, memory
from bide.train.recipe import s1
from bide.train.recompute_policies import parse
from bide.train.room import Room
from bide.train.shapes import SHAPES

QWEN = SHAPES["qwen2.5-32b"]


@pytest.mark.parametrize(
    ("choice", "machine", "changes"),
    [
        ("attention,matmuls:fit", "h200:4", {"weights": "bf16"}),
        ("attention,matmuls:fit", "h200:4", {"weights": "bf16", "moments": "int8", "reduce": "fp32"}),
        ("full,none:fit", "h100:8", {"weights": "bf16", "compile": False}),
        ("full,attention:fit", "h100:4", {"lora_rank": 16}),
    ],
)
def test_as_many_layers_as_fit_and_not_one_more(choice: str, machine: str, changes: dict[str, Any]) -> None:
    """Each number of layers tried by itself."""
    recipe, there = s1().with_(**changes), parse_machine(machine)
    room, stem = Room(QWEN, recipe, there, choice), choice.removesuffix("fit")

    def fits(layers: int, tokens: int) -> bool:
        used = memory(QWEN, recipe, there.count, tokens=0, later=tokens, recompute=f"{stem}{layers}")
        return used.total <= limit(there)

    seen = set()
    for tokens in (128, 2_048, 5_504, 7_936, 9_216, 14_208, 40_064, 400_000):
        most = max((k for k in range(QWEN.layers + 1) if fits(k, tokens)), default=0)
        assert room.layers(tokens) == most, tokens
        assert room.choice(tokens) == f"{stem}{most}"
        seen.add(most)
    assert len(seen) > 2, "the packs do not differ"


def test_memory_that_takes_more_than_counted_leaves_less_room() -> None:
    recipe, there = s1().with_(weights="bf16"), parse_machine("h200:4")
    plain, larger = (Room(QWEN, recipe, there, "attention,matmuls:fit", factor) for factor in (1.0, 1.1))
    assert 0 < larger.layers(9_216) < plain.layers(9_216) < QWEN.layers
    counted = memory(QWEN, recipe, 4, tokens=0, later=9_216, recompute=larger.choice(9_216))
    assert 1.1 * counted.allocated + counted.context <= limit(there)


def test_fit_is_a_number_of_layers_only() -> None:
    assert parse("full,attention:fit", 3, fitting=2) == ["full", "attention", "attention"]
    assert parse("layers:fit", 3, fitting=1) == ["full", "full", "none"]
    with pytest.raises(UsageError, match="from 0 to 3 behind the colon, or 'fit'"):
        parse("full,attention:fits", 3)
    with pytest.raises(UsageError, match="keeps more behind the comma"):
        parse("matmuls,full:fit", 3)


class Always:
    """A room that answers what it is told, and keeps what it was asked."""

    def __init__(self, *answers: int) -> None:
        self.answers, self.asked = list(answers), list[int]()

    def layers(self, tokens: int) -> int:
        self.asked.append(tokens)
        return self.answers.pop(0)


def test_packs_of_a_training_ask_and_compute_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two steps of two packs: each pack asks anew, with its row's length; losses and weights are those of a training
    that recomputes nothing; attention runs again where it was said."""
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    import torch

    from bide.train import attention_backends, trainee
    from bide.train.batches import PAD_MULTIPLE, make_batch
    from bide.train.sharding import start_world
    from tiny_models import config_of

    runs = Counter[str]()
    forward = attention_backends.Plain.forward
    monkeypatch.setattr(attention_backends.Plain, "forward", lambda *a: (runs.update(["attention"]), forward(*a))[1])
    recipe = s1().with_(weights="fp32", moments="fp32")
    config = config_of("Qwen2", num_hidden_layers=4)
    samples = {i: Sample(range(3 + i, 23 + 7 * i)) for i in range(4)}

    def train(recomputed: str, room: Any) -> tuple[list[float], list[int], dict[str, Any]]:
        with start_world("cpu") as world:
            made = trainee.assemble(config, recipe, world, weights=None, recomputed=recomputed, room=room)
            for parameter in made.trained().values():  # as a run does that makes checkpoints
                made.optimizer.state_of(parameter)
            losses, attended = [], []
            for packs in (((0, 1), (2,)), ((3,), (1,))):
                for pack in packs:
                    runs.clear()
                    batch = make_batch(pack, samples, dict.fromkeys(range(4), 0.01), world.device)
                    losses.append(float(made.compute(batch, all_kinds=not losses)[0]))
                    attended.append(runs["attention"])
                made.update(1e-2, made.gradient_norm(), 1.0)
            return losses, attended, {name: p.detach().full_tensor() for name, p in made.trained().items()}

    room = Always(4, 1, 4, 0)
    wanted, found = train("none", None), train("full,none:fit", room)
    rows = [sum(len(samples[i].token_ids) for i in pack) for pack in ((0, 1), (2,), (3,), (1,))]
    assert [asked // PAD_MULTIPLE["cpu"] for asked in room.asked] == [-(-row // PAD_MULTIPLE["cpu"]) for row in rows]
    assert found[1] == [4 + 1, 4 + 3, 4, 4 + 4], "one that asks for it has layers of both kinds"
    assert wanted[1] == [4] * 4
    assert found[0] == pytest.approx(wanted[0], rel=1e-5)
    torch.testing.assert_close(found[2], wanted[2], rtol=1e-4, atol=1e-5)


class Sample:
    def __init__(self, ids: range) -> None:
        self.token_ids = ids
        self.loss = ((2, len(ids)),)
