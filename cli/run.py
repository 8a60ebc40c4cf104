"""`aibrix-batch run`: one batch file against one engine, through an embedded server, from anywhere back to where it was."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import structlog
import uvloop
from openai.types import Batch
from rich.console import Console

from cli import exits
from cli.embedded import back, embedded, front, logging_to, unless_signalled
from cli.exits import Refused
from cli.order import Order, WorkFolder, absolute, open_folder, resume_command
from cli.partial import Collected, collect, joined, write
from cli.prepare import endpoint_of, with_model
from cli.progress import follow, showing
from services.__main__ import StartFailed, reason
from services.kit.lifecycle import remembering_signals
from services.kit.objects import open_store
from services.kit.settings import Settings

WINDOW = "30d"
# Ctrl-C waits this long for answers; a second one does not.
DRAIN_S = 600.0
CHUNK = 1024 * 1024
LOG_FILE = "server.log"

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Ending:
    """How it went, once the server has stopped. `over`: there is nothing to go on with."""

    code: int
    said: str
    over: bool = True


def run(order: Order, base: Settings, *, resume: bool) -> int:
    """The exit code. Errors: Refused, Failed."""
    try:
        with remembering_signals():
            return _to_the_end(absolute(order), base, resume=resume)
    except (KeyboardInterrupt, asyncio.CancelledError):  # a second Ctrl-C
        _tell(f"stopped. To go on: {resume_command()}")
        return exits.INTERRUPTED


def _to_the_end(order: Order, base: Settings, *, resume: bool) -> int:
    folder = open_folder(order, resume=resume)
    ending = _whole(order, folder, base)
    if ending.over:
        folder.delete()
    _tell(ending.said)
    return ending.code


def _whole(order: Order, folder: WorkFolder, base: Settings) -> Ending:
    settings = roomy(embedded(base, folder.data_dir, drain_s=DRAIN_S), order.input)
    with logging_to(folder.path / LOG_FILE, settings):
        try:
            return uvloop.run(_run(order, folder, settings))
        except Exception as error:  # noqa: BLE001 - whatever it is: say it, and how to go on
            return _broken(folder, exits.innermost(error))


def _broken(folder: WorkFolder, error: BaseException) -> Ending:
    if isinstance(error, Refused):
        return Ending(exits.REFUSED, f"error: {error}")
    if not isinstance(error, StartFailed):
        log.error("run failed", exc_info=error)
    said = f"error: {reason(error)}\ndetails: {folder.path / LOG_FILE}\nto go on: {resume_command()}"
    return Ending(exits.FAILED, said, over=False)


def roomy(settings: Settings, source: Path) -> Settings:
    """Without the limits of a server that many share: they are about others' room, and here there are no others."""
    size = source.stat().st_size + CHUNK
    gateway, metadata = settings.gateway, settings.metadata
    files = {name: max(size, getattr(gateway, name)) for name in ("max_file_bytes", "max_batch_file_bytes")}
    lines = {name: max(size, getattr(metadata, name)) for name in ("max_lines", "max_line_bytes")}
    return settings.model_copy(
        update={"gateway": gateway.model_copy(update=files), "metadata": metadata.model_copy(update=lines)}
    )


async def _run(order: Order, folder: WorkFolder, settings: Settings) -> Ending:
    async with back(settings) as settings:
        async with front(settings) as (client, runner):
            batch = await unless_signalled(_execute(order, folder, client, runner))
            if batch is None:
                _tell("finishing what is in flight; Ctrl-C again stops at once")
        # The runner has drained here: what was in flight is committed.
        return await _stopped(order, folder, settings) if batch is None else _ended(order, batch)


async def _execute(order: Order, folder: WorkFolder, client: openai.AsyncOpenAI, runner: str) -> Batch:
    """From the input file to the two result files."""
    with showing(Console(stderr=True)) as show:
        try:
            batch_id = await _submitted(order, folder, client)
        except openai.APIStatusError as error:
            if error.status_code >= 500:
                raise
            raise Refused(_message(error)) from error
        batch = await follow(client, runner, batch_id, show)
    if batch.status == "completed":
        await write(_content(client, batch.output_file_id), order.output, folder.path)
        order.errors.unlink(missing_ok=True)  # of an earlier run
        if batch.error_file_id:
            await write(_content(client, batch.error_file_id), order.errors, folder.path)
    return batch


async def _submitted(order: Order, folder: WorkFolder, client: openai.AsyncOpenAI) -> str:
    """The batch, from as far as an earlier run got."""
    if folder.state.batch_id is not None:
        return folder.state.batch_id
    endpoint = order.endpoint or endpoint_of(order.input)
    if folder.state.file_id is None:
        source = order.input
        if order.model is not None:
            source = folder.path / "input.jsonl"
            await asyncio.to_thread(with_model, order.input, source, order.model)
        with source.open("rb") as data:
            uploaded = await client.files.create(file=(order.input.name, data), purpose="batch")
        folder.save(file_id=uploaded.id)
        if order.model is not None:
            source.unlink()
    assert folder.state.file_id is not None
    batch = await client.batches.create(
        input_file_id=folder.state.file_id,
        endpoint=endpoint,  # type: ignore[arg-type]  # the SDK knows OpenAI's own paths only
        completion_window=WINDOW,  # type: ignore[arg-type]
        extra_headers={"Idempotency-Key": folder.state.key},
        extra_body={"aibrix": _block(order)},
    )
    folder.save(batch_id=batch.id)
    return batch.id


def _block(order: Order) -> dict[str, Any]:
    options = {"base_url": order.base_url}
    if order.api_key_env is not None:
        options["api_key_env"] = order.api_key_env
    client = {} if order.max_concurrency is None else {"max_concurrency": order.max_concurrency}
    return {"runtime": {"target": "External", "options": options}, "client": client}


async def _content(client: openai.AsyncOpenAI, file_id: str | None) -> AsyncIterator[bytes]:
    """A result file in chunks; nothing if there is none."""
    if file_id is None:
        return
    async with client.files.with_streaming_response.content(file_id) as response:
        async for chunk in response.iter_bytes(CHUNK):
            yield chunk


def _ended(order: Order, batch: Batch) -> Ending:
    counts = batch.request_counts
    assert counts is not None
    if batch.status == "completed":
        return _completed(order, counts.completed, counts.failed)
    found = [
        f"line {one.line}: {one.message}" if one.line else str(one.message)
        for one in (batch.errors.data or [] if batch.errors else [])
    ]
    said = "\n  ".join([f"error: the batch ended as {batch.status}:", *found])
    return Ending(exits.FAILED if batch.in_progress_at else exits.REFUSED, said)


def _completed(order: Order, completed: int, failed: int) -> Ending:
    said = f"{completed}/{completed + failed} completed, {failed} failed: {order.output}"
    if not failed:
        return Ending(exits.OK, said)
    return Ending(exits.FAILED, f"{said}\nwhat failed stands in {order.errors}")


async def _stopped(order: Order, folder: WorkFolder, settings: Settings) -> Ending:
    """Ctrl-C: write what is done, and say how to go on."""
    batch_id = folder.state.batch_id
    found = batch_id and await collect(settings.metadata_addr, batch_id, settings.metadata.lease_ttl_s + 1)
    done = found.batch.completed_count + found.batch.failed_count if found else 0
    if not found or not done:
        said = f"stopped before anything was done. To go on: {resume_command()}"
        return Ending(exits.INTERRUPTED, said, over=False)
    await _export(order, folder, settings, found)
    if found.is_completed:  # the last answers came while it drained
        return _completed(order, found.batch.completed_count, found.batch.failed_count)
    said = f"stopped: {done} of {found.batch.total_count} are done and written to {order.output}"
    return Ending(exits.INTERRUPTED, f"{said}\nto go on: {resume_command()}", over=False)


async def _export(order: Order, folder: WorkFolder, settings: Settings, found: Collected) -> None:
    store = open_store(settings)
    await write(joined(store, found.outputs), order.output, folder.path)
    order.errors.unlink(missing_ok=True)
    if found.errors:
        await write(joined(store, found.errors), order.errors, folder.path)


def _message(error: openai.APIStatusError) -> str:
    body = error.body
    return str(body["message"]) if isinstance(body, dict) and "message" in body else str(error)


def _tell(text: str) -> None:
    print(text, file=sys.stderr)
