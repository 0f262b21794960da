"""What a version says of its loading: which engine opened its artifact, when, and where the witness is that it met."""

from __future__ import annotations

import json
from typing import Annotated

from pydantic import ConfigDict, Field, ValidationError

from quantize.artifact import Manifest
from quantize.plan import VariantPlan
from quantize.record import Record
from quantize.registry import VersionState
from quantize.store import Store

__all__ = [
    "ENGINE",
    "WITNESS",
    "KeptWitness",
    "Proved",
    "engine_tag",
    "kept_witness",
    "known_proof",
    "loading_tags",
    "loggable_witness",
]

#: Tags of a version: that its loading was proved, the settings of the engine, and where the witness is.
PROVED, ENGINE, WITNESS_TAG = "proved", "engine", "witness"
#: The witness in a `quantize` artifact and, under the same name, in the MLflow run of the verdict.
WITNESS = "witness/witness.safetensors"
#: A larger witness is not logged: then a version that is opened again is compared with nothing.
_LARGEST = 64 << 20


class Proved(Record):
    """The artifact with this digest (in JSON: `digest`) was opened and asked by an engine of the kind `engine`."""

    model_config = ConfigDict(populate_by_name=True)

    engine: str
    artifact: Annotated[str, Field(alias="digest")]
    when: str
    sentence: str = ""


class KeptWitness(Record):
    """The MLflow run that has a version's witness, and the sha256 of its file."""

    run: str
    sha256: str


def engine_tag(engine: Record) -> dict[str, str]:
    """The tag that says which engine a version was measured in."""
    return {ENGINE: json.dumps(engine.model_dump(mode="json", by_alias=True), sort_keys=True)}


def loading_tags(store: Store, way: VariantPlan, run: str) -> dict[str, str]:
    """The tags of a variant's version: its engine and, where its proof passed, that it did, and the witness.

    `run` is the MLflow run of its verdict, which has the witness's file.
    """
    tags = engine_tag(way.baseline.engine)
    proof, made = store.find("prove", way.prove.key), store.find("quantize", way.quantize.key)
    if proof is None or made is None or proof.summary.get("outcome") != "pass":
        return tags
    artifact = made.checkpoint_digest()
    proved = {"engine": way.baseline.engine.kind, "digest": artifact, "when": proof.provenance.created}
    tags[PROVED] = json.dumps(proved)
    witness = loggable_witness(made)
    return {**tags, WITNESS_TAG: KeptWitness(run=run, sha256=witness).model_dump_json()} if witness else tags


def known_proof(version: VersionState) -> Proved | None:
    """The proof that a version says it has passed; None where it says none, or one of other bytes."""
    try:
        proof = Proved.model_validate_json(version.tags.get(PROVED, ""))
    except ValidationError:
        return None
    return proof if proof.artifact == version.artifact_digest else None


def kept_witness(version: VersionState) -> KeptWitness | None:
    """Where a version's witness is; None where it says nothing that can be read."""
    try:
        return KeptWitness.model_validate_json(version.tags.get(WITNESS_TAG, ""))
    except ValidationError:
        return None


def loggable_witness(made: Manifest) -> str:
    """The sha256 of an artifact's witness, "" where there is none or it is too large to be logged."""
    return next((f.sha256 for f in made.files if f.path == WITNESS and f.size <= _LARGEST), "")
