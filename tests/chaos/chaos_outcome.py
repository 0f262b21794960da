"""What a world came to: what lies in its store and its registry, and what must hold of both whatever was killed."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chaos_world import World
from program import command

from quantize.run_record import read_record
from quantize.store import Store, verify_directory


@dataclass(frozen=True)
class Outcome:
    """All that may not depend on what was killed.

    `contents` are digests of the bytes by key, `verdicts` whole by variant, `actions` the last decisions on record,
    `versions` what the registry holds (variant, state, digest of the bytes), `serves` which variant each alias points
    at. What served before is not among it: another may have been decided first.
    """

    contents: dict[str, str]
    verdicts: dict[str, dict[str, Any]]
    actions: dict[str, str]
    versions: list[tuple[str, str, str]]
    serves: dict[str, str]


def outcome(world: World, model: str) -> Outcome:
    """What the world came to, once every node has decided."""
    verdicts: dict[str, dict[str, Any]] = {}
    for node in world.nodes:
        assert node.document is not None
        found = {variant["name"]: variant["verdict"] for variant in node.document["variants"]}
        assert not verdicts or found == verdicts, "two nodes came to different verdicts"
        verdicts = found
    actions = _actions(world)
    assert set(actions) == set(verdicts), "a variant without a decision"
    status = _document(world, "status", model)
    rows = {row["version"]: row for row in status["versions"]}
    return Outcome(
        contents={manifest.key: manifest.content_digest() for _, manifest in Store(world.store).manifests()},
        verdicts=verdicts,
        actions=actions,
        versions=sorted((row["variant"], row["state"], row["artifact_digest"]) for row in rows.values()),
        serves={a: rows[v]["variant"] for a, v in status["aliases"].items() if not a.endswith("-previous")},
    )


def _actions(world: World) -> dict[str, str]:
    """What was decided of each variant: its record is on disk before the registry says that it was."""
    records = [read_record(run) for run in (world.store / "runs").iterdir()]
    decided = [variant.decision for record in records for variant in record.variants if variant.decision is not None]
    return {decision.variant: decision.action for decision in sorted(decided, key=lambda one: one.decided_at)}


def check(world: World, model: str) -> None:
    """What must hold in the end: nobody is left, every byte is the manifest's, nothing is half done or left over."""
    _nobody_is_left(world)
    world.commits.look()
    damaged = [verify_directory(place, manifest) for place, manifest in Store(world.store).manifests()]
    assert not any(damaged), damaged
    for node in world.nodes:
        assert node.document is not None
        _done(world, "verify", node.document["run"], "--store", world.store)
    assert _document(world, "reconcile", model) == [], "every run reconciles, and something was left"
    checked = _document(world, "history", model, "--verify")
    assert (checked["problems"], checked["astray"], checked["begun"], checked["lock"]) == ([], {}, None, None), checked
    _document(world, "gc", "--delete")
    assert _document(world, "gc")["garbage"] == []
    assert list((world.store / "drafts").iterdir()) == []
    unfinished = [run for run in (world.store / "runs").iterdir() if not (run / "run.json").is_file()]
    assert unfinished == [], "folders of killed runs are left"
    world.commits.look()


def _nobody_is_left(world: World) -> None:
    """A fork server ends when its driver has, and an orphan when its stage has."""
    deadline = time.monotonic() + 60
    while left := world.processes():
        assert time.monotonic() < deadline, {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in left}
        time.sleep(0.05)


def _document(world: World, verb: str, *arguments: str) -> Any:
    return json.loads(_done(world, verb, *arguments, "--store", world.store, "--json"))


def _done(world: World, *arguments: str | Path) -> str:
    """What a command prints, which must end well."""
    result = command(*arguments, MLFLOW_TRACKING_URI=world.server.address)
    assert result.returncode == 0, (arguments, result.stdout, result.stderr)
    return result.stdout
