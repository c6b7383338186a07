"""Messages speak Python where they are raised, and the command line's words where it shows them."""

from __future__ import annotations

import shlex

import pytest
from click.testing import CliRunner

import l2c_export
from l2c_export.cli.main import l2c
from l2c_export.cli.spoken import options_of, spoken


def on_command_line(message, command="run"):
    group = l2c.make_context("l2c", [command])
    return spoken(message, options_of(l2c.commands[command].make_context(command, [], parent=group, resilient_parsing=True)))


@pytest.mark.parametrize(("python", "shell"), [
    ("threads=0: must be at least 1", "--threads 0: must be at least 1"),
    ("weights='a b.pt': no such file", "--weights a b.pt: no such file"),
    ('weights="it\'s": no such file', "--weights it's: no such file"),
    (r"weights='a\nb': no such file", r"--weights a\nb: no such file"),
    ("lr=1e-05: too small; lr=-1.0, lr=nan.", "--lr 1e-05: too small; --lr -1.0, --lr nan."),
    ("give weights with weights=..", "give weights with --weights"),
    ("check model=.. (or weights=..), or use no steps=..", "check --model (or --weights), or use no --steps"),
    ("compile it with with_vae=True", "compile it with --with-vae"),
    ("cache=False needs steps=..", "--no-cache needs --steps"),
    ("load it without verify=False", "load it without --trust"),
    ("lambda_=0.5, targets='sm86'", "--lambda 0.5, --target sm86"),
    ("give class_labels=..", "give --class-label"),
    ("run l2c_export.link('a b', weights='PATH') first", "run l2c link 'a b' --weights PATH first"),
    ("run l2c_export.compile(out='x')", "run l2c-export --out x"),
    ("l2c_export.build adds one, l2c_export.doctor() looks", "l2c build adds one, l2c doctor looks"),
    # what is no argument of a command
    ("option = 'x', output_type='pil', c.steps=3, substeps=3", "option = 'x', output_type='pil', c.steps=3, substeps=3"),
    ("a file l2c_export.x(y z), model='\\x'", "a file l2c_export.x(y z), --model '\\x'"),
])  # fmt: skip
def test_a_message_in_both_languages(python, shell):
    assert on_command_line(python) == shell


@pytest.mark.parametrize(
    ("command", "shell"), [("build", "--optimization-level 1"), ("train", "--level 1"), ("export", "--level 1")]
)
def test_what_several_commands_call_alike_is_the_option_of_the_own(command, shell):
    assert on_command_line("level=1", command) == shell


def test_what_a_message_tells_to_run_can_be_pasted():
    shown = on_command_line("run l2c_export.link(\"it's; rm -rf ~\", weights='w 1.pt')")
    assert shlex.split(shown.removeprefix("run ")) == ["l2c", "link", "it's; rm -rf ~", "--weights", "w 1.pt"]


CALLS = {
    "load": (lambda e: l2c_export.load(e, threads=0), ["run", "E", "--class-label", "1", "--threads", "0"], "threads"),
    "link": (lambda e: l2c_export.load(e, link="half"), None, "link"),
    "guidance": (lambda e: l2c_export.load(e, threads=1)([1], 1e9),
                 ["run", "E", "--class-label", "1", "--guidance-scale", "1e9"], "guidance-scale"),
    "seed": (lambda e: l2c_export.load(e, threads=1)([1], seed=-1), ["run", "E", "--class-label", "1", "--seed", "-1"], "seed"),
    "compile": (lambda e: l2c_export.compile("every:2", model="DiT-S/2", steps=1),
                ["export", "--schedule", "every:2", "--model", "DiT-S/2", "--steps", "1"], "steps"),
    "batch": (lambda e: l2c_export.compile("every:2", model="DiT-S/2", steps=4, batch=0),
              ["export", "--schedule", "every:2", "--model", "DiT-S/2", "--steps", "4", "--batch", "0"], "batch"),
    "weights": (lambda e: l2c_export.link(e, "absent.pt"), ["link", "E", "--weights", "absent.pt"], "weights"),
    "against": (lambda e: l2c_export.bench(e, against="abacus"), ["bench", "E", "--against", "abacus"], "against"),
    "rounds": (lambda e: l2c_export.profile(e, rounds=0), ["profile", "E", "--rounds", "0"], "rounds"),
    "threshold": (lambda e: l2c_export.inspect(e, threshold=0.5), ["inspect", "E", "--threshold", "0.5"], "threshold"),
    "train": (lambda e: l2c_export.train(steps=4, data="self", weights="random", lr=0),
              ["train", "--steps", "4", "--data", "self", "--weights", "random", "--lr", "0"], "lr"),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_an_error_speaks_the_language_of_who_made_it(tiny, name):
    call, words, option = CALLS[name]
    with pytest.raises(l2c_export.L2CError) as caught:
        call(tiny[0])
    assert "--" not in str(caught.value)
    assert f"{option.replace('-', '_')}=" in str(caught.value)
    if words:
        done = CliRunner().invoke(l2c, [str(tiny[0]) if word == "E" else word for word in words])
        assert done.exit_code == caught.value.exit_code
        assert f"--{option} " in done.stderr
