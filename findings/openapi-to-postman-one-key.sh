#!/usr/bin/env bash
# openapi-to-postmanv2 fills in one constant value for a header parameter of all operations, also for Idempotency-Key.
#
# Versions:  openapi-to-postmanv2 6.3.3.
# Input:     an OpenAPI 3.1 document with two operations that have an optional header parameter, Idempotency-Key, with a pattern.
# Behaviour: the converter makes up one value, enables the header, and writes the same value into both requests. A user who sends
#            one of them a second time, or changes its body, repeats the key of the first request: a server that remembers keys
#            returns the first response again, or refuses the request.
# Output:    2 requests, both enabled, distinct keys: 1
# Remedy:    replace the values in the collection with Postman's {{$guid}}, which is a new one each time a request is sent.
#
# Usage:     findings/openapi-to-postman-one-key.sh       (needs Node.js with npm)
set -euo pipefail
command -v npm >/dev/null || { echo "needs Node.js with npm (Debian: apt-get install npm)" >&2; exit 2; }
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

npm init --yes >/dev/null
npm install --silent --save-exact openapi-to-postmanv2@6.3.3 >/dev/null 2>&1

cat >openapi.json <<'JSON'
{
  "openapi": "3.1.0",
  "info": {"title": "Money", "version": "1"},
  "paths": {
    "/payments": {"post": {"operationId": "pay", "responses": {"201": {"description": "paid"}},
      "parameters": [{"$ref": "#/components/parameters/Key"}]}},
    "/refunds": {"post": {"operationId": "refund", "responses": {"201": {"description": "refunded"}},
      "parameters": [{"$ref": "#/components/parameters/Key"}]}}
  },
  "components": {"parameters": {"Key": {"name": "Idempotency-Key", "in": "header", "required": false,
    "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]+$"}}}}
}
JSON
npx openapi2postmanv2 --spec openapi.json --output collection.json >/dev/null
cat >count.cjs <<'NODE'
const requests = (item) => (item.request ? [item.request] : (item.item ?? []).flatMap(requests));
const headers = requests(require("./collection.json")).flatMap((request) => request.header).filter((one) => one.key === "Idempotency-Key");
const enabled = headers.every((one) => one.disabled !== true) ? "both enabled" : "not all enabled";
console.log(`${headers.length} requests, ${enabled}, distinct keys: ${new Set(headers.map((one) => one.value)).size}`);
NODE

expected='2 requests, both enabled, distinct keys: 1'
output=$(node count.cjs 2>&1) || true
if [ "$output" != "$expected" ]; then
  printf 'CHANGED: expected\n%s\nbut saw\n%s\n' "$expected" "$output" >&2
  exit 1
fi
printf 'as described:\n%s\n' "$output"
