"""Files that are read and written back: never over a change, never half, links and permissions kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from redraft.cli import texts
from redraft.errors import RequestError


def test_a_file_that_changed_meanwhile_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"one\r\n")
    source = texts.read(str(path))
    path.write_bytes(b"two\r\n")
    with pytest.raises(RequestError, match=r"a\.txt changed while it was being edited: nothing was written"):
        texts.apply(source, "three")
    assert path.read_bytes() == b"two\r\n"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]
    path.unlink()
    with pytest.raises(RequestError, match="can't be read any more"):
        texts.apply(source, "three")


def test_bytes_links_and_permissions_are_kept(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    path = tmp_path / "real" / "a.txt"
    path.write_bytes("\ufeffa\r\nb\u2028".encode())
    path.chmod(0o600)
    link = tmp_path / "link"
    link.symlink_to(path)
    source = texts.read(str(link))
    assert source.text == "\ufeffa\r\nb\u2028"
    texts.check_writable(source)
    backup = texts.apply(source, source.text + "c\n")
    assert link.is_symlink()
    assert path.read_bytes() == "\ufeffa\r\nb\u2028c\n".encode()
    assert backup.read_bytes() == "\ufeffa\r\nb\u2028".encode()
    assert {p.stat().st_mode & 0o777 for p in (path, backup)} == {0o600}
