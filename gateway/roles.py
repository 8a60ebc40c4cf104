"""What a caller may do: the keys of the operator's file all, the console's keys what their role says."""

from __future__ import annotations

from enum import IntEnum

from aiohttp import web

from gateway.errors import Refused


class Role(IntEnum):
    """Each may do what those before it may."""

    MEMBER = 1
    ADMIN = 2
    """Manages keys and secrets of its project."""
    OPERATOR = 3
    """A key of the file, or anybody on a server that asks nobody for a key. Sets what binds all others: quotas."""

    @classmethod
    def of(cls, name: str) -> Role:
        """As the console calls it; what is not known here may do least."""
        return cls.ADMIN if name == "admin" else cls.MEMBER


ROLE: web.RequestKey[Role] = web.RequestKey("role", Role)
# RPCs that not everybody may call, by their full name.
ACCESS = "/brix.console.v1.AccessService/"
NEEDED = {
    f"{ACCESS}CreateApiKey": Role.ADMIN,
    f"{ACCESS}ListApiKeys": Role.ADMIN,
    f"{ACCESS}DeleteApiKey": Role.ADMIN,
    f"{ACCESS}CreateSecret": Role.ADMIN,
    f"{ACCESS}DeleteSecret": Role.ADMIN,
    f"{ACCESS}UpdateQuota": Role.OPERATOR,
}
WHO = {
    Role.ADMIN: "a key with the role 'admin', or one of the operator's (AIBRIX_API_KEYS_FILE)",
    Role.OPERATOR: "one of the operator's keys (AIBRIX_API_KEYS_FILE)",
}


def check(request: web.Request, rpc: str) -> None:
    """Error: Refused 403."""
    needed = NEEDED.get(rpc, Role.MEMBER)
    if request[ROLE] < needed:
        raise Refused(403, f"Your API key may not do this. It takes {WHO[needed]}.", code="permission_denied")
