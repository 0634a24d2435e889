"""Imports point one way, between packages and within them, and documents keep their promises."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "memory_suite"
FOLDERS = ("agents", "configs", "envs", "runners")
MAY_IMPORT = {
    "agents": {"agents"},
    "envs": {"envs"},
    "configs": {"agents", "configs"},
    "runners": {"agents", "configs", "envs", "runners"},
}
"""what each top-level package may import of ours"""
FLOORS: dict[str, list[set[str]]] = {
    "agents": [
        {"distributed", "ranges", "serialization"},
        {"model"},
        {"policy", "diagnostics"},
        {"algorithms"},
        {"episodes"},
    ],
    "agents.model": [
        {"init", "settings", "store"},
        {"retention"},
        {"attention", "block_memories"},
        {"layer"},
        {"transformer"},
        {"sequence_model"},
    ],
    "envs": [
        {"batched", "episode_classes", "errors", "registration", "window"}
        | {"minigrid_observation", "text_observation"},
        {"grid_world", "space_checks", "worker_errors"},
        {"corridor", "instruction", "portal", "vec_env"},
        {"make", "streams"},
    ],
    "runners": [
        {"plotting", "run"},
        {"rendering"},
        {"training"},
        {"sequences", "sweeps"},
        {"benchmarks"},
    ],
}
"""sub-packages and modules from the lowest floor up: each imports only floors below its own, and itself"""


def sources(*folders: str) -> list[Path]:
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def module_of(path: Path) -> str:
    """Dotted name within the package, such as `agents.model.layer`."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports_of_ours(path: Path) -> Iterator[str]:
    """Dotted names within the package that a file imports: modules, or names in them."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            top, _, rest = name.partition(".")
            assert top not in FOLDERS, f"{path} imports {name}: write {PACKAGE}.{name}"
            assert top != "tests" or path.is_relative_to(ROOT / "tests"), f"{path} imports {name}"
            if top == PACKAGE and rest.split(".")[0] in FOLDERS:
                yield rest


@pytest.mark.parametrize("name", FOLDERS)
def test_packages_are_those_of_the_checkout(name: str) -> None:
    module = import_module(f"{PACKAGE}.{name}")
    assert module.__file__ is not None
    assert Path(module.__file__).resolve().is_relative_to(ROOT / name)


@pytest.mark.parametrize("folder", FOLDERS)
def test_dependencies_point_one_way(folder: str) -> None:
    for path in sources(folder):
        for name in imports_of_ours(path):
            assert name.split(".")[0] in MAY_IMPORT[folder], f"{path} imports {name}"


def test_tests_import_the_package_and_not_its_folders() -> None:
    for path in sources("tests"):
        list(imports_of_ours(path))


@pytest.mark.parametrize("package", FLOORS)
def test_sub_packages_import_only_floors_below(package: str) -> None:
    floor_of = {name: floor for floor, names in enumerate(FLOORS[package]) for name in names}
    inside = package.count(".") + 1
    for path in sources(package.replace(".", "/")):
        importer = module_of(path).split(".")[inside : inside + 1]
        if not importer:
            continue  # the package itself hands on public names
        for name in imports_of_ours(path):
            imported = name.split(".")[inside : inside + 1]
            if not name.startswith(f"{package}.") or imported == importer or imported[0] not in floor_of:
                continue
            if importer[0] not in floor_of:
                continue  # a command, above all floors
            assert floor_of[imported[0]] < floor_of[importer[0]], f"{path} imports {name}"


@pytest.mark.parametrize("package", FLOORS)
def test_every_sub_package_has_a_floor(package: str) -> None:
    folder = ROOT / package.replace(".", "/")
    named = {name for names in FLOORS[package] for name in names}
    assert {path.parent.name for path in folder.glob("*/__init__.py")} <= named
    assert all((folder / name).is_dir() or (folder / f"{name}.py").is_file() for name in named)


def test_no_library_imports_a_command() -> None:
    commands = {path.stem for path in (ROOT / "runners").glob("*.py")} - {"__init__"}
    for path in sources("runners"):
        if path.parent != ROOT / "runners":
            for name in imports_of_ours(path):
                assert name.split(".")[1:2] not in [[command] for command in commands], (
                    f"{path} imports {name}"
                )


def test_modules_in_the_top_of_runners_are_commands() -> None:
    for path in (ROOT / "runners").glob("*.py"):
        if path.stem != "__init__":
            assert 'if __name__ == "__main__":' in path.read_text(encoding="utf-8"), path


def test_every_package_says_what_lives_there() -> None:
    for path in sources(*FOLDERS):
        if path.name == "__init__.py":
            assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), path


def test_only_runners_print() -> None:
    for path in sources("agents", "envs", "configs"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            called = node.func if isinstance(node, ast.Call) else None
            assert not (isinstance(called, ast.Name) and called.id == "print"), f"{path}:{node.lineno}"  # type: ignore[attr-defined]


def test_sources_are_ascii() -> None:
    for path in sources(*FOLDERS, "tests"):
        assert path.read_bytes().isascii(), path


def test_scripts_named_in_the_documents_exist() -> None:
    for document in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        for script in re.findall(r"python (runners/\w+\.py)", document.read_text(encoding="utf-8")):
            assert (ROOT / script).is_file(), f"{document.name} names {script}"


def test_modules_named_in_the_documents_exist() -> None:
    for document in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        for module in re.findall(r"from memory_suite\.([\w.]+) import", document.read_text(encoding="utf-8")):
            path = ROOT / module.replace(".", "/")
            assert path.is_dir() or path.with_suffix(".py").is_file(), f"{document.name} names {module}"


def test_links_between_documents_lead_somewhere() -> None:
    for document in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text(encoding="utf-8")):
            assert (document.parent / target).exists(), f"{document.name} links to {target}"
