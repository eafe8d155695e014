"""Where pictures are searched for: one small class each, all with the same few words.

What strangers wrote (titles, names, addresses) becomes plain text of one line here, before anything else sees it.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote, urlsplit, urlunsplit

from sdtune.data.collect.fetch import Client, FetchError
from sdtune.data.collect.keys import key
from sdtune.data.collect.licences import UNKNOWN, Licence, allowed, codes_of, licence
from sdtune.errors import ConfigError, DataError

MAX_PAGES = 200
"""Pages of one search that are read at most, whatever the service says of more."""
WIDTH = 1920
"""Larger pictures are asked for at this width where a service scales them: kinder to it, and more than is trained on."""


@dataclass(frozen=True)
class Found:
    """A picture that a source offers. Texts are plain, of one line, "" where the source says nothing."""

    source: str
    id: str
    url: str
    """Of the file itself."""
    title: str = ""
    caption: str = ""
    """What the source says that it shows, if only in a title; with `own`, what the user says."""
    description: str = ""
    """The same where it is a description, which a title need not be."""
    own: bool = False
    author: str = ""
    licence: Licence = UNKNOWN
    page: str = ""
    """For people."""
    width: int = 0
    """Of the file that `url` gives, as the source says; 0: unknown."""
    height: int = 0
    report: str = ""
    """An address of the service's own that is to be told that the picture was fetched."""

    @property
    def key(self) -> str:
        return f"{self.source}/{self.id}"


class Source(Protocol):
    """A source gives pictures in its own order, only those of the wanted licences. Raises FetchError where it breaks off."""

    name: str
    size: int | None
    """How many pictures it has in all, where that is known without asking."""
    endless: bool
    """Whether nobody would want all of it."""
    captioned: bool
    """Whether each of its pictures has a caption by the user, if there is no QUERY."""
    notice: str
    """What its users should know each time."""

    def search(self, query: str, limit: int) -> Iterator[Found]:
        """At most `limit` pictures; pages are asked for as they are needed."""

    def fetched(self, found: Found) -> None:
        """Do what the service asks for after a download."""


class _Service:
    """What the services on the network share."""

    name: str = ""
    size: int | None = None
    endless = True
    captioned = False
    notice: str = ""

    def __init__(self, client: Client, wanted: str = "any") -> None:
        self._client, self._wanted = client, wanted
        self._codes = codes_of(wanted)

    def search(self, query: str, limit: int) -> Iterator[Found]:
        given = 0
        for found in self._results(query.strip(), limit):
            if allowed(self._wanted, found.licence.code):
                yield found
                given += 1
                if given >= limit:
                    return

    def _results(self, query: str, limit: int) -> Iterator[Found]:
        raise NotImplementedError

    def fetched(self, found: Found) -> None:
        pass


class Openverse(_Service):
    """https://api.openverse.org, without a key: 20 pictures a page, and a bounded number of pages."""

    name = "openverse"
    address = "https://api.openverse.org/v1/images/"
    page = 20
    _codes_known = ("by", "by-nc", "by-nc-nd", "by-nc-sa", "by-nd", "by-sa", "cc0", "pdm")

    def _results(self, query: str, limit: int) -> Iterator[Found]:
        asked: dict[str, object] = {"q": query, "page_size": self.page}
        if self._codes is not None:
            asked["license"] = ",".join(code for code in self._codes_known if code in self._codes)
        for number in range(1, MAX_PAGES + 1):
            try:
                answer = _object(self._client.json(self.address, {**asked, "page": number}))
            except FetchError as error:
                if number > 1 and error.status in (400, 401, 403, 404):
                    return  # deeper pages are not for those without a key
                raise
            results = _objects(answer.get("results"))
            yield from map(self._found, results)
            if not results or number >= _int(answer.get("page_count")):
                return

    def _found(self, item: dict[str, Any]) -> Found:
        code, version = _text(item.get("license")).lower(), _text(item.get("license_version"))
        given = licence(_text(item.get("license_url")), f"CC {code} {version}".strip())
        return Found(
            self.name,
            _text(item.get("id")),
            _url(item.get("url")),
            title=_text(item.get("title")),
            caption=_text(item.get("title")),
            author=_text(item.get("creator")),
            licence=replace(given, code=code) if code in self._codes_known else given,
            page=_url(item.get("foreign_landing_url")),
            width=_int(item.get("width")),
            height=_int(item.get("height")),
        )


class Commons(_Service):
    """Wikimedia Commons. Licence and author stand as HTML in a file's extended metadata."""

    name = "commons"
    address = "https://commons.wikimedia.org/w/api.php"
    page = 50
    _kinds = ("image/jpeg", "image/png", "image/webp", "image/gif", "image/tiff")

    def _results(self, query: str, limit: int) -> Iterator[Found]:
        asked: dict[str, object] = {
            "action": "query",
            "format": "json",
            "formatversion": 2,
            "generator": "search",
            "gsrsearch": f"{query} filetype:bitmap",
            "gsrnamespace": 6,
            "gsrlimit": self.page,
            "prop": "imageinfo",
            "iiprop": "url|size|mime|extmetadata",
            "iiextmetadatalanguage": "en",
            "iiurlwidth": WIDTH,
            "maxlag": 5,
        }
        for _ in range(MAX_PAGES):
            answer = _object(self._client.json(self.address, asked))
            if error := answer.get("error"):
                raise FetchError(_text(_object(error).get("info")) or "an error without a text")
            pages = _objects(_object(answer.get("query") or {}).get("pages") or [])
            for item in sorted(pages, key=lambda p: _int(p.get("index"))):
                # a long page comes in parts: files whose information is in another part have none here
                for info in _objects(item.get("imageinfo") or [])[:1]:
                    if info.get("mime") in self._kinds:
                        yield self._found(item, info)
            if not (more := answer.get("continue")):
                return
            asked = {**asked, **_object(more)}

    def _found(self, item: dict[str, Any], info: dict[str, Any]) -> Found:
        said = {name: _text(_object(v).get("value")) for name, v in _object(info.get("extmetadata") or {}).items()}
        smaller = _int(info.get("thumbwidth")) and _int(info.get("width")) > WIDTH
        name = _text(item.get("title")).removeprefix("File:").rpartition(".")[0]
        return Found(
            self.name,
            str(_int(item.get("pageid"))),
            _url(info.get("thumburl" if smaller else "url")),
            title=name,
            caption=said.get("ImageDescription", "") or name,
            description=said.get("ImageDescription", ""),
            author=said.get("Artist", ""),
            licence=licence(said.get("LicenseUrl", ""), said.get("LicenseShortName", "")),
            page=_url(info.get("descriptionurl")),
            width=_int(info.get("thumbwidth" if smaller else "width")),
            height=_int(info.get("thumbheight" if smaller else "height")),
        )


class Unsplash(_Service):
    """https://api.unsplash.com, with an access key. Each download is reported, as its guidelines ask."""

    name = "unsplash"
    address = "https://api.unsplash.com/search/photos"
    page = 30
    licence = Licence("unsplash", "Unsplash License", "https://unsplash.com/license")
    notice = (
        "Unsplash's API guidelines exclude training models and automated downloads unless Unsplash agrees;"
        " its Lite dataset is licensed for training (docs: Pictures and captions, Collecting)"
    )

    def __init__(self, client: Client, wanted: str = "any") -> None:
        super().__init__(client, wanted)
        secret = key("UNSPLASH_ACCESS_KEY", "https://unsplash.com/developers")
        self._headers = {"Authorization": f"Client-ID {secret}", "Accept-Version": "v1"}

    def _results(self, query: str, limit: int) -> Iterator[Found]:
        asked: dict[str, object] = {"query": query, "per_page": self.page, "content_filter": "high"}
        for number in range(1, MAX_PAGES + 1):
            answer = _object(self._asked(self.address, {**asked, "page": number}))
            results = _objects(answer.get("results"))
            yield from map(self._found, results)
            if not results or number >= _int(answer.get("total_pages")):
                return

    def _asked(self, url: str, query: Mapping[str, object] | None = None) -> Any:
        try:
            return self._client.json(url, query, self._headers)
        except FetchError as error:
            why = {
                401: "the key in UNSPLASH_ACCESS_KEY is not accepted",
                403: "no more requests for now (a demo key has 50 an hour); the same command goes on later",
            }
            raise FetchError(why[error.status]) from None if error.status in why else error

    def _found(self, item: dict[str, Any]) -> Found:
        user, links = _object(item.get("user") or {}), _object(item.get("links") or {})
        width, height = _scaled(_int(item.get("width")), _int(item.get("height")), WIDTH)
        said = _text(item.get("alt_description")) or _text(item.get("description"))
        return Found(
            self.name,
            _text(item.get("id")),
            _with_width(_url(_object(item.get("urls") or {}).get("raw")), WIDTH),
            title=_text(item.get("description")) or said,
            caption=said,
            description=said,
            author=_text(user.get("name")) or _text(user.get("username")),
            licence=self.licence,
            page=_url(links.get("html")),
            width=width,
            height=height,
            report=_url(links.get("download_location")),
        )

    def fetched(self, found: Found) -> None:
        """Counts the download for its photographer. The key goes to no other host than the service's own."""
        if urlsplit(found.report)[:2] == urlsplit(self.address)[:2]:
            self._asked(found.report)


class Flickr(_Service):
    """https://www.flickr.com, with an API key. Pictures with all rights reserved are never asked for."""

    name = "flickr"
    address = "https://api.flickr.com/services/rest/"
    page = 100

    def __init__(self, client: Client, wanted: str = "any") -> None:
        super().__init__(client, wanted)
        self._key = key("FLICKR_API_KEY", "https://www.flickr.com/services/apps/create/")

    def _results(self, query: str, limit: int) -> Iterator[Found]:
        licences = self._licences()
        wanted = [n for n, given in licences.items() if n != "0" and allowed(self._wanted, given.code)]
        if not wanted:
            raise FetchError(f"has no licence of --licence {self._wanted}")
        asked: dict[str, object] = {
            "text": query,
            "license": ",".join(wanted),
            "media": "photos",
            "content_types": "0",
            "safe_search": 1,
            "sort": "relevance",
            "extras": "url_l,url_o,owner_name,license,description",
            "per_page": self.page,
        }
        for number in range(1, MAX_PAGES + 1):
            photos = _object(self._asked("flickr.photos.search", {**asked, "page": number}).get("photos"))
            results = _objects(photos.get("photo"))
            for item in results:
                if found := self._found(item, licences):
                    yield found
            if not results or number >= _int(photos.get("pages")):
                return

    def _licences(self) -> dict[str, Licence]:
        """What the numbers mean, as the service says it: the list grows now and then."""
        answer = _object(self._asked("flickr.photos.licenses.getInfo", {}).get("licenses"))
        return {
            str(_int(item.get("id"))): licence(_url(item.get("url")), _text(item.get("name")))
            for item in _objects(answer.get("license"))
        }

    def _asked(self, method: str, query: Mapping[str, object]) -> dict[str, Any]:
        fixed = {"method": method, "api_key": self._key, "format": "json", "nojsoncallback": 1}
        answer = _object(self._client.json(self.address, {**fixed, **query}))
        if answer.get("stat") != "ok":
            if answer.get("code") == 100:
                raise FetchError("the key in FLICKR_API_KEY is not accepted")
            raise FetchError(_text(answer.get("message")).replace(self._key, "...") or "an error without a text")
        return answer

    def _found(self, item: dict[str, Any], licences: Mapping[str, Licence]) -> Found | None:
        size = next((s for s in ("l", "o") if item.get(f"url_{s}")), None)
        given = licences.get(str(_int(item.get("license"))))
        if size is None or given is None:
            return None
        title, number = _text(item.get("title")), _text(item.get("id"))
        owner = quote(_text(item.get("owner")), "@")
        return Found(
            self.name,
            number,
            _url(item.get(f"url_{size}")),
            title=title,
            caption=title or _text(_object(item.get("description") or {}).get("_content")),
            author=_text(item.get("ownername")),
            licence=given,
            page=f"https://www.flickr.com/photos/{owner}/{quote(number)}/",
            width=_int(item.get(f"width_{size}")),
            height=_int(item.get(f"height_{size}")),
        )


# ---- lists that lie here


class UrlList:
    """A text file with an address on each line, and optionally a tab and its caption. Lines that begin with # are notes."""

    name = "urls"
    endless = False
    captioned = True
    notice = ""

    def __init__(self, path: Path, query: str, wanted: str = "any") -> None:
        """Raises ConfigError for a line that is no address or leaves its picture without a caption."""
        if codes_of(wanted) is not None:
            raise ConfigError(f"{path}: a list says nothing of licences; use --licence any, and look at them yourself")
        self._found = list(dict.fromkeys(self._read(path, query)))
        if not self._found:
            raise ConfigError(f"{path}: holds no address; write one on each line")
        self.size: int | None = len(self._found)

    def _read(self, path: Path, query: str) -> Iterator[Found]:
        for number, line in enumerate(_lines(path), 1):
            url, _, caption = line.strip().partition("\t")
            if not url or url.startswith("#"):
                continue
            if not _url(url):
                raise ConfigError(f"{path}:{number}: {url[:80]!r} is no http or https address")
            if not (caption := _text(caption)) and not query.strip():
                raise ConfigError(f"{path}:{number}: no caption after a tab, and no QUERY to take as one")
            yield Found(self.name, _url(url), _url(url), caption=caption, own=bool(caption), page=_url(url))

    def search(self, query: str, limit: int) -> Iterator[Found]:
        yield from self._found[:limit]

    def fetched(self, found: Found) -> None:
        pass


class UnsplashLite:
    """A folder with the Unsplash Lite dataset: photos.tsv000, and keywords.tsv000 to search in."""

    name = "unsplash-lite"
    endless = False
    captioned = False
    licence = Licence("unsplash", "Unsplash Dataset terms", "https://unsplash.com/data-terms")
    notice = ""
    width = 1024
    sure = 50.0
    """Keywords of machines count from this confidence on, in per cent; those of people always."""

    def __init__(self, folder: Path, wanted: str = "any") -> None:
        self._photos = sorted(folder.glob("photos.[tc]sv*"))
        self._keywords = sorted(folder.glob("keywords.[tc]sv*"))
        if not self._photos:
            raise ConfigError(f"{folder}: holds no photos.tsv000; unpack the Unsplash Lite dataset there")
        self._wanted = allowed(wanted, self.licence.code)
        self.size: int | None = None

    def search(self, query: str, limit: int) -> Iterator[Found]:
        """Photos with all words of the query among their keywords and in their descriptions; all, without a query."""
        if not self._wanted:
            return
        words = frozenset(re.findall(r"\w+", query.lower()))
        tagged = self._tagged(words) if words else {}
        given = 0
        for row in _table(self._photos, ("photo_id", "photo_image_url")):
            said = re.findall(r"\w+", f"{row.get('photo_description', '')} {row.get('ai_description', '')}".lower())
            if words <= tagged.get(row["photo_id"], frozenset()).union(said) and _url(row["photo_image_url"]):
                yield self._found(row)
                given += 1
                if given >= limit:
                    return

    def _tagged(self, words: frozenset[str]) -> dict[str, set[str]]:
        """Of each photo, which of the words are among its keywords."""
        found: dict[str, set[str]] = {}
        for row in _table(self._keywords, ("photo_id", "keyword")):
            if (here := words.intersection(re.findall(r"\w+", row["keyword"].lower()))) and self._counts(row):
                found.setdefault(row["photo_id"], set()).update(here)
        return found

    def _counts(self, row: Mapping[str, str]) -> bool:
        sure = (_float(row.get(f"ai_service_{n}_confidence")) for n in (1, 2))
        return row.get("suggested_by_user", "").lower() in ("t", "true") or max(sure) >= self.sure

    def _found(self, row: Mapping[str, str]) -> Found:
        width, height = _scaled(_int(row.get("photo_width")), _int(row.get("photo_height")), self.width)
        person = _text(f"{row.get('photographer_first_name', '')} {row.get('photographer_last_name', '')}")
        said = _text(row.get("photo_description")) or _text(row.get("ai_description"))
        return Found(
            self.name,
            _text(row["photo_id"]),
            _with_width(_url(row["photo_image_url"]), self.width),
            title=said,
            caption=said,
            description=said,
            author=person or _text(row.get("photographer_username")),
            licence=self.licence,
            page=_url(row.get("photo_url")),
            width=width,
            height=height,
        )

    def fetched(self, found: Found) -> None:
        pass


SERVICES: dict[str, type[_Service]] = {c.name: c for c in (Openverse, Commons, Unsplash, Flickr)}


def source(name: str, client: Client, query: str, wanted: str = "any") -> Source:
    """The source that --source names: a service, or a file or folder that is here. Raises ConfigError."""
    if name in SERVICES:
        if not query.strip():
            raise ConfigError(f"--source {name}: needs a QUERY to search for")
        return SERVICES[name](client, wanted)
    path = Path(name).expanduser()
    if path.is_dir():
        return UnsplashLite(path, wanted)
    if path.is_file():
        return UrlList(path, query, wanted)
    raise ConfigError(
        f"--source {name}: neither {', '.join(SERVICES)}, nor a file with addresses, nor a folder with the Unsplash Lite dataset"
    )


# ---- what strangers wrote


def plain(text: str, most: int = 500) -> str:
    """A text of one line without HTML and control characters, cut at a word."""
    if "<" in text or "&" in text:
        reader = _Text()
        reader.feed(text[: 20 * most])
        reader.close()
        text = "".join(reader.parts)
    text = "".join(c if c.isprintable() else " " for c in text)
    text = " ".join(text.encode("utf-8", "ignore").decode().split())
    return text if len(text) <= most else text[:most].rpartition(" ")[0] or text[:most]


class _Text(HTMLParser):
    """The text of a piece of HTML, without what browsers do not show."""

    hidden = ("script", "style", "template")

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self._within = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._within += tag in self.hidden
        self.parts.append(" " if tag in ("br", "p", "div", "li", "td", "tr") else "")

    def handle_endtag(self, tag: str) -> None:
        self._within = max(0, self._within - (tag in self.hidden))

    def handle_data(self, data: str) -> None:
        if not self._within:
            self.parts.append(data)


def _text(value: object) -> str:
    return plain(value) if isinstance(value, str) else str(value) if isinstance(value, int | float) else ""


def _url(value: object) -> str:
    """An http or https address without blanks and control characters, or nothing."""
    text = value.strip() if isinstance(value, str) else ""
    text = f"https:{text}" if text.startswith("//") else text
    if not text.startswith(("http://", "https://")) or not text.isprintable() or " " in text or len(text) > 4000:
        return ""
    return text


def _int(value: object) -> int:
    """A count that services give as a number or as digits; 0 for anything else."""
    return value if type(value) is int and value > 0 else int(value) if isinstance(value, str) and _digits(value) else 0


def _digits(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 19


def _float(text: str | None) -> float:
    try:
        return float(text or 0)
    except ValueError:
        return 0.0


def _object(value: object) -> dict[str, Any]:
    if isinstance(value, dict):
        return value
    raise FetchError("an answer of another shape than the documentation has")


def _objects(value: object) -> list[dict[str, Any]]:
    if isinstance(value, list):
        return [_object(item) for item in value]
    raise FetchError("an answer of another shape than the documentation has")


def _with_width(url: str, width: int) -> str:
    """The address of a picture of Unsplash at that width at most."""
    if not url:
        return ""
    parts = urlsplit(url)
    kept = [p for p in parts.query.split("&") if p and not p.startswith("w=")]
    return urlunsplit(parts._replace(query="&".join([*kept, f"w={width}"])))


def _scaled(width: int, height: int, most: int) -> tuple[int, int]:
    return (most, round(height * most / width)) if width > most else (width, height)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as UTF-8 text: {error}") from None


def _table(paths: list[Path], needed: tuple[str, ...]) -> Iterator[dict[str, str]]:
    """The rows of files with a line of names at their head, divided by tabs or commas."""
    for path in paths:
        try:
            with path.open(encoding="utf-8", newline="") as file:
                rows = csv.DictReader(file, delimiter="," if ".csv" in path.name else "\t")
                if lacking := [name for name in needed if name not in (rows.fieldnames or ())]:
                    raise DataError(
                        f"{path}: no column {' or '.join(lacking)}; is it a file of the Unsplash Lite dataset?"
                    )
                yield from ({k: v or "" for k, v in row.items() if isinstance(k, str)} for row in rows)
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise DataError(f"{path}: cannot be read: {error}") from None
