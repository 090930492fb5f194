"""A file where a folder is needed is the request's fault, not ours."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from dialoop.core.errors import UserError
from dialoop.core.files import lock_folder, new_folder, refuse_file, write_text

OPENERS: list[Callable[[Path], AbstractContextManager[object]]] = [
    new_folder, lambda folder: lock_folder(folder, "test"),
]  # fmt: skip


@pytest.mark.parametrize("opened", OPENERS)
@pytest.mark.parametrize("below", ["a", "a/b"])
def test_no_folder_is_made_below_a_file(
    tmp_path: Path, opened: Callable[[Path], AbstractContextManager[object]], below: str
) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("a,b", encoding="utf-8")
    with pytest.raises(UserError, match=r"rows\.csv` is a file, and"), opened(file / below):
        pass
    with pytest.raises(UserError, match=r"rows\.csv` is a file, and"):
        write_text(file / below / "x.txt", "x")
    assert file.read_text(encoding="utf-8") == "a,b"


def test_a_lock_needs_a_folder(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.touch()
    with pytest.raises(UserError, match="is a file"), lock_folder(file, "test"):
        pass


def test_errors_of_other_files_are_not_ours_to_explain(tmp_path: Path) -> None:
    with pytest.raises(FileExistsError), new_folder(tmp_path / "new") as folder:
        (folder / ".").mkdir()
    refuse_file(tmp_path / "new" / "deeper")
