"""The page without a browser: it is well-formed, loads nothing, shows what other reports show, and text stays text."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import re
from html.parser import HTMLParser

import pytest
import yaml
from page_world import HOSTILE, PageWorld, clean
from program import tiny_recipe
from report_runs import record

from quantize.recipe import Recipe
from quantize.report import page, summarise
from quantize.report.benchmarks import Benchmarks
from quantize.report.page import Sources, read_sources
from quantize.report.page.markup import Markup, element, inline, joined, shown
from quantize.review import Checklist, Line
from quantize.run import RunRecord
from quantize.verdict import Finding

pytest_plugins = ["report_fixtures"]

VOID = {"br", "input", "link", "meta"}
LOADING = {"src", "srcset", "data", "action", "formaction", "poster", "background", "ping"}
ORDER = ["verdicts", "trade-off", "slices", "load", "flips", "divergence", "stages", "receipt"]


class Tree(HTMLParser):
    """A page read strictly: every element is closed where it must be, no attribute stands twice."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.scripts: list[str] = []
        self.comments: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        assert len(dict(attributes)) == len(attributes), tag
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        (self.scripts if self.open and self.open[-1] in ("script", "style") else self.texts).append(data)

    def handle_comment(self, data):
        self.comments.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    def text(self) -> str:
        return " ".join("".join(self.texts).split())


def bare(held: RunRecord) -> Sources:
    """A run of which nothing but its record is left."""
    return Sources(held, summarise(held), Benchmarks(), {}, {}, (), (), "", {}, ())


@pytest.fixture
def world(tmp_path) -> PageWorld:
    """Two variants, one of them slower."""
    made = PageWorld(tmp_path)
    made.add("int8", 0.1, 0.001, load=1.31)
    made.add("int4", 0.4, 0.05, load=0.7)
    return made


def test_the_parts_stand_in_the_order_in_which_a_reviewer_asks(world):
    tree = Tree(world.page())
    assert [section["id"] for section in tree.all("section")] == ORDER
    links = [a["href"] for a in tree.all("a") if a["href"] != "#verdicts"]
    assert links == [f"#{name}" for name in ORDER[1:]]


def part(text: str, name: str) -> str:
    """The words of one part of a page."""
    first = text.index(f'<section id="{name}"')
    return Tree(text[first : text.index("</section>", first) + 10]).text()


def test_what_was_not_measured_says_why_and_what_to_add_to_the_recipe(tmp_path):
    made = PageWorld(tmp_path, texts=())
    made.add("int8", 0.1)
    text = made.page()
    assert [section["id"] for section in Tree(text).all("section")] == ORDER
    assert "the recipe has no benchmark" in part(text, "load") and "benchmark: {}" in part(text, "load")
    assert "No text was measured" in part(text, "divergence") and "kind: text" in part(text, "divergence")


def test_the_lines_that_it_says_to_add_make_a_recipe():
    """What stands in code on the page of a run without evals and a benchmark is a recipe's own words."""
    held = record()
    known = dataclasses.replace(bare(held), resolved={"name": "demo"})
    found = re.findall(r"To the recipe: <code>(.*?)</code>", page(known))
    assert [next(iter(yaml.safe_load(line))) for line in found] == ["benchmark", "evals"]
    for line in found:
        gate = {
            "kind": "limit",
            "metric": "prose.perplexity" if "text" in line else "facts.accuracy",
            "at_most": 0.1,
            "advisory": False,
        }
        Recipe.model_validate(tiny_recipe(gates=[gate], **yaml.safe_load(line)))


def test_a_run_in_which_no_answer_changed_says_so(world):
    told = part(page(dataclasses.replace(world.sources(), flips={("int8", "facts"): ()})), "flips")
    assert "No answer changed" in told and "Search" not in told


def test_a_benchmark_that_no_variant_came_to_is_not_said_to_be_missing_from_the_recipe(tmp_path):
    made = PageWorld(tmp_path)
    made.add("int8", 0.5)
    sources = made.sources()
    told = part(page(dataclasses.replace(sources, resolved={**sources.resolved, "benchmark": {"blocks": 10}})), "load")
    assert "only variants that pass" in told and "no benchmark" not in told


def test_the_page_loads_nothing_and_its_policy_names_its_own_script_and_style_by_digest(world):
    tree = Tree(world.page())
    for _, attributes in tree.tags:
        assert not LOADING & set(attributes)
        assert not [name for name in attributes if name.startswith("on") or name == "style"]
    assert {link["href"] for link in tree.all("link")} == {"data:,"}
    assert all((a["href"] or "").startswith("#") for a in tree.all("a"))
    (policy,) = (meta["content"] for meta in tree.all("meta") if meta.get("http-equiv"))
    assert policy is not None and policy.startswith("default-src 'none';")
    assert "unsafe" not in policy
    assert len(tree.scripts) == 2
    for text in tree.scripts:
        named = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"'sha256-{named}'" in policy
        assert "http" not in text and "@import" not in text and "url(" not in text
        assert "Storage" not in text and "innerHTML" not in text


def test_what_is_named_is_there_once(world):
    tree = Tree(world.page())
    ids = [attributes["id"] for _, attributes in tree.tags if "id" in attributes]
    assert len(set(ids)) == len(ids)
    named = [word for _, a in tree.tags for word in (a.get("aria-labelledby") or "").split()]
    named += [(a["href"] or "").removeprefix("#") for a in tree.all("a")]
    assert named and set(named) <= set(ids)


def test_plots_are_told_in_words_and_numbers_and_tables_have_heads(world):
    text = world.page()
    tree = Tree(text)
    plots = [svg for svg in tree.all("svg") if svg.get("aria-hidden") != "true"]
    assert len(plots) > 8 and all(svg["role"] == "img" for svg in plots)
    assert len(re.findall(r"<svg[^>]*role=\"img\"[^>]*><title id=[^>]+>[^<]+</title><desc id=", text)) == len(plots)
    figures = re.findall(r"<figure>.*?</figure>", text, re.DOTALL)
    assert len(figures) > 6
    assert all('<details class="numbers">' in figure and "<table>" in figure for figure in figures)
    assert all(head["scope"] in ("col", "row") for head in tree.all("th"))
    assert len(tree.all("caption")) == len(tree.all("table"))


def test_everything_that_the_other_reports_say_is_on_the_page(world):
    sources = world.sources()
    told = Tree(page(sources)).text()
    summary = sources.summary
    cells = [cell for row in summary.table.rows for cell in row]
    sentences = [f.sentence for v in sources.record.variants for f in v.verdict.findings]
    for section in summary.sections:
        cells += [cell for grid in (section.table, section.load) if grid for row in grid.rows for cell in row]
        sentences += [section.decision, *section.sentences, *section.load_sentences]
    for text in (*cells, *sentences, *summary.notes):
        for line in text.split("\n"):
            assert " ".join(line.split()) in told


def test_a_verdict_is_a_sentence_and_says_smaller_but_slower(world):
    text = world.page()
    first = text[text.index('<ol class="verdicts">') : text.index("All arms")]
    told = Tree(first[: first.rindex("</ol>") + 5]).text()
    assert "Smaller but slower: 0.40 of the bytes, TPOT p50 at single 1.31 times (1.26 to 1.38)." in told
    assert "Smaller and faster: 0.40 of the bytes, TPOT p50 at single 0.70 times" in told


def test_hostile_text_stays_text_wherever_it_comes_from(tmp_path):
    world = PageWorld(tmp_path, told=HOSTILE)
    world.add("int8", 0.3)
    (variant,) = world.variants
    text = clean(HOSTILE)
    evil = Finding(gate=text, kind="stage", metric=text, outcome="error", sentence=text, numbers={}, detail=text)
    found = variant.verdict.model_copy(update={"findings": [*variant.verdict.findings, evil], "outcome": "error"})
    world.variants = [variant.model_copy(update={"verdict": found, "engine": text})]
    told = world.page(actor=text, device=text, recipe=text)
    tree = Tree(told)
    assert len(tree.all("script")) == 1 and not tree.all("img") and not tree.comments
    assert not [name for _, attributes in tree.tags for name in attributes if name.startswith("on")]
    assert tree.text().count(" ".join(shown(text).split())) > 10
    assert not re.search("[\x00-\x08\x1b\u202e]", told)


def test_an_item_stands_once_with_every_variant_that_changed_it_the_worst_first(world):
    text = world.page()
    flips = text[text.index('id="flip-list"') : text.index('id="divergence"')]
    items = re.findall(r"<p class=\"item\"><b>(item-\d+)</b>", flips)
    assert len(items) == len(set(items)) > 20
    entries = re.findall(r"<li data-eval=.*?</li>", flips)
    lost = [entry.count('data-way="lost"') for entry in entries]
    assert lost == sorted(lost, reverse=True)
    assert lost[0] == 2 and lost[-1] == 0
    sources = world.sources()
    assert sum(lost) == sum(f.difference < 0 for flips in sources.flips.values() for f in flips)


def test_of_a_run_whose_store_is_empty_the_page_says_what_is_missing(world):
    for kind in ("evaluate", "benchmark", "quantize", "fetch"):
        for folder in (world.root / kind).iterdir():
            (folder / "manifest.json").unlink()
    told = Tree(world.page()).text()
    flips = part(world.page(), "flips")
    assert "The answers cannot be compared any more.The answers of int8 are not compared:" in flips
    assert "its artifact is not in the store any more" in told


def test_of_a_run_whose_recipe_is_gone_nothing_is_said_that_only_the_recipe_tells(world):
    sources = world.sources()
    for name in ("recipe.yaml", "recipe.resolved.json"):
        (world.folder / name).unlink()
    gone = read_sources(sources.record, world.folder, world.store)
    told = page(gone)
    assert "recipe.yaml is not in the run's folder." in part(told, "receipt")
    load = part(page(bare(gone.record.model_copy(update={"variants": []}))), "load")
    assert "Nothing was measured under load." in load and "the recipe has no benchmark" not in load
    assert "No text was measured" not in told


def test_a_variant_that_broke_before_it_was_measured_has_its_reason_on_the_page(world):
    broken = Finding(
        gate="g", kind="stage", metric="stage", outcome="error", sentence="out of memory", numbers={}, detail="a log"
    )
    (first, _) = world.variants
    found = first.verdict.model_copy(update={"findings": [broken], "outcome": "error"})
    world.variants.append(
        first.model_copy(update={"name": "nf4", "verdict": found, "evidence": None, "stages": {}, "decision": None})
    )
    told = Tree(world.page()).text()
    assert "It was not measured." in told and "out of memory" in told and "a log" in told


def test_every_run_that_other_reports_can_draw_has_a_page(variant):
    held = record(variant("int4", 0.5, evals=("facts", "dates")), variant("int8", 0.0, answered=48, stopped="pass"))
    told = Tree(page(bare(held))).text()
    assert "Limits of the difference in facts.accuracy, in points, while the sample grew" in told
    empty = record()
    assert Tree(page(bare(empty))).all("section")


def test_the_receipt_names_digests_seeds_machine_versions_and_the_recipe(world):
    text = world.page()
    told = Tree(text[text.index('<section id="receipt"') : text.index("</section></main>") + 10]).text()
    for expected in (
        "a" * 64,
        "c" * 64,
        "one of a kind",
        "2.13.0",
        "quantize verify demo-1",
        "name: demo",
        "variants.int8.method.seed",
    ):
        assert expected in told


def test_text_is_escaped_in_one_place_and_nothing_else_is_markup():
    assert element("p", "<b>&", title='"<') == '<p title="&quot;&lt;">&lt;b&gt;&amp;</p>'
    assert element("p", Markup("<b></b>"), None, ["a", None]) == "<p><b></b>a</p>"
    assert shown("a\ud800\x1b\tb\n") == "a[U+D800][U+001B]\tb\n"
    assert joined("a" + Markup("<b>")) == "a&lt;b&gt;"
    assert element("input", hidden=True, value=None, type=False) == "<input hidden>"
    with pytest.raises(ValueError, match="name of an attribute"):
        element("p", **{"a b": "c"})
    with pytest.raises(ValueError, match="ends the element"):
        inline("script", "'</SCRIPT>'")


def test_a_review_is_shown_line_by_line_with_its_evidence(variant):
    lines = [
        Line(name="baseline", state="met", sentence="measured on 300.", reference="stage evaluate.facts 0123"),
        Line(name="rollback target", state="not met", sentence="version 1: nothing says that it was ever loaded."),
        Line(name="load", state="not asked", sentence="the recipe has no <benchmark>."),
    ]
    held = record(variant("int8", 0.0))
    papers = {"model": "m", "model_version": "2", "artifact_digest": "a" * 64, "verdict_digest": "d" * 64, "run": "r"}
    found = Checklist(variant=held.variants[0].name, lines=lines, **papers)
    reviewed = [held.variants[0].model_copy(update={"checklist": found}), *held.variants[1:]]
    text = Tree(page(bare(held.model_copy(update={"variants": reviewed})))).text()
    assert text.count("review: 1 of 3 met; not met: rollback target; not asked: load") == 1
    assert "met: baseline. measured on 300. [stage evaluate.facts 0123]" in text
    assert "✗ not met: rollback target. version 1: nothing says that it was ever loaded." in text
    assert "· not asked: load. the recipe has no <benchmark>." in text
    assert "review:" not in Tree(page(bare(held))).text()
