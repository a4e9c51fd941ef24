#!/usr/bin/env bash
# hypothesis-jsonschema cannot generate any object with a current Hypothesis, although its requirement allows that version.
#
# Versions:  hypothesis-jsonschema 0.23.1 (which requires hypothesis>=6.84.0), Hypothesis 6.170.15.
# Input:     the schema of an object with one integer, and the schema of an integer.
# Behaviour: the strategy for objects uses a private class of Hypothesis, `many`, whose method `more` no longer has that name.
#            Each draw of an object fails. Strategies for numbers, strings, and arrays work.
# Output:    integer: generated
#            object: AttributeError: 'many' object has no attribute 'more'
# Remedy:    compose objects with `hypothesis.strategies.fixed_dictionaries` from strategies for their members, or pin Hypothesis.
#
# Usage:     findings/hypothesis-jsonschema-objects.sh
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

"${PYTHON:-python3}" -m venv environment
PIP_DISABLE_PIP_VERSION_CHECK=1 environment/bin/python -m pip install -qq hypothesis-jsonschema==0.23.1 hypothesis==6.170.15 2>/dev/null

cat >generate.py <<'PYTHON'
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis_jsonschema import from_schema

integer = {"type": "integer"}
an_object = {"type": "object", "properties": {"number": integer}, "required": ["number"], "additionalProperties": False}

for name, schema in (("integer", integer), ("object", an_object)):

    @settings(max_examples=5, database=None, deadline=None)
    @given(st.data())
    def draw(data):
        data.draw(from_schema(schema))

    try:
        draw()
    except Exception as error:
        print(f"{name}: {type(error).__name__}: {error}")
    else:
        print(f"{name}: generated")
PYTHON

expected="integer: generated
object: AttributeError: 'many' object has no attribute 'more'"
output=$(environment/bin/python generate.py 2>/dev/null | grep -E '^(integer|object): ') || true
if [ "$output" != "$expected" ]; then
  printf 'CHANGED: expected\n%s\nbut saw\n%s\n' "$expected" "$output" >&2
  exit 1
fi
printf 'as described:\n%s\n' "$output"
