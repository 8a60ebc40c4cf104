"""gRPC in, gRPC out, for keys, secrets and quotas. No logic: convert, call, convert."""

from __future__ import annotations

from typing import Any

from google.protobuf import empty_pb2
from grpc import aio

from brix.console.v1 import access_pb2, access_pb2_grpc
from services.console.access import NewApiKey, QuotaChange
from services.console.service.access_keys import ApiKeyService
from services.console.service.access_quotas import QuotaService
from services.console.service.access_secrets import SecretService
from services.console.servicer import given
from services.kit.convert import from_proto, to_proto

Context = aio.ServicerContext[Any, Any]


class AccessServicer(access_pb2_grpc.AccessServiceServicer):
    def __init__(self, keys: ApiKeyService, secrets: SecretService, quotas: QuotaService) -> None:
        self.keys = keys
        self.secrets = secrets
        self.quotas = quotas

    async def CreateApiKey(self, request: access_pb2.CreateApiKeyRequest, context: Context) -> access_pb2.ApiKey:
        return to_proto(access_pb2.ApiKey, await self.keys.create_key(from_proto(NewApiKey, request)))

    async def ListApiKeys(
        self, request: access_pb2.ListApiKeysRequest, context: Context
    ) -> access_pb2.ListApiKeysResponse:
        after = given(request, "after")
        page, has_more = await self.keys.list_keys(request.project_id, given(request, "limit"), after)
        return access_pb2.ListApiKeysResponse(
            data=[to_proto(access_pb2.ApiKey, key) for key in page], has_more=has_more
        )

    async def DeleteApiKey(self, request: access_pb2.DeleteApiKeyRequest, context: Context) -> empty_pb2.Empty:
        await self.keys.delete_key(request.project_id, request.id)
        return empty_pb2.Empty()

    async def Authenticate(self, request: access_pb2.AuthenticateRequest, context: Context) -> access_pb2.Principal:
        return to_proto(access_pb2.Principal, await self.keys.authenticate(request.key_hash))

    async def CreateSecret(self, request: access_pb2.CreateSecretRequest, context: Context) -> access_pb2.Secret:
        made = await self.secrets.create_secret(request.project_id, request.name, request.value)
        return to_proto(access_pb2.Secret, made)

    async def ListSecrets(
        self, request: access_pb2.ListSecretsRequest, context: Context
    ) -> access_pb2.ListSecretsResponse:
        after = given(request, "after")
        page, has_more = await self.secrets.list_secrets(request.project_id, given(request, "limit"), after)
        return access_pb2.ListSecretsResponse(
            data=[to_proto(access_pb2.Secret, one) for one in page], has_more=has_more
        )

    async def DeleteSecret(self, request: access_pb2.DeleteSecretRequest, context: Context) -> empty_pb2.Empty:
        await self.secrets.delete_secret(request.project_id, request.id)
        return empty_pb2.Empty()

    async def GetQuota(self, request: access_pb2.GetQuotaRequest, context: Context) -> access_pb2.Quota:
        return to_proto(access_pb2.Quota, await self.quotas.get_quota(request.project_id))

    async def UpdateQuota(self, request: access_pb2.UpdateQuotaRequest, context: Context) -> access_pb2.Quota:
        return to_proto(access_pb2.Quota, await self.quotas.update_quota(from_proto(QuotaChange, request)))
