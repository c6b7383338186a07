"""HTTP to a registry of containers: who we are, what is worth another try, and what it answers, in one line."""

from __future__ import annotations

import base64
import contextlib
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

from ..errors import RunError, printable
from ..support.extras import needs
from ..support.words import first_line
from ..version import __version__
from .credentials import credentials
from .patience import Dropped

TIMEOUT, CONNECT = 120.0, 15.0  # seconds without a byte; until it answers at all
BUSY = (408, 429, 500, 502, 503, 504)
PARAMETER = re.compile(r'(\w+)="([^"]*)"')
Content = Callable[[], Iterable[bytes]]


class Session:
    """A conversation with one host.  What it is told of us goes to that host, and to the one that it has tokens made by."""

    def __init__(self, host: str, plain: bool, what: str) -> None:
        self.httpx = needs("httpx", "registry")
        self.host, self.what = host, what
        self.root = self.httpx.URL(f"{'http' if plain else 'https'}://{host}")
        self._authorization: str | None = None
        timeout = self.httpx.Timeout(TIMEOUT, connect=CONNECT)
        headers = {"User-Agent": f"l2c-export/{__version__}", "Accept-Encoding": "identity"}  # bytes as they were hashed
        self._client = self.httpx.Client(timeout=timeout, headers=headers, event_hooks={"request": [self._refuse_downgrade]})

    def close(self) -> None:
        """Hang up."""
        self._client.close()

    def url(self, path: str) -> Any:
        """A path of the host, or the whole address that it has told us, as one."""
        return self.root.join(path)

    @contextlib.contextmanager
    def asked(
        self, method: str, path: Any, good: Collection[int], headers: Mapping[str, str] | None = None,
        content: Content | None = None,
    ) -> Iterator[Any]:  # fmt: skip
        """Its answer, whose body is not read yet, to one request; once more with a token where it wants one.

        Raises Dropped where another try may help, RunError for an answer that is none of `good`.
        """
        with self._dropping():
            response = self._sent(method, path, headers, content)
            if response.status_code == 401 and self._authorised(response):
                response.read()
                response = self._sent(method, path, headers, content)
            try:
                if response.status_code in BUSY:
                    raise Dropped(f"{self.host} answers {response.status_code}", _pause(response))
                if response.status_code not in good:
                    raise self._refusal(response)
                yield response
            finally:
                response.close()

    def _sent(self, method: str, path: Any, headers: Mapping[str, str] | None, content: Content | None) -> Any:
        url = self.url(path)
        own = dict(headers or {})
        if self._authorization and (url.scheme, url.netloc) == (self.root.scheme, self.root.netloc):
            own["Authorization"] = self._authorization
        request = self._client.build_request(method, url, headers=own, content=content() if content else None)
        response = self._client.send(request, stream=True, follow_redirects=method in ("GET", "HEAD"))
        if method != "GET":
            response.read()  # it is short, and read to its end the connection is of further use
        return response

    @contextlib.contextmanager
    def _dropping(self) -> Iterator[None]:
        """What the library raises where a connection breaks; for what never was one, the error in one line."""
        try:
            yield
        except (self.httpx.TransportError, self.httpx.StreamError) as error:
            raise Dropped(f"the connection to {self.host} failed: {first_line(error)}") from None
        except (self.httpx.HTTPError, self.httpx.InvalidURL) as error:
            raise RunError(f"{self.what}: {first_line(error)}") from None

    def _refuse_downgrade(self, request: Any) -> None:
        if self.root.scheme == "https" and request.url.scheme != "https":
            raise RunError(f"{self.what}: {self.host} leads to {request.url.host} without TLS: do not use it")

    def _authorised(self, response: Any) -> bool:
        """Whether there is now more to say of who we are: a token that its challenge asks for, or name and password."""
        scheme, _, rest = response.headers.get("WWW-Authenticate", "").partition(" ")
        known = credentials(self.host)
        if scheme.lower() == "basic" and known and self._authorization is None:
            self._authorization = f"Basic {base64.b64encode(':'.join(known).encode()).decode()}"
            return True
        if scheme.lower() != "bearer":
            return False
        asked = dict(PARAMETER.findall(rest))
        token = self._token(asked.pop("realm", ""), asked, known)
        self._authorization = f"Bearer {token}"
        return True

    def _token(self, realm: str, asked: Mapping[str, str], known: tuple[str, str] | None) -> str:
        """A token of the service that the host names."""
        url = self.url(realm)
        wanted = {key: asked[key] for key in ("service", "scope") if key in asked}
        response = self._client.get(url.copy_merge_params(wanted), auth=known, follow_redirects=False)
        if response.status_code in BUSY:
            raise Dropped(f"{url.host} answers {response.status_code}", _pause(response))
        try:
            told = response.json() if response.status_code == 200 else {}
            token = told.get("token") or told.get("access_token")
        except (ValueError, AttributeError):
            token = None
        if not isinstance(token, str):
            raise self._refusal(response)
        return token

    def _refusal(self, response: Any) -> RunError:
        """What it has answered, with what it says of it."""
        status, words = response.status_code, self._words(response)
        if status in (401, 403):
            return RunError(f"{self.what}: {self.host} does not let us ({status}{words}): docker login {self.host}")
        if status == 404:
            return RunError(f"{self.what}: {self.host} has nothing there ({status}{words}): check the address")
        return RunError(f"{self.what}: {self.host} answers {status}{words}")

    def _words(self, response: Any) -> str:
        with contextlib.suppress(Exception):  # whatever it has sent
            response.read()
            told = response.json()["errors"][0]
            return f", {printable(str(told.get('message') or told['code']))[:200]}"
        return ""


def _pause(response: Any) -> float | None:
    told = response.headers.get("Retry-After", "")
    return float(told) if told.isdecimal() else None
