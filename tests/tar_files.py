"""Archives for tests, benign and not."""

from __future__ import annotations

import io
import tarfile


def tar_gz(*members: tuple[str, bytes], link: str | None = None, kind: bytes = tarfile.REGTYPE) -> bytes:
    """A gzipped tar archive with these members, all of one kind."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        for name, content in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            entry.type = kind
            if link is not None:
                entry.linkname = link
            archive.addfile(entry, io.BytesIO(content))
    return file.getvalue()
