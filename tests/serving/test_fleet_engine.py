"""Samplers that are lost, full, slow or wrong, seen by the engine of a front; no Ray runs."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import httpx
import msgspec
import numpy as np
import pytest

import l2c_export
from l2c_export.artefact import store
from l2c_export.errors import Draining, Full
from l2c_export.serving.engine import ServingEngine
from l2c_export.serving.job import Drawing, Job
from l2c_export.serving.previews import Preview

pytest.importorskip("fastapi")
pytest.importorskip("ray.serve")

from ray.exceptions import ActorDiedError, NodeDiedError, RayTaskError
from ray.serve.exceptions import DeploymentUnavailableError

from l2c_export.serving.fleet import remote
from l2c_export.serving.fleet.remote import Described, FleetEngine, FleetShelf
from l2c_export.serving.fleet.sampler import SamplerReplica
from l2c_export.serving.http.settings import ServerSettings
from l2c_export.serving.http.shelf import ServedPlace

MADE = Drawing(np.zeros((4, 8, 8), np.float32), None, 0.0, 0.5, 1)
DIED, GONE = ActorDiedError(), NodeDiedError("its node is gone")
WRONG = RayTaskError("draw", "Traceback ..", ValueError("a bug"))


def preview(step: int) -> Preview:
    return Preview(step, 7, MADE.latents, None)


class Asked:
    """An answer on its way: a value, an error, several values of a stream, or None for one that never comes."""

    def __init__(self, outcome: Any) -> None:
        self.outcome, self.cancelled = outcome, False

    def __await__(self):
        return self._waited().__await__()

    async def _waited(self) -> Any:
        if self.outcome is None:
            await asyncio.Event().wait()
        if isinstance(self.outcome, Exception) and not isinstance(self.outcome, l2c_export.L2CError):
            raise self.outcome
        return self.outcome

    async def __aiter__(self):
        for item in self.outcome:
            yield await Asked(item)

    def cancel(self) -> None:
        self.cancelled = True


class Handle:
    """What the deployment answers, one after another."""

    def __init__(self, *outcomes: Any) -> None:
        self.asked = [Asked(outcome) for outcome in outcomes]
        self.jobs: list[Job] = []
        self.draw = self.stream = self

    def options(self, stream: bool) -> Handle:
        assert stream
        return self

    def remote(self, job: Job) -> Asked:
        self.jobs.append(job)
        return self.asked[len(self.jobs) - 1]


@pytest.fixture
def fleet(wide, monkeypatch):
    monkeypatch.setattr(remote, "WAITS", (0.001,) * 4)
    manifest = store.read(wide, verify=False)
    return lambda handle, most=8: FleetEngine("small", handle, Described(manifest, "onnxruntime"), most)


def answered(engine, job=Job({"class_labels": 3}, seed=5), on_preview=None):  # noqa: B008
    """A ticket that has been answered."""

    async def ask():
        ticket = engine.submit(job, on_preview)
        while not ticket.done():
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.01)
        return ticket

    return asyncio.run(ask())


def test_it_is_asked_as_an_engine_is(fleet):
    public = {name for name in dir(ServingEngine) if not name.startswith("_")}
    assert public - set(dir(fleet(Handle()))) == {"replace"}  # which `exchange` does


@pytest.mark.parametrize("lost", [[DIED], [GONE], [DeploymentUnavailableError.__new__(DeploymentUnavailableError)],
                                  [Draining("it ends")], [Full("no room")], [DIED, GONE, DIED]])  # fmt: skip
def test_another_one_is_asked_for_the_same_job(fleet, lost):
    handle = Handle(*lost, MADE)
    engine = fleet(handle)
    assert answered(engine).result() is MADE
    assert len({(job.seed, job.inputs["class_labels"]) for job in handle.jobs}) == 1
    assert (engine.counts["retried"], engine.counts["made"], engine.waiting) == (len(lost), 1, 0)


def test_a_job_that_ends_every_replica_is_given_up(fleet):
    handle = Handle(*[DIED] * 9)
    with pytest.raises(l2c_export.RunError, match="5 replicas that were asked were lost"):
        answered(fleet(handle)).result()
    assert len(handle.jobs) == 5


def test_what_is_wrong_with_a_job_is_no_reason_to_ask_again(fleet):
    for outcome in (l2c_export.RunError("the latents hold NaN"), WRONG):
        handle = Handle(outcome)
        with pytest.raises(l2c_export.RunError, match=r"NaN|the generation failed: RayTaskError"):
            answered(fleet(handle)).result()
        assert len(handle.jobs) == 1


def test_a_wrong_job_is_refused_before_anybody_is_asked(fleet):
    with pytest.raises(l2c_export.UsageError, match="class label 99"):
        answered(fleet(Handle()), Job({"class_labels": 99}))


def test_the_bound_is_kept_and_several_jobs_are_accepted_or_none(fleet):
    async def ask():
        engine = fleet(Handle(*[None] * 4), most=4)
        engine.submit_all([Job({"class_labels": n}) for n in range(3)])
        with pytest.raises(Full, match="3 images are asked for, and at most 4 may be"):
            engine.submit_all([Job({"class_labels": n}) for n in range(2)])
        assert engine.waiting == 3
        engine.submit(Job({"class_labels": 1}))
        assert (engine.counts["accepted"], engine.counts["rejected"]) == (4, 2)

    asyncio.run(ask())


def test_who_leaves_takes_the_job_along(fleet):
    async def ask():
        handle = Handle(None)
        engine = fleet(handle)
        ticket = engine.submit(Job({"class_labels": 1}))
        await asyncio.sleep(0.01)
        ticket.cancel()
        await asyncio.sleep(0.01)
        assert handle.asked[0].cancelled
        assert (engine.waiting, engine.counts["cancelled"]) == (0, 1)

    asyncio.run(ask())


def test_a_step_is_shown_once_whoever_shows_it(fleet):
    seen = []
    handle = Handle([preview(2), preview(4), DIED], [preview(2), preview(4), preview(6), MADE])
    ticket = answered(fleet(handle), Job({"class_labels": 3}, previews=3), lambda shown: seen.append(shown.step))
    assert ticket.result() is MADE
    assert seen == [2, 4, 6]


def test_draining_finishes_what_was_accepted_and_no_more(fleet):
    """A server waits for that in a thread, while its event loop goes on answering."""

    async def ask():
        engine = fleet(Handle(MADE, None))
        first, second = engine.submit_all([Job({"class_labels": 1})] * 2)
        assert not await asyncio.to_thread(engine.close, 0.1)
        assert first.result() is MADE
        assert isinstance(second.exception(), Draining)
        with pytest.raises(Draining):
            engine.submit(Job({"class_labels": 1}))
        await asyncio.sleep(0.01)
        assert (engine.waiting, engine.counts["made"], engine.counts["failed"]) == (0, 1, 1)
        assert await asyncio.to_thread(engine.close, 0.1), "nothing is left"

    asyncio.run(ask())


# where it is used


def serving(folder, handles, settings=ServerSettings(max_queue=9)):  # noqa: B008
    """A shelf over two replicas of a model."""
    place = ServedPlace("model", folder, {"backend": "onnxruntime"})
    return FleetShelf([place], settings, handles, lambda batch: settings.max_queue + 2 * batch)


def test_a_model_can_be_asked_when_its_samplers_are_there(rgb):
    shelf = serving(rgb, lambda: {"model": Handle()})
    assert (shelf.ready, shelf.close(1)) == (False, True)
    shelf.load()
    engine = shelf.models["model"].engine
    assert (shelf.ready, engine.max_queue) == (True, 9 + 2 * store.read(rgb).batch)
    assert shelf.connections > engine.max_queue + 9, "those who wait for an image, and others"
    assert shelf.close(1)


def test_what_deploying_raises_ends_the_loading(rgb):
    def deployed():
        raise l2c_export.RunError("the fleet could not be deployed")

    shelf = serving(rgb, deployed)
    with pytest.raises(l2c_export.RunError, match="could not be deployed"):
        shelf.load()
    assert not shelf.ready


def test_a_front_in_a_cluster_is_the_same_application(rgb):
    """Its metrics say how often another replica was asked."""
    from l2c_export.serving.fleet.app import Door, Front

    pixels = Drawing(MADE.latents, np.zeros((4, 4, 3), np.float32), 0.0, 0.5, 1)
    front = Front({"models": {"model": str(rgb)}, "max_queue": 9}, {"model": Handle(DIED, pixels)})

    async def ask():
        transport = httpx.ASGITransport(app=Door.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            assert (await client.get("/health/ready")).status_code == 200
            answer = await client.post("/v1/images/generations", json={"prompt": "1", "seed": 3})
            assert (answer.status_code, answer.json()["data"][0]["seed"]) == (200, 3)
            assert 'l2c_retried_images_total{model="model"} 1.0' in (await client.get("/metrics")).text

    try:
        asyncio.run(ask())
    finally:
        front._log.__exit__(None, None, None)


# exchange


class Replicas:
    """What every replica answers to a method, and which methods were called."""

    def __init__(self, **answers: Any) -> None:
        self.answers, self.calls = answers, list[tuple[str, ...]]()

    def broadcast(self, method: str, *args: str) -> Replicas:
        self.calls.append((method, *args))
        return self

    def results(self, timeout_s: float) -> list[Any]:
        answers = self.answers.get(self.calls[-1][0], [None, None])
        if isinstance(answers, Exception):
            time.sleep(min(timeout_s, 0.02) if isinstance(answers, TimeoutError) else 0)
            raise answers
        return list(answers)


@pytest.fixture
def exchanging(wide):
    """An engine over replicas that answer so, and what it is to be exchanged for."""
    manifest = store.read(wide)

    def engine_of(**answers):
        replicas = Replicas(**answers)
        return FleetEngine("model", replicas, Described(manifest, "onnxruntime"), 4), replicas

    return engine_of, msgspec.structs.replace(manifest, checksum="sha256:other")


def test_all_replicas_take_what_all_of_them_could_load(exchanging):
    engine_of, other = exchanging
    engine, replicas = engine_of()
    engine.exchange(other)
    assert replicas.calls == [("load_beside", "sha256:other"), ("exchange",)]
    assert engine.pipe == Described(other, "onnxruntime")


@pytest.mark.parametrize(("answers", "error"), [
    ([None, l2c_export.ArtefactError("weights: damaged")], "weights: damaged"),
    (DIED, "a sampler of model did not answer"),
    (TimeoutError("late"), "did not answer: late: see its log"),
])  # fmt: skip
def test_what_one_replica_cannot_load_none_takes(exchanging, monkeypatch, answers, error):
    monkeypatch.setattr(remote, "LOADING", 0.0)
    engine_of, other = exchanging
    engine, replicas = engine_of(load_beside=answers, forget=GONE)
    with pytest.raises(l2c_export.L2CError, match=error):
        engine.exchange(other)
    assert [method for method, *_ in replicas.calls] == ["load_beside", "forget"]
    assert engine.pipe.manifest.checksum != "sha256:other"


@pytest.mark.parametrize("method", ["load_beside", "exchange"])
def test_a_server_that_ends_asks_no_replica_for_anything_more(exchanging, method):
    """Ray ends behind it: a call that waits for Ray then would end the process."""
    engine_of, other = exchanging
    engine, replicas = engine_of(**{method: TimeoutError("it takes long")})
    threading.Timer(0.2, engine.close).start()
    with pytest.raises(Draining, match="its artefacts stay as they are"):
        engine.exchange(other)
    asked = list(replicas.calls)
    assert asked[-1][0] == method
    with pytest.raises(Draining):
        engine.exchange(other)
    assert replicas.calls == asked


def test_the_end_of_a_shelf_waits_for_its_reload(pixels):
    shelf = serving(pixels, lambda: {"model": Replicas(load_beside=TimeoutError("it takes long"))})
    shelf.load()
    outcomes = []

    def reload():
        try:
            shelf.reload()
        except Draining as error:
            outcomes.append(error)

    thread = threading.Thread(target=reload)
    thread.start()
    time.sleep(0.1)
    assert shelf.close(1.0)
    assert len(outcomes) == 1
    thread.join()
    with pytest.raises(l2c_export.UsageError, match="another reload"):
        shelf.reload()


def test_a_replica_that_cannot_take_it_is_started_again(wide, monkeypatch):
    replica = SamplerReplica(str(wide), {"backend": "onnxruntime", "threads": 1}, None, 0.0, 4)
    checksum = store.read(wide).checksum
    assert "was changed while it was read" in str(asyncio.run(replica.load_beside("sha256:other")))
    assert asyncio.run(replica.exchange()) is None, "nothing was loaded"
    assert asyncio.run(replica.load_beside(checksum)) is None
    assert asyncio.run(replica.exchange()) is None
    replica.check_health()
    assert asyncio.run(replica.load_beside(checksum)) is None
    asyncio.run(replica.forget())
    assert asyncio.run(replica.load_beside(checksum)) is None
    monkeypatch.setattr(replica._engine, "replace", lambda _: 1 / 0)
    assert "ZeroDivisionError" in str(asyncio.run(replica.exchange()))
    with pytest.raises(l2c_export.RunError, match="started again"):
        replica.check_health()
    replica._engine.close()
