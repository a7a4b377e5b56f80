"""Figures and the report page: drawn from the tables, the same each time, and no text of a record ever obeyed."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from propulsion.harness import ledger, report
from propulsion.harness.errors import UserError
from propulsion.harness.figures import KINDS, FigureFile, data, draw_all, draw_suites
from propulsion.harness.page import render
from propulsion.harness.report import write_report
from propulsion.harness.tables import cells as texts
from propulsion.harness.tables import tables_of, to_csv, to_latex
from propulsion.harness.tables.build import build_all
from propulsion.harness.tables.model import Cell
from tests.browser import CHROMIUM, Browser
from tests.synthetic import write_records
from tests.test_tables import HOSTILE, assert_latex_is_sound, make, save

needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: apt-get install chromium")
ROOT = Path(__file__).resolve().parents[1]
SVG = "{http://www.w3.org/2000/svg}"


def with_history(record: dict[str, Any]) -> dict[str, Any]:
    """The record with three evaluations that lead to its last score."""
    (name, score), *_ = record["eval"]["last"].items()
    record["eval"]["history"] = [{"step": s, "scores": {name: score - (30 - s) / 100}} for s in (10, 20, 30)]
    return record


def some(**changes: Any) -> list[dict[str, Any]]:
    """Two tasks, three methods, two seeds; one run failed."""
    records = [
        with_history(make(task, method, seed, 0.5 + m / 10 + seed / 50, 0.6 + m / 10 + seed / 50, **changes))
        for task in ("cola", "rte")
        for m, method in enumerate(("full", "lora", "propulsion"))
        for seed in (0, 1)
    ]
    for i, record in enumerate(records):
        record["params"]["trainable"] = 10 ** (2 + i // 2 % 3)
    records.append(make("rte", "lora", 2, None, status="failed", **changes))
    return records


def drawn(records: list[dict[str, Any]]) -> dict[str, FigureFile]:
    return {figure.kind: figure for figure in draw_all(build_all(records, "glue"))}


def words_of(figure: FigureFile) -> str:
    """Every text that the SVG shows."""
    tree = ElementTree.fromstring(figure.files["svg"])
    return "\n".join("".join(node.itertext()) for node in tree.iter(f"{SVG}text"))


def test_each_kind_is_drawn_in_both_formats_and_the_same_each_time() -> None:
    figures = drawn(some())
    assert list(figures) == ["pareto", "tasks", "curves", "gap", "cost"]
    again = drawn(some())
    for kind, figure in figures.items():
        assert figure.files == again[kind].files
        assert set(figure.files) == {"svg", "png"}
        assert figure.files["png"].startswith(b"\x89PNG")
        assert not re.search(rb"\d{4}-\d\d-\d\dT", figure.files["svg"])  # no date
        for name in ("full", "propulsion") if kind == "pareto" else ("full", "lora", "propulsion"):
            assert name in words_of(figure)  # lora has lost a run: no average, and so no place on the front
    assert "CoLA MCC" in words_of(figures["tasks"])
    assert set(KINDS) == {*figures, "degree"}


def test_figures_say_whose_rows_they_are_of_and_where_there_is_no_gap() -> None:
    records = some()
    for record in records:
        if record["run"]["task"] == "rte" and record["status"] == "success":
            record["eval"]["best"] = record["eval"]["last"]
    words = " ".join(words_of(drawn(records)["gap"]).split())
    assert "GLUE, mini profile, generated data, minilm: best minus last" in words
    assert "no gap in any run: RTE Acc" in words
    assert words.count("RTE Acc") == 1  # no panel of its own
    for record in records:
        record["run"]["data"]["source"] = "local"
    figures = drawn(records)
    assert all("generated" not in words_of(figure) for figure in figures.values())
    assert "without a score on every task: lora" in words_of(figures["pareto"]).replace("\n", " ")


def test_the_number_of_processes_changes_no_byte() -> None:
    suites = [build_all(some(backbone=name), "glue") for name in ("minilm", "roberta_base")]
    assert draw_suites(suites, 2) == draw_suites(suites) == [figure for tables in suites for figure in draw_all(tables)]


def test_degree_against_learning_rate_needs_several_of_both() -> None:
    records = []
    for i, (degree, rate) in enumerate([(5, 0.001), (5, 0.003), (15, 0.001), (15, 0.003)]):
        record = make("rte", "propulsion", 0, 0.5 + i / 10, learning_rate=rate)
        record["run"]["config"]["method"]["degree"] = degree
        record["key"] = f"{i:016x}"
        records.append(record)
    words = words_of(drawn(records)["degree"])
    assert all(f"{50 + 10 * i:.1f}" in words for i in range(4))
    assert {"0.001", "0.003", "5", "15"} <= set(words.splitlines())
    assert "$" not in words  # powers of ten as plain numbers
    assert "degree" not in drawn(records[:2])
    table = build_all(records, "glue")[0]
    found = data.degrees(list(table.rows), "rte", "accuracy", "last")
    assert found == {(0.001, 5): [50.0], (0.003, 5): [60.0], (0.001, 15): [70.0], (0.003, 15): [80.0]}


def test_the_front_is_what_nothing_smaller_beats() -> None:
    points = [(10.0, 5.0), (20.0, 4.0), (5.0, 1.0), (30.0, 9.0), (30.0, 8.0), (40.0, 9.0)]
    beaten = [any(x <= p and y >= q and (x, y) != (p, q) for x, y in points) for p, q in points]
    assert sorted(data.front(points)) == [i for i, lost in enumerate(beaten) if not lost]


def test_a_bar_is_an_interval_with_five_seeds_and_their_range_with_fewer() -> None:
    few = data.mark(Cell({0: 0.5, 1: 0.7}, 2))
    assert few
    assert (few.mean, few.low, few.high) == pytest.approx((60.0, 50.0, 70.0))
    row = build_all([make("rte", "lora", seed, 0.5 + seed / 100) for seed in range(5)], "glue")[0].rows[0]
    many = data.mark(row.cells[0])
    assert many
    assert row.cells[0].interval
    assert (many.low, many.high) == (100 * row.cells[0].interval.low, 100 * row.cells[0].interval.high)
    assert 50.0 < many.low < many.mean < many.high < 54.0


def test_curves_are_means_over_the_steps_that_all_seeds_have() -> None:
    assert data.mean_curve([[(1, 10.0), (2, 20.0)], [(2, 40.0), (3, 1.0)]]) == [(2, 30.0)]
    assert data.mean_curve([]) == []


def test_cells_that_shared_a_device_are_never_beside_those_that_did_not() -> None:
    records = some()
    for record in records[::2]:
        record["env"]["parallel_cells"] = 2
    rows = list(build_all(records, "glue")[0].rows)
    groups = data.costs(rows)
    assert sorted(group.partition(", ")[2].split(" cells")[0] for group in groups) == ["fp32", "fp32, 2"]
    assert sum(len(found) for found in groups.values()) == 6
    words = words_of(drawn(records)["cost"])
    assert words.count("ms / step") == 2
    assert "2 cells at once" in words


@pytest.mark.parametrize(
    "records",
    [
        [make()],
        [make(status="failed", last=None)],
        [make(last=None)],
        [make(last=0.0), make(seed=1, last=0.0)],
        [make(method="x" * 200), make(method="full", status="diverged", last=None)],
    ],
    ids=["one", "failed", "no score", "zero", "long"],
)
def test_an_almost_empty_set_has_what_can_be_drawn(records: list[dict[str, Any]], tmp_path: Path) -> None:
    _, paths = write_report(save(tmp_path, records))
    assert all(path.stat().st_size > 0 for path in paths)
    assert (tmp_path / "index.html") in paths


def test_a_broken_history_is_left_out() -> None:
    record = make()
    record["eval"]["history"] = [None, {"step": "x", "scores": {"accuracy": 1}}, {"step": 1, "scores": []}, {"step": 1}]
    assert "curves" not in drawn([record])
    record["eval"]["history"] = "none"
    assert "curves" not in drawn([record])


def test_a_plain_run_does_not_import_the_drawing_library() -> None:
    script = "import sys, scripts.run, propulsion.harness.cell; assert 'matplotlib' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_same_records_give_the_same_report(tmp_path: Path) -> None:
    first, second = (
        {path.relative_to(tmp_path / name).as_posix(): path.read_bytes() for path in write_report(folder)[1]}
        for name, folder in (
            ("a/set", save(tmp_path / "a/set", some())),
            ("b/set", save(tmp_path / "b/set", some()[::-1])),
        )
    )
    assert first == second
    assert "index.html" in first
    assert {"figures/glue-minilm-pareto.svg", "tables/glue.md"} < set(first)


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        (("run", "profile"), "paper", "profile mini"),
        (("run", "task_version"), 2, "task version 1"),
        (("run", "data", "fingerprint"), "other", "data fingerprint"),
        (("run", "data", "train_rows"), 5, "training rows"),
        (("run", "weights", "sha256"), "0" * 64, "sha256"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_anything_is_written(
    place: tuple[str, ...], value: Any, said: str, tmp_path: Path
) -> None:
    records = some()
    node = records[3]
    for key in place[:-1]:
        node = node[key]
    node[place[-1]] = value
    with pytest.raises(UserError, match=said) as caught:
        write_report(save(tmp_path, records))
    assert str(caught.value).count("runs/") >= 2  # both records are named
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


class Page(HTMLParser):
    """Tags, attributes, visible text and the data of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text, self.data = "", ""
        self._inside = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attributes: Any) -> None:
        self.tags.append(tag)
        self.attributes += attributes
        self._inside = "data" if dict(attributes).get("id") == "data" else tag

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "data":
            self.data += data
        elif self._inside not in ("script", "style"):
            self.text += data


def page_of(folder: Path) -> Page:
    write_report(folder)
    return Page((folder / "index.html").read_text(encoding="utf-8"))


def test_the_page_shows_the_numbers_of_the_tables(tmp_path: Path) -> None:
    found = json.loads(page_of(save(tmp_path, some())).data)
    (suite,) = found["suites"]
    for table in tables_of(tmp_path)["glue"]:
        for row, shown in zip(table.rows, suite["rows"], strict=True):
            assert shown["cells"][table.rule] == texts.scores(table, row)
            assert shown["counts"] == texts.row_names(row)[1:]
            assert shown["costs"] == texts.costs(row)
    assert suite["rows"][1]["cells"]["last"][1].endswith("failed 1/3")
    records = {record["key"]: record for record in some()}
    assert {record[0] for record in found["records"]} == set(records)
    for key, seed, status, groups, _, scores, error in found["records"]:
        own = records[key]
        assert (seed, found["status"][status]) == (own["run"]["seed"], own["status"])
        if scores:
            assert scores[0][0] == pytest.approx(100 * next(iter(own["eval"]["last"].values())))
        else:
            assert "RuntimeError: boom" in found["texts"][error]
        name, fields, values = found["groups"][3]
        training = dict(zip(fields, (found["texts"][i] for i in values[groups[3]]), strict=True))
        assert (name, training["learning rate"], training["batch size"]) == ("training", "0.001", "16")


def test_the_page_shows_its_scores_without_its_script(tmp_path: Path) -> None:
    page = page_of(save(tmp_path, [*some(), *some(backbone="roberta_base")]))
    first = tables_of(tmp_path)["glue"][0]
    told = page.text.split("Over the suite", 2)[1]  # after the link to it
    for row in first.rows:
        for text in (row.label, row.backbone, *texts.scores(first, row), *texts.costs(row)):
            assert text in told
    assert "propulsion minus method" in page.text
    assert "failed 1/3" in told


def test_the_page_needs_nothing_else(tmp_path: Path) -> None:
    page = page_of(save(tmp_path, some()))
    loaded = [value for name, value in page.attributes if name in ("src", "srcset", "data", "action", "poster")]
    assert loaded
    assert all(value.startswith("data:image/svg+xml,") for value in loaded)
    assert "link" not in page.tags
    links = [value for name, value in page.attributes if name == "href"]
    assert all(not re.match(r"[a-z]+:|//", link) for link in links)
    for link in links:
        assert link.startswith("#") or (tmp_path / link).is_file()
    assert "not available" in page.text
    assert "Full fine-tuning trains 355.3 M parameters" in page.text
    assert report.NOT_BESIDE in page.text


def test_ours_stands_beside_the_papers_for_the_paper_profile_only(tmp_path: Path) -> None:
    mini = [make("rte", "propulsion_paper", seed, 0.75, backbone="roberta_base") for seed in range(3)]
    write_report(save(tmp_path / "mini", mini))
    assert not (tmp_path / "mini/tables/paper.md").exists()
    for record in mini:
        record["run"]["profile"] = "paper"
    write_report(save(tmp_path / "paper", mini))
    text = (tmp_path / "paper/tables/paper.md").read_text(encoding="utf-8")
    assert "75.5" in text  # the notebook's
    assert "not available" in text
    assert "RTE" in text
    assert "CoLA" not in text  # no run of it here
    assert_latex_is_sound((tmp_path / "paper/tables/paper.tex").read_text(encoding="utf-8"))
    entry = ledger.claims.Entry("rte/b/m/accuracy/best", "score", "s", "p", "s", "code", "75.5", "holds", value=76.04)
    assert ledger.difference(entry) == "+0.5"


def hostile(text: str) -> list[dict[str, Any]]:
    records = some()
    for record in records:
        for name in ("task", "backbone", "method"):
            record["run"][name] = f"{record['run'][name]}{text}"[:200].replace("/", "∕").replace("\x00", "")
        record["run"]["config"]["backbone"]["note"] = text
        record["env"]["device"] = text
        if record["error"]:
            record["error"]["message"] = text
    return records


@pytest.mark.parametrize(
    "text", [*HOSTILE[:-1], "</script><script>alert(1)</script>", "<!--<script>", "]]>", "&lt;b&gt;"]
)
def test_hostile_text_is_text_in_the_page_and_in_the_figures(text: str) -> None:
    tables = build_all(hostile(text), "glue")
    figures = draw_all(tables) if "<" in text or "$" in text or "\x00" in text else []
    for figure in figures:
        tree = ElementTree.fromstring(figure.files["svg"])
        assert not [node for node in tree.iter() if node.tag == f"{SVG}script"]
        assert not re.search(r"[/\\]|\.\.", report.figure_path(figure).removeprefix("figures/"))
    page = Page(render(text, {"glue": tables}, [(figure, report.figure_path(figure)) for figure in figures], [], []))
    plain = Page(render("name", {"glue": build_all(some(), "glue")}, [], [], []))
    assert [tag for tag in page.tags if tag not in ("figure", "div", "img", "figcaption", "a", "p", "dt", "dd")] == [
        tag for tag in plain.tags if tag not in ("figure", "div", "img", "figcaption", "a", "p", "dt", "dd")
    ]
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    start = " ".join("".join(c if c.isprintable() else " " for c in text).split())[:12]
    assert start in " ".join(page.text.replace("\ufffd", " ").split())
    shown = json.loads(page.data)
    assert all(c.isprintable() for name in shown["names"] for c in name)
    for output in (to_csv(tables), to_latex(tables)):
        assert all(c.isprintable() or c == "\n" for c in output)
    assert_latex_is_sound(to_latex(tables))


def test_names_that_look_alike_as_files_stay_apart() -> None:
    def path(backbone: str) -> str:
        return report.figure_path(FigureFile("glue", backbone, "pareto", "", {}))

    assert path("minilm") == "figures/glue-minilm-pareto"
    assert len({path(name) for name in ("a/b", "a b", "a_b", "../b", "x" * 50, "x" * 60)}) == 6


def test_a_thousand_records_make_a_small_page_quickly(tmp_path: Path) -> None:
    write_records(tmp_path, 700)
    suites = tables_of(tmp_path)
    started = time.process_time()
    html = render("made up", suites, [], [], [])
    assert len(html) < 500_000  # 10,000 are measured by hand: python -m tests.synthetic
    assert time.process_time() - started < 10
    failed = {record[0] for record in json.loads(Page(html).data)["records"] if record[2] == 1}
    assert len(failed) == 700 // 50  # RTE's stand in both suites


def test_figures_that_do_not_fit_stand_beside_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("propulsion.harness.page.document.LARGEST", 120_000)
    page = page_of(save(tmp_path, some()))
    assert (tmp_path / "index.html").stat().st_size < 120_000
    assert page.tags.count("figure") == 5
    assert page.tags.count("img") < 5
    assert ("href", "figures/glue-minilm-cost.svg") in page.attributes


def test_pictures_have_the_size_of_their_drawing() -> None:
    import io

    for figure in drawn(some()).values():
        picture = np.asarray(Image.open(io.BytesIO(figure.files["png"])).convert("L"))
        assert 0.5 < picture.mean() / 255 < 1
        assert picture.min() < 100  # something is drawn
        edge = np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])
        assert edge.min() > 200  # nothing is cut off at the rim


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    found = Browser()
    yield found
    found.close()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site") / "set"
    write_report(save(folder, [*some(), *some(backbone="roberta_base")]))
    return folder / "index.html"


def column(browser: Browser, place: str, j: int) -> list[str]:
    found: list[str] = browser.run(
        f"[...document.querySelectorAll('{place} tbody tr')].map(r => r.children[{j}].textContent)"
    )
    return found


def choose(browser: Browser, name: str, value: str) -> None:
    browser.run(
        f"(() => {{ const e = document.getElementById('f-{name}'); e.value = '{value}';"
        f" e.dispatchEvent(new Event('{'input' if name == 'find' else 'change'}')); }})()"
    )


@needs_browser
@pytest.mark.parametrize("width", [390, 820, 1440])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_the_page_fits_every_width_and_asks_the_network_for_nothing(
    width: int, dark: bool, browser: Browser, site: Path
) -> None:
    browser.size(width, dark=dark)
    browser.open(site)
    assert browser.run("document.documentElement.scrollWidth") <= width
    assert browser.asked() == []
    assert browser.complaints() == []
    paper = browser.run("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", paper))) < 200) is dark
    assert browser.run("[...document.images].every(i => i.complete && i.naturalWidth > 100)") is True


@needs_browser
def test_filters_and_sorting(browser: Browser, site: Path) -> None:
    browser.size(1440)
    browser.open(site)
    assert column(browser, "#table", 0) == ["full", "lora", "propulsion"] * 2
    choose(browser, "backbone", "roberta_base")
    assert column(browser, "#table", 1) == ["roberta_base"] * 3
    assert browser.run("[...document.querySelectorAll('figure')].filter(f => !f.hidden).length") == 5
    before = column(browser, "#table", 2)
    choose(browser, "rule", "best")
    assert column(browser, "#table", 2) != before
    browser.run("[...document.querySelectorAll('#table thead button')].find(b => b.textContent === 'CoLA MCC').click()")
    assert column(browser, "#table", 0) == ["propulsion", "lora", "full"]
    assert browser.run("document.querySelector('#table [aria-sort]').getAttribute('aria-sort')") == "descending"
    assert browser.run("document.activeElement.textContent") == "CoLA MCC"  # not lost by the drawing
    choose(browser, "method", "lora")
    assert column(browser, "#table", 0) == ["lora"]
    assert column(browser, "#lost-table", 3) == ["lora"]
    choose(browser, "find", "no such row")
    assert column(browser, "#table", 0) == []
    assert browser.complaints() == []


@needs_browser
def test_by_keyboard_from_a_number_to_its_record_and_back(browser: Browser, site: Path) -> None:
    browser.size(820)
    browser.open(site)
    browser.press("Tab", 9)
    assert browser.run("document.activeElement.className") == "skip"
    for _ in range(60):
        browser.press("Tab", 9)
        if "71.0" in (browser.run("document.activeElement.textContent") or "") and browser.run(
            "document.activeElement.className"
        ).startswith("cell"):
            break
    label = browser.run("document.activeElement.getAttribute('aria-label')")
    assert "runs of propulsion" in label
    browser.press("Enter", 13, "\r")
    assert browser.run("document.getElementById('detail').open") is True
    link = browser.run("document.querySelector('#d-body a').href")
    assert (site.parent / link.split("/set/")[1]).is_file()
    text = browser.run("document.getElementById('d-body').innerText")
    for word in ("fingerprint", "f-", "learning rate", "0.001", "transformers", "sha256", "CPU of a kind"):
        assert word in text
    browser.press("Escape", 27)
    assert browser.run("document.getElementById('detail').open") is False
    assert browser.run("document.activeElement.getAttribute('aria-label')") == label


@needs_browser
def test_failed_runs_are_seen_with_their_error(browser: Browser, site: Path) -> None:
    browser.size(390)
    browser.open(site)
    assert browser.run("document.querySelectorAll('#table .bad').length") == 2
    assert "RuntimeError: boom" in browser.run("document.getElementById('lost').innerText")


@needs_browser
@pytest.mark.parametrize("width", [390, 1440])
def test_without_its_script_the_page_has_its_scores(width: int, browser: Browser, site: Path) -> None:
    browser.size(width)
    browser.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.open(site)
        first = tables_of(site.parent)["glue"][0]
        shown = column(browser, "#table", 2)
        assert shown == [texts.scores(first, row)[0] for row in first.rows]
        assert browser.run("document.querySelector('#table td').getBoundingClientRect().height") > 10
        assert browser.run("document.getElementById('controls').hidden && document.getElementById('how').hidden")
        assert browser.run("document.documentElement.scrollWidth") <= width
    finally:
        browser.call("Emulation.setScriptExecutionDisabled", value=False)


@needs_browser
def test_hostile_text_is_shown_by_a_real_browser_and_not_run(browser: Browser, tmp_path: Path) -> None:
    text = "<img src=x onerror=alert(1)></script><script>document.title='taken'</script>"
    folder = tmp_path / "set"
    write_report(save(folder, hostile(text)))
    browser.size(390)
    browser.open(folder / "index.html")
    assert browser.run("document.title") == "set: results"
    assert browser.run("document.querySelectorAll('img:not([src^=\"data:\"])').length") == 0
    assert "<img src=x onerror" in browser.run("document.getElementById('table').textContent")
    assert browser.run("document.documentElement.scrollWidth") <= 390
    browser.run("document.querySelector('#table button.cell').click()")
    link = browser.run("decodeURIComponent(document.querySelector('#d-body details a, #d-body a')?.href ?? 'none')")
    assert browser.complaints() == []
    assert link == "none" or link.startswith("file:")
