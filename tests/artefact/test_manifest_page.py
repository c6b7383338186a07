"""The manifest is documented field by field: the page and the types agree."""

from __future__ import annotations

import re
import typing
from pathlib import Path

import msgspec
import pytest

import l2c_export
from l2c_export.artefact.manifest import Manifest

PAGE = (Path(l2c_export.__file__).parent / "artefact" / "README.md").read_text()
SECTIONS = dict(re.findall(r"^### (\w+)\n(.*?)(?=^### |\Z)", PAGE, re.MULTILINE | re.DOTALL))


def records(kind: object) -> dict[str, type[msgspec.Struct]]:
    """All types that a manifest holds, by name."""
    types: dict[str, type[msgspec.Struct]] = {}
    left = [kind]
    while left:
        hint = left.pop()
        if isinstance(hint, type) and issubclass(hint, msgspec.Struct) and hint.__name__ not in types:
            types[hint.__name__] = hint
            left += typing.get_type_hints(hint).values()
        left += typing.get_args(hint)
    return types


RECORDS = records(Manifest)


def test_every_record_has_its_section_and_no_other_has():
    assert set(SECTIONS) == set(RECORDS)


@pytest.mark.parametrize("name", RECORDS)
def test_every_field_of_a_record_is_described(name):
    described = {
        field for row in re.findall(r"^\| (.*?) \|", SECTIONS[name], re.MULTILINE) for field in re.findall(r"`(\w+)`", row)
    }
    assert described == set(RECORDS[name].__struct_fields__)


@pytest.mark.parametrize("name", RECORDS)
def test_what_may_be_left_out_is_in_italics(name):
    left_out = set(re.findall(r"\*`(\w+)`\*", SECTIONS[name]))
    fields = {field.name: field for field in msgspec.structs.fields(RECORDS[name])}
    unset = {n for n, field in fields.items() if msgspec.UNSET in (field.default,)}
    assert unset <= left_out <= {n for n, field in fields.items() if not field.required}
