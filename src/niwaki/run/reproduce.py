"""`niwaki reproduce METHOD`: a paper's claims as experiments, with random search beside them.

What is trained and searched goes into a run's folder, each once and stored when it is done; `results.json` there is all that the verdicts
and the page of claims are made from.
"""

from __future__ import annotations

import json
import os
import platform
from dataclasses import asdict
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from niwaki.deploy.card import versions
from niwaki.run.claims import write_section
from niwaki.run.experiments import (
    bignas,
    committees,
    crank,
    dmasking,
    figs,
    irlas,
    mnasnet,
    morphnet,
    multihardware,
    multihardware_hosts,
    multihashing,
    multipath,
    nao,
    nbdt,
    neighbourhood,
    neural_predictor,
    objectives,
    pyglove,
    rate_constraints,
    tabnas,
    tunas,
    zero_cost,
    zero_cost_digits,
)
from niwaki.run.experiments.experiment import Experiment, Plan
from niwaki.run.folder import Folder, RunError
from niwaki.run.progress import Progress, Silent
from niwaki.store.files import atomic_write

EXPERIMENTS: tuple[Experiment, ...] = (
    dmasking.EXPERIMENT,
    zero_cost.EXPERIMENT,
    zero_cost_digits.EXPERIMENT,
    tabnas.EXPERIMENT,
    mnasnet.EXPERIMENT,
    tunas.EXPERIMENT,
    multihardware.EXPERIMENT,
    multihardware_hosts.EXPERIMENT,
    multihashing.EXPERIMENT,
    multipath.EXPERIMENT,
    crank.EXPERIMENT,
    objectives.EXPERIMENT,
    rate_constraints.EXPERIMENT,
    irlas.EXPERIMENT,
    nao.EXPERIMENT,
    neural_predictor.EXPERIMENT,
    nbdt.EXPERIMENT,
    pyglove.EXPERIMENT,
    committees.EXPERIMENT,
    neighbourhood.EXPERIMENT,
    bignas.EXPERIMENT,
    morphnet.EXPERIMENT,
    figs.EXPERIMENT,
)
METHODS = {name: experiment for experiment in EXPERIMENTS for name in experiment.names}


def reproduce(
    method: str,
    *,
    out: str | Path,
    claims: str | Path,
    quick: bool = False,
    progress: Progress | None = None,
    workers: int = 2,
    plan: Plan | None = None,
) -> dict[str, Any]:
    """{"claims": [{claim, paper, measured, random_search, verdict}], "results", "page"}, and the method's section in the page `claims`.

    out: the folder of what is trained; given again, it goes on, or prints what it found. workers: processes of one thread each; the results
    do not depend on it. plan: another one than the method's own.
    """
    experiment = _experiment(method)
    progress, out, claims = progress or Silent(), Path(out), Path(claims)
    plan = plan or experiment.plan(quick)
    folder = Folder(out, asked={"reproduce": experiment.method, "quick": quick, **plan.to_json()}, plan=lambda: {"machine": machine()})
    try:
        if folder.store.fact("finished") is None:
            progress.note(f"{out}: {plan.minutes}, less what is done already; each training and each search is kept when it is done")
        results = {
            "method": experiment.method,
            "quick": quick,
            "plan": folder.asked,
            "machine": folder.plan["machine"],
            **experiment.measure(plan, folder, progress, workers),
        }
        atomic_write(out / "results.json", json.dumps(results, indent=1) + "\n")
        folder.store.set_fact("finished", True)
    finally:
        folder.close()
    section = experiment.section_of(results)
    if not write_section(claims, section):
        progress.note(f"{claims} holds the claims of a full run, which a quick one does not replace")
    return {"claims": [asdict(claim) for claim in section.claims], "results": str(out / "results.json"), "page": str(claims)}


def write_page(results: str | Path, claims: str | Path) -> None:
    """The page of claims anew from a stored results.json: the same results give the same bytes."""
    content = json.loads(Path(results).read_text("utf-8"))
    write_section(Path(claims), _experiment(content["method"]).section_of(content))


def machine() -> dict[str, Any]:
    """Where it runs, and with what."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    name = next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor() or platform.machine()
    )
    return {
        "processor": name,
        "cores": os.cpu_count(),
        "threads": 1,
        "versions": {key: versions()[key] for key in ("niwaki", "python", "torch")},
    }


def _experiment(method: str) -> Experiment:
    if method not in METHODS:
        near = get_close_matches(method, METHODS, n=1)
        raise RunError(
            f"there is no method {method!r} to reproduce{f' (did you mean {near[0]}?)' if near else ''}; there are {', '.join(METHODS)}"
        )
    return METHODS[method]
