"""Planted personal data are found, whatever stands around them; numbers, dates and prices are not."""

import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.language import clean_cell, clean_text
from training.media import MediaError
from training.personal_data import KINDS, find, mask
from training.settings import TextCleaning

PLANTED = {  # published test numbers and examples
    "email": ["anna.b+x@mail.example.org", "j_d@example.co.uk", "мария@пример.рф"],
    "iban": ["DE89 3704 0044 0532 0130 00", "GB33BUKB20201555555555", "FR14 2004 1010 0505 0001 3M02 606"],
    "card": ["4111 1111 1111 1111", "5555555555554444", "3782-822463-10005", "30569309025904", "6011000990139424"],
    "id": ["11010519491231002X", "536-90-4399", "54362315K", "X-2482300W", "RCCMNL83S18D969H", "390.533.447-05",
           "971013-9019902", "2341 2341 2346", "131052-308T", "880320-0016"],
    "ip": ["192.168.17.43", "2001:db8:85a3::8a2e:370:7334"],
    "phone": ["+1 202-555-0143", "+49 30 901820", "+86 138 1234 5678", "+44 (0)20 7946 0958", "+34612345678"],
}  # fmt: skip
CASES = [(kind, number) for kind, numbers in PLANTED.items() for number in numbers]
NATIONAL = {"US": "(202) 555-0143", "DE": "030 901820", "CN": "138 1234 5678", "FR": "06 12 34 56 78"}


@pytest.mark.parametrize(("kind", "number"), CASES)
@pytest.mark.parametrize("around", ["{}", "my number: {}.", "({}), call me", "号码是{}。", "a\n{}\nb", "{}; {}"])
def test_what_is_planted_is_found_as_a_whole(kind, number, around):
    text = around.replace("{}", number)
    masked, found = mask(text)
    assert masked == around.replace("{}", f"[{kind.upper()}]"), find(text)
    assert found == {kind: around.count("{}")}


@pytest.mark.parametrize(("region", "number"), NATIONAL.items())
def test_national_phone_numbers_are_found_where_their_country_is_named(region, number):
    text = f"Call {number} now"
    assert mask(text, regions=[region])[0] == "Call [PHONE] now"
    assert mask(text)[0] == text


WORDS = st.sampled_from(
    ["the order", "cost", "of 3 rooms", "No.", "version", "EUR", "$", "on", "-", "/", "(", ")", ":", "今天", "号码"]
)
DATES = st.datetimes(datetime.datetime(1900, 1, 1), datetime.datetime(2100, 1, 1)).flatmap(
    lambda day: st.sampled_from(
        ["%Y-%m-%d", "%d.%m.%Y", "%m/%d/%Y", "%Y-%m-%d %H:%M:%S", "%d %B %Y", "%Y%m%d", "%H:%M"]
    ).map(day.strftime)
)
NUMBERS = st.one_of(
    st.integers(0, 10**9).map(str),
    st.integers(0, 10**12).map("{:,}".format),
    st.integers(1_000_000_000, 1_999_999_999).map(str),  # seconds since 1970
    st.floats(0, 1e6).map("{:.2f}".format),
    st.floats(-1e3, 1e3).map(repr),
    st.tuples(st.integers(0, 40), st.integers(0, 40), st.integers(0, 40)).map(lambda v: "{}.{}.{}".format(*v)),
    st.tuples(st.integers(1, 999), st.integers(1, 999)).map(lambda v: "{}x{}".format(*v)),
)


@given(st.lists(st.one_of(WORDS, DATES, NUMBERS), max_size=8))
def test_ordinary_numbers_dates_and_prices_are_no_personal_data(parts):
    """Between words: digits side by side may be a number that somebody wrote in groups."""
    text = " and ".join(parts)
    assert find(text) == []


@given(before=st.text(max_size=30), case=st.sampled_from(CASES), after=st.text(max_size=30))
def test_masking_is_done_once_and_leaves_nothing(before, case, after):
    _, number = case
    masked, found = mask(f"{before} | {number} | {after}")
    assert number not in masked and sum(found.values()) >= 1
    again, more = mask(masked)
    assert again == masked and not more


@pytest.mark.parametrize(
    "number", ["4111 1111 1111 1112", "DE88 3704 0044 0532 0130 00", "110105194912310021", "000-12-3456"]
)
def test_a_wrong_check_digit_or_range_is_an_ordinary_number(number):
    assert find(f"number {number} here", ["card", "iban", "id"]) == []


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_kinds_that_are_asked_for_are_found(kind):
    text = " and ".join(numbers[0] for numbers in PLANTED.values())
    assert {one.kind for one in find(text, [kind])} == {kind}


@given(
    raw=st.lists(
        st.one_of(st.text(max_size=8), st.sampled_from([number for _, number in CASES])), min_size=1, max_size=6
    )
)
@pytest.mark.parametrize("lowercase", [False, True])
def test_a_cleaned_text_is_cleaned_to_itself(raw, lowercase):
    """What the lake keeps is cleaned once more, as a served model cleans the original."""
    settings = TextCleaning(personal_data="mask", lowercase=lowercase, phone_regions=("US",))
    try:
        cleaned = clean_text(" ".join(raw), settings)
    except MediaError:
        return
    assert clean_text(cleaned.text, settings).text == cleaned.text


def test_cleaning_masks_what_invisible_characters_part_and_says_how_many():
    cleaned = clean_text("write to an\u200bna@example.org", TextCleaning(personal_data="mask"))
    assert (cleaned.text, cleaned.personal_data) == ("write to [EMAIL]", {"email": 1})
    with pytest.raises(MediaError, match="holds personal data \\(e-mail addresses: 1\\)") as error:
        clean_text("write to anna@example.org", TextCleaning(personal_data="quarantine"))
    assert error.value.reason == "personal_data" and "anna" not in str(error.value)
    assert "anna@" in clean_text("write to anna@example.org", TextCleaning()).text


@pytest.mark.parametrize(("kind", "number"), CASES)
def test_a_cell_is_masked_once_and_one_that_is_nothing_else_stays_a_group(kind, number):
    settings = TextCleaning(personal_data="mask", phone_regions=tuple(NATIONAL))
    whole, within = clean_cell(number, settings), clean_cell(f"Ask {number}.", settings)
    assert whole.startswith(f"[{kind.upper()} ") and within == f"Ask [{kind.upper()}]."
    assert [clean_cell(cell, settings) for cell in (whole, within)] == [whole, within], "a served model masks, too"
    assert clean_cell("[PHONE 30901820]", settings) == "[PHONE 30901820]"
    assert clean_cell(number, TextCleaning()) == number
