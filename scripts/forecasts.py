"""The contenders of `quality.py --set forecasts`: ways to make an image of the demo model at a third of its calls and less.

For two samplers and several numbers of steps: uncached, reuse, forecasts at every level, what was learned and searched
(scripts/results/forecasts/), and fewer steps.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from l2c_export import Schedule
from l2c_export.samplers.scheduler_config import DPM, Scheduler
from l2c_export.schedules.rules import LEVELS, Caching
from l2c_export.support.figure import DARK, GREY, OTHER, RIVAL, clean, new_figure, write

LEARNED = Path(__file__).parent / "results" / "forecasts"
SAMPLERS = {"ddim": None, "dpm": DPM}  # DPM-Solver++ (2M) as diffusers has it
TITLES = {"ddim": "DDIM", "dpm": "DPM-Solver++ (2M)"}
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
    """What training and searching wrote: files such as "dpm 50 searched output.json"."""
    for path in sorted(LEARNED.glob(f"{setting.name} *.json")):
        yield path.stem, Schedule.read(path)


LOOKS = {"uncached, fewer steps": {"color": GREY, "marker": "s", "linestyle": "-"},
         "reuse": {"color": OTHER, "marker": "x"},
         "taylor:2, by hand": {"color": RIVAL, "marker": "^"},
         "learned or searched": {"color": DARK, "marker": "o"}}  # fmt: skip


def kind(name: str) -> str:
    """What a contender is called in the legend."""
    kinds = {"uncached": 0, "reuse": 1, "taylor:2": 2}
    return list(LOOKS)[kinds.get(name.split(" ")[2], 3)]


def picture(result: dict, path: Path) -> None:
    """Frechet distance over milliseconds per image, a panel for every sampler; where it was not timed, over full calls."""
    timed = all("milliseconds" in entry for entry in result["contenders"].values())
    cost = "milliseconds" if timed else "full_calls"
    figure = new_figure(9.6, 4.4)
    panels = figure.subplots(1, len(SAMPLERS), sharey=True)
    for axes, sampler in zip(panels, SAMPLERS, strict=True):
        for name, look in LOOKS.items():
            own = [entry for key, entry in result["contenders"].items() if key.startswith(f"{sampler} ") and kind(key) == name]
            points = sorted((entry[cost], entry["frechet"]["mean"], entry["frechet"]["interval"]) for entry in own)
            if points:
                axes.errorbar(*zip(*points, strict=True), label=name, capsize=2, elinewidth=0.8, markersize=4.5,
                              **{"linestyle": "none", **look})  # fmt: skip
        axes.set_xlabel("ms per image" if timed else "full calls", fontsize=9)
        axes.set_xscale("log")
        ticks = (150, 200, 300, 400, 600, 800) if timed else (10, 20, 50)
        axes.set_xticks(ticks, map(str, ticks))
        axes.minorticks_off()
        axes.set_ylim(4.4, 6.8)
        axes.set_title(f"{TITLES[sampler]}: Frechet distance (less is better)", fontsize=10, loc="left")
        clean(axes)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=9, frameon=False)
    write(figure, path)
