"""The kernel against the rows that a `BudgetForcer` drives: the same logits, the same odds, at every step."""

from __future__ import annotations

import os
import random
from dataclasses import replace
from typing import Any

import pytest

os.environ.setdefault("TRITON_INTERPRET", "1")  # before anything imports triton; "0" where there is a GPU
pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("triton", reason="triton is not installed")

import torch

from bide.logits_kernel import KernelRows
from bide.logits_processor import ForcedRow, HostRows
from forcing_tools import VOCABULARY, Case
from test_logits_processor import cases, logits_of

DEVICE = "cpu" if os.environ["TRITON_INTERPRET"] == "1" else "cuda"
COUNT = 400 if DEVICE == "cuda" else 40  # interpreted, a step takes milliseconds


def flags_of(case: Case) -> Any:
    flags = torch.zeros(VOCABULARY, dtype=torch.uint8)
    for token in range(VOCABULARY):
        flags[token] = (token in case.markers.line_ends) + 2 * (token in case.markers.sentence_ends)
    return flags


@pytest.mark.parametrize("several", [False, True], ids=["ends of one id", "ends of several ids"])
def test_logits_are_those_of_the_reference_rows(several: bool) -> None:
    draw = random.Random(7)
    for case in cases(COUNT, several=several):
        temperature = draw.choice((0.0, 0.7, 1.0))
        opening = draw.choice(((), (1, 2)))
        markers = case.markers
        if draw.random() < 0.3:  # a request for which the end of the turn is a token like any other
            case = replace(case, markers=replace(markers, eos=frozenset()))
        opened = replace(case, prompt=[*case.prompt, *opening])
        row = ForcedRow(opened.forcer(), opening=opening, temperature=temperature, seed=case.seed)
        kernel = KernelRows(3, [markers], flags_of(case), DEVICE)
        kernel.write(1, row, case.texts)
        rows = HostRows()
        output: list[int] = []
        for step in range(min(case.max_tokens, 40)):
            rows.advance([(0, row, output)], moved=not step)
            base = torch.tensor([logits_of(case.seed, [*case.prompt, *output])])
            expected = base.clone()
            rows.apply(expected.numpy())
            found = base.clone().to(DEVICE)
            last = output[-1] if output else 0
            for _ in range(draw.choice((1, 1, 2))):  # a row whose sample is thrown away comes again
                found = base.clone().to(DEVICE)
                feed = torch.tensor([[0], [1], [last], [len(output)]], dtype=torch.int32)
                pinned = DEVICE == "cuda" and draw.random() < 0.5  # then the kernel reads it from the host
                kernel.apply(found, feed.pin_memory() if pinned else feed.to(DEVICE), 1)
            found = found.cpu()
            assert torch.allclose(expected, found, atol=1e-4), (case, output, base, expected, found)
            chances = torch.softmax(found[0] / (temperature or 1), 0).tolist()
            greedy = temperature == 0
            output.append(int(found[0].argmax()) if greedy else draw.choices(range(VOCABULARY), chances)[0])
            if output[-1] in case.markers.eos:
                break
        row.advance(output[:-1])


def test_many_rows_in_one_launch_are_as_each_alone() -> None:
    several = list(cases(12, first=5000))
    markers = several[0].markers
    rows = [
        ForcedRow(replace(case, markers=markers).forcer(), temperature=1.0, seed=i) for i, case in enumerate(several)
    ]
    together = KernelRows(20, [markers], flags_of(several[0]), DEVICE)
    alone = [KernelRows(2, [markers], flags_of(several[0]), DEVICE) for _ in rows]
    for slot, (row, case) in enumerate(zip(rows, several)):
        together.write(slot + 3, row, case.texts)
        alone[slot].write(1, row, case.texts)
    outputs: list[list[int]] = [[] for _ in rows]
    draw = random.Random(3)
    for _ in range(12):
        order = draw.sample(range(len(rows)), draw.randint(1, len(rows)))  # others wait, or are preempted
        base = torch.randn(len(order), VOCABULARY, generator=torch.Generator().manual_seed(draw.randint(0, 99)))
        feed = [[*range(len(order))], [i + 3 for i in order], [(outputs[i] or [0])[-1] for i in order],
                [len(outputs[i]) for i in order]]  # fmt: skip
        found = base.clone().to(DEVICE)
        together.apply(found, torch.tensor(feed, dtype=torch.int32, device=DEVICE), len(order))
        for number, i in enumerate(order):
            one = base[number : number + 1].clone().to(DEVICE)
            feed = [[0], [1], [(outputs[i] or [0])[-1]], [len(outputs[i])]]
            alone[i].apply(one, torch.tensor(feed, dtype=torch.int32, device=DEVICE), 1)
            assert torch.equal(found[number], one[0])
            outputs[i].append(int(one[0].argmax()))


def test_triton_looks_for_what_it_compiled_once_for_each_kind_of_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    """It compiles for types, for a pointer that 16 divides, and for a stride: a kernel goes on with the same only."""
    case = next(cases(1))
    kernel = KernelRows(2, [case.markers], flags_of(case), "cpu")
    calls: list[tuple[str, Any, list[Any]]] = []

    class Launch:
        def __init__(self, name: str) -> None:
            self.name = name

        def __getitem__(self, grid: Any) -> Any:
            def run(*arguments: Any, **options: Any) -> Launch:
                calls.append((self.name, grid, [*arguments, *options]))
                return Launch(f"compiled {len(calls)}")

            return run

    monkeypatch.setattr("bide.logits_kernel._step", Launch("sought"))
    feed = torch.zeros(4, 8, dtype=torch.int32)
    memory = torch.zeros(4096)
    first, second = memory[:256].view(4, 64), memory[256:512].view(4, 64)
    for logits in (first, second, first):
        kernel.apply(logits, feed, 3)
    assert [name for name, _, _ in calls] == ["sought", "compiled 1", "compiled 1"]
    assert [grid for _, grid, _ in calls] == [(3,), (3, 1, 1), (3, 1, 1)]
    assert calls[0][2][-1] == "num_warps"
    for (_, _, arguments), logits in zip(calls, (first, second, first)):
        assert arguments[0] is logits and arguments[2] is feed  # these, and the rest as Triton was given it
        assert all(a is b or a == b for a, b in zip(arguments[1:14], calls[0][2][1:14], strict=True))
    for other in (memory[1:257].view(4, 64), first.to(torch.bfloat16), memory[:512].view(4, 128)[:, :64]):
        kernel.apply(other, feed, 3)
        assert calls[-1][0] == "sought"
        kernel.apply(other, feed, 3)
        assert calls[-1][0].startswith("compiled")
    kernel.apply(first, torch.zeros(4, 16, dtype=torch.int32), 3)
    assert calls[-1][0] == "sought"
