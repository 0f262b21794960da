"""Two arms on the tiny Llama: the baseline, and INT8 weights with INT8 activations. How to measure one."""

import shutil
from pathlib import Path

import pytest

from quantize.artifact import Provenance
from quantize.engines import Transformers
from quantize.handed import EvaluateJob, Host, QuantizeJob
from quantize.methods import Rtn
from quantize.parts import StoreParts
from quantize.scheme import preset
from quantize.store import Store

CHECKPOINT = Path(__file__).parents[1] / "tiny_llama" / "checkpoint"


@pytest.fixture(scope="session")
def baseline():
    return Transformers().open(CHECKPOINT, "cpu")


@pytest.fixture(scope="session")
def int8(tmp_path_factory):
    out = tmp_path_factory.mktemp("int8")
    job = QuantizeJob(
        CHECKPOINT, out, preset("W8A8"), ("lm_head",), None, "cpu", 0, lambda _: None, lambda *_: None, Host({}, out)
    )
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
def parts_in():
    """The parts of one evaluation in a store: `parts_in(folder)`. The same folder gives the same parts again."""

    def parts(folder):
        def made(seconds):
            return Provenance(
                created="now", host="here", seconds=seconds, peak_memory_bytes=0, python="3", libraries={}
            )

        return StoreParts(Store(folder), "0" * 64, "arm", made)

    return parts


@pytest.fixture(scope="session")
def job_for(tmp_path_factory, parts_in):
    """What an arm is measured by: `job_for(session, **changes)`. `session` is an open one, or a function."""

    def job(session, **changes):
        usual = {
            "arm": "variant",
            "out": tmp_path_factory.mktemp("out"),
            "engine": "transformers",
            "device": "cpu",
            "session": session if callable(session) else lambda: session,
            "seed": 0,
            "look": 48,
            "stop": lambda _: None,
            "reference": None,
            "baseline": CHECKPOINT,
            "progress": lambda *_: None,
        }
        parts = changes.pop("parts", None) or parts_in(tmp_path_factory.mktemp("parts"))
        return EvaluateJob(**{**usual, "parts": parts, **changes})

    return job


@pytest.fixture(scope="session")
def measured(job_for, baseline):
    """Measure an arm into a new folder: `measured(metric, session, **changes of the job)` -> (measurements, folder)."""

    def measure(metric, session, **changes):
        job = job_for(session, arm="baseline" if session is baseline else "variant", **changes)
        return metric.measure(job), job.out

    return measure


@pytest.fixture(scope="session")
def datasets_cache(tmp_path_factory):
    """The datasets library keeps what it has read: here, and not in the home directory."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("datasets")))
        yield
