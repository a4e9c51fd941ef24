"""Which new passwords are refused: those that an attacker tries first (NIST SP 800-63B, section 5.1.1.2)."""

import functools
import re
from itertools import pairwise
from pathlib import Path

from services.auth.messages import MIN_LENGTH
from services.auth.normal_forms import canonical_email, canonical_password

_OWN = frozenset({"administrator", "callboard", "scooter"})
"""Words that come to mind here."""
_LOOKALIKES = str.maketrans("@01345$", "aoleass")
"""Characters that people write for the letters that they resemble."""
_TAIL = re.compile(r"[^a-z]+\Z")
"""What people append to a word."""
_REPEATED = re.compile(r"(.{1,5}?)\1+.{0,2}", re.DOTALL)
"""A few characters again and again, such as `12341234`."""


def weakness(password: str, email: str) -> str | None:
    """Return why a password is refused for the account with an e-mail address, or None if it is accepted."""
    password = canonical_password(password)
    if len(password) < MIN_LENGTH:
        return f"the password has fewer than {MIN_LENGTH} characters, if an accent and its letter count as one"
    folded = password.casefold()
    address = canonical_email(email).casefold()
    if folded in (address, address.partition("@")[0]):
        return "the password is the e-mail address"
    simplified = folded.translate(_LOOKALIKES)
    forms = {folded, simplified, _TAIL.sub("", folded), _TAIL.sub("", simplified)}
    if not forms.isdisjoint(_common()) or not forms.isdisjoint(_OWN):
        return "the password is among the most common ones"
    if _REPEATED.fullmatch(folded) or _is_sequence(folded):
        return "the password repeats or continues a pattern"
    return None


def _is_sequence(text: str) -> bool:
    """Return whether each character follows the one before, or precedes it, such as `abcdefgh` or `987654321`."""
    steps = {ord(after) - ord(before) for before, after in pairwise(text)}
    return steps in ({1}, {-1})


@functools.cache
def _common() -> frozenset[str]:
    lines = (Path(__file__).parent / "common_passwords.txt").read_text(encoding="ascii").splitlines()
    return frozenset(line for line in lines if not line.startswith("#"))
