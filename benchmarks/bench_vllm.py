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
- engine-changed, plain-changed: engine and plain with the engine arguments of --changed

The law of lengths (--law), the same in every arm but plain, which copies:

- answer: the thought ends by itself or at the cap; behind its end marker stand exactly --answer
  tokens, a forced answer prefix included
- natural: no bias but --bias, nothing banned: a thought ends as the model ends it, by the marker or by
  the end of its turn, and so does the answer, of at most --answer tokens. For real weights
- total: cap + closing + --answer tokens in all; the answer fills what the thought has left. So
  every arm writes the same number of tokens for each request, whatever it samples

Engines that differ (plugin loaded, vLLM's caps on, prefix cache) live in child processes, with all
other settings equal: one after the other, or with --together at once on one GPU, where the arms take
turns (every other repeat backwards), so that a machine whose speed changes meets all of them. Each arm
is run once in short before it is measured. All requests are handed over at once. The table goes to
stdout, all else to stderr.

Columns: tokens: written behind the prompts, forced ones too. of plain: tokens/s as a part of those
of plain at the same lengths (under --law total all have the same, and the median of all plain runs of a
repeat counts). steps: of the engine. tokens a step: tokens by steps. steps with prompts: those at which
requests begin, continuations too; their milliseconds, and those of the others. computed prompt tokens:
those that the prefix cache did not serve, as vLLM reports them, of all requests that an arm
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
import select
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
    "base": ("engine", "rounds", "plain"),
    "builtin": ("builtin",),
    "changed": ("engine-changed", "plain-changed"),
}
"""Arms that can share an engine. Plain comes last: it copies the lengths of the others."""
ORDER = ("plain", "plain-loaded", "plain-changed", "builtin", "plugin", "engine", "engine-changed", "rounds")
SHUTDOWN = 40
"""Seconds that a child may take beyond the limit before it is ended."""


def main() -> None:
    if sys.argv[1:2] == ["--arm-child"]:
        from vllm_arms import run_child

        run_child(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
        return
    options = parse()
    begin = time.time()
    deadline = begin + options.limit_seconds if options.limit_seconds else None
    with tempfile.TemporaryDirectory() as name:
        rows, infos, notes = measure(options, Path(name), deadline)
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
    add("--law", choices=("answer", "total", "natural"), default="answer")
    add("--bias", type=float, default=0.0)
    add("--temperature", type=float, default=1.0)
    add("--waits", type=lambda text: [int(word) for word in words(text)], default=[0, 1, 2, 4])
    add("--only", action="append", default=[], metavar="ARM=WAITS", help="an arm with some of the --waits only")
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
    add("--changed", action="append", default=[], metavar="NAME=JSON", help="an engine argument of the arms *-changed")
    add("--together", action="store_true", help="all engines at once, arms in turn (GPU; see --kv-gib)")
    add("--kv-gib", type=float, help="KV cache of each engine")
    add("--limit-seconds", type=float, help="skip what does not fit any more")
    add("--json", help="all numbers, to this file")
    options = parser.parse_args()
    if unknown := set(options.arms) - set(ORDER):
        parser.error(f"unknown arms: {', '.join(sorted(unknown))}")
    only = {name: [int(word) for word in words(text)] for name, text in (one.split("=", 1) for one in options.only)}
    options.only = {"builtin": [0], **only}  # vLLM's own caps know no waits
    if options.interval is None:
        options.interval = max(1, options.answer // 20)
    if options.answer < 16:
        parser.error("--answer must leave room for a forced answer prefix: 16 or more")
    for kind in ("engine_arg", "changed"):
        given = [one.split("=", 1) for one in getattr(options, kind)]
        setattr(options, kind, {name: json.loads(value) for name, value in given})
    return options


SWITCH = {"on": True, "off": False}


def words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def on(cached: bool) -> str:
    return "on" if cached else "off"


def measure(
    options: argparse.Namespace, directory: Path, deadline: float | None
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[str]]:
    """Every arm, in turn. Returns the results, what the engines say of themselves, and what was not run."""
    todo = [
        (cached, group, [arm for arm in members if arm in options.arms])
        for cached in options.prefix_cache
        for group, members in GROUPS.items()
    ]
    todo = [one for one in todo if one[2]]
    results = Results(options, deadline)
    for some in [todo] if options.together else [[one] for one in todo]:
        children: list[Child] = []
        try:
            for cached, group, arms in some:
                children.append(Child(group, arms, cached, directory, deadline, options))
            for child in children:
                child.wait_until_ready()
            run_all(children, results, options)
        finally:
            for child in children:
                child.end()
            results.infos += [child.info for child in children if child.info]
            results.notes += [f"{child.name}: {child.error}" for child in children if child.error]
    return results.rows, results.infos, results.notes


def run_all(children: list[Child], results: Results, options: argparse.Namespace) -> None:
    """All arms of `children`: inside a repeat one after the other, so that what the machine does meanwhile
    hits all of them. Plain comes last: it writes what another arm wrote, request by request."""
    for repeat in range(options.repeats):
        for waits in options.waits:
            turns = [
                (child, arm)
                for child in children
                for arm in child.arms
                if not arm.startswith("plain") and waits in options.only.get(arm, options.waits)
            ]
            if repeat % 2:
                turns.reverse()
            for child, arm in turns:
                if row := results.ask(child, arm, waits, repeat):
                    results.lengths.setdefault((repeat, waits), {})[arm] = row["lengths"]
            lengths = results.lengths.get((repeat, waits)) or {"": None}
            copied: list[Any] = []
            for of, some in lengths.items():
                if some in copied or (copied and options.plain == "reference"):
                    continue
                copied.append(some)
                for child in children:
                    for arm in child.arms:
                        if arm.startswith("plain") and waits in options.only.get(arm, options.waits):
                            results.ask(child, arm, waits, repeat, of, some)


class Results:
    """What was measured, and what could not be."""

    def __init__(self, options: argparse.Namespace, deadline: float | None) -> None:
        self.options, self.deadline = options, deadline
        self.rows: list[dict[str, Any]] = []
        self.infos: list[dict[str, Any]] = []
        self.notes: list[str] = []
        self.lengths: dict[tuple[int, int], dict[str, Any]] = {}
        self._longest = 0.0
        self._last: dict[str, float] = {}
        """Arm -> seconds of its last run."""

    def ask(
        self, child: Child, arm: str, waits: int, repeat: int, of: str | None = None, lengths: Any = None
    ) -> dict[str, Any] | None:
        """One arm, if there is time for it."""
        expected = self._last.get(of or arm, self._longest)  # plain takes no longer than the arm that it copies
        if child.error is None and self.deadline and time.time() + expected > self.deadline:
            self.notes.append(f"{child.name}: no time left for {arm}, {waits} waits, repeat {repeat + 1}")
            return None
        row = child.ask({"arm": arm, "waits": waits, "of": of, "lengths": lengths})
        if row is None:
            return None
        row |= {"repeat": repeat, "of": of}
        self._longest = max(self._longest, row["seconds"])
        self._last[arm] = row["seconds"]
        self.rows.append(row)
        if self.options.json:  # what is there is not lost if the rest fails
            Path(self.options.json).write_text(json.dumps({"options": vars(self.options), "rows": self.rows}))
        return row


class Child:
    """One engine in a process of its own, which measures one arm at a time when it is asked."""

    def __init__(
        self,
        group: str,
        arms: list[str],
        cached: bool,
        directory: Path,
        deadline: float | None,
        options: argparse.Namespace,
    ) -> None:
        self.name = f"{group}, prefix cache {on(cached)}"
        self.arms = arms
        self.info: dict[str, Any] | None = None
        self.error: str | None = None
        self._deadline = deadline
        place = directory / f"{group}-{on(cached)}"
        place.mkdir()
        model = directory / "model"
        model.mkdir(exist_ok=True)
        spec = {
            "group": group, "arms": arms, "prefix_cache": cached, "directory": str(model), "options": vars(options),
        }  # fmt: skip
        file, times = place / "spec.json", place / "times"
        file.write_text(json.dumps(spec))
        times.write_bytes(struct.pack("ddd", 0.0, 0.0, 0.0))
        here = str(Path(__file__).resolve().parent)
        environment = {**os.environ, "BIDE_BENCH_TIMES": str(times)}
        environment["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"  # for `add_bias`, where workers are other processes
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))
        if options.runner != "default":
            environment["VLLM_USE_V2_MODEL_RUNNER"] = str(int(options.runner == "v2"))
        print(f"\n{self.name}: {', '.join(arms)}", file=sys.stderr, flush=True)
        there, self._asked = os.pipe()
        self._answers, back = os.pipe()
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--arm-child", str(file), str(there), str(back)],
            stdout=sys.stderr, env=environment, start_new_session=True, pass_fds=(there, back),
        )  # fmt: skip
        os.close(there)
        os.close(back)
        self._lines = b""

    def wait_until_ready(self) -> None:
        """Until its engine is loaded."""
        if self.info is None and self.error is None and (said := self._read()):
            self.info = said["info"]

    def ask(self, work: dict[str, Any]) -> dict[str, Any] | None:
        """Let it measure one arm. None if it cannot any more."""
        if self.error is not None:
            return None
        try:
            os.write(self._asked, json.dumps(work).encode() + b"\n")
        except BrokenPipeError:
            self.error = "it has ended"
            return None
        return self._read()

    def _read(self) -> dict[str, Any] | None:
        while b"\n" not in self._lines:
            left = None if self._deadline is None else max(1.0, self._deadline + SHUTDOWN - time.time())
            if not select.select([self._answers], [], [], left)[0]:
                self.error = "no time left"
                return None
            data = os.read(self._answers, 1 << 16)
            if not data:
                self.error = f"it has ended: exit status {self._process.wait()}"
                return None
            self._lines += data
        line, _, self._lines = self._lines.partition(b"\n")
        said: dict[str, Any] = json.loads(line)
        self.error = said.get("error")
        return None if self.error else said

    def end(self) -> None:
        """End it, and what it has started."""
        os.close(self._asked)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)  # vLLM's own processes too, or they keep the GPU's memory
        self._process.wait()
        os.close(self._answers)


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
        "| steps with prompts | their ms, others' | computed prompt tokens | median s | p95 s "
        "| over budget | host us a step |"
    )
    print("|" + "---|" * 15)
    for cached in options.prefix_cache:
        if len(options.prefix_cache) > 1:
            print(f"| | *prefix cache {on(cached)}* |" + " |" * 13)
        some = [row for row in rows if row["prefix_cache"] == cached]
        keys = {(row["waits"], ORDER.index(row["arm"]), row["of"] or "") for row in some}
        # Each arm behind the plain run that it is compared with.
        for waits, place, of in sorted(keys, key=lambda key: (key[0], key[2] or ORDER[key[1]], key[1])):
            arm = ORDER[place]
            same = [row for row in some if (row["waits"], row["arm"], row["of"] or "") == (waits, arm, of)]
            print(line(waits, arm, of, same, some, options.law != "total"))
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

    plains = [other for other in rows if other["arm"] == "plain"]
    if each:  # only the same lengths can be compared
        plains = [other for other in plains if other["waits"] == waits]
    plains.sort(key=lambda other: other["of"] != (of or arm))  # its own lengths first
    ratios = []
    for row in same:
        plain = [other for other in plains if other["repeat"] == row["repeat"]]
        if plain and each:
            plain = plain[:1]
        if plain:
            ratios.append(row["tokens"] / row["seconds"] / median(one["tokens"] / one["seconds"] for one in plain))
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
        f"{middle('mixed'):.0f}",
        f"{middle('mixed_ms'):.1f}, {middle('pure_ms'):.1f}",
        f"{middle('computed'):.0f}",
        f"{middle('median'):.2f}",
        f"{middle('p95'):.2f}",
        over,
        host,
    ]
    return "| " + " | ".join(map(str, cells)) + " |"


if __name__ == "__main__":
    main()
