"""A module imports only from the floors below its own, so that nothing above can break what is beneath."""

from house import FLOORS, below, imports, modules


def _place(name: str) -> tuple[int, str] | None:
    """Floor and folder of a module; None where no entry holds it. The longest entry decides the floor."""
    found = [(entry, floor) for floor, entries in enumerate(FLOORS) for entry in entries if below(name, entry)]
    entry, floor = max(found, key=lambda place: len(place[0]), default=("", -1))
    return None if floor < 0 else (floor, entry.split(".")[0])


def _module_of(imported: str, known: set[str]) -> str:
    """The module that `from a.b import c` reads: `a.b.c` where that is a module, else `a.b`."""
    return imported if imported in known else imported.rpartition(".")[0]


def _violations() -> list[str]:
    found = []
    files = modules()
    for name, path in files.items():
        own = _place(name)
        for imported, line in imports(path):
            if imported.split(".")[0] != "edgevlm":
                continue
            other = _place(_module_of(imported, set(files)))
            if own is not None and other is not None and other != own and other[0] >= own[0]:
                found.append(f"{path.name}:{line}: {name} (floor {own[0]}) imports {imported} (floor {other[0]})")
    return found


def test_every_module_has_a_floor() -> None:
    assert not [name for name in modules() if _place(name) is None]


def test_imports_point_downwards() -> None:
    assert not _violations()


def test_the_longest_entry_decides() -> None:
    assert _place("edgevlm.zoo.train") == _place("edgevlm.zoo.train.inner")
    assert _place("edgevlm.zoo.train") != _place("edgevlm.zoo")
    assert _place("edgevlm.unheard_of") is None
