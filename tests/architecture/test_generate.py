"""Generated text: markers, the map, the reference page."""

from pathlib import Path

from tests.architecture.generate import BEGIN, END, package_map, recipes, reference, with_block

from dialoop.jobs.catalog import CATALOG


def test_only_what_is_between_the_markers_changes() -> None:
    text = f"before\n{BEGIN}\nold\n{END}\nafter\n"
    assert with_block(text, f"{BEGIN}\nnew\n{END}") == f"before\n{BEGIN}\nnew\n{END}\nafter\n"
    assert with_block("no markers\n", "block") == "no markers\n"


def test_the_map_has_files_before_folders_with_their_first_line(tmp_path: Path) -> None:
    (tmp_path / "part").mkdir()
    (tmp_path / "part" / "__init__.py").write_text('"""A part.\n\nMore."""\n')
    (tmp_path / "part" / "inner.py").write_text('"""Inner."""\n')
    (tmp_path / "zeta.py").write_text('"""Zeta."""\n')
    (tmp_path / "notes").mkdir()
    lines = [" ".join(line.split()) for line in package_map(tmp_path)]
    assert lines == ["zeta.py Zeta.", "part/ A part.", "inner.py Inner."]


def test_the_reference_names_every_verb_and_escapes_tables() -> None:
    text = reference()
    assert all(f"## `dialoop {verb}`" in text for verb in CATALOG)
    rows = [line for line in text.splitlines() if line.startswith("| `--")]
    assert rows
    assert all(row.replace("\\|", "").count("|") == 5 for row in rows)


def test_a_recipe_s_first_lines_make_its_row(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(
        "# Do a | b. Run: dialoop sft a.yaml\n# More.\nmodel: x  # no\n"
    )
    (tmp_path / "b.yaml").write_text("# Do b.\n# Run: dialoop pt b.yaml   (see first)\n\n# no\n")
    assert recipes(tmp_path).splitlines()[-2:] == [
        "| [a](../../recipes/a.yaml) | Do a \\| b. More. | `dialoop sft a.yaml` |",
        "| [b](../../recipes/b.yaml) | Do b. see first | `dialoop pt b.yaml` |",
    ]
