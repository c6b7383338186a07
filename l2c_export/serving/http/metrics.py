"""What Prometheus may ask: names begin with l2c_."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, disable_created_metrics, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from .shelf import Shelf

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
METHODS = ("GET", "HEAD", "POST", "OPTIONS")
OUTCOMES = ("made", "failed", "cancelled", "rejected")


class Metrics:
    """Of one server."""

    def __init__(self, shelf: Shelf) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = CollectorRegistry()
        own: Any = {"registry": self._registry}
        self._requests = Counter("l2c_http_requests", "Requests by what was answered.", ["route", "method", "status"], **own)
        self._seconds = Histogram("l2c_http_request_seconds", "From a request to the end of its answer.", ["route"],
                                  buckets=SECONDS, **own)  # fmt: skip
        self._queued = Histogram("l2c_queued_seconds", "From a request to the start of its batch.", ["model"],
                                 buckets=SECONDS, **own)  # fmt: skip
        self._run = Histogram("l2c_run_seconds", "Of a request's batch.", ["model"], buckets=SECONDS, **own)
        self._reloads = Counter("l2c_reloads", "Reloads of all models.", ["outcome"], **own)
        self._registry.register(EngineFigures(shelf))
        ProcessCollector(namespace="l2c", registry=self._registry)

    def answered(self, route: str, method: str, status: int, seconds: float, notes: Mapping[str, Any]) -> None:
        """Count a request.  A status of 0 is that of a client who went away before there was one."""
        self._requests.labels(route, method if method in METHODS else "other", status).inc()
        self._seconds.labels(route).observe(seconds)
        if "run_seconds" in notes:
            self._queued.labels(notes["model"]).observe(notes["queued_seconds"])
            self._run.labels(notes["model"]).observe(notes["run_seconds"])

    def reloaded(self, succeeded: bool) -> None:
        self._reloads.labels("done" if succeeded else "failed").inc()

    def text(self) -> bytes:
        return generate_latest(self._registry)


class EngineFigures(Collector):
    """What the engines count themselves, read when somebody asks."""

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf

    def collect(self) -> Iterator[Metric]:
        images = CounterMetricFamily("l2c_images", "Images by what became of them.", labels=["model", "outcome"])
        batches = CounterMetricFamily("l2c_batches", "Batches that were made.", labels=["model"])
        padding = CounterMetricFamily("l2c_padding_images", "Images that filled a batch up, for nobody.", labels=["model"])
        queue = GaugeMetricFamily("l2c_queue_images", "Images that wait for their batch.", labels=["model"])
        retried = CounterMetricFamily("l2c_retried_images", "Times another replica was asked for an image.", labels=["model"])
        running = GaugeMetricFamily("l2c_running_images", "Images of the batch that runs.", labels=["model"])
        for name, model in self._shelf.models.items():
            engine, counts = model.engine, model.engine.counts
            for outcome in OUTCOMES:
                images.add_metric([name, outcome], counts[outcome])
            batches.add_metric([name], counts["batches"])
            padding.add_metric([name], counts["padding"])
            if "retried" in counts:  # of a fleet
                retried.add_metric([name], counts["retried"])
            queue.add_metric([name], engine.waiting)
            running.add_metric([name], engine.running)
        yield from (images, batches, padding, retried, queue, running)
        yield GaugeMetricFamily("l2c_models_loaded", "Models that can be asked.", value=len(self._shelf.models))
