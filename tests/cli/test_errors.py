"""Wrong input: one line that names the value and says what to do, and nothing left behind."""

from __future__ import annotations

import pickle
import re
import warnings
from pathlib import Path

import pytest
from desk import GOOD, E, R, invoke, ran

MISFIT, OF_THIS = r"does not fit the model: ", "give the weights of this model"


AGAIN = "run l2c-export"


BAD = [
    # the schedule
    (f"{E} --schedule nowhere.pt", 1, "--schedule nowhere.pt: no such file", "rules are every:K"),
    ("export --schedule '' --model config.json --out new", 2, "--schedule '' is empty", "give a router"),
    ("export --model config.json --steps 4 --out new", 2, "--schedule is missing", "give a router"),
    ("export --model config.json --no-cache --out new", 2, "--no-cache needs --steps", "needs --steps"),
    (f"{E} --dry-run --calibrate --device h100", 2, "--device h100: --calibrate is for this machine", "use one of the two"),
    ("train --steps 4 --data self", 2, "--weights is missing", "only --model demo brings its own"),
    (f"{E} --schedule folder.pt", 1, "--schedule folder.pt: no such file", "rules are every:K"),
    (f"{E} --schedule text.pt", 1, "text.pt is not a router", None),
    (f"{E} --schedule text.json", 1, "text.json is not a schedule", None),
    (f"{E} --schedule empty.pt", 1, "empty.pt is not a router", None),
    (f"{E} --schedule truncated.pt", 1, "truncated.pt is not a router, or is truncated", None),
    (f"{E} --schedule weights.pt", 1, "weights.pt is not a router: it holds 'blocks.0", None),
    (f"{E} --schedule model.safetensors", 1, "model.safetensors is not a router", None),
    (f"{E} --schedule hostile.pt", 1, "hostile.pt is not a router: it wants to import posix.system", None),
    (f"{E} --schedule hostile-4.pt", 1, "hostile-4.pt is not a router", None),
    (f"{E} --schedule nan-router.pt", 1, "nan-router.pt: the router holds NaN", None),
    (f"{E} --schedule wide.pt", 1, "wide.pt: the router is 56 wide, but the model has 6 sublayers", "with --model"),
    (f"{E} --weights random --model DiT-S/2", 1, "router.pt: the router is 6 wide, but the model has 24", "with --model"),
    (f"{E} --weights random --model U-ViT-S/2", 1, "router.pt is for a dit model, but the model is a uvit", "check --model"),
    (f"{E} --schedule schedule.json --model DiT-S/2 --weights random", 1, "schedule.json: 6 columns", "check --model"),
    (f"{E} --steps 8", 1, "the router has 7 rows, but --steps 8", "must be equal"),
    (f"{E} --schedule schedule.json --steps 8", 1, "schedule.json: made for 7 steps, but --steps 8", None),
    (f"{E} --schedule every:2", 2, "--schedule every:2", "needs --steps"),
    (f"{E} --schedule every:0 --steps 4", 2, "--schedule every:0", "use every:K with K >= 1"),
    (f"{E} --schedule full:1,2 --steps 4", 2, "--schedule full:1,2", "calls from 0 to 3, 0 first"),
    (f"{E} --schedule every:2 --steps 1", 2, "--steps 1", "2 to 1000 steps"),
    (f"{E} --threshold -0.1", 2, "--threshold -0.1", "must be between 0 and 1"),
    (f"{E} --threshold 1.5", 2, "--threshold 1.5", "must be between 0 and 1"),
    (f"{E} --threshold nan", 2, "--threshold nan", "must be between 0 and 1"),
    (f"{E} --schedule every:2 --steps 4 --threshold 0", 2, "--threshold 0", "only a router has scores"),
    # the model
    (f"{E} --model DiT-Q/2", 1, "unknown model 'DiT-Q/2'", "for example DiT-XL/2"),
    (f"{E} --model nowhere.json", 1, "--model nowhere.json: No such file", None),
    (f"{E} --model text.json", 1, "text.json: the key 'family' is missing", "needs family and arch"),
    (f"{E} --model unheard.json", 1, "unheard.json: unknown family 'mlp-mixer'", "known are dit, uvit"),
    (f"{E} --model odd.json --schedule every:2 --steps 2", 1, "hidden_size 30", "must be a multiple of num_heads 4"),
    # other options
    (f"{E} --sampler euler", 2, "--sampler euler", "use one of ddim, dpm-solver"),
    (f"{E} --sampler odd.json", 1, "odd.json: it is a description of a model", "give it with --model"),
    (f"{E} --schedule mask:1,0 --steps 3", 2, "--schedule mask:1,0", "a 0 or 1 for each of the 3 calls"),
    (f"{E} --with-vae", 2, "--with-vae: only a pipeline folder", "use --vae FOLDER"),
    (f"{E} --vae nowhere", 1, "nowhere/config.json: No such file", ""),
    (f"{E} --model /proc", 1, "/proc: no pipeline folder of diffusers", ""),
    (f"{E} --sampler dpm-solver++", 2, "--sampler dpm-solver++: it is for models trained with beta_schedule = 'scaled_linear'",
     "which a dit is not: use ddim, one of DDIMScheduler, "),
    (f"{E} --schedule schedule.json --sampler EulerDiscreteScheduler", 2, "--sampler EulerDiscreteScheduler",
     "schedule.json was made for ddim"),
    (f"{E} --backend tensorflow", 2, "--backend tensorflow", "use one of auto, "),
    (f"{E} --precision int8", 2, "--precision int8", "use one of fp32, bf16, fp16"),
    (f"{E} --precision bf16 --backend onnxruntime", 2, "--precision bf16", "use --backend "),
    (f"{E} --guidance both", 2, "--guidance both", "use one of first3, all, none"),
    ("export --schedule every:2 --steps 2 --model no-null.json --out new --guidance all", 2,
     "--guidance all: no input has an unconditional value",
     "use --guidance none"),
    (f"{E} --link dynamic", 2, "--link dynamic", "use one of shared, static"),
    (f"{E} --batch 0", 2, "--batch 0", "must be at least 1"),
    (f"{E} --batch -3", 2, "--batch -3", "must be at least 1"),
    (f"{E} --max-graphs 0", 2, "--max-graphs 0", "must be at least 1"),
    (f"{E} --dry-run --device gtx", 2, "--device gtx", "use one of cpu, h100, rtx4090, orin"),
    # weights
    (f"{E} --weights nowhere.pt", 1, "--weights nowhere.pt: no such file", None),
    (f"{E} --weights folder.pt", 1, "folder.pt holds no weights", "must be there"),
    (f"{E} --weights text.pt", 1, "text.pt is not a checkpoint", None),
    (f"{E} --weights text.safetensors", 1, "text.safetensors is not a checkpoint: it is a text", None),
    (f"{E} --weights router.pt", 1, "router.pt is not a checkpoint", "expected named tensors"),
    (f"{E} --weights hostile.pt", 1, "hostile.pt is not a checkpoint: it wants to import posix.system", None),
    (f"{E} --weights random:x", 2, "--weights random:x", "use random or random:SEED"),
    (f"{E} --weights missing.safetensors", 1,
     f"missing.safetensors {MISFIT}blocks.2.attn.proj.bias is missing; blocks.2.attn.proj.weight is missing; "
     "blocks.2.attn.qkv.bias is missing and 1 more", OF_THIS),
    (f"{E} --weights extra.safetensors", 1, f"extra.safetensors {MISFIT}lora.up is not part of the model", OF_THIS),
    (f"{E} --weights shaped.safetensors", 1,
     f"shaped.safetensors {MISFIT}blocks.0.mlp.fc1.bias has shape [7], the model needs [128]", OF_THIS),
    (f"{E} --weights nan.safetensors", 1, "1 value of pos_embed is NaN or infinite", "export the checkpoint again"),
    ("link unlinked", 2, "--weights is missing", "give weights to bind, or --lora"),
    ("link unlinked --weights missing.safetensors", 1, "blocks.2.attn.qkv.bias is missing and 1 more", OF_THIS),
    ("link unlinked --weights nan.safetensors", 1, "1 value of pos_embed is NaN", "export the checkpoint again"),
    ("link unlinked --weights random:-1", 2, "--weights random:-1", "use random or random:SEED"),
    ("link unlinked --weights hostile.pt", 1, "hostile.pt is not a checkpoint", None),
    # the output
    (f"{E} --out foreign", 1, "--out foreign: holds thesis.tex, which is not ours", "choose an empty folder"),
    (f"{E} --out incomplete", 1, "--out incomplete: holds constants.onnx, which is not ours", "choose an empty folder"),
    (f"{E} --out text.pt/new", 1, "--out text.pt/new: cannot be written: Not a directory", None),
    (f"{E} --out /proc/new", 1, "--out /proc/new: cannot be written", None),
    ("run incomplete --class-label 1 --out no/x.npy", 2, "--out no/x.npy: there is no folder no", "make it first"),
    ("run incomplete --class-label 1 --out x.jpg", 2, "--out x.jpg: use a .npy, a .png or a folder", None),
    (f"{R} --out x.png", 2, "this model makes latents, not pixels", "compile it with --with-vae"),
    # artefacts
    ("run unlinked --class-label 1", 1, "unlinked has no weights yet", "l2c link unlinked --weights PATH"),
    ("run nowhere --class-label 1", 1, "nowhere holds no complete artefact", AGAIN),
    ("run incomplete --class-label 1", 1, "incomplete holds no complete artefact", f"{AGAIN} --out incomplete"),
    ("run newer --class-label 1", 1, "manifest.json has format version 3, this release reads 1 to 2", AGAIN),
    ("run damaged --class-label 1", 1, "damaged/step-000.onnx does not match its hash", AGAIN),
    ("link incomplete --weights model.safetensors", 1, "incomplete holds no complete artefact", AGAIN),
    ("link newer --weights model.safetensors", 1, "format version 3", AGAIN),
    ("inspect incomplete", 1, "incomplete holds no complete artefact", AGAIN),
    ("inspect newer", 1, "format version 3", AGAIN),
    ("verify damaged", 1, "damaged/step-000.onnx does not match its hash", AGAIN),
    ("verify unlinked", 1, "unlinked has no weights yet", "l2c link unlinked"),
    # a request
    ("run engines --class-label 10", 2, "class label 10", "from 0 to 9"),
    ("run engines --class-label cat", 2, "class label 'cat'", "from 0 to 9"),
    ("run engines --class-label -1", 2, "class label -1", "from 0 to 9"),
    ("run engines --class-label 1,,2", 2, "class label ''", "from 0 to 9"),
    (f"{R} --seed -1", 2, "seed -1", "give one whole number >= 0"),
    (f"{R} --guidance-scale nan", 2, "--guidance-scale nan", "must be a finite number"),
    (f"{R} --backend tensorflow", 2, "--backend tensorflow", "use one of auto, "),
    (f"{R} --backend onnxruntime --device tpu", 1, "device 'tpu'", "use cpu"),
    (f"{R} --threads 0", 2, "--threads 0", "must be at least 1"),
    (f"{R} --threads 100000", 2, "--threads 100000", "the processors of this machine"),
    # inspect and verify
    ("inspect nowhere", 2, "nowhere: no such file or folder", None),
    ("inspect text.pt", 1, "text.pt is not a router", None),
    ("inspect hostile.pt", 1, "hostile.pt is not a router", None),
    ("inspect engines --device gtx", 2, "--device gtx", "use one of cpu, h100"),
    ("inspect router.pt --measure", 2, "router.pt: only an artefact has times", "give the folder"),
    ("inspect engines/schedule.json --threshold 0.3", 2, "--threshold 0.3", "only a router has scores"),
    ("verify engines --atol nan", 2, "--atol nan", "must be a number of at least 0"),
    ("inspect router.pt --threshold 2", 2, "--threshold 2", "must be between 0 and 1"),
    ("inspect unlinked --measure", 1, "unlinked has no weights yet", "l2c link unlinked"),
    ("verify engines --golden nowhere", 2, "--golden nowhere: not a recorded case", "config.json and golden.npz"),
    ("verify engines --weights extra.safetensors", 1, "lora.up is not part of the model", OF_THIS),
    ("verify engines --weights nan.safetensors", 1, "1 value of pos_embed is NaN", "export the checkpoint again"),
    ("verify engines --class-label 10", 2, "class label 10", "from 0 to 9"),
    ("inspect engines --threshold 0.5", 2, "--threshold 0.5", "only a router has scores"),
    ("inspect engines --plot nowhere/x.png", 2, "--plot nowhere/x.png: there is no folder nowhere", "make it first"),
    ("inspect engines --plot x.xyz", 2, "--plot x.xyz: ", "use one of .png, .svg, .pdf"),
    ("inspect engines --measure --device cpu", 2, "--device cpu: is for predicted times", "use one of the two"),
    (f"{E} --device h100", 2, "--device h100", "only for --dry-run"),
    (f"{E} --dump /proc/new", 1, "--dump /proc/new: cannot be written", "choose another folder"),
]  # fmt: skip


ADVICE = re.compile(r"\b(use|give|get|check|choose|run|make|must be|needs|known are|bind them|download|copy|free)\b")


SAID = re.compile(
    r"other programs|backend: |dit, |\d+ calls: |weights from |no weights|RANDOM|the weights are RANDOM"
)  # lines of the log


@pytest.mark.parametrize(("line", "code", "names"), [bad[:3] for bad in BAD], ids=[bad[0].replace(GOOD, "") for bad in BAD])
def test_wrong_input_is_one_line_that_names_it_and_changes_nothing(refusal, line, code, names):
    got, lines = refusal(line)
    assert got == code
    *log, error = lines
    assert all(SAID.match(entry) for entry in log), log
    assert error.startswith("error: ")
    assert names in error


@pytest.mark.parametrize(("line", "advice"), [
    pytest.param(line, advice, id=line.replace(GOOD, ""))
    for line, _, _, advice in BAD
])  # fmt: skip
def test_the_line_says_what_to_do(refusal, line, advice):
    error = refusal(line)[1][-1]
    assert advice in error if advice else ADVICE.search(error)


@pytest.mark.parametrize("line", [f"{E} --threshold high", f"{E} --batch many", f"{E} --out text.pt", "run engines",
                                  "verify engines --atol -1", "inspect engines --plot engines",
                                  "run text.pt --class-label 1", "frobnicate", "doctor --why"])  # fmt: skip
def test_wrong_usage_is_one_line_and_shows_the_way_to_the_help(refusal, line):
    code, lines = refusal(line)
    assert code == 2
    assert len(lines) == 1
    assert re.fullmatch(r"error: .+ \((export|l2c.*) --help\)", lines[0])


def test_a_pickle_of_another_protocol_is_one_line_too(desk):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        done = invoke(f"{E} --schedule hostile-4.pt")
    assert isinstance(done.exception, SystemExit)
    assert len(done.stderr.splitlines()) == 1


def test_nothing_hostile_was_executed(desk):
    for what in ("--schedule hostile.pt", "--weights hostile.pt", "--schedule hostile-4.pt", "--weights hostile-4.pt"):
        assert invoke(f"{E} {what}").exit_code == 1
    assert not list(Path.cwd().rglob("EXECUTED"))
    pickle.loads(Path("hostile-4.pt").read_bytes())  # which is hostile indeed
    Path("EXECUTED").unlink()


def test_verbose_adds_the_traceback_and_keeps_the_exit_code(desk):
    code, out, err = ran("run nowhere --class-label 1")
    assert (code, out, len(err.splitlines())) == (1, "", 1)
    code, out, err = ran("run nowhere --class-label 1 -v")
    assert (code, out) == (1, "")
    assert err.startswith("Traceback")
    assert "ArtefactError: nowhere holds no complete artefact" in err


def test_verbose_keeps_the_exit_code_of_wrong_usage(desk):
    assert ran("run engines --class-label 99 -v")[0] == 2
