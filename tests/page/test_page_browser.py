"""The page in headless Chromium: drawn, filtered, read by keyboard, in the dark, on paper, in a frame."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from page_world import HOSTILE, PageWorld, clean
from test_page import Tree

pytest_plugins = ["browser_fixtures"]
pytestmark = pytest.mark.slow


@dataclass
class Watched:
    """A page, and all that a reader would not want: errors, messages, dialogs, requests beside the page itself."""

    page: Any
    wrong: list[str] = field(default_factory=list)


@pytest.fixture
def opened(browser) -> Iterator[Callable[..., Watched]]:
    """Opens a file; at the end nothing may have gone wrong in it."""
    contexts, watched = [], []

    def open_(path: Path, *, width: int = 1280, **options: Any) -> Watched:
        context = browser.new_context(viewport={"width": width, "height": 900}, **options)
        contexts.append(context)
        found = Watched(context.new_page())
        watched.append(found)
        found.page.on("console", lambda message: found.wrong.append(f"console: {message.text}"))
        found.page.on("pageerror", lambda error: found.wrong.append(f"error: {error}"))
        found.page.on("dialog", lambda dialog: (found.wrong.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        url = path.as_uri()
        found.page.on("request", lambda request: None if request.url == url else found.wrong.append(request.url))
        found.page.goto(url)
        return found

    yield open_
    for context in contexts:
        context.close()
    assert [message for found in watched for message in found.wrong] == []


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> PageWorld:
    made = PageWorld(tmp_path_factory.mktemp("page"), evals=("facts", "dates"))
    made.add("int8", 0.1, 0.001, load=1.31)
    made.add("int4", 0.4, 0.05, load=0.7)
    made.add("nf4", 0.12, 0.01)
    return made


@pytest.fixture(scope="module")
def report(world) -> Path:
    """The page of a run with everything in it."""
    path = world.root / "report.html"
    path.write_text(world.page(), encoding="utf-8")
    return path


def test_the_browser_builds_the_tree_that_was_written(opened, report):
    held = opened(report).page
    written = [tag for tag, _ in Tree(report.read_text(encoding="utf-8")).tags]
    assert held.evaluate("[...document.querySelectorAll('*')].map(e => e.localName)") == written
    assert held.evaluate("document.compatMode") == "CSS1Compat"


def test_every_plot_is_drawn_and_every_mark_in_it_is_somewhere_in_it(opened, report):
    held = opened(report).page
    held.evaluate("for (const d of document.querySelectorAll('details')) d.open = true")
    plots = held.evaluate(
        """[...document.querySelectorAll('svg[role=img]')].map(svg => {
            const frame = svg.getBoundingClientRect();
            const drawn = [...svg.querySelectorAll('.mark, text, polyline, polygon')];
            const marks = drawn.map(m => m.getBoundingClientRect());
            return {title: svg.querySelector('title').textContent,
                    area: frame.width * frame.height, marks: marks.length,
                    empty: marks.filter(m => m.width + m.height === 0).length,
                    outside: marks.filter(m => m.right < frame.left - 9 || m.left > frame.right + 9
                                            || m.bottom < frame.top - 9 || m.top > frame.bottom + 9).length};
        })"""
    )
    assert len(plots) >= 18
    for plot in plots:
        assert plot["area"] > 200 and plot["marks"] > 0, plot
        assert plot["empty"] == plot["outside"] == 0, plot


def test_the_scale_of_the_verdicts_stands_above_what_is_drawn_on_it(opened, report):
    held = opened(report).page
    left = "e => e.getBoundingClientRect().left"
    scale = held.locator(".axis-row svg").evaluate(left)
    assert {round(scale)} == {
        round(place) for place in held.locator(".verdicts .plot svg").evaluate_all(f"all => all.map({left})")
    }


#: The boxes of the names in each trade-off plot.
BOXES = """[...document.querySelectorAll('#trade-off svg[role=img]')].map(g =>
    [...g.querySelectorAll('.name')].map(n => {
    const b = n.getBBox(); return [b.x, b.y + 2, b.x + b.width, b.y + b.height - 2]; }))"""


def assert_apart(names: list[list[float]]) -> None:
    """No two boxes meet."""
    for one in names:
        meet = [o for o in names if one[0] < o[2] and o[0] < one[2] and one[1] < o[3] and o[1] < one[3]]
        assert meet == [one]


def test_no_two_names_of_a_trade_off_plot_hide_each_other(opened, report):
    boxes = opened(report).page.evaluate(BOXES)
    assert len(boxes) == 4
    for names in boxes:
        assert len(names) >= 3
        assert_apart(names)


def shown(page: Any) -> list[str]:
    return page.evaluate(
        "[...document.querySelectorAll('#flip-list > li')].filter(e => e.offsetHeight)"
        ".map(e => e.querySelector('b').textContent)"
    )


def test_flips_are_searched_and_filtered_and_the_count_says_how_many_are_left(opened, report):
    page = opened(report).page
    everything = shown(page)
    count = page.locator("#flip-count")
    assert count.text_content() == f"{len(everything)} items"
    page.fill("#flip-search", f"{everything[0].upper()} right")
    assert set(shown(page)) == {everything[0]}
    assert count.text_content() == f"{len(shown(page))} of {len(everything)} items"
    page.fill("#flip-search", "")
    page.select_option("#flip-variant", "nf4")
    page.select_option("#flip-way", "gained")
    page.select_option("#flip-eval", "dates")
    some = shown(page)
    assert 0 < len(some) < len(everything)
    left = page.evaluate(
        "[...document.querySelectorAll('#flip-list [data-variant]')].filter(e => e.offsetHeight)"
        ".map(e => ({...e.dataset}))"
    )
    assert left == [{"variant": "nf4", "way": "gained"}] * len(some)
    page.fill("#flip-search", "nothing has this")
    assert shown(page) == []
    page.focus("#flip-search")
    page.keyboard.press("Escape")
    assert shown(page) == some


def test_the_page_is_read_by_keyboard(opened, report):
    page = opened(report).page
    focused = "(e => e.id || e.textContent)(document.activeElement)"
    page.keyboard.press("Tab")
    assert page.evaluate(focused) == "Skip to the verdicts"
    box = page.evaluate("(r => [r.left, r.top])(document.activeElement.getBoundingClientRect())")
    assert min(box) >= 0, "it is seen when it has the focus"
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.closest('section').id") == "verdicts"
    page.keyboard.press("/")
    assert page.evaluate(focused) == "flip-search"
    page.keyboard.type("a/b")
    assert page.input_value("#flip-search") == "a/b"
    page.locator("#variant-int8 > details > summary").focus()
    page.keyboard.press("Enter")
    assert page.evaluate("document.querySelector('#variant-int8 > details').open")
    order = page.evaluate("[...document.querySelectorAll('[tabindex]')].map(e => e.tabIndex)")
    assert set(order) == {0}, "focus goes in the order of the page"


COLOURS = """(selectors) => {
    const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
    const rgb = (colour) => { canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
                              return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3); };
    const light = (c) => c.map(v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
                          .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
    const paper = light(rgb(getComputedStyle(document.body).backgroundColor));
    return Object.fromEntries(selectors.map(s => {
        const e = document.querySelector(s), style = getComputedStyle(e);
        const ink = light(rgb(e.closest('svg') && style.fill !== 'none' ? style.fill : style.color));
        return [s, (Math.max(paper, ink) + 0.05) / (Math.min(paper, ink) + 0.05)];
    }));
}"""
TEXTS = [
    "body",
    ".note",
    ".word.pass",
    ".word.fail",
    ".word.inconclusive",
    ".word.error",
    ".made",
    "thead th",
    "summary",
    "dt",
    ".answer.lost .sign",
    ".answer.gained .sign",
    "a",
    "svg .tick",
    "svg .head",
    "svg .name",
]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_stands_out_from_the_paper(opened, report, scheme):
    page = opened(report, color_scheme=scheme).page
    page.evaluate("document.body.insertAdjacentHTML('beforeend', '<p class=\"word error\">error</p>')")
    contrasts = page.evaluate(COLOURS, TEXTS)
    assert min(contrasts.values()) >= 4.5, contrasts
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", paper)[:3])) > 384) == (scheme == "light")


def test_the_theme_follows_the_system_until_the_button_is_pressed(opened, report):
    page = opened(report, color_scheme="dark").page
    paper = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(paper)
    page.click("#theme")
    light = page.evaluate(paper)
    assert light != dark and page.text_content("#theme") == "Theme: light"
    page.click("#theme")
    assert page.evaluate(paper) == dark and page.text_content("#theme") == "Theme: dark"
    page.click("#theme")
    page.emulate_media(color_scheme="light")
    assert page.evaluate(paper) == light and page.text_content("#theme") == "Theme: as the system"


def test_on_paper_everything_is_unfolded_and_nothing_is_there_to_press(opened, report, tmp_path):
    page = opened(report, color_scheme="dark").page
    folded = page.evaluate("document.querySelectorAll('details:not([open])').length")
    assert folded > 5
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate("document.querySelectorAll('details:not([open]):not(.numbers)').length") == 0
    assert page.evaluate("document.querySelectorAll('details.numbers[open]').length") == 0, "they only repeat a plot"
    printed = page.locator("#flip-list > li").evaluate_all("all => all.filter(e => e.offsetHeight).length")
    assert printed == 40 < page.locator("#flip-list > li").count()
    assert "On paper: the first 40." in page.inner_text("#flips")
    for selector in ("nav", "#theme", "#flip-filters", "summary"):
        assert not page.locator(selector).first.is_visible(), selector
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.evaluate("document.querySelectorAll('details:not([open])').length") == folded
    page.emulate_media(media="screen")
    assert page.pdf(path=tmp_path / "report.pdf", prefer_css_page_size=True)[:5] == b"%PDF-"


@pytest.mark.parametrize("width", [360, 768, 1280, 2200])
def test_the_page_itself_never_scrolls_sideways(opened, report, width):
    page = opened(report, width=width).page
    page.evaluate("for (const d of document.querySelectorAll('details')) d.open = true")
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_names_however_long_push_nothing_off_a_telephone_and_stay_within_their_plots(opened, tmp_path):
    world = PageWorld(tmp_path, told="問題 مصر " + "verylongword" * 40)
    world.add("-".join(["a-very-long-name"] * 12), 0.3, load=1.2)
    world.add("int4", 0.2, load=0.8)
    path = tmp_path / "report.html"
    path.write_text(world.page(), encoding="utf-8")
    page = opened(path, width=390).page
    page.evaluate("for (const d of document.querySelectorAll('details')) d.open = true")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    beyond = page.evaluate(
        """[...document.querySelectorAll('svg[role=img]')].flatMap(svg => {
            const frame = svg.getBoundingClientRect();
            return [...svg.querySelectorAll('text')].map(t => [t.textContent, t.getBoundingClientRect()])
                .filter(([_, b]) => b.left < frame.left - 6 || b.right > frame.right + 6).map(([t]) => t);
        })"""
    )
    assert beyond == []


def test_twelve_arms_have_names_that_do_not_hide_each_other(opened, tmp_path):
    world = PageWorld(tmp_path, texts=())
    for number in range(12):
        world.add(f"variant-{number}", 0.1 + 0.03 * number, load=0.7 + 0.06 * number)
    path = tmp_path / "report.html"
    path.write_text(world.page(), encoding="utf-8")
    page = opened(path).page
    for plot in page.evaluate(BOXES):
        assert len(plot) == 13
        assert_apart(plot)


def test_without_scripts_everything_is_there_but_the_controls(opened, report):
    page = opened(report, java_script_enabled=False).page
    assert page.locator("#flip-list > li").last.is_visible()
    assert page.locator("#trade-off svg").first.is_visible()
    assert not page.locator("#flip-filters").is_visible()
    assert not page.locator("#theme").is_visible()


def test_hostile_text_runs_nothing(opened, tmp_path):
    world = PageWorld(tmp_path, told=HOSTILE)
    world.add("int8", 0.3)
    path = tmp_path / "report.html"
    path.write_text(world.page(actor=clean(HOSTILE), device=clean(HOSTILE)), encoding="utf-8")
    page = opened(path).page
    page.evaluate("for (const d of document.querySelectorAll('details')) d.open = true")
    page.fill("#flip-search", "<script>")
    assert len(shown(page)) > 10
    assert page.evaluate("document.scripts.length") == 1
    assert page.evaluate("document.images.length") == 0


VIEWER = """<!DOCTYPE html><title>viewer</title><iframe sandbox="allow-scripts" width="1200" height="800"></iframe>
<script>fetch("report.html").then(r => r.text()).then(text => {
  document.querySelector("iframe").src = URL.createObjectURL(new Blob([text], {type: "text/html"}));
});</script>"""


@pytest.fixture
def viewer(report) -> Iterator[str]:
    """A site that shows the page as MLflow does: its text, in a frame that may run scripts and nothing else."""
    (report.parent / "viewer.html").write_text(VIEWER, encoding="utf-8")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(report.parent))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/viewer.html"
        server.shutdown()
        thread.join()


class Quiet(SimpleHTTPRequestHandler):
    """Files of a folder, and an icon so that a browser's question for one is no error."""

    def log_message(self, *_):
        pass

    def do_GET(self):
        if self.path == "/favicon.ico":
            self.send_response(204)
            self.end_headers()
        else:
            super().do_GET()


def test_it_works_in_a_frame_without_origin_and_storage_as_a_viewer_of_artifacts_has(browser, viewer):
    page = browser.new_page()
    wrong: list[str] = []
    page.on("console", lambda message: wrong.append(message.text))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.goto(viewer)
    frame = page.frame_locator("iframe")
    frame.locator("#flip-filters").wait_for(state="visible", timeout=5000)
    frame.locator("#flip-search").fill("item-0000")
    assert " of " in (frame.locator("#flip-count").text_content() or "")
    frame.locator("#theme").click()
    frame.get_by_role("link", name="Receipt").click()
    for _ in range(50):
        top = (frame.locator("#receipt-heading").bounding_box() or {"y": -1})["y"]
        if 0 <= top < 800:
            break
        page.wait_for_timeout(100)
    assert 0 <= top < 800, "the link leads there"
    page.keyboard.press("Tab")
    assert frame.locator("#receipt :focus").count() == 1
    assert wrong == []
    page.close()
