"""Jobs for clusters: what the scripts and manifests say, and how the words around them are read."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from kubernetes_validate import ValidationError, validate
from program import tiny_recipe, write_recipe

from quantize.cli import cli
from quantize.errors import QuantizeError, RecipeError, UsageError
from quantize.launching import (
    KubernetesJob,
    SlurmJob,
    as_yaml,
    asked_of,
    check_schedule,
    elsewhere,
    job_name,
    limit_seconds,
    manifests,
    sbatch_script,
)
from quantize.recipe import load

#: The oldest schema that lets a rule be about exit codes alone; where it is stable; the newest here.
KUBERNETES = ("1.29", "1.31", "1.37")
NASTY = """evals.0.name=it's "$(touch pwned)" `id` $HOME $$ \\ %; #\nx"""


@pytest.fixture
def said():
    """What the verb says to arguments: its result, with any error raised."""

    def run(*arguments):
        return CliRunner().invoke(cli, ["launch", *map(str, arguments)], catch_exceptions=False, standalone_mode=False)

    return run


def of_slurm(recipe: Path, *overrides: str, **changes) -> SlurmJob:
    loaded = load(recipe)
    asked = asked_of(loaded.recipe, changes.pop("gpus", None), None, None)
    folder = recipe.parent
    job = {"recipe": recipe, "store": folder / "store", "directory": folder, "programs": folder, "seconds": 3600}
    return SlurmJob(name=loaded.recipe.name, overrides=overrides, asked=asked, **{**job, **changes})


def of_kubernetes(recipe: Path, *overrides: str, **changes) -> KubernetesJob:
    loaded = load(recipe)
    job = {"name": loaded.recipe.name, "text": loaded.text, "image": "registry.example/q:1", "claim": "quantize"}
    return KubernetesJob(overrides=overrides, asked=asked_of(loaded.recipe, None, None, None), **{**job, **changes})


def as_a_pod_gets(word: str) -> str:
    """A word of a command after Kubernetes has read it, by its documentation: `$$` is `$`, `$(NAME)` a variable."""
    assert not re.search(r"(?<!\$)(\$\$)*\$\([^)]*\)", word), f"{word} holds a variable"
    return word.replace("$$", "$")


# --- names, times, schedules


@pytest.mark.parametrize("name", ["tiny", "Llama-3.1_8B", "a" * 300, "x.y", "-", "x-", "ünïcode", "a'b\n#SBATCH --x"])
def test_a_job_is_named_as_both_clusters_take_it(name):
    assert re.fullmatch(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?", job_name(name))
    assert len(job_name(name)) <= 52


def test_recipes_of_different_names_never_share_a_job():
    names = ["x.y", "x-y", "x_y", "X.Y", *("a" * count for count in (40, 43, 44, 45, 60, 300)), "-", "--"]
    assert len({job_name(name) for name in names}) == len(names)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30", 1800), ("30:30", 1830), ("04:00:00", 14400), ("1-12", 129600), ("1-0:30", 88200), ("2-01:00:01", 176401)],
)
def test_a_limit_is_read_as_slurm_reads_it(text, seconds):
    assert limit_seconds(text, "--time") == seconds


@pytest.mark.parametrize("text", ["", "soon", "4h", "-1", "1:2:3:4", "04:00:00; rm -rf /", "4", "0", "30x"])
def test_a_limit_that_is_none_or_leaves_no_time_is_refused(text):
    with pytest.raises(UsageError, match="--time"):
        limit_seconds(text, "--time")


@pytest.mark.parametrize(
    "text", ["0 * * * *", "*/15 2-4 1,15 jan-MAR mon", "@hourly", "59 23 31 12 6", "0 0 * * sun", "5/10 * * * *"]
)
def test_a_schedule_that_cron_knows_is_taken(text):
    assert check_schedule(text, "--every") == text


@pytest.mark.parametrize(
    "text",
    ["every hour", "@soon", "@every 1h", "", "* * * *", "* * * * * *", "0 2 * *\n*", "$(id) * * * *", "1,,2 * * * *"],
)
def test_what_is_no_schedule_is_refused_with_one(text):
    with pytest.raises(UsageError, match=r"--every.*(0 2 \* \* \*|takes)"):
        check_schedule(text, "--every")


@pytest.mark.parametrize(
    "text",
    ["60 * * * *", "* 24 * * *", "* * 0 * *", "* * * 13 *", "* * * * 7", "5-1 * * * *", "*/0 * * * *", "*-5 * * * *"],
)
def test_a_value_outside_its_field_is_refused_with_what_it_takes(text):
    with pytest.raises(UsageError, match=r"--every.*takes \d+ to \d+"):
        check_schedule(text, "--every")


# --- what is asked for


@pytest.mark.parametrize(
    ("resources", "gpus"),
    [({"device": "cpu"}, 0), ({"device": "cuda"}, 1), ({"device": "cuda", "stages": 4}, 4), ({"device": "auto"}, 1)],
)
def test_gpus_follow_from_the_recipe(make_recipe, resources, gpus):
    asked = asked_of(load(make_recipe(resources=resources)).recipe, None, None, None)
    assert asked.gpus == gpus
    assert f"resources.device: {resources['device']}" in asked.reasons[0]


def test_memory_is_that_of_the_recipe_and_what_runs_beside(make_recipe):
    asked = asked_of(
        load(make_recipe(resources={"device": "cpu", "memory_gb": 30, "threads": 3})).recipe, None, None, None
    )
    assert (asked.cpus, asked.memory_gb) == (3, 32)


def test_memory_of_a_local_model_grows_with_the_stages(make_recipe):
    one, four = (
        asked_of(load(make_recipe(resources={"device": "cpu", "stages": stages})).recipe, None, None, None).memory_gb
        for stages in (1, 4)
    )
    assert four - 2 == 4 * (one - 2) > 4


def test_nothing_is_asked_of_a_hub(make_recipe):
    model = {"kind": "hub", "repo": "nobody/nothing-that-is-there", "revision": "main"}
    asked = asked_of(load(make_recipe(model=model)).recipe, None, None, None)
    assert asked.memory_gb is None and "--memory-gb" in asked.reasons[2]


@pytest.mark.parametrize(("device", "gpus"), [("cpu", 1), ("cuda", 0)])
def test_gpus_that_contradict_the_recipe_are_refused(make_recipe, device, gpus):
    with pytest.raises(UsageError, match=f"resources.device is {device}"):
        asked_of(load(make_recipe(resources={"device": device})).recipe, gpus, None, None)


# --- Slurm


def test_the_script_is_bash_and_has_what_makes_it_come_back(make_recipe):
    script = sbatch_script(of_slurm(make_recipe(), NASTY, partition="work", account="us", seconds=90000))
    assert subprocess.run(["bash", "-n"], input=script, text=True).returncode == 0
    options = [line for line in script.splitlines() if line.startswith("#SBATCH")]
    for option in ("--signal=B:TERM@120", "--requeue", "--open-mode=append", "--time=1-01:00:00", "--partition=work"):
        assert f"#SBATCH {option}" in options
    assert script.startswith("#!/bin/bash\n#SBATCH ") and "--gres" not in script


@pytest.mark.parametrize(
    "override", [NASTY, "x='", 'x="', "x=$(touch pwned)", "x=`touch pwned`", "x=a b", "x=\n#SBATCH --y"]
)
def test_an_override_reaches_the_program_as_it_was_given(make_recipe, tmp_path, override):
    """A program in the place of quantize writes down its arguments: what bash makes of the quoting is what is asked."""
    folder = tmp_path / "it's a $(folder)"
    folder.mkdir()
    planted(folder, "quantize", 'printf "%s\\0" "$@" > told')
    script = sbatch_script(of_slurm(make_recipe(), override, directory=folder, programs=folder))
    done = subprocess.run(["bash"], input=script, text=True, env={"PATH": "/usr/bin:/bin"}, cwd=tmp_path)
    assert done.returncode == 0
    assert (folder / "told").read_text().split("\0")[-3:] == ["--set", override, ""]
    assert not list(tmp_path.rglob("pwned"))


def test_nothing_of_the_environment_stands_in_a_job(said, make_recipe, monkeypatch):
    for name in ("HF_TOKEN", "MLFLOW_TRACKING_PASSWORD", "QUANTIZE_NOTIFY"):
        monkeypatch.setenv(name, f"secret-of-{name}")
    recipe = make_recipe(release={"notify": [{"kind": "webhook", "url_env": "QUANTIZE_NOTIFY"}]})
    for arguments in (["slurm", recipe], ["kubernetes", recipe, "--image", "q", "--secret", "hub"]):
        assert "secret-of-" not in said(*arguments).output


def test_a_node_without_the_program_says_what_to_do(make_recipe, tmp_path):
    done = subprocess.run(
        ["/bin/bash"],
        input=sbatch_script(of_slurm(make_recipe())),
        text=True,
        env={"PATH": "/usr/bin:/bin"},
        capture_output=True,
    )
    assert done.returncode == 127 and "activate its environment" in done.stderr


def test_a_schedule_of_slurm_is_lines_for_scrontab_and_a_script(said, make_recipe, tmp_path):
    script = tmp_path / "a job.sh"
    told = said("slurm", make_recipe(), "--every", "0 2 * * *", "--output", script)
    options, entry = told.stdout.splitlines()
    assert options.startswith("#SCRON ") and entry.startswith("0 2 * * * ")
    assert subprocess.run(["bash", "-n"], input=entry.removeprefix("0 2 * * * "), text=True).returncode == 0
    assert shlex.split(entry)[-2:] == ["sbatch", str(script)] and script.read_text().startswith("#!/bin/bash")
    for refused in (["--every", "0 2 * * *"], ["--every", "0 2 * * *", "--output", script, "--submit"]):
        with pytest.raises(UsageError, match="--every"):
            said("slurm", make_recipe(), *refused)


# --- Kubernetes


@pytest.mark.parametrize("version", KUBERNETES)
@pytest.mark.parametrize("schedule", [None, "0 * * * *"])
def test_manifests_keep_the_schema_of_kubernetes(make_recipe, version, schedule):
    recipe = make_recipe(resources={"device": "cuda", "threads": 2, "memory_gb": 8.5})
    job = of_kubernetes(recipe, NASTY, schedule=schedule, namespace="ml", secrets=("hub", "mlflow"), seconds=3600)
    documents = manifests(job)
    for document in documents:
        validate(document, version, strict=True)
    wrong = {**documents[1], "spec": {**documents[1]["spec"], "concurrency": "Forbid"}}
    with pytest.raises(ValidationError):  # the schema is closed, so that a word that Kubernetes does not know is seen
        validate(wrong, version, strict=True)


def test_75_is_tried_again_and_decisions_are_not(make_recipe):
    spec = manifests(of_kubernetes(make_recipe()))[1]["spec"]
    actions = {
        code: rule["action"]
        for rule in spec["podFailurePolicy"]["rules"]
        for code in rule.get("onExitCodes", {}).get("values", [])
    }
    assert actions == {75: "Count", 1: "FailJob", 2: "FailJob", 3: "FailJob", 4: "FailJob"}
    assert spec["backoffLimit"] >= 1 and spec["template"]["spec"]["restartPolicy"] == "Never"
    assert spec["template"]["spec"]["terminationGracePeriodSeconds"] >= 60


def test_a_cron_job_never_runs_beside_itself(make_recipe):
    cron = manifests(of_kubernetes(make_recipe(), schedule="@hourly"))[1]
    assert (cron["kind"], cron["spec"]["concurrencyPolicy"]) == ("CronJob", "Forbid")


@pytest.mark.parametrize(
    "override", [NASTY, "x=$(HOME)", "x=$$(HOME)", "x=$", "x=$$", "x='\"", "x=a\n---\nkind: Secret"]
)
def test_a_pod_gets_an_override_as_it_was_given(make_recipe, override):
    job = of_kubernetes(make_recipe(), override)
    documents = manifests(job)
    assert list(yaml.safe_load_all(as_yaml(documents))) == documents
    words = documents[1]["spec"]["template"]["spec"]["containers"][0]["command"]
    assert [as_a_pod_gets(word) for word in words][-2:] == ["--set", override]


def test_the_recipe_travels_with_what_it_includes(tmp_path):
    whole = tiny_recipe()
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "gates.yaml").write_text(yaml.safe_dump({"gates": whole.pop("gates")}))
    recipe = write_recipe(tmp_path, {"include": ["shared/gates.yaml"], **whole})
    config, job = manifests(of_kubernetes(recipe))
    (tmp_path / "there").mkdir()
    there = tmp_path / "there" / "recipe.yaml"
    there.write_text(config["data"]["recipe.yaml"])
    assert load(there).recipe == load(recipe).recipe
    mounted = {volume["name"]: volume for volume in job["spec"]["template"]["spec"]["volumes"]}
    assert mounted["recipe"]["configMap"]["name"] == config["metadata"]["name"]


def test_what_runs_keeps_its_recipe_when_the_recipe_changes(make_recipe):
    (one, cron), (other, again) = (
        manifests(of_kubernetes(make_recipe(seed=seed), schedule="@daily")) for seed in (1, 2)
    )
    assert one["immutable"] and one["metadata"]["name"] != other["metadata"]["name"]
    assert cron["metadata"]["name"] == again["metadata"]["name"]
    jobs = {manifests(of_kubernetes(make_recipe(seed=seed)))[1]["metadata"]["name"] for seed in (1, 1, 2)}
    assert len(jobs) == 2


def test_a_recipe_that_no_config_map_holds_is_refused(make_recipe):
    with pytest.raises(UsageError, match=r"1\.0 MiB.*holds 1 MiB"):
        manifests(of_kubernetes(make_recipe(), text="# " + "ä" * 2**19))


def test_secrets_are_named_and_an_address_in_the_recipe_is_refused(said, make_recipe):
    address = "https://hooks.example/T000/very-secret"
    recipe = make_recipe(release={"notify": [{"kind": "webhook", "url": address}]})
    with pytest.raises(RecipeError, match="take url_env") as caught:
        said("kubernetes", recipe, "--image", "q")
    assert address not in str(caught.value)
    assert address not in said("slurm", recipe).output  # the script names the file, and holds nothing of it
    with pytest.raises(RecipeError, match="take url_env"):
        said("slurm", recipe, "--set", f"release.notify.0.url={address}")


def test_paths_of_this_machine_are_told_and_those_on_the_claim_are_not(make_recipe):
    here = elsewhere(load(make_recipe()).recipe, "/claim")
    assert [note.partition(":")[0] for note in here] == ["model.path", "evals.facts.path"]
    assert all("lies on this machine" in note and "--set" in note for note in here)
    moved = ("model.path=/claim/model", "evals.facts.path=/opt/items.jsonl")
    there = elsewhere(load(make_recipe(), moved).recipe, "/claim")
    assert len(there) == 1 and "does not lie on this machine" in there[0]
    assert len(elsewhere(load(make_recipe(), ("model.path=/claimed/model",)).recipe, "/claim")) == 2


# --- the verb


@pytest.mark.parametrize("kind", [["slurm"], ["kubernetes", "--image", "q"]])
def test_a_recipe_that_does_not_load_is_refused_with_its_line(tmp_path, kind):
    recipe = write_recipe(tmp_path, tiny_recipe(name="Llama 8B", seed=-1))
    done = subprocess.run(
        [sys.executable, "-m", "quantize", "launch", *kind, str(recipe)], capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stdout == ""
    assert f"{recipe}:2 name" in done.stderr and "seed" in done.stderr


@pytest.mark.parametrize(
    ("option", "value"),
    [("--partition", "a b"), ("--partition", "x\n#SBATCH --y"), ("--account", "$(id)"), ("--account", "")],
)
def test_a_name_that_could_be_read_as_more_is_refused(said, make_recipe, option, value):
    with pytest.raises(UsageError, match=option):
        said("slurm", make_recipe(), option, value)


@pytest.mark.parametrize(
    ("option", "value"), [("--claim", "A B"), ("--namespace", "x/y"), ("--secret", "KEY=value"), ("--image", "")]
)
def test_a_name_that_kubernetes_does_not_take_is_refused(said, make_recipe, option, value):
    with pytest.raises(UsageError, match=option):
        said("kubernetes", make_recipe(), "--image", "q", option, value)


@pytest.mark.parametrize(("arguments", "program"), [(["slurm"], "sbatch"), (["kubernetes", "--image", "q"], "kubectl")])
def test_submitting_where_there_is_no_cluster_names_the_mend(
    said, make_recipe, monkeypatch, tmp_path, arguments, program
):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(QuantizeError, match=f"there is no {program}.*(login node|Install)"):
        said(*arguments, make_recipe(), "--submit")


@pytest.mark.parametrize(("arguments", "program"), [(["slurm"], "sbatch"), (["kubernetes", "--image", "q"], "kubectl")])
def test_what_is_submitted_is_what_is_printed(said, make_recipe, monkeypatch, tmp_path, arguments, program):
    """A command in the place of the cluster's writes down what it was given; then one that refuses."""
    printed = said(*arguments, make_recipe()).stdout
    planted(tmp_path, program, f"printf '%s ' \"$@\" > {tmp_path}/words; cat > {tmp_path}/given; echo 4711")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert said(*arguments, make_recipe(), "--submit").stdout == "4711\n"
    assert (tmp_path / "given").read_text() == printed
    assert (tmp_path / "words").read_text() == {"sbatch": "--parsable ", "kubectl": "apply -f - "}[program]
    told = json.loads(said(*arguments, make_recipe(), "--submit", "--json").stdout)
    assert told["submitted"] == "4711" and told["resources"]["gpus"] == 0
    planted(tmp_path, program, "echo no such account >&2; exit 1")
    with pytest.raises(QuantizeError, match="no such account"):
        said(*arguments, make_recipe(), "--submit")


def planted(folder: Path, name: str, body: str) -> None:
    """An executable of a few lines in the place of another."""
    path = folder / name
    path.write_text(f"#!/bin/bash\n{body}\n", encoding="utf-8")
    path.chmod(0o755)
