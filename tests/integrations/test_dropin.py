"""Scripts written for DiTPipeline: a compiled pipeline in its place."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from recorded import named
from small_pipelines import LABELS, STEPS, images, same_pixels

import l2c_export
from l2c_export import L2CPipeline
from l2c_export.compiler.link import bind
from l2c_export.errors import ArtefactError, BackendError, UsageError

pytestmark = pytest.mark.usefixtures("one_thread")


def test_generators(ours):
    def latents(generator) -> np.ndarray:
        return ours(LABELS, generator=generator, output_type="latent").images

    pair = [torch.Generator().manual_seed(1), torch.Generator().manual_seed(2)]
    assert np.array_equal(latents(np.random.default_rng(1)), latents(np.random.default_rng(1)))
    assert np.array_equal(latents(5), ours.pipe(LABELS, seed=5).latents)
    drawn = latents(torch.manual_seed(3))
    torch.set_default_dtype(torch.bfloat16)
    try:
        assert np.array_equal(latents(torch.manual_seed(3)), drawn)
    finally:
        torch.set_default_dtype(torch.float32)
    assert np.array_equal(latents([5, 9]), ours.pipe(LABELS, seed=[5, 9]).latents)
    assert not np.array_equal(latents(None), latents(None))
    swapped = latents([pair[1], pair[0]])
    pair = [torch.Generator().manual_seed(1), torch.Generator().manual_seed(2)]
    assert not np.array_equal(latents(pair), swapped)
    with pytest.raises(UsageError, match="a list of 1 for 2 images"):
        latents(pair[:1])
    with pytest.raises(UsageError, match="generator 'x': use one of numpy's or torch's, or a seed"):
        latents("x")


def test_the_number_of_steps_is_what_was_compiled(ours):
    assert ours(LABELS, num_inference_steps=STEPS, output_type="latent", return_dict=False)[0].shape == (2, 4, 8, 8)
    with pytest.raises(UsageError, match=r"num_inference_steps 50: this artefact was compiled for 6: use that, .*steps=50"):
        ours(LABELS, num_inference_steps=50)


def test_labels_and_callbacks_as_in_diffusers(ours):
    assert ours.labels == {"chicken": 8, "golden retriever": 207, "hen": 8, "otter": 360}
    assert ours.get_label_ids(["golden retriever", "hen"]) == [207, 8]
    seen = []
    ours(LABELS, output_type="latent", callback_on_step_end=lambda pipe, i, t, values: seen.append((pipe, i, t)) or {})
    assert seen == [(ours, i, t) for i, t in enumerate([830, 664, 498, 332, 166, 0])]


def test_save_and_load(ours, tmp_path):
    ours.save_pretrained(tmp_path / "copy")
    copy = l2c_export.L2CPipeline.from_pretrained(tmp_path / "copy")
    assert np.array_equal(
        copy(LABELS, generator=1, output_type="np").images, ours(LABELS, generator=1, output_type="np").images
    )


def test_an_artefact_that_was_changed_is_not_saved(world, tmp_path):
    """Its files and its manifest would be of two artefacts."""
    shutil.copytree(world.compiled(), tmp_path / "e")
    pipe = l2c_export.L2CPipeline.from_pretrained(tmp_path / "e")
    shutil.rmtree(tmp_path / "e")
    shutil.copytree(world.compiled("every:2"), tmp_path / "e")
    with pytest.raises(ArtefactError, match="replaced since it was loaded"):
        pipe.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_an_artefact_that_changes_while_it_is_copied_is_not_saved(world, tmp_path, monkeypatch):
    folder, copyfile = shutil.copytree(world.compiled(), tmp_path / "e"), shutil.copyfile
    pipe = l2c_export.L2CPipeline.from_pretrained(folder)

    def meanwhile(*arguments):
        monkeypatch.undo()
        bind(folder, "random:9")
        return copyfile(*arguments)

    monkeypatch.setattr(shutil, "copyfile", meanwhile)
    with pytest.raises(ArtefactError, match="replaced since it was loaded"):
        pipe.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_the_example_of_diffusers_documentation(world, engines, want):
    pipe = L2CPipeline.from_pretrained(
        engines, torch_dtype=torch.float32, local_files_only=True, use_safetensors=True, device_map="cpu", variant=None
    )
    assert pipe.to("cpu") is pipe.to(torch.device("cpu"), torch.float32) is pipe.to(device="cpu", dtype=torch.float32) is pipe
    pipe.set_progress_bar_config(disable=True)
    pipe.enable_model_cpu_offload()
    pipe.enable_attention_slicing("max")
    pipe.enable_xformers_memory_efficient_attention()
    assert (pipe.device, pipe.dtype) == (world.pipe.device, torch.float32)
    words = ["golden retriever", "otter", "hen", "chicken"]  # more than one batch holds
    assert pipe.get_label_ids(words) == [207, 360, 8, 8]
    assert same_pixels(images(pipe, torch.tensor(pipe.get_label_ids(words[:2]))), want)


def test_tensors_come_out_as_from_diffusers(world, ours):
    got, tensor = images(ours, kind="pt"), images(world.pipe, kind="pt")
    assert isinstance(got, torch.Tensor)
    assert (got.dtype, got.shape) == (tensor.dtype, tensor.shape)
    assert same_pixels(got, tensor)


@pytest.mark.parametrize("latents", [lambda x: x, lambda x: x.numpy(), lambda x: x.requires_grad_()])
def test_latents_may_be_tensors(ours, want, latents):
    drawn = torch.randn((2, 4, 8, 8), generator=torch.Generator().manual_seed(3))
    assert same_pixels(ours(LABELS, latents=latents(drawn), output_type="np").images, want)


@pytest.mark.parametrize(("options", "says"), [
    ({"torch_dtype": torch.float16}, "type torch.float16: .* with precision='fp32': .* precision='fp16'"),
    ({"dtype": "bfloat16"}, "type bfloat16"), ({"torch_dtype": {"vae": torch.float32, "default": torch.float16}}, "float16"),
    ({"torch_dtype": torch.int8}, "torch.int8: .* leave it out"), ({"variant": "fp16"}, "variant=..*leave it out"),
    ({"scheduler": object()}, "part of the compiled artefact: .*sampler=.."), ({"device_map": {"": "cpu"}}, "on one device"),
    ({"device_map": True}, "device True"),
], ids=named)  # fmt: skip
def test_an_artefact_is_not_loaded_as_something_else(engines, monkeypatch, options, says):
    monkeypatch.setattr("l2c_export.runtime.pipeline.load", lambda *_, **__: pytest.fail("loaded"))
    with pytest.raises(UsageError, match=says):
        L2CPipeline.from_pretrained(engines, **options)


def test_a_device_map_is_where_it_is_loaded(engines):
    assert L2CPipeline.from_pretrained(engines, device_map="balanced").device == torch.device("cpu")
    with pytest.raises((BackendError, UsageError), match="onnxruntime"):
        L2CPipeline.from_pretrained(engines, device_map="nowhere")


@pytest.mark.parametrize(("where", "says"), [
    ("cuda", r"to\('cuda'\): this pipeline is on cpu: load it there with from_pretrained\(.., device='cuda'\)"),
    (torch.device("cuda:1"), "cuda:1"), (0, "cuda:0"), (torch.float16, "precision='fp16'"), ("bfloat16", "precision='bf16'"),
    (object(), "use the name of one"),
], ids=named)  # fmt: skip
def test_a_compiled_pipeline_stays_where_and_what_it_is(ours, where, says):
    with pytest.raises(UsageError, match=says):
        ours.to(where)


@pytest.mark.parametrize("part", ["scheduler", "transformer", "vae", "config", "components"])
def test_compiled_parts_are_not_there_and_cannot_be_exchanged(ours, part):
    assert not hasattr(ours, part)
    with pytest.raises(UsageError, match=f"{part}.*part of the compiled artefact"):
        getattr(ours, part)
    with pytest.raises(UsageError, match=f"{part}.*part of the compiled artefact"):
        setattr(ours, part, None)


@pytest.mark.parametrize(("change", "says"), [
    ({"guidance_scale": float("nan")}, "guidance_scale=nan"), ({"guidance_scale": -1e30}, "from -1000"),
    ({"guidance_scale": True}, "guidance_scale=True"), ({"guidance_scale": "4"}, "guidance_scale='4'"),
    ({"num_inference_steps": True}, "num_inference_steps True"), ({"num_inference_steps": np.array([1, 2])}, "compiled for"),
    ({"num_inference_steps": 6.0}, "was compiled for"), ({"output_type": 5}, "output_type=5"),
    ({"output_type": []}, "output_type"),
    ({"generator": torch.tensor(1.5)}, "generator"), ({"class_labels": {207}}, "a set is no list"),
], ids=named)  # fmt: skip
def test_wrong_values_are_one_line(ours, change, says):
    with pytest.raises(UsageError, match=says) as error:
        ours(**{"class_labels": [207], "generator": 0, **change})
    assert "\n" not in str(error.value)


def test_numbers_of_numpy_and_pytorch_are_numbers(ours, want):
    for n in (np.int64(STEPS), torch.tensor(STEPS)):
        assert len(ours([207], torch.tensor(4.0), torch.tensor(5), n, "np").images) == 1
    drawn = [ours([207], generator=seed, output_type="latent").images for seed in (5, np.uint8(5), torch.tensor(5))]
    assert np.array_equal(drawn[0], drawn[1])
    assert np.array_equal(drawn[0], drawn[2])


def test_saving_takes_what_changes_nothing(ours, tmp_path):
    ours.save_pretrained(tmp_path / "a", safe_serialization=True)
    for options in ({"push_to_hub": True}, {"variant": "fp16"}):
        with pytest.raises(UsageError, match="leave it out"):
            ours.save_pretrained(tmp_path / "b", **options)
    assert not (tmp_path / "b").exists()
