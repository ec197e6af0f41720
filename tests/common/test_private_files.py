"""What is written for its owner alone: modes, and all of it or nothing."""

import os

import pytest

from fedpact.common.errors import StorageError
from fedpact.common.private_files import private_folder, write_private


def test_private_files_are_for_their_owner_and_replace_what_was_there(tmp_path):
    before = os.umask(0)
    try:
        path = tmp_path / "new" / "key"
        write_private(path, b"first")
        write_private(path, b"second")
    finally:
        os.umask(before)
    assert path.read_bytes() == b"second"
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert list(path.parent.iterdir()) == [path]


def test_what_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="file cannot be made"):
        write_private(tmp_path / "file" / "key", b"")
    with pytest.raises(StorageError, match="file cannot be made"):
        private_folder(tmp_path / "file")
    (tmp_path / "folder").mkdir()
    with pytest.raises(StorageError, match="folder cannot be written"):
        write_private(tmp_path / "folder", b"")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_a_write_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "kept"
    write_private(path, b"old")

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StorageError, match="No space left"):
        write_private(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
