"""What a Triton model of ours runs, in a process of Triton's Python backend.

The server puts requests together; what it hands over is one batch of the engine.  A batch whose clients have all left ends
before its next step; a wrong request is answered with its error, and its neighbours are drawn.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import CancelledError, wait
from typing import Any

import numpy as np

from ..errors import BackendError, L2CError, UsageError
from ..runtime.pipeline import load
from .engine import ServingEngine, ticket_of
from .job import Job
from .ticket import Ticket
from .triton_arrays import reads_texts
from .triton_reply import Reply
from .triton_request import jobs_of

LOOK = 0.02  # seconds between two looks at who has left


class TritonModel:
    """The contract of Triton's Python backend; `utils` is its module triton_python_backend_utils."""

    utils: Any

    def initialize(self, args: dict[str, str]) -> None:
        """Load the artefact and make it warm: only then the server says that it is ready."""
        config = json.loads(args["model_config"])
        chosen = {name: value["string_value"] for name, value in config["parameters"].items()}
        self.decoupled = bool(config["model_transaction_policy"]["decoupled"])
        try:
            self.pipe = load(
                chosen["artefact"],
                chosen["backend"] or None,
                chosen["device"] or None,
                int(chosen["threads"]) if chosen["threads"] else None,
                verify=chosen["verify"] == "1",
            )
            if self.pipe.manifest.text and not reads_texts(self.utils):
                raise BackendError(f"this server reads no texts with numpy {np.__version__}: install 'numpy<2' for it")
            self.engine = ServingEngine(self.pipe, max_wait=0, max_queue=self.pipe.manifest.batch)
        except L2CError as error:
            raise self.utils.TritonModelException(str(error)) from None
        self.utils.Logger.log_info(f"{config['name']}: {self.pipe!r}")

    def finalize(self) -> None:
        self.engine.close()
        self.pipe.close()

    def execute(self, requests: Sequence[Any]) -> list[Any] | None:
        """Answer requests that came together; those whose previews are streamed are answered by their senders."""
        answers = [Reply(self.utils, request, self.decoupled) for request in requests]
        told = [(answer, job) for answer in answers for job in self.jobs(answer)]
        try:
            hearers = [answer.preview if self.decoupled else None for answer, _ in told]
            tickets = self.engine.submit_all([job for _, job in told], hearers) if told else []
        except L2CError as error:
            for answer in {answer for answer, _ in told}:
                answer.fail(error)
        else:
            for (answer, _), ticket in zip(told, tickets, strict=True):
                answer.tickets.append(ticket)
            self.wait(tickets, answers)
        return None if self.decoupled else [answer.response for answer in answers]

    def jobs(self, answer: Reply) -> list[Job]:
        """What a request asks for: nothing where it is wrong, and has been told so, or where nobody waits for it."""
        try:
            if answer.left():
                raise CancelledError
            jobs = jobs_of(answer.request, self.pipe.manifest)
            for job in jobs:
                ticket_of(self.pipe, job)  # refuses what the engine would
            if any(job.previews < 0 for job in jobs):
                raise UsageError(f"previews={jobs[0].previews}: must be at least 0")
        except Exception as error:  # of one, not of its neighbours
            answer.fail(error)
            return []
        answer.images = len(jobs)
        return jobs

    def wait(self, tickets: Sequence[Ticket], answers: Sequence[Reply]) -> None:
        """Until everybody has an answer, or has left."""
        while pending := [ticket for ticket in tickets if not ticket.done()]:
            wait(pending, LOOK)
            for answer in answers:
                if answer.tickets and answer.left():
                    for ticket in answer.tickets:
                        ticket.cancel()
        for answer in answers:
            if answer.tickets:
                answer.finish()
