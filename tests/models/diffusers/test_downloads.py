"""Models of the hub are downloaded as far as they are needed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import diffusers
import numpy as np
import pytest
import texts
from fake_hub import serving
from small_pipelines import INDEX, SCHEDULER, TRANSFORMER, VAE, small_pipeline, source, written

from l2c_export.artefact import autoencoder
from l2c_export.models.diffusers import pipeline_folder

pytestmark = pytest.mark.usefixtures("one_thread")


def asked_of_hub(
    root: Path, home: Path, *models: str, decoder: bool = False, text: bool = False, **environment: str
) -> tuple[list[str], list[str]]:
    """What `--model` finds, in a process of its own; and the files that it asked for."""
    code = (
        "import sys; from l2c_export.models.diffusers import hub\n"
        "for name in sys.argv[2:]:\n"
        "    try: print(hub.folder(name, 'decoder' in sys.argv[1], 'text' in sys.argv[1]))\n"
        "    except Exception as error: print(type(error).__name__, error)"
    )
    kept = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    with serving(root) as hub:
        env = {**kept, "HF_HOME": str(home), "HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", **environment}
        wanted = ["model", *["decoder"] * decoder, *["text"] * text]
        done = subprocess.run(
            [sys.executable, "-c", code, ",".join(wanted), *models], env=env, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines(), sorted(hub.asked)


@pytest.fixture
def hub(saved, tmp_path) -> Path:
    root = tmp_path / "hub"
    shutil.copytree(saved, root / "me/dit")
    (root / "me/dit/transformer/diffusion_pytorch_model.fp16.safetensors").write_bytes(b"never asked for")
    small_pipeline(root / "me/bin", "ddim").transformer.save_pretrained(
        root / "me/bin/transformer", safe_serialization=False, max_shard_size="40KB"
    )
    (root / "me/bin/transformer/diffusion_pytorch_model.safetensors").unlink(missing_ok=True)
    for name, kind, parts in (
        ("sd", "StableDiffusionPipeline", {"unet": ["diffusers", "UNet2DConditionModel"]}),
        ("pixart", "PixArtAlphaPipeline", {"transformer": ["diffusers", "Transformer2DModel"]}),
    ):
        (root / "me" / name / "transformer").mkdir(parents=True)
        written(root / "me" / name / INDEX, {"_class_name": kind, **parts})
        written(root / "me" / name / TRANSFORMER, {"norm_type": "ada_norm_single"})
        (root / "me" / name / "transformer/diffusion_pytorch_model.safetensors").write_bytes(b"gigabytes")
    (root / "me/weights").mkdir()
    (root / "me/weights/model.safetensors").write_bytes(b"gigabytes")
    return root


def test_a_model_is_downloaded_as_far_as_it_is_needed(hub, tmp_path):
    parts = [f"me/dit/{name}" for name in (INDEX, SCHEDULER, TRANSFORMER, "transformer/diffusion_pytorch_model.safetensors")]
    paths, asked = asked_of_hub(hub, tmp_path / "home", "me/dit", "me/dit")
    assert asked == sorted(parts), "once, and no variants, no autoencoder"
    assert paths[0] == paths[1]
    assert source(Path(paths[0])).name == "dit"
    paths, asked = asked_of_hub(hub, tmp_path / "home", "me/dit", decoder=True)
    assert asked == [f"me/dit/{VAE}", "me/dit/vae/diffusion_pytorch_model.safetensors"]
    assert autoencoder.describe(source(Path(paths[0]), with_vae=True).vae, 4, True).scaling_factor == 0.18215
    assert asked_of_hub(hub, tmp_path / "home", "me/dit", decoder=True, HF_HUB_OFFLINE="1") == (paths, [])


def test_shards_are_downloaded_with_their_index(hub, tmp_path):
    (path,), asked = asked_of_hub(hub, tmp_path / "home", "me/bin")
    assert {Path(name).suffix for name in asked} == {".json", ".bin"}
    theirs = diffusers.DiTTransformer2DModel.from_pretrained(hub / "me/bin/transformer", use_safetensors=False).state_dict()
    stored = pipeline_folder.read(Path(path)).stored
    assert all(np.array_equal(stored.read(name), value.numpy()) for name, value in theirs.items())


def test_text_encoders_and_tokenizers_are_downloaded_where_they_are_wanted(hub, tmp_path):
    place = texts.folder_of("flux", hub / "me/flux")
    (place / "text_encoder" / "model.fp16.safetensors").write_bytes(b"never asked for")
    _, asked = asked_of_hub(hub, tmp_path / "home", "me/flux")
    assert not [name for name in asked if "text_encoder" in name or "tokenizer" in name]
    (path,), asked = asked_of_hub(hub, tmp_path / "home", "me/flux", text=True)
    parts = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
    wanted = {file for part in parts for file in (place / part).iterdir() if "fp16" not in file.name}
    assert set(asked) == {f"me/flux/{file.relative_to(place)}" for file in wanted}
    assert asked_of_hub(hub, tmp_path / "home", "me/flux", text=True, HF_HUB_OFFLINE="1") == ([path], [])


def test_what_is_of_no_use_is_not_downloaded(hub, tmp_path):
    names = ["me/sd", "me/pixart", "me/weights", "me/absent", "DiT-XXL/2", "dit-xl/2@256", "-a/--b"]
    said, asked = asked_of_hub(hub, tmp_path / "home", *names)
    assert asked == sorted([f"me/sd/{INDEX}", f"me/pixart/{INDEX}", f"me/pixart/{TRANSFORMER}"])
    for name, line, says in zip(names, said, [
        "me/sd is a StableDiffusionPipeline with no transformer: l2c-export knows DiT and U-ViT",
        "(of a PixArtAlphaPipeline): norm_type = 'ada_norm_single' is not supported",
        "'me/weights' is no pipeline of diffusers (it has no model_index.json): l2c-export knows DiT and U-ViT",
        "unknown model 'me/absent': no such folder, and the hub shows none",
        "unknown model 'DiT-XXL/2': names of models are for example DiT-XL/2",
        "unknown model 'dit-xl/2@256': names of models are for example DiT-XL/2",
        "unknown model '-a/--b': no folder, and no id of the hub",
    ], strict=True):  # fmt: skip
        assert line.startswith("ModelError "), name
        assert says in line


@pytest.mark.parametrize(("environment", "says"), [
    ({"HF_HUB_OFFLINE": "1"}, "not whole in the hub's cache, with HF_HUB_OFFLINE set"),
    ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "the hub cannot be reached"),
])  # fmt: skip
def test_without_a_network_it_is_said_at_once(hub, tmp_path, environment, says):
    (line,), _ = asked_of_hub(hub, tmp_path / "home", "me/dit", **environment)
    assert says in line
    assert f"hf download me/dit (it goes to {tmp_path}/home/hub)" in line
