"""The installed package, beside packages of a user that are called data and model."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
IMPORT_ALL = """
import importlib, sys
import data, model
assert data.MINE and model.MINE
for name in sys.stdin.read().split():
    module = importlib.import_module(name)
    assert module.__file__.startswith(sys.argv[1]), (name, module.__file__)
from banding_removal.reader_study.blinding import arrange
from banding_removal.reader_study.page import render_page
assert "class Viewer" in render_page("s", arrange(0, 2, 0, "r"), [], sets=2, rating="rank")
assert sys.modules["data"] is data and sys.modules["model"] is model
"""


def pip(*words: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pip", "--disable-pip-version-check", *words,
         "--no-deps", "--no-index"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of a copy, so that nothing is built in the checkout."""
    copy = tmp_path_factory.mktemp("copy")
    ignore = shutil.ignore_patterns("__pycache__")
    for name in ("banding_removal", "data", "model"):
        shutil.copytree(REPOSITORY / name, copy / name, symlinks=True, ignore=ignore)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "requirements.txt"):
        shutil.copy(REPOSITORY / name, copy)
    pip("wheel", "--no-build-isolation", "--wheel-dir", str(copy), str(copy))
    (built,) = copy.glob("*.whl")
    return built


def test_a_wheel_holds_one_top_level_package_with_all_modules(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        members = {name for name in archive.namelist() if ".dist-info/" not in name}
        text = archive.read("banding_removal/data/index.py").decode()
    assert text == (REPOSITORY / "data" / "index.py").read_text()  # a file, not a link
    expected = {
        f"{prefix}{path.relative_to(REPOSITORY)}"
        for folder, prefix in (
            ("banding_removal", ""),
            ("data", "banding_removal/"),
            ("model", "banding_removal/"),
        )
        for path in (REPOSITORY / folder).rglob("*")
        if path.suffix in (".py", ".html", ".css", ".js")
    }
    web = REPOSITORY / "banding_removal" / "pictures" / "web"
    expected |= {str(path.relative_to(REPOSITORY)) for path in web.iterdir()}
    assert members == expected


def test_an_installed_package_leaves_a_users_data_and_model_alone(
    wheel: Path, tmp_path: Path
) -> None:
    installed = tmp_path / "site"
    pip("install", "--target", str(installed), str(wheel))
    modules = [
        ".".join(path.relative_to(installed).with_suffix("").parts).removesuffix(".__init__")
        for path in installed.rglob("*.py")
    ]
    for name in ("data", "model"):
        own = tmp_path / "project" / name
        own.mkdir(parents=True)
        (own / "__init__.py").write_text("MINE = True\n")
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL, str(installed)],
        input="\n".join(modules), capture_output=True, text=True, check=False,
        cwd=tmp_path / "project", env={**os.environ, "PYTHONPATH": str(installed)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
