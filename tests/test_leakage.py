"""A variant that was calibrated on what it is examined on is found out, before the run or at the latest when judged."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import yaml
from program import TINY, command, tiny_recipe, write_recipe
from release_world import PROVENANCE

from quantize.device import choose
from quantize.engines import Transformers
from quantize.evidence import Spending
from quantize.gates import NonInferiority
from quantize.handed import EvaluateJob, Host
from quantize.judgement import Rules, collect, decide
from quantize.leakage import overlaps, seen_hashes
from quantize.metrics import Items, LmEvalTask
from quantize.metrics._items_file import load_items
from quantize.parts import StoreParts
from quantize.preflight import check
from quantize.proof import Proof
from quantize.recipe import load
from quantize.report import markdown, summarise
from quantize.run import RunRecord, VariantRecord
from quantize.stages import STAGES, Work
from quantize.store import Store
from quantize.verdict import Verdict

ROOT = Path(__file__).parents[1]
LONG = 'The old lighthouse-keeper doesn\'t say "good night" to anyone, except his grey cat'
SHORT = "The capital of France is"


def leaked(item: str, *documents: str) -> bool:
    """Whether an item is recognised among others in what a variant was calibrated on."""
    others = [("other", "A question about something else, which stands in no calibration text at all")]
    return overlaps([("it", item), *others], seen_hashes(documents)) == ["it"]


SPELLINGS = {
    "as it is": LONG,
    "in capitals": LONG.upper(),
    "without punctuation": LONG.translate(str.maketrans("", "", ',."')),
    "with other quotes and dashes": LONG.replace("'", "\u2019").replace('"', "\u201c").replace("-", "\u2010"),
    "over several lines": LONG.replace(" ", "\n", 5),
    "with more blanks": LONG.replace(" ", " \t "),
    "in full-width letters": LONG.replace("old", "\uff4f\uff4c\uff44"),
    "with emphasis": LONG.replace("anyone", "_anyone_").replace("grey", "**grey**"),
    "within a longer text": f"It was late. {LONG}. Then he went up the stairs, as he did every night.",
}


@pytest.mark.parametrize("spelling", SPELLINGS.values(), ids=SPELLINGS.keys())
def test_a_copied_item_is_recognised_however_it_is_spelt(spelling):
    assert leaked(LONG, "Some other document.", spelling)


def test_a_text_on_the_same_matter_in_other_words_is_no_copy():
    assert not leaked(LONG, LONG.replace("grey", "black"))
    assert not leaked(
        LONG, "The old lighthouse-keeper doesn't say a word.", "good night to anyone, except his grey cat"
    )


def test_an_item_is_its_own_lines_and_not_the_template_that_all_share():
    template = "Answer the following question with one word, and with nothing else.\n{}\nAnswer:"
    own = [f"{LONG} number {word}" for word in ("one", "two", "three", "four", "five")]
    items = [(str(number), template.format(text)) for number, text in enumerate(own)]
    assert overlaps(items, seen_hashes([template.format("What is it?")])) == []
    assert overlaps(items, seen_hashes([own[2]])) == ["2"]
    # Of so few items nothing can be told apart: every line counts.
    assert overlaps(items[:2], seen_hashes([template.format("What is it?")])) == ["0", "1"]


@pytest.mark.parametrize(
    ("document", "seen"),
    [
        ("France\n  the CAPITAL of France is...\nParis", True),
        ("The capital of France is", True),
        ("The capital of France is Paris.", False),
        ("We asked: the capital of France is\n", False),
    ],
)
def test_a_short_item_is_recognised_only_as_a_whole_line(document, seen):
    """Fewer than 8 words are found by chance: where they stand alone in a line, they were put there."""
    assert leaked(SHORT, document) is seen


@pytest.mark.parametrize("item", ["Question: What is 100 plus 200?\nAnswer:", "Question: What is 6 times 1?\nAnswer:"])
def test_an_item_of_short_lines_is_recognised_as_a_whole(item):
    assert leaked(item, f"Some words before.\n{item}\nand some after") is (len(item.split()) >= 8)
    assert leaked(item, item)
    assert not leaked(item, "Question: What is 7 times 9?\nAnswer: 63", "Answer:")


def test_an_item_in_a_script_without_blanks_is_recognised_within_a_sentence():
    item = "日本で一番高い山の名前は何ですか"
    assert leaked(item, f"旅行の本には「{item}」と書いてあった。")
    assert not leaked(item, "日本で一番長い川の名前は何ですか")


def test_without_calibration_text_nothing_is_seen():
    assert seen_hashes([]) == []
    assert overlaps([("it", LONG)], []) == []
    assert overlaps([("it", "")], seen_hashes([LONG, ""])) == []


def test_the_projects_own_eval_set_is_in_none_of_its_own_texts():
    facts = [(item.id, item.prompt) for item in load_items(str(ROOT / "evals" / "facts"))]
    assert len(facts) > 500
    for path in (ROOT / "evals" / "prose.txt", TINY / "heldout.txt"):
        assert overlaps(facts, seen_hashes(path.read_text("utf-8").split("\n---\n"))) == []
    assert len(overlaps(facts, seen_hashes([prompt for _, prompt in facts]))) == len(facts)


def test_what_is_found_in_the_tiny_llamas_world_stands_there_word_for_word():
    """Its texts tell the facts that its items ask, mostly in other words."""
    text = (TINY / "heldout.txt").read_text("utf-8")
    items = {item.id: item.prompt for item in load_items(str(TINY / "items.jsonl"))}
    found = overlaps(list(items.items()), seen_hashes([text]))
    long = {name for name, prompt in items.items() if len(prompt.split()) >= 8 and prompt in text}
    assert set(found) == long
    assert len(found) < len(items) / 50


def problems(folder: Path, **calibration: object) -> tuple[str, ...]:
    """What is wrong with the tiny recipe where it calibrates on `folder`'s text."""
    recipe = tiny_recipe(
        calibration={"kind": "text", "path": str(folder / "calibration.jsonl"), "samples": 4, **calibration},
        variants=[{"name": "int4", "scheme": "W4A16", "method": {"kind": "gptq"}}],
        registry={"kind": "mlflow", "name": "tiny"},
    )
    loaded = load(write_recipe(folder, recipe))
    facts = loaded.recipe.model.facts()
    return check(loaded.recipe, facts, choose("cpu"), folder / "store", tuple(loaded.recipe.variants)).problems


def write_calibration(folder: Path, *texts: str) -> Path:
    path = folder / "calibration.jsonl"
    path.write_text("\n".join(json.dumps({"text": text}) for text in texts), "utf-8")
    return path


def test_a_leaked_row_is_refused_before_anything_runs_with_what_to_do(tmp_path):
    items = load_items(str(TINY / "items.jsonl"))
    copied = [f"{items[number].prompt.upper()}\n{LONG}" for number in (4, 60)]
    write_calibration(tmp_path, LONG, *copied)
    (said,) = problems(tmp_path)
    assert said == (
        "calibration: its data holds 2 of the 200 texts of the eval 'facts', number 5 first: the variant would have "
        "seen the examination. Take them out of one of the two, or set calibration.allow_overlap: true"
    )
    assert problems(tmp_path, allow_overlap=True) == ()
    write_calibration(tmp_path, LONG)
    assert problems(tmp_path) == ()


def test_the_command_refuses_it_and_starts_nothing(tmp_path):
    write_calibration(tmp_path, Items(name="facts", path=str(TINY / "items.jsonl")).texts()[0])
    problems(tmp_path)
    result = command("run", tmp_path / "recipe.yaml", "--store", tmp_path / "store")
    assert result.returncode == 2
    assert "its data holds 1 of the 200 texts of the eval 'facts', number 1 first" in result.stderr
    assert "Traceback" not in result.stderr
    assert not list((tmp_path / "store").rglob("manifest.json"))


def no_parts(base: str, name: str) -> AbstractContextManager[StoreParts]:
    raise AssertionError("calibrating keeps no parts")


QUESTIONS = [
    f"{LONG}, {tail}" for tail in ("said Ada", "said Bram", "said Cole", "said Dora", "said Elin", "said Finn")
]


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    """A task of lm-eval: what it asks is known only once it has run."""
    folder = tmp_path_factory.mktemp("task")
    documents = [{"text": text, "choices": [" yes", " no"], "right": 0} for text in QUESTIONS]
    (folder / "data.jsonl").write_text("\n".join(map(json.dumps, documents)), "utf-8")
    config = {
        "task": "said",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "data.jsonl")}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "Is it true?\n{{text}}",
        "doc_to_choice": "choices",
        "doc_to_target": "right",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    (folder / "said.yaml").write_text(yaml.safe_dump(config), "utf-8")
    return LmEvalTask(name="said", task="said", include_path=str(folder))


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A store with a model and a variant of it, whose weights nobody looks at here."""
    store = Store(tmp_path_factory.mktemp("store"))
    for kind in ("fetch", "quantize"):
        draft = store.draft(kind, kind[0] * 64)
        (draft / "checkpoint").mkdir()
        (draft / "checkpoint" / "model.safetensors").write_bytes(kind.encode())
        summary = {"facts": {"parameters": None}}
        store.commit(draft, kind=kind, name="", key=kind[0] * 64, inputs={}, summary=summary, provenance=PROVENANCE)
    return store


@pytest.fixture(scope="module")
def arm(task, store, tmp_path_factory):
    """The task as the tiny Llama answered it."""
    out = tmp_path_factory.mktemp("arm")
    session = Transformers().open(TINY / "checkpoint", "cpu")
    job = EvaluateJob(
        arm="baseline",
        out=out,
        engine="transformers",
        device="cpu",
        session=lambda: session,
        seed=0,
        look=48,
        parts=StoreParts(store, "0" * 64, "baseline said", lambda _: PROVENANCE),
        stop=lambda _: None,
        reference=None,
        baseline=None,
        progress=lambda *_: None,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("datasets")))
        measured = task.measure(job)
    (out / "measurements.json").write_text(measured.model_dump_json(), "utf-8")
    session.close()
    return out


@pytest.fixture
def judged(task, store, arm, tmp_path):
    """The verdict on a variant that was calibrated on `texts`, and the report: `judged(texts, allow_overlap)`."""

    def judge(texts: list[str], *, allow_overlap: bool = False) -> tuple[Verdict, str]:
        path = write_calibration(tmp_path, *texts)
        tokens, proof = tmp_path / "tokens", tmp_path / "proof"
        for folder in (tokens, proof):
            folder.mkdir()
        model = tmp_path / "model"
        model.mkdir()
        (model / "checkpoint").symlink_to(TINY / "checkpoint")
        calibration = {"kind": "text", "path": str(path), "samples": 1, "tokens": 16}
        work = Work({"model": model}, tokens, "cpu", lambda *_: None, no_parts, Host({}, tokens))
        STAGES["calibrate"].run({"calibration": calibration}, work)
        proven = Proof(outcome="pass", sentences=("The checkpoint answers as it did.",), numbers={})
        (proof / "proof.json").write_text(proven.model_dump_json(), "utf-8")
        rules = Rules(
            variant="int4",
            rules_digest="d" * 64,
            counted={"said": "e" * 64},
            spending=Spending(early=0.0),
            allow_overlap=allow_overlap,
        )
        inputs = {
            "model": store.path("fetch", "f" * 64),
            "quantized": store.path("quantize", "q" * 64),
            "proof": proof,
            "tokens": tokens,
            "baseline.said": arm,
            "variant.said": arm,
        }
        collected = collect(rules, [task], inputs)
        verdict = decide(collected, [NonInferiority(metric="said.accuracy", margin=0.9)], rules)
        record = VariantRecord(name="int4", verdict=verdict, evidence=collected.evidence, decision=None, stages={})
        run = RunRecord(
            run="r",
            recipe="tiny",
            recipe_digest="d" * 64,
            program="quantize",
            started="2026-01-01T00:00:00+00:00",
            seconds=1.0,
            device="a CPU",
            actor="a test",
            baseline_stages={},
            variants=[record],
            ran=[],
            reused=[],
        )
        return verdict, markdown(summarise(run))

    return judge


FOUND = "the calibration data holds 1 of 6 eval items, said "


def test_a_leaked_document_of_a_task_is_an_error_of_the_verdict_with_what_to_do(judged):
    """A task's documents are not known before it runs, so this is seen only when it is judged."""
    verdict, report = judged([f"Before it.\n{QUESTIONS[3].upper()}\nAfter it. {LONG}"])
    (overlap,) = [finding for finding in verdict.findings if finding.kind == "overlap"]
    assert verdict.outcome == overlap.outcome == "error"
    assert not overlap.advisory
    assert FOUND in overlap.sentence
    assert "set calibration.allow_overlap: true" in overlap.sentence
    assert not [finding for finding in verdict.findings if finding.kind == "noninferiority"], "nothing was judged"
    assert f"**ERROR**: {overlap.sentence}" in report


def test_an_overlap_that_the_recipe_allows_is_told_in_the_report_and_blocks_nothing(judged):
    verdict, report = judged([f"{QUESTIONS[3]}\n{LONG}"], allow_overlap=True)
    (note,) = [finding for finding in verdict.findings if finding.kind == "note"]
    assert verdict.outcome == "pass"
    assert note.advisory
    assert FOUND in note.sentence
    assert note.sentence.endswith("The recipe allows it.")
    assert note.sentence in report


def test_calibration_data_of_its_own_leaves_no_word_in_the_verdict(judged):
    verdict, report = judged([LONG, "Quite another text, about the tides and what the moon has to do with them."])
    assert verdict.outcome == "pass"
    assert {finding.kind for finding in verdict.findings} == {"proof", "noninferiority"}
    assert "calibration" not in report
