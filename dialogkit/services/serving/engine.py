"""The one thread that generates: requests wait in a queue, and join the batch of their model at any token."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from dialogkit.config.generate import GenerateConfig
from dialogkit.dialog import Message
from dialogkit.errors import DialogKitError, OutOfMemoryError
from dialogkit.services.inference_memory import replies_at_once, rows_fit
from dialogkit.services.serving.protocol import ApiError
from dialogkit.system.compute_lock import alone

if TYPE_CHECKING:
    from dialogkit.inference.batching import ReplyBatch, RunningReply
    from dialogkit.inference.growing_text import GrowingText
    from dialogkit.services.runs.loading import LoadedModel

logger = logging.getLogger("dialogkit.serving")


class Begun(NamedTuple):
    """A prompt was read."""

    prompt_tokens: int
    reused: int
    """Those of them that had been read before."""
    left_out: int
    """Oldest messages that were left out to fit the context."""


class Ended(NamedTuple):
    """A reply is complete."""

    text: str
    tokens: int
    reason: str
    """stop or length."""


Event = Begun | str | Ended | ApiError
"""What happens to a job, in this order; a text is a new piece of its reply, which only streams get."""

PREFIX_BYTES = 256 * 2**20
"""Memory for what ended replies have read, of all models together."""


@dataclass(eq=False)
class Job:
    """One reply that was asked for."""

    model: str
    messages: Sequence[Message]
    config: GenerateConfig
    deliver: Callable[[Event], None]
    """Called in the thread to which events are handed over."""
    stops: Sequence[str] = ()
    streams: bool = False
    leaves_out: bool = False
    """Whether the oldest messages are left out if the dialog does not fit the context."""
    deadline: float = float("inf")
    """Time of the monotonic clock at which it fails."""
    is_cancelled: bool = False
    """Set when nobody waits for it any more."""


def deliver_all(events: "Sequence[tuple[Job, Event]]") -> None:
    """Deliver events to their jobs."""
    for job, event in events:
        job.deliver(event)


@dataclass
class _Lane:
    """A model and the jobs that it replies to."""

    loaded: "LoadedModel"
    batch: "ReplyBatch"
    jobs: "dict[RunningReply, tuple[Job, GrowingText]]" = field(default_factory=dict)


class Engine:
    """Generates replies of several models in one thread, of each model many at once.

    Attributes:
        hand_over: receives in that thread what happened in a step, of all jobs together: to wake up another thread
            for each of their tokens takes longer than some models do.
    """

    def __init__(self, models: Mapping[str, "LoadedModel"], *, at_once: int, queue: int) -> None:
        """Start the thread.

        Args:
            models: by the names that jobs give.
            at_once: most replies of a model that are generated together.
            queue: most jobs that wait.
        """
        self.hand_over: Callable[[Sequence[tuple[Job, Event]]], None] = deliver_all
        self._events: list[tuple[Job, Event]] = []
        self._at_once, self._queue = at_once, queue
        self._prefix_bytes = PREFIX_BYTES // len(models)
        self._lanes = {name: _Lane(loaded, self._new_batch(loaded)) for name, loaded in models.items()}
        self._waiting: deque[Job] = deque()
        self._changed = threading.Condition()
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, daemon=True, name="dialogkit-engine")
        self._thread.start()

    @property
    def running(self) -> int:
        """Replies that are being generated."""
        return sum(len(lane.jobs) for lane in self._lanes.values())

    @property
    def waiting(self) -> int:
        """Jobs that have not begun."""
        return len(self._waiting)

    def submit(self, jobs: Sequence[Job]) -> None:
        """Queue jobs, all or none. Raises: ApiError if too many wait, or the engine is closed."""
        with self._changed:
            if self._is_closed:
                raise ApiError(503, "the server is shutting down", code="shutting_down")
            if len(self._waiting) + len(jobs) > self._queue:
                text = f"{len(self._waiting)} replies are waiting already; try again later"
                raise ApiError(429, text, code="queue_full", headers={"Retry-After": "1"})
            self._waiting.extend(jobs)
            self._changed.notify()

    def close(self) -> None:
        """Take no more jobs; end those that are left, and the thread."""
        with self._changed:
            self._is_closed = True
            for job in (
                *self._waiting,
                *(job for lane in self._lanes.values() for job, _ in [*lane.jobs.values()]),
            ):
                job.is_cancelled = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._waiting or self.running or self._is_closed):
                    self._changed.wait()
                if self._is_closed and not (self._waiting or self.running):
                    return
            with alone():
                self._admit()
                for lane in self._lanes.values():
                    self._advance(lane)
                    self._flush()

    def _new_batch(self, loaded: "LoadedModel") -> "ReplyBatch":
        from dialogkit.inference.batching import ReplyBatch

        return ReplyBatch(
            loaded.model,
            loaded.tokenizer,
            context=loaded.context,
            device=loaded.device,
            prefix_bytes=self._prefix_bytes,
        )

    def _note(self, job: Job, event: Event) -> None:
        self._events.append((job, event))

    def _flush(self) -> None:
        """Hand over what has happened."""
        if self._events:
            events, self._events = self._events, []
            self.hand_over(events)

    def _admit(self) -> None:
        """Begin the jobs that have room, in their order; a job that has none holds back those behind it."""
        full: set[str] = set()
        with self._changed:
            jobs = list(self._waiting)
        taken = []
        for job in jobs:
            lane = self._lanes[job.model]
            if job.is_cancelled or self._is_late(job):
                taken.append(job)
            elif job.model not in full:
                if self._begin(lane, job):
                    taken.append(job)
                    self._flush()  # not after the next prompt, which may be long
                else:
                    full.add(job.model)
        with self._changed:
            for job in taken:
                self._waiting.remove(job)

    def _begin(self, lane: _Lane, job: Job) -> bool:
        """Read the prompt of a job; return False if it has to wait for others to end."""
        from dialogkit.inference.growing_text import GrowingText

        if len(lane.jobs) >= (self._at_once if lane.batch.is_mergeable else 1):
            return False
        try:
            ids, left_out = _fitting(lane.loaded, job)
            if not self._has_memory(lane, ids, job.config):
                return False
            reply = lane.batch.join(ids, job.config)
        except ApiError as error:
            self._note(job, error)
        except OutOfMemoryError as error:
            self._note(job, ApiError(503, error.message, code="out_of_memory"))
        except DialogKitError as error:  # such as that of a chat template
            self._note(job, ApiError(400, error.message, code="invalid_dialog", param="messages"))
        except Exception:
            logger.exception("a prompt could not be read")
            self._note(job, _internal())
            self._fail(lane)
        else:
            text = GrowingText(lane.loaded.tokenizer, job.stops)
            lane.jobs[reply] = job, text
            self._note(job, Begun(len(ids), reply.reused, left_out))
            self._deliver(lane, reply)
        return True

    def _has_memory(self, lane: _Lane, ids: Sequence[int], config: GenerateConfig) -> bool:
        """Return whether a reply fits into memory beside those of its model; what ended ones have read makes room.

        Raises: OutOfMemoryError if it does not although there are no others.
        """
        length = len(ids) + lane.batch.limit(len(ids), config)
        lengths = [row.prompt_tokens + row.limit for row in lane.jobs]
        while True:
            try:
                if lane.jobs:
                    fits = rows_fit(lane.loaded, lengths, lane.batch.length, len(ids), length)
                else:
                    fits = replies_at_once(lane.loaded, [len(ids)], config, 1) > 0
            except OutOfMemoryError:
                if not self._forget():
                    raise
            else:
                if fits or not self._forget():
                    return fits

    def _forget(self) -> bool:
        """Free the memory of what ended replies have read; return whether there was any."""
        held = [lane.batch.forget() for lane in self._lanes.values()]
        return any(held)

    def _advance(self, lane: _Lane) -> None:
        """Generate a token of each reply of a model."""
        for reply, (job, _) in [*lane.jobs.items()]:
            if job.is_cancelled or self._is_late(job):
                reply.stop_reason = "interruption"
                del lane.jobs[reply]
        try:
            lane.batch.step()
        except Exception:
            logger.exception("replies could not be continued")
            self._fail(lane)
        for reply in [*lane.jobs]:
            self._deliver(lane, reply)

    def _deliver(self, lane: _Lane, reply: "RunningReply") -> None:
        """Deliver what is new of a reply, and its end."""
        job, text = lane.jobs[reply]
        piece = ""
        if reply.stop_reason is not None:
            piece = text.end(reply.text_ids)
        elif job.streams or job.stops:
            piece = text.add(reply.ids)
        if text.stopped and reply.stop_reason is None:
            reply.stop_reason = "interruption"
        if piece and job.streams:
            self._note(job, piece)
        if reply.stop_reason is not None:
            is_stop = text.stopped or reply.stop_reason == "end of turn"
            self._note(job, Ended(text.text, len(reply.ids), "stop" if is_stop else "length"))
            del lane.jobs[reply]

    def _is_late(self, job: Job) -> bool:
        """Return whether a job is over its time limit; if so, deliver the error."""
        if time.monotonic() < job.deadline:
            return False
        self._note(job, ApiError(504, "the reply took longer than the server allows", code="timeout"))
        return True

    def _fail(self, lane: _Lane) -> None:
        """End all replies of a model, whose cache may hold half a step."""
        for job, _ in lane.jobs.values():
            self._note(job, _internal())
        lane.jobs.clear()
        lane.batch = self._new_batch(lane.loaded)


def _internal() -> ApiError:
    return ApiError(500, "the reply failed; the server's log says why", code="internal_error")


def _fitting(loaded: "LoadedModel", job: Job) -> tuple[list[int], int]:
    """Return the ids of a prompt that fits the context, and how many messages were left out for it.

    Raises: ApiError if it does not fit.
    """
    from dialogkit.inference.replies import fitting, prompt_room

    seen, longest = list(job.messages), loaded.context - 1
    if job.leaves_out:
        longest = prompt_room(job.config, loaded.context)
        seen = fitting(loaded.tokenizer, seen, longest)
    ids = loaded.tokenizer.encode_prompt(seen)
    if len(ids) > longest:
        raise ApiError(
            400,
            f"the messages have {len(ids):,} tokens, and the model takes {longest:,} of its context of "
            f"{loaded.context:,}",
            code="context_length_exceeded",
            param="messages",
        )
    return ids, len(job.messages) - len(seen)
