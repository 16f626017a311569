"""The README's examples run as they stand, each by itself."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

README = Path(__file__).resolve().parent.parent / "README.md"


def _block(start: str) -> str:
    """The Python block after the paragraph that begins with `**start**`."""
    text = README.read_text(encoding="utf-8")
    assert f"**{start}**" in text
    return re.findall(r"```python\n(.*?)```", text.split(f"**{start}**", 1)[1], re.DOTALL)[0]


def _run(start: str, names: dict[str, object]) -> None:
    exec(compile(_block(start), f"README.md ({start})", "exec"), names)


def test_approx_example(capsys: pytest.CaptureFixture[str]) -> None:
    _run("approx", {})
    assert capsys.readouterr().out


def test_hesim_example(capsys: pytest.CaptureFixture[str]) -> None:
    unencrypted = _block("hesim").split("report = he_backend.run", 1)[0]
    exec(compile(unencrypted, "README.md (hesim)", "exec"), {})
    assert "dot_general" in capsys.readouterr().out


@pytest.mark.slow
def test_he_backend_example(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    _run("he_backend", {})
    assert "all within their prediction intervals" in capsys.readouterr().out
    assert (tmp_path / "report.html").stat().st_size > 1000


@pytest.mark.slow
def test_models_example() -> None:
    names: dict[str, object] = {}
    _run("models", names)
    assert getattr(names["logits"], "shape", None) == (8, 2)
