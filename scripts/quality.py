#!/usr/bin/env python3
"""What does caching cost in quality, and what does it save?  The demo model under several schedules.

    python scripts/quality.py sample --data digits.npz    where a GPU is; digits.npz is from scripts/digits.py
    python scripts/quality.py time                        milliseconds per image of compiled engines, on this machine
    python scripts/quality.py show                        a table (Markdown), and quality over time as a picture

All three keep their results in one file, --json (scripts/results/demo_quality.json); several that sample may write to it side
by side.  With --set forecasts the contenders are
those of forecasts.py, and the file demo_forecasts.json.  Every contender draws the same
labels from the same noise.  Measured are the Frechet distance to the test images in the features of a small classifier,
how often it sees the asked class, and precision and recall (scripts/metrics.py), over several seeds; intervals are 95 %
t-intervals over them, those of differences are paired.  A contender named random is another random router for every seed.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import l2c_export
from l2c_export import Schedule, demo
from l2c_export.support import machine
from l2c_export.support.figure import DARK, GREY, OTHER, RIVAL, clean, new_figure, write

HERE = Path(__file__).parent
STEPS, LEAST = 20, 6  # of the uncached model, and of any contender
LEARNED = "#2f8f83"
T95 = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36, 9: 2.31, 10: 2.26}  # of so many values
MEASURES = ("frechet", "accuracy", "precision", "recall")


@dataclass(frozen=True)
class Contender:
    """A way to make an image: its schedule for every seed."""

    name: str
    schedule: Callable[[int], Schedule]

    @property
    def computed(self) -> float:
        """Sublayers that it computes, as a share of the uncached model's."""
        schedule = self.schedule(0)
        return schedule.computed_share * len(schedule.calls) / STEPS


def contenders_of(args: argparse.Namespace) -> list[Contender]:
    if args.set == "forecasts":
        import forecasts

        return [Contender(name, lambda _, s=schedule: s) for name, schedule in forecasts.schedules(columns()).items()]
    return contenders(learned(args), columns())


def uncached_of(name: str, names: Collection[str]) -> str:
    """What a contender is compared with: the uncached loop of its sampler and steps."""
    own = " ".join([*name.split(" ")[:2], "uncached"])
    return own if own in names else "uncached"


def contenders(learned: dict[str, Schedule], columns: int) -> list[Contender]:
    """The uncached model, the learned schedules, a rule, and for what the learned ones reuse random routers and fewer steps."""
    entries, budgets = [rule("uncached", "every:1", STEPS, columns)], set()
    for name, schedule in learned.items():
        entries.append(Contender(name, lambda _, s=schedule: s))
        if reuses(schedule) not in budgets:
            entries.append(Contender(f"random, as {name}", lambda seed, s=schedule: shuffled(s, seed)))
            budgets.add(reuses(schedule))
    entries.append(rule("every:2", "every:2", STEPS, columns))
    costs = {max(LEAST, round(STEPS * entry.computed)) for entry in entries} - {STEPS}
    return entries + [rule(f"{steps} steps", "every:1", steps, columns) for steps in sorted(costs, reverse=True)]


def rule(name: str, text: str, steps: int, columns: int) -> Contender:
    schedule = Schedule.from_rule(text, family="dit", steps=steps, columns=columns)
    return Contender(name, lambda _: schedule)


def full_calls(contender: Contender) -> int:
    return sum(len(call.computed) == len(schedule.sublayers) for schedule in [contender.schedule(0)] for call in schedule.calls)


def reuses(schedule: Schedule) -> int:
    return sum(len(call.reused) for call in schedule.calls)


def shuffled(schedule: Schedule, seed: int) -> Schedule:
    """A schedule that reuses as many sublayers, at random places of the calls that may reuse (every second one)."""
    places = [(n, j) for n, call in enumerate(schedule.calls) if n % 2 for j in range(schedule.columns)]
    chosen = {places[i] for i in np.random.default_rng(seed).permutation(len(places))[: reuses(schedule)]}
    computed = [[j for j in range(schedule.columns) if (n, j) not in chosen] for n in range(len(schedule.calls))]
    return Schedule.make(schedule.family, schedule.sampler, schedule.steps, schedule.columns, computed)


def summary(values: list[float]) -> dict[str, float]:
    """Mean and half the width of the 95 % interval."""
    spread = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return {"mean": statistics.mean(values), "interval": T95[len(values)] * spread if len(values) > 1 else math.nan}


def sample_all(args: argparse.Namespace, result: dict) -> None:
    import classifier
    import digits
    import torch
    from metrics import frechet
    from safetensors.torch import load_file
    from sampling import DemoDenoiser

    from l2c_export.models import families

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_float32_matmul_precision("high")  # TF32 on a GPU
    data, judge = digits.load(args.data), classifier.load(args.classifier, device)
    config = json.loads(demo.CONFIG.read_text())
    weights = {name: value.float().to(device) for name, value in load_file(demo.WEIGHTS).items()}
    denoiser = DemoDenoiser(families.build(config["family"], config["arch"]), weights)
    real, train = (classifier.examine(judge, classifier.scaled(torch.from_numpy(images).to(device)))[0]
                   for images in (data.test_images, data.images[: args.count]))  # fmt: skip
    result["setting"] = {"images": args.count, "seeds": args.seeds, "steps": STEPS, "guidance_scale": args.scale,
                         "classifier_accuracy": classifier.accuracy(judge, data, device),
                         "frechet_of_training_images": frechet(real, train),
                         "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu"}  # fmt: skip
    entries = result.setdefault("contenders", {})
    for contender in contenders_of(args):
        has_it = args.keep and len(entries.get(contender.name, {}).get("seeds", ())) == args.seeds
        if has_it or not asked(contender.name, args.only):
            continue
        started = time.perf_counter()
        seeds = [measured(contender.schedule(seed), seed, denoiser, judge, real, args, device) for seed in range(args.seeds)]
        entry = entries.setdefault(contender.name, {})
        entry |= {
            "computed": contender.computed,
            "steps": contender.schedule(0).steps,
            "full_calls": full_calls(contender),
            "seeds": seeds,
        }
        entry |= {m: summary([one[m] for one in seeds]) for m in MEASURES}
        base = entries[uncached_of(contender.name, entries)]["seeds"]
        entry["difference"] = {
            m: summary([one[m] - other[m] for one, other in zip(seeds, base, strict=True)]) for m in MEASURES
        }
        add(args.json, result, contender.name)  # a run that is stopped keeps what it has
        shown = f"Frechet {plus_minus(entry['frechet'], 3)}, accuracy {plus_minus(entry['accuracy'], 4)}"
        log(f"{contender.name}: {contender.computed:.0%} computed, {shown}, {time.perf_counter() - started:.1f} s")


def measured(schedule: Schedule, seed: int, denoiser, judge, real, args: argparse.Namespace, device) -> dict[str, float]:
    import classifier
    import torch
    from metrics import frechet, precision_recall
    from sampling import noise_of, sample

    labels = torch.arange(args.count, device=device) % denoiser.family.inputs[0].choices
    first = seed * args.count
    noise = noise_of(denoiser.family.latent, range(first, first + args.count), device)
    features, seen = classifier.examine(judge, sample(denoiser, schedule, noise, labels, args.scale, args.batch))
    precision, recall = precision_recall(real[: args.count], features)
    return {"frechet": frechet(real, features), "accuracy": float((seen == labels).double().mean()),
            "precision": precision, "recall": recall}  # fmt: skip


def time_all(args: argparse.Namespace, result: dict) -> None:
    """Contenders compiled and timed in interleaved rounds, one image at a time."""
    entries = result.setdefault("contenders", {})
    had = {name: entry["milliseconds"] for name, entry in entries.items() if args.keep and "milliseconds" in entry}
    anchor = next(iter(had), None)
    with tempfile.TemporaryDirectory() as folder:
        pipes = {}
        for i, contender in enumerate(contenders_to_time(args, entries, had)):
            out = Path(folder) / str(i)
            artefact = l2c_export.compile(contender.schedule(0), model=demo.NAME, out=out, backend=args.backend, link=args.link)
            pipes[contender.name] = artefact.load(threads=args.threads)
        times: dict[str, list[float]] = {name: [] for name in pipes}
        for n in range(-2, args.rounds):  # two to warm up
            for name, pipe in pipes.items():
                started = time.perf_counter()
                pipe([n % 10], seed=n % 10)
                if n >= 0:
                    times[name].append(1e3 * (time.perf_counter() - started))
        backend = next(iter(pipes.values())).backend
    timing = {"backend": backend, "link": args.link, "threads": args.threads, "rounds": args.rounds,
              "machine": machine.examine().describe()}  # fmt: skip
    result["timing"] = result["timing"] | {"later": timing | {"scaled_by": anchor}} if anchor else timing
    # what was timed before was timed on a machine that was faster or slower by so much
    scale = had[anchor] / statistics.median(times[anchor]) if anchor else 1.0
    for name, values in times.items():
        entries.setdefault(name, {})["milliseconds"] = scale * statistics.median(values)
        log(f"{name}: {statistics.median(values):.1f} ms per image")


def contenders_to_time(args: argparse.Namespace, entries: Collection[str], had: Collection[str]) -> list[Contender]:
    """Of the forecasts those that were sampled; with --keep those without a time, and the first that has one, for scale."""
    anchors, names = list(had)[:1], [contender.name for contender in contenders_of(args)]
    names = [name for name in names if (args.set == "demo" or name in entries) and asked(name, args.only) and name not in had]
    return [contender for contender in contenders_of(args) if contender.name in {*names, *anchors}]


def asked(name: str, only: Collection[str]) -> bool:
    """Whether a contender is among those of --only, if that was said."""
    return not only or any(part in name for part in only)


def columns() -> int:
    """Sublayers of the demo model."""
    return Schedule.read(demo.SCHEDULES["demo"]).columns


def learned(args: argparse.Namespace) -> dict[str, Schedule]:
    """The demo's own schedules, and those given as NAME=FILE."""
    files = {**demo.SCHEDULES, **dict(text.split("=", 1) for text in args.schedule)}
    return {name: Schedule.read(path) for name, path in files.items() if Path(path).exists()}


def show(args: argparse.Namespace, result: dict) -> None:
    print("| | sublayers computed | ms per image | Frechet distance | its change | class accuracy, % | precision | recall |")
    print("|---|---|---|---|---|---|---|---|")
    for name, entry in sorted(result["contenders"].items(), key=place(args)):
        accuracy = {key: 100 * value for key, value in entry["accuracy"].items()}
        cells = [name, f"{entry['computed']:.0%}", f"{entry.get('milliseconds', math.nan):.1f}",
                 plus_minus(entry["frechet"], 3), plus_minus(entry["difference"]["frechet"], 3), plus_minus(accuracy, 2),
                 f"{entry['precision']['mean']:.3f}", f"{entry['recall']['mean']:.3f}"]  # fmt: skip
        print(f"| {' | '.join(cells)} |")
    if args.set == "forecasts":
        import forecasts

        forecasts.picture(result, args.plot)
    else:
        picture(result, args.plot)
    log(f"{args.plot}: drawn")


def place(args: argparse.Namespace) -> Callable[[tuple[str, dict]], int]:
    """The order of a table: that of the contenders, whoever was drawn first."""
    places = {contender.name: n for n, contender in enumerate(contenders_of(args))}
    return lambda item: places.get(item[0], len(places))


def plus_minus(value: dict[str, float], digits: int) -> str:
    return f"{value['mean']:.{digits}f} ± {value['interval']:.{digits}f}"


def picture(result: dict, path: Path) -> None:
    """Frechet distance and class accuracy over milliseconds per image, a line per kind of contender."""
    kinds: dict[str, list[dict]] = {}
    for name, entry in result["contenders"].items():
        kinds.setdefault(kind(name), []).append(entry)
    figure = new_figure(9, 4.2)
    panels = figure.subplots(1, 2)
    for axes, measure, title, times in zip(panels, ("frechet", "accuracy"), ("Frechet distance (less is better)",
                                           "images of the asked class, %"), (1, 100), strict=True):  # fmt: skip
        for name, members in kinds.items():
            points = sorted((entry["milliseconds"], times * entry[measure]["mean"], times * entry[measure]["interval"])
                            for entry in members)  # fmt: skip
            axes.errorbar(*zip(*points, strict=True), label=name, capsize=2.5, elinewidth=0.9, linewidth=1.2, **LOOKS[name])
        axes.set_xlabel("ms per image", fontsize=9)
        axes.set_title(title, fontsize=10, loc="left")
        clean(axes)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=9, frameon=False)
    write(figure, path)


LOOKS = {"uncached: 20 and fewer steps": {"color": GREY, "marker": "s", "markersize": 5},
         "demo, demo:aggressive: l2c train --data self": {"color": DARK, "marker": "o"},
         "l2c train --data digits.npz": {"color": LEARNED, "marker": "D", "markerfacecolor": "white", "linestyle": "--"},
         "random routers": {"color": OTHER, "marker": "x"},
         "every:2": {"color": RIVAL, "marker": "^"}}  # fmt: skip


def kind(name: str) -> str:
    own, data, chance, rule = list(LOOKS)[1:]
    if name == "uncached" or name.endswith(" steps"):
        return next(iter(LOOKS))
    if name.startswith("random"):
        return chance
    return rule if name == rule else own if name in demo.SCHEDULES else data


def add(path: Path, result: dict, name: str) -> None:
    """Write one contender's entry; others that wrote to the file since it was read keep theirs."""
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        written = json.loads(path.read_text()) if path.exists() else {}
        written["setting"] = result["setting"]
        written.setdefault("contenders", {})[name] = result["contenders"][name]
        part = path.with_suffix(".part")
        save(part, written)
        part.replace(path)
    finally:
        os.close(folder)


def save(path: Path, result: dict) -> None:
    path.write_text(json.dumps(result, indent=1) + "\n")


def log(line: object) -> None:
    print(line, file=sys.stderr, flush=True)


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("what", choices=("sample", "time", "show"))
    ap.add_argument("--set", choices=("demo", "forecasts"), default="demo", help="the contenders")
    ap.add_argument("--only", action="append", default=[], metavar="TEXT", help="only contenders with this in their names")
    ap.add_argument("--keep", action="store_true", help="what the file has is not drawn or timed again")
    ap.add_argument("--json", type=Path)
    ap.add_argument("--data", type=Path, help="sample: the real digits")
    ap.add_argument("--classifier", type=Path, default=HERE / "results" / "classifier.safetensors")
    ap.add_argument("--schedule", action="append", default=[], metavar="NAME=FILE", help="one more learned schedule")
    ap.add_argument("--count", type=int, default=5000, help="images per seed")
    ap.add_argument("--batch", type=int, default=500, help="sample: images at a time")
    ap.add_argument("--seeds", type=int, default=5)
    ap.add_argument("--scale", type=float, default=demo.GUIDANCE_SCALE, help="of the guidance")
    ap.add_argument("--backend", default="auto")
    ap.add_argument("--link", default="static")
    ap.add_argument("--threads", type=int)
    ap.add_argument("--rounds", type=int, default=15)
    ap.add_argument("--plot", type=Path)
    args = ap.parse_args()
    stem = "demo_quality" if args.set == "demo" else "demo_forecasts"
    args.json, args.plot = args.json or HERE / "results" / f"{stem}.json", args.plot or HERE / "results" / f"{stem}.png"
    result = json.loads(args.json.read_text()) if args.json.exists() else {}
    {"sample": sample_all, "time": time_all, "show": show}[args.what](args, result)
    if args.what == "time":
        save(args.json, result)


if __name__ == "__main__":
    main()
