"""What builds the pages: the commands' reference, formulas, the figure, and the check of a site."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import typer

TOP = Path(__file__).resolve().parents[2]
Tool = Callable[[str], ModuleType]


def _leaves(group, name="hesim"):
    for word, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _leaves(command, f"{name} {word}")
        else:
            yield f"{name} {word}", command


def test_every_command_and_option_is_in_the_reference(tool: Tool) -> None:
    from experiments.cli.app import app

    text = tool("command_line").markdown()
    sections = dict(part.split("\n", 1) for part in text.split("## ")[1:])
    commands = dict(_leaves(typer.main.get_command(app)))
    assert list(sections) == list(commands) and "hesim study rank" in commands
    for name, command in commands.items():
        for parameter in command.params:
            if parameter.param_type_name == "option" and parameter.name != "help":
                assert f"`{parameter.opts[0]}" in sections[name]


def test_what_looks_like_markup_in_help_is_shown(tool: Tool) -> None:
    assert tool("command_line")._plain("in [twin]\n of <file>") == r"in \[twin] of \<file>"


def _page(name: str) -> SimpleNamespace:
    return SimpleNamespace(file=SimpleNamespace(src_uri=name))


def test_formulas_of_notebooks_are_plain_html(tool: Tool) -> None:
    hooks = tool("hooks")
    page = '<script src="https://x/m.js"></script><p title="$a$">$x^2$</p><pre>$y$</pre>'
    drawn = '<p title="$a$"><span class="formula"><i>x</i><sup>2</sup></span></p><pre>$y$</pre>'
    assert hooks.on_page_content(page, page=_page("tutorials/a.ipynb")) == drawn
    assert hooks.on_page_content(page, page=_page("index.md")) == page


@pytest.mark.parametrize(
    ("tex", "drawn"),
    [
        ("2^{40}", "2<sup>40</sup>"),
        (r"\Delta_l^2/q_l", "Δ<sub><i>l</i></sub><sup>2</sup>/<i>q</i><sub><i>l</i></sub>"),
        ("(1 + x/2^k)^{2^k}", "(1 + <i>x</i>/2<sup><i>k</i></sup>)<sup>2<sup><i>k</i></sup></sup>"),
        (r"|x| \le 2", "|<i>x</i>| ≤ 2"),
    ],
)
def test_a_formula(tool: Tool, tex: str, drawn: str) -> None:
    assert tool("hooks")._html(tex) == drawn


def test_a_formula_that_cannot_be_drawn_stops_the_build(tool: Tool) -> None:
    with pytest.raises(ValueError, match="frac"):
        tool("hooks")._html(r"\frac{1}{2}")


def test_every_formula_of_the_notebooks_can_be_drawn(tool: Tool) -> None:
    hooks, count = tool("hooks"), 0
    for path in sorted((TOP / "notebooks").glob("*.ipynb")):
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            if cell["cell_type"] == "markdown":
                for formula in hooks._FORMULA.findall("".join(cell["source"])):
                    assert "$" not in hooks._html(formula)
                    count += 1
    assert count > 20


def test_a_public_name_is_shown_and_not_the_module_of_its_name(tool: Tool) -> None:
    found = tool("hooks").on_page_markdown("::: hesim.trace\n", page=_page("api/hesim.md"))
    assert "\n::: hesim.trace.trace\n" in found and "heading: hesim.trace\n" in found


def test_links_of_root_files_work_within_the_pages(tool: Tool) -> None:
    found = tool("hooks").on_page_markdown("[a](docs/a.md) `docs/a.md`", page=_page("security.md"))
    assert found == "[a](a.md) `docs/a.md`"


@pytest.mark.parametrize(
    ("text", "fetched"),
    [
        ('<script src="https://cdn/x.js">', ["https://cdn/x.js"]),
        ("<img alt=x src=//host/x.png>", ["//host/x.png"]),
        ('<link rel="stylesheet" href="https://fonts/x.css">', ["https://fonts/x.css"]),
        ("@import 'https://fonts/x.css';", ["https://fonts/x.css"]),
        ("a{background:url(https://host/x.png)}", ["https://host/x.png"]),
        ('<script>import("https://cdn/m.mjs")</script>', ["https://cdn/m.mjs"]),
        ('<a href="https://host/page">x</a><img src="x.png"><link rel="icon" href="i.png">', []),
    ],
)
def test_what_a_page_fetches_is_found(tool: Tool, text: str, fetched: list[str]) -> None:
    assert tool("check_site").fetched(text) == fetched


def test_a_tutorial_without_figures_is_named(tool: Tool, tmp_path: Path) -> None:
    (tmp_path / "tutorials").mkdir()
    (tmp_path / "index.html").write_text("<p>")
    (tmp_path / "tutorials" / "a.html").write_text('<img src="data:image/png;base64,x">')
    assert tool("check_site").problems(tmp_path) == []
    (tmp_path / "tutorials" / "b.html").write_text("<p>")
    (found,) = tool("check_site").problems(tmp_path)
    assert found.startswith("tutorials/b.html")


def test_the_figure_of_levels_is_what_its_script_draws(
    tool: Tool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figure = tool("levels_figure")
    monkeypatch.setattr(figure, "FIGURE", tmp_path / "levels.svg")
    figure.main()
    shipped = TOP / "docs" / "figures" / "levels.svg"
    assert (tmp_path / "levels.svg").read_text() == shipped.read_text()
