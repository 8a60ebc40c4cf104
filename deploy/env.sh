#!/usr/bin/env bash
# Make what docker-compose.yml needs and git must not hold: .env with random passwords, and a hashed API key.
set -euo pipefail
cd "$(dirname "$0")/.."
umask 077

if [ -e .env ]; then
  echo ".env exists already; delete it to make a new one" >&2
  exit 1
fi
bin=.venv/bin
random() { "$bin/python" -c 'import secrets, sys; print(secrets.token_hex(int(sys.argv[1])))' "$1"; }

mkdir -p deploy/secrets
"$bin/aibrix-batch" keys new --project default --name compose >deploy/secrets/api_keys
chmod 644 deploy/secrets/api_keys # read by the container's user; it holds a hash, not the key
{
  echo "POSTGRES_PASSWORD=$(random 20)"
  echo "S3_ACCESS_KEY_ID=$(random 8)"
  echo "S3_SECRET_ACCESS_KEY=$(random 20)"
  echo "SECRETS_ENCRYPTION_KEY=$(random 32)"
  echo "# Base URLs of your engines, comma-separated; batches that name no endpoint go there."
  echo "AIBRIX_DEFAULT_ENDPOINT="
} >.env
echo "made .env and deploy/secrets/api_keys; keep the key that is printed above"
