"""The funnel: what became of every record of the pool, by stage, reason and source. Nothing vanishes."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UsageError
from .pool import SAME_QUESTION
from .records import Decision, Row
from .refused import POOL, read_refused
from .stages import read_outcomes, read_reasons

SELECTED = "selected"
"""The status of a row that went through."""


@dataclass(frozen=True, slots=True)
class Step:
    """One stage of the funnel, in rows."""

    stage: str
    entered: int
    left: int
    """Rows that go on."""
    reasons: Mapping[str, Mapping[str, int]]
    """Reason, without what names single rows -> source -> rows that ended here."""

    @property
    def dropped(self) -> int:
        """Rows that ended here."""
        return sum(sum(sources.values()) for sources in self.reasons.values())


@dataclass(frozen=True, slots=True)
class Funnel:
    """All of a set's stages."""

    name: str
    records: int
    """All that were read."""
    steps: tuple[Step, ...]
    selected: Mapping[str, int]
    """Source -> rows in the set."""
    notes: tuple[str, ...]

    def check(self) -> None:
        """Every record ended once. A set that does not add up is our mistake."""
        count = self.records
        for step in self.steps:
            assert step.entered == count and step.left == count - step.dropped, step
            count = step.left
        assert count == sum(self.selected.values()), (count, self.selected)

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "set": self.name,
            "records": self.records,
            "selected": dict(self.selected),
            "steps": [
                {
                    "stage": step.stage,
                    "entered": step.entered,
                    "left": step.left,
                    "reasons": {reason: dict(sources) for reason, sources in step.reasons.items()},
                }
                for step in self.steps
            ],
            "notes": list(self.notes),
        }


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a set was made by: `DIR/NAME/run.json`."""

    directory: Path
    name: str
    content: Mapping[str, Any]

    @property
    def pool(self) -> Path:
        """The file of the pool."""
        return self.directory / str(self.content["pool"])

    @property
    def refused(self) -> Path | None:
        """The file of the records that are no rows; None if there are none."""
        name = self.content.get("refused")
        return None if name is None else self.directory / str(name)

    @property
    def stages(self) -> list[tuple[str, Path]]:
        """(name, file) in order."""
        return [(name, self.directory / file) for name, file in self.content["stages"]]


def sets_in(directory: Path) -> list[str]:
    """The names of the sets in `directory`."""
    return sorted(path.parent.name for path in directory.glob("*/run.json"))


def load_manifest(directory: Path, name: str | None = None) -> Manifest:
    """A set's; `name` may be left out where there is one. Raises `UsageError`."""
    found = sets_in(directory)
    if not found:
        raise UsageError(f"there is no curated set in {directory}", hint="bide curate run PRESET --out DIR makes one")
    if name is None and len(found) > 1:
        raise UsageError(f"{directory} has the sets {', '.join(found)}", hint=f"name one: --set {found[0]}")
    if name is not None and name not in found:
        raise UsageError(f"{directory} has no set {name!r}", hint=f"there are: {', '.join(found)}")
    chosen = name or found[0]
    path = directory / chosen / "run.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UsageError(f"{path} is damaged: {error}") from None
    return Manifest(directory, chosen, content)


def read_pool_file(path: Path) -> tuple[dict[str, Any], Iterator[tuple[Row, list[str]]]]:
    """(head, rows with the sources of their copies). Raises `UsageError`."""
    if not path.is_file():
        raise UsageError(f"{path} is gone", hint="run the recipe again")
    with path.open(encoding="utf-8", errors="surrogatepass") as file:
        head: dict[str, Any] = json.loads(next(file))

    def rows() -> Iterator[tuple[Row, list[str]]]:
        with path.open(encoding="utf-8", errors="surrogatepass") as file:
            next(file)
            for line in file:
                found = json.loads(line)
                yield Row(**found["row"]), found.get("copies", [])

    return head, rows()


def group(reason: str) -> str:
    """A reason without what names a single row: "contaminated:math500#12" -> "contaminated:math500"."""
    for kind in ("duplicate", "earlier_source"):
        if reason.startswith(f"{kind}:"):
            return kind
    return reason.partition("#")[0]


def funnel_of(manifest: Manifest) -> Funnel:
    """The funnel of a set, counted from its files."""
    head, rows = read_pool_file(manifest.pool)
    sources: dict[str, str] = {}
    lost: dict[str, Counter[str]] = {}
    for source, reason, count in head["refused"]:
        lost.setdefault(reason, Counter())[source] += count
    for row, copies in rows:
        sources[row.id] = row.source
        for source in copies:
            lost.setdefault(SAME_QUESTION, Counter())[source] += 1
    count = head["records"]
    steps = [_step(POOL, count, lost)]
    alive = set(sources)
    notes: list[str] = list(manifest.content.get("notes", ()))
    for stage, path in manifest.stages:
        reasons: dict[str, Counter[str]] = {}
        entered = len(alive)
        seen = 0
        for row_id, reason, noted in read_reasons(path):
            assert row_id in alive, (stage, row_id)
            seen += 1
            notes += noted
            if reason:
                reasons.setdefault(group(reason), Counter())[sources[row_id]] += 1
                alive.discard(row_id)
        assert seen == entered, f"{stage} decided on {seen} of {entered} rows"
        steps.append(_step(stage, entered, reasons))
    selected = Counter(sources[one] for one in alive)
    found = Funnel(manifest.name, count, tuple(steps), dict(sorted(selected.items())), tuple(notes))
    found.check()
    return found


def statuses(manifest: Manifest) -> Iterator[tuple[str, str, str]]:
    """(row id, stage, reason) of every row, in the order of ids; stage and reason are "selected" and "" for those that
    went through."""
    _, rows = read_pool_file(manifest.pool)
    status = {row.id: (SELECTED, "") for row, _ in rows}
    for stage, path in manifest.stages:
        for row_id, reason, _ in read_reasons(path):
            if reason:
                status[row_id] = (stage, reason)
    for row_id, (stage, reason) in status.items():
        yield row_id, stage, reason


def endings(manifest: Manifest) -> Iterator[tuple[str, str, str, str]]:
    """(id, source, stage, reason) of every record that was read: those that are no rows by their places, then the rows
    by their ids. Raises `UsageError` for a set of an earlier release, which kept only numbers of the former."""
    head, rows = read_pool_file(manifest.pool)
    if manifest.refused is not None:
        for one in read_refused(manifest.refused):
            yield one.id, one.source, POOL, one.reason
    elif head["refused"]:
        raise UsageError(f"the set {manifest.name} was made when refused records were only counted",
                         hint="run the recipe again: nothing that was answered is asked again")  # fmt: skip
    sources = {row.id: row.source for row, _ in rows}
    for row_id, stage, reason in statuses(manifest):
        yield row_id, sources[row_id], stage, reason


def history(manifest: Manifest, wanted: str) -> tuple[Row, list[str], list[tuple[Decision, Mapping[str, Any]]]]:
    """(row, sources of its copies, what each stage said and found) for an id or the start of one. Raises `UsageError`
    where it is no row of the pool, or several."""
    _, rows = read_pool_file(manifest.pool)
    found = [(row, copies) for row, copies in rows if row.id.startswith(wanted)]
    if len(found) != 1:
        what = "no row" if not found else f"{len(found)} rows"
        raise UsageError(f"{what} of the pool of {manifest.name} begins with {wanted!r}",
                         hint="ids are in the exports, and bide curate rows lists all")  # fmt: skip
    row, copies = found[0]
    said = []
    for _, path in manifest.stages:
        outcome = next((one for row_id, one in read_outcomes(path) if row_id == row.id), None)
        if outcome is None:
            break
        said.append((outcome.decision, outcome.features))
    return row, copies, said


def _step(stage: str, entered: int, reasons: Mapping[str, Counter[str]]) -> Step:
    ordered = sorted(reasons.items(), key=lambda one: (-one[1].total(), one[0]))
    counted = {reason: dict(sorted(sources.items())) for reason, sources in ordered}
    dropped = sum(sources.total() for sources in reasons.values())
    return Step(stage, entered, entered - dropped, counted)
