"""Perplexity and divergence: equal to both models side by side, without ever storing a distribution."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from memory import peak_bytes, random_llama

from quantize.engines import Transformers
from quantize.engines.transformers import TransformersSession
from quantize.errors import DataError, QuantizeError
from quantize.evidence import TOKEN_ROWS
from quantize.handed import Host, QuantizeJob
from quantize.methods import Rtn
from quantize.metrics import Text, _reference, text
from quantize.metrics._rows import read_rows, write_rows
from quantize.scheme import preset

TINY = Path(__file__).parents[1] / "tiny_llama"
WINDOW = 48
QUANTILES = {"median": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99, "p99.9": 0.999, "max": 1}


@pytest.fixture(scope="module")
def metric(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "prose.txt"
    documents = (TINY / "heldout.txt").read_text("utf-8").split("\n---\n")[:12]
    path.write_text("\n---\n".join(documents), "utf-8")
    return Text(name="prose", path=str(path), window=WINDOW)


@pytest.fixture(scope="module")
def before(metric, measured, baseline):
    return measured(metric, baseline)


@pytest.fixture(scope="module", params=["W4A16", "W8A8"])
def quantized(request, tmp_path_factory):
    """A variant. Its activations, where they are rounded, depend on the batch: then every window is a batch alone.

    A product of matrices that is 1e-6 off in a batch of another shape rounds some activation to the other side.
    """
    out = tmp_path_factory.mktemp(request.param)
    scheme = preset(request.param)
    host = Host({}, out)
    job = QuantizeJob(
        TINY / "checkpoint", out, scheme, ("lm_head",), None, "cpu", 0, lambda _: None, lambda *_: None, host
    )
    Rtn().quantize(job)
    budget = 1 if request.param == "W8A8" else 8192
    return Transformers(max_batch_tokens=budget).open(out, "cpu")


@pytest.fixture(scope="module")
def after(metric, measured, quantized, before):
    return measured(metric, quantized, reference=before[1])


@pytest.fixture(scope="module")
def side_by_side(metric, baseline, quantized):
    """By position, from whole logits of both models in memory, in float64: what the rows hold, as columns."""
    import torch

    found = []
    for number, document in enumerate(Path(metric.path).read_text("utf-8").split("\n---\n")):
        ids = baseline.encode(document)
        for start in range(0, len(ids), WINDOW):
            window = torch.tensor([ids[start : start + WINDOW]])
            p, q = (s.logits(window)[0, :-1].double().log_softmax(-1) for s in (baseline, quantized))
            true = window[0, 1:].unsqueeze(1)
            before, after = p.gather(1, true)[:, 0], q.gather(1, true)[:, 0]
            kld, agrees = (p.exp() * (p - q)).sum(-1), p.argmax(-1) == q.argmax(-1)
            columns = (true[:, 0], -before, -after, kld, agrees, after.exp() - before.exp())
            found += [(number, *row) for row in zip(*(column.tolist() for column in columns), strict=True)]
    names = ("document", "token", "before", "nll", "kld", "top1_agrees", "delta_p")
    return dict(zip(names, map(np.array, zip(*found, strict=True)), strict=True))


def column(out, name):
    return [row[name] for row in read_rows(out)]


def values(measurements):
    return {m.name: m.value for m in measurements.measurements}


def test_every_position_equals_both_models_side_by_side(before, after, side_by_side):
    for name in ("document", "token", "top1_agrees"):
        assert column(after[1], name) == side_by_side[name].tolist()
    assert column(before[1], "nll") == pytest.approx(side_by_side["before"], rel=1e-5, abs=1e-6)
    assert column(after[1], "nll") == pytest.approx(side_by_side["nll"], rel=1e-5, abs=1e-6)
    # What float32 rounds of logits near 10 is 1e-6 of a probability, and 1e-6 times the difference of a divergence.
    assert column(after[1], "kld") == pytest.approx(side_by_side["kld"], rel=1e-4, abs=3e-8)
    assert column(after[1], "delta_p") == pytest.approx(side_by_side["delta_p"], rel=1e-4, abs=1e-6)
    for name in ("kld", "top1_agrees", "delta_p"):
        assert set(column(before[1], name)) == {None}
    assert column(after[1], "position") == list(range(len(side_by_side["token"])))


def test_every_measurement_equals_both_models_side_by_side(before, after, side_by_side):
    found, kld, delta = values(after[0]), side_by_side["kld"], side_by_side["delta_p"]
    assert values(before[0]) == {"prose.perplexity": pytest.approx(np.exp(side_by_side["before"].mean()), rel=1e-5)}
    expected = {
        "perplexity": np.exp(side_by_side["nll"].mean()),
        "kl_divergence": kld.mean(),
        **{f"kl_divergence/{label}": np.quantile(kld, q) for label, q in QUANTILES.items()},
        "top1_agreement": side_by_side["top1_agrees"].mean(),
        "delta_p": delta.mean(),
        "delta_p_rms": np.sqrt((delta**2).mean()),
    }
    assert found == {f"prose.{name}": pytest.approx(value, rel=1e-5) for name, value in expected.items()}
    assert kld.mean() > 1e-5 and abs(delta).max() > 1e-3
    assert all(m.n == len(kld) for m in after[0].measurements)
    assert not before[0].hard_stops and not after[0].hard_stops


def test_every_mean_has_an_interval_over_documents(after):
    found = {m.name.removeprefix("prose."): m for m in after[0].measurements}
    for name in ("perplexity", "kl_divergence", "top1_agreement", "delta_p", "delta_p_rms"):
        assert found[name].low < found[name].value < found[name].high


def test_the_comparison_pairs_documents(metric, before, after, side_by_side):
    found = {c.metric.removeprefix("prose."): c for c in metric.compare(before[1], after[1])}
    assert list(found) == list(metric.quantities)
    ratio = found["perplexity"]
    expected = {
        "perplexity": (side_by_side["nll"] - side_by_side["before"]).mean(),
        "kl_divergence": side_by_side["kld"].mean(),
        "top1_disagreement": 1 - side_by_side["top1_agrees"].mean(),
        "delta_p_rms": np.sqrt((side_by_side["delta_p"] ** 2).mean()),
    }
    for name, comparison in found.items():
        assert comparison.difference == pytest.approx(expected[name], rel=1e-5)
        assert comparison.low < comparison.difference < comparison.high
        assert comparison.level == pytest.approx(0.90)
    assert ratio.difference == pytest.approx(math.log(ratio.variant / ratio.baseline))
    # Paired: what makes a document hard is in both arms. Unpaired, the interval would be the perplexity's own.
    own = next(m for m in after[0].measurements if m.name == "prose.perplexity")
    assert ratio.high - ratio.low < (math.log(own.high) - math.log(own.low)) / 3


def test_the_baseline_beside_itself_does_not_diverge(metric, measured, baseline, before):
    found, out = measured(metric, baseline, reference=before[1])
    assert {row["kld"] for row in read_rows(out)} == {0.0}
    assert values(found)["prose.top1_agreement"] == 1.0
    assert metric.compare(before[1], out)[0].difference == 0.0


def test_the_baselines_distribution_comes_from_its_own_head(metric, measured, baseline, before):
    """INT8 leaves the head alone, so here it is the head that differs: the variant's would show no divergence."""
    import torch

    session = Transformers().open(TINY / "checkpoint", "cpu")
    session.model.get_output_embeddings().weight.data *= 0.9
    _, out = measured(metric, session, reference=before[1])
    rows = [row for row in read_rows(out) if row["document"] == 0][: WINDOW - 1]
    document = Path(metric.path).read_text("utf-8").split("\n---\n")[0]
    window = torch.tensor([baseline.encode(document)[:WINDOW]])
    p, q = (s.logits(window)[0, :-1].double().log_softmax(-1) for s in (baseline, session))
    expected = (p.exp() * (p - q)).sum(-1)
    assert [row["kld"] for row in rows] == pytest.approx(expected.tolist(), rel=1e-5, abs=1e-9)
    assert float(expected.min()) > 0


def stored_bytes(out):
    return sum(path.stat().st_size for path in out.glob("reference-*.safetensors"))


def test_hidden_states_are_stored_and_no_logits(before):
    positions, shards = len(read_rows(before[1])), len(list(before[1].glob("reference-*.safetensors")))
    assert stored_bytes(before[1]) < positions * (128 * 4 + 4) + 1024 * shards


def test_hidden_states_keep_the_dtype_of_computation(metric, measured):
    """Half the bytes of float32 in bfloat16, and still exact: the baseline does not diverge from itself."""
    session = Transformers(dtype="bfloat16").open(TINY / "checkpoint", "cpu")
    _, reference = measured(metric, session)
    _, out = measured(metric, session, reference=reference)
    positions = len(read_rows(out))
    assert stored_bytes(reference) < positions * (128 * 2 + 4) + 1024
    assert set(column(out, "kld")) == {0.0}


@pytest.fixture
def small(monkeypatch):
    """Blocks, shards and row groups so small that the text needs many of each."""
    monkeypatch.setattr(text, "_BLOCK", 100)
    monkeypatch.setattr(_reference, "_SHARD", 64)
    monkeypatch.setattr(_reference, "_POSITIONS", 10)
    monkeypatch.setattr(_reference, "_COLUMNS", 60)


def test_the_size_of_blocks_and_shards_changes_no_number(metric, measured, baseline, quantized, after, small):
    import pyarrow.parquet as pq

    _, reference = measured(metric, baseline)
    found, out = measured(metric, quantized, reference=reference)
    assert len(list(reference.glob("reference-*.safetensors"))) > 10
    assert pq.read_metadata(out / "rows.parquet").num_row_groups > 5
    assert values(found) == pytest.approx(values(after[0]), rel=1e-5, abs=1e-9)
    for name in ("document", "position", "token"):
        assert column(out, name) == column(after[1], name)


def test_a_shard_holds_a_bounded_number_of_positions(metric, measured, baseline, small):
    from safetensors import safe_open

    _, reference = measured(metric, baseline)
    sizes = []
    for path in sorted(reference.glob("reference-*.safetensors")):
        with safe_open(path, framework="pt") as shard:
            sizes.append(shard.get_slice("hidden").get_shape()[0])
    assert set(sizes[:-1]) == {64} and 0 < sizes[-1] <= 64
    assert json.loads((reference / "head.json").read_text("utf-8"))["shards"] == sizes
    assert sum(sizes) == len(read_rows(reference))


def enlarged(metric, folder, times):
    """The same text `times` over."""
    path = folder / f"{times}.txt"
    path.write_text("\n---\n".join([Path(metric.path).read_text("utf-8")] * times), "utf-8")
    return metric.model_copy(update={"path": str(path)})


def test_memory_does_not_grow_with_the_vocabulary(metric, measured, baseline, monkeypatch, tmp_path):
    """Beyond the head itself, of which the baseline's is loaded once: 16 numbers for each entry."""
    monkeypatch.setattr(_reference, "_COLUMNS", 512)
    peaks = {}
    for vocabulary in (1024, 8192):
        session = random_llama(tmp_path / str(vocabulary), baseline.tokenizer, vocabulary)
        folder = tmp_path / str(vocabulary)
        _, reference = measured(metric, session, baseline=folder)
        peak, _ = peak_bytes(lambda s=session, r=reference, f=folder: measured(metric, s, reference=r, baseline=f))
        peaks[vocabulary] = peak
    weights = (8192 - 1024) * 16 * 4
    one_chunk_of_logits = (8192 - 1024) * _reference._POSITIONS * 4
    assert peaks[8192] < peaks[1024] + 3 * weights
    assert 3 * weights < one_chunk_of_logits / 2


def test_memory_does_not_grow_with_the_text(metric, measured, baseline, small, monkeypatch, tmp_path):
    """But for the token ids, and eight bytes of a position in a few columns, which are not tensors."""
    monkeypatch.setattr(_reference, "_POSITIONS", 64)
    monkeypatch.setattr(_reference, "_COLUMNS", 512)
    session = random_llama(tmp_path, baseline.tokenizer, 512, hidden=128)
    peaks, positions = {}, {}
    for times in (1, 4):
        longer = enlarged(metric, tmp_path, times)
        first, (_, reference) = peak_bytes(lambda m=longer: measured(m, session, baseline=tmp_path))
        second, (_, out) = peak_bytes(
            lambda m=longer, r=reference: measured(m, session, reference=r, baseline=tmp_path)
        )
        peaks[times], positions[times] = np.array([first, second]), len(read_rows(out))
    grown = (peaks[4] - peaks[1]) / (positions[4] - positions[1])
    assert positions[4] > 3.5 * positions[1]
    assert grown.max() < 64  # hidden states would be 512 bytes a position, logits 2048


def test_logits_are_made_for_a_block_of_positions_and_vocabulary_at_a_time(
    metric, measured, before, small, monkeypatch
):
    session = Transformers().open(TINY / "checkpoint", "cpu")
    shapes = []
    head = TransformersSession.head

    def watched(self, hidden, *columns):
        logits = head(self, hidden, *columns)
        shapes.append(tuple(logits.shape))
        return logits

    monkeypatch.setattr(TransformersSession, "head", watched)
    _, out = measured(metric, session, reference=before[1])
    scoring = [shape for shape in shapes if shape[0] > 1]
    assert max(rows for rows, _ in scoring) == 10
    assert max(columns for _, columns in scoring) == 60
    assert max(column(out, "kld")) < 1e-9


def test_another_tokenizer_is_a_hard_stop(metric, measured, before):
    from tokenizers.pre_tokenizers import ByteLevel

    session = Transformers().open(TINY / "checkpoint", "cpu")
    session.tokenizer.backend_tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=True)
    found, _ = measured(metric, session, reference=before[1])
    assert [stop for stop in found.hard_stops if "tokenizer gives other tokens" in stop]
    assert not found.measurements


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("entry", [0, 7, 511])
def test_a_logit_that_is_not_finite_is_a_hard_stop_and_never_a_number(metric, measured, before, small, value, entry):
    """In whichever block of the vocabulary it stands, and whether or not it is the likeliest."""
    session = Transformers().open(TINY / "checkpoint", "cpu")
    session.model.get_output_embeddings().weight.data[entry] = value
    found, out = measured(metric, session, reference=before[1])
    total = len(read_rows(before[1]))
    assert found.hard_stops == [f"{total} of {total} positions have log-probabilities that are not finite"]
    assert not found.measurements
    assert read_rows(out) == []


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_position_with_a_logit_that_is_not_finite_is_lost_alone(small, value):
    """Even one that changes no probability: a model that gives it is broken."""
    import torch

    torch.manual_seed(0)
    logits = torch.randn(25, 200)
    logits[13, 150] = value
    states = torch.arange(25).unsqueeze(1)
    targets = torch.arange(25)
    parts = _reference.score(lambda h, start, stop: logits[h[:, 0], start:stop], states, targets, 200, None, 0)
    loss = torch.cat([part.nll for part in parts])
    expected = torch.nn.functional.cross_entropy(logits.double(), targets, reduction="none")
    assert loss.isnan().nonzero().flatten().tolist() == [13]
    others = torch.arange(25) != 13
    assert loss[others].tolist() == pytest.approx(expected[others].tolist(), rel=1e-12)


def test_nan_in_the_baseline_is_a_hard_stop_too(metric, measured, broken, tmp_path):
    found, out = measured(metric, broken, baseline=None)
    assert [stop for stop in found.hard_stops if "not finite" in stop]
    assert not found.measurements
    assert read_rows(out) == []


def test_another_vocabulary_is_a_hard_stop(metric, measured, baseline, before, tmp_path):
    session = random_llama(tmp_path, baseline.tokenizer, 1024)
    found, _ = measured(metric, session, reference=before[1])
    assert found.hard_stops == ["the output head has 1024 entries, the baseline's 512: nothing can be compared"]
    assert not found.measurements


def test_another_batch_size_scores_the_same_positions(metric, measured, before):
    """What differs is noise: rounding that depends on the shape of a batch."""
    engine = Transformers(max_batch_tokens=512)
    session = engine.in_other_batches().open(TINY / "checkpoint", "cpu")
    again, out = measured(metric, session, reference=before[1])
    assert column(out, "token") == column(before[1], "token")
    assert values(again)["prose.perplexity"] == pytest.approx(values(measured(metric, session)[0])["prose.perplexity"])
    assert values(again)["prose.kl_divergence"] < 1e-9


def test_a_stored_head_that_is_not_the_models_is_refused(metric, measured, baseline, tmp_path):
    from safetensors.torch import load_file, save_file

    checkpoint = shutil.copytree(TINY / "checkpoint", tmp_path / "checkpoint")
    tensors = load_file(checkpoint / "model.safetensors")
    del tensors["lm_head.weight"]  # the embedding stands in, as where the head is tied to it
    save_file(tensors, checkpoint / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(QuantizeError, match="not the one that the model applies") as caught:
        measured(metric, baseline, baseline=checkpoint)
    assert caught.value.where == str(checkpoint)


def test_a_tied_head_is_found_under_the_embeddings_name(metric, measured, baseline, tmp_path):
    session = random_llama(tmp_path, baseline.tokenizer, 512)
    _, reference = measured(metric, session, baseline=tmp_path)
    _, out = measured(metric, session, reference=reference, baseline=tmp_path)
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
