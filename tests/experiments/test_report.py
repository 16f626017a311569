"""The report: one page that fetches nothing, runs nothing, and says what was not encrypted."""

from __future__ import annotations

import dataclasses
import html.parser
import re
from pathlib import Path

from experiments.validation.folder import RunFolder
from experiments.validation.plots import FIGURES, svg
from experiments.validation.report import page, write_report
from experiments.validation.results import Results

Finished = tuple[Results, RunFolder, str]


class Page(html.parser.HTMLParser):
    """Everything in a page that may point somewhere, its tags and identifiers."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in ("meta", "br"):
            self.open.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "action", "data", "srcset"):
                self.links.append(value or "")
            if name == "id":
                self.ids.append(value or "")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_self_contained(finished: Finished) -> None:
    text = (finished[1].path / "report.html").read_text(encoding="utf-8")
    found = Page(text)
    assert all(link.startswith("#") for link in found.links)
    assert not {"script", "link", "iframe", "img", "object"} & set(found.tags)
    assert "@import" not in text
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", text))
    assert found.open == []


def test_identifiers_are_unique_and_links_lead_somewhere(finished: Finished) -> None:
    found = Page(page(finished[0]))
    assert len(found.ids) == len(set(found.ids))
    assert {link.removeprefix("#") for link in found.links} <= set(found.ids)


def test_every_figure_is_in_it_once(finished: Finished) -> None:
    assert Page(page(finished[0])).tags.count("svg") == len(FIGURES)


def test_it_says_what_was_not_encrypted_and_what_leaks(finished: Finished) -> None:
    plain = page(finished[0])
    assert "this page shows no encrypted result" in plain
    for promise in ("Interactive.", "Lengths leak.", "never counted as encrypted"):
        assert promise in plain
    batches = [{**b, "encrypted": True} for b in finished[0].batches]
    encrypted = page(dataclasses.replace(finished[0], batches=batches))
    assert "shows no encrypted result" not in encrypted
    assert "128-bit security" in encrypted


def test_listing_and_warnings_are_escaped(finished: Finished) -> None:
    batches = [{**b, "outside": ["<script>alert(1)</script>"]} for b in finished[0].batches]
    plan = {**finished[0].plan, "listing": "</pre><b>"}
    text = page(dataclasses.replace(finished[0], batches=batches, plan=plan))
    assert "<script>" not in text and "</pre><b>" not in text


def test_a_figure_survives_missing_numbers(finished: Finished) -> None:
    nothing = float("nan")
    ops = tuple(
        dataclasses.replace(op, measured_std=nothing, level=-1, seconds=0.0)
        for op in finished[0].ops
    )
    results = dataclasses.replace(finished[0], ops=ops)
    for name in FIGURES:
        assert svg(name, results).startswith("<svg")


def test_what_was_not_predicted_fails_no_check(finished: Finished) -> None:
    batches = [{**b, "encrypted": True} for b in finished[0].batches]
    compared = dataclasses.replace(finished[0], batches=batches)
    ops = tuple(dataclasses.replace(op, predicted_std=float("nan")) for op in compared.ops)
    results = dataclasses.replace(compared, ops=ops)
    name = "predicted standard deviation"
    assert any(name in check.name for check in compared.checks)
    assert not any(name in check.name for check in results.checks)
    assert "since nothing was compared" in page(results)


def test_the_report_is_replaced_as_a_whole(finished: Finished, tmp_path: Path) -> None:
    target = tmp_path / "deep" / "report.html"
    assert write_report(finished[0], target) == target
    write_report(finished[0], target)
    assert [path.name for path in target.parent.iterdir()] == ["report.html"]
