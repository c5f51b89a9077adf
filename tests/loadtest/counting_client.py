"""A tritonclient that says how many of its requests are under way."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any


class CountingClient:
    """A real client that knows how many of its requests are under way.

    Args:
        client: The real one.
        first_held: Hold the first answer back until another has come.
    """

    def __init__(self, client: Any, *, first_held: bool = False) -> None:
        self._client = client
        self._lock = threading.Lock()
        self._first_held = first_held
        self._another_came = threading.Event()
        self.sent = 0
        self.now = 0
        self.most = 0
        self.order: list[int] = []
        self.sent_at_first_answer = 0

    def async_infer(self, *arguments: Any, callback: Callable[..., None], **named: Any) -> None:
        with self._lock:
            number = self.sent
            self.sent += 1
            self.now += 1
            self.most = max(self.most, self.now)

        def ended(result: Any, error: Any) -> None:
            with self._lock:
                self.now -= 1
                self.sent_at_first_answer = self.sent_at_first_answer or self.sent
                self.order.append(number)
            if number:
                self._another_came.set()
            callback(result, error)

        def ended_later(result: Any, error: Any) -> None:
            self._another_came.wait(60)
            ended(result, error)

        def answered(result: Any, error: Any) -> None:
            if number == 0 and self._first_held:
                # In a thread of its own: the others' answers come in this one.
                threading.Thread(target=ended_later, args=[result, error]).start()
            else:
                ended(result, error)

        self._client.async_infer(*arguments, callback=answered, **named)
