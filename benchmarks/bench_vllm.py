"""Caps and waits in vLLM, at the cost of plain generation: one run, one table.

    python benchmarks/bench_vllm.py                                       # CPU, tiny model, about a minute
    python benchmarks/bench_vllm.py --shape 1.5b --requests 256 --slots 256 --median 1200 --most 4000 \\
        --answer 300 --bias 5.9 --waits 0,1,2,4,6                         # one GPU

Every request has a cap of its own, lognormal. The model has random weights in a shape ("tiny", "small",
"1.5b", "7b": Qwen2.5's), or is a directory. --bias is added to the end marker's logit inside the
model, in every arm, so that thoughts of a random model end now and then by themselves; ends of turn
are made impossible likewise, so that answers have the length of the law.

Arms (--arms):

- plugin: the logits processor `bide.engines.vllm_plugin`; one request a problem
- engine: `VLLMEngine`, whole segments, each request going on by itself
- rounds: s1's way: all requests generate until all have stopped, then all go on: one round a wait,
  one for the answers
- builtin: vLLM's own thinking_token_budget; caps only
- plain: nothing forced, the same number of tokens request by request: once for each of the arms
  above, with the lengths that it has just written. With --plain reference only for the first of
  them: takes less time, but the others are then compared at lengths that luck made different
  (one long text more, and all wait for it)
- plain-loaded: the same with the plugin loaded, not used

The law of lengths (--law), the same in every arm but plain, which copies:

- answer: the thought ends by itself or at the cap; behind its end marker stand exactly --answer
  tokens, a forced answer prefix included
- total: cap + closing + --answer tokens in all; the answer fills what the thought has left. So
  every arm writes the same number of tokens for each request, whatever it samples

Engines that differ (plugin loaded, vLLM's caps on, prefix cache) live one after the other in child
processes, with all other settings equal. Each arm is run once in short before it is measured. All
requests are handed over at once. The table goes to stdout, all else to stderr.

Columns: tokens: written behind the prompts, forced ones too. of plain: tokens/s as a part of those
of plain at the same lengths. steps: of the engine. tokens a step: tokens by steps. computed prompt
tokens: those that the prefix cache did not serve, as vLLM reports them, of all requests that an arm
makes. median, p95: seconds from the start of the arm until the last token of a request (plugin and
builtin under --law answer: up to --interval tokens later, see `vllm_arms.Bench.single`). over
budget: requests with more thinking tokens than their cap, counted here in the ids; must be 0. host
us a step: time on the host in the plugin's apply + update_state. With --repeats, medians, and the
range of the seconds.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

GROUPS = {
    "plugin": ("plugin", "plain-loaded"),
    "builtin": ("builtin",),
    "base": ("engine", "rounds", "plain"),
}
"""Arms that can share an engine. Plain comes last: it copies the lengths of the others."""
ORDER = ("plain", "plain-loaded", "builtin", "plugin", "engine", "rounds")
SHUTDOWN = 40
"""Seconds that a child may take beyond the limit before it is ended."""


def main() -> None:
    if sys.argv[1:2] == ["--arm-child"]:
        from vllm_arms import run_child

        run_child(sys.argv[2])
        return
    options = parse()
    begin = time.time()
    deadline = begin + options.limit_seconds if options.limit_seconds else None
    rows: list[dict[str, Any]] = []
    infos: list[dict[str, Any]] = []
    notes: list[str] = []
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        for cached in options.prefix_cache:
            lengths: dict[str, dict[str, list[int]]] = {}
            for group, members in GROUPS.items():
                arms = [arm for arm in members if arm in options.arms]
                if not arms:
                    continue
                if deadline and time.time() > deadline:
                    notes.append(f"{', '.join(arms)}, prefix cache {on(cached)}: no time left")
                    continue
                found, error = run_group(group, arms, cached, lengths, directory, deadline, options)
                infos += [row["info"] for row in found if "info" in row]
                measured = [row for row in found if "arm" in row]
                rows += measured
                missing = wanted(group, arms, options) - {(row["arm"], row["waits"], row["repeat"]) for row in measured}
                if missing or error:
                    names = ", ".join(f"{arm} {waits}w" for arm, waits in sorted({key[:2] for key in missing}))
                    notes.append(
                        f"prefix cache {on(cached)}: not run: {names or 'nothing'} ({error or 'no time left'})"
                    )
                for row in measured:
                    if row["arm"] in ("plugin", "builtin"):
                        lengths.setdefault(row["arm"], {})[f"{row['repeat']}/{row['waits']}"] = row["lengths"]
    if options.json:
        Path(options.json).write_text(json.dumps({"options": vars(options), "info": infos, "rows": rows}))
    report(rows, infos, notes, options, time.time() - begin)
    if any(row["over"] or row["off_law"] for row in rows if row["arm"] != "builtin"):  # that is not ours to mend
        sys.exit(1)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--arms", type=words, default=words("plain,engine,plugin,rounds,builtin"), help="of " + ", ".join(ORDER))
    add("--shape", default="tiny", help="tiny, small, 1.5b, 7b (random weights), or a model's directory")
    add("--requests", type=int, default=64)
    add("--slots", type=int, default=16, help="most requests in a batch")
    add("--median", type=float, default=80, help="of the caps")
    add("--sigma", type=float, default=0.8, help="of the caps' logarithm")
    add("--most", type=int, default=249, help="largest cap")
    add("--answer", type=int, default=24)
    add("--law", choices=("answer", "total"), default="answer")
    add("--bias", type=float, default=0.0)
    add("--waits", type=lambda text: [int(word) for word in words(text)], default=[0, 1, 2, 4])
    add("--plain", choices=("each", "reference"), default="each")
    add("--repeats", type=int, default=1)
    add("--seed", type=int, default=1)
    add("--prefix-cache", type=lambda text: [SWITCH[word] for word in words(text)], default=[True], help="on, off")
    add("--tensor-parallel", type=int, default=1)
    add("--format", default="qwen3", help="one whose end marker is one token of the model's")
    add("--data", help='JSONL of questions ("question", "problem" or "prompt")')
    add("--dtype", help="default: float32 for tiny, else bfloat16")
    add("--runner", choices=("v1", "v2", "default"), default="v1", help="vLLM's model runner, in every child")
    add("--interval", type=int, help="vLLM's stream_interval, see law 'answer'; default: a twentieth of --answer")
    add("--engine-arg", action="append", default=[], metavar="NAME=JSON", help="any further engine argument")
    add("--limit-seconds", type=float, help="skip what does not fit any more")
    add("--json", help="all numbers, to this file")
    options = parser.parse_args()
    if unknown := set(options.arms) - set(ORDER):
        parser.error(f"unknown arms: {', '.join(sorted(unknown))}")
    if options.interval is None:
        options.interval = max(1, options.answer // 20)
    if options.answer < 16:
        parser.error("--answer must leave room for a forced answer prefix: 16 or more")
    options.engine_arg = {name: json.loads(value) for name, value in (a.split("=", 1) for a in options.engine_arg)}
    return options


SWITCH = {"on": True, "off": False}


def words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def on(cached: bool) -> str:
    return "on" if cached else "off"


def wanted(group: str, arms: list[str], options: argparse.Namespace) -> set[tuple[str, int, int]]:
    waits = [0] if group == "builtin" else options.waits
    return {(arm, count, repeat) for arm in arms for count in waits for repeat in range(options.repeats)}


def run_group(
    group: str,
    arms: list[str],
    cached: bool,
    lengths: dict[str, dict[str, list[int]]],
    directory: Path,
    deadline: float | None,
    options: argparse.Namespace,
) -> tuple[list[dict[str, Any]], str | None]:
    """Measure `arms` in a child. Returns its results, and why there are no more of them."""
    model = directory / "model"
    model.mkdir(exist_ok=True)
    spec = {
        "group": group,
        "arms": arms,
        "prefix_cache": cached,
        "lengths": lengths,
        "directory": str(model),
        "deadline": deadline,
        "out": str(directory / f"{group}-{on(cached)}.jsonl"),
        "options": vars(options),
    }
    file, times, out = directory / "spec.json", directory / "times", Path(spec["out"])
    file.write_text(json.dumps(spec))
    times.write_bytes(struct.pack("ddd", 0.0, 0.0, 0.0))
    out.touch()
    here = str(Path(__file__).resolve().parent)
    environment = {**os.environ, "BIDE_BENCH_TIMES": str(times)}
    environment["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"  # for `add_bias`, where workers are other processes
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))
    if options.runner != "default":
        environment["VLLM_USE_V2_MODEL_RUNNER"] = str(int(options.runner == "v2"))
    print(f"\n{group}, prefix cache {on(cached)}: {', '.join(arms)}", file=sys.stderr, flush=True)
    child = subprocess.Popen(
        [sys.executable, __file__, "--arm-child", str(file)], stdout=sys.stderr, env=environment, start_new_session=True
    )
    late = False
    try:
        child.wait(None if deadline is None else max(1.0, deadline + SHUTDOWN - time.time()))
    except subprocess.TimeoutExpired:
        late = True
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)  # vLLM's own processes too, or they keep the GPU's memory
        child.wait()
    found = [json.loads(line) for line in out.read_text().splitlines()]
    error = next((row["error"] for row in found if "error" in row), None)
    if error is None and late:
        error = "no time left"
    if error is None and child.returncode:
        error = f"exit status {child.returncode}"
    return found, error


def report(
    rows: list[dict[str, Any]],
    infos: list[dict[str, Any]],
    notes: list[str],
    options: argparse.Namespace,
    seconds: float,
) -> None:
    """The table, and what one has to know about it."""
    given = " ".join(sys.argv[1:])
    print(f"\n    python benchmarks/bench_vllm.py {given}\n")
    for info in [info for i, info in enumerate(infos) if info not in infos[:i]]:
        print(
            f"vLLM {info['vllm']}, {info['runner']} runner, async scheduling {info['async']}, torch {info['torch']}, "
            f"Python {info['python']}, {info['device']}. {options.requests} requests on {options.slots} slots, "
            f"{info['prompt_tokens']} prompt tokens, budgets of {info['budgets']} tokens in all, law of lengths: "
            f"{options.law}."
        )
    print(
        "\n| waits | arm | tokens | seconds | tokens/s | of plain | steps | tokens a step "
        "| computed prompt tokens | median s | p95 s | over budget | host us a step |"
    )
    print("|" + "---|" * 13)
    for cached in options.prefix_cache:
        if len(options.prefix_cache) > 1:
            print(f"| | *prefix cache {on(cached)}* |" + " |" * 11)
        some = [row for row in rows if row["prefix_cache"] == cached]
        keys = {(row["waits"], ORDER.index(row["arm"]), row["of"] or "") for row in some}
        # Each arm behind the plain run that it is compared with.
        for waits, place, of in sorted(keys, key=lambda key: (key[0], key[2] or ORDER[key[1]], key[1])):
            arm = ORDER[place]
            same = [row for row in some if (row["waits"], row["arm"], row["of"] or "") == (waits, arm, of)]
            print(line(waits, arm, of, same, some, options.plain == "each"))
    print()
    for arm in ORDER:
        if off := sum(row["off_law"] for row in rows if row["arm"] == arm):
            notes = [f"{arm}: {off} requests have another length than the law of lengths says", *notes]
    for note in notes:
        print(f"- {note}")
    print(f"- The whole run took {seconds:.0f} s.")


def line(waits: int, arm: str, of: str, same: list[Any], rows: list[Any], each: bool) -> str:
    def middle(key: str) -> float:
        return median(row[key] for row in same)

    ratios = []
    for row in same:
        plain = [
            other
            for other in rows
            if other["arm"] == "plain" and (other["waits"], other["repeat"]) == (waits, row["repeat"])
        ]
        plain.sort(key=lambda other: other["of"] != (of or arm))  # its own lengths first
        if plain:
            ratios.append(row["tokens"] / row["seconds"] / (plain[0]["tokens"] / plain[0]["seconds"]))
    spread = [row["seconds"] for row in same]
    seconds = f"{middle('seconds'):.1f}"
    if len(spread) > 1:
        seconds += f" ({min(spread):.1f}-{max(spread):.1f})"
    over = "-" if same[0]["over"] is None else str(sum(row["over"] for row in same))
    host = "-"
    if same[0]["apply_us"] is not None:
        host = f"{middle('apply_us'):.0f} + {middle('update_us'):.0f}"
    cells = [
        waits,
        f"{arm}, as {of}" if of and each else arm,
        f"{middle('tokens'):.0f}",
        seconds,
        f"{median(row['tokens'] / row['seconds'] for row in same):.0f}",
        f"{median(ratios):.2f}" if ratios else "-",
        f"{middle('steps'):.0f}",
        f"{median(row['tokens'] / row['steps'] for row in same):.1f}",
        f"{middle('computed'):.0f}",
        f"{middle('median'):.2f}",
        f"{middle('p95'):.2f}",
        over,
        host,
    ]
    return "| " + " | ".join(map(str, cells)) + " |"


if __name__ == "__main__":
    main()
