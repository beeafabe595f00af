"""Archives for tests, benign and not."""

from __future__ import annotations

import gzip
import io
import tarfile


def tar_gz(*members: tuple[str, bytes], link: str | None = None, kind: bytes = tarfile.REGTYPE) -> bytes:
    """A gzipped tar archive with these members, all of one kind.

    The same bytes at any time: they are part of the names of tests, on which the workers of pytest-xdist must agree.
    """
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, content in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            entry.type = kind
            if link is not None:
                entry.linkname = link
            archive.addfile(entry, io.BytesIO(content))
    return gzip.compress(file.getvalue(), mtime=0)
