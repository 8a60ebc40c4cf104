"""Processes of one machine among all of this computer: found by a mark in their environment, ended for certain."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Collection
from contextlib import suppress

import psutil

MARK = "AIBRIX_TEST_MACHINE"
PATIENCE_S = 20.0


async def end(processes: Collection[psutil.Process], by: signal.Signals) -> None:
    """Signal them and wait until they are gone; one that only waits for its parent to notice is gone."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(by)
    try:
        async with asyncio.timeout(PATIENCE_S):
            while any(map(runs, processes)):
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise RuntimeError(f"still there after {by.name}: {list(filter(runs, processes))}") from None


def runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def mark(process: psutil.Process) -> str | None:
    try:
        return process.environ().get(MARK)
    except (psutil.Error, OSError):  # ended meanwhile, or not ours
        return None


def command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def name(process: psutil.Process) -> str:
    try:
        return process.name()
    except psutil.Error:
        return ""
