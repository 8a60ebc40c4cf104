"""What of an engine's log may be shown: everything that helps, and no secret."""

from __future__ import annotations

import pytest

from services.runner.runtimes.ssh_logs import cleaned

SECRET = "wJalrXUtnFEMIK7MDENGbPxRfiCY"


@pytest.mark.parametrize(
    "line",
    [
        f"Authorization: Bearer {SECRET}",
        f"{{'Authorization': 'Basic {SECRET}=='}}",
        f"X-Api-Key: {SECRET}",
        f"https://user:{SECRET}@host/path",
        f"AWS_SECRET_ACCESS_KEY={SECRET}",
        f"aws_access_key_id = {SECRET}",
        f"vllm serve acme/tiny --hf-token {SECRET} --port 8000",
        f"--api-key={SECRET}",
        f"non-default args: {{'api_key': ['first', '{SECRET}'], 'port': 8000}}",
        f"api_key=['first', '{SECRET}']",
        f"HF_TOKEN={SECRET}",
        f"hf_{SECRET}",
        f"rpa_{SECRET}",
        f"eyJhbGciOiJI.{SECRET}.{SECRET}",
        f"Cookie: session={SECRET}",
        f"-----BEGIN OPENSSH PRIVATE KEY-----\n{SECRET}\n-----END OPENSSH PRIVATE KEY-----",
    ],
)
def test_secrets_are_taken_out(line: str) -> None:
    assert SECRET not in cleaned(f"before\n{line}\nafter")
    assert cleaned(f"before\n{line}\nafter").startswith("before\n")


def test_what_only_sounds_like_a_secret_stays() -> None:
    text = "max_num_batched_tokens=8192 --max-tokens 512 prompt_tokens: 12 tokenizer='acme/tiny' --tokenizer acme/tiny"
    assert cleaned(text) == text
