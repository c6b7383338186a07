"""OpenAI's client draws, and gets the bits that the pipeline makes."""

from __future__ import annotations

import base64
import io
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
from served import Process

import l2c_export

openai = pytest.importorskip("openai")
Image = pytest.importorskip("PIL.Image")
pytest.importorskip("fastapi")


@pytest.fixture(scope="module")
def process(rgb, demo):
    with Process("--model", "demo", f"small={rgb}", "--max-wait-ms", "20") as server:
        yield server


@pytest.fixture(scope="module")
def client(process):
    return openai.OpenAI(base_url=f"{process.url}/v1", api_key="unused", max_retries=0)


@pytest.fixture(scope="module")
def pipes(rgb, demo):
    pipes = {"demo": l2c_export.load(demo, threads=1), "small": l2c_export.load(rgb, threads=1)}
    yield pipes
    for pipe in pipes.values():
        pipe.close()


def pixels(image):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(image.b64_json))))


def wanted(pipe, label, seed, **more):
    return np.asarray(pipe([label], seed=[seed], output_type="pil", **more).images[0])


def test_an_image_is_the_pipelines_to_the_bit(client, pipes):
    answer = client.images.generate(model="demo", prompt="3", size="28x28", extra_body={"seed": 5})
    (image,) = answer.data
    assert np.array_equal(pixels(image), wanted(pipes["demo"], 3, 5))
    assert (answer.size, answer.output_format, image.seed) == ("28x28", "png", 5)
    assert image.l2c["batch"] == 1
    assert image.l2c["run_seconds"] > 0


def test_images_of_a_request_have_seeds_one_behind_the_other(client, pipes):
    answer = client.images.generate(model="small", prompt="2", n=3, extra_body={"seed": 10, "guidance_scale": 2.5})
    for n, image in enumerate(answer.data):
        assert image.seed == 10 + n
        assert np.array_equal(pixels(image), wanted(pipes["small"], 2, 10 + n, guidance_scale=2.5))


def test_requests_at_the_same_time_share_a_batch_and_get_their_own_bits(client, pipes):
    asked = [(n % 10, 100 + n, 1.0 + n / 2) for n in range(8)]

    def ask(label, seed, scale):
        return client.images.generate(model="demo", prompt=str(label), extra_body={"seed": seed, "guidance_scale": scale})

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda arguments: ask(*arguments), asked))
    assert max(answer.data[0].l2c["batch"] for answer in answers) > 2
    for (label, seed, scale), answer in zip(asked, answers, strict=True):
        assert np.array_equal(pixels(answer.data[0]), wanted(pipes["demo"], label, seed, guidance_scale=scale))


def test_other_steps_are_another_program(client, pipes):
    for steps in (8, 4):
        answer = client.images.generate(model="small", prompt="1", extra_body={"seed": 3, "num_inference_steps": steps})
        assert np.array_equal(pixels(answer.data[0]), wanted(pipes["small"], 1, 3, steps=steps))


def test_the_first_model_is_that_of_who_names_none_and_a_seed_is_told_of_who_gives_none(client, pipes):
    (image,) = client.images.generate(prompt="8").data
    assert np.array_equal(pixels(image), wanted(pipes["demo"], 8, image.seed))
    assert client.images.generate(prompt="8").data[0].seed != image.seed


def test_a_stream_shows_the_picture_on_its_way(client, pipes):
    on_the_way = {}
    pipes["demo"](
        [7], seed=[4], callback_on_step_end=lambda _, step, t, values: on_the_way.update({step + 1: values["latents"]})
    )
    *partial, last = client.images.generate(prompt="7", stream=True, partial_images=3, extra_body={"seed": 4})
    assert [event.type for event in partial] == ["image_generation.partial_image"] * 3
    assert [event.partial_image_index for event in partial] == [0, 1, 2]
    assert [event.l2c for event in partial] == [{"step": step, "steps": 20} for step in (5, 10, 15)]
    for event in partial:
        shown = np.clip(on_the_way[event.l2c["step"]][0, 0] / 2 + 0.5, 0, 1)
        assert np.array_equal(pixels(event), (shown * 255).round().astype(np.uint8))
    assert last.type == "image_generation.completed"
    assert np.array_equal(pixels(last), wanted(pipes["demo"], 7, 4))
    assert (last.size, last.usage.total_tokens, last.seed) == ("28x28", 0, 4)
    for event in (*partial, last):
        assert (event.size, event.quality, event.background, event.output_format) == ("28x28", "auto", "opaque", "png")
        assert event.created_at > 1.7e9


def test_a_stream_of_nothing_on_the_way(client):
    events = list(client.images.generate(prompt="7", stream=True))
    assert [event.type for event in events] == ["image_generation.completed"]


def test_models_say_what_they_take(client):
    listed = list(client.models.list())
    assert [model.id for model in listed] == ["demo", "small"]
    assert {model.object for model in listed} == {"model"}
    about = client.models.retrieve("small").l2c
    assert (about["prompt"], about["classes"], about["sizes"], about["num_inference_steps"]) == ("class", 3, ["4x4"], [8, 4])
    assert about["images_at_once"] == 4


@pytest.mark.parametrize(("asked", "param", "message"), [
    ({"prompt": "horse"}, "prompt", "class label 'horse': must be a whole number from 0 to 9"),
    ({"prompt": "10"}, "prompt", "class label 10"),
    ({"prompt": "1", "n": 0}, "n", "n: input should be greater than or equal to 1"),
    ({"prompt": "1", "n": 11}, "n", "less than or equal to 10"),
    ({"prompt": "1", "size": "512x512"}, "size", "size='512x512': demo makes pictures of 28x28: use that, or auto"),
    ({"prompt": "1", "response_format": "url"}, "response_format", "should be 'b64_json'"),
    ({"prompt": "1", "extra_body": {"num_inference_steps": 7}}, "num_inference_steps", "was compiled for 20"),
    ({"prompt": "1", "extra_body": {"negative_prompt": "blur"}}, "negative_prompt", "does not take one"),
    ({"prompt": "1", "extra_body": {"guidance_scale": 1e9}}, "guidance_scale", "less than or equal to 1000"),
    ({"prompt": "1", "extra_body": {"seed": -1}}, "seed", "greater than or equal to 0"),
    ({"prompt": "1", "extra_body": {"sed": 1}}, "sed", "no such field"),
    ({"prompt": "1", "extra_body": {"stream": True, "n": 2}}, "n", "a stream shows one image"),
    ({"prompt": "1", "extra_body": {"partial_images": 2}}, "partial_images", "only a stream has them"),
    ({"prompt": "1" * 5000}, "prompt", "at most 4000 characters"),
])  # fmt: skip
def test_what_is_wrong_is_said_in_one_line(client, asked, param, message):
    with pytest.raises(openai.BadRequestError) as caught:
        client.images.generate(**asked)
    error = caught.value
    assert message in error.body["message"]
    assert "\n" not in error.body["message"]
    assert (error.body["type"], error.body["param"]) == ("invalid_request_error", param)
    assert error.request_id


def test_a_model_that_there_is_not(client):
    with pytest.raises(openai.NotFoundError) as caught:
        client.images.generate(model="imagen", prompt="1")
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


def test_the_schedule_is_that_of_the_artefact(process, demo):
    from l2c_export.inspection.view import inspect

    for name, path, steps in (("demo", demo, None), ("small", None, 4)):
        document = httpx.get(
            f"{process.url}/v1/models/{name}/schedule", params={"num_inference_steps": steps} if steps else {}
        ).json()
        if path:
            view = inspect(path)
            assert document["names"] == view.sublayers
            for call in view.calls:
                column = [row[call.index] for row in document["cells"]]
                assert {n for n, cell in enumerate(column) if cell == "c"} == set(call.computed)
                assert {n for n, cell in enumerate(column) if cell == "r"} == set(call.reused)
        else:
            assert {*"".join(document["cells"])} == {"c"}
    assert httpx.get(f"{process.url}/v1/models/small/schedule", params={"num_inference_steps": 5}).status_code == 404


def test_metrics_count_what_was_made(process, client):
    client.images.generate(model="small", prompt="1", n=2)
    text = httpx.get(f"{process.url}/metrics").text
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert all(name.startswith("l2c_") for name in values)
    assert float(values['l2c_images_total{model="small",outcome="made"}']) >= 2
    assert float(values['l2c_queue_images{model="small"}']) == 0
    assert 'l2c_http_requests_total{method="POST",route="/v1/images/generations",status="400"}' in values


def test_the_log_has_a_line_for_every_request_with_its_id(process):
    asked = httpx.post(f"{process.url}/v1/images/generations", json={"model": "small", "prompt": "1", "n": 2},
                       headers={"X-Request-Id": "abc-123"})  # fmt: skip
    assert asked.headers["x-request-id"] == "abc-123"
    process.line('"abc-123"')
    (line,) = [record for record in process.logged("request") if record["request_id"] == "abc-123"]
    assert (line["status"], line["images"], line["model"], line["path"]) == (200, 2, "small", "/v1/images/generations")
    assert line["run_seconds"] > 0
    other = httpx.get(f"{process.url}/v1/models", headers={"X-Request-Id": 'x"} {"level":"error"'}).headers["x-request-id"]
    assert len(other) == 32
