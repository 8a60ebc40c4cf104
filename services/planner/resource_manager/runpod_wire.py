"""The parts of RunPod's answers that we rely on. An answer that breaks them is ProviderUnavailable."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, TypeVar

import msgspec

from services.planner.resource_manager.runpod_client import unavailable
from services.planner.resource_manager.runpod_pod import SSH_PORT

_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
T = TypeVar("T")

Text = Annotated[str, msgspec.Meta(min_length=1, max_length=512)]
Port = Annotated[int, msgspec.Meta(ge=1, le=65535)]


class _Direct(msgspec.Struct):
    host: Text
    port: Port


class _Ssh(msgspec.Struct):
    direct: _Direct | None = None


class _PortMapping(msgspec.Struct):
    private: int | None = None
    public: Port | None = None
    type: str = ""
    ip: Text | None = None


class _Runtime(msgspec.Struct):
    ports: list[_PortMapping] | None = None


class Listed(msgspec.Struct):
    """As little as possible: pods of other people, made in other ways, are in the list too."""

    id: Text
    name: str
    status: str


class Pod(Listed):
    ssh: _Ssh | None = None
    runtime: _Runtime | None = None


class _Pagination(msgspec.Struct):
    has_next: bool = msgspec.field(name="hasNextPage", default=False)
    next_cursor: str | None = msgspec.field(name="nextCursor", default=None)


class PodList(msgspec.Struct):
    pods: list[Listed]
    pagination: _Pagination | None = None


class _PerCloud(msgspec.Struct):
    secure: Annotated[float, msgspec.Meta(ge=0)] | None = None
    community: Annotated[float, msgspec.Meta(ge=0)] | None = None

    def of(self, cloud: str) -> float:
        return (self.secure if cloud == "SECURE" else self.community) or 0.0


class _DataCenter(msgspec.Struct):
    id: Text
    availability: str


class Gpu(msgspec.Struct):
    id: Text
    memory: Annotated[int, msgspec.Meta(ge=0, le=100_000)]
    price: _PerCloud
    max_count: _PerCloud = msgspec.field(name="maxCount")
    availability: str = ""
    data_centers: list[_DataCenter] = msgspec.field(name="dataCenters", default_factory=list)


class GpuList(msgspec.Struct):
    gpus: list[Gpu]


L = TypeVar("L", bound=Listed)

decode_pod = msgspec.json.Decoder(Pod).decode
decode_pods = msgspec.json.Decoder(PodList).decode
decode_gpus = msgspec.json.Decoder(GpuList).decode


def read(decode: Callable[[bytes], T], body: bytes, *, ambiguous: bool = False) -> T:
    try:
        return decode(body)
    except (ValueError, RecursionError) as error:
        raise unavailable("RunPod's answer is not what its API describes", ambiguous=ambiguous) from error


def checked(pod: L, *, ambiguous: bool = False) -> L:
    """Its id goes into paths and host names."""
    if not _ID.fullmatch(pod.id):
        raise unavailable("RunPod gave a pod an id that is none", ambiguous=ambiguous)
    return pod


def published(pod: Pod) -> tuple[str, int] | None:
    """Where its SSH port is published. `ssh.proxy` is of no use: it is for terminals only."""
    if pod.ssh is not None and pod.ssh.direct is not None:
        return pod.ssh.direct.host, pod.ssh.direct.port
    ports = (pod.runtime.ports if pod.runtime is not None else None) or []
    for port in ports:
        # Entries of type http carry an address inside RunPod's network.
        if port.type == "tcp" and port.private == SSH_PORT and port.public and port.ip:
            return port.ip, port.public
    return None
