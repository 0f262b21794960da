"""The chain of a journal: what counts, what is void, and where a changed one breaks. Lines in, chain out."""

from __future__ import annotations

import json

import pytest

from quantize.errors import RegistryError
from quantize.journal import AliasMove, Chain, Entry, Event, Intent, Owner, head_problem, read_chain
from quantize.registry import JournalLine

OWNER = Owner(host="h", boot="b", pids="p", pid=1, started=1, actor="eva", seconds=60)


def entry(chain: Chain, kind: str, generation: int, **content: object) -> Entry:
    """An entry that goes on from the chain's head."""
    after, link = chain.head
    common = {"when": "2026-01-01T00:00:00+00:00", "actor": "eva", "program": "quantize 0", "nonce": kind}
    return Entry.model_validate(
        {"after": after, "link": link, "generation": generation, "kind": kind, **common, **content}
    )


def intent(alias: str, before: str | None, after: str) -> Intent:
    event = Event(when="", what="promoted", variant="fp8", version=after, aliases={}, against=None, actor="", reason="")
    return Intent(event=event, moves=[AliasMove(alias=alias, before=before, after=after)])


def line(number: int, made: Entry) -> JournalLine:
    return JournalLine(number, made.model_dump_json(), made.digest())


@pytest.fixture
def lines():
    """A lock, a promotion, the lock given back."""
    chain, found = Chain(), []

    def write(kind: str, generation: int = 1, **content: object) -> None:
        made = line(len(found) + 1, entry(chain, kind, generation, **content))
        chain.extend([made])
        found.append(made)

    write("lock", 0, owner=OWNER)
    write("intent", intent=intent("fp8", None, "2"))
    write("done", closes=2)
    write("unlock")
    return found


def test_a_journal_says_who_holds_the_lock_what_is_begun_and_where_aliases_point(lines):
    begun = read_chain(lines[:2])
    assert begun.state.lock is not None and begun.state.lock.number == 1
    assert begun.state.intent is not None and begun.state.intent.number == 2
    assert begun.state.aliases == {}
    done = read_chain(lines)
    assert (done.state.lock, done.state.intent, done.state.aliases) == (None, None, {"fp8": "2"})
    assert (done.problems, done.void, done.head[0]) == ([], [], 4)


def test_of_two_that_go_on_from_one_entry_the_second_is_void_and_breaks_nothing(lines):
    chain = read_chain(lines)
    first, second = (entry(chain, "lock", 0, owner=OWNER, reason=who) for who in ("first", "second"))
    chain.extend([line(5, first), line(6, second)])
    assert chain.void == [6]
    assert chain.problems == []
    assert chain.state.lock is not None and chain.state.lock.number == 5


def test_what_a_holder_appends_after_its_lock_was_taken_is_void(lines):
    before = read_chain(lines[:2])
    late = entry(before, "done", 1, closes=2)
    chain = read_chain(lines[:2])
    chain.extend([line(3, entry(chain, "lock", 0, owner=OWNER, over=1))])
    chain.extend([line(4, late)])
    assert chain.void == [4]
    assert chain.state.intent is not None, "the intent is still open"
    assert {(found.alias, found.version, found.generation) for found in chain.state.late} == {("fp8", "2", 1)}


def test_an_entry_of_another_generation_is_void_even_where_it_names_the_head(lines):
    chain = read_chain(lines[:1])
    chain.extend([line(2, entry(chain, "intent", 7, intent=intent("fp8", None, "2")))])
    assert chain.void == [2]


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_a_text_that_was_changed_is_found_and_nothing_after_it_is_believed(lines, number):
    found = json.loads(lines[number - 1].text)
    found["reason"] = "somebody else's"
    lines[number - 1] = JournalLine(number, json.dumps(found), lines[number - 1].digest)
    chain = read_chain(lines)
    assert chain.problems == [f"entry {number} was changed: its digest is not that of its text."]
    assert len(chain.entries) == number - 1


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_text_that_was_changed_with_its_digest_breaks_the_chain_at_the_next(lines, number):
    found = json.loads(lines[number - 1].text) | {"reason": "somebody else's"}
    lines[number - 1] = line(number, Entry.model_validate(found))
    (problem,) = read_chain(lines).problems
    assert problem.startswith(f"entry {number + 1} goes on from entry {number} with digest ")


def test_the_last_entry_changed_with_its_digest_is_found_by_the_models_tag(lines):
    mark = read_chain(lines).mark()
    lines[3] = line(4, Entry.model_validate(json.loads(lines[3].text) | {"reason": "somebody else's"}))
    chain = read_chain(lines)
    assert chain.problems == []
    assert "entry 4 has the digest" in str(head_problem(chain, mark))


@pytest.mark.parametrize(
    ("gone", "said"), [({2}, "entry 2 is missing"), ({2, 3}, "entries 2 to 3 are missing"), ({1}, "entry 1 is missing")]
)
def test_an_entry_that_was_deleted_is_missed(lines, gone, said):
    (problem,) = read_chain([found for found in lines if found.number not in gone]).problems
    assert problem.startswith(said)


def test_an_end_that_was_deleted_is_missed_by_the_models_tag_and_a_tag_that_is_behind_is_none(lines):
    mark = read_chain(lines).mark()
    assert head_problem(read_chain(lines), mark) is None
    assert head_problem(read_chain(lines), read_chain(lines[:3]).mark()) is None
    assert "names entry 4, and there is none" in str(head_problem(read_chain(lines[:3]), mark))
    assert "names entry 4" in str(head_problem(read_chain([]), mark))
    assert "tag of the journal's head is gone" in str(head_problem(read_chain(lines), ""))
    assert head_problem(read_chain([]), "") is None
    assert head_problem(read_chain(lines[:1]), "") is None, "killed before it wrote the first tag"


def test_a_journal_of_a_newer_program_is_refused(lines):
    newer = json.loads(lines[3].text) | {"version": 2, "program": "quantize 9.1", "something": "new"}
    with pytest.raises(RegistryError, match=r"entry 4 .* newer program \(quantize 9\.1\).*Update this one"):
        read_chain([*lines[:3], JournalLine(4, json.dumps(newer), "")])


@pytest.mark.parametrize("text", ["", "no json", "[]", "{}", '{"version": "1"}'])
def test_a_text_that_is_no_entry_is_a_problem(lines, text):
    assert read_chain([*lines, JournalLine(5, text, "")]).problems == ["entry 5 cannot be read."]
