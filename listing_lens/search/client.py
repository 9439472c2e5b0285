"""Connecting to Elasticsearch: a client that can wait for the cluster, and errors in plain words."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial, wraps
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from elastic_transport import ConnectionError as NoConnection
from elastic_transport import ConnectionTimeout, Transport, TransportApiResponse, TransportError
from elasticsearch import ApiError, Elasticsearch, OrjsonSerializer

from listing_lens.errors import LensError
from listing_lens.settings import Settings, missing

logger = logging.getLogger(__name__)

# Answers of a cluster that is overloaded, restarting or behind a proxy that does not reach it: worth asking again.
BUSY = frozenset({429, 502, 503, 504})

_REQUEST_TIMEOUT_S = 60
# At least as many as the client's own default, and one for each writer.
_LEAST_CONNECTIONS = 10
_SHORTEST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 15.0
# The first failures of a request are logged, and then every so manieth.
_LOGGED_AT_FIRST, _LOGGED_EVERY = 3, 10


@dataclass(frozen=True)
class Clock:
    """Time and chance, which tests replace: seconds that only grow, sleeping, and a number between two others."""

    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    uniform: Callable[[float, float], float] = random.uniform


REAL_CLOCK = Clock()


def attempts(patience_s: float, clock: Clock) -> Iterator[float]:
    """When to attempt something: at once, then after pauses with full-jitter exponential backoff, the last one at the end.

    Yields:
        The seconds of patience that are left, at least once; zero or less in the last attempt.
    """
    end = clock.now() + patience_s
    longest = _SHORTEST_PAUSE_S
    while (left := end - clock.now()) > 0:
        yield left
        clock.sleep(min(clock.uniform(0, longest), max(0.0, end - clock.now())))
        longest = min(2 * longest, _LONGEST_PAUSE_S)
    yield left


class PatientTransport(Transport):
    """Repeats a request that met no connection, a timeout or a busy cluster, for `patience_s` seconds in all.

    With no patience, a few repetitions follow each other at once, as in the base class.

    A request whose answer was lost may have been carried out, so its repetition may meet its own effect: an index that
    "already exists", a version that is no longer the expected one. Callers must make requests that bear repeating, or
    look at what is there when they are refused.
    """

    def __init__(self, *args: Any, patience_s: float = 0.0, clock: Clock = REAL_CLOCK, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._patience_s, self._clock = patience_s, clock

    def perform_request(self, method: str, target: str, **options: Any) -> TransportApiResponse:
        if self._patience_s <= 0:
            return super().perform_request(method, target, **options)
        # The pool offers another node after a failure; once all of them have failed, it offers one of those.
        once = partial(super().perform_request, method, target, **options | {"max_retries": 0})
        for attempt, left in enumerate(attempts(self._patience_s, self._clock)):
            failure: TransportError | None = None
            try:
                response = once()
            except (NoConnection, ConnectionTimeout) as err:
                failure = err
            else:
                if response.meta.status not in BUSY:
                    return response
            if left > 0 and (attempt < _LOGGED_AT_FIRST or attempt % _LOGGED_EVERY == 0):
                logger.warning(
                    "waiting up to %.0f s for Elasticsearch: %s %s got %s",
                    left,
                    method,
                    target.partition("?")[0],
                    failure or f"the answer {response.meta.status}",
                )
        if failure:
            raise failure
        return response


def connect_client(settings: Settings, *, patience_s: float, clock: Clock = REAL_CLOCK) -> Elasticsearch:
    """A client of the cluster that the settings name. Nothing is asked of the cluster yet.

    Args:
        patience_s: how long a request is repeated while the cluster cannot be reached or is busy, in seconds; 0 for
            someone who waits at a terminal.

    Raises:
        LensError: no address is set.
    """
    return Elasticsearch(
        require_url(settings),
        api_key=settings.elasticsearch_api_key.get_secret_value() or None,
        serializer=OrjsonSerializer(),
        request_timeout=_REQUEST_TIMEOUT_S,
        connections_per_node=max(_LEAST_CONNECTIONS, settings.index_writers),
        max_retries=3,
        retry_on_status=tuple(BUSY),
        # It is only ever called.
        transport_class=partial(PatientTransport, patience_s=patience_s, clock=clock),  # type: ignore[arg-type]
    )


def require_url(settings: Settings) -> str:
    """The cluster's address. Raises LensError if none is set."""
    return settings.elasticsearch_url or missing("elasticsearch_url", "set it, or start the local stack with `lens up`")


class HasClient(Protocol):
    """What `said_plainly` needs of an object."""

    @property
    def client(self) -> Elasticsearch: ...


P = ParamSpec("P")
T = TypeVar("T")
S = TypeVar("S", bound=HasClient)


def said_plainly(method: Callable[Concatenate[S, P], T]) -> Callable[Concatenate[S, P], T]:
    """Turn the client's errors, in a method of an object that has a `client`, into LensErrors."""

    @wraps(method)
    def plainly(self: S, *args: P.args, **kwargs: P.kwargs) -> T:
        node = next(iter(self.client.transport.node_pool.all()))
        try:
            return method(self, *args, **kwargs)
        except NoConnection as err:
            raise LensError(
                f"Elasticsearch at {node.base_url} cannot be reached: start it with `lens up`, or check LENS_ELASTICSEARCH_URL"
            ) from err
        except ApiError as err:
            raise LensError(
                f"Elasticsearch at {node.base_url} answered {err.status_code} to {method.__name__}: {err.message}; "
                "check LENS_ELASTICSEARCH_API_KEY and the index"
            ) from err
        except TransportError as err:
            raise LensError(f"Elasticsearch at {node.base_url} failed to {method.__name__}: {err.message}") from err

    return plainly
