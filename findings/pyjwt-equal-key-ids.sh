#!/usr/bin/env bash
# PyJWT takes the first key of a JWK set whose id a token names, although keys of other types may have the same id.
#
# Versions:  PyJWT 2.15.1, cryptography 50.0.2.
# Input:     a JWK set with an RSA key and an Ed25519 key, both with the id "1", and a valid token of each. RFC 7517, section 4.5, allows
#            equal ids for keys that their types tell apart ("kty"), as an issuer may do that signs with two algorithms.
# Behaviour: PyJWKSet finds keys by their id alone. The token of the second key is refused, whatever its header says its algorithm is;
#            with the keys in the other order, it is the token of the other one.
# Output:    RSA first: RS256 valid, EdDSA refused: InvalidAlgorithmError
#            Ed25519 first: RS256 refused: InvalidAlgorithmError, EdDSA valid
# Remedy:    look the key up by its id and by the algorithm of the token's header.
#
# Usage:     findings/pyjwt-equal-key-ids.sh
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

"${PYTHON:-python3}" -m venv environment
PIP_DISABLE_PIP_VERSION_CHECK=1 environment/bin/python -m pip install -qq pyjwt==2.15.1 cryptography==50.0.2 2>/dev/null

cat >keys.py <<'PYTHON'
import jwt
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

private = {"RS256": rsa.generate_private_key(65537, 2048), "EdDSA": Ed25519PrivateKey.generate()}
tokens = {name: jwt.encode({"sub": "u1"}, key, algorithm=name, headers={"kid": "1"}) for name, key in private.items()}
jwks = {name: {**jwt.get_algorithm_by_name(name).to_jwk(key.public_key(), as_dict=True), "kid": "1"} for name, key in private.items()}

for title, order in (("RSA first", ("RS256", "EdDSA")), ("Ed25519 first", ("EdDSA", "RS256"))):
    keys = jwt.PyJWKSet.from_dict({"keys": [jwks[name] for name in order]})
    results = []
    for name, token in tokens.items():
        try:
            jwt.decode(token, keys[jwt.get_unverified_header(token)["kid"]], algorithms=["RS256", "EdDSA"])
            results.append(f"{name} valid")
        except jwt.PyJWTError as error:
            results.append(f"{name} refused: {type(error).__name__}")
    print(f"{title}: {', '.join(results)}")
PYTHON

expected='RSA first: RS256 valid, EdDSA refused: InvalidAlgorithmError
Ed25519 first: RS256 refused: InvalidAlgorithmError, EdDSA valid'
output=$(environment/bin/python keys.py 2>&1) || true
if [ "$output" != "$expected" ]; then
  printf 'CHANGED: expected\n%s\nbut saw\n%s\n' "$expected" "$output" >&2
  exit 1
fi
printf 'as described:\n%s\n' "$output"
