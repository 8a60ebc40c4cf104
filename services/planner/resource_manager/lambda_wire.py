"""The parts of Lambda Cloud's answers that we rely on, and its errors. Tokens that instances carry are not read at all."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from ipaddress import ip_address
from typing import Annotated, TypeVar

import msgspec

from services.planner.resource_manager.base import ProviderError

LONGEST_DETAIL = 200
# No shorter piece of a secret is worth anything, and none this long is anything else.
SECRET_PIECE = 12
_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")
_CODE = re.compile(r"[a-z0-9/_-]{1,100}")

T = TypeVar("T")
Text = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]


class _Specs(msgspec.Struct):
    gpus: Annotated[int, msgspec.Meta(ge=0, le=1024)]


class InstanceType(msgspec.Struct):
    name: Text
    gpu_description: str
    price_cents_per_hour: Annotated[int, msgspec.Meta(gt=0)]
    """Of the whole machine. One that costs nothing would win every comparison: it is taken for a mistake."""
    specs: _Specs


class _Region(msgspec.Struct):
    name: Text


class Listing(msgspec.Struct):
    """An instance type, and where it can be had now."""

    instance_type: InstanceType
    regions_with_capacity_available: list[_Region]


class _Tag(msgspec.Struct):
    key: str
    value: str


class Instance(msgspec.Struct):
    """`ip` and `name` are optional. There is no time of creation."""

    id: Text
    status: str
    name: str | None = None
    ip: str | None = None
    tags: list[_Tag] | None = None

    def tag(self, key: str) -> str:
        return next((tag.value for tag in self.tags or () if tag.key == key), "")

    def address(self) -> str:
        """Empty until it has one."""
        try:
            return str(ip_address(self.ip or ""))
        except ValueError:
            return ""


class _Types(msgspec.Struct):
    data: dict[str, msgspec.Raw]


class _Instances(msgspec.Struct):
    data: list[Instance]


class _Single(msgspec.Struct):
    data: Instance


class _LaunchedIds(msgspec.Struct):
    instance_ids: Annotated[list[Text], msgspec.Meta(min_length=1)]


class _Launched(msgspec.Struct):
    data: _LaunchedIds


class _TerminatedInstances(msgspec.Struct):
    terminated_instances: list[Instance]


class _Terminated(msgspec.Struct):
    data: _TerminatedInstances


class _Reason(msgspec.Struct):
    code: str
    message: str = ""


class _Failure(msgspec.Struct):
    error: _Reason


decode_types = msgspec.json.Decoder(_Types).decode
decode_listing = msgspec.json.Decoder(Listing).decode
decode_instances = msgspec.json.Decoder(_Instances).decode
decode_instance = msgspec.json.Decoder(_Single).decode
decode_launched = msgspec.json.Decoder(_Launched).decode
decode_terminated = msgspec.json.Decoder(_Terminated).decode
_decode_failure = msgspec.json.Decoder(_Failure).decode


def unavailable(message: str, *, ambiguous: bool = False) -> ProviderError:
    return ProviderError("ProviderUnavailable", message, retryable=True, ambiguous=ambiguous)


def read(decode: Callable[[bytes], T], body: bytes, *, ambiguous: bool = False) -> T:
    try:
        return decode(body)
    except (ValueError, RecursionError) as error:
        raise unavailable("Lambda Cloud's answer is not what its API describes", ambiguous=ambiguous) from error


def is_id(text: str) -> bool:
    """Ids go into paths."""
    return _ID.fullmatch(text) is not None


# code -> (ours, whether another try, here or elsewhere, may work)
CODES: dict[str, tuple[str, bool]] = {
    "instance-operations/launch/insufficient-capacity": ("NoCapacity", True),
    "instance-operations/launch/file-system-in-wrong-region": ("InvalidRequest", False),
    "global/invalid-parameters": ("InvalidRequest", False),
    "global/quota-exceeded": ("QuotaExceeded", False),
    "global/object-does-not-exist": ("InvalidRequest", False),
    "global/duplicate": ("InvalidRequest", False),
    "global/not-found": ("InvalidRequest", False),
    "global/invalid-api-key": ("InvalidCredential", False),
    "global/account-inactive": ("InvalidCredential", False),
    "global/invalid-address": ("InvalidCredential", False),
    "global/forbidden": ("InvalidCredential", False),
    "global/conflict": ("ProviderUnavailable", True),
    "global/internal-error": ("ProviderUnavailable", True),
}
STATUSES: dict[int, tuple[str, bool]] = {
    401: ("InvalidCredential", False),
    403: ("InvalidCredential", False),
    408: ("ProviderUnavailable", True),
    409: ("ProviderUnavailable", True),
    429: ("ProviderUnavailable", True),
}
MISSING = "global/object-does-not-exist"


def reason(body: bytes, secrets: Sequence[str]) -> tuple[str, str]:
    """Code and text of an error, fit for a log: empty if there is none, and the text left out if it repeats a secret."""
    try:
        error = _decode_failure(body).error
    except (ValueError, RecursionError):
        return "", ""
    code = error.code if _CODE.fullmatch(error.code) else ""
    if any(_repeats(error.message, secret) for secret in secrets):
        return code, "its text is left out, for it repeats what was sent"
    text = "".join(letter if letter.isprintable() else " " for letter in error.message[: 2 * LONGEST_DETAIL])
    return code, " ".join(text.split())[:LONGEST_DETAIL]


def refused(status: int, code: str, text: str, *, makes: bool) -> ProviderError:
    """The error for an answer that is none. `makes`: the call makes a machine, which an internal error may not have prevented."""
    if status >= 500 or code.startswith("provider/"):
        kind, retryable = "ProviderUnavailable", True
    else:
        kind, retryable = CODES.get(code) or STATUSES.get(status, ("InvalidRequest", False))
    unsure = status >= 500 or status == 408 or code.startswith("provider/") or code == "global/internal-error"
    said = ": ".join(part for part in (code or f"status {status}", text) if part)
    return ProviderError(kind, f"Lambda Cloud refused: {said}", retryable=retryable, ambiguous=makes and unsure)


def _repeats(text: str, secret: str) -> bool:
    if len(secret) <= SECRET_PIECE:
        return secret != "" and secret in text
    return any(secret[start : start + SECRET_PIECE] in text for start in range(len(secret) - SECRET_PIECE + 1))
