"""gptq and awq checkpoints, made and proved in the environments of their libraries: honest ones pass, planted fail."""

import os
import subprocess
from pathlib import Path

import pytest

from quantize.child import link_to_package
from quantize.proof import Proof

pytestmark = pytest.mark.engine

TINY = Path(__file__).parents[1] / "tiny_llama" / "checkpoint"
MADE_IN = {"gptq": "gptqmodel", "awq": "autoawq"}


@pytest.fixture(scope="module", params=MADE_IN)
def proofs(request, environment, tmp_path_factory):
    """Plant -> proof."""
    form = request.param
    folder = tmp_path_factory.mktemp(form)
    variables = {**os.environ, "PYTHONPATH": str(link_to_package(folder)), "OMP_NUM_THREADS": "1"}
    lines = []
    for verb, name in (("make", MADE_IN[form]), ("prove", "gptqmodel")):
        command = [environment(name), Path(__file__).with_name("packed.py"), verb, form, folder / "made", TINY]
        done = subprocess.run(command, env=variables, cwd=folder, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr[-3000:]
        lines = done.stdout.splitlines()
    planted = ("nothing ", "scale ", "swap ", "permute ")
    said = [line.split(" ", 1) for line in lines if line.startswith(planted)]
    return {plant: Proof.model_validate_json(text) for plant, text in said}


def test_what_was_saved_is_what_was_in_memory(proofs):
    honest = proofs["nothing"]
    assert honest.outcome == "pass", honest.sentences
    assert honest.numbers["fingerprints"] == 28
    # the library rounds its products to float16, our decoder does not
    assert 0 < honest.numbers["fingerprint_difference"] < 5e-4
    assert honest.numbers["mean_kl"] < 1e-9


def test_five_percent_on_one_linear_fails_by_weights_and_by_answers(proofs):
    weights, answers = proofs["scale"].sentences
    assert "1 of 28" in weights
    assert "model.layers.3.self_attn.q_proj, 5.0% apart" in weights
    assert "does not answer" in answers


def test_two_swapped_layers_fail(proofs):
    assert "14 of 28" in proofs["swap"].sentences[0]
    assert proofs["swap"].numbers["mean_kl"] > 0.1


def test_a_permuted_packing_fails(proofs):
    assert "1 of 28" in proofs["permute"].sentences[0]
    assert "model.layers.2.mlp.down_proj" in proofs["permute"].sentences[0]
