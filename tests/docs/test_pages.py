"""Pages: every public name has one, links lead somewhere, and what they show runs."""

from __future__ import annotations

import importlib
import re
import tomllib
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[2]
DOCS = TOP / "docs"
PACKAGES = ("approx", "hesim", "models", "he_backend", "experiments")
PAGES = sorted(path for path in DOCS.rglob("*.md") if "tools" not in path.parts)
ROOT_PAGES = [
    TOP / name for name in ("README.md", "SECURITY.md", "CONTRIBUTING.md", "CHANGELOG.md")
]

_BLOCK = re.compile(r"```python\n(.*?)```", re.DOTALL)
_QUICK = ("approximation", "simulation", "encrypted-runs")


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_has_one_entry_in_the_reference(package: str) -> None:
    listed = re.findall(
        rf"^::: {package}\.(\w+)$", (DOCS / "api" / f"{package}.md").read_text(), re.M
    )
    assert sorted(listed) == sorted(importlib.import_module(package).__all__)


def test_the_navigation_has_every_page_once() -> None:
    nav = (TOP / "mkdocs.yml").read_text().split("\nnav:\n")[1]
    named = re.findall(r": ([\w/-]+\.(?:md|ipynb))$", nav, re.M)
    notebooks = [f"tutorials/{path.name}" for path in (TOP / "notebooks").glob("*.ipynb")]
    assert sorted(named) == sorted([*(str(path.relative_to(DOCS)) for path in PAGES), *notebooks])


@pytest.mark.parametrize("page", [*PAGES, *ROOT_PAGES], ids=lambda page: str(page.relative_to(TOP)))
def test_relative_links_lead_to_files(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)#\s]+)", text):
        assert "://" not in target, target
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(path, marks=() if path.stem in _QUICK else pytest.mark.slow)
        for path in PAGES
        if _BLOCK.search(path.read_text(encoding="utf-8"))
    ],
    ids=lambda page: page.stem,
)
def test_the_python_on_a_page_runs_from_top_to_bottom(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On plain vectors, where the page encrypts."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in _BLOCK.findall(page.read_text(encoding="utf-8")):
        code = re.sub(r'backend="(pyfhel|openfhe)"', 'backend="slots"', block)
        exec(compile(code, str(page.name), "exec"), names)
    assert capsys.readouterr().out


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_code_fits_the_width_of_a_page(page: Path) -> None:
    blocks = re.findall(r"```\w*\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    assert not [line for block in blocks for line in block.splitlines() if len(line) > 80]


def test_the_readme_is_short() -> None:
    assert len((TOP / "README.md").read_text(encoding="utf-8").splitlines()) <= 120


@pytest.mark.parametrize("package", PACKAGES)
def test_every_package_says_that_it_is_typed(package: str) -> None:
    assert (TOP / package / "py.typed").exists()


def test_the_citation_is_of_this_version() -> None:
    version = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]["version"]
    assert f"\nversion: {version}\n" in (TOP / "CITATION.cff").read_text()


def test_hooks_before_a_commit_fetch_nothing() -> None:
    text = (TOP / ".pre-commit-config.yaml").read_text()
    assert re.findall(r"repo: (\S+)", text) == ["local"]
    assert re.findall(r"language: (\S+)", text) == ["system"] * text.count("- id:")


_PATHS = rf"`((?:{'|'.join(PACKAGES)}|tests|docs|benchmarks|requirements)/[\w./-]*)`"
_DOTTED = rf"`((?:{'|'.join(PACKAGES)})(?:\.\w+)+)[`(]"


@pytest.mark.parametrize("page", [*PAGES, *ROOT_PAGES], ids=lambda page: str(page.relative_to(TOP)))
def test_files_and_names_that_a_page_mentions_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for path in re.findall(_PATHS, text):
        assert (TOP / path).exists(), path
    for name in re.findall(_DOTTED, text):
        assert _resolved(name) is not None, name


def _resolved(name: str) -> object:
    """What a dotted name means: modules as far as there are any, then attributes."""
    first, *rest = name.split(".")
    found: object = importlib.import_module(first)
    for part in rest:
        if not hasattr(found, part):
            importlib.import_module(f"{getattr(found, '__name__', '')}.{part}")
        found = getattr(found, part)
    return found
