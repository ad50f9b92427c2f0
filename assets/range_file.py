"""What is read by parts, as the file that readers of archives and tables want."""

import io
from typing import BinaryIO, cast

from assets.storage import PIECE, Bytes


class RangeFile(io.RawIOBase):
    """Bytes as a file, to read and to seek in.

    Args:
        size: of them.
    """

    def __init__(self, content: Bytes, size: int) -> None:
        self._content, self._size, self._at = content, size, 0

    @classmethod
    def open(cls, content: Bytes, size: int) -> BinaryIO:
        """Reads ahead: whoever looks through the headers of an archive asks for a few bytes at a time."""
        return cast(BinaryIO, io.BufferedReader(cls(content, size), PIECE))

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence])
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        size = max(0, min(len(buffer), self._size - self._at))
        try:
            buffer[:size] = b"".join(self._content.pieces(self._at, size))
        except ValueError as error:  # as readers of files expect it
            raise OSError(str(error)) from error
        self._at += size
        return size

    def close(self) -> None:
        if not self.closed:
            self._content.close()
        super().close()
