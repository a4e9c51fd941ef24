#!/usr/bin/env bash
# openapi-python-client generates no type for a response whose schema narrows a string of its base with `const`.
#
# Versions:  openapi-python-client 0.29.1.
# Input:     an OpenAPI 3.1 document with a base schema (`code` is a string) and two errors, each `allOf` of the base and an object
#            that narrows `code`: one by `const: gone`, the other by `enum: [gone]`, which means the same.
# Behaviour: the schema with `const` cannot be merged with its base. The generator warns, leaves the response out, and exits with
#            status 0: the generated function returns None where the server answers with that error. The one with `enum` works.
# Output:    by enum: a class
#            by const: no class
# Remedy:    write `"type": "string", "enum": [value]` in place of `const` in schemas that are combined with a base.
#
# Usage:     findings/openapi-python-client-const.sh
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

"${PYTHON:-python3}" -m venv environment
PIP_DISABLE_PIP_VERSION_CHECK=1 environment/bin/python -m pip install -qq openapi-python-client==0.29.1 2>/dev/null

cat >openapi.json <<'JSON'
{
  "openapi": "3.1.0",
  "info": {"title": "Things", "version": "1"},
  "paths": {"/things": {"get": {"operationId": "getThings", "responses": {
    "204": {"description": "none"},
    "404": {"description": "gone", "content": {"application/json": {"schema": {"$ref": "#/components/schemas/ByConst"}}}},
    "410": {"description": "gone", "content": {"application/json": {"schema": {"$ref": "#/components/schemas/ByEnum"}}}}
  }}}},
  "components": {"schemas": {
    "Base": {"type": "object", "properties": {"code": {"type": "string"}}, "required": ["code"]},
    "ByConst": {"allOf": [{"$ref": "#/components/schemas/Base"}, {"type": "object", "properties": {"code": {"const": "gone"}}}]},
    "ByEnum": {"allOf": [{"$ref": "#/components/schemas/Base"},
      {"type": "object", "properties": {"code": {"type": "string", "enum": ["gone"]}}}]}
  }}
}
JSON
environment/bin/openapi-python-client generate --path openapi.json --meta none --output-path client >generated 2>&1
seen() { if [ -e "client/models/by_$1.py" ]; then echo "by $1: a class"; else echo "by $1: no class"; fi; }

expected='by enum: a class
by const: no class'
output=$(seen enum; seen const)
if [ "$output" != "$expected" ]; then
  printf 'CHANGED: expected\n%s\nbut saw\n%s\n' "$expected" "$output" >&2
  exit 1
fi
printf 'as described:\n%s\n' "$output"
