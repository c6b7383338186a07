"""The contenders of `quality.py --set forecasts`: ways to make an image of the demo model at a third of its calls and less.

For two samplers and several numbers of steps: uncached, reuse, forecasts at every level, what was learned and searched
(scripts/results/forecasts/), and fewer steps.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from l2c_export import Schedule, demo
from l2c_export.samplers.scheduler_config import DPM, Scheduler
from l2c_export.schedules.rules import LEVELS, Caching
from l2c_export.support.figure import DARK, GREY, OTHER, RIVAL, clean, new_figure, write

LEARNED = Path(__file__).parent / "results" / "forecasts"
SHIPPED = {"ddim 20 learned reuse 16": "demo", "ddim 20 learned reuse 13": "demo:aggressive"}  # the demo's own schedules
SAMPLERS = {"ddim": None, "dpm": DPM}  # DPM-Solver++ (2M) as diffusers has it
TITLES = {"ddim": "DDIM", "dpm": "DPM-Solver++ (2M)"}
LOWEST = 4.4
HIGHEST = {"ddim": 6.9, "dpm": 5.6}  # Frechet distance that the picture shows; beyond are arrows with their values
TEAL = "#2f8f83"
FEWER = {"ddim": (16, 13, 10), "dpm": (15, 12, 10)}


class Setting(NamedTuple):
    """A sampler, its steps, and of how many calls one is full in what is made by hand."""

    sampler: str
    steps: int
    every: int

    @property
    def name(self) -> str:
        return f"{self.sampler} {self.steps}"


SETTINGS = (
    Setting("dpm", 50, 7), Setting("ddim", 50, 5), Setting("dpm", 25, 3), Setting("ddim", 20, 2), Setting("dpm", 20, 2),
    Setting("ddim", 25, 3),
)  # fmt: skip


def schedules(columns: int) -> dict[str, Schedule]:
    """Every contender's schedule; the first of a setting is uncached.  What counts most comes first."""
    contenders = {}
    for setting in SETTINGS:
        contenders[f"{setting.name} uncached"] = by_rule(setting, "every:1", columns)
        contenders |= dict(by_hand(setting, columns)) | dict(learned(setting))
    for sampler, counts in FEWER.items():
        for steps in counts:
            contenders[f"{sampler} {steps} uncached"] = by_rule(Setting(sampler, steps, 1), "every:1", columns)
    return contenders


def by_rule(setting: Setting, rule: str, columns: int, caching: Caching | None = None) -> Schedule:
    kind = SAMPLERS[setting.sampler]
    scheduler = Scheduler.from_config({"clip_sample": False}, "sampler", kind) if kind else None
    return Schedule.from_rule(rule, family="dit", steps=setting.steps, columns=columns, sampler=kind or "ddim",
                              scheduler=scheduler, caching=caching or Caching())  # fmt: skip


def by_hand(setting: Setting, columns: int) -> Iterator[tuple[str, Schedule]]:
    """Reuse, and forecasts of order 2 at every level."""
    rule = f"every:{setting.every}"
    yield f"{setting.name} reuse sublayer", by_rule(setting, rule, columns)
    for level in LEVELS:
        yield f"{setting.name} taylor:2 {level}", by_rule(setting, rule, columns, Caching("taylor:2", level))


def learned(setting: Setting) -> Iterator[tuple[str, Schedule]]:
    """What ships, and what training and searching wrote: files such as "dpm 50 searched output.json"."""
    for name, shipped in SHIPPED.items():
        if name.startswith(f"{setting.name} "):
            yield name, Schedule.read(demo.SCHEDULES[shipped])
    for path in sorted(LEARNED.glob(f"{setting.name} *.json")):
        yield path.stem, Schedule.read(path)


BEST = "dpm"  # the better solver at any number of calls
LOOKS = {"uncached, fewer steps": {"color": GREY, "marker": "s", "markersize": 3.5, "linestyle": "-", "linewidth": 1.2},
         "the same, DPM-Solver++ (2M)": {"color": GREY, "linestyle": ":", "linewidth": 1.6},
         "reuse": {"color": OTHER, "marker": "x"},
         "learned reuse": {"color": TEAL, "marker": "D", "markerfacecolor": "white"},
         "forecast by hand (taylor:2): sublayers": {"color": RIVAL, "marker": "^"},
         "of the stack": {"color": RIVAL, "marker": "v", "markerfacecolor": "white"},
         "of the output": {"color": RIVAL, "marker": ">"},
         "forecast learned or searched": {"color": DARK, "marker": "o"}}  # fmt: skip


def kind(name: str) -> str:
    """What a contender is called in the legend."""
    uncached, _, reuse, learned_reuse, sublayer, stack, output, rest = LOOKS
    what, of = [*name.split(" ")[2:], ""][:2]
    levels = {"sublayer": sublayer, "stack": stack, "output": output}
    if (what, of) == ("learned", "reuse"):
        return learned_reuse
    return levels[of] if what == "taylor:2" else {"uncached": uncached, "reuse": reuse}.get(what, rest)


def picture(result: dict, path: Path) -> None:
    """Frechet distance over milliseconds per image, a panel for every sampler and steps, with fewer steps of the same and of
    the best solver as lines; where not all were timed, over what they compute."""
    entries = result["contenders"]
    timed = all("milliseconds" in entry for entry in entries.values())
    cost = "milliseconds" if timed else "computed"
    figure = new_figure(9.6, 7)
    steps = sorted({setting.steps for setting in SETTINGS})
    panels = figure.subplots(len(SAMPLERS), len(steps), sharex=True, sharey="row")
    for row, sampler in zip(panels, SAMPLERS, strict=True):
        for axes, count in zip(row, steps, strict=True):
            decorate(axes, f"{TITLES[sampler]}, {count} steps", timed, HIGHEST[sampler])
            for name in LOOKS:
                own = [entry for key, entry in entries.items() if belongs(key, name, sampler, count)]
                points = sorted((entry[cost], entry["frechet"]["mean"], entry["frechet"]["interval"]) for entry in own)
                draw(axes, name, points, HIGHEST[sampler])
    for axes in panels[-1]:
        axes.set_xlabel("ms per image" if timed else "sublayers computed, in calls", fontsize=9)
    for axes in panels[:, 0]:
        axes.set_ylabel("Frechet distance (less is better)", fontsize=9)
    handles = {label: handle for axes in panels.flat for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    labels = [name for name in LOOKS if name in handles]
    figure.legend([handles[name] for name in labels], labels, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    write(figure, path)


def belongs(key: str, look: str, sampler: str, steps: int) -> bool:
    """Whether a contender is shown by a look in a panel: uncached ones in every panel of their sampler."""
    uncached, best = list(LOOKS)[:2]
    if look == best:
        return sampler != BEST and key.startswith(f"{BEST} ") and kind(key) == uncached
    where = f"{sampler} " if look == uncached else f"{sampler} {steps} "
    return key.startswith(where) and kind(key) == look


def draw(axes: Any, name: str, points: list[tuple[float, float, float]], highest: float) -> None:
    """Points (cost, distance, interval) of a look: what is higher than the picture, as an arrow with its distance."""
    look = {"linestyle": "none", "capsize": 2, "elinewidth": 0.8, "markersize": 5, **LOOKS[name]}
    within = [point for point in points if point[1] < highest]
    if within:
        costs, means, intervals = zip(*within, strict=True)
        axes.errorbar(costs, means, None if "marker" not in look else intervals, label=name, **look)
    for cost, mean, _ in points if "marker" in look else ():
        if mean >= highest:
            axes.annotate(f"{mean:.1f}", (cost, highest), (cost, highest - 0.12 * (highest - LOWEST)), color=look["color"],
                          arrowprops={"arrowstyle": "->", "color": look["color"]}, ha="center", fontsize=8)  # fmt: skip


def decorate(axes: Any, title: str, timed: bool, highest: float) -> None:
    axes.set_xscale("log")
    ticks = (75, 100, 150, 200, 300) if timed else (0.5, 1, 2)
    axes.set_xticks(ticks, [str(tick) if timed else f"{20 * tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_ylim(LOWEST, highest)
    axes.set_title(title, fontsize=10, loc="left")
    clean(axes)
