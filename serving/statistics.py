"""The server's own counters: which versions answered, and how long each model computed.

Triton counts per model and version, since its start, for everyone. So what one request cost is the difference
between two readings: exact while nobody else asks, an average over what ran in between otherwise.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

_NS_PER_MS: Final = 1e6

# Triton counts a request a moment after it has answered it, under load a few milliseconds.
_SETTLE_ATTEMPTS: Final = 5
_SETTLE_S: Final = 0.005


@dataclass(frozen=True)
class Counter:
    """What one version of one model has done since it was loaded.

    Attributes:
        requests: Requests that were computed.
        infer_ns: Nanoseconds that they spent in the model's computation, summed. Each request of a batch counts the
            whole batch's.
        around_ns: Nanoseconds that they spent in the model's queue and on their tensors' way in and out, summed.
    """

    requests: int
    infer_ns: int
    around_ns: int = 0


Reading = Mapping[tuple[str, str], Counter]
"""By model and version."""


def read(triton: Any, timeout_s: float) -> Reading:
    """Read the counters of all loaded models.

    Args:
        triton: A `tritonclient.grpc.InferenceServerClient`.
        timeout_s: Deadline in seconds.

    Raises:
        InferenceServerException: As tritonclient does; the caller knows the address, and says so in its own error.
    """
    answer = triton.get_inference_statistics(client_timeout=timeout_s)
    return {(model.name, model.version): _counter(model.inference_stats) for model in answer.model_stats}


def _counter(stats: Any) -> Counter:
    return Counter(
        requests=stats.compute_infer.count,
        infer_ns=stats.compute_infer.ns,
        around_ns=stats.queue.ns + stats.compute_input.ns + stats.compute_output.ns,
    )


def read_after(triton: Any, before: Reading, models: Iterable[str], timeout_s: float) -> Reading:
    """Read the counters once these models have counted since `before`, or after some 20 ms in any case.

    Args:
        triton: As for `read`.
        before: A reading from before the request.
        models: The models that the request went through.
        timeout_s: Deadline of each reading in seconds.

    Raises:
        InferenceServerException: As `read`.
    """
    expected = set(models)
    after = read(triton, timeout_s)
    for _ in range(_SETTLE_ATTEMPTS - 1):
        if expected <= stage_ms(before, after, expected).keys():
            break
        time.sleep(_SETTLE_S)
        after = read(triton, timeout_s)
    return after


def stage_ms(before: Reading, after: Reading, models: Iterable[str]) -> dict[str, float]:
    """Mean compute time in milliseconds of a request between two readings, by model.

    Models that nothing was asked of in between are left out, and so are those whose counters went back (a restart).
    """
    return _mean_ms(before, after, models, lambda counter: counter.infer_ns)


def around_ms(before: Reading, after: Reading, models: Iterable[str]) -> dict[str, float]:
    """Mean milliseconds of a request in a model's queue and on its tensors' way in and out; otherwise as `stage_ms`."""
    return _mean_ms(before, after, models, lambda counter: counter.around_ns)


def _mean_ms(
    before: Reading, after: Reading, models: Iterable[str], ns_of: Callable[[Counter], int]
) -> dict[str, float]:
    times = {}
    for model in models:
        spent = [
            (now.requests - then.requests, ns_of(now) - ns_of(then))
            for key, now in after.items()
            if key[0] == model and (then := before.get(key, Counter(0, 0))).requests < now.requests
        ]
        if spent and all(ns >= 0 for _, ns in spent):
            times[model] = sum(ns for _, ns in spent) / sum(count for count, _ in spent) / _NS_PER_MS
    return times


def versions(before: Reading, after: Reading, models: Iterable[str]) -> dict[str, str]:
    """The version of each model that answered between two readings.

    Where none counted (Triton counts after it answers, so the last one may be late), the newest loaded one, which is
    what a request without a version gets.
    """
    answered = {}
    for model in models:
        loaded = {version: counter for (name, version), counter in after.items() if name == model}
        if not loaded:
            continue
        busy = [v for v, now in loaded.items() if now.requests > before.get((model, v), Counter(0, 0)).requests]
        answered[model] = max(busy or loaded, key=lambda version: int(version) if version.isdecimal() else -1)
    return answered
