"""Telling the processes of a server apart."""

from __future__ import annotations

from pathlib import Path

from serving.process import command_of


def is_triton(pid: int) -> bool:
    """Whether a process is Triton itself; False of one that has ended."""
    return Path("".join(command_of(pid)[:1])).name == "tritonserver"
