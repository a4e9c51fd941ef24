#!/usr/bin/env bash
# pip 23.2 and older refuse a complete, hashed requirements file if it pins a package without an extra that another pin needs.
#
# Versions:  pip 22.3 (comes with Python 3.11.0) and pip 23.2.1 (comes with Python 3.12.0) refuse it; pip 23.3.2 accepts it.
# Input:     a requirements file that pins every package, each with its hash. pytest-cov 6.0.0 requires `coverage[toml]`, and
#            the file pins `coverage==7.6.0`, as `uv pip compile` writes it by default. On Python 3.11 and later that extra adds
#            no package. The index has newer releases of coverage.
# Behaviour: with --require-hashes, the older pips do not apply the pin to `coverage[toml]`. They pick the newest release and
#            then report that it is not pinned.
# Output:    ERROR: In --require-hashes mode, all requirements must have their versions pinned with ==. These do not:
#                coverage[toml]>=7.5 from … (from pytest-cov==6.0.0->-r requirements.txt (line 1))
# Remedy:    keep the extras in the file (`uv pip compile --no-strip-extras`).
#
# Usage:     findings/pip-require-hashes-extra.sh          (PYTHON=python3.11 selects another interpreter; 3.11 or later)
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

"${PYTHON:-python3}" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "needs Python 3.11 or later: set PYTHON" >&2; exit 2; }
"${PYTHON:-python3}" -m venv environment
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_QUIET=2
for version in 22.3 23.2.1 23.3.2; do
  environment/bin/python -m pip install --target "pip-$version" "pip==$version"
done

pins=(pytest-cov==6.0.0 coverage==7.6.0 pytest==8.4.2 iniconfig==2.1.0 packaging==25.0 pluggy==1.6.0 pygments==2.19.2)
environment/bin/python -m pip download --no-deps --dest wheels "${pins[@]}"
for pin in "${pins[@]}"; do
  name=${pin%%==*}
  wheel=$(echo wheels/"${name//-/_}"-*.whl)
  echo "$pin --hash=sha256:$(sha256sum "$wheel" | cut -d' ' -f1)"
done >requirements.txt

resolve() {  # with the pip of a version; prints what pip says
  PYTHONPATH="pip-$1" environment/bin/python -m pip install --dry-run --ignore-installed --require-hashes -r requirements.txt 2>&1
}

for version in 22.3 23.2.1; do
  if output=$(resolve "$version"); then
    echo "CHANGED: pip $version accepts the file" >&2
    exit 1
  fi
  if ! grep -q 'coverage\[toml\]>=7.5 from' <<<"$output"; then
    printf 'CHANGED: pip %s refuses the file with another message:\n%s\n' "$version" "$output" >&2
    exit 1
  fi
  echo "as described: pip $version refuses the file: $(grep -o 'coverage\[toml\]>=7.5 from' <<<"$output") …"
done
if ! output=$(resolve 23.3.2); then
  printf 'CHANGED: pip 23.3.2 refuses the file:\n%s\n' "$output" >&2
  exit 1
fi
echo "as described: pip 23.3.2 accepts the file"
