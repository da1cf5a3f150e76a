"""Reports of runs: what the page holds, and how it behaves in a browser."""

import base64
import copy
import dataclasses
import html.parser
import json
import re
import shutil

import numpy as np
import pytest

from symmetrax.cli import main
from symmetrax.studies import fig1
from symmetrax.studies._registry import run_experiment
from symmetrax.studies.core._folder import as_json
from symmetrax.studies.core._report import write_comparison, write_report

BROWSER = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chromium-browser"))), None)
EVIL = "<script>alert(1)</script>"
#: A PNG of one pixel.
PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


def arm(*losses, **facts):
    """An arm with these medians, and quartiles at half and twice of them."""
    scaled = lambda factor: [factor * x for x in losses]  # noqa: E731
    curves = {
        "loss_median": scaled(1),
        "loss_q25": scaled(0.5),
        "loss_q75": scaled(2),
        "loss_mean": scaled(1),
    }
    versus = {"adam": {"log_ratio": -0.7, "low": -1.0, "high": -0.4}}
    return {"runs": 8, "diverged": 1, **curves, "versus": versus, "gradient_evaluations": 3.0, **facts}


def results():
    curve = {"evaluations_curve": [0.0, 2.0, 4.0, 6.0]}
    arms = {
        "adam": arm(4.0, 2.0, 1.0, 0.5, versus={}, seconds=0.01, **curve),
        "teleport": arm(4.0, 1.0, 0.1, 0.0, training_seconds=12.0, rejected=0.25, **curve),
        EVIL: arm(
            4.0, 9.0, np.inf, np.nan, test_accuracy=0.9, hyperparameters={"rate": {"deep": [1]}}, **curve
        ),
        "lost": arm(np.inf, np.inf, np.inf, np.inf, **curve),
    }
    return {
        "experiment": "fig3",
        "preset": "quick",
        "seconds": 150.0,
        "groups": {"ellipse": {"arms": arms, "spread": 3}, "other": {"arms": {"adam": arm(1.0, 0.5)}}},
        "verdicts": [
            {"claim": f"it helps {EVIL}", "source": "arXiv:2504.15399", "outcome": "reproduced", "why": "-1"},
            {"claim": "it does not", "source": "ours", "outcome": "reversed", "why": "+1"},
        ],
        "answers": [{"question": "Does it help?", "answer": "yes", "why": "it ends lower"}],
        "rates": {"adam": {"mean": 0.1, "best": 0.2}, "gd": {"mean": 1.0}},
        "notes": {"first": {"deep": {"deeper": [1, 2, 3]}}},
    }


def trajectories():
    """Two tasks of two arms, three steps; the second arm teleports."""
    points = np.random.default_rng(0).normal(size=(2, 4, 2)).astype(np.float32)
    line = np.tile(np.linspace(-3, 3, 121, dtype=np.float32), (2, 1))
    loss = line[:, None] ** 2 + line[:, :, None] ** 2 + 0.01
    arrays = {}
    for name in ("adam", "teleport"):
        arrays[f"{name}.points"] = points
        arrays[f"{name}.arrows"] = np.stack([points[:, :-1], points[:, 1:]], axis=2)
        arrays |= {f"{name}.grid.x": line, f"{name}.grid.y": line, f"{name}.grid.loss": loss}
    shares = np.linspace(0, 1, 33, dtype=np.float32)[:, None]
    arrays["teleport.arcs"] = points[:, :-1, None] * (1 - shares) + points[:, 1:, None] * shares
    return arrays


def make_run(folder, found):
    (folder / "artifacts").mkdir(parents=True)
    (folder / "artifacts" / f"{EVIL[:8]}.safetensors").write_bytes(b"0")
    machine = {"processor": "one", "cores": 2}
    config = {"experiment": "fig3", "preset": "quick", "settings": {"seed": 7, "training": {"runs": 3}}}
    config |= {"versions": {"jax": "0.8"}, "machine": machine}
    (folder / "config.json").write_text(as_json(config))
    (folder / "curves.png").write_bytes(PIXEL)
    np.savez(folder / "trajectories.npz", **trajectories())
    if found is not None:
        (folder / "results.json").write_text(as_json(found))
    return folder


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "run", results())


class Elements(html.parser.HTMLParser):
    """The elements of a page, and its visible text."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.text, self.inside = [], [], ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.inside = tag

    def handle_endtag(self, tag):
        self.inside = ""

    def handle_data(self, data):
        if self.inside not in ("script", "style"):
            self.text.append(data)


def read(path):
    found = Elements(path.read_text(encoding="utf-8"))
    return found, " ".join(" ".join(found.text).split())


def test_the_page_holds_everything_in_one_file(run):
    path = write_report(run)
    assert path == run / "report.html"
    page, text = read(path)
    for part in (
        *(
            "2 claims. Reproduced: 1. Reversed: 1.",
            "Does it help?",
            "it ends lower",
            "0.5 (0.37",
        ),
        *("symmetrax run fig3 --preset quick", "--seed 7", "one ellipse", "jax", "12.5%", "25.0%"),
        *("rates", "deeper", "test_accuracy", "2.5 min", "Machine", "training"),
    ):
        assert part in text, part
    addresses = [attrs.get(name) for _, attrs in page.tags for name in ("src", "href") if attrs.get(name)]
    outside = [address for address in addresses if re.match("(https?:)?//", address)]
    assert {*outside} == {"https://arxiv.org/abs/2504.15399"}  # a link, which loads nothing
    assert "results.json" in addresses
    assert "artifacts/%3Cscript%3E.safetensors" in addresses
    assert path.read_text().count("* plotly.js v") == 1


def test_names_in_files_are_never_markup(run):
    path = write_report(run)
    page, text = read(path)
    assert EVIL not in path.read_text()
    assert text.count(EVIL) >= 3
    assert [attrs for tag, attrs in page.tags if tag == "script"].count({}) == 2  # plotly and the page's own


def test_a_page_has_headings_captions_and_headers(run):
    page, _ = read(write_report(run))
    count = lambda tag: sum(tag == found for found, _ in page.tags)  # noqa: E731
    assert count("h1") == count("main") == 1
    assert count("caption") == count("table") > 5
    assert ("html", {"lang": "en"}) in page.tags
    assert all("alt" in attrs for tag, attrs in page.tags if tag == "img")
    names = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len({*names}) == len(names)


def test_infinite_losses_are_shown_and_their_arms_listed(run):
    path = write_report(run)
    _, text = read(path)
    assert "is never finite or is not recorded: lost." in text
    charts = re.findall(r'<script type="application/json">(.*?)</script>', path.read_text(), re.DOTALL)
    for chart in charts:
        json.loads(chart, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    arms = {
        trace["legendgroup"]: trace for trace in json.loads(charts[0])["data"] if "showlegend" not in trace
    }
    assert arms[EVIL]["y"] == [4.0, 9.0, None, None]
    assert arms["teleport"]["text"][-1] == "0"  # which is drawn at the floor, where the axis ends
    assert 0 < arms["teleport"]["y"][-1] < 1e-11


def test_two_calls_give_equal_bytes(run):
    first = write_report(run).read_bytes()
    assert write_report(run).read_bytes() == first
    pair = [write_comparison([run, run], run.parent / f"{name}.html").read_bytes() for name in "ab"]
    assert pair[0] == pair[1]


def places(value, path=()):
    """The paths to all entries of nested results."""
    entries = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    )
    for key, item in entries:
        yield (*path, key)
        if not isinstance(item, list) or path == ():
            yield from places(item, (*path, key))


def test_no_entry_of_results_is_needed(run, monkeypatch):
    monkeypatch.setattr("plotly.offline.get_plotlyjs", lambda: "")  # nothing else is large
    (run / "trajectories.npz").unlink()
    whole = results()
    del whole["groups"]["other"]
    for number, path in enumerate(places(whole)):
        found = copy.deepcopy(whole)
        inner = found
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = (None, "odd", {}, [1, "a"])[number % 4]
        (run / "results.json").write_text(as_json(found))
        assert write_report(run).stat().st_size > 10_000, path
        write_comparison([run], run / "comparison.html")


@pytest.mark.parametrize("odd", [None, "odd", {}, [1, "a"], 3.5])
def test_no_entry_of_a_config_but_the_experiment_is_needed(run, odd):
    whole = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(as_json({"experiment": "fig3"} | dict.fromkeys(list(whole)[1:], odd)))
    assert "symmetrax run fig3" in read(write_report(run))[1]


def test_a_run_that_was_stopped_says_how_to_go_on(tmp_path):
    run = make_run(tmp_path / "a run", None)
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / "vanilla.safetensors").write_bytes(b"0")
    _, text = read(write_report(run))
    assert "This run is not complete: there is no results.json." in text
    assert f"symmetrax run fig3 --preset quick --out '{run}' --seed 7" in text
    assert "Checkpoints found: checkpoints/vanilla.safetensors" in text
    assert "Settings" in text
    assert "Trajectories" in text


def test_the_command_of_a_study_of_ones_own_names_its_file(run):
    (run / "config.json").write_text(as_json({"experiment": "mine", "preset": "full"}))
    _, text = read(write_report(run))
    assert f"symmetrax run FILE.py --out {run}" in text
    assert "FILE.py is the file that defines the study mine." in text


def test_trajectories_that_are_damaged_are_left_out(run):
    content = (run / "trajectories.npz").read_bytes()
    (run / "trajectories.npz").write_bytes(content[:1000])
    _, text = read(write_report(run))
    assert "trajectories.npz could not be read" in text
    assert "2 claims." in text
    arrays = trajectories()
    del arrays["adam.grid.x"]
    np.savez(run / "trajectories.npz", **arrays)
    assert "adam.grid.x is not a float array of 2 dimensions" in read(write_report(run))[1]


def test_several_runs_are_compared_claim_by_claim(run, tmp_path):
    found = results()
    found["verdicts"][0]["outcome"] = "inconclusive"
    found["verdicts"].append({"claim": "a third", "source": "ours", "outcome": "reproduced", "why": "-2"})
    second = make_run(tmp_path / "deep" / "run", found)
    third = make_run(tmp_path / "stopped", None)
    path = write_comparison([run, second, third], tmp_path / "comparison.html")
    page, text = read(path)
    assert "3 runs compared" in text
    assert f"{tmp_path.name}/run" in text  # longer, since both folders are called run
    assert "deep/run" in text
    assert "stopped: This run is not complete" in text
    assert text.count("it does not") == 1
    assert "a third" in text
    assert sum(attrs.get("class") == "chart" for _, attrs in page.tags) == 4
    assert "run/results.json" in [attrs.get("href") for _, attrs in page.tags]


def test_a_run_writes_its_report_and_writes_it_again_if_it_is_missing(tmp_path, monkeypatch):
    quick = fig1.STUDIES["fig1"]
    found = {"verdicts": results()["verdicts"]}
    study = dataclasses.replace(quick, analyse=lambda run: found, figures=(), tables=None)
    monkeypatch.setitem(fig1.STUDIES, "fig1", study)
    path = run_experiment("fig1", "quick", tmp_path / "run", quiet=True)
    first = (path / "report.html").read_bytes()
    (path / "report.html").unlink()
    run_experiment("fig1", "quick", path, quiet=True)
    assert (path / "report.html").read_bytes() == first


def test_the_command_prints_where_the_page_is(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    main(["report", "run"])
    main(["report", "run", "run"])
    main(["report", "run", "--out", "page.html"])
    assert capsys.readouterr().out.split() == ["run/report.html", "comparison.html", "page.html"]
    assert "run/results.json" in (tmp_path / "page.html").read_text()
    (run / "results.json").write_text("{")
    for arguments, message in (
        (["report", "artifacts"], "symmetrax: artifacts is not a run folder: expected config.json there"),
        (["report", "run"], "has no results that can be read"),
        (["report"], "symmetrax: "),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        told = capsys.readouterr().err
        assert stopped.value.code == 2
        assert message in told
        assert told.count("\n") == 1


@pytest.fixture(scope="module")
def browser():
    if BROWSER is None:
        pytest.skip("no chromium or google-chrome is installed")
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    place = tmp_path_factory.mktemp("reports")
    run = make_run(place / "run", results())
    return write_report(run), write_comparison([run, run], place / "comparison.html")


@pytest.fixture(scope="module")
def opened(browser, reports):
    """A function that opens a page, and checks at the end that none had an error or asked for anything."""
    contexts, complaints = [], []

    def visit(path=reports[0], **options):
        context = browser.new_context(offline=True, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on(
            "request", lambda request: complaints.append(request.url) if "http" in request.url[:5] else None
        )
        page.goto(path.as_uri())
        page.wait_for_selector(".main-svg")
        return page

    yield visit
    for context in contexts:
        context.close()
    assert complaints == []


@pytest.fixture(scope="module")
def page(opened):
    return opened(color_scheme="light", viewport={"width": 1200, "height": 900})


def until(page, condition):
    """Wait for a condition: not by `wait_for_function`, since the page forbids `eval`."""
    for _ in range(100):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(50)
    pytest.fail(f"in 5 s there was no {condition}")


def visible(page, chart="chart-1"):
    """Whether line and band of every arm are drawn."""
    traces = page.evaluate(
        f"document.getElementById('{chart}').data.map(t => [t.legendgroup, t.visible ?? true])"
    )
    arms = {}
    for name, shown in traces:
        arms.setdefault(name, []).append(shown)
    return arms


def test_a_click_on_the_legend_switches_an_arm_with_its_band(page):
    assert visible(page)["adam"] == [True, True]
    entry = page.locator("#chart-1 .traces", has_text="adam").locator(".legendtoggle")
    entry.click()
    until(page, "document.getElementById('chart-1').data.some(t => t.visible === 'legendonly')")
    assert visible(page)["adam"] == ["legendonly", "legendonly"]
    assert visible(page)["teleport"] == [True, True]
    assert page.locator("#chart-1 .scatterlayer .trace").count() == 6
    entry.click()
    until(page, "document.getElementById('chart-1').data.every(t => t.visible !== 'legendonly')")
    entry.dblclick()
    until(page, "document.getElementById('chart-1').data.some(t => t.visible === 'legendonly')")
    assert visible(page)["adam"] == [True, True]
    assert visible(page)["teleport"] == visible(page)["lost"] == ["legendonly", "legendonly"]
    entry.dblclick()
    until(page, "document.getElementById('chart-1').data.every(t => t.visible !== 'legendonly')")


def test_names_are_texts_in_the_chart(page):
    assert page.locator("#chart-1 .legendtext").all_text_contents().count(EVIL) == 1


def test_buttons_change_scale_axis_and_bands(page):
    chart = page.locator("figure", has=page.locator("#chart-1"))
    axis = "document.getElementById('chart-1')._fullLayout.{}"
    chart.get_by_role("button", name="linear").click()
    assert page.evaluate(axis.format("yaxis.type")) == "linear"
    assert 3 < page.locator("#chart-1 .ytick text").count() < 15
    assert chart.get_by_role("button", name="linear").get_attribute("aria-pressed") == "true"
    chart.get_by_role("button", name="log", exact=True).click()
    assert page.evaluate(axis.format("yaxis.type")) == "log"
    chart.get_by_role("button", name="gradient evaluations").click()
    assert page.evaluate(axis.format("xaxis.range[1]")) == pytest.approx(6)
    chart.get_by_role("button", name="quartile bands").click()
    assert visible(page)["adam"] == [False, True]
    chart.get_by_role("button", name="quartile bands").click()
    assert visible(page)["adam"] == [True, True]


def test_a_click_on_a_header_sorts_and_says_so(page):
    table = page.locator("#group-1 table").first
    column = lambda: [row.split("\t")[1] for row in table.locator("tbody").inner_text().splitlines()]  # noqa: E731
    header = table.locator("th", has_text="median loss")
    header.get_by_role("button").click()
    assert (column(), header.get_attribute("aria-sort")) == (["0", "0.5", "inf", "nan"], "ascending")
    header.get_by_role("button").press("Enter")
    assert (column(), header.get_attribute("aria-sort")) == (["inf", "0.5", "0", "nan"], "descending")
    table.locator("th", has_text="arm").first.get_by_role("button").click()
    assert header.get_attribute("aria-sort") == "none"
    assert table.locator("tbody th").first.inner_text().strip() == EVIL


def test_the_slider_moves_the_path(page):
    drawn = "document.querySelectorAll('.map')[0].data.map(t => t.x?.length)"
    slider = page.locator(".plane .step")
    assert page.evaluate(drawn)[1:4] == [9, 3 * 34, 4]  # pairs and arcs with a gap after each
    slider.fill("1")
    assert page.evaluate(drawn)[1:4] == [3, 34, 2]
    assert page.locator(".plane output").inner_text() == "1 of 3"
    slider.press("ArrowRight")
    assert page.evaluate(drawn)[1:4] == [6, 2 * 34, 3]
    page.locator(".plane .arm").first.select_option("adam")
    assert page.evaluate(drawn)[1:4] == [6, 0, 3]
    before = page.evaluate("document.querySelector('.map').data[3].x[0]")
    page.locator(".plane .task").select_option(label="2")
    assert page.evaluate("document.querySelector('.map').data[3].x[0]") != before
    slider.fill("3")
    page.locator(".plane .play").click()
    until(page, "document.querySelector('.plane .step').value === '2'")
    until(page, "document.querySelector('.plane .play').textContent === 'play'")


#: The color of each text, and of the ground below it, by selector.
COLORS = """(names) => Object.fromEntries(names.map((name) => {
  const text = document.querySelector(name), style = getComputedStyle(text);
  let ground = text;
  while (getComputedStyle(ground).backgroundColor === "rgba(0, 0, 0, 0)") ground = ground.parentElement;
  const color = text instanceof SVGElement ? style.fill : style.color;
  return [name, [color, getComputedStyle(ground).backgroundColor]];
}))"""
TEXTS = (
    *(
        "h1",
        ".lead",
        "nav a",
        "td",
        "tbody th",
        "thead th",
        "caption",
        ".badge.good",
        ".badge.bad",
        "summary",
    ),
    *("main a", ".note", "button[aria-pressed=true]", "button[aria-pressed=false]"),
    *(".xtick text", ".legendtext", ".map .xtick text"),
)


def luminance(color):
    """As WCAG defines it."""
    parts = np.array([float(part) for part in re.findall("[0-9.]+", color)[:3]]) / 255
    return np.where(parts <= 0.03928, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4) @ [
        0.2126,
        0.7152,
        0.0722,
    ]


def contrasts(page):
    pairs = page.evaluate(COLORS, TEXTS)
    levels = {name: sorted(map(luminance, pair)) for name, pair in pairs.items()}
    return {name: (light + 0.05) / (dark + 0.05) for name, (dark, light) in levels.items()}


def test_light_and_dark_differ_and_can_be_read(opened):
    ground = "getComputedStyle(document.body).backgroundColor"
    black = (
        "getComputedStyle(document.querySelector('#chart-1 path.js-line[style*=\"stroke-width: 2\"]')).stroke"
    )
    page = opened(color_scheme="dark", viewport={"width": 1200, "height": 900})
    found = {}
    for scheme in ("dark", "light"):
        low = {name: value for name, value in contrasts(page).items() if value < 4.5}
        assert not low, scheme
        found[scheme] = page.evaluate(ground), page.locator("#theme").inner_text(), page.evaluate(black)
        page.locator("#theme").click()
    assert found["dark"][0] != found["light"][0]
    assert (found["dark"][1], found["light"][1]) == ("light", "dark")
    assert page.evaluate(ground) == found["dark"][0]


@pytest.mark.parametrize("number", [0, 1])
def test_a_phone_shows_the_page_without_scrolling_sideways(opened, reports, number):
    page = opened(reports[number], viewport={"width": 360, "height": 740})
    assert page.evaluate("document.documentElement.scrollWidth") == 360
