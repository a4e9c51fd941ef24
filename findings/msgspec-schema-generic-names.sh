#!/usr/bin/env bash
# msgspec's `schema_components` raises KeyError if two structs of one name are the arguments of one generic struct.
#
# Versions:  msgspec 0.22.0.
# Input:     two structs called Item, made in two modules, and a generic struct Page, as Page[Item] of each.
# Behaviour: msgspec gives two types of one name the names of their modules as well. It finds no other name for Page[Item], though:
#            both aliases are written with the bare name of their argument. The function raises KeyError for a valid set of types.
# Output:    Item, Item: one.Item two.Item
#            Page[Item], Page[Item]: KeyError
# Remedy:    name the structs differently, or call the function for each type.
#
# Usage:     findings/msgspec-schema-generic-names.sh
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

"${PYTHON:-python3}" -m venv environment
PIP_DISABLE_PIP_VERSION_CHECK=1 environment/bin/python -m pip install -qq msgspec==0.22.0 2>/dev/null

for module in one two; do printf 'import msgspec\n\n\nclass Item(msgspec.Struct):\n    %s: int\n' "$module" >"$module.py"; done
cat >describe.py <<'PYTHON'
from typing import Generic, TypeVar

import msgspec

import one
import two

T = TypeVar("T")


class Page(msgspec.Struct, Generic[T]):
    items: tuple[T, ...]


for title, types in (("Item, Item", [one.Item, two.Item]), ("Page[Item], Page[Item]", [Page[one.Item], Page[two.Item]])):
    try:
        _, components = msgspec.json.schema_components(types)
    except KeyError:
        print(f"{title}: KeyError")
    else:
        print(f"{title}: {' '.join(sorted(components))}")
PYTHON

expected='Item, Item: one.Item two.Item
Page[Item], Page[Item]: KeyError'
output=$(environment/bin/python describe.py 2>&1) || true
if [ "$output" != "$expected" ]; then
  printf 'CHANGED: expected\n%s\nbut saw\n%s\n' "$expected" "$output" >&2
  exit 1
fi
printf 'as described:\n%s\n' "$output"
