"""Forecasts at every level, against a loop of numpy alone that keeps what was computed and adds it up."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
from msgspec.structs import replace
from numpy_dit import LABELS, MODEL, NAMES, SCALE, Blocks, random_weights
from numpy_loop import STEPS, Rules, denoised
from recorded import case
from safetensors.numpy import save_file

import l2c_export
from l2c_export.artefact.check import problem
from l2c_export.compiler.compile import compile_artefact, lower
from l2c_export.compiler.request import Options
from l2c_export.compiler.source import resolve
from l2c_export.errors import ScheduleError, UsageError
from l2c_export.pytorch.reference import Reference
from l2c_export.schedules.schedule import Schedule
from l2c_export.verification.compare import compare

CLOSE = 1e-4  # latents grow to 340, where forecasts of the output amplify what is rounded
FULL = (0, 1, 2, 6)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    tensors = random_weights()
    save_file(tensors, tmp_path_factory.mktemp("weights") / "w.safetensors")
    return tensors, str(tmp_path_factory.getbasetemp() / "weights0" / "w.safetensors")


def light(computed: tuple[str, ...] = (), **rules: object) -> Rules:
    return {n: (computed, dict(rules)) for n in range(STEPS) if n not in FULL}


def schedule_of(rules: Rules) -> Schedule:
    full = Schedule.every(1, family="dit", steps=STEPS, columns=NAMES)
    computed = full.computing([[NAMES.index(name) for name in rules.get(n, (NAMES, {}))[0]] for n in range(STEPS)])
    return computed.following({n: ruled for n, (_, ruled) in rules.items() if ruled})


def agrees(tmp_path, weights, rules: Rules, stack: Blocks | None = None, **options) -> l2c_export.Pipeline:
    """Whether an artefact's latents are those of the loop by hand; its pipeline."""
    tensors, file = weights
    compile_artefact(
        Options(schedule_of(rules), tmp_path / "engines", str(MODEL), file, batch=2, **{"backend": "onnxruntime", **options}),
        fingerprinted=False,
    )
    pipe = l2c_export.load(tmp_path / "engines")
    noise = pipe.noise(2, 7)
    expected = denoised(tensors, noise, rules, stack)
    assert error(pipe(LABELS, SCALE, latents=noise).latents, expected) < CLOSE
    assert error(denoised(tensors, noise, {}, stack), expected) > 10 * CLOSE, "what is derived makes a difference"
    return pipe


def error(latents: np.ndarray, expected: np.ndarray) -> float:
    """The largest, over the largest latent."""
    return float(np.abs(latents - expected).max() / np.abs(expected).max())


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
    return len(lower(options, resolve(options)).manifest.program().step_graphs)


TAYLOR = light(**{"*": "taylor:2"})


def test_many_readers_share_a_bank_of_sums(tmp_path, weights):
    """The first three calls, and the seventh, are full: seven calls forecast from the third, four from the seventh."""
    pipe = agrees(tmp_path, weights, TAYLOR)
    compiled, bank = pipe.manifest.program(), f"bank.{NAMES[0]}..{NAMES[-1]}"
    light_calls = [call for n, call in enumerate(compiled.calls) if n not in FULL]
    assert all(set(call.reads) == {f"{bank}@-1"} for call in light_calls), "one tensor, whatever the order"
    rows, width, sums, tokens = compiled.value(bank).shape
    assert (rows, width, tokens, sums) == ("R", 8, 4, 7), "as many sums as calls wait for one"
    assert len(compiled.cache_bytes) == 2, "the sums before a full call, and those behind it"
    assert len(compiled.step_graphs) == 3, "the first full call, those behind it, and the light calls"
    uses = [(call.banks or {})[bank] for call in compiled.calls]
    assert uses[0].kept == ()
    assert {*uses[1].kept} == {slot for slot, _, _ in uses[0].adds}, "sums that are read later stay"
    assert {*uses[6].kept} == {uses[n].slot for n in range(7, 11)}, "those that were read are forgotten"


def test_a_bank_is_for_calls_that_there_are(tmp_path, weights):
    """Whatever else two calls have in common."""
    manifest, bank = agrees(tmp_path, weights, TAYLOR).manifest, f"bank.{NAMES[0]}..{NAMES[-1]}"
    program = manifest.programs[str(STEPS)]
    use = program.calls[6].banks[bank]
    for added in ((0, 5, 1.0), (0, 0, 1.0), (7, 1, 1.0), (0, 1, float("inf"))):
        changed = replace(use, adds=(*use.adds, added))
        calls = (*program.calls[:6], replace(program.calls[6], banks={bank: changed}), *program.calls[7:])
        assert problem(manifest) is None
        assert problem(replace(manifest, programs={str(STEPS): replace(program, calls=calls)}))


def test_few_readers_have_a_sum_each(tmp_path, weights):
    rules: Rules = {n: ((), {"*": "taylor:1"}) for n in range(2, STEPS) if n % 2}
    compiled = agrees(tmp_path, weights, rules).manifest.program()
    assert {name.partition(".")[0] for call in compiled.calls for name in call.reads} == {"run"}
    assert max(len(call.reads) for call in compiled.calls) == 2, "one for every call that it is a forecast from"


def test_a_bank_whose_rows_come_in_several_windows(tmp_path, weights, monkeypatch):
    """Hoisted rows of all calls at once need not fit: the next calls' gates are then those of the window."""
    pipe = agrees(tmp_path, weights, TAYLOR)
    noise = pipe.noise(2, 3)
    whole = pipe(LABELS, SCALE, latents=noise).latents
    pipe.close()
    monkeypatch.setattr("l2c_export.runtime.prologue.HOISTED_BYTES", 1)
    with l2c_export.load(tmp_path / "engines") as narrow:
        assert np.array_equal(narrow(LABELS, SCALE, latents=noise).latents, whole)


def test_batches_of_several_sizes_and_scales_share_the_arena(tmp_path, weights):
    pipe = agrees(tmp_path, weights, TAYLOR)
    noise = pipe.noise(2, 3)
    both = pipe(LABELS, [1.5, 1.0], latents=noise).latents
    alone = [
        pipe([label], scale, latents=noise[n : n + 1]).latents
        for n, (label, scale) in enumerate(zip(LABELS, (1.5, 1.0), strict=True))
    ]
    assert error(np.concatenate(alone), both) < 1e-6
    assert np.array_equal(pipe(LABELS, [1.5, 1.0], latents=noise).latents, both)


def test_merged_calls_still_follow_what_they_followed(tmp_path, weights):
    """Their forecasts become terms over the calls that they read before; what is computed besides changes no coefficient."""
    tensors, file = weights
    rules = mixed(4)
    options = Options(schedule_of(rules), tmp_path / "engines", str(MODEL), file, batch=2, backend="onnxruntime", max_graphs=4)
    compiled = compile_artefact(options, fingerprinted=False).program()
    assert len(compiled.step_graphs) <= 4
    merged: Rules = {}
    for n, call in enumerate(compiled.calls):
        on = tuple(NAMES[j] for j in call.computed)
        merged[n] = on, {name: [[age, c] for age, c in terms] for name, terms in (call.derived or {}).items()}
    with l2c_export.load(tmp_path / "engines") as pipe:
        noise = pipe.noise(2, 7)
        assert error(pipe(LABELS, SCALE, latents=noise).latents, denoised(tensors, noise, merged, None)) < CLOSE


@pytest.mark.parametrize(("options", "says"), [
    ({"rule": "taylor:x"}, r"rule='taylor:x': use reuse, taylor:M with M from 0 to 9$"),
    ({"level": "block"}, r"level='block': use one of sublayer, stack, output"),
    ({"full_first": 0}, r"full_first=0: must be at least 1, for nothing is cached before the first call"),
    ({"full_last": -1}, r"full_last=-1: must be at least 0"),
])  # fmt: skip
def test_a_rule_that_is_none(options, says):
    with pytest.raises(UsageError, match=says):
        Options("every:3", **options)


def test_a_schedule_that_says_how_its_calls_follow_takes_no_rule():
    with pytest.raises(UsageError, match=r"rule='taylor:1': .* says how its calls follow: use it with every:K, full:"):
        resolve(Options(schedule_of(TAYLOR), model=str(MODEL), rule="taylor:1"))


@pytest.mark.parametrize("rule", [
    {"rule": "taylor:2"}, {"rule": "taylor:1", "level": "stack"}, {"rule": "taylor:1", "level": "output"},
], ids=str)  # fmt: skip
def test_a_u_vit_by_rules(rule, tmp_path):
    """Its long skips carry parts of runs, and its sampler evaluates twice a step: against PyTorch in float64, call by call."""
    chosen = case("uvit_tiny_variant")
    options = chosen.options(tmp_path / "engines", schedule="every:4", threshold=None, steps=14, backend="onnxruntime", **rule)
    manifest = compile_artefact(options)
    with l2c_export.load(tmp_path / "engines") as pipe:
        noise, labels = pipe.noise(1, 5), np.array([1], np.int32)
        reference = Reference(tmp_path / "engines", manifest, noise, {"class_labels": labels}, 2.0)
        assert compare(pipe, reference).passed


def test_what_a_range_makes_is_read_outside_of_it(tmp_path):
    """The long skips of a U-ViT begin inside the first half of its blocks."""
    full = Schedule.every(1, family="uvit", steps=STEPS, columns=10)
    schedule = full.computing([range(10), *[()] * (len(full.calls) - 1)]).following(
        {n: {"stack[0:2]": "reuse"} for n in range(1, len(full.calls))}
    )
    arch = {"img_size": 8, "patch_size": 2, "in_chans": 4, "embed_dim": 16, "depth": 4, "num_heads": 2, "num_classes": 5}
    (tmp_path / "uvit.json").write_text(json.dumps({"family": "uvit", "arch": arch}))
    with pytest.raises(
        ScheduleError, match=r"stack\[0:2\]: behind it the stream of 'in_blocks\.0\.mlp' is also read: use stack"
    ):
        lower(
            Options(schedule, model=str(tmp_path / "uvit.json")), resolve(Options(schedule, model=str(tmp_path / "uvit.json")))
        )
