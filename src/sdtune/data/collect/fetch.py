"""HTTP to places that strangers name: public addresses only, bounded in size, time and number, and polite.

Each hop of a redirect is looked up once, its addresses are checked, and the connection goes to an address that was
checked: a name that resolves differently a moment later changes nothing. Proxies of the environment are not used, since
the check would be theirs. Cookies and bodies are never sent.
"""

from __future__ import annotations

import http.client
import ipaddress
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any, NamedTuple
from urllib.parse import quote, urlencode, urljoin, urlsplit

from sdtune.errors import ConfigError, DataError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
REDIRECTS = 5
PATIENCE = 120.0
"""Seconds that a server may ask to wait before the next try; if it asks for more, the picture is left for later."""
ANSWER_BYTES = 20 * 2**20
"""The largest answer of an API."""
_BUSY = (408, 425, 429, 500, 502, 503, 504)
_MOVED = (301, 302, 303, 307, 308)
_SAFE = "/%:@!$&'()*+,;=~-._"
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


class FetchError(DataError):
    """Something cannot be had. `status` is the HTTP status, if that is why. The text names no query: keys stand there."""

    def __init__(self, what: str, status: int = 0) -> None:
        super().__init__(what)
        self.status = status


class Halted(Exception):
    """The user wants to stop."""


class _Busy(FetchError):
    """It may work in a moment; `after` seconds, if the server says so."""

    def __init__(self, what: str, status: int = 0, after: float | None = None) -> None:
        super().__init__(what, status)
        self.after = after


class Place(NamedTuple):
    """Where an address leads."""

    secure: bool
    host: str
    port: int
    target: str

    @property
    def shown(self) -> str:
        return f"{self.host}{self.target.partition('?')[0]}"


def place(url: str) -> Place:
    """An address taken apart. Raises FetchError for what is not plain http or https."""
    try:
        parts = urlsplit(url.strip())
        host, port = parts.hostname or "", parts.port
        host = host if host.isascii() else host.encode("idna").decode()
    except ValueError:  # UnicodeError is one
        raise FetchError("not an address that can be read") from None
    if parts.scheme not in ("http", "https"):
        raise FetchError(f"{parts.scheme or 'no scheme'}: only http and https addresses are fetched")
    if not host or parts.username is not None or parts.password is not None:
        raise FetchError("an address without a host, or with a user's name in it, is not fetched")
    secure = parts.scheme == "https"
    target = quote(parts.path or "/", _SAFE) + (f"?{quote(parts.query, _SAFE + '?')}" if parts.query else "")
    return Place(secure, host, port or (443 if secure else 80), target)


def public(address: Address) -> bool:
    """Whether an address is one of the public internet; one that wraps an IPv4 address is judged by that."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return public(inner)
        if address.teredo or address.is_site_local:
            return False
    kinds = (address.is_private, address.is_loopback, address.is_link_local, address.is_multicast, address.is_reserved)
    return address.is_global and not any(kinds) and not address.is_unspecified


class Client:
    """Fetches, one thing at a time. `stop` is asked while it waits, and ends the waiting by Halted."""

    def __init__(
        self,
        contact: str = "",
        *,
        stop: Callable[[], bool] = lambda: False,
        timeout: float = 20.0,
        deadline: float = 300.0,
        api_interval: float = 1.0,
        file_interval: float = 0.25,
        tries: int = 5,
        backoff: float = 1.0,
        permitted: Callable[[Address], bool] = public,
    ) -> None:
        """`timeout`: seconds for one sign of life; `deadline`: for one answer as a whole; `backoff`: before the second try.

        The intervals are seconds between two requests to the same host. `permitted` is `public` but in tests.
        """
        self.agent = user_agent(contact)
        self._stop, self._permitted = stop, permitted
        self._timeout, self._deadline, self._tries, self._backoff = timeout, deadline, tries, backoff
        self._api_interval, self._file_interval = api_interval, file_interval
        self._next: dict[str, float] = {}
        self._tls = ssl.create_default_context()

    def json(
        self, url: str, query: Mapping[str, object] | None = None, headers: Mapping[str, str] | None = None
    ) -> Any:
        """What an API answers. Raises FetchError."""
        asked = f"{url}?{urlencode(query)}" if query else url
        data = self._patiently(
            asked, {"Accept": "application/json", **(headers or {})}, ANSWER_BYTES, self._api_interval
        )
        try:
            return json.loads(data)
        except (ValueError, RecursionError):
            raise FetchError(f"{place(url).shown}: the answer is not JSON") from None

    def file(self, url: str, most: int) -> bytes:
        """The bytes of a file of at most `most` bytes. Raises FetchError."""
        return self._patiently(url, {"Accept": "image/*"}, most, self._file_interval)

    def _patiently(self, url: str, headers: Mapping[str, str], most: int, interval: float) -> bytes:
        for number in range(1, self._tries + 1):
            try:
                return self._follow(url, headers, most, interval)
            except _Busy as error:
                pause = self._backoff * 2 ** (number - 1) if error.after is None else error.after
                if pause > PATIENCE:
                    raise FetchError(f"{error}; it asks to wait {pause:.0f} seconds", error.status) from None
                if number == self._tries:
                    raise FetchError(f"{error} ({number} tries)", error.status) from None
                self._sleep(pause)
        raise AssertionError

    def _follow(self, url: str, headers: Mapping[str, str], most: int, interval: float) -> bytes:
        """The body at the end of the redirects. Headers that only the first host may see go to no other."""
        first = at = place(url)
        for _ in range(REDIRECTS + 1):
            self._take_turn(at.host, interval)
            sent = headers if at[:3] == first[:3] else {k: v for k, v in headers.items() if k != "Authorization"}
            data, moved = self._ask(at, sent, most)
            if moved is None:
                return data
            url = urljoin(url, moved)
            at = place(url)
        raise FetchError(f"{first.shown}: redirected more than {REDIRECTS} times")

    def _ask(self, at: Place, headers: Mapping[str, str], most: int) -> tuple[bytes, str | None]:
        """The body, or where it has moved to."""
        try:
            with self._connected(at) as connection:
                connection.request("GET", at.target, headers={**self._headers(), **headers})
                with connection.getresponse() as answer:
                    if answer.status in _MOVED and (moved := answer.getheader("Location")):
                        return b"", moved
                    if answer.status != HTTPStatus.OK:
                        raise _refusal(at, answer)
                    return _body(at, answer, most), None
        except FetchError:
            raise
        except TimeoutError:
            raise _Busy(f"{at.shown}: no answer within {self._timeout:g} seconds") from None
        except ssl.SSLCertVerificationError as error:
            raise FetchError(f"{at.host}: its certificate is not to be trusted ({error.verify_message})") from None
        except http.client.IncompleteRead:
            raise _Busy(f"{at.shown}: the answer ends in the middle") from None
        except (OSError, http.client.HTTPException) as error:
            raise _Busy(f"{at.shown}: the connection failed ({_line(error)})") from None

    def _headers(self) -> dict[str, str]:
        return {"User-Agent": self.agent, "Accept-Encoding": "identity", "Connection": "close"}

    @contextmanager
    def _connected(self, at: Place) -> Iterator[http.client.HTTPConnection]:
        """A connection to one of the checked addresses, cut when the deadline comes, wherever it then is."""
        sock = self._reach(at)
        late = threading.Event()

        def end() -> None:
            late.set()
            _shut(sock)

        cut = threading.Timer(self._deadline, end)
        cut.daemon = True
        try:
            kind: type[http.client.HTTPConnection] = http.client.HTTPConnection
            if at.secure:
                kind = http.client.HTTPSConnection
                sock = self._tls.wrap_socket(sock, server_hostname=at.host, do_handshake_on_connect=False)
            cut.start()
            if isinstance(sock, ssl.SSLSocket):
                sock.do_handshake()
            connection = kind(at.host, at.port)
            connection.sock = sock  # it must not look the name up again
            yield connection
            if late.is_set():  # an answer without a length ends like a whole one
                raise FetchError("")
        except (OSError, ValueError, http.client.HTTPException, FetchError):
            if late.is_set():
                raise FetchError(f"{at.shown}: not done within {self._deadline:g} seconds") from None
            raise
        finally:
            cut.cancel()
            sock.close()

    def _reach(self, at: Place) -> socket.socket:
        """A socket that is connected to one of the checked addresses."""
        failure: OSError = OSError("no address")
        for address in self._addresses(at)[:4]:
            try:
                return socket.create_connection((str(address), at.port), self._timeout)
            except OSError as error:
                failure = error
        raise failure

    def _addresses(self, at: Place) -> list[Address]:
        """All addresses of a host, each of them permitted. Raises FetchError if one is not."""
        try:
            found: list[Address] = [ipaddress.ip_address(at.host)]
        except ValueError:
            try:
                answers = socket.getaddrinfo(at.host, at.port, type=socket.SOCK_STREAM)
            except (socket.gaierror, UnicodeError) as error:
                kind = _Busy if getattr(error, "errno", None) == socket.EAI_AGAIN else FetchError
                raise kind(f"{at.host}: no such host was found") from None
            found = [ipaddress.ip_address(str(answer[4][0]).partition("%")[0]) for answer in answers]
        for address in found:
            if not self._permitted(address):
                raise FetchError(f"{at.host}: leads to {address}, which is no public address; not fetched")
        return list(dict.fromkeys(found))

    def _take_turn(self, host: str, interval: float) -> None:
        self._sleep(self._next.get(host, 0.0) - time.monotonic())
        self._next[host] = time.monotonic() + interval

    def _sleep(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while not self._stop():
            if (left := until - time.monotonic()) <= 0:
                return
            time.sleep(min(left, 0.2))
        raise Halted


def user_agent(contact: str) -> str:
    """sdtune with its version, and whom to tell when it misbehaves."""
    from importlib.metadata import version

    if not contact.isascii() or not contact.isprintable():
        raise ConfigError(f"--contact {contact!r}: give an e-mail address or the address of a page")
    return f"sdtune/{version('sdtune')} (collects pictures{f'; {contact}' if contact else ''})"


def _refusal(at: Place, answer: http.client.HTTPResponse) -> FetchError:
    try:
        said = f"{answer.status} {HTTPStatus(answer.status).phrase}"
    except ValueError:
        said = str(answer.status)
    what = f"{at.shown}: answers {said}"
    if answer.status in _BUSY:
        return _Busy(what, answer.status, _retry_after(answer.getheader("Retry-After")))
    return FetchError(what, answer.status)


def _retry_after(text: str | None) -> float | None:
    """Seconds, from a number or a date; None if there is neither."""
    if text is None:
        return None
    if text.strip().isdecimal():
        return float(text)
    try:
        when = parsedate_to_datetime(text)
    except ValueError:
        return None
    return max(0.0, (when.replace(tzinfo=when.tzinfo or UTC) - datetime.now(UTC)).total_seconds())


def _body(at: Place, answer: http.client.HTTPResponse, most: int) -> bytes:
    if (answer.getheader("Content-Encoding") or "identity").lower() != "identity":
        raise FetchError(f"{at.shown}: answers compressed, though asked not to")
    too_large = f"{at.shown}: more than {most / 2**20:g} MB"
    if answer.length is not None and answer.length > most:
        raise FetchError(too_large)
    data = bytearray()
    while part := answer.read1(2**16):
        data += part
        if len(data) > most:
            raise FetchError(too_large)
    if answer.length:  # read1 does not mind an end that comes too early
        raise http.client.IncompleteRead(b"", answer.length)
    return bytes(data)


def _shut(sock: socket.socket) -> None:
    with suppress(OSError):  # it may be closed already
        sock.shutdown(socket.SHUT_RDWR)


def _line(error: BaseException) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return ("".join(c for c in text if c.isprintable()) or type(error).__name__)[:120]
