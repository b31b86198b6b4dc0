"""Reports: the file stands alone, hostile text stays text, and a real browser shows and enlarges cases."""

from __future__ import annotations

import math
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from test_evaluation import NOTHING, OTHER, SQUARE, Painter, write_case

from samdistill.errors import UsageError
from samdistill.evaluation import evaluate
from samdistill.geometry import resize_masks
from samdistill.io.dataset import open_dataset
from samdistill.report.charts import Series, histogram, line_chart
from samdistill.report.contours import path_data
from samdistill.report.document import Section, escape, facts, paragraph, table, write_report
from samdistill.report.gallery import PREDICTION, TRUTH, Case, draw_picture, gallery
from samdistill.report.pages import evaluation_sections, examples, facts_section, learning_curves

HOSTILE = "\"><script>document.title='owned'</script><img src=x onerror=alert(1)>&amp;'`${1}$body\udcff"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
browser = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome on PATH to open the report with"
)


class Elements(HTMLParser):
    """Tags with their attributes, and the text outside scripts and styles."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._quiet = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._quiet = tag in ("script", "style")

    def handle_endtag(self, tag: str) -> None:
        self._quiet = False

    def handle_data(self, data: str) -> None:
        self.text += "" if self._quiet else data

    def count(self, tag: str, **attributes: str) -> int:
        return sum(
            found == tag and all(attrs.get(name) == value for name, value in attributes.items())
            for found, attrs in self.tags
        )


def entry(title: str, score: float | None) -> Case:
    image = np.random.default_rng(0).integers(0, 255, (24, 32, 3)).astype(np.uint8)
    return Case(title, draw_picture(image, {PREDICTION: SQUARE[None], TRUTH: OTHER[None]}), score, ["a note"])


@pytest.fixture
def page(tmp_path: Path) -> Path:
    """A report with every kind of section, its texts hostile where text comes from outside."""
    cases = [entry("middle", 0.5), entry(HOSTILE, 0.9), entry("worst", 0.1), entry("unscored", None)]
    path = tmp_path / "report.html"
    write_report(
        path,
        f"Report {HOSTILE}",
        [
            Section("Table", table(["", HOSTILE], [[HOSTILE, "1"]], caption=HOSTILE)),
            learning_curves([{"step": s, "train_loss": 1 / s, "val_dice": 1 - 1 / s} for s in (1, 2, 3)]),
            Section("Histogram", histogram(HOSTILE, [0.1, 0.5, 1.0], x_label=HOSTILE)),
            gallery("Cases", cases, class_names=[HOSTILE], note=HOSTILE),
            facts_section("Facts", {HOSTILE: {"nested": [1, 2]}, "none": None}, note=HOSTILE),
        ],
        subtitle=HOSTILE,
    )
    return path


# ---- the file


def test_hostile_text_stays_text_wherever_it_stands(page: Path) -> None:
    elements = Elements(page.read_text(encoding="utf-8"))
    assert elements.count("script") == 1, "the page's own and no other"
    assert not any("onerror" in attrs or "onclick" in attrs for _, attrs in elements.tags)
    assert all(
        attrs.get("src", "data:").startswith("data:image/") for t, attrs in elements.tags if t == "img"
    )
    assert elements.text.count("<script>document.title='owned'</script>") >= 10
    assert "$body" in elements.text, "what looks like a place in the template is not filled in"


def test_the_page_needs_nothing_from_outside_and_forbids_it_itself(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    elements = Elements(text)
    policy = next(
        attrs["content"]
        for tag, attrs in elements.tags
        if attrs.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy.startswith("default-src 'none'; img-src data:;")
    for tag, attrs in elements.tags:
        assert tag not in ("iframe", "object", "embed", "base", "form")
        for name in ("src", "href", "xlink:href", "action"):
            assert (attrs.get(name) or "#").startswith(("#", "data:")), (tag, attrs)
    style = text[text.index("<style>") : text.index("</style>")]
    assert "url(" not in style and "@import" not in style
    assert page.stat().st_size < 200_000


def test_every_section_is_in_the_contents_and_can_be_reached(page: Path) -> None:
    elements = Elements(page.read_text(encoding="utf-8"))
    targets = [attrs["href"] for tag, attrs in elements.tags if tag == "a"]
    anchors = [f"#{attrs['id']}" for tag, attrs in elements.tags if tag == "section"]
    assert targets == anchors and len(set(anchors)) == 5


def test_a_gallery_is_sorted_worst_first_and_cases_without_score_come_last(page: Path) -> None:
    elements = Elements(page.read_text(encoding="utf-8"))
    scores = [attrs["data-score"] for tag, attrs in elements.tags if (attrs.get("class") or "") == "case"]
    assert scores == ["0.100000", "0.500000", "0.900000", ""]
    assert elements.count("svg", **{"data-layer": "truth"}) == 4
    assert elements.count("input", **{"data-layer": "prediction"}) == 1


def test_an_older_report_is_replaced_whole_and_nothing_else_is_left(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "report.html"
    for text in ("older text", "newer text"):
        write_report(path, text, [Section("A", paragraph(text))])
    assert "newer text" in path.read_text() and "older text" not in path.read_text()
    assert [one.name for one in path.parent.iterdir()] == ["report.html"]


@pytest.mark.parametrize("there", ["somebody's", "folder", "fifo", "link", "file/report.html"])
def test_what_is_no_report_is_not_replaced_by_one(tmp_path: Path, there: str) -> None:
    path = tmp_path / there
    if there == "folder":
        path.mkdir()
    elif there == "fifo":
        os.mkfifo(path)
    elif there == "link":
        path.symlink_to(os.devnull)
    else:
        (tmp_path / Path(there).parts[0]).write_text("<html>mine</html>")
    before = [(one.name, one.lstat()) for one in tmp_path.iterdir()]
    with pytest.raises(UsageError, match="must be"):
        write_report(path, "T", [])
    assert [(one.name, one.lstat()) for one in tmp_path.iterdir()] == before


def test_an_empty_file_becomes_the_report(tmp_path: Path) -> None:
    (tmp_path / "report.html").touch()
    write_report(tmp_path / "report.html", "T", [])
    assert "<title>T</title>" in (tmp_path / "report.html").read_text()


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.html", "b.html"):
        write_report(tmp_path / name, "T", [gallery("C", [entry("x", 0.5)], class_names=["a"])])
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_large_images_shrink_and_small_ones_stay() -> None:
    large = draw_picture(np.zeros((1200, 2400, 3), np.uint8), {TRUTH: np.ones((1, 1200, 2400), bool)})
    assert large.image.shape == (400, 800, 3)
    assert 'd="M0 0H800V400H0Z"' in large.layers[TRUTH] and "stroke-dasharray" in large.layers[TRUTH]
    small = draw_picture(np.zeros((24, 32, 3), np.uint8), {PREDICTION: np.zeros((1, 24, 32), bool)})
    assert small.image.shape == (24, 32, 3) and small.layers[PREDICTION] == ""


def test_where_a_picture_shrinks_nothing_of_a_mask_vanishes_and_large_outlines_stay_exact() -> None:
    small, thin, disc = np.zeros((3, 2000, 2000), bool)
    small[1801:1803, 105:107] = True
    thin[:, 700] = True
    y, x = np.ogrid[:2000, :2000]
    disc |= (y - 900) ** 2 + (x - 900) ** 2 < 500**2
    image = np.zeros((2000, 2000, 3), np.uint8)
    layers = {
        "small": small[None],
        "thin": thin[None],
        "all": (disc | small | thin)[None],
        "disc": disc[None],
    }
    drawn = draw_picture(image, layers, longest=500).layers
    assert 'd="M26 450H27V451H26Z"' in drawn["small"] and 'd="M175 0H176V500H175Z"' in drawn["thin"]
    assert "M26 450H27V451H26Z" in drawn["all"] and "M175 0H176V" in drawn["all"]
    assert drawn["disc"] == "".join(
        f'<path {look} d="{path_data(resize_masks(disc[None], (500, 500))[0])}"/>'
        for look in ('class="rim"', 'style="stroke:rgb(86, 180, 233)"')
    )


def test_tables_and_facts_hold_what_they_were_given() -> None:
    assert "<td>2</td>" in table(["a", "b"], [["x", "2"]])
    with pytest.raises(ValueError, match="rows must have 2 cells"):
        table(["a", "b"], [["x"]])
    told = facts({"outer": {"inner": [1, 2], "none": None}, "empty": []})
    assert "<dt>outer.inner</dt><dd>1, 2</dd>" in told and "<dt>outer.none</dt><dd>–</dd>" in told
    assert escape("a\udcffb") == "a?b"


# ---- charts


def drawn_points(svg: str) -> list[list[tuple[float, float]]]:
    found = re.findall(r'points="([^"]*)"', svg)
    return [[tuple(map(float, point.split(","))) for point in points.split()] for points in found]


def test_schedules_agreements_and_the_switch_are_drawn_where_several_voices_were_at_work() -> None:
    """By hand: lambda_c 0.02, 0.06, 0.1 and lambda_s 0.08, 0.04, 0 on an axis from 0 to 0.1."""
    log = [
        {
            "step": 10 * (n + 1), "val_dice": 0.5, "lambda_c": 0.02 + 0.04 * n, "lambda_s": 0.08 - 0.04 * n,
            "agree_student_ema": 0.9, "agree_student_truth": 0.4 + 0.1 * n,
        }
        for n in range(3)
    ]  # fmt: skip
    log[0] |= {"agree_student_teacher": 0.3, "teacher_val_dice": 0.6}
    log[1] |= {"teacher_val_dice": 0.4, "teacher_switched_off": 1.0}
    body = learning_curves(log).body
    figures = dict(re.findall(r"<figcaption>(.*?)</figcaption>(.*?)</figure>", body))
    assert list(figures) == [
        "Loss",
        "Dice",
        "Learning rate",
        "Weights, mean of the epoch",
        "Agreement on unlabelled views, Dice",
        "Against the hidden truth, Dice",
    ]
    rising, falling = drawn_points(figures["Weights, mean of the epoch"])
    heights = [[point[1] for point in one] for one in (rising, falling)]
    top, bottom = 24, 260 - 38
    wanted = [[bottom - share * (bottom - top) for share in one] for one in ((0.2, 0.6, 1), (0.8, 0.4, 0))]
    assert heights == [pytest.approx(one, abs=0.06) for one in wanted]
    assert "student, ema" in figures["Agreement on unlabelled views, Dice"]
    assert "student, truth" in figures["Against the hidden truth, Dice"]
    assert len(drawn_points(figures["Dice"])) == 2
    assert "From step 20 on the teacher was asked no more." in body
    plain = learning_curves([{"step": 1, "train_loss": 1.0, "val_dice": 0.5}]).body
    assert plain.count("<figure") == 3 and "no more" not in plain and "teacher" not in plain


def test_a_curve_rises_where_its_values_rise_and_gaps_are_left_out() -> None:
    svg = line_chart("T", [Series("s", [0, 10, 20, 30], [0.0, math.nan, 1.0, 0.5])], x_label="x")
    (points,) = drawn_points(svg)
    assert len(points) == 3
    (x0, y0), (x1, y1), (x2, y2) = points
    assert x0 < x1 < x2 and y1 < y2 < y0, "the y axis of an SVG runs down"
    assert x1 - x0 == pytest.approx(2 * (x2 - x1), abs=0.2)


@pytest.mark.parametrize("values", [[], [math.nan], [1.0], [0.5, 0.5], [-1e-9, 1e9], [1e-7, 2e-7]])
def test_charts_of_odd_values_are_drawn_inside_their_frame(values: list[float]) -> None:
    svg = line_chart("T", [Series("s", list(range(len(values))), values)], x_label="x")
    svg += histogram("H", values, x_label="x")
    for x, y in (point for points in drawn_points(svg) for point in points):
        assert 0 <= x <= 560 and 0 <= y <= 260
    assert "nan" not in svg.lower() and "inf" not in svg.lower()


def test_histogram_bars_count_the_values_bounds_included() -> None:
    svg = histogram("H", [0.0, 0.01, 0.5, 1.0, 1.0, math.nan], x_label="Dice")
    counts = [int(count) for count in re.findall(r"to [\d.]+: (\d+)<", svg)]
    assert len(counts) == 20 and sum(counts) == 5
    assert (counts[0], counts[10], counts[-1]) == (2, 1, 2)
    assert "mean 0.502" in svg


def test_long_logs_are_thinned_and_keep_both_ends() -> None:
    svg = line_chart("T", [Series("s", list(range(10_000)), list(np.linspace(0, 1, 10_000)))], x_label="x")
    (points,) = drawn_points(svg)
    assert len(points) == 400 and points[0][1] > points[-1][1]


def test_more_curves_than_can_be_told_apart_are_refused() -> None:
    with pytest.raises(ValueError, match="series must be at most 3"):
        line_chart("T", [Series("s", [0], [0])] * 4, x_label="x")


# ---- an evaluation's report


@pytest.fixture
def evaluated(tmp_path: Path):
    for number in range(9):
        found = SQUARE.copy()
        found[:, : number + 2] = False  # worse and worse
        write_case(tmp_path / "data", f"case{number}", [found, NOTHING], [SQUARE, NOTHING])
    (tmp_path / "data" / "dataset.toml").write_text('classes = ["a", "b"]\n')
    cases = open_dataset(tmp_path / "data").labelled
    return evaluate(Painter(), cases), cases


def test_an_evaluations_report_tells_numbers_and_shows_cases(evaluated, tmp_path: Path) -> None:
    evaluation, cases = evaluated
    path = tmp_path / "report.html"
    write_report(path, "Evaluation", evaluation_sections(evaluation, Painter(), cases))
    elements = Elements(path.read_text(encoding="utf-8"))
    assert sum(attrs.get("class") == "case" for _, attrs in elements.tags) == 9
    assert "All 9 cases." in elements.text
    assert f"{evaluation.metrics['dice'].mean:.3f}" in elements.text
    assert "mean of the classes" in elements.text


def test_of_many_cases_the_worst_and_the_best_are_shown_and_the_page_says_so(evaluated) -> None:
    evaluation, cases = evaluated
    painter = Painter()
    body = examples(evaluation, painter, cases, worst=2, best=1).body
    assert re.findall(r'<b title="(\w+)"', body) == ["case8", "case7", "case0"]
    assert "The 2 worst and the 1 best of 9 cases by Dice." in body
    assert sum(painter.asked) == 3, "only what is shown is predicted again"


# ---- in a browser


def dump(page: Path, script: str, tmp_path: Path) -> tuple[Elements, str]:
    """The page after its scripts ran and `script` after them, and what the browser's console said."""
    copy = tmp_path / "with_script.html"
    text = page.read_text(encoding="utf-8")
    if script:  # the page's policy forbids scripts it does not carry
        text = re.sub(r"<meta http-equiv=[^>]*>", "", text)
        text = text.replace("</body>", f"<script>{script}</script></body>")
    copy.write_text(text, encoding="utf-8")
    done = subprocess.run(
        [
            str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
            "--no-first-run", "--enable-logging=stderr", f"--user-data-dir={tmp_path / 'profile'}",
            "--virtual-time-budget=2000", "--dump-dom", copy.as_uri(),
        ],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    console = "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)
    return Elements(done.stdout), console


@browser
def test_a_browser_shows_every_case_and_reports_no_error(page: Path, tmp_path: Path) -> None:
    elements, console = dump(page, "", tmp_path)
    assert console == ""
    assert sum(attrs.get("class") == "case" for _, attrs in elements.tags) == 4
    assert elements.count("dialog", id="zoom", open="") == 0
    title = elements.text.split("</title>")[0]
    assert "owned" in title and "Report" in title, "the hostile title is shown, not run"


@browser
def test_the_browsers_console_would_tell_of_an_error(page: Path, tmp_path: Path) -> None:
    """Guards the test above: an error must be seen where there is one."""
    _, console = dump(page, "null.x", tmp_path)
    assert "TypeError" in console


@browser
def test_clicking_a_case_enlarges_it_and_keys_and_wheel_work(page: Path, tmp_path: Path) -> None:
    script = """
      const key = (name) =>
        document.activeElement.dispatchEvent(new KeyboardEvent("keydown", {key: name, bubbles: true}));
      const told = [];
      const tell = () => told.push(document.getElementById("zoom-title").textContent);
      document.querySelectorAll(".case button")[0].click(); tell();
      const dialog = document.getElementById("zoom");
      const stack = () => document.querySelector("#zoom-stage .stack");
      told.push(dialog.open, stack().querySelectorAll("img, svg").length);
      key("ArrowRight"); tell();
      key("ArrowLeft"); tell(); key("ArrowLeft"); tell();
      key("+"); told.push(stack().style.width);
      document.getElementById("zoom-stage").dispatchEvent(
        new WheelEvent("wheel", {deltaY: 4000, bubbles: true, cancelable: true}));
      told.push(stack().style.width);
      key("h"); told.push(getComputedStyle(stack().querySelector("svg")).visibility);
      dialog.querySelector("[data-close]").click(); told.push(dialog.open);
      document.title = JSON.stringify(told);
    """
    elements, console = dump(page, script, tmp_path)
    assert console == ""
    assert '["worst",true,3,"middle","worst","unscored","150%","100%","hidden",false]' in elements.text


@browser
def test_layers_can_be_switched_off_and_the_order_changed(page: Path, tmp_path: Path) -> None:
    script = """
      const box = document.querySelector("input[data-layer=truth]");
      box.checked = false; box.dispatchEvent(new Event("change"));
      const hidden = [...document.querySelectorAll(".layer")].filter((one) => one.hasAttribute("hidden"));
      const select = document.querySelector("select");
      select.value = "highest"; select.dispatchEvent(new Event("change"));
      const order = [...document.querySelectorAll(".case")].map((one) => one.dataset.score);
      document.title = JSON.stringify([hidden.map((one) => one.dataset.layer), order]);
    """
    elements, console = dump(page, script, tmp_path)
    assert console == ""
    assert '[["truth","truth","truth","truth"],["0.900000","0.500000","0.100000",""]]' in elements.text
