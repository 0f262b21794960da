"""The MLflow registry: one registered model, a version per artifact, aliases for consumers, runs for reviewers.

Weights go in as files of a logged model; nothing is pickled. MLflow moves an alias atomically but without
compare-and-swap and without history, so every move is read back here and recorded by `release.py`.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from quantize.actor import actor
from quantize.errors import DataError, RegistryError
from quantize.handed import Progress, silent
from quantize.record import Record
from quantize.registries._aliases import Smaller, Target, is_alias
from quantize.registries._client import asking, database_file
from quantize.registries._journal import SUFFIX, append, entries, journal_name, renew
from quantize.registries._runs import download_known, log_all, log_datasets
from quantize.registries._weights import (
    WEIGHTS,
    fetch_weights,
    is_place,
    lay_pointer,
    send_weights,
    weights_problems,
)
from quantize.registry import MANIFEST_FILE, DatasetUse, JournalLine, VersionState
from quantize.verdict import Decision

__all__ = ["Mlflow"]

_PREFIX = "quantize."
_RETRIES = 5
_PAGE = 1000
_DESCRIPTION = "Managed by quantize: move aliases with it only."
_HEAD = "quantize.journal_head"


def _is_name(name: str) -> str:
    if name.endswith(SUFFIX):
        raise ValueError(f"{name!r} is the name of a journal")
    return name


class Mlflow(Record):
    """`name` is the registered model. Without `uri`: MLFLOW_TRACKING_URI, else a database inside the store.

    `experiment` defaults to the name; `artifacts` is where an embedded store keeps its files. With `weights`, the files
    of versions go to that bucket or shared folder, past the server, which keeps their list alone.
    """

    kind: Literal["mlflow"] = "mlflow"
    name: Annotated[str, AfterValidator(_is_name)] = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    uri: str | None = None
    experiment: str | None = None
    artifacts: str | None = None
    weights: Annotated[str, AfterValidator(is_place)] | None = None
    targets: dict[Annotated[str, AfterValidator(is_alias)], Target] = Field(default_factory=dict)
    trade: Smaller | None = None

    def versions(self) -> list[VersionState]:
        """See `registry.Registry`. Two questions: MLflow keeps aliases with the model, not with its versions."""
        if self._absent():
            return []
        with self._asking() as mlflow:
            model = self._model(mlflow)
            if model is None:
                return []
            aliases: dict[str, list[str]] = {}
            for alias, version in model.aliases.items():
                aliases.setdefault(str(version), []).append(alias)
            found = list(_pages(mlflow, f"name='{self.name}'"))
        states = (_state(version, aliases.get(str(version.version), [])) for version in found)
        return sorted(states, key=lambda state: int(state.version))

    def aliases(self) -> dict[str, str]:
        """See `registry.Registry`."""
        if self._absent():
            return {}
        with self._asking() as mlflow:
            model = self._model(mlflow)
            return {alias: str(version) for alias, version in (model.aliases if model else {}).items()}

    def problems(self) -> list[str]:
        """See `registry.Registry`."""
        return weights_problems(self.weights, self.name) if self.weights is not None else []

    def publish(
        self,
        checkpoint: Path,
        manifest: str,
        variant: str,
        run_id: str,
        tags: dict[str, str],
        progress: Progress = silent,
    ) -> VersionState:
        """See `registry.Registry`. The files are logged as a logged model of the run, then registered."""
        with tempfile.TemporaryDirectory() as scratch:
            folders = [checkpoint, Path(scratch)]
            (folders[-1] / MANIFEST_FILE).write_text(manifest, encoding="utf-8")
            if self.weights is not None:
                uri = send_weights(self.weights, self.name, checkpoint, manifest, progress)
                folders = [lay_pointer(folders[-1], uri)]
                tags = {**tags, WEIGHTS: uri}
            return self._register(folders, variant, run_id, tags)

    def _register(self, folders: list[Path], variant: str, run_id: str, tags: dict[str, str]) -> VersionState:
        with self._asking() as mlflow:
            self._create(mlflow, self.name)
            experiment = mlflow.get_run(run_id).info.experiment_id
            model = mlflow.create_logged_model(experiment, name=variant, source_run_id=run_id)
            for folder in folders:
                mlflow.log_model_artifacts(model.model_id, str(folder))
            mlflow.finalize_logged_model(model.model_id, "READY")
            version = mlflow.create_model_version(
                self.name,
                source=self._source(model),
                run_id=run_id,
                model_id=model.model_id,
                tags={_PREFIX + key: value for key, value in {**tags, "variant": variant}.items()},
            )
            return _state(self._first(mlflow, version), [])

    def set_alias(self, alias: str, version: str | None) -> None:
        """See `registry.Registry`."""
        with self._asking() as mlflow:
            if version is None:
                mlflow.delete_registered_model_alias(self.name, alias)
                return
            mlflow.set_registered_model_alias(self.name, alias, version)
            read = str(mlflow.get_model_version_by_alias(self.name, alias).version)
        if read != version:
            raise RegistryError(
                f"alias {alias!r} was set to version {version} and reads back as {read}: somebody else moved it.",
                where=self.name,
                fix="Find out who, then run again.",
            )

    def tag(self, version: str, tags: dict[str, str]) -> None:
        """See `registry.Registry`."""
        with self._asking() as mlflow:
            for key, value in tags.items():
                mlflow.set_model_version_tag(self.name, version, _PREFIX + key, value)

    @property
    def lock_file(self) -> Path | None:
        """See `registry.Registry`: beside an embedded database."""
        file = database_file(self._address())
        return file.with_name(f"{file.name}.{self.name}.lock") if file is not None else None

    def prepare(self) -> None:
        """See `registry.Registry`."""
        with self._asking() as mlflow:
            for name in (self.name, journal_name(self.name)):
                self._create(mlflow, name)

    def append(self, text: str, digest: str) -> int:
        """See `registry.Registry`."""
        with self._asking() as mlflow:
            return append(mlflow, self.name, text, digest)

    def entries(self, after: int) -> list[JournalLine]:
        """See `registry.Registry`."""
        if self._absent():
            return []
        with self._asking() as mlflow:
            return entries(mlflow, self.name, after)

    def renew(self, number: int, value: str) -> None:
        """See `registry.Registry`."""
        with self._asking() as mlflow:
            renew(mlflow, self.name, number, value)

    def head(self) -> str:
        """See `registry.Registry`."""
        if self._absent():
            return ""
        with self._asking() as mlflow:
            model = self._model(mlflow)
            return str(model.tags.get(_HEAD, "")) if model is not None else ""

    def set_head(self, mark: str) -> None:
        """See `registry.Registry`."""
        with self._asking() as mlflow:
            mlflow.set_registered_model_tag(self.name, _HEAD, mark)

    def description(self) -> str:
        """See `registry.Registry`."""
        with self._asking() as mlflow:
            model = self._model(mlflow)
            return str(model.description or "") if model is not None else ""

    def describe(self, version: str | None, text: str) -> None:
        """See `registry.Registry`."""
        with self._asking() as mlflow:
            if version is None:
                mlflow.update_registered_model(self.name, description=text)
            else:
                mlflow.update_model_version(self.name, version, description=text)

    def listing(self, version: str) -> str:
        """See `registry.Registry`."""
        with self._asking() as mlflow, tempfile.TemporaryDirectory() as scratch:
            from mlflow.artifacts import download_artifacts

            place = f"{mlflow.get_model_version_download_uri(self.name, version)}/{MANIFEST_FILE}"
            address = self._address()
            fetched = download_artifacts(
                artifact_uri=place, dst_path=scratch, tracking_uri=address, registry_uri=address
            )
            return Path(fetched).read_text(encoding="utf-8")

    def start_run(self, name: str, parent: str | None, tags: dict[str, str]) -> str:
        """See `registry.Registry`."""
        with self._asking() as mlflow:
            experiment = self._experiment(mlflow)
            all_tags = {_PREFIX + key: value for key, value in tags.items()}
            # What MLflow's pages show as the user and the source of a run.
            all_tags |= {"mlflow.user": actor(), "mlflow.source.name": "quantize"}
            if parent:
                all_tags["mlflow.parentRunId"] = parent
            return str(mlflow.create_run(experiment, run_name=name, tags=all_tags).info.run_id)

    def log(
        self, run_id: str, params: dict[str, str], metrics: dict[str, float], files: Mapping[str, Sequence[Path]]
    ) -> None:
        """See `registry.Registry`."""
        with self._asking() as mlflow:
            log_all(mlflow, run_id, params, metrics, files)

    def log_inputs(self, run_id: str, datasets: Sequence[DatasetUse]) -> None:
        """See `registry.Registry`."""
        if datasets:
            with self._asking() as mlflow:
                log_datasets(mlflow, run_id, datasets)

    def log_decision(self, run_id: str, decision: Decision) -> None:
        """See `registry.Registry`."""
        with self._asking() as mlflow:
            mlflow.log_dict(run_id, json.loads(decision.model_dump_json()), "decision.json")
            for key in ("action", "outcome", "variant"):
                mlflow.set_tag(run_id, _PREFIX + key, str(getattr(decision, key)))

    def end_run(self, run_id: str, status: str) -> None:
        """See `registry.Registry`."""
        with self._asking() as mlflow:
            mlflow.set_terminated(run_id, status)

    def fetch(self, run_id: str, path: str, out: Path) -> Path:
        """See `registry.Registry`."""
        with self._asking() as mlflow:
            # Asked first: a file that is not there, and a server that does not answer, are not the same.
            folder = str(PurePosixPath(path).parent)
            known = [entry.path for entry in mlflow.list_artifacts(run_id, None if folder == "." else folder)]
            if path not in known:
                raise DataError(
                    f"it holds no {path}.", where=f"MLflow run {run_id}", fix="Its version is an older one's."
                )
            return download_known(mlflow, run_id, path, out)

    def download(self, version: str, out: Path, progress: Progress = silent) -> None:
        """See `registry.Registry`."""
        with self._asking() as mlflow:
            tags = mlflow.get_model_version(self.name, version).tags
        if _PREFIX + WEIGHTS in tags:
            wanted, uri = tags.get(_PREFIX + "artifact_digest", ""), tags[_PREFIX + WEIGHTS]
            fetch_weights(uri, self.listing(version), wanted, out, progress)
            return
        with self._asking() as mlflow, tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as scratch:
            from mlflow.artifacts import download_artifacts

            address = self._address()
            source = mlflow.get_model_version_download_uri(self.name, version)
            fetched = Path(
                download_artifacts(artifact_uri=source, dst_path=scratch, tracking_uri=address, registry_uri=address)
            )
            out.mkdir(exist_ok=True)
            for path in sorted(fetched.iterdir()):
                shutil.move(path, out / path.name)

    def _address(self) -> str:
        if self.uri is None:
            raise RegistryError("the registry has no address.", where=self.name, fix="Set registry.uri.")
        return self.uri

    def _asking(self) -> AbstractContextManager[Any]:
        return asking(self._address())

    def _absent(self) -> bool:
        """Whether the embedded database is not there yet: looking at it must not make one."""
        file = database_file(self._address())
        return file is not None and not file.exists()

    def _place(self) -> str | None:
        """Where an embedded store keeps files: beside its database, not in the current directory. A server knows."""
        file = database_file(self._address())
        if file is None:
            return None
        return Path(self.artifacts or file.parent / "mlartifacts").absolute().as_uri()

    def _source(self, model: Any) -> str:
        """What a version refers to: the logged model, or its place.

        An embedded store looks a `models:/` source up through MLflow's global tracking address, which is not ours to
        set; a server refuses any other source.
        """
        return str(model.artifact_location) if database_file(self._address()) else f"models:/{model.model_id}"

    def _model(self, mlflow: Any, name: str = "") -> Any:
        """The registered model, or None where there is none yet."""
        from mlflow.exceptions import MlflowException

        try:
            return mlflow.get_registered_model(name or self.name)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise

    def _create(self, mlflow: Any, name: str) -> None:
        """Create a registered model where there is none; several clients may do so at once."""
        from mlflow.exceptions import MlflowException

        for attempt in range(_RETRIES):
            if self._model(mlflow, name) is not None:
                return
            try:
                mlflow.create_registered_model(name, description=_DESCRIPTION)
            except MlflowException:
                if attempt == _RETRIES - 1:
                    raise
                time.sleep(0.1 * (attempt + 1))

    def _first(self, mlflow: Any, version: Any) -> Any:
        """The version of a logged model. Where an answer was lost and the request sent again, there are two of it.

        The first is kept, and those that nobody has seen yet are deleted.
        """
        made = [found for found in _pages(mlflow, f"run_id='{version.run_id}'") if found.model_id == version.model_id]
        first, *again = sorted(made, key=lambda found: int(found.version)) or [version]
        for found in again:
            mlflow.delete_model_version(self.name, found.version)
        return first

    def _experiment(self, mlflow: Any) -> str:
        """The id of the base model's experiment, created on first use."""
        from mlflow.exceptions import MlflowException

        name = self.experiment or self.name
        found = mlflow.get_experiment_by_name(name)
        if found is None:
            try:
                return str(mlflow.create_experiment(name, artifact_location=self._place()))
            except MlflowException:
                found = mlflow.get_experiment_by_name(name)
                if found is None:
                    raise
        if found.lifecycle_stage != "active":
            raise RegistryError(
                "the experiment was deleted.", where=name, fix="Restore it, or set registry.experiment."
            )
        return str(found.experiment_id)


def _pages(mlflow: Any, condition: str) -> Iterator[Any]:
    """All versions that meet `condition`, page by page."""
    token = None
    while True:
        page = mlflow.search_model_versions(condition, max_results=_PAGE, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def _state(version: Any, aliases: list[str]) -> VersionState:
    tags = {key.removeprefix(_PREFIX): value for key, value in version.tags.items() if key.startswith(_PREFIX)}
    created = datetime.fromtimestamp(version.creation_timestamp / 1000, UTC).isoformat(timespec="seconds")
    return VersionState(
        version=str(version.version),
        variant=tags.get("variant", ""),
        state=tags.get("state", ""),
        artifact_digest=tags.get("artifact_digest", ""),
        run_id=version.run_id or None,
        created=created,
        tags=tags,
        aliases=tuple(sorted(aliases)),
        description=version.description or "",
    )
