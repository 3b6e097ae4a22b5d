"""The logits processor in vLLM's V2 model runner, on a CPU: the kernel, the slots, the way back after a preemption."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed (see .ci/vllm)")
pytest.importorskip("triton", reason="the V2 runner needs Triton")
pytest.importorskip(
    "vllm.v1.worker.gpu.sample.logits_processor", reason="the V2 runner of this vLLM takes no logits processors"
)

from bide.engines.base import Engine
from bide.sampling import generate
from test_vllm_plugin import check_budget
from vllm_v2_script import KINDS, SAMPLES, requests

SCRIPT = Path(__file__).with_name("vllm_v2_script.py")


@pytest.fixture(scope="module")
def found(tiny_vllm_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the script saw."""
    result = tmp_path_factory.mktemp("v2") / "result.json"
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(tiny_vllm_model), str(result)], capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr[-4000:]
    seen: dict[str, Any] = json.loads(result.read_text())
    return seen


@pytest.fixture(scope="module")
def reference(tiny_vllm_model: Path) -> Engine:
    from bide.engines.transformers import TransformersEngine

    return TransformersEngine(str(tiny_vllm_model), device="cpu", dtype="float32", parallel=1)


def test_it_was_the_v2_runner(found: dict[str, Any]) -> None:
    assert found["calls"]["without"] == 0
    assert found["calls"]["with a context"] > 100


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_equals_the_token_at_a_time_engine(found: dict[str, Any], reference: Engine, kind: str) -> None:
    """Caps, waits, every other setting, three formats; and with preemptions and prompts in chunks."""
    theirs = generate(reference, requests(kind))
    assert found[kind] == [one.token_ids for one in theirs]
    assert sum(one.budget["forced_tokens"] for one in theirs) > 20
    assert max(one.budget["waits"] for one in theirs) > 0


def test_requests_were_put_out_and_taken_back(found: dict[str, Any]) -> None:
    assert found["preemptions"] > 3
    assert found["known"]["found"] > 3  # by their parameters, without counting waits from the text


def test_plain_requests_are_not_touched(found: dict[str, Any]) -> None:
    assert found["plain among others"] == found["plain alone"]


def test_every_sample_is_within_its_budget(found: dict[str, Any], reference: Engine) -> None:
    samples = found["samples"]
    assert len(samples) == 3 * len(SAMPLES)
    cut = sum(check_budget(ids, SAMPLES[name.split("/")[0]], reference.tokenizer) for name, ids in samples.items())
    assert cut > 3
    assert len({tuple(ids) for ids in samples.values()}) > len(SAMPLES)


def test_nothing_that_a_client_sends_ends_the_engine(found: dict[str, Any]) -> None:
    """What is too large is refused; what turns out too long only with a tokenizer is left out, the maximum is not."""
    texts = found["unpromising"]
    assert {name for name, text in texts.items() if text.startswith("refused")} == {"budget", "waits", "minimum"}
    assert {name for name, text in texts.items() if "</think>" in text} >= {"wait string", "prefix"}
    assert len(texts) == 7


@pytest.mark.parametrize("case", ["moved", "shared"])
def test_a_row_is_never_given_to_another_request(found: dict[str, Any], reference: Engine, case: str) -> None:
    for ids in found[case]:
        assert len(ids) == 30
        assert check_budget(ids, 20, reference.tokenizer)


def test_speculative_decoding_is_refused_at_the_start(found: dict[str, Any]) -> None:
    assert "cannot run with speculative decoding" in found["speculative"]
