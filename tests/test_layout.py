"""The generic import names are ours, dependencies point one way, and documents keep their promises."""

from __future__ import annotations

import ast
import re
from importlib import import_module
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MAY_IMPORT = {
    "agents": {"agents"},
    "envs": {"envs"},
    "configs": {"configs"},
    "runners": {"agents", "configs", "envs", "runners"},
}


def sources(*folders: str) -> list[Path]:
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


@pytest.mark.parametrize("name", MAY_IMPORT)
def test_import_name_is_ours(name: str) -> None:
    module = import_module(name)
    assert module.__file__ is not None
    assert Path(module.__file__).is_relative_to(ROOT), f"{name} was imported from {module.__file__}"
    others = set(packages_distributions().get(name, ())) - {"memory-suite"}
    assert not others, f"{sorted(others)} also install a package called {name!r}: use a clean environment"


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_dependencies_point_one_way(folder: str) -> None:
    for path in sources(folder):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path}: imports are absolute"
                names = [node.module or ""]
            for name in names:
                top = name.split(".")[0]
                assert top not in MAY_IMPORT or top in MAY_IMPORT[folder], f"{path} imports {name}"
                assert top != "tests", f"{path} imports {name}"


def test_only_runners_print() -> None:
    for path in sources("agents", "envs", "configs"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            called = node.func if isinstance(node, ast.Call) else None
            assert not (isinstance(called, ast.Name) and called.id == "print"), f"{path}:{node.lineno}"  # type: ignore[attr-defined]


def test_sources_are_ascii() -> None:
    for path in sources(*MAY_IMPORT, "tests"):
        assert path.read_bytes().isascii(), path


def test_scripts_named_in_the_documents_exist() -> None:
    for document in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        for script in re.findall(r"python (runners/\w+\.py)", document.read_text(encoding="utf-8")):
            assert (ROOT / script).is_file(), f"{document.name} names {script}"


def test_links_between_documents_lead_somewhere() -> None:
    for document in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text(encoding="utf-8")):
            assert (document.parent / target).exists(), f"{document.name} links to {target}"
