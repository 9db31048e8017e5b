"""Secrets by the SDK's own calls: made, found by id and by name, renewed, listed in pages, ended. No value ever comes back."""

import datetime
import uuid

import pytest


@pytest.fixture
def make(sdk):
    """Makes secrets that end with the test."""
    Secret = sdk("Secret")
    names = []

    def make(word: str, value: str, **options):
        names.append(f"{word}-{uuid.uuid4().hex[:12]}")
        return Secret.create(names[-1], value, **options)

    yield make
    for name in names:
        Secret.destroy(name)


def test_a_secret_is_told_without_its_value(make):
    info = make("told", "sk-never-told", metadata={"env": "test"})
    assert info.secret_id.startswith("sec_") and info.name.startswith("told-")
    assert (info.version, info.metadata) == (1, {"env": "test"})
    assert isinstance(info.created_at, datetime.datetime) and isinstance(info.updated_at, datetime.datetime)
    assert not hasattr(info, "value") and "sk-never-told" not in repr(info)


def test_a_secret_is_found_by_id_and_by_name_and_renewed(make, sdk):
    Secret = sdk("Secret")
    made = make("found", "v1")
    assert Secret.get_info(made.secret_id).name == made.name
    assert Secret.get_info(made.name).secret_id == made.secret_id
    for reference in (made.secret_id, made.name):
        renewed = Secret.update(reference, "newer")
        assert renewed.secret_id == made.secret_id
    assert (renewed.version, renewed.created_at) == (3, made.created_at)
    assert renewed.updated_at > made.updated_at


def test_secrets_are_listed_in_pages(make, sdk):
    made = {make("paged", "x").name for _ in range(3)}
    pages, paginator = [], sdk("Secret").list(limit=2)
    while paginator.has_next:
        pages.append([info.name for info in paginator.next_items()])
    names = [name for page in pages for name in page]
    # Others may have secrets here too.
    assert made <= set(names) and len(names) == len(set(names))
    assert [len(page) for page in pages[:-1]] == [2] * (len(pages) - 1)


def test_a_secret_that_has_ended_is_not_there(make, sdk):
    from e2b.exceptions import SecretNotFoundException

    Secret = sdk("Secret")
    made = make("ended", "x")
    assert Secret.exists(made.name) is True
    assert Secret.destroy(made.secret_id) is True
    for reference in (made.secret_id, made.name):
        assert Secret.exists(reference) is False
        assert Secret.destroy(reference) is False
        with pytest.raises(SecretNotFoundException):
            Secret.get_info(reference)
        with pytest.raises(SecretNotFoundException):
            Secret.update(reference, "value")
