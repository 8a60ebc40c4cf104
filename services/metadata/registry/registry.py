"""The registry of templates and profiles: read once before the server serves, then again whenever its source changes."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from itertools import zip_longest
from pathlib import Path
from typing import Generic

import structlog

from services.kit.clock import now
from services.kit.lifecycle import background
from services.kit.settings import Settings
from services.kit.spec.catalog import Catalog, Profiles, Templates
from services.kit.spec.documents import Problem, Read, T, read_profiles, read_templates
from services.kit.spec.profile import Profile
from services.kit.spec.template import Template
from services.metadata import metrics
from services.metadata.loop.rounds import attempt
from services.metadata.registry.configmap import PREFIX, ConfigMapSource
from services.metadata.registry.console import ConsoleSource
from services.metadata.registry.files import FileSource
from services.metadata.registry.models import served_models
from services.metadata.registry.shelf import Held, Shelf, joined, renewed, unreadable
from services.metadata.registry.source import Document, Snapshot, Source, SourceError

CONSOLE = "console"
# Of one reload; the metric has the number of all.
MOST_LOGGED = 100

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Known(Generic[T]):
    """A document as it was read last."""

    digest: bytes
    held: Held[T]


class Collection(Generic[T]):
    """The templates, or the profiles, of one source."""

    def __init__(self, kind: str, source: Source, read: Callable[[str, str], Read[T]]) -> None:
        self.kind = kind
        self.source = source
        self.read = read
        self.shelf: Shelf[T] = Shelf()
        self.fingerprint: object | None = None
        self.known: Mapping[str, Known[T]] = {}
        self.logged: frozenset[str] = frozenset()
        self.warned: set[tuple[str, str]] = set()
        self.is_read = False
        """Whether the source has answered."""

    async def reload(self) -> None:
        """Make a new shelf if anything changed. An outage of the source is logged and changes nothing."""
        try:
            snapshot = await self.source.fetch(self.fingerprint)
        except SourceError as error:
            self.fingerprint = None
            self._report(str(error))
            return
        self.is_read = True
        if snapshot is None:
            self._report()
            return
        known, shelf = await asyncio.to_thread(self._read, snapshot, self.known)
        self.fingerprint, self.known = snapshot.fingerprint, known
        if shelf is not None:
            self.shelf = shelf
            self._loaded()
        self._report(snapshot.problem)

    def _read(
        self, snapshot: Snapshot, before: Mapping[str, Known[T]]
    ) -> tuple[Mapping[str, Known[T]], Shelf[T] | None]:
        """The documents anew, and together; None if they are what they were. Only those that changed are parsed."""
        after: dict[str, Known[T]] = {}
        for document in snapshot.documents:
            digest, earlier = _digest(document), before.get(document.origin)
            if earlier is not None and earlier.digest == digest:
                after[document.origin] = earlier
                continue
            read = self._read_one(document)
            after[document.origin] = Known(digest, renewed(earlier.held if earlier else Held(), read))
        if list(after.items()) == list(before.items()):
            return before, None
        return after, joined({origin: known.held for origin, known in after.items()})

    def _read_one(self, document: Document) -> Read[T]:
        if document.text is None:
            return unreadable(document.origin, document.problem)
        return self.read(document.text, document.origin)

    def _report(self, of_source: str = "") -> None:
        """Log what is new. What was logged is so again only after it was gone."""
        problems = list(self.shelf.problems)
        if of_source:
            problems.append(Problem(self.source.name, None, None, "", of_source))
        lines = {str(problem): problem for problem in problems}
        fresh = [problem for line, problem in lines.items() if line not in self.logged]
        if self.logged and not lines:
            log.info("registry has no problems any more", kind=self.kind)
        self.logged = frozenset(lines)
        metrics.REGISTRY_PROBLEMS.labels(self.kind).set(len(lines))
        metrics.REGISTRY_ENTRIES.labels(self.kind).set(len(self.shelf.items))
        for problem in fresh[:MOST_LOGGED]:
            tell = log.error if problem.line is None else log.warning
            entry = {"name": problem.name, "version": problem.version}
            tell(
                "registry problem", kind=self.kind, problem=str(problem), **{key: of for key, of in entry.items() if of}
            )
        if len(fresh) > MOST_LOGGED:
            log.error("more registry problems", kind=self.kind, count=len(fresh) - MOST_LOGGED)

    def _loaded(self) -> None:
        items = self.shelf.items
        log.info("registry loaded", kind=self.kind, source=self.source.name, count=len(items))
        for (name, version), item in items.items():
            fields = item.spec.ignored_fields()
            if fields and (name, version) not in self.warned:
                self.warned.add((name, version))
                log.warning("accepted, not honoured", kind=self.kind, name=name, version=version, fields=fields)


class Registry:
    def __init__(self, settings: Settings) -> None:
        """Error: ValueError, if a source setting is malformed."""
        self.templates: Collection[Template] | None = None
        self.profiles: Collection[Profile] | None = None
        # Whoever has a key may make templates in the console.
        self.by_operator = settings.templates.source != CONSOLE
        if source := settings.templates.source:
            console = settings.console_addr
            self.templates = Collection("templates", source_of(source, "templates.yaml", console), read_templates)
        if source := settings.profiles.source:
            self.profiles = Collection("profiles", source_of(source, "profiles.yaml", None), read_profiles)
        self._catalog = Catalog(
            Templates(is_read=False) if self.templates else None, Profiles(is_read=False) if self.profiles else None
        )
        self._seen: dict[str, datetime] = {}
        """When each model was seen first."""
        self._models: tuple[str, ...] = ()
        self._renewed: list[tuple[Shelf[Template] | Shelf[Profile], bool]] = []
        """What the catalog is made of."""
        self._reloading = asyncio.Lock()

    @property
    def catalog(self) -> Catalog:
        """What holds now. It does not change: a reload makes a new one."""
        return self._catalog

    def models(self) -> list[tuple[str, datetime]]:
        """What the latest active templates serve, and when this process saw it first; by name."""
        return [(model, self._seen[model]) for model in self._models]

    async def check(self) -> None:
        """Look at the settings. Error: ValueError, if a source can never work."""
        for collection in self._collections():
            await collection.source.check()

    async def follow(self) -> None:
        """Let sources that can tell of changes do so, and take them over at once. Until cancelled."""
        changed = asyncio.Event()
        async with background(*(collection.source.follow(changed.set) for collection in self._collections())):
            while True:
                await changed.wait()
                changed.clear()
                await attempt(self.reload)

    async def reload(self) -> None:
        """Take over what changed; cheap if nothing did. An outage of a source is no error."""
        async with self._reloading:
            for collection in self._collections():
                await collection.reload()
            found = [(collection.shelf, collection.is_read) for collection in self._collections()]
            if not _is_same(found, self._renewed):
                await asyncio.to_thread(self._renew)
                self._renewed = found

    async def close(self) -> None:
        for collection in self._collections():
            await collection.source.close()

    def _collections(self) -> list[Collection[Template] | Collection[Profile]]:
        return [collection for collection in (self.templates, self.profiles) if collection is not None]

    def _renew(self) -> None:
        templates = None
        if self.templates:
            templates = Templates.of(
                self.templates.shelf.items.values(), by_operator=self.by_operator, is_read=self.templates.is_read
            )
        models = sorted({model for one in templates.active() for model in served_models(one.spec)}) if templates else []
        for model in models:
            self._seen.setdefault(model, now())
        self._models = tuple(models)
        self._catalog = Catalog(templates, _profiles(self.profiles) if self.profiles else None)


@asynccontextmanager
async def opened(settings: Settings) -> AsyncIterator[Registry]:
    """A registry that is loaded, and follows its sources. Error: ValueError, as of Registry and of its check."""
    registry = Registry(settings)
    try:
        await registry.check()
        async with background(registry.follow()):
            await registry.reload()
            yield registry
    finally:
        await registry.close()


def source_of(setting: str, usual_key: str, console: str | None) -> Source:
    """The source that a setting names; `console` is the console's address, if it may be one. Error: ValueError."""
    if setting.startswith(PREFIX):
        return ConfigMapSource.from_setting(setting, usual_key)
    if setting == CONSOLE:
        if console is None:
            raise ValueError("the console has templates only: AIBRIX_PROFILES__SOURCE is a file or a ConfigMap")
        return ConsoleSource(console)
    return FileSource(Path(setting))


def _is_same(found: Sequence[tuple[object, bool]], before: Sequence[tuple[object, bool]]) -> bool:
    pairs = zip_longest(found, before, fillvalue=(None, False))
    return all(one is other and is_read == was_read for (one, is_read), (other, was_read) in pairs)


def _profiles(collection: Collection[Profile]) -> Profiles:
    shelf = collection.shelf
    by_name = {name: profile for (name, _), profile in sorted(shelf.items.items())}
    return Profiles(by_name, shelf.default, collection.is_read)


def _digest(document: Document) -> bytes:
    text = document.problem if document.text is None else document.text
    kind = b"0" if document.text is None else b"1"
    return hashlib.sha256(kind + text.encode()).digest()
