"""What a benchmark says to people: tables, sentences, and one page that needs nothing but itself."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from typing import Any

from ..inspection.view import View
from ..support.neighbours import mean
from ..support.words import counted
from .contenders import OURS
from .measured import Attribution, Factor, Ratio, Result, Spread, times

Rows = Sequence[tuple[Any, ...]]


def speed_table(result: Result) -> list[tuple[Any, ...]]:
    head = ("contender", "ours is", "in the rounds", "s/image", "median", "p90", "p99", "images/s", "ms/call", "p90", "p99")
    ratios = {ratio.slow: ratio for ratio in result.ratios}
    rows = []
    for contender in result.contenders:
        ratio = ratios.get(contender.name)
        times_as_fast = times(ratio) if ratio else ""
        quiet, per_second = f"{contender.quiet:.4g}", f"{contender.images_per_second:.4g}"
        image, call = spread(contender.per_image), spread(contender.per_call, 1e3)
        rows.append((contender.name, times_as_fast, between(ratio), quiet, *image, per_second, *call))
    return [head, *rows]


def cost_table(result: Result) -> list[tuple[Any, ...]]:
    head = ("contender", "runs on", "computed", "first image s", "load s", "compile s", "peak MB", "GPU MB", "on disk MB")
    rows = [
        (c.name, c.settings.runtime, f"{c.settings.computed:.0%}", f"{c.first_image_seconds:.1f}",
         f"{c.load_seconds:.1f}", number(c.compile_seconds), number(c.host_bytes, 1e6), number(c.gpu_bytes, 1e6),
         number(c.artefact_bytes, 1e6))
        for c in result.contenders
    ]  # fmt: skip
    return [head, *rows]


def spread(seconds: Spread, unit: float = 1) -> tuple[str, str, str]:
    return f"{unit * seconds.median:.4g}", f"{unit * seconds.p90:.4g}", f"{unit * seconds.p99:.4g}"


def between(ratio: Ratio | None) -> str:
    return f"{ratio.lowest:.2f} .. {ratio.highest:.2f}" if ratio and ratio.lowest is not None else ""


def number(value: float | None, unit: float = 1) -> str:
    return "-" if value is None else f"{value / unit:.1f}" if unit == 1 else f"{value / unit:,.0f}"


def settings_line(result: Result) -> str:
    s = result.contenders[0].settings
    guided = f"guidance {s.guidance} at {s.guidance_scale:g}" if s.guidance_scale != 1 else "no guidance"
    weights = "RANDOM weights" if s.random_weights else f"weights {s.weights[:8]}"
    return (
        f"{s.model}, {s.precision}, {weights}, {counted(s.images, 'image')} at a time, "
        f"{s.sampler} with {counted(s.steps, 'step')}, {guided}, seed {s.seed}, {counted(s.threads, 'thread')}, {s.device}"
    )


def warnings(result: Result) -> list[str]:
    """What must be read before any number."""
    if not result.disturbed:
        return []
    return [f"WARNING: {line}" for line in result.disturbed] + [
        "these are not the times of a quiet machine, and no ratio is given"
    ]


def sentences(result: Result) -> list[str]:
    """What the tables do not say: where it was measured, what is missing, and in the end what was found."""
    machine, lines = result.machine, notes(result)
    if result.contenders[0].settings.random_weights:
        lines.append("the weights are RANDOM: the times are those of trained ones, the images mean nothing")
    environment = [machine.describe(), f"{machine.os}, {', '.join(f'{k} {v}' for k, v in machine.versions.items())}"]
    return [*environment, f"other programs: {others(result)}", *lines, *closing(result)]


def notes(result: Result) -> list[str]:
    """Who is missing, and why."""
    lines = [f"not comparable with {ratio.slow}: {ratio.refused}" for ratio in result.ratios if ratio.refused]
    return lines + [f"left out: {entry.contender}: {entry.reason}" for entry in result.left_out]


def others(result: Result) -> str:
    share = mean(result.others)
    known = "what they did is unknown here" if share is None else f"{share:.0%} of the processors during the rounds"
    load = result.machine.load_average
    return known if load is None else f"{known}, a load of {load} before"


def closing(result: Result) -> list[str]:
    """The line to take away."""
    if result.disturbed:
        return ["no ratio: stop what else runs and measure again, or in more rounds where it comes and goes"]
    if result.attribution:
        return attribution_lines(result.attribution)
    ratios = [f"{times(ratio)} as {ratio.slow}" for ratio in result.ratios if ratio.value is not None]
    return [f"{OURS} is {', '.join(ratios)}"] if ratios else []


def attribution_lines(attribution: Attribution) -> list[str]:
    lines = [f"{OURS} is {attribution.total.value:.2f}x as fast as pytorch = {product(attribution, None)}"]
    for parent in (factor for factor in attribution.factors if factor.part_of is None):
        if parts := product(attribution, parent.name):
            lines.append(f"{parent.name} {parent.ratio.value:.2f}x = {parts}")
    return lines


def product(attribution: Attribution, parent: str | None) -> str:
    return " x ".join(f"{factor.name} {factor.ratio.value:.2f}" for factor in attribution.factors if factor.part_of == parent)


def page(result: Result, view: View) -> str:
    """The report as one HTML file: no scripts, no links, pictures inside."""
    from . import plot

    ours = result.contenders[0]
    machine = result.machine
    environment = [
        ("what", "value"),
        ("processor", machine.describe()),
        ("clock", f"{machine.clock_mhz:.0f} MHz when the run began" if machine.clock_mhz else "not readable"),
        *(("GPU", f"{g.name}, driver {g.driver}, {g.clock_mhz} of {g.max_clock_mhz} MHz") for g in machine.gpus),
        ("memory", f"{number(machine.memory_bytes, 2**30)} GiB"),
        ("system", machine.os),
        ("other programs", others(result)),
        ("versions", ", ".join(f"{name} {version}" for name, version in machine.versions.items())),
    ]
    parts = [
        f"<header><h1>{text(ours.settings.model)}: how fast, and why</h1><p>{text(settings_line(result))}</p></header>",
        boxes(result),
        cards(result),
        section("Contenders", figure(plot.contenders_svg(result), "Bar chart of seconds per image")),
        section("The loop, call by call", figure(plot.loop_svg(result, view), "Time of every call, and what it computes")),
        section("Speed", table(speed_table(result)), *(f"<p>{text(line)}</p>" for line in (*notes(result), *closing(result)))),
        section("Cost", table(cost_table(result))),
        section("Environment", table(environment)),
        f"<footer>{text(how(result))}</footer>",
    ]
    title = f"l2c bench: {ours.settings.model}"
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{text(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head>\n'
        f"<body><main>{''.join(parts)}</main></body></html>\n"
    )


def how(result: Result) -> str:
    return (
        f"{result.artefact}, {counted(result.rounds, 'round')}. Every contender has a process of its own; in every round each "
        "makes images for a second, in a new random order, after a warm-up and with a pause before. Times and ratios are those "
        "of the fastest images of the quiet rounds; a ratio is given only where the settings are equal but for what is "
        "compared, and where enough of the rounds were left alone."
    )


def cards(result: Result) -> str:
    """The numbers to read first."""
    ours = result.contenders[0]
    entries = [(f"{ours.quiet:.3g} s", "per image, on a disturbed machine" if result.disturbed else "per image")]
    if attribution := result.attribution:
        entries.append((f"{attribution.total.value:.2f}x", "as fast as PyTorch"))
        entries += [card(factor) for factor in attribution.factors if factor.part_of is None]
    else:
        entries += [(f"{r.value:.2f}x", f"as fast as {r.slow}") for r in result.ratios[:3] if r.value]
    return f'<div class="cards">{"".join(f"<div><b>{text(a)}</b><span>{text(b)}</span></div>" for a, b in entries)}</div>'


def card(factor: Factor) -> tuple[str, str]:
    return f"{factor.ratio.value:.2f}x", f"from the {factor.name} ({factor.ratio.slow} to {factor.ratio.fast})"


def boxes(result: Result) -> str:
    """Above all numbers: red for what makes them wrong."""
    lines = warnings(result)
    parts = f'<div class="disturbed">{"".join(f"<p>{text(line)}</p>" for line in lines)}</div>' if lines else ""
    if result.contenders[0].settings.random_weights:
        parts += '<p class="warning">Random weights: good for latency, the images mean nothing.</p>'
    return parts


def section(title: str, *inside: str) -> str:
    return f"<section><h2>{text(title)}</h2>{''.join(inside)}</section>"


def figure(svg: str, label: str) -> str:
    return f'<div class="figure" role="img" aria-label="{text(label)}">{svg}</div>'


def table(rows: Rows) -> str:
    head, *body = rows
    lines = [f"<tr{' class=ours' if row[0] == OURS else ''}>{cells(row, 'td')}</tr>" for row in body]
    inside = f"<thead><tr>{cells(head, 'th')}</tr></thead><tbody>{''.join(lines)}</tbody>"
    return f'<div class="scroll"><table>{inside}</table></div>'


def cells(row: Iterable[Any], tag: str) -> str:
    return "".join(f"<{tag}>{text(value)}</{tag}>" for value in row)


def text(value: object) -> str:
    return html.escape(str(value))


STYLE = """
:root { color-scheme: light; font: 15px/1.5 system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; color: #1f2933; }
body { margin: 0; background: #f3f5f8; }
main { max-width: 1020px; margin: 0 auto; padding: 32px 20px 48px; }
h1 { font-size: 26px; margin: 0 0 4px; } h2 { font-size: 17px; margin: 0 0 12px; color: #27527d; }
header p, footer { color: #5b6875; margin: 0; } footer { font-size: 13px; margin-top: 20px; }
section { background: #fff; border: 1px solid #dde3ea; border-radius: 10px; padding: 18px 20px; margin-top: 18px; }
.cards { display: flex; flex-wrap: wrap; gap: 14px; margin-top: 18px; }
.cards div { flex: 1 1 180px; background: #27527d; color: #fff; border-radius: 10px; padding: 14px 18px; }
.cards b { display: block; font-size: 28px; line-height: 1.2; } .cards span { font-size: 13px; opacity: .85; }
.warning { background: #fff4e0; border: 1px solid #e8b866; border-radius: 10px; padding: 8px 14px; margin: 16px 0 0; }
.disturbed { background: #b3261e; color: #fff; border-radius: 10px; padding: 10px 16px; margin: 16px 0 0; font-weight: 600; }
.disturbed p { margin: 2px 0; }
.figure svg { width: 100%; height: auto; display: block; } .scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 13px; font-variant-numeric: tabular-nums; }
th { text-align: left; color: #5b6875; font-weight: 600; border-bottom: 2px solid #dde3ea; }
th, td { padding: 6px 10px 6px 0; white-space: nowrap; } td { border-bottom: 1px solid #edf0f4; }
td:last-child { white-space: normal; } tr.ours td { font-weight: 600; color: #27527d; }
section p { margin: 10px 0 0; font-size: 14px; }
@media print { body { background: #fff; } section, .cards div { break-inside: avoid; } }
"""
