"""How long a recipe with six variants takes on 1 to 64 GPUs, on paper: 8B, 70B and a mixture of 400B.

    python tests/bench/scale.py [--model 8b|70b|400b] [--network hub|bucket] [--stages] [--without-benchmark] [--json]

The plan is the planner's own, of a recipe that is written here for a kept config; `stage_costs` says what its stages
take, and `virtual_run` has the shipped scheduler run it in virtual time. Printed are, for each number of GPUs, the
time to the last verdict, the lower bound and their ratio, the time to the first verdict and the GPUs' utilisation;
with `--stages` what each stage takes. Nothing of it was measured on a GPU: docs/scale.md.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml
from stage_costs import BUCKET, GPU_MEMORY, HOST_MEMORY, HUB, Model
from virtual_run import lower_bound, simulate

from quantize.device import Device
from quantize.plan import Plan
from quantize.planner import make_plan
from quantize.recipe import load
from quantize.sharing import Cost, Sharing

ROOT = Path(__file__).parents[2]
GPUS = (1, 2, 4, 8, 16, 32, 64)
H100 = Device("cuda", "NVIDIA H100 80GB HBM3", int(GPU_MEMORY), (9, 0))
#: The kept config and over how many GPUs its engine is spread: as many as hold it in bfloat16, to a power of two.
MODELS = {"8b": ("llama-3.1-8b", 1), "70b": ("llama-3.1-70b", 4), "400b": ("moe-400b", 16)}
DENSE = {
    "fp8": ("FP8_DYNAMIC", "rtn"),
    "int8": ("W8A8", "smoothquant"),
    "int4-gptq": ("W4A16", "gptq"),
    "int4-awq": ("W4A16", "awq"),
    "nvfp4": ("NVFP4A16", "rtn"),
    "int4": ("W4A16", "rtn"),
}
#: Of a mixture's layer all experts' Hessians are kept at once: 61 GB beside 32 GB of weights, more than a GPU has.
MIXTURE = {**{name: how for name, how in DENSE.items() if name != "int4-gptq"}, "fp8-block": ("FP8_BLOCK", "rtn")}


@dataclass(frozen=True, slots=True)
class Row:
    """One number of GPUs, in seconds; None where a stage needs more GPUs than there are."""

    gpus: int
    makespan: float | None = None
    bound: float | None = None
    path: float | None = None
    first: float | None = None
    utilisation: float | None = None

    @property
    def ratio(self) -> float | None:
        """How far above the lower bound."""
        return None if self.makespan is None or self.bound is None else self.makespan / self.bound


def plan_of(model: str, folder: Path, benchmark: bool = True) -> Plan:
    """The planner's plan for a model; the recipe is written into `folder`."""
    shape, parallel = MODELS[model]
    variants = [
        {"name": name, "scheme": scheme, "method": {"kind": method}}
        for name, (scheme, method) in (MIXTURE if model == "400b" else DENSE).items()
    ]
    text = folder / "calibration.txt"
    text.write_text("Calibration text is tokenized before anything is made of it.\n", encoding="utf-8")
    evals = ROOT / "evals"
    recipe: dict[str, Any] = {
        "version": 1,
        "name": f"scale-{model}",
        "model": {"kind": "directory", "path": str(ROOT / "tests" / "shapes" / shape)},
        "calibration": {"kind": "text", "path": str(text), "samples": 512, "tokens": 2048},
        "variants": variants,
        "evals": [
            {"kind": "items", "name": "facts", "path": str(evals / "facts")},
            {"kind": "text", "name": "prose", "path": str(evals / "prose.txt")},
        ],
        "gates": [
            {"kind": "noninferiority", "metric": "facts.accuracy", "margin": 0.02},
            {"kind": "limit", "metric": "prose.perplexity", "at_most": 0.05},
        ],
        "registry": {"kind": "mlflow", "name": "scale"},
        "engine": {"kind": "vllm", "tensor_parallel_size": parallel},
        **({"benchmark": {}} if benchmark else {}),
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    return make_plan(load(path), H100)


def model_of(model: str, plan: Plan, network: float = HUB) -> Model:
    """What the plan's stages cost."""
    shape, parallel = MODELS[model]
    config = json.loads((ROOT / "tests" / "shapes" / shape / "config.json").read_text(encoding="utf-8"))
    return Model.of(plan, config, parallel, network)


def sharing_of(model: Model, gpus: int) -> Sharing:
    """How the plan's stages share so many GPUs, as a run has it."""
    plan = model.plan
    found = {stage.label: model.cost(stage) for stage in plan.stages()}
    costs = {label: Cost(cost.seconds, cost.gpu or cost.host) for label, cost in found.items()}
    return Sharing.of(plan, plan.recipe.resources, [H100] * gpus, HOST_MEMORY * gpus, costs)


def measured(model: Model, gpus: int) -> Row:
    """One number of GPUs."""
    plan = model.plan
    seconds = {stage.label: model.cost(stage).seconds for stage in plan.stages()}
    if gpus < model.parallel:
        return Row(gpus)
    path, bound = lower_bound(plan, sharing_of(model, gpus), seconds)
    ran = simulate(plan, sharing_of(model, gpus), seconds)
    return Row(gpus, ran.makespan, bound, path, ran.first, ran.utilisation)


def saturated(rows: Sequence[Row]) -> int:
    """The fewest GPUs with which the last verdict comes within a twentieth of the time that the most take."""
    known = [(row.gpus, row.makespan) for row in rows if row.makespan is not None]
    return next(gpus for gpus, seconds in known if seconds <= 1.05 * known[-1][1])


def _hours(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds / 3600:.2f} h"


def _print(model: Model, rows: Sequence[Row], stages: bool) -> None:
    if stages:
        print("| stage | seconds | GPUs' memory, GB | GPUs | host, GB | disk, GB | network, GB |")
        print("|---|---|---|---|---|---|---|")
        sharing = sharing_of(model, 64)
        for stage in model.plan.stages():
            cost, asked = model.cost(stage), sharing.request(stage)
            sizes = " | ".join(f"{size / 1e9:.0f}" for size in (cost.host, cost.disk, cost.network))
            many = "all" if asked.alone else asked.devices
            print(f"| {stage.label} | {cost.seconds:.0f} | {cost.gpu / 1e9:.0f} | {many} | {sizes} |")
        print()
    print("| GPUs | last verdict | lower bound | ratio | critical path | first verdict | utilisation |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        ratio = "-" if row.ratio is None else f"{row.ratio:.2f}"
        used = "-" if row.utilisation is None else f"{row.utilisation:.0%}"
        times = [_hours(row.makespan), _hours(row.bound), ratio, _hours(row.path), _hours(row.first), used]
        print(f"| {row.gpus} | {' | '.join(times)} |")
    print(f"\nmore than {saturated(rows)} GPUs bring less than a twentieth")


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=tuple(MODELS), action="append")
    parser.add_argument("--network", choices=("hub", "bucket"), default="hub")
    parser.add_argument("--stages", action="store_true")
    parser.add_argument("--without-benchmark", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    document = {}
    for name in options.model or MODELS:
        with tempfile.TemporaryDirectory() as folder:
            plan = plan_of(name, Path(folder), not options.without_benchmark)
        model = model_of(name, plan, {"hub": HUB, "bucket": BUCKET}[options.network])
        rows = [measured(model, gpus) for gpus in GPUS]
        if options.json:
            stages = {stage.label: asdict(model.cost(stage)) for stage in plan.stages()}
            document[name] = {"stages": stages, "rows": [{**asdict(row), "ratio": row.ratio} for row in rows]}
        else:
            print(
                f"\n{name}: {model.shape.total / 1e9:.1f}B parameters, {model.shape.active / 1e9:.1f}B of them active\n"
            )
            _print(model, rows, options.stages)
    if options.json:
        print(json.dumps(document, indent=1))


if __name__ == "__main__":
    main()
