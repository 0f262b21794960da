"""Two arms on the tiny Llama: the baseline, and INT8 weights with INT8 activations."""

import shutil
from pathlib import Path

import pytest

from quantize.engines import Transformers
from quantize.methods import Rtn
from quantize.protocols import QuantizeJob
from quantize.scheme import preset

CHECKPOINT = Path(__file__).parents[1] / "tiny_llama" / "checkpoint"


@pytest.fixture(scope="session")
def baseline():
    return Transformers().open(CHECKPOINT, "cpu")


@pytest.fixture(scope="session")
def int8(tmp_path_factory):
    out = tmp_path_factory.mktemp("int8")
    job = QuantizeJob(CHECKPOINT, out, preset("W8A8"), ("lm_head",), None, "cpu", 0, lambda _: None, lambda *_: None)
    Rtn().quantize(job)
    return Transformers().open(out, "cpu")


@pytest.fixture
def broken(tmp_path):
    """A copy of the checkpoint with NaN in its head, as a bad scale would leave it."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(CHECKPOINT, tmp_path / "broken")
    weights = tmp_path / "broken" / "model.safetensors"
    tensors = load_file(weights)
    tensors["lm_head.weight"][7, :] = float("nan")
    save_file(tensors, weights, metadata={"format": "pt"})
    return Transformers().open(tmp_path / "broken", "cpu")


@pytest.fixture(scope="session")
def measured(tmp_path_factory, baseline):
    """Measure an arm into a new folder: `measured(metric, session, reference=None)` -> (measurements, folder)."""

    def measure(metric, session, reference=None, checkpoint=CHECKPOINT):
        out = tmp_path_factory.mktemp(metric.name)
        arm = "baseline" if session is baseline else "variant"
        return metric.measure(session, arm, out, reference, checkpoint, lambda *_: None), out

    return measure
