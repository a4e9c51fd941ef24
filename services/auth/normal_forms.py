"""One form for text that keyboards and systems type in several: an é is one character or two, a domain Unicode or `xn--…`."""

import unicodedata

import idna


def canonical_email(email: str) -> str:
    """Return the form in which an e-mail address is stored and looked up.

    The local part is in NFC (RFC 6532, section 3.1), the domain in the Unicode form of IDNA (RFC 5891, after the mapping of
    UTS 46), both in lower case. A domain that IDNA does not allow is treated like a local part.
    """
    local, at, domain = unicodedata.normalize("NFC", email).rpartition("@")
    try:
        if not domain.isascii() or "xn--" in domain.lower():
            domain = idna.decode(idna.encode(domain, uts46=True))
    except (idna.IDNAError, UnicodeError):
        pass
    return unicodedata.normalize("NFC", f"{local}{at}{domain}".lower())


def canonical_password(password: str) -> str:
    """Return the form in which a password is hashed: NFKC (NIST SP 800-63B, section 5.1.1.2)."""
    return unicodedata.normalize("NFKC", password)


def accepted_forms(password: str) -> tuple[str, ...]:
    """Return the forms in which a typed password may have been hashed, the present one first.

    Earlier versions hashed a password as it was typed: with accents as separate characters, or not.
    """
    return tuple(dict.fromkeys((canonical_password(password), password, unicodedata.normalize("NFD", password))))
