"""Forecasts at every level, against a loop of numpy alone that keeps what was computed and adds it up."""

from __future__ import annotations

import random

import numpy as np
import pytest
from numpy_dit import LABELS, MODEL, NAMES, NULL, SCALE, Blocks, guided, predicted, random_weights, step
from recorded import close
from safetensors.numpy import save_file

import l2c_export
from l2c_export.compiler.compile import compile_artefact
from l2c_export.compiler.request import Options
from l2c_export.schedules.schedule import Schedule

STEPS = 11
TIMESTEPS = [call.timestep for call in Schedule.every(1, family="dit", steps=STEPS, columns=4).calls]
FULL = (0, 1, 2, 6)
Rules = dict[int, tuple[tuple[str, ...], dict[str, object]]]  # of calls that are not full: what is computed, and the rules


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    made = random_weights()
    save_file(made, tmp_path_factory.mktemp("weights") / "w.safetensors")
    return made, str(tmp_path_factory.getbasetemp() / "weights0" / "w.safetensors")


def light(computed: tuple[str, ...] = (), **rules: object) -> Rules:
    return {n: (computed, dict(rules)) for n in range(STEPS) if n not in FULL}


def by_hand(rule: object, n: int, computed: list[int]) -> dict[int, float]:
    """The coefficients of a value over the calls that computed it, from the published formulas."""
    if not isinstance(rule, str):
        return {n - age: c for age, c in rule}
    *_, last = computed
    order = min({"reuse": 0, "taylor:0": 0, "taylor:1": 1, "taylor:2": 2}[rule], len(computed) - 1)
    k = n - last
    if order == 0:
        return {last: 1.0}
    d0 = last - computed[-2]
    if order == 1:
        return {last: 1 + k / d0, computed[-2]: -k / d0}
    d1 = computed[-2] - computed[-3]
    return {
        last: 1 + k / d0 + k**2 / (2 * d0**2),
        computed[-2]: -k / d0 - k**2 / 2 * (1 / d0**2 + 1 / (d0 * d1)),
        computed[-3]: k**2 / (2 * d0 * d1),
    }


def denoised(w: dict[str, np.ndarray], x: np.ndarray, rules: Rules, stack: Blocks | None) -> np.ndarray:
    made: dict[str, dict[int, np.ndarray]] = {}  # value -> call -> what it computed
    for n, t in enumerate(TIMESTEPS):
        on, ruled = rules.get(n, (NAMES, {}))

        def value(name, compute, n=n, on=on, ruled=ruled):
            level = name not in NAMES
            rule = ruled.get(name, None if level or name in on else ruled.get("*", "reuse"))
            if rule is None:
                made.setdefault(name, {})[n] = compute()
                return made[name][n]
            return sum(c * made[name][m] for m, c in by_hand(rule, n, list(made[name])).items())

        after = TIMESTEPS[n + 1] if n + 1 < STEPS else None
        rows = np.concatenate([x, x])
        x = step(x, guided(predicted(w, rows, t, np.array([*LABELS, NULL, NULL]), value, stack)), t, after)
    return x


def schedule_of(rules: Rules) -> Schedule:
    full = Schedule.every(1, family="dit", steps=STEPS, columns=NAMES)
    computed = full.computing([[NAMES.index(name) for name in rules.get(n, (NAMES, {}))[0]] for n in range(STEPS)])
    return computed.following({n: ruled for n, (_, ruled) in rules.items() if ruled})


def agrees(tmp_path, weights, rules: Rules, stack: Blocks | None = None, **options) -> l2c_export.Pipeline:
    """Whether an artefact's latents are those of the loop by hand; its pipeline."""
    made, file = weights
    compile_artefact(
        Options(schedule_of(rules), tmp_path / "engines", str(MODEL), file, batch=2, **{"backend": "onnxruntime", **options}),
        fingerprinted=False,
    )
    pipe = l2c_export.load(tmp_path / "engines")
    noise = pipe.noise(2, 7)
    expected = denoised(made, noise, rules, stack)
    assert close(pipe(LABELS, SCALE, latents=noise).latents, expected)
    assert not close(denoised(made, noise, {}, stack), expected), "what is derived makes a difference"
    return pipe


def mixed(seed: int) -> Rules:
    """Any sublayers computed, any rules for the others, explicit terms among them."""
    chance = random.Random(seed)
    computed: dict[str, list[int]] = {name: [0] for name in NAMES}
    rules: Rules = {}
    for n in range(1, STEPS):
        on = tuple(name for name in NAMES if chance.random() < 0.4)
        ruled: dict[str, object] = {}
        for name in (name for name in NAMES if name not in on):
            known = chance.sample(computed[name], min(len(computed[name]), 2))
            terms = [[n - call, round(chance.uniform(-0.5, 1.2), 3)] for call in known]
            ruled[name] = chance.choice(["reuse", "taylor:1", "taylor:2", terms])
        for name in on:
            computed[name].append(n)
        rules[n] = on, ruled
    return rules


LEVELS = {
    "taylor:1": (light(**{"*": "taylor:1"}), None),
    "taylor:2": (light(**{"*": "taylor:2"}), None),
    "some sublayers computed": (light((NAMES[1],), **{"*": "taylor:2", NAMES[0]: "reuse"}), None),
    "stack": (light(stack="taylor:2"), Blocks("stack", 0, 2)),
    "stack, reused": (light(stack="reuse"), Blocks("stack", 0, 2)),
    "a range of the stack": (
        light((NAMES[3],), **{"stack[0:1]": "taylor:1", "*": "taylor:2"}), Blocks("stack[0:1]", 0, 1)
    ),
    "output": (light(output="taylor:1"), None),
    "output, reused": (light(output="reuse"), None),
    **{f"mixed {seed}": (mixed(seed), None) for seed in range(3)},
}  # fmt: skip


@pytest.mark.parametrize("passes", [{}, {"fold": False}, {"hoist": False}], ids=["all", "no fold", "no hoist"])
@pytest.mark.parametrize("name", LEVELS)
def test_a_rule_is_what_it_says(name, passes, tmp_path, weights):
    agrees(tmp_path, weights, *LEVELS[name], **passes)


@pytest.mark.parametrize("link", ["shared", "static"])
@pytest.mark.parametrize("name", ["taylor:2", "a range of the stack", "output", "mixed 1"])
def test_on_every_backend_and_link(name, link, tmp_path, weights):
    for backend in ("onnxruntime", "openvino"):
        agrees(tmp_path / backend, weights, *LEVELS[name], link=link, backend=backend)


def test_calls_of_one_structure_share_a_graph_whatever_the_spacing():
    counts = {}
    for steps in (50, 100, 250):
        for k in range(2, 11):
            options = Options(f"every:{k}", model=str(MODEL), steps=steps, rule="taylor:2", weights="random")
            counts[steps, k] = graphs(options)
    assert max(counts.values()) <= 6, counts


def graphs(options: Options) -> int:
    from l2c_export.compiler.compile import lower
    from l2c_export.compiler.source import resolve

    return len(lower(options, resolve(options)).manifest.program().step_graphs)
