"""What MLflow's pages of a version and of the model tell, after releases and after a person's moves."""

from __future__ import annotations

import pytest
from release_world import Result, World

from quantize import operate
from quantize.errors import RegistryError
from quantize.registries import Mlflow
from quantize.registries._client import asking
from quantize.story import _sealed, _unsealed

pytest_plugins = ["release_fixtures"]

FIRST = Result("fp8", b"first" * 100)
SECOND = Result("fp8", b"second" * 90)
BAD = Result("int4", b"small" * 10, outcome="fail")


def page(world: World, number: str) -> str:
    """What the page of a version says."""
    return next(v.description for v in world.registry.versions() if v.version == number)


def test_a_version_tells_its_state_its_sentence_how_to_serve_it_and_how_to_go_back(world):
    record = world.release(FIRST, BAD)
    told = page(world, "2")
    assert told.startswith("**Champion of `fp8`.** Aliases: `fp8`, `fp8-candidate`, `production`.")
    decision = record.variants[0].decision
    assert decision is not None and decision.sentence in told
    assert f"{decision.decided_at}, {decision.actor}" in told
    assert "`quantize pull tiny@2 DIR`" in told and "`quantize rollback tiny --alias production --reason …`" in told
    assert f"`quantize verify {record.run}`" in told and "DIR/serving" in told
    assert page(world, "3").startswith("**Rejected.** Do not serve it.") and "DIR/serving" not in page(world, "3")
    assert "Go back" not in page(world, "3")
    assert page(world, "1").startswith("**The model as given.**")
    assert "Aliases: `fp8-previous`, `production-previous`." in page(world, "1")


def test_the_page_of_the_model_tells_what_its_aliases_mean(world):
    world.release(FIRST)
    told = world.registry.description()
    assert "`models:/tiny@production`; the best champion of `fp8`, `int4`, by bytes" in told
    assert "`quantize history tiny`" in told


def test_what_changes_is_told_anew_and_what_was_measured_stays(world):
    record = world.release(FIRST)
    body = page(world, "2").partition("\n---\n")[2]
    assert record.run in body
    world.release(SECOND)
    assert page(world, "2").startswith("**Superseded.**")
    assert page(world, "2").partition("\n---\n")[2].rpartition("<!--")[0] == body.rpartition("<!--")[0]
    assert page(world, "3").startswith("**Champion of `fp8`.**")
    operate.rollback(world.registry, "fp8", None, "complaints about *dates*", "alice")
    assert page(world, "3").startswith("**Rolled back.** No run promotes it again")
    assert r"complaints about \*dates\*" in page(world, "3") and ", alice" in page(world, "3")
    assert page(world, "2").startswith("**Champion of `fp8`.**")
    assert page(world, "2").partition("\n---\n")[2].rpartition("<!--")[0] == body.rpartition("<!--")[0]
    operate.promote(world.registry, "fp8", "3", "it was the client", "bob", force=True)
    assert page(world, "3").startswith("**Champion of `fp8`.**") and "it was the client" in page(world, "3")


@pytest.mark.parametrize("text", ["Ours, since the audit.", None])
def test_what_a_person_wrote_or_changed_is_left_alone(world, text):
    world.release(FIRST)
    written = text or page(world, "2").replace("Champion", "Champion, says Carol,")
    with asking(world.uri) as client:
        client.update_model_version("tiny", "2", description=written)
        client.update_registered_model("tiny", description="Ask Carol.")
    world.release(SECOND)
    assert page(world, "2") == written and page(world, "3").startswith("**Champion of `fp8`.**")
    world.release(Result("fp8", FIRST.weights, note=" again"))  # another verdict on the same bytes
    assert page(world, "2") == written
    assert world.registry.description() == "Ask Carol."


def test_nothing_is_written_where_nothing_changed(world, monkeypatch):
    world.release(FIRST)
    written = []
    monkeypatch.setattr(Mlflow, "describe", lambda _self, version, _text: written.append(version))
    operate.reconcile(world.registry)
    world.release(FIRST)
    assert written == []


def test_a_page_that_cannot_be_written_costs_no_decision(world, monkeypatch):
    def refuse(_self: Mlflow, _version: str | None, _text: str) -> None:
        raise RegistryError("MLflow refuses: too long.", where="tiny")

    notes: list[str] = []
    with monkeypatch.context() as patched:
        patched.setattr(Mlflow, "describe", refuse)
        world.release(FIRST)
        world.release(SECOND)
        operate.rollback(world.registry, "fp8", None, "r", "alice", notes.append)
    assert "the descriptions of tiny are not up to date (MLflow refuses: too long.)" in notes[-1]
    assert world.registry.aliases()["fp8"] == "2" and page(world, "2") == ""
    world.release(Result("fp8", b"third" * 80))
    assert page(world, "4").startswith("**Champion of `fp8`.**")


def test_a_description_fits_what_a_database_holds_and_is_known_again(world):
    long = _sealed("x" * 9000, "y")
    assert len(long) < 5000 and _unsealed(long) == f"{'x' * 4899}…"
    world.release(Result("fp8", b"first" * 100, note="|*<b>" + "x" * 9000))
    assert len(page(world, "2")) < 5000
    operate.rollback(world.registry, "fp8", None, "r" * 9000, "alice")
    assert page(world, "2").startswith("**Rolled back.**") and len(page(world, "2")) < 5000
