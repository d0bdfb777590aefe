"""What a comparison of search methods should keep, item by item, with the place where it can be seen (after Lindauer & Hutter, JMLR 21(243), 2020)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from niwaki.report.record import Record

Status = Literal["pass", "fail", "n.a."]
LEAST_SEEDS = 10  # on tables and other spaces that can be enumerated
ALWAYS = "always so here: "  # before the evidence of what holds however a command is called, and cannot fail


@dataclass(frozen=True)
class Item:
    """evidence: where it can be seen, in the folder, or why not."""

    item: str
    status: Status
    evidence: str


def checklist(results: Mapping[str, Any]) -> list[Item]:
    """The items for a comparison on a table. results: results.json of `niwaki bench`."""
    return list(_of_comparison(results))


def checklist_of_run(record: Record) -> list[Item]:
    """The items for one search that trained: what it lacks to be a comparison stands as fail."""
    return list(_of_run(record))


def _of_run(record: Record) -> Iterator[Item]:
    sources = {candidate.source for candidate in record.candidates}
    finished = record.status == "finished"
    not_yet = f"the run is {record.status}"
    yield Item(
        "code of the training pipelines",
        "pass" if finished else "fail",
        "model.py, and config.json with the whole recipe" if finished else not_yet,
    )
    version = record.versions.get("niwaki", "")
    yield Item(
        "code of the search methods",
        "pass" if version else "fail",
        f"niwaki {version}, method {record.method}: config.json" if version else "the version of niwaki was not kept",
    )
    yield Item("released as it is, early", "n.a.", "for whoever publishes the search; this folder holds all of it")
    yield Item(
        "the same data, space, training and hyper-parameters for all",
        "pass",
        f"{ALWAYS}one data set, space and recipe for all trials: config.json",
    )
    yield Item("ablations of the methods' parts", "fail", "none in this folder; search.* in config.json switches parts off, one run each")
    yield Item(
        "the same evaluation protocol for all",
        "pass",
        f"{ALWAYS}candidates on the validation part, the delivered network on the test part once: report.html",
    )
    yield Item("performance over compute, not at one point", "fail", "one plan of one size: its result is one point")
    baselines = sorted(sources & {"random", "regular"})
    yield Item(
        "random search and random sampling included",
        "pass" if baselines else "fail",
        f"report.html: trials of the source {' and '.join(baselines)}"
        if baselines
        else "no trial is random; search.method = random is one",
    )
    yield Item(
        "repeated with several seeds", "fail", f"one seed, {record.config.get('seed')}: config.json; `--seed` and another --out repeat it"
    )
    yield Item(
        "tables for depth, real runs for breadth", "pass", f"{ALWAYS}networks are trained: report.html; `niwaki bench` has the tables"
    )
    versions = bool(record.versions and record.machine)
    yield Item(
        "confounders controlled: machine, versions, parallel work",
        "pass" if versions else "fail",
        "report.html#run; threads in config.json",
    )
    yield Item(
        "tuning of the methods told, and its time counted",
        "fail",
        "told in part, its time not counted: this run tuned nothing, and what differs from the defaults is in config.json; how the defaults came "
        "about is told in benchmarks/README.md of niwaki",
    )
    yield Item("end-to-end time", "pass" if record.seconds else "fail", "report.html#run, by phase" if record.seconds else not_yet)
    yield Item(
        "everything that is needed to run it again", "pass" if record.command else "fail", "report.html#run: the command; config.json"
    )


def _of_comparison(results: Mapping[str, Any]) -> Iterator[Item]:
    facts, found, run = results["facts"], results["strategies"], results["run"]
    seeds = min(one["seeds"] for one in found.values())
    least = min(one["evaluations"] for one in found.values())
    yield Item("code of the training pipelines", "n.a.", "nothing is trained: evaluations are looked up in a table that others have made")
    version = run["versions"].get("niwaki")
    yield Item(
        "code of the search methods",
        "pass" if version and run["code"] else "fail",
        f"niwaki {version}; the hash of the code is config.json: asked.bench.code = {run['code']}",
    )
    yield Item("released as it is, early", "n.a.", "for whoever publishes the comparison; this folder holds all of it")
    yield Item(
        "the same data, space, training and hyper-parameters for all", "pass", f"{ALWAYS}one table for all: config.json: asked.bench.tables"
    )
    yield Item("ablations of the methods' parts", "n.a.", "every method runs as a whole; none was asked for in parts")
    least_possible = min(facts["evaluations"], facts["allowed"])  # a search that repeats nothing ends when everything was evaluated
    same = all(one["seeds"] == seeds for one in found.values()) and least >= least_possible
    ended = f"; some searches ended after {least:,}" if least < facts["evaluations"] else ""
    yield Item(
        "the same evaluation protocol for all",
        "pass" if same else "fail",
        f"results.json: facts.evaluations = {facts['evaluations']:,}, strategies.*.seeds = {seeds}{ended}",
    )
    yield Item(
        "performance over compute, not at one point",
        "pass",
        f"{ALWAYS}report.html#curves; results.json: strategies.*.regret, at every evaluation",
    )
    drawn = "; random sampling is its regret at 1 evaluation" if facts["random_exact"] else ""
    yield Item(
        "random search and random sampling included",
        "pass" if "random" in found else "fail",
        f"results.json: strategies.random{', and facts.random_exact in closed form' if facts['random_exact'] else ''}{drawn}",
    )
    yield Item(
        "repeated with several seeds",
        "pass" if seeds >= LEAST_SEEDS else "fail",
        f"results.json: strategies.*.seeds = {seeds}; on a table at least {LEAST_SEEDS}",
    )
    yield Item("tables for depth, real runs for breadth", "n.a.", "this is the table; `niwaki search` and `niwaki reproduce` train")
    yield Item(
        "confounders controlled: machine, versions, parallel work",
        "pass" if run["processor"] and run["versions"] else "fail",
        f"results.json: run; simulated workers {facts['workers']} for all, and no result but cpu_ms_per_evaluation depends on the machine's speed",
    )
    yield Item(
        "tuning of the methods told, and its time counted",
        "fail",
        "told, but its time was not counted: every method has the defaults of its name, and nothing was tuned in this comparison; but settings of "
        "`default` were chosen while looking at NAS-Bench-201 (cifar10_test_acc_200ep, alone and with "
        "pixel3<=8 or raspi4<=20, and raspi4), and the learning rates of reinforce, ppo and tabnas and the settings of nao and neural-predictor are those for tables, not the papers'",
    )
    yield Item(
        "end-to-end time",
        "pass" if facts["seconds"] else "n.a.",
        f"results.json: strategies.*.over_time, by the column {facts['seconds']}"
        if facts["seconds"]
        else "no column of durations was named; what searching itself took is results.json: strategies.*.cpu_ms_per_evaluation",
    )
    yield Item(
        "everything that is needed to run it again",
        "pass" if run["command"] else "fail",
        f"{'results.json: run.command' if run['command'] else 'called from Python, so that no command was kept'}; config.json; the logs of all "
        "searches in run.sqlite",
    )
