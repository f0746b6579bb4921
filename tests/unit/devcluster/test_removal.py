from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from uellm_devcluster import removal
from uellm_devcluster.errors import ClusterError
from uellm_devcluster.removal import remove_tree


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "folder"
    (made / "deep").mkdir(parents=True)
    (made / "deep" / "file").write_text("x")
    return made


@pytest.fixture
def interfered(monkeypatch: pytest.MonkeyPatch):
    """Something happens in the folder between `rmtree`'s look at it and its removal of what it saw, once or always."""

    def arrange(happens, *, always: bool = False) -> None:
        rmdir, pending = removal.shutil.os.rmdir, [True]

        def late(path, **options):
            if always or pending:
                pending.clear()
                happens()
            rmdir(path, **options)

        monkeypatch.setattr(removal.shutil.os, "rmdir", late)

    return arrange


def test_a_folder_is_removed_with_its_content_and_a_missing_one_is_not_an_error(folder):
    remove_tree(folder)
    assert not folder.exists()
    remove_tree(folder)


def test_a_file_that_a_dying_process_removes_first_is_not_an_error(folder, interfered):
    (folder / "other").mkdir()
    remove = shutil.os.rmdir
    interfered(lambda: remove(folder / "other") if (folder / "other").exists() else remove(folder / "deep"))
    remove_tree(folder)
    assert not folder.exists()


def test_a_file_that_a_dying_process_still_creates_is_removed_too(folder, interfered):
    interfered(lambda: (folder / "late").write_text("x"))
    remove_tree(folder)
    assert not folder.exists()


def test_a_folder_that_is_refilled_all_the_time_is_reported(folder, interfered, monkeypatch):
    monkeypatch.setattr(removal, "_TIMEOUT_S", 0.1)
    interfered(lambda: (folder / "late").write_text("x"), always=True)
    with pytest.raises(ClusterError, match="folder does not go: some process still writes into it"):
        remove_tree(folder)


def test_a_permission_error_is_raised_unchanged(folder, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(removal.shutil, "rmtree", refuse)
    with pytest.raises(PermissionError):
        remove_tree(folder)
