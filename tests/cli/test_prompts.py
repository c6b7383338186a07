"""What l2c-export and l2c run say of models of prompts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import prompted
import pytest
from desk import invoke

import l2c_export


@pytest.fixture(scope="module")
def pixart(tmp_path_factory):
    """A compiled PixArt, and the embeddings of three prompts in a file."""
    root = tmp_path_factory.mktemp("pixart")
    prompted.pixart(root / "model")
    line = (
        f"export --model {root / 'model'} --schedule every:2 --steps 4 --size 64x96 --tokens 6 --batch 2 --out {root / 'out'}"
    )
    done = invoke(line)
    assert done.exit_code == 0, done.output
    np.savez(root / "prompts.npz", **{name: values.numpy() for name, values in prompted.pixart_request(3).items()})
    return root


def test_prompts_are_run_in_batches(pixart, tmp_path):
    out = tmp_path / "x.npy"
    done = invoke(f"run {pixart / 'out'} --prompt-embeds {pixart / 'prompts.npz'} --guidance-scale 3 --seed 5 --out {out}")
    assert done.exit_code == 0, done.output
    with np.load(pixart / "prompts.npz") as file, l2c_export.load(pixart / "out") as pipe:
        last = pipe(**{name: file[name][2:] for name in file.files}, guidance_scale=3, seed=7).latents
    assert np.allclose(np.load(out)[2:], last, atol=1e-5)


@pytest.mark.parametrize(("writer", "problem"), [
    (lambda path: np.save(path, np.zeros(3)), "it is one array, without a name"),
    (lambda path: path.write_text("no"), "is no .npz"),
    (lambda path: np.savez(path, prompt_embeds=np.zeros((2, 6, 24)), prompt_attention_mask=np.ones((3, 6), int)),
     "prompt_embeds has 2 images where there are 3: give as many of each"),
    (lambda path: np.savez(path, prompt_embeds=np.zeros((2, 6, 23)), prompt_attention_mask=np.ones((2, 6), int)),
     "prompt_embeds of shape (2, 6, 23): this model needs (B, 6, 24)"),
    (lambda path: None, "cannot be read: No such file or directory"),
])  # fmt: skip
def test_a_file_that_holds_no_prompts_is_refused(pixart, tmp_path, writer, problem):
    path = tmp_path / "p.npz"
    writer(path)
    if path.with_suffix(".npz.npy").exists():
        path.with_suffix(".npz.npy").rename(path)
    done = invoke(f"run {pixart / 'out'} --prompt-embeds {path}")
    assert done.exit_code == 2
    assert problem in done.output
    assert not Path("latents.npy").exists()


@pytest.mark.parametrize(("options", "problem"), [
    ("--size 64", "--size 64: use height and width as in 1024x768"),
    ("--size 60x64", "height and width are pixels, and multiples of 8"),
    ("--model DiT-S/8 --tokens 5", "--tokens 5: only a captured transformer of diffusers has a choice"),
])  # fmt: skip
def test_sizes_that_are_none_are_refused(pixart, options, problem):
    model = "" if "--model" in options else f"--model {pixart / 'model'}"
    done = invoke(f"export {model} --schedule every:2 --steps 4 {options} --out new")
    assert done.exit_code == 2, done.output
    assert problem in done.output


def test_a_captured_model_is_verified_checked_and_linked_again(pixart):
    out = pixart / "out"
    for line in (f"verify {out}", f"check {out}", f"inspect {out}", f"link {out} --weights {pixart / 'model'}"):
        done = invoke(line)
        assert done.exit_code == 0, done.output


def words(done) -> str:
    assert done.exit_code == 0, done.output
    return done.output


def test_prompts_are_said_in_words(prompted_by, tmp_path):
    """In batches, alone or as a file of arrays: the same latents."""
    out, arrays = prompted_by("sd3").out, tmp_path / "p.npz"
    texts = "--prompt 'a cat' --prompt 'two dogs, a house' --negative-prompt blurry"
    words(invoke(f"run {out} {texts} --seed 4 --out {tmp_path / 'a.npy'}"))
    assert "2 prompts in" in words(invoke(f"encode {out} {texts} --out {arrays}"))
    words(invoke(f"run {out} --prompt-embeds {arrays} --seed 4 --out {tmp_path / 'b.npy'}"))
    with l2c_export.load(out) as pipe:
        wanted = pipe(prompt=["a cat", "two dogs, a house"], negative_prompt="blurry", seed=4).latents
    assert np.array_equal(np.load(tmp_path / "a.npy"), np.load(tmp_path / "b.npy"))
    assert np.abs(np.load(tmp_path / "a.npy") - wanted).max() < 1e-5 * np.abs(wanted).max()


def test_more_prompts_than_fit_into_a_batch(prompted_by, tmp_path):
    texts = " ".join(f"--prompt {n}" for n in range(17))
    words(invoke(f"run {prompted_by('flux').out} {texts} --out {tmp_path / 'x.npy'}"))
    assert len(np.load(tmp_path / "x.npy")) == 17


def test_what_is_cut_off_is_said(prompted_by, tmp_path):
    said = words(invoke(f"encode {prompted_by('pixart').out} --prompt '{'cat ' * 30}end' --out {tmp_path / 'p.npz'}"))
    assert "a prompt is longer than the 14 tokens of text_encoder, which is not told: '" in said
    assert "cat end'" in said


def test_inspect_names_the_components(prompted_by):
    line = words(invoke(f"inspect {prompted_by('sd3').out}")).splitlines()[-1]
    names = [part.split(":")[0] for part in line.split(", ")]
    assert names == ["denoiser", "text_encoder", "text_encoder_2", "text_encoder_3"]
    assert "components" in words(invoke(f"inspect {prompted_by('sd3').out} --json"))


@pytest.mark.parametrize(("line", "problem"), [
    ("run {flux} --prompt a --negative-prompt b", "--negative-prompt: this artefact has no unconditional half, which"),
    ("run {flux} --prompt a --prompt-embeds p.npz", "--prompt and --prompt-embeds: both say what is asked for: give one of"),
    ("run {flux} --class-label 1 --prompt a", "--class-label and --prompt: both say what is asked for"),
    ("run {flux} --prompt-embeds p.npz --negative-prompt b", "--negative-prompt: goes with --prompt; --prompt-embeds has"),
    ("run {flux}", "Missing option '--class-label', or '--prompt' or '--prompt-embeds' for a model of prompts"),
    ("run {pixart} --prompt a", "--prompt: this artefact has no text encoders: compile it again with --with-text, or give"),
    ("encode {pixart} --prompt a", "--prompt: this artefact has no text encoders: compile it again with --with-text"),
    ("encode {flux}", "Missing option '--prompt'"),
    ("encode {flux} --prompt a --out nowhere/p.npz", "--out nowhere/p.npz: there is no folder nowhere"),
    ("encode {tiny} --prompt a", "its model takes no prompts"),
    ("run {tiny} --prompt a", "--prompt: this artefact has no such input"),
    ("export --model {model} --schedule every:1 --steps 2 --text-precision bf16", "--text-precision bf16: there are no text"),
])  # fmt: skip
def test_prompts_that_cannot_be_had_are_refused(prompted_by, pixart, tiny, line, problem):
    places = {"flux": prompted_by("flux").out, "model": pixart / "model", "pixart": pixart / "out", "tiny": tiny[0]}
    done = invoke(line.format(**places))
    assert done.exit_code == 2, done.output
    assert problem in done.output
    assert not Path("latents.npy").exists()
    assert not Path("prompts.npz").exists()
