"""API keys that people made in the console: it is asked by their hash, and its answer is believed for a moment."""

from __future__ import annotations

import asyncio
import re
from collections import OrderedDict
from dataclasses import dataclass

from brix.console.v1 import access_pb2, access_pb2_grpc
from gateway.auth import KEY_LENGTH, PREFIX, ApiKey, digest_of
from gateway.roles import Role
from services.kit import clock
from services.kit.errors import NotFound, Unavailable

# All keys that the console makes; nothing else is worth a question.
FORM = re.compile(rf"{PREFIX}[A-Za-z0-9]{{{KEY_LENGTH}}}")
BELIEVED_S = 10.0  # so soon a revoked key is refused
MOST = 10_000
TIMEOUT_S = 3.0


@dataclass(frozen=True)
class Answer:
    until: float
    key: asyncio.Future[ApiKey | None]


class ConsoleKeys:
    def __init__(self, console: access_pb2_grpc.AccessServiceAsyncStub) -> None:
        self._console = console
        self._answers: OrderedDict[str, Answer] = OrderedDict()

    async def find(self, key: str) -> ApiKey | None:
        """Calls with the same key wait for one answer. Error: Unavailable (the console does not answer)."""
        if not FORM.fullmatch(key):
            return None
        digest = digest_of(key)
        known = self._answers.get(digest)
        if known is not None and clock.monotonic() < known.until:
            return await asyncio.shield(known.key)
        return await self._ask(digest)

    async def _ask(self, digest: str) -> ApiKey | None:
        # The time counts from the question: what is revoked after it is refused that much later at most.
        asked = Answer(clock.monotonic() + BELIEVED_S, asyncio.get_running_loop().create_future())
        self._remember(digest, asked)
        try:
            found = await self._answer(digest)
        except BaseException as error:
            # Nothing was learned: whoever waits hears of it, and the next one asks again.
            if self._answers.get(digest) is asked:
                del self._answers[digest]
            asked.key.set_exception(Unavailable("The console does not answer."))
            asked.key.exception()
            raise error
        asked.key.set_result(found)
        return found

    async def _answer(self, digest: str) -> ApiKey | None:
        try:
            principal = await self._console.Authenticate(
                access_pb2.AuthenticateRequest(key_hash=digest), timeout=TIMEOUT_S
            )
        except NotFound:
            return None
        return ApiKey(digest, principal.project_id, principal.name, Role.of(principal.role))

    def _remember(self, digest: str, answer: Answer) -> None:
        self._answers[digest] = answer
        self._answers.move_to_end(digest)
        while len(self._answers) > MOST:
            self._answers.popitem(last=False)
