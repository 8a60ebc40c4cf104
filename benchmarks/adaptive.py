"""The adaptive controller on the simulator, beside others: how much of the oracle's throughput each one gets.

`python -m benchmarks adaptive` prints the tables. `python -m benchmarks.adaptive docs` also writes them, and the plots, into
docs/adaptive-concurrency.md and docs/adaptive.
"""

from __future__ import annotations

import asyncio
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks import support
from benchmarks.engine_sim import oracle, svg
from benchmarks.engine_sim.baselines import Aimd, Earlier, Gradient2, Vegas
from benchmarks.engine_sim.h2 import H2
from benchmarks.engine_sim.oracle import Oracle
from benchmarks.engine_sim.scenarios import SCENARIOS, Scenario
from benchmarks.engine_sim.score import Score, score
from benchmarks.engine_sim.simulate import Make, Run, simulate
from services.runner.inference.adaptive import AdaptiveController
from services.runner.inference.limit import Adaptive, Fixed

# Those that the constants were chosen with: 1, 3, 7, 11, 12, 21, 22, 31 and 32.
SEEDS = (41,)
OURS = "ours"
CONTROLLERS: dict[str, Make] = {
    OURS: lambda policy, number: AdaptiveController(policy.max_concurrency, policy.adaptive_max_factor),
    "before": lambda policy, number: Adaptive(policy.max_concurrency, policy.adaptive_max_factor),
    "fixed cap": lambda policy, number: Fixed(policy.max_concurrency),
    "AIMD": lambda policy, number: Aimd(policy.max_concurrency),
    "earlier": lambda policy, number: Earlier(policy.max_concurrency),
    "Vegas": lambda policy, number: Vegas(policy.max_concurrency, number),
    "Gradient2": lambda policy, number: Gradient2(policy.max_concurrency),
    "H2": lambda policy, number: H2(policy.max_concurrency),
}
FIXED = "fixed oracle"
NAMES = (OURS, FIXED, *(name for name in CONTROLLERS if name != OURS))
MARK = "<!-- {}: written by python -m benchmarks.adaptive docs -->"


@dataclass(frozen=True)
class Result:
    scenario: Scenario
    best: Oracle
    runs: dict[str, Run]
    scores: dict[str, Score]


def evaluate(scenario: Scenario, seed: int) -> Result:
    best = oracle.find(scenario, seed)
    runs = {name: simulate(scenario, make, seed) for name, make in CONTROLLERS.items()}
    runs[FIXED] = best.fixed_run
    return Result(scenario, best, runs, {name: score(scenario, run, best.run) for name, run in runs.items()})


def everything(seeds: tuple[int, ...]) -> list[list[Result]]:
    """By scenario, then by seed. About four minutes a seed: most of it goes into those that storm an engine which refuses."""
    results = []
    for scenario in SCENARIOS:
        begun = time.monotonic()
        results.append([evaluate(scenario, seed) for seed in seeds])
        print(f"{scenario.name}: {time.monotonic() - begun:.0f} s", file=sys.stderr, flush=True)
    return results


def fractions(results: list[list[Result]], name: str) -> list[float]:
    return [result.scores[name].fraction for row in results for result in row]


def table(results: list[list[Result]]) -> str:
    """Fractions of the oracle, the mean over seeds; those of the last two rows over everything."""
    lines = ["| scenario | oracle's limit | " + " | ".join(NAMES) + " |", "|---|---|" + "---|" * len(NAMES)]
    for row in results:
        cells = [f"{100 * sum(r.scores[name].fraction for r in row) / len(row):.1f}" for name in NAMES]
        limits = ", ".join("+".join(map(str, _running(row[0], phase))) for phase in range(len(row[0].best.limits)))
        lines.append(f"| {row[0].scenario.name} | {limits} | " + " | ".join(cells) + " |")
    for label, pick in (("**mean**", lambda found: sum(found) / len(found)), ("**worst**", min)):
        cells = [f"**{100 * pick(fractions(results, name)):.1f}**" for name in NAMES]
        lines.append(f"| {label} | | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _running(result: Result, phase: int) -> tuple[int, ...]:
    """The oracle's limits of the endpoints that are there in a phase."""
    at = result.scenario.phases[phase]
    limits = list(result.best.limits[phase])
    for event in result.scenario.events:
        kind = type(event).__name__
        if kind == "Add" and event.at > at:
            limits.pop()
        if kind == "Lose" and event.at <= at:
            limits.pop(getattr(event, "engine", 0))
    return tuple(limits)


def details(results: list[list[Result]]) -> str:
    """Ours: the worst over seeds; beside it the queue in the engine, with that of the cap."""
    lines = [
        "| scenario | of the oracle, % | refused, % | preempted, % | failed | settled, s | oscillation, % "
        "| waiting in the engine | at the cap |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in results:
        ours = [result.scores[OURS] for result in row]
        queued = max(result.scores["fixed cap"].queued for result in row)
        lines.append(
            f"| {row[0].scenario.name} | {100 * min(s.fraction for s in ours):.1f} "
            f"| {100 * max(s.refused for s in ours):.2f} | {100 * max(s.preempted for s in ours):.2f} "
            f"| {max(s.failed for s in ours)} | {max(s.settle_s for s in ours):.0f} "
            f"| {100 * max(s.oscillation for s in ours):.0f} | {max(s.queued for s in ours):.0f} | {queued:.0f} |"
        )
    return "\n".join(lines)


def rows(results: list[list[Result]]) -> list[support.Row]:
    ours, others = fractions(results, OURS), [name for name in CONTROLLERS if name != OURS]
    mean = sum(ours) / len(ours)
    best = max(others, key=lambda name: sum(fractions(results, name)))
    best_mean = sum(fractions(results, best)) / len(ours)
    safest = max(others, key=lambda name: min(fractions(results, name)))
    seen = [r.scores[OURS] for row in results for r in row if not r.scenario.name.endswith("blind")]
    harm = max(s.refused + s.preempted for s in seen)
    settle = max(r.scores[OURS].settle_s for row in results for r in row)
    swing = max(s.oscillation for s in seen)
    worst, other_worst = min(ours), min(fractions(results, safest))
    return [
        support.Row("of the oracle, mean", _percent(mean), f"{best} {_percent(best_mean)}", "", ">= 95%, above all", mean >= 0.95 and mean > best_mean),
        support.Row("of the oracle, worst", _percent(worst), f"{safest} {_percent(other_worst)}", "", ">= 85%, above all", worst >= 0.85 and worst > other_worst),
        support.Row("refused or preempted, most, not blind", _percent(harm, 2), "", "", "<= 1%", harm <= 0.01),
        support.Row("settled, latest", f"{settle:.0f} s", "", "", "<= 30 s", settle <= 30),
        support.Row("oscillation, most, not blind", _percent(swing), "", "", "<= 15%", swing <= 0.15),
    ]  # fmt: skip


def _percent(share: float, digits: int = 1) -> str:
    return f"{100 * share:.{digits}f}%"


def plot(result: Result) -> str:
    scenario, ours = result.scenario, result.runs[OURS]
    limits = [float(oracle.at(tuple(_running(result, i) for i in range(len(scenario.phases))), scenario.phases, s)) for s in range(len(ours.limits))]  # fmt: skip
    top = svg.Panel(
        "limit",
        (
            svg.Line("ours", [float(v) for v in ours.limits], "#06c"),
            svg.Line("oracle", limits, "#e80", dashed=True),
            svg.Line("in flight", [float(v) for v in ours.in_flight], "#9cf"),
        ),
    )
    bottom = svg.Panel(
        "tokens a second, over 10 s",
        (
            svg.Line("ours", _rates(ours.tokens), "#06c"),
            svg.Line("oracle", _rates(result.best.run.tokens), "#e80", dashed=True),
        ),
    )
    title = f"{scenario.name}: {scenario.what}"
    return svg.chart(title, (top, bottom), scenario.seconds, scenario.disturbances[1:])


def _rates(tokens: list[float]) -> list[float]:
    return [max(0.0, tokens[i] - tokens[max(0, i - 10)]) / max(1, min(i, 10)) for i in range(len(tokens))]


def file_name(scenario: Scenario) -> str:
    return re.sub(r"[^a-z0-9]+", "-", scenario.name.lower()).strip("-") + ".svg"


async def measure(folder: Path) -> list[support.Row]:
    results = await asyncio.to_thread(everything, SEEDS)
    print(f"{table(results)}\n\n{details(results)}\n")
    return rows(results)


def write(docs: Path, results: list[list[Result]]) -> None:
    """The tables between their marks, and a plot for each scenario."""
    (docs / "adaptive").mkdir(exist_ok=True)
    for row in results:
        (docs / "adaptive" / file_name(row[0].scenario)).write_text(plot(row[0]))
    page = docs / "adaptive-concurrency.md"
    text = page.read_text()
    for name, content in (
        ("goals", support.table(rows(results))),
        ("table", table(results)),
        ("details", details(results)),
    ):
        begin, end = MARK.format(name), f"<!-- end of {name} -->"
        before, rest = text.split(begin)
        text = f"{before}{begin}\n\n{content.strip()}\n\n{end}{rest.split(end)[1]}"
    page.write_text(text)


if __name__ == "__main__":
    found = everything(SEEDS)
    if sys.argv[1:]:
        write(Path(sys.argv[1]), found)
    print(f"{table(found)}\n\n{details(found)}\n\n{support.table(rows(found))}")
