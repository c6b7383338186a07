"""Models of prompts: in batches, and over HTTP."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from held import SOON, Held
from recorded import same

import l2c_export
from l2c_export.errors import UsageError
from l2c_export.serving.engine import ServingEngine
from l2c_export.serving.job import Job


def test_prompts_mix_in_a_batch(prompted_by):
    with l2c_export.load(prompted_by("pixart").out, threads=1) as pipe:
        held = Held(pipe)
        jobs = [Job({"prompt": "a cat"}, 1), Job({"prompt": "a dog", "negative_prompt": "blurry"}, 2, guidance_scale=2.0)]
        with ServingEngine(held) as engine:
            images = [ticket.result(SOON) for ticket in held.behind_one(engine, jobs)]
            assert held.batches[-1] == 2
            assert engine.submit(Job({"prompt": "a cat"}, 1, steps=3)).result(SOON).batch == 1
        for job, image in zip(jobs, images, strict=True):
            wanted = pipe(**job.inputs, seed=job.seed, guidance_scale=job.guidance_scale, output_type="np")
            assert same(image.latents, wanted.latents[0])
            assert same(image.pixels, wanted.images[0])
        with ServingEngine(pipe) as engine, pytest.raises(UsageError, match="prompt"):
            engine.submit(Job({"prompt": 3}))


def test_a_prompt_over_http(prompted_by, monkeypatch):
    pytest.importorskip("fastapi")
    image = pytest.importorskip("PIL.Image")
    from served import in_thread

    def pixels(body):
        return np.asarray(image.open(io.BytesIO(base64.b64decode(body["b64_json"]))))

    folder = prompted_by("pixart").out
    with in_thread(folder, monkeypatch) as server:
        about = server.client.get("/v1/models/model").json()["l2c"]
        assert (about["prompt"], about["negative_prompt"], about["decoder"]) == ("text", True, True)
        asked = {"prompt": "a cat", "negative_prompt": "blurry", "seed": 3, "num_inference_steps": 3, "size": about["sizes"][0]}
        answer = server.ask(**asked).json()
        assert answer["size"] == about["sizes"][0]
        stream = server.ask(**asked, stream=True, partial_images=1).text
        assert stream.count("event: image_generation.partial_image") == 1
    with l2c_export.load(folder, threads=1) as pipe:
        wanted = pipe(prompt="a cat", negative_prompt="blurry", seed=3, steps=3, output_type="pil").images[0]
    assert np.array_equal(pixels(answer["data"][0]), np.asarray(wanted))
