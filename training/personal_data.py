"""Personal data in texts: found by their form and, where they have one, by their check digit, and masked.

Numbers are judged by python-stdnum (cards: Luhn, ISO/IEC 7812; IBAN: ISO 13616, mod 97; identity numbers) and by
phonenumbers (Google's libphonenumber). What has neither a form of its own nor a check digit is no find: nine bare
digits are a number.
"""

import functools
import ipaddress
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module, metadata
from typing import Any, NamedTuple

import regex

KINDS = ("email", "iban", "card", "id", "ip", "phone")  # where two overlap, the first of these counts
WORDS = {
    "email": "e-mail addresses",
    "iban": "account numbers (IBAN)",
    "card": "card numbers",
    "id": "identity numbers",
    "ip": "IP addresses",
    "phone": "phone numbers",
}
# Without one of these there is nothing to be found: an @, a colon, or six digits with little between them.
_MAYBE = regex.compile(r"@|::|:[0-9A-Fa-f]|\d(?:[\s().\-/]{0,3}[\dA-Z]){5}", regex.IGNORECASE)
# A letter or digit that a number or address goes on with: scripts without spaces stand right beside it.
_GOES_ON = r"[[\p{L}\p{N}]--[\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}\p{Thai}]]"
_EMAIL = regex.compile(
    rf"(?:{_GOES_ON}|[._%+\-]){{1,64}}@(?:{_GOES_ON}(?:(?:{_GOES_ON}|-){{0,61}}{_GOES_ON})?\.){{1,8}}{_GOES_ON}{{2,24}}",
    regex.V1,
)
_IBAN = regex.compile(rf"(?<!{_GOES_ON})[A-Z]{{2}}\d\d(?: ?[A-Z0-9]{{1,4}}){{3,8}}(?!{_GOES_ON})", regex.V1)
# By the first digits (Visa, Mastercard, Discover, JCB, UnionPay; American Express; Diners), in the groups of its kind.
_CARD = regex.compile(
    r"(?<![\d.,\-])(?:"
    r"(?:4\d{3}|5[1-5]\d\d|2[2-7]\d\d|6(?:011|2\d\d|4[4-9]\d|5\d\d)|35\d\d)([ \-]?)\d{4}\1\d{4}\1\d{4}"
    r"|3[47]\d\d([ \-]?)\d{6}\2\d{5}|3(?:0[0-5]|[68]\d)\d([ \-]?)\d{6}\3\d{4}|62\d{15,17})(?!\d|[.,\-]\d)"
)
_DAY = r"(?:0[1-9]|[12]\d|3[01])"
_MONTH = r"(?:0[1-9]|1[0-2])"
# Identity numbers that can be told from other numbers: form, and the module of python-stdnum that checks it.
_IDS: tuple[tuple[str, str], ...] = (
    (rf"[1-9]\d{{5}}(?:18|19|20)\d\d{_MONTH}{_DAY}\d{{3}}[\dXx]", "cn.ric"),  # mod 11-2 (GB 11643)
    (r"\d{3}-\d\d-\d{4}", "us.ssn"),  # the ranges that are given out
    (r"\d{8}-?[A-Z]", "es.dni"),  # mod 23
    (r"[XYZ]-?\d{7}-?[A-Z]", "es.nie"),
    (r"[12] ?\d\d ?(?:0[1-9]|1[0-2]|[2-9]\d) ?(?:\d\d|2[AB]) ?\d{3} ?\d{3} ?\d\d", "fr.nir"),  # mod 97
    (r"[A-Z]{6}\d\d[A-EHLMPRST]\d\d[A-Z]\d{3}[A-Z]", "it.codicefiscale"),
    (r"\d{3}\.\d{3}\.\d{3}-\d\d", "br.cpf"),
    (rf"\d\d{_MONTH}{_DAY}-\d{{7}}", "kr.rrn"),
    (r"[2-9]\d{3} \d{4} \d{4}", "in_.aadhaar"),  # Verhoeff
    (rf"{_DAY}{_MONTH}\d\d[\-+A]\d{{3}}[0-9A-FHJ-NPR-Y]", "fi.hetu"),  # mod 31
    (rf"\d\d{_MONTH}{_DAY}[\-+]\d{{4}}", "se.personnummer"),  # Luhn
)
_IP = regex.compile(
    rf"(?<!{_GOES_ON}|[.:])(?:(?:\d{{1,3}}\.){{3}}\d{{1,3}}|(?:[0-9A-Fa-f]{{0,4}}:){{2,7}}[0-9A-Fa-f]{{1,4}})"
    rf"(?!{_GOES_ON}|:|\.\d)",
    regex.V1,
)
_FEW = 4  # groups of an IPv6 address, at least: times and ratios have three


class Find(NamedTuple):
    start: int
    end: int
    kind: str


def find(text: str, kinds: Sequence[str] = KINDS, regions: Sequence[str] = ()) -> list[Find]:
    """What of a text is personal data, in order; no two overlap.

    Args:
        regions: ISO 3166 codes of the countries whose phone numbers are found as they are written there, too; those
            that begin with + are, wherever they are from.
    """
    if not _MAYBE.search(text):
        return []
    found: list[Find] = []
    for kind in KINDS:
        if kind in kinds:
            spans = _phones(text, regions) if kind == "phone" else _FINDERS[kind](text)
            new = [span for span in spans if not any(span[0] < f.end and f.start < span[1] for f in found)]
            found += [Find(*span, kind) for span in dict.fromkeys(new)]
    found.sort()
    # Two forms of one kind may overlap.
    return [one for n, one in enumerate(found) if n == 0 or one.start >= found[n - 1].end]


def mask(text: str, kinds: Sequence[str] = KINDS, regions: Sequence[str] = ()) -> tuple[str, Counter[str]]:
    """The text with `[EMAIL]`, `[PHONE]`, ... in the place of what is found, and how many of each kind."""
    found = find(text, kinds, regions)
    for one in reversed(found):
        text = f"{text[: one.start]}[{one.kind.upper()}]{text[one.end :]}"
    return text, Counter(one.kind for one in found)


def said(found: Counter[str]) -> str:
    """2 e-mail addresses, 1 card number: in words, without what was found."""
    return ", ".join(f"{WORDS[kind]}: {n}" for kind, n in sorted(found.items()))


def identity() -> dict[str, str]:
    """The versions that decide what is found."""
    return {name: metadata.version(name) for name in ("phonenumberslite", "python-stdnum")}


_Span = tuple[int, int]


def _emails(text: str) -> Iterator[_Span]:
    return (match.span() for match in _EMAIL.finditer(text))


def _ibans(text: str) -> Iterator[_Span]:
    """Words in capitals may follow one: groups are left off until it is one."""
    from stdnum import iban

    for match in _IBAN.finditer(text):
        number = match[0]
        while number and not iban.is_valid(number):
            number = number.rpartition(" ")[0]
        if number:
            yield match.start(), match.start() + len(number)


def _cards(text: str) -> Iterator[_Span]:
    from stdnum import luhn

    return (m.span() for m in _CARD.finditer(text) if luhn.is_valid(m[0].replace(" ", "").replace("-", "")))


def _ids(text: str) -> Iterator[_Span]:
    for form, name in _forms():
        for match in form.finditer(text):
            if import_module(f"stdnum.{name}").is_valid(match[0]):
                yield match.span()


@functools.cache
def _forms() -> list[tuple[Any, str]]:
    around = rf"(?<!{_GOES_ON}|\d[.,\-])(?:", rf")(?!{_GOES_ON}|[.,\-]\d)"
    return [(regex.compile(form.join(around), regex.V1), name) for form, name in _IDS]


def _ips(text: str) -> Iterator[_Span]:
    for match in _IP.finditer(text):
        number = match[0]
        try:
            ipaddress.ip_address(number)
        except ValueError:
            continue
        if ":" not in number or len([group for group in number.split(":") if group]) >= _FEW:
            yield match.span()


def _phones(text: str, regions: Sequence[str]) -> Iterator[_Span]:
    import phonenumbers

    everywhere = (None,) if "+" in text or "\uff0b" in text else ()
    for region in (*everywhere, *regions):
        for match in phonenumbers.PhoneNumberMatcher(text, region):
            raw = match.raw_string
            opened = raw.startswith("(") and raw.count("(") > raw.count(")")  # a bracket around it
            yield match.start + opened, match.end


_FINDERS: dict[str, Callable[[str], Iterator[_Span]]] = {
    "email": _emails, "iban": _ibans, "card": _cards, "id": _ids, "ip": _ips,
}  # fmt: skip
