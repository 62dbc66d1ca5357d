"""What may be shown of text from elsewhere."""

import pytest

from potstill.texts import masked


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("https://llm.example:8443/v1", "https://llm.example:8443/v1"),
        ("nonsense", "nonsense"),
        ("postgresql://me:pw-5@db.example/ledger", "postgresql://…@db.example/ledger"),
        ("postgresql://me:pw-5/x@db.example/ledger", "postgresql://…@db.example/ledger"),
        ("me:pw-5//x@db.example", "…@db.example"),
        ("postgresql://db.example/ledger?user=me&password=pw-5", "postgresql://db.example/ledger?…"),
        ("https://llm.example/v1#pw-5", "https://llm.example/v1?…"),
        ("postgresql://me:pw-5?x@db.example/ledger", "postgresql://…"),
        ("https://llm.example/v1?key=pw-5@x", "https://…"),
        ("https://me:\npw-5@llm.example", "https://…@llm.example"),
    ],
)
def test_nothing_is_shown_of_an_address_that_may_be_a_password_or_a_key(address: str, shown: str) -> None:
    assert masked(address) == shown
