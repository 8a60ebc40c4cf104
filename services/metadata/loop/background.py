"""The loops of this role: validators, the sweeper, the cleaner, the janitor, the gauges."""

from __future__ import annotations

from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

from services.kit.settings import Settings
from services.metadata.loop.rounds import as_long_as_there_is, every
from services.metadata.service.batches import BatchService
from services.metadata.service.bells import Bell, Bells
from services.metadata.service.files import FileService
from services.metadata.service.inspection import InspectionService
from services.metadata.service.janitor import JanitorService
from services.metadata.service.runners import RunnerRegistryService
from services.metadata.service.uploads import UploadService

# Seconds between two looks at the database for what other replicas left to do.
POLL_S = 1.0
GAUGES_S = 5.0
# The search for orphans lists the whole store: as often as this part of the age they must have.
ORPHAN_ROUNDS = 24


@dataclass(frozen=True, kw_only=True)
class Services:
    files: FileService
    uploads: UploadService
    batches: BatchService
    inspection: InspectionService
    janitor: JanitorService
    runners: RunnerRegistryService


def loops(services: Services, bells: Bells, settings: Settings) -> list[Coroutine[Any, Any, None]]:
    metadata = settings.metadata
    never = Bell()
    validators = [
        as_long_as_there_is(services.inspection.inspect_next, bells.to_validate, POLL_S)
        for _ in range(metadata.validator_count)
    ]
    return [
        *validators,
        every(POLL_S, bells.to_close, services.batches.close_unvalidated),
        every(
            metadata.janitor_interval_s,
            bells.to_clean,
            services.janitor.clean_batches,
            services.uploads.delete_useless_parts,
        ),
        every(
            metadata.janitor_interval_s,
            never,
            services.files.expire_files,
            services.files.delete_objects_of_deleted,
            services.uploads.expire_uploads,
            services.janitor.forget_old_keys,
            services.runners.forget_silent,
        ),
        every(
            max(metadata.janitor_interval_s, metadata.orphan_age_s / ORPHAN_ROUNDS),
            never,
            services.janitor.delete_orphans,
        ),
        every(GAUGES_S, never, services.janitor.count),
    ]
