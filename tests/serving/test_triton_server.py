"""A stock Triton server over what `l2c triton` writes: the pipeline's bits, previews, cancellation, and what goes wrong."""

from __future__ import annotations

import json
import queue
import re
import shutil
import urllib.error
import urllib.request

import numpy as np
import pytest
from folders import GOLDEN
from triton_server import binaries, serving

import l2c_export
from l2c_export.serving.triton import TritonOptions, write_repository

pytest.importorskip("tritonclient.http")
if not binaries():
    pytest.skip("no tritonserver: pip install --no-deps nvidia-pytriton", allow_module_level=True)

import tritonclient.grpc as over_grpc
import tritonclient.http as over_http
from tritonclient.utils import InferenceServerException

TYPES = {"class_labels": np.int32, "seed": np.int64, "guidance_scale": np.float64, "steps": np.int32, "previews": np.int32}
NAMES = {np.int32: "INT32", np.int64: "INT64", np.float64: "FP64"}


@pytest.fixture(scope="module")
def server(wide, pixels, tmp_path_factory):
    """Over an artefact of two programs, one of pixels, and one that is gone."""
    folder = tmp_path_factory.mktemp("triton")
    engines = [folder / name for name in ("wide", "pixels", "gone")]
    for source, place in zip((wide, pixels, GOLDEN), engines, strict=True):
        shutil.copytree(source, place)
    write_repository(engines[:2], folder / "models", TritonOptions(threads=1, backend="onnxruntime", max_wait_ms=30))
    write_repository(engines[2:], folder / "models", TritonOptions(threads=1, previews=False))
    shutil.rmtree(engines[2])
    with serving(folder / "models", folder) as started:
        yield started


@pytest.fixture(scope="module")
def http(server):
    with over_http.InferenceServerClient(server.http, concurrency=12) as client:
        yield client


@pytest.fixture(scope="module")
def grpc(server):
    with over_grpc.InferenceServerClient(server.grpc) as client:
        yield client


@pytest.fixture(scope="module")
def pixel_pipe(pixels):
    return l2c_export.load(pixels, backend="onnxruntime", threads=1)


def said(client, **values):
    """Inputs of one column."""
    inputs = []
    for name, column in values.items():
        array = np.array(column, TYPES[name]).reshape(-1, 1)
        inputs.append(client.InferInput(name, array.shape, NAMES[TYPES[name]]))
        inputs[-1].set_data_from_numpy(array)
    return inputs


def test_the_bits_of_the_pipeline(http, wide_pipe):
    asked = {"class_labels": [3, 7], "seed": [5, 11], "guidance_scale": [1.3, 1]}
    latents = http.infer("wide", said(over_http, **asked)).as_numpy("latents")
    assert np.array_equal(latents, wide_pipe([3, 7], [1.3, 1], seed=[5, 11]).latents)
    latents = http.infer("wide", said(over_http, class_labels=[3, 7], steps=[4, 4])).as_numpy("latents")
    assert np.array_equal(latents, wide_pipe([3, 7], steps=4).latents)


def test_pixels(http, pixel_pipe):
    answer = http.infer("pixels", said(over_http, class_labels=[1, 2], seed=[8, 9]))
    own = pixel_pipe([1, 2], seed=8, output_type="np")
    assert np.array_equal(answer.as_numpy("latents"), own.latents)
    assert np.array_equal(answer.as_numpy("images"), (own.images * 255).round().astype(np.uint8))
    only = [over_http.InferRequestedOutput("images")]
    assert http.infer("pixels", said(over_http, class_labels=[1]), outputs=only).as_numpy("latents") is None


def test_mixed_batches_have_the_same_bits(http, wide_pipe):
    asked = [{"class_labels": [k % 10], "seed": [k], "guidance_scale": [1 + k % 3]} for k in range(12)]
    running = [http.async_infer("wide", said(over_http, **request)) for request in asked]
    for k, call in enumerate(running):
        own = wide_pipe([k % 10], 1 + k % 3, seed=k).latents
        assert np.array_equal(call.get_result().as_numpy("latents"), own), k
    (statistics,) = http.get_inference_statistics("wide")["model_stats"]
    assert max(int(batch["batch_size"]) for batch in statistics["batch_stats"]) > 2


def test_the_open_inference_protocol_needs_no_client(server, wide_pipe):
    tensor = {"name": "class_labels", "datatype": "INT32", "shape": [2, 1], "data": [4, 5]}
    body = json.dumps({"inputs": [tensor]}).encode()
    with urllib.request.urlopen(f"http://{server.http}/v2/models/wide/infer", body) as answer:
        (output,) = json.load(answer)["outputs"]
    assert (output["name"], output["datatype"]) == ("latents", "FP32")
    latents = np.array(output["data"], np.float32).reshape(output["shape"])
    assert np.array_equal(latents, wide_pipe([4, 5]).latents)
    with urllib.request.urlopen(f"http://{server.http}/v2/models/wide") as answer:
        told = {entry["name"]: (entry["datatype"], entry["shape"]) for entry in json.load(answer)["inputs"]}
    assert told == {"class_labels": ("INT32", [-1, 1]), "seed": ("INT64", [-1, 1]), "guidance_scale": ("FP64", [-1, 1]),
                    "steps": ("INT32", [-1, 1])}  # fmt: skip


@pytest.mark.parametrize(("wrong", "says"), [
    ({"class_labels": [99]}, "class label 99: must be a whole number from 0 to 9"),
    ({"class_labels": [1], "seed": [-1]}, "seed=\\[-1\\]: give one whole number >= 0"),
    ({"class_labels": [1], "guidance_scale": [np.nan]}, "guidance_scale=nan: must be a finite number"),
    ({"class_labels": [1], "steps": [5]}, "steps=5: this artefact was compiled for 7 or 4 steps"),
    ({"class_labels": [1, 2], "steps": [7, 4]}, "steps: the images of a request have one steps"),
    ({"class_labels": [1] * 5}, "batch-size must be <= 4"),
])  # fmt: skip
def test_a_wrong_request_is_told_so_in_a_line(http, wrong, says):
    with pytest.raises(InferenceServerException, match=says) as caught:
        http.infer("wide", said(over_http, **wrong))
    assert "Traceback" not in str(caught.value)
    assert "/" not in str(caught.value).partition("infer")[0]


def test_a_wrong_request_does_not_harm_its_neighbours(http, wide_pipe):
    labels = [1, 99, 2, 99, 3, 99, 4]
    running = [http.async_infer("wide", said(over_http, class_labels=[label], seed=[7])) for label in labels]
    for label, call in zip(labels, running, strict=True):
        if label == 99:
            with pytest.raises(InferenceServerException, match="class label 99"):
                call.get_result()
        else:
            assert np.array_equal(call.get_result().as_numpy("latents"), wide_pipe([label], seed=7).latents)


def streamed(grpc, model, **asked):
    """Every response to a request, until the last."""
    answers = queue.Queue()
    grpc.start_stream(lambda result, error: answers.put((result, error)))
    try:
        grpc.async_stream_infer(model, said(over_grpc, **asked))
        results = []
        while True:
            result, error = answers.get(timeout=60)
            if error:
                raise error
            results.append(result)
            if result.get_response().parameters["triton_final_response"].bool_param:
                return results
    finally:
        grpc.stop_stream()


def test_previews_are_streamed_to_those_who_ask(grpc, pixel_pipe):
    results = streamed(grpc, "pixels_previews", class_labels=[1, 2], seed=[4, 5], previews=[1, 1])
    seen = []
    own = pixel_pipe(
        [1, 2], seed=4, output_type="np", callback_on_step_end=lambda _, n, __, values: seen.append(values["latents"].copy())
    )
    assert [result.as_numpy("step")[:, 0].tolist() for result in results] == [[1, 1], [2, 2]]
    assert np.array_equal(results[0].as_numpy("latents"), seen[0])
    assert results[0].as_numpy("images").shape == (2, 4, 4, 3)
    assert np.array_equal(results[-1].as_numpy("latents"), own.latents)
    assert np.array_equal(results[-1].as_numpy("images"), (own.images * 255).round().astype(np.uint8))


def test_a_stream_is_told_what_is_wrong(grpc):
    with pytest.raises(InferenceServerException, match="class label 99"):
        streamed(grpc, "wide_previews", class_labels=[99])
    assert len(streamed(grpc, "wide_previews", class_labels=[1], previews=[0])) == 1


def test_who_leaves_is_let_go(grpc, http, wide_pipe):
    left = queue.Queue()
    for seed in range(12):
        call = grpc.async_infer(
            "wide", said(over_grpc, class_labels=[1, 2, 3, 4], seed=[seed] * 4), lambda result, error: left.put(error)
        )
        call.cancel()
    assert all("CANCELLED" in left.get(timeout=60).status() for _ in range(12))
    latents = http.infer("wide", said(over_http, class_labels=[3], seed=[5])).as_numpy("latents")
    assert np.array_equal(latents, wide_pipe([3], seed=5).latents)


def test_a_model_whose_artefact_is_gone_says_so(server):
    with pytest.raises(urllib.error.HTTPError):
        urllib.request.urlopen(f"http://{server.http}/v2/models/gone/ready")
    told = re.findall(r"failed to load 'gone' version 1: (.*?)\\n", server.log.read_text())
    assert told
    assert re.search(r"gone holds no complete artefact \(manifest\.json is missing\)", told[0])


def test_ready_is_said_for_the_others(server):
    for name in ("wide", "wide_previews", "pixels", "pixels_previews"):
        with urllib.request.urlopen(f"http://{server.http}/v2/models/{name}/ready") as answer:
            assert answer.status == 200
