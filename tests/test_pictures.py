"""What a notebook shows: tables of what summaries say, and pictures of the sizes that labels have."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch

from otlabel import Assignment, balance_path, certify, diagnose, report, sinkhorn_assign
from otlabel.pictures import columns_html, summary_html

SCORES = np.random.default_rng(0).normal(size=(240, 6)) + np.linspace(0, 3, 6)


class Cells(HTMLParser):
    """The texts of a table, row by row; every tag is closed, and none is unknown to a notebook."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.open: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in {"table", "tr", "th", "td", "p"}
        self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("th", "td"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1] in ("th", "td"):
            self.rows[-1][-1] += data


def words(text: str) -> list[str]:
    return text.split()


@pytest.mark.parametrize("kind", ["assignment", "certificate", "diagnosis", "of tensors"])
def test_tables_say_what_summaries_say(kind: str) -> None:
    shown = {
        "assignment": lambda: sinkhorn_assign(SCORES, abstain=0.1),
        "certificate": lambda: certify(SCORES, SCORES.argmax(1)),
        "diagnosis": lambda: diagnose(SCORES - 50),
        "of tensors": lambda: sinkhorn_assign(torch.from_numpy(SCORES)),
    }[kind]()
    rows = Cells(shown._repr_html_()).rows
    assert all(len(row) == 2 for row in rows)
    assert [word for row in rows for cell in row for word in words(cell)] == words(shown.summary())


def test_the_price_of_balance_is_a_table_with_its_knee() -> None:
    path = balance_path(SCORES)
    text = path._repr_html_()
    rows = Cells(text).rows
    lines = [re.split(r" {2,}", line.strip()) for line in path.summary().split("\n")[: len(path.rho) + 1]]
    assert rows == [line[:6] for line in lines]
    bold = re.findall(r'<tr style="font-weight: bold">', text)
    assert len(bold) == 1
    assert text.split(bold[0])[0].count("<tr>") == path.knee + 1


def test_whatever_is_told_is_escaped() -> None:
    hostile = '<script>alert("1")</script> & more'
    assert Cells(summary_html(f"labels    {hostile}\n          goes on")).rows == [["labels", f"{hostile} goes on"]]
    assert Cells(columns_html([hostile], [[hostile]], 0, hostile)).rows == [[hostile], [hostile]]


def bars(figure: object) -> list[float]:
    (axes,) = figure.axes  # type: ignore[attr-defined]
    return [bar.get_height() for bar in axes.patches if hasattr(bar, "get_height")]


def test_plot_draws_sizes_before_and_after(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    result = sinkhorn_assign(SCORES)
    figure = result.plot(SCORES)
    before = np.sort(np.bincount(SCORES.argmax(1), minlength=6))[::-1]
    assert bars(figure) == before.tolist()
    assert figure.texts[0].get_text() == "Class sizes before and after balance"
    assert figure._repr_png_().startswith(b"\x89PNG")  # type: ignore[attr-defined]
    figure.savefig(tmp_path / "sizes.png")
    alone = result.plot()
    assert bars(alone) == []
    assert [text.get_text() for text in alone.texts] == ["Class sizes", "\N{BLACK SQUARE}", "balanced: 40 samples each"]
    assert bars(sinkhorn_assign(torch.from_numpy(SCORES)).plot(torch.from_numpy(SCORES))) == before.tolist()
    with pytest.raises(ValueError, match="5 columns"):
        result.plot(SCORES[:, :5])


@pytest.mark.parametrize("sizes", [[1], [0, 0, 3], [1000, 1, 1]])
def test_extreme_sizes_can_be_drawn(sizes: list[int]) -> None:
    pytest.importorskip("matplotlib")
    labels = np.repeat(np.arange(len(sizes)), sizes)
    scores = np.where(labels[:, None] == np.arange(len(sizes)), 1.0, 0.0)
    result = sinkhorn_assign(scores, class_mass=np.array(sizes), rounding="exact")
    for figure in (result.plot(), result.plot(scores)):
        assert figure._repr_png_()  # type: ignore[attr-defined]


def test_a_report_shows_itself_in_a_frame(tmp_path: Path) -> None:
    pytest.importorskip("jinja2")
    page = report([0, 1, 1], texts=["<b>", '"quoted"', "&amp;"], path=tmp_path / "page.html")
    assert isinstance(page, str)
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == page

    class Frame(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            assert tag == "iframe"
            self.inside = dict(attrs)["srcdoc"]

    frame = Frame()
    frame.feed(page._repr_html_())  # type: ignore[attr-defined]
    assert frame.inside == page


def test_saved_results_show_the_same(tmp_path: Path) -> None:
    result = sinkhorn_assign(SCORES)
    result.save(tmp_path / "result.npz")
    assert Assignment.load(tmp_path / "result.npz")._repr_html_() == result._repr_html_()
