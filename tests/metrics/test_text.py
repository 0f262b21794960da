"""Perplexity and divergence: equal to both models side by side, without ever storing a distribution."""

import math
import shutil
from pathlib import Path

import numpy as np
import pytest

from quantize.engines import Transformers
from quantize.engines.transformers import TransformersSession
from quantize.errors import DataError, QuantizeError
from quantize.evidence import TOKEN_ROWS
from quantize.metrics import Text, text
from quantize.metrics._rows import read_rows, write_rows

TINY = Path(__file__).parents[1] / "tiny_llama"
WINDOW = 48


@pytest.fixture(scope="module")
def metric(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "prose.txt"
    documents = (TINY / "heldout.txt").read_text("utf-8").split("\n---\n")[:12]
    path.write_text("\n---\n".join(documents), "utf-8")
    return Text(name="prose", path=str(path), window=WINDOW)


@pytest.fixture(scope="module")
def before(metric, measured, baseline):
    return measured(metric, baseline)


@pytest.fixture(scope="module")
def after(metric, measured, int8, before):
    return measured(metric, int8, before[1])


@pytest.fixture(scope="module")
def side_by_side(metric, baseline, int8):
    """Per position, from whole logits of both models, in float64: (document, token, both nlls, kld, same top)."""
    import torch

    found = []
    for number, document in enumerate(Path(metric.path).read_text("utf-8").split("\n---\n")):
        ids = baseline.encode(document)
        for start in range(0, len(ids), WINDOW):
            window = torch.tensor([ids[start : start + WINDOW]])
            p, q = (s.logits(window)[0, :-1].double().log_softmax(-1) for s in (baseline, int8))
            for i, token in enumerate(window[0, 1:].tolist()):
                kld = float((p[i].exp() * (p[i] - q[i])).sum())
                found.append(
                    (number, token, -float(p[i, token]), -float(q[i, token]), kld, bool(p[i].argmax() == q[i].argmax()))
                )
    return found


def values(measurements):
    return {m.name: m.value for m in measurements.measurements}


def test_every_position_equals_both_models_side_by_side(before, after, side_by_side):
    rows = [read_rows(arm[1]) for arm in (before, after)]
    assert [(r["document"], r["token"]) for r in rows[1]] == [(s[0], s[1]) for s in side_by_side]
    assert [r["nll"] for r in rows[0]] == pytest.approx([s[2] for s in side_by_side], abs=1e-5)
    assert [r["nll"] for r in rows[1]] == pytest.approx([s[3] for s in side_by_side], abs=1e-5)
    assert [r["kld"] for r in rows[1]] == pytest.approx([s[4] for s in side_by_side], rel=1e-5, abs=1e-9)
    assert [r["top1_agrees"] for r in rows[1]] == [s[5] for s in side_by_side]
    assert {r["kld"] for r in rows[0]} == {None}
    assert [r["position"] for r in rows[1]] == list(range(len(side_by_side)))


def test_the_measurements_are_those_of_the_positions(before, after, side_by_side):
    found, klds = values(after[0]), np.array([s[4] for s in side_by_side])
    assert values(before[0]) == {"prose.perplexity": pytest.approx(math.exp(np.mean([s[2] for s in side_by_side])))}
    assert found["prose.perplexity"] == pytest.approx(math.exp(np.mean([s[3] for s in side_by_side])))
    assert found["prose.kl_divergence"] == pytest.approx(klds.mean(), rel=1e-5)
    assert klds.mean() > 1e-5
    for label, q in {"median": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99, "p99.9": 0.999, "max": 1}.items():
        assert found[f"prose.kl_divergence/{label}"] == pytest.approx(np.quantile(klds, q), rel=1e-5)
    assert found["prose.top1_agreement"] == np.mean([s[5] for s in side_by_side])
    assert all(m.n == len(side_by_side) for m in after[0].measurements)
    assert not before[0].hard_stops
    assert not after[0].hard_stops


def test_the_comparison_pairs_documents(metric, before, after, side_by_side):
    ratio, divergence = metric.compare(before[1], after[1])
    assert ratio.difference == pytest.approx(np.mean([s[3] - s[2] for s in side_by_side]), abs=1e-6)
    assert ratio.difference == pytest.approx(math.log(ratio.variant / ratio.baseline))
    assert divergence.difference == pytest.approx(np.mean([s[4] for s in side_by_side]), rel=1e-5)
    for comparison in (ratio, divergence):
        assert comparison.low < comparison.difference < comparison.high
    # Paired: what makes a document hard is in both arms. Unpaired, the interval would be the perplexity's own.
    own = next(m for m in after[0].measurements if m.name == "prose.perplexity")
    assert ratio.high - ratio.low < (math.log(own.high) - math.log(own.low)) / 3


def test_the_baseline_beside_itself_does_not_diverge(metric, measured, baseline, before):
    found, out = measured(metric, baseline, before[1])
    assert {row["kld"] for row in read_rows(out)} == {0.0}
    assert values(found)["prose.top1_agreement"] == 1.0
    assert metric.compare(before[1], out)[0].difference == 0.0


def test_the_baselines_distribution_comes_from_its_own_head(metric, measured, baseline, before):
    """INT8 leaves the head alone, so here it is the head that differs: the variant's would show no divergence."""
    import torch

    session = Transformers().open(TINY / "checkpoint", "cpu")
    session.model.get_output_embeddings().weight.data *= 0.9
    _, out = measured(metric, session, before[1])
    rows = [row for row in read_rows(out) if row["document"] == 0][: WINDOW - 1]
    document = Path(metric.path).read_text("utf-8").split("\n---\n")[0]
    window = torch.tensor([baseline.encode(document)[:WINDOW]])
    p, q = (s.logits(window)[0, :-1].double().log_softmax(-1) for s in (baseline, session))
    expected = (p.exp() * (p - q)).sum(-1)
    assert [row["kld"] for row in rows] == pytest.approx(expected.tolist(), rel=1e-5, abs=1e-9)
    assert float(expected.min()) > 0


def test_hidden_states_are_stored_and_no_logits(before):
    positions = len(read_rows(before[1]))
    stored = (before[1] / "reference.safetensors").stat().st_size
    assert stored < positions * (128 * 4 + 8) + 1024


def test_logits_are_made_for_a_chunk_of_positions_at_a_time(metric, measured, before, monkeypatch):
    session = Transformers().open(TINY / "checkpoint", "cpu")
    rows = []
    head = TransformersSession.head
    monkeypatch.setattr(text, "_CHUNK", 10)
    monkeypatch.setattr(TransformersSession, "head", lambda self, h: rows.append(h.shape[0]) or head(self, h))
    _, out = measured(metric, session, before[1])
    assert max(rows) == 10
    assert {row["kld"] for row in read_rows(out)} == {0.0}


def test_another_tokenizer_is_a_hard_stop(metric, measured, before):
    from tokenizers.pre_tokenizers import ByteLevel

    session = Transformers().open(TINY / "checkpoint", "cpu")
    session.tokenizer.backend_tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=True)
    found, _ = measured(metric, session, before[1])
    assert [stop for stop in found.hard_stops if "tokenizer gives other tokens" in stop]
    assert not found.measurements


def test_nan_is_a_hard_stop_and_never_a_number(metric, measured, broken, before):
    found, _ = measured(metric, broken, before[1])
    assert [stop for stop in found.hard_stops if "not finite" in stop]
    assert not found.measurements


def test_a_stored_head_that_is_not_the_models_is_refused(metric, measured, baseline, tmp_path):
    from safetensors.torch import load_file, save_file

    checkpoint = shutil.copytree(TINY / "checkpoint", tmp_path / "checkpoint")
    tensors = load_file(checkpoint / "model.safetensors")
    del tensors["lm_head.weight"]  # the embedding stands in, as where the head is tied to it
    save_file(tensors, checkpoint / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(QuantizeError, match="not the one that the model applies") as caught:
        measured(metric, baseline, checkpoint=checkpoint)
    assert caught.value.where == str(checkpoint)


def test_a_tied_head_is_found_under_the_embeddings_name(metric, measured, baseline, tmp_path):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    baseline.tokenizer.save_pretrained(tmp_path)
    session = Transformers().open(tmp_path, "cpu")
    _, reference = measured(metric, session, checkpoint=tmp_path)
    _, out = measured(metric, session, reference, checkpoint=tmp_path)
    assert {row["kld"] for row in read_rows(out)} == {0.0}


def test_each_window_leaves_its_first_token_unscored(metric, baseline, before):
    counts = {}
    for row in read_rows(before[1]):
        counts[row["document"]] = counts.get(row["document"], 0) + 1
    for number, document in enumerate(Path(metric.path).read_text("utf-8").split("\n---\n")):
        tokens = len(baseline.encode(document))
        assert counts[number] == tokens - math.ceil(tokens / WINDOW)


def test_rows_of_other_tokens_are_not_compared(metric, before, after, tmp_path):
    rows = read_rows(after[1])
    rows[5]["token"] += 1
    write_rows(rows, TOKEN_ROWS, tmp_path)
    with pytest.raises(DataError, match="scored different tokens"):
        metric.compare(before[1], tmp_path)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "0 documents"),
        (b"one document only", "1 documents"),
        (b"---\n---\n", "0 documents"),
        (b"\xff\xfe", "UTF-8"),
    ],
)
def test_a_text_that_gives_no_interval_is_refused_before_the_run(tmp_path, content, sentence):
    path = tmp_path / "prose.txt"
    path.write_bytes(content)
    with pytest.raises(DataError, match=sentence) as caught:
        Text(name="prose", path=str(path)).identity()
    assert caught.value.where == str(path)


def test_a_missing_text_is_named(tmp_path):
    with pytest.raises(DataError, match="there is no such text"):
        Text(name="prose", path=str(tmp_path / "none.txt")).identity()
