"""Break the state machine on purpose, and see whether the tests notice.

Run: python tests/mutations.py [NAME ...]
Each mutation replaces one text in a temporary copy of the package and runs the tests against that
copy. Not a test itself: it takes minutes. Exit code 1 if a mutation survives.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TESTS = (
    "test_golden.py",
    "test_budget_forcing.py",
    "test_budget_change.py",
    "test_s1_parity.py",
    "test_token_sequences.py",
    "test_properties.py",
    "test_differential.py",
    "test_logits_processor.py",
)


@dataclass(frozen=True)
class Mutation:
    name: str
    file: str
    old: str
    new: str


FORCING, S1, SEQUENCES = "budget_forcing.py", "s1_parity.py", "token_sequences.py"
LOGITS = "logits_processor.py"
MUTATIONS = (
    Mutation("cut one token late", FORCING, "elif self.used >= self._cap:", "elif self.used > self._cap:"),
    Mutation("fast path one too far", FORCING, "self.used + 1 < self._limit", "self.used < self._limit"),
    Mutation("fast path blind to max_tokens", FORCING, "soft, self._grace_start, room)", "soft, self._grace_start)"),
    Mutation("wait fills the last place", FORCING, "if len(wait) < room:", "if len(wait) <= room:"),
    Mutation(
        "one wait too many", FORCING, "self.waits_taken >= self.budget.waits", "self.waits_taken > self.budget.waits"
    ),
    Mutation("waits do not cycle", FORCING, "self.waits_taken % len(self._texts.waits)", "0"),
    Mutation(
        "minimum one short",
        FORCING,
        "short = used < self.budget.min_thinking_tokens",
        "short = used + 1 < self.budget.min_thinking_tokens",
    ),
    Mutation("wait overruns at the minimum", FORCING, "return wait[:room] if short", "return wait if short"),
    Mutation(
        "held ids lost at the end of the turn",
        FORCING,
        "        action = self._flush()\n        if",
        "        self.pending.clear()\n        action = Action.ACCEPT\n        if",
    ),
    Mutation(
        "matcher not reset by forced text",
        FORCING,
        "        self._matcher.reset()\n        self._fast = state",
        "        self._fast = state",
    ),
    Mutation(
        "ban never ends", FORCING, "            self._banned = False\n            self._put", "            self._put"
    ),
    Mutation("fast path forgets the loop", FORCING, "not self._loop.push(token)", "not self._loop.push(0)"),
    Mutation("fast path under a ban", FORCING, "is State.THINKING and not self._banned", "is State.THINKING"),
    Mutation(
        "ban forgets the end of the turn",
        FORCING,
        "self._ends.completing_ids() | self.markers.eos",
        "self._ends.completing_ids()",
    ),
    Mutation(
        "end message not counted ahead",
        FORCING,
        "budget.thinking_token_budget - len(texts.end_message)",
        "budget.thinking_token_budget",
    ),
    Mutation("end message twice", FORCING, "self.used + len(message) > maximum:", "maximum == 0:"),
    Mutation(
        "newline although the line is complete",
        FORCING,
        "() if last in markers.line_ends else markers.newline",
        "markers.newline",
    ),
    Mutation("forced not marked", FORCING, "self._put(token, 1, region)", "self._put(token, 0, region)"),
    Mutation(
        "grace before the minimum",
        FORCING,
        "max(budget.min_thinking_tokens, self._cap - budget.grace_tokens)",
        "max(0, self._cap - budget.grace_tokens)",
    ),
    Mutation("grace one late", FORCING, "self.used >= self._grace_start and", "self.used > self._grace_start and"),
    Mutation("hint overruns", FORCING, "self.used + len(hint) >= self._cap:", "self.used + len(hint) > self._cap:"),
    Mutation(
        "hint given twice",
        FORCING,
        "        self._soft_limit = None\n        self._set_limit()",
        "        self._set_limit()",
    ),
    Mutation(
        "client's end is refused by a wait", FORCING, "        if self._client_end:\n            return None\n", ""
    ),
    Mutation(
        "client's end outlives its block", FORCING, "self._client_end and self.ended_by is None", "self._client_end"
    ),
    Mutation(
        "client's end before the block is lost",
        FORCING,
        "if self._block_open or self.ended_by is None:",
        "if self._block_open:",
    ),
    Mutation("a lowered maximum waits for a token", FORCING, "if self._overdue and not self.pending:", "if False:"),
    Mutation(
        "a lowered maximum forgets what is held", FORCING, "if self._overdue and not self.pending:", "if self._overdue:"
    ),
    Mutation(
        "held ids stand above a lowered maximum",
        FORCING,
        "        if self._overdue:\n            return self._cut_overdue()\n",
        "",
    ),
    Mutation(
        "a wait goes on above a lowered maximum",
        FORCING,
        "        self._queue.clear()  # the rest of a wait or a hint\n",
        "",
    ),
    Mutation(
        "a change outlives the thinking", FORCING, "        if self.thinking_over:\n            return False\n", ""
    ),
    Mutation("a change forgets the one before", FORCING, "change = self._change.then(change)", "pass"),
    Mutation(
        "a change is not seen on the fast path", FORCING, "        if self._block_open:\n            self._tune()\n", ""
    ),
    Mutation(
        "a change lets the hint come twice",
        FORCING,
        "None if self._hinted else budget.soft_limit_tokens",
        "budget.soft_limit_tokens",
    ),
    Mutation(
        "held ids never settled", FORCING, "return self._flush() if boundary or", "return Action.HOLD if boundary or"
    ),
    Mutation("settled one late", FORCING, "used >= min(self._cap, soft, room)", "used > min(self._cap, soft, room)"),
    Mutation("an end that was let through is refused", FORCING, "None if marker and self._end_stands else ", ""),
    Mutation("probability is lost", LOGITS, "_NEVER, joint)", "_NEVER, values[0])"),
    Mutation("ends stay possible", LOGITS, "[False] + [True] * len(ends)", "[False] + [False] * len(ends)"),
    Mutation("the target counts twice", LOGITS, "np.where(self._void, _NEVER, logits[places])", "logits[places]"),
    Mutation("odds stay where rows were", LOGITS, "else self._values[:, order]", "else self._values"),
    Mutation(
        "what must come is forgotten",
        LOGITS,
        "for place, old in enumerate(before) if old in self._forced}",
        "for place, old in enumerate(before) if False}",
    ),
    Mutation("what is not known yet is taken", LOGITS, "if token >= 0 and token not", "if token not"),
    Mutation(
        "rows that may end are rounded",
        LOGITS,
        "        self._heat[place] = 1.0  # so that",
        "        self._heat[place] = 0.7  #",
    ),
    Mutation("a wait that is an end forbids itself", LOGITS, "if token != target]", "]"),
    Mutation("a row that may end does not", LOGITS, "            if before is not None:\n", "            if False:\n"),
    Mutation("what lay there stays", LOGITS, "                if row.ending is None:\n", "                if False:\n"),
    Mutation("rows change places, their decisions do not", LOGITS, "if rows and not stay:", "if False:"),
    Mutation("every wait word counts as an end", LOGITS, "uniform(self.seed, self.seen) < odds", "True"),
    Mutation("odds upside down", LOGITS, "return mass / (mass +", "return 1 - mass / (mass +"),
    Mutation("odds lost on leaving the batch", LOGITS, "row.odds = self._odds(", "_ = self._odds("),
    Mutation("a decision kept too long", LOGITS, "row.seen < count < row.quiet_until:", "row.seen < count:"),
    Mutation("a decision kept one too long", LOGITS, "count < row.quiet_until:", "count <= row.quiet_until:"),
    Mutation("open lines not watched", LOGITS, " and token not in row.line_ends:", ":"),
    Mutation(
        "complete lines not watched",
        LOGITS,
        "                return  # the next id opens a line",
        "                pass  #",
    ),
    Mutation("markers not watched", LOGITS, " and token not in row.watch", ""),
    Mutation("temperature ignored", LOGITS, "1.0 if temperature < GREEDY else temperature", "1.0"),
    Mutation("calm inside the grace window", FORCING, " or self.used >= self._grace_start else", " else"),
    Mutation("calm over the minimum", FORCING, "calm = min(calm, minimum - used)", "pass"),
    Mutation("calm over the room for a wait", FORCING, "max(1, min(calm, room))", "max(1, calm)"),
    Mutation("a replayed wait is not counted", LOGITS, "float(meant)", "0.0"),
    Mutation("lookahead blind to the client", FORCING, "if self._client_end or self._banned:", "if self._banned:"),
    Mutation("lookahead ignores what is held", FORCING, " - len(self.pending))\n", ")\n"),
    Mutation(
        "reserve forgets the closing text", FORCING, "self.used + free - self._closing_length()", "self.used + free"
    ),
    Mutation("reserve per block, not per turn", FORCING, "max(0, self.used + free", "max(0, free"),
    Mutation(
        "a header ends in thinking",
        FORCING,
        "self._enter(State.ANSWERING if marker == self.markers.answer_start",
        "self._enter(State.ANSWERING if marker != self.markers.answer_start",
    ),
    Mutation(
        "finish leaves forced ids",
        FORCING,
        "        self._queue.clear()\n        self.pending.clear()\n",
        "        self.pending.clear()\n",
    ),
    Mutation(
        "finish chokes while forcing",
        FORCING,
        "        if self.state is not State.FORCING:\n            self._flush()",
        "        if True:\n            self._flush()",
    ),
    Mutation(
        "a written marker counts as cut",
        FORCING,
        "if region is Region.THINKING and self._block_open:",
        "if self._block_open:",
    ),
    Mutation(
        "every block anew",
        FORCING,
        "        self._tune()\n        self._enter(State.THINKING)",
        "        self.used = 0\n        self._tune()\n        self._enter(State.THINKING)",
    ),
    Mutation(
        "segment goes on behind a force",
        FORCING,
        "if action is Action.FORCE or action is Action.STOP:\n                break",
        "if action is Action.STOP:\n                break",
    ),
    Mutation(
        "s1: one round for all",
        S1,
        "            self._round_used = 0\n            self._set_banned()",
        "            self._set_banned()",
    ),
    Mutation("s1: not cut to the maximum", S1, "if self.used < self._cap:", "if True:"),
    Mutation(
        "s1: a wait after the cut", S1, "self._round_used >= self._round_cap", "self._round_used > self._round_cap"
    ),
    Mutation("s1: first token may be a stop", S1, "(waits and self._round_used == 0)", "False"),
    Mutation(
        "s1: newline by the kept text",
        S1,
        "return self.pending[-1] if self.pending else super()._last_id()",
        "return super()._last_id()",
    ),
    Mutation("s1: marker taken from beyond", S1, "stands=not beyond", "stands=True"),
    Mutation(
        "s1: shows what is beyond",
        S1,
        "        if self.state is not State.THINKING:\n            return super()._flush()\n",
        "        if True:\n            return super()._flush()\n",
    ),
    Mutation(
        "matcher does not fall back",
        SEQUENCES,
        "            node = self.fails[node]\n        return self.children[node].get(token, 0)",
        "            node = 0\n        return self._children[node].get(token, 0)",
    ),
    Mutation("matcher overlooks a shorter end", SEQUENCES, "matches[node] = matches[fails[node]]", "pass"),
    Mutation(
        "matcher keeps its place after a match",
        SEQUENCES,
        "        if match is not None:\n            self._node = 0\n",
        "",
    ),
    Mutation(
        "completing ids of the deepest node only",
        SEQUENCES,
        "            if node == 0:\n                return found\n",
        "            return found\n",
    ),
    Mutation("loop: unverified", SEQUENCES, "return self._run + period >=", "return self._run + 2 * period >="),
    Mutation("loop: short blocks", SEQUENCES, "block = period * -(-LOOP_BLOCK // period)", "block = period"),
    Mutation(
        "loop: oldest place remembered",
        SEQUENCES,
        "self._seen[self._hash] = size",
        "self._seen.setdefault(self._hash, size)",
    ),
)


def caught_by(mutation: Mutation, workplace: Path) -> str | None:
    """The test that fails under `mutation`; None: it survived."""
    package = workplace / "src" / "bide"
    shutil.rmtree(workplace / "src", ignore_errors=True)
    shutil.copytree(ROOT / "src", workplace / "src", ignore=shutil.ignore_patterns("__pycache__"))
    target = package / mutation.file
    text = target.read_text(encoding="utf-8")
    assert text.count(mutation.old) == 1, f"{mutation.name}: found {text.count(mutation.old)} times, not once"
    target.write_text(text.replace(mutation.old, mutation.new), encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--no-header", "--tb=no"]
    environment = os.environ | {"PYTHONPATH": str(workplace / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        result = subprocess.run(
            [*command, *(str(ROOT / "tests" / test) for test in TESTS)],
            env=environment, cwd=workplace, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return "a test that never ends"
    failed = [line for line in result.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    if result.returncode == 0:
        return None
    return failed[0].split("::", 1)[-1].split(" - ")[0] if failed else f"exit code {result.returncode}"


def main() -> int:
    wanted = sys.argv[1:]
    survived = 0
    with tempfile.TemporaryDirectory() as folder:
        for mutation in MUTATIONS:
            if wanted and mutation.name not in wanted:
                continue
            test = caught_by(mutation, Path(folder))
            survived += test is None
            print(f"{'SURVIVED' if test is None else 'caught'}: {mutation.name}: {test or ''}", flush=True)
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main())
