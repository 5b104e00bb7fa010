"""Everything is imported through the one namespace `edgevlm`, never as a top-level folder."""

from house import LINKED, ROOT, imports


def test_nothing_imports_a_linked_folder_directly() -> None:
    files = [path for name in ("edgevlm", *LINKED, "tests", "tools") for path in (ROOT / name).rglob("*.py")]
    found = [f"{path}:{line}: {name}" for path in files for name, line in imports(path) if name.split(".")[0] in LINKED]
    assert len(files) > 50
    assert not found


def test_linked_folders_are_relative_links() -> None:
    for name in LINKED:
        link = ROOT / "edgevlm" / name
        assert link.is_symlink()
        assert str(link.readlink()) == f"../{name}"
