"""Which targets a batch may name: those that are built in, and those of the runners that reported lately."""

from __future__ import annotations

import pytest

from brix.metadata.v1 import runners_pb2
from services.kit.errors import InvalidArgument
from services.metadata.service.requests import BUILT_IN_TARGETS
from tests.metadata.conftest import eventually, serving_metadata

LONGEST_MESSAGE = 16 * 1024


def report(metadata, id="runner", leaving=False, **fields):
    info = runners_pb2.RunnerInfo(id=id, version="1", **fields)
    return metadata.runners.ReportRunner(runners_pb2.ReportRunnerRequest(runner=info, leaving=leaving))


async def live(metadata):
    return [info.id for info in (await metadata.runners.ListRunners(runners_pb2.ListRunnersRequest())).runners]


async def known(metadata, target="Nope"):
    """The targets that the message for an unknown one lists."""
    with pytest.raises(InvalidArgument) as raised:
        await metadata.batch(input_file_id="f", aibrix_json=f'{{"runtime": {{"target": "{target}"}}}}')
    assert raised.value.context["param"] == "aibrix.runtime.target"
    assert raised.value.context["code"] == "invalid_value"
    before, _, listed = raised.value.message.partition(". Known targets are: ")
    assert before == f"Invalid value for 'aibrix.runtime.target': '{target}'"
    return sorted(listed.removesuffix(".").split(", "))


async def accepts(metadata, target):
    return await metadata.batch(input_file_id="f", aibrix_json=f'{{"runtime": {{"target": "{target}"}}}}')


def quoted(*names):
    return sorted(f"'{name}'" for name in (*BUILT_IN_TARGETS, *names))


async def test_built_in_ones_need_no_runner(metadata):
    assert await known(metadata) == quoted()


async def test_targets_of_all_runners_are_known(metadata):
    await report(metadata, "a", targets=["External", "Shelf"])
    await report(metadata, "b", targets=["External", "Cellar"])
    assert await known(metadata) == quoted("Shelf", "Cellar")
    await accepts(metadata, "Shelf")
    await accepts(metadata, "Cellar")
    # Targets are names: another case is another name.
    assert await known(metadata, "shelf") == quoted("Shelf", "Cellar")


async def test_the_last_report_of_a_runner_counts(metadata):
    await report(metadata, targets=["Shelf"])
    await report(metadata, targets=["Cellar"])
    assert await known(metadata, "Shelf") == quoted("Cellar")


@pytest.mark.parametrize("leaving", [True, False], ids=["said goodbye", "fell silent"])
async def test_one_that_went_away_is_remembered_for_a_while(metadata, leaving):
    await report(metadata, targets=["Shelf"])
    if leaving:
        await report(metadata, targets=["Shelf"], leaving=True)
    assert await live(metadata) == ([] if leaving else ["runner"])
    memory = metadata.settings.metadata.runner_memory_s
    metadata.clock.advance(memory - 0.001)
    await accepts(metadata, "Shelf")
    metadata.clock.advance(0.001)
    assert await known(metadata, "Shelf") == quoted()
    assert await live(metadata) == []


async def test_a_runner_that_is_replaced_leaves_no_gap(metadata):
    memory = metadata.settings.metadata.runner_memory_s
    await report(metadata, "old", targets=["Shelf"])
    metadata.clock.advance(memory / 2)
    await report(metadata, "old", targets=["Shelf"], leaving=True)
    metadata.clock.advance(memory / 2)
    await accepts(metadata, "Shelf")
    await report(metadata, "new", targets=["Shelf"])
    metadata.clock.advance(memory / 2)  # by now the old one is forgotten
    await accepts(metadata, "Shelf")
    assert await live(metadata) == ["new"]


async def test_one_that_comes_back_is_live_again(metadata):
    await report(metadata, targets=["Shelf"])
    await report(metadata, targets=["Shelf"], leaving=True)
    await report(metadata, targets=["Shelf"])
    assert await live(metadata) == ["runner"]


async def test_the_operator_says_how_long(make_settings, database_url):
    settings = make_settings(metadata={"database_url": database_url, "runner_memory_s": 5, "janitor_interval_s": 0.05})
    async with serving_metadata(settings) as metadata:
        await report(metadata, targets=["Shelf"])
        metadata.clock.advance(4.9)
        await accepts(metadata, "Shelf")
        metadata.clock.advance(0.1)
        assert await known(metadata, "Shelf") == quoted()


async def test_a_batch_that_was_accepted_stays(metadata):
    await report(metadata, targets=["Shelf"])
    waiting = await metadata.running(1, aibrix_json='{"runtime": {"target": "Shelf"}}')
    metadata.clock.advance(metadata.settings.metadata.runner_memory_s)
    assert await metadata.acquire() is None
    lease = await metadata.acquire(targets=["Shelf"])
    assert lease is not None
    assert lease.batch.id == waiting.id


HOSTILE = [
    "",
    " ",
    "'",
    "A\nB",
    "\x1b[31m",
    "\u202e",
    "n" * 100_000,
    "'. Known targets are: 'x",
    *map(str, range(9000)),
]


async def test_strange_names_do_no_harm(metadata):
    """A report is internal, but what stands in it is shown to users."""
    await report(metadata, "strange", targets=HOSTILE)
    await report(metadata, targets=["Shelf"])
    await accepts(metadata, "Shelf")
    with pytest.raises(InvalidArgument) as raised:
        await metadata.batch(input_file_id="f", aibrix_json='{"runtime": {"target": "Nope"}}')
    assert len(raised.value.message) < LONGEST_MESSAGE
    assert raised.value.message.isprintable()
    assert set(await live(metadata)) == {"runner", "strange"}


@pytest.mark.parametrize(
    "fields",
    [{"id": ""}, {"id": "a\0"}, {"id": "r" * 256}, {"targets": ["a\0"]}, {"targets": ["a"] * 10_001}],
    ids=["no id", "nul in the id", "long id", "nul", "too many"],
)
async def test_reports_that_are_refused_change_nothing(metadata, fields):
    await report(metadata, targets=["Shelf"])
    with pytest.raises(InvalidArgument):
        await report(metadata, **{"targets": ["Cellar"]} | fields)
    assert await known(metadata) == quoted("Shelf")


async def test_forgotten_runners_are_deleted(metadata):
    for id in ("a", "b"):
        await report(metadata, id, targets=["Shelf"])
    metadata.clock.advance(metadata.settings.metadata.runner_memory_s)

    async def gone():
        # Were the row still there, the clock set back would show it again.
        metadata.clock.advance(-1)
        try:
            return not await live(metadata)
        finally:
            metadata.clock.advance(1)

    await eventually(gone)


async def test_which_targets_another_runner_has_too(metadata):
    async def shared(id, targets, **fields):
        return list((await report(metadata, id, targets=targets, **fields)).shared_targets)

    assert await shared("one", ["Shelf", "Cellar"]) == []
    assert await shared("two", ["Shelf"]) == ["Shelf"]
    assert await shared("one", ["Shelf", "Cellar"]) == ["Shelf"]
    # Whoever leaves takes nothing over any more, and learns who does.
    assert await shared("one", ["Shelf", "Cellar"], leaving=True) == ["Shelf"]
    assert await shared("two", ["Shelf"]) == []
    # One that was not heard of for a while may be dead.
    await shared("three", ["Shelf"])
    metadata.clock.advance(12)
    assert await shared("two", ["Shelf"]) == []
