"""The most that a client may ask for."""

from __future__ import annotations

import re
from dataclasses import dataclass

_PAGE_UPLOAD = re.compile(r"/ui/_nicegui/client/[^/]+/upload/\d+")


@dataclass(frozen=True)
class Limits:
    """What is beyond is refused with the field's name and the limit (422, 413 or 429), before anything is made of it."""

    side: int = 2048
    """Pixels, width and height each."""
    pixels: int = 1536 * 1536
    """Of one picture that is drawn."""
    steps: int = 150
    seeds: int = 16
    """Pictures of one job and model."""
    seed: int = 2**53 - 1
    """What JavaScript reads exactly."""
    text: int = 4000
    """Characters of a prompt."""
    guidance: float = 30.0
    strength: float = 4.0
    adapters: int = 4
    """On top of the model, beside each other."""
    body: int = 2**20
    """Bytes of a request without its pictures."""
    upload: int = 16 * 2**20
    """Bytes of an uploaded picture."""
    upload_pixels: int = 4096 * 4096
    uploads: int = 200
    """Uploaded pictures that are kept; the oldest that no open job needs go."""
    pictures: int = 10_000
    """Drawn pictures that are kept, about: one in a hundred more; the oldest that no open job needs go."""
    queue: int = 64
    """Jobs that wait."""
    client: int = 64
    """Jobs of one client that wait."""
    seconds: float = 30.0
    """For a client to send a request's body."""
    room: int = 256 * 2**20
    """Bytes that must be free on the disk before a job is taken."""

    def body_of(self, path: str) -> int:
        """Bytes of a request to this path, at most: more where pictures come with it, which base64 makes a third larger."""
        if path == "/api/uploads" or _PAGE_UPLOAD.fullmatch(path):
            return self.upload
        with_pictures = {
            "/v1/images/edits": 2 * self.upload,
            "/sdapi/v1/img2img": 8 * self.upload // 3,
            "/sdapi/v1/png-info": 4 * self.upload // 3,
        }
        return with_pictures.get(path, 0) + self.body
