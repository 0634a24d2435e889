"""Installed beside packages of the same folder names, the suite is still the one that runs.

`openai-agents` installs a package `agents`, and users have folders `agents/` and `envs/` of their own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
TRAIN = (
    *("--env", "corridor-short", "--num-envs", "2", "--ppo.n-steps", "8", "--ppo.batch-size", "8"),
    *("--total-steps", "32", "--evaluation.episodes", "2", "--stop.success", "none", "--track", "disabled"),
)
IMPORTS = """
import memory_suite
import gymnasium
from memory_suite import MemoryA2C, MemoryPolicy, MemoryPPO, make_vec_env
gymnasium.make("memory_suite:MemorySuite/CorridorLong-v0").close()
from memory_suite.runners.rendering import viewer
viewer.files("memory_suite.runners.rendering").joinpath("viewer.html").read_text()
print(memory_suite.__file__, memory_suite.__version__)
"""


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of packages in which `openai-agents` lies."""
    folder = tmp_path_factory.mktemp("others")
    install = [*PIP, "install", "--no-deps", "--target", str(folder), "openai-agents"]
    if subprocess.run(install, capture_output=True).returncode != 0:
        pytest.skip("openai-agents cannot be downloaded")
    assert (folder / "agents" / "__init__.py").is_file()
    return folder


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of packages in which the suite's wheel lies."""
    built = tmp_path_factory.mktemp("wheel")
    # From a copy: a build in the checkout leaves its folders there.
    source = tmp_path_factory.mktemp("source")
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    subprocess.run(["tar", "-cf", source / "all.tar", *files.split("\n")[:-1]], cwd=ROOT, check=True)
    subprocess.run(["tar", "-xf", "all.tar"], cwd=source, check=True)
    subprocess.run([*PIP, "wheel", "--no-deps", "--wheel-dir", str(built), str(source)], check=True)
    (file,) = built.glob("memory_suite-*.whl")
    folder = tmp_path_factory.mktemp("site")
    subprocess.run([*PIP, "install", "--no-deps", "--target", str(folder), str(file)], check=True)
    return folder


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A user's folder with packages named like ours."""
    for name in ("agents", "envs", "configs", "runners", "tests"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise ImportError('a package of the user')\n")
    return tmp_path


@pytest.mark.parametrize("installed", ["wheel", "checkout"])
def test_runs_beside_packages_of_the_same_names(
    installed: str, wheel: Path, others: Path, project: Path
) -> None:
    ours = wheel if installed == "wheel" else ROOT / "src"
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(others), str(ours)]),
        "OMP_NUM_THREADS": "1",
        "PYTHONWARNINGS": "ignore",
    }
    python = [sys.executable]
    said = subprocess.run(
        [*python, "-c", IMPORTS], cwd=project, env=environment, capture_output=True, text=True, check=False
    )
    assert said.returncode == 0, said.stderr
    file, version = said.stdout.split()
    assert Path(file).is_relative_to(ours)
    assert version == "0.1.0"
    train = [*python, "-m", "memory_suite.runners.train_agent", *TRAIN]
    trained = subprocess.run(
        [*train, "--run", str(project / "run")],
        cwd=project,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert trained.returncode == 0, trained.stdout + trained.stderr
    assert (project / "run" / "evaluation.json").is_file()


def test_the_wheel_adds_one_package(wheel: Path) -> None:
    assert {path.name for path in wheel.iterdir() if not path.name.endswith(".dist-info")} <= {
        "memory_suite",
        "__pycache__",
    }
    installed = {path.relative_to(wheel / "memory_suite") for path in (wheel / "memory_suite").rglob("*")}
    for file in (
        "py.typed",
        "configs/presets/agents/corridor-long.yaml",
        "configs/presets/methods/paper.yaml",
        "configs/presets/sequences/copy.yaml",
        "runners/rendering/viewer.html",
        "runners/sequences/analysis/analysis.html",
    ):
        assert Path(file) in installed


def test_folder_names_are_no_import_names(wheel: Path, tmp_path: Path) -> None:
    program = (
        "from importlib.util import find_spec; import memory_suite; "
        "print([name for name in ('agents', 'envs', 'configs', 'runners') if find_spec(name)])"
    )
    said = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(wheel)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout == "[]\n"
