"""Every error that slotd shows to a user, named by its condition.

One class per row of the error table: ``code`` is the stable name that clients
match on, ``status`` the HTTP status, ``type`` the OpenAI error type. The
message says what happened and what to do about it; ``details`` carries the
machine-readable part. Errors that only ever travel inside slotd (a broken
upstream connection, a closed mailbox) live beside the code that raises them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

__all__ = [
    "ActorGone",
    "AnswerTooLarge",
    "AuthForbidden",
    "AuthRequired",
    "CapabilityMismatch",
    "ConfigInvalid",
    "EngineError",
    "EngineLost",
    "GpuExclusive",
    "IllegalTransition",
    "InvalidJson",
    "JournalUnavailable",
    "ModelMissing",
    "NoRouteFound",
    "OutOfMemory",
    "OutputSanityFailed",
    "RegistryBroken",
    "RequestCancelled",
    "RequestInvalid",
    "RequestNotFound",
    "RequestTooLarge",
    "RouteStale",
    "ServerBusy",
    "ServerStopping",
    "SlotCrashLooping",
    "SlotLoadFailed",
    "SlotLoading",
    "SlotNotFound",
    "SlotPinned",
    "SlotQueueFull",
    "SlotQueueTimeout",
    "SlotStopped",
    "SlotUnkillable",
    "SlotdError",
    "SpawnFailed",
    "StreamStalled",
    "UnknownUpstream",
    "UpstreamTimeout",
    "UpstreamUnavailable",
]


class SlotdError(Exception):
    """Base of the typed errors.

    ``retry_after_s`` is set when trying again later may help; the gateway
    sends it as ``Retry-After`` (whole seconds, rounded up). ``terminal``: of a
    load, that trying again without a change cannot help.
    """

    code: ClassVar[str] = "internal.error"
    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    terminal = False

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        details: Mapping[str, Any] | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.details: dict[str, Any] = dict(details or {})
        self.retry_after_s = retry_after_s

    def again(self) -> Self:
        """The same error, for another who is told it.

        One that is raised at many would lead by its traceback to all of them, and
        to what they hold, for as long as anybody keeps it.
        """
        other = type(self).__new__(type(self), *self.args)
        other.__dict__.update(self.__dict__)
        return other


# --- request -----------------------------------------------------------------


class RequestInvalid(SlotdError):
    """The request is well-formed JSON but cannot be served as it stands."""

    code = "request.invalid"
    status = 400
    type = "invalid_request_error"


class InvalidJson(RequestInvalid):
    code = "request.invalid_json"


class ModelMissing(RequestInvalid):
    """No model was named and no default exists for the endpoint."""

    code = "request.model_missing"


class RequestUnprocessable(RequestInvalid):
    """Something is missing in the request, or means nothing to the engine that would serve it."""

    code = "request.unprocessable"
    status = 422


class RequestTooLarge(RequestInvalid):
    code = "request.too_large"
    status = 413


class RequestNotFound(SlotdError):
    """No live request has this id (management surface)."""

    code = "request.not_found"
    status = 404
    type = "invalid_request_error"


class ArtifactNotFound(SlotdError):
    """Nothing is kept under this id, or no longer."""

    code = "artifact.not_found"
    status = 404
    type = "invalid_request_error"


class JournalUnavailable(SlotdError):
    """What is kept of the past cannot be read now (management surface)."""

    code = "journal.unavailable"
    status = 503


class RequestCancelled(SlotdError):
    """An operator cancelled the request through the management surface."""

    code = "request.cancelled"
    status = 499


class AuthRequired(SlotdError):
    code = "auth.required"
    status = 401
    type = "authentication_error"


class AuthForbidden(SlotdError):
    code = "auth.forbidden"
    status = 403
    type = "permission_error"


# --- dispatch ----------------------------------------------------------------


class NoRouteFound(SlotdError):
    """All three tiers missed. ``details``: ``close`` names and ``tiers`` tried."""

    code = "dispatch.no_route"
    status = 404
    type = "invalid_request_error"


class UnknownUpstream(SlotdError):
    """A binding names a target that does not exist."""

    code = "dispatch.unknown_upstream"
    status = 400
    type = "invalid_request_error"


class CapabilityMismatch(SlotdError):
    """The model's slot is of a type that does not serve this endpoint."""

    code = "dispatch.capability_mismatch"
    status = 409
    type = "invalid_request_error"


class NoCapableSlot(SlotdError):
    """No configured slot can do it. ``details``: ``type``, ``labels``, and the ``slots`` of the type."""

    code = "dispatch.no_capable_slot"
    status = 404
    type = "invalid_request_error"


class RegistryBroken(SlotdError):
    """The dispatcher cannot read its own table: an error, never a miss."""

    code = "dispatch.registry_broken"
    status = 503


class RouteStale(SlotdError):
    """The slot was swapped to another model after the route was found.

    The exchange resolves again; a client sees this only if that keeps happening.
    """

    code = "dispatch.route_stale"
    status = 503


class UpstreamUnavailable(SlotdError):
    code = "dispatch.upstream_unavailable"
    status = 502


class UpstreamTimeout(SlotdError):
    code = "dispatch.upstream_timeout"
    status = 504


# --- slot --------------------------------------------------------------------


class SlotNotFound(SlotdError):
    code = "slot.not_found"
    status = 404
    type = "invalid_request_error"


class IllegalTransition(SlotdError):
    """The slot cannot do this from the state it is in."""

    code = "slot.illegal_transition"
    status = 409
    type = "invalid_request_error"


class SlotPinned(SlotdError):
    code = "slot.pinned"
    status = 409
    type = "invalid_request_error"


class SlotQueueFull(SlotdError):
    code = "slot.queue_full"
    status = 429
    type = "rate_limit_error"


class SlotQueueTimeout(SlotdError):
    code = "slot.queue_timeout"
    status = 504


class SlotLoading(SlotdError):
    """The slot is not ready and the caller asked not to wait."""

    code = "slot.loading"
    status = 503


class SlotStopped(SlotdError):
    """An operator unloaded the slot while the request waited for it."""

    code = "slot.stopped"
    status = 503


class SlotCrashLooping(SlotdError):
    code = "slot.crash_looping"
    status = 503


class SlotUnkillable(SlotdError):
    """The engine does not end, not even by SIGKILL. ``details`` name its processes as far as known."""

    code = "slot.unkillable"
    status = 500


class SlotLoadFailed(SlotdError):
    """The load ended in a failure that trying again will not mend.

    ``details``: ``reason``, ``exit`` (status, if a process ended) and ``log``
    (the engine's last lines).
    """

    code = "slot.load_failed"
    status = 502


class SpawnFailed(SlotdError):
    """The engine's program cannot be started as it is configured."""

    code = "slot.spawn_failed"
    status = 500
    terminal = True


class SpawnStarved(SpawnFailed):
    """The machine lacks what a start takes, for the moment: processes, files, ports, the model's file."""

    terminal = False


class OutputSanityFailed(SlotdError):
    code = "slot.output_sanity_failed"
    status = 500


class OutOfMemory(SlotdError):
    code = "slot.out_of_memory"
    status = 507


class EngineLost(SlotdError):
    """The engine went away while it served this request.

    ``details``: ``reason``, ``exit`` and ``log`` where they are known.
    """

    code = "slot.engine_lost"
    status = 502


class EngineError(SlotdError):
    """The engine's answer is nothing that its client could be given as it is. ``details``: ``status``."""

    code = "engine.error"
    status = 502


class AnswerTooLarge(SlotdError):
    """A non-streaming answer that slotd puts together has outgrown its bound."""

    code = "slot.answer_too_large"
    status = 502


class StreamStalled(SlotdError):
    """The answer stopped coming for longer than the configured limit."""

    code = "slot.stalled"
    status = 504


class GpuExclusive(SlotdError):
    code = "gpu.exclusive"
    status = 503


# --- slotd itself ------------------------------------------------------------


class ActorGone(SlotdError):
    """The actor that should have answered has crashed or stopped.

    Raised to every asker whose question was open. The supervisor restarts the
    actor, so asking again a moment later is right.
    """

    code = "internal.actor_gone"
    status = 503

    def __init__(self, actor: str, message: str | None = None) -> None:
        super().__init__(
            message or f"slotd's {actor!r} actor stopped before it could answer; try again in a moment",
            details={"actor": actor},
            retry_after_s=1.0,
        )
        self.actor = actor


class ServerBusy(SlotdError):
    """More requests are under way than ``server.max_connections`` allows."""

    code = "server.busy"
    status = 503


class ServerStopping(SlotdError):
    code = "server.stopping"
    status = 503


class ConfigInvalid(SlotdError):
    """The configuration cannot be used. ``problems`` lists every fault found."""

    code = "config.invalid"
    status = 400
    type = "invalid_request_error"

    def __init__(self, source: str, problems: list[str]) -> None:
        lines = "\n".join(f"  {p}" for p in problems)
        count = "1 error" if len(problems) == 1 else f"{len(problems)} errors"
        super().__init__(f"{source}: {count}\n{lines}", details={"problems": problems})
        self.problems = problems
