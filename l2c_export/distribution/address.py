"""Where an artefact is kept: oci://HOST/REPOSITORY:TAG, hf://OWNER/NAME, s3://BUCKET/FOLDER; behind @ a digest."""

from __future__ import annotations

import re
from typing import NamedTuple

from ..errors import UsageError

DIGEST = r"sha256:[0-9a-f]{64}"
PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"  # of a repository's name, as the distribution specification has it
HOST = r"(?:[A-Za-z0-9.-]+|\[[0-9a-fA-F:]+\])(?::\d{1,5})?"
TAG, AT_DIGEST = r"(?P<tag>\w[\w.-]{0,127})", rf"(?:@(?P<digest>{DIGEST}))?"
FORMS = {
    "oci": re.compile(rf"(?P<place>{HOST})/(?P<name>{PART}(?:/{PART})*)(?::{TAG})?{AT_DIGEST}"),
    "hf": re.compile(r"(?P<place>[\w.-]+)/(?P<name>[\w.-]+)(?:@(?P<tag>[\w./-]+))?(?P<digest>(?!))?"),
    "s3": re.compile(rf"(?P<place>[a-z0-9][a-z0-9.-]+)/(?P<name>[^@?#\s]*[^@?#\s/])/?(?P<tag>(?!))?{AT_DIGEST}"),
}
EXAMPLES = "oci://HOST/REPOSITORY:TAG, hf://OWNER/NAME or s3://BUCKET/FOLDER"
LOOPBACK = re.compile(r"(localhost|127\.\d+\.\d+\.\d+|\[::1\])(:\d+)?")


class Address(NamedTuple):
    """One artefact in a registry.  `tag` is also a revision of the hub."""

    scheme: str
    place: str  # host, owner or bucket
    name: str
    tag: str | None
    digest: str | None  # of what the registry keeps about it: a manifest

    def __str__(self) -> str:
        """As it is given."""
        tag = "" if self.tag is None else f"{'@' if self.scheme == 'hf' else ':'}{self.tag}"
        return f"{self.scheme}://{self.place}/{self.name}{tag}{'' if self.digest is None else f'@{self.digest}'}"

    @property
    def is_loopback(self) -> bool:
        """Whether it is on this machine."""
        return LOOPBACK.fullmatch(self.place) is not None


def address_of(text: str) -> Address:
    """What somebody has typed.  Raises UsageError."""
    scheme, _, rest = str(text).partition("://")
    match = FORMS[scheme].fullmatch(rest) if scheme in FORMS else None
    if not match:
        hint = ", in lower case, with a digest of 64 digits" if scheme == "oci" else ""
        raise UsageError(f"{text}: is no address of an artefact: give one as {EXAMPLES}{hint}")
    return Address(scheme, match["place"], match["name"], match["tag"], match["digest"])
