"""Divergence from the likeliest tokens alone: below the exact one, nearer to it with more tokens, and never called it.

The engine is the real one, made to answer as those do that give the likeliest tokens only.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from quantize.engines.transformers import TransformersSession
from quantize.errors import DataError, QuantizeError
from quantize.gates import Limit
from quantize.handed import Top
from quantize.metrics import Text, _top
from quantize.metrics._rows import read_rows
from quantize.metrics._top import divergence_at_least

TINY = Path(__file__).parents[1] / "tiny_llama"
WHOLE = 512
WINDOW = 48


class Limited:
    """A session that says no more than its `k` likeliest tokens, in `dtype`."""

    distributions = "top"

    def __init__(self, session, dtype="float64"):
        self._session, self._dtype = session, dtype

    def __getattr__(self, name):
        if name in ("hidden", "head", "head_parameters", "logits"):
            raise AssertionError(f"this engine has no {name}")
        return getattr(self._session, name)

    def top(self, windows, k):
        import torch

        return [top_of(self._session.logits(ids[None])[0], ids, k, getattr(torch, self._dtype)) for ids in windows]


def top_of(logits, ids, k, dtype):
    import torch

    whole = logits[:-1].double()
    whole[~whole.isfinite().all(1)] = torch.nan
    whole = whole.log_softmax(-1).to(dtype).double()
    values, likeliest = whole.topk(k)
    return Top(whole.gather(1, ids[1:, None])[:, 0], likeliest, values)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "prose.txt"
    path.write_text("\n---\n".join((TINY / "heldout.txt").read_text("utf-8").split("\n---\n")[:8]), "utf-8")
    return path


@pytest.fixture(scope="module")
def at(text):
    """The eval with so many tokens."""
    return lambda k: Text(name="prose", path=str(text), window=WINDOW, top=k)


@pytest.fixture(scope="module")
def alone(int8):
    """The variant with every window as a batch alone: what INT8 rounds of activations depends on the batch."""
    return TransformersSession(int8.model, int8.tokenizer, 1)


@pytest.fixture(scope="module")
def exact(at, measured, baseline, alone):
    """What whole distributions say: the measurements, the folders of both arms and the comparison."""
    metric = at(64)
    before = measured(metric, baseline)
    after = measured(metric, alone, reference=before[1])
    return after[0], after[1], metric.compare(before[1], after[1])


@pytest.fixture(scope="module")
def bounded(at, measured, baseline, alone):
    """What `k` tokens say: the same."""

    def found(k, dtype="float64"):
        metric = at(k)
        before = measured(metric, Limited(baseline, dtype))
        after = measured(metric, Limited(alone, dtype), reference=before[1])
        return after[0], after[1], metric.compare(before[1], after[1])

    return found


def column(out, name):
    return np.array([row[name] for row in read_rows(out)])


def means(out, name):
    """By document."""
    documents = column(out, "document")
    return np.bincount(documents, weights=column(out, name)) / np.bincount(documents)


def test_a_bound_is_below_the_divergence_everywhere_and_grows_with_the_tokens(exact, bounded):
    # Two ways to the same logits: see test_text.py for what float32 rounds.
    true = column(exact[1], "kld") * (1 + 1e-4) + 1e-8
    lower = np.zeros_like(true)
    by_document = []
    for k in (1, 4, 16, 64, 256):
        _, out, _ = bounded(k)
        found = column(out, "kld_at_least")
        assert set(column(out, "kld")) == {None}, "a bound is never stored as what it bounds"
        assert (found <= true).all()
        assert (found >= lower - _top._ROUNDING).all()
        lower = found
        by_document.append(means(out, "kld_at_least"))
        assert (by_document[-1] <= means(exact[1], "kld") + 1e-8).all()
    assert by_document[0].mean() > 0
    assert (by_document[-1] > by_document[0]).all(), "more tokens say more of every document"
    assert by_document[3].mean() > 0.5 * true.mean(), "of 512 tokens, 64 tell most of it"


def test_all_tokens_give_the_divergence_itself(exact, bounded):
    for k in (WHOLE, 10 * WHOLE):
        _, out, _ = bounded(k)
        assert column(out, "kld_at_least") == pytest.approx(column(exact[1], "kld"), rel=1e-4, abs=3e-8)


def test_what_float32_rounds_never_makes_a_bound_too_great(exact, bounded):
    for k in (4, 64, WHOLE):
        _, out, _ = bounded(k, "float32")
        assert (column(out, "kld_at_least") <= column(exact[1], "kld") + 1e-6).all()


def test_everything_but_the_divergence_is_exact(exact, bounded):
    arm, out, _ = bounded(4)
    found, true = ({m.name: m for m in measurements.measurements} for measurements in (arm, exact[0]))
    for name in ("perplexity", "top1_agreement", "delta_p", "delta_p_rms"):
        assert found[f"prose.{name}"].value == pytest.approx(true[f"prose.{name}"].value, rel=1e-5, abs=1e-7)
    for name in ("nll", "delta_p"):
        assert column(out, name) == pytest.approx(column(exact[1], name), rel=1e-4, abs=1e-6)
    for name in ("document", "position", "token", "top1_agrees"):
        assert column(out, name).tolist() == column(exact[1], name).tolist()


def test_a_bound_has_a_name_of_its_own_in_measurements_and_comparisons(exact, bounded):
    arm, _, compared = bounded(16)
    names = {m.name for m in arm.measurements}
    assert {"prose.kl_divergence_at_least", "prose.kl_divergence_at_least/p99"} <= names
    assert not {name for name in names if name.startswith("prose.kl_divergence") and "at_least" not in name}
    metrics = [c.metric for c in compared]
    assert metrics == [c.metric.replace("kl_divergence", "kl_divergence_at_least") for c in exact[2]]
    assert "prose.kl_divergence_at_least" in metrics


def test_a_limit_that_even_the_bound_exceeds_fails_and_any_other_stays_open(bounded):
    _, _, compared = bounded(64)
    bound = next(c for c in compared if c.metric == "prose.kl_divergence_at_least")
    evidence = SimpleNamespace(comparisons=compared)
    exceeded = Limit(metric="prose.kl_divergence", at_most=bound.low / 2).judge(evidence, {})
    assert exceeded.outcome == "fail"
    assert "is at least" in exceeded.sentence and "above the limit" in exceeded.sentence
    for limit in (bound.difference, 100.0):
        kept = Limit(metric="prose.kl_divergence", at_most=limit, advisory=False).judge(evidence, {})
        assert kept.outcome == "inconclusive", "what is only known from below is never within a limit"
        assert "the engine gives the likeliest tokens only" in kept.sentence
    ratio = Limit(metric="prose.perplexity", at_most=1.0).judge(evidence, {})
    assert ratio.outcome == "pass", "what is exact is judged as ever"


def test_what_is_kept_of_the_baseline_is_a_few_bytes_for_each_of_its_tokens(at, measured, baseline):
    _, out = measured(at(8), Limited(baseline))
    held = sum(path.stat().st_size for path in out.glob("reference-*.safetensors"))
    assert held < len(read_rows(out)) * (9 * 12 + 4) + 1024


def test_the_size_of_shards_and_blocks_changes_no_number(bounded, monkeypatch):
    _, once, _ = bounded(16)
    monkeypatch.setattr(_top, "_SHARD", 64)
    monkeypatch.setattr(_top, "_POSITIONS", 10)
    monkeypatch.setattr("quantize.metrics.text._BLOCK", 100)
    _, again, _ = bounded(16)
    assert read_rows(again) == read_rows(once)


def test_another_tokenizer_is_a_hard_stop(at, measured, baseline, text):
    class Other(Limited):
        def encode(self, text):
            return super().__getattr__("encode")(text.upper())

    _, before = measured(at(8), Limited(baseline))
    found, _ = measured(at(8), Other(baseline), reference=before)
    assert [stop for stop in found.hard_stops if "tokenizer gives other tokens" in stop]
    assert not found.measurements


def test_logits_that_are_not_finite_are_a_hard_stop(at, measured, baseline, broken):
    _, before = measured(at(8), Limited(baseline))
    found, out = measured(at(8), Limited(broken), reference=before)
    total = len(read_rows(before))
    assert found.hard_stops == [f"{total} of {total} positions have log-probabilities that are not finite"]
    assert not found.measurements and read_rows(out) == []


def test_a_baseline_of_whole_distributions_is_refused(at, measured, baseline):
    _, before = measured(at(8), baseline)
    with pytest.raises(DataError, match="measured by whole distributions"):
        measured(at(8), Limited(baseline), reference=before)


def test_an_engine_that_gives_fewer_tokens_than_asked_is_refused(at, measured, baseline):
    class Short(Limited):
        def top(self, windows, k):
            return super().top(windows, k - 1)

    with pytest.raises(QuantizeError, match="did not give the 8 likeliest tokens"):
        measured(at(8), Short(baseline))


@pytest.mark.parametrize("place", range(3))
def test_a_position_that_is_not_finite_in_either_arm_has_no_bound(place):
    import torch

    torch.manual_seed(0)
    logits = torch.randn(4, 32)
    ids = torch.arange(4)
    good, bad = (top_of(logits, ids, 5, torch.float64) for _ in range(2))
    (bad.true if place == 0 else bad.log_probabilities[:, place])[1] = torch.nan
    for arms in ((good, bad), (bad, good)):
        assert divergence_at_least(*arms, ids[1:]).isnan().tolist() == [False, True, False]
