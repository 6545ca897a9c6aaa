"""Reports: JSON with everything a reader asks, and one page that needs nothing else, clicked through in a browser."""

from __future__ import annotations

import json
import os
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper

import onnxprune
from onnxprune.cli import main
from onnxprune.planfile import Plan, PlanGroup
from onnxprune.report import read_report, report_details, write_report
from onnxprune.report.details import histograms
from onnxprune.report.plots import labels, short

pytest.importorskip("matplotlib")

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "samples" / "digits_cnn.onnx"
DATA = ROOT / "samples" / "digits_calibration.npz"
NASTY = "<img src=x onerror=alert(1)> & $a_b$ \"q\" 'r'"

VOID = {"meta", "wbr", "br", "input", "link", "img"}


class Tree(HTMLParser):
    """Checks that tags are closed in order, and keeps what the tests ask about."""

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.tags, self.attributes = [], [], [], []
        self.words = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.ids += [value for name, value in attrs if name == "id"]
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] not in ("script", "style"):
            self.words += data

    def found(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


def invoke(*arguments):
    return CliRunner().invoke(main, list(map(str, arguments)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Prune the sample and measure its sensitivity, with reports of both."""
    path = tmp_path_factory.mktemp("reports")
    for arguments in (
        ["prune", MODEL, "-o", path / "out.onnx", "--target", "macs=0.6", "--report", path / "prune.json"],
        ["sensitivity", MODEL, "--data", DATA, "--ratios", "0.2,0.5", "--jobs", "1", "--report", path / "hurt.json"],
        ["report", path / "prune.json", "-o", path / "prune.html", "--sensitivity", path / "hurt.json"],
        ["report", path / "hurt.json", "-o", path / "hurt.html"],
    ):
        result = invoke(*arguments)
        assert result.exit_code == 0, result.output
    return path


# --- the document ---


def test_the_report_of_a_prune_says_what_went_and_why_the_rest_stays(folder):
    document = json.loads((folder / "prune.json").read_text())
    assert document["schema"] == "onnxprune.report/1"
    assert document["verification"]["ok"]
    assert "seconds" not in document
    groups = {g["id"]: g for g in document["plan"]["groups"]}
    pruned = {name: g for name, g in groups.items() if g["removed"]}
    assert set(document["histograms"]) == set(pruned)
    for name, found in document["histograms"].items():
        assert sum(found["removed"]) == pruned[name]["removed"]
        assert sum(found["kept"]) == pruned[name]["size"] - pruned[name]["removed"]
        assert len(found["edges"]) == len(found["kept"]) + 1
        assert found["edges"] == sorted(found["edges"])
    analysis = onnxprune.analyze(MODEL)
    listed = {(a["initializer"], a["axis"]) for row in document["frozen"] for a in row["axes"]}
    assert listed == {(row.initializer, row.axis) for row in analysis.locked}
    reasons = {row["reason"]: row for row in document["frozen"]}
    assert reasons["graph output 'logits'"]["params"] == 970
    assert [row["params"] for row in document["frozen"]] == sorted(
        (r["params"] for r in document["frozen"]), reverse=True
    )


def test_histograms_count_kept_and_removed_units_per_bin():
    group = PlanGroup("g", "channels", 8, (0, 1, 6), exact=True)
    untouched = PlanGroup("h", "channels", 3, (), exact=True)
    plan = Plan("x", (group, untouched), ())
    found = histograms(plan, {"g": np.array([0.0, 0.5, 2.0, 2.5, 3.0, 4.0, 1.5, 4.0]), "h": np.ones(3)})
    assert list(found) == ["g"]
    assert found["g"]["scale"] == "linear"
    assert found["g"]["edges"] == [0, 1, 2, 3, 4]
    assert found["g"]["removed"] == [2, 1, 0, 0]
    assert found["g"]["kept"] == [0, 0, 2, 3]


def test_scores_over_orders_of_magnitude_get_bins_that_rise_by_a_factor():
    plan = Plan("x", (PlanGroup("g", "channels", 8, (0, 1), exact=True),), ())
    found = histograms(plan, {"g": np.array([0.0, 1e-9, 2e-3, 5e-2, 0.06, 0.5, 20.0, 100.0])})["g"]
    assert found["scale"] == "log"
    np.testing.assert_allclose(found["edges"], [1e-4, 10**-2.5, 0.1, 10**0.5, 100], rtol=1e-5)
    assert found["removed"] == [2, 0, 0, 0]
    assert found["kept"] == [1, 2, 1, 2]


def test_a_saved_plan_has_no_scores_and_its_report_no_histograms(tmp_path):
    plan = onnxprune.plan(MODEL, ratio=0.3)
    plan_path = tmp_path / "plan.json"
    plan_path.write_text(plan.dumps())
    again = Plan.load(plan_path)
    assert again == plan
    assert report_details(onnxprune.analyze(MODEL), again, again.scores)["histograms"] == {}
    assert "scores" not in json.loads(plan_path.read_text())


def test_the_same_run_gives_the_same_bytes(tmp_path):
    for k in range(2):
        name = tmp_path / f"{k}.json"
        result = invoke("prune", MODEL, "-o", tmp_path / "out.onnx", "--target", "macs=0.6", "--report", name)
        assert result.exit_code == 0, result.output
        invoke("report", name, "-o", tmp_path / f"{k}.html")
    assert (tmp_path / "0.json").read_bytes() == (tmp_path / "1.json").read_bytes()
    assert (tmp_path / "0.html").read_bytes() == (tmp_path / "1.html").read_bytes()


def test_what_json_prints_makes_a_page_too(tmp_path):
    result = invoke("prune", MODEL, "--ratio", "0.25", "--dry-run", "--json")
    (tmp_path / "run.json").write_text(result.stdout)
    result = invoke("report", tmp_path / "run.json", "-o", tmp_path / "run.html", "--json")
    document = json.loads(result.stdout)
    assert document["bytes"] == (tmp_path / "run.html").stat().st_size
    words = Tree((tmp_path / "run.html").read_text()).words
    assert "not verified" in words
    assert "Widths" in words
    assert "Frozen parts" not in words


# --- the page ---


@pytest.mark.parametrize("name", ["prune.html", "hurt.html"])
def test_the_page_is_whole_accessible_and_needs_no_network(folder, name):
    text = (folder / name).read_text(encoding="utf-8")
    tree = Tree(text)
    assert len(tree.ids) == len(set(tree.ids))
    outside = [
        value for _, key, value in tree.attributes if key in ("src", "href", "action") and not value.startswith("#")
    ]
    assert outside == []
    assert re.findall(r"https?://(?!www\.w3\.org/(?:1999/xlink|2000/svg))", text) == []
    links = {value[1:] for tag, key, value in tree.attributes if tag == "a" and key == "href"}
    assert links
    assert links <= set(tree.ids)
    used = re.findall(r'(?:xlink:href="|url\()#([\w.-]+)', text)
    assert used
    assert set(used) <= set(tree.ids)
    assert all(a.get("role") == "img" and len(a["aria-label"]) > 20 for a in tree.found("svg"))
    assert len(tree.found("svg")) == len(tree.found("figcaption")) >= 1
    assert len(tree.found("table")) == len(tree.found("caption")) >= 1
    assert all(a.get("scope") in ("col", "row") for a in tree.found("th"))
    assert "default-src 'none'" in text
    assert tree.found("html")[0]["lang"] == "en"
    assert "#010101" not in text


def test_the_page_shows_the_figures_of_the_run(folder):
    document = json.loads((folder / "prune.json").read_text())
    text = (folder / "prune.html").read_text(encoding="utf-8")
    words = Tree(text).words
    for group in document["plan"]["groups"]:
        assert group["id"] in words
        assert f">{group['size'] - group['removed']:,}</td>" in text
    hurt = json.loads((folder / "hurt.json").read_text())
    for group in hurt["groups"]:
        for cell in group["cells"]:
            assert f">{cell['relative_error']:.4g}</td>" in text
    for title in ("Summary", "Widths", "Scores", "Sensitivity", "Heat map", "Frozen parts", "Verification"):
        assert title in words
    assert "verified" in words


def test_the_hottest_cell_is_the_one_farthest_from_the_original(folder):
    text = (folder / "hurt.html").read_text(encoding="utf-8")
    cells = re.findall(r'data-value="([\d.e+-]+)" style="--level:([\d.]+)"', text)
    values, levels = np.array(cells, dtype=np.float64).T
    assert len(values) == 12
    np.testing.assert_allclose(levels, values / values.max(), atol=5e-4)


def nasty(path):
    tensors = [
        numpy_helper.from_array(np.random.default_rng(5).normal(size=s).astype(np.float32), f"{n}{NASTY}")
        for n, s in (("a", (7, 12)), ("b", (12, 5)))
    ]
    nodes = [
        helper.make_node("MatMul", ["x", tensors[0].name], ["h"], name=f"one{NASTY}"),
        helper.make_node("MatMul", ["h", tensors[1].name], ["y"], name=f"two{NASTY}"),
    ]
    infos = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", [3, 7]), ("y", [3, 5]))]
    graph = helper.make_graph(nodes, "g", infos[:1], infos[1:], tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def test_names_are_text_and_never_markup(tmp_path):
    page = tmp_path / "page.html"
    result = invoke("prune", nasty(tmp_path / "m.onnx"), "-o", tmp_path / "o.onnx", "--ratio", "0.5", "--report", page)
    assert result.exit_code == 0, result.output
    text = page.read_text(encoding="utf-8")
    tree = Tree(text)
    assert tree.found("img") == []
    assert NASTY in tree.words
    assert "<img" not in text
    assert len(tree.found("script")) == 1


CURVE = {
    "by": "macs", "measure": "metric", "original": 0.95, "bound": 0.93, "chosen": 0.5,
    "figures": {"before": 0.95, "after": 0.94, "ratio": 0.99},
    "points": [
        {"fraction": 0.25, "value": 0.71, "holds": False},
        {"fraction": 0.5, "value": 0.94, "holds": True},
        {"fraction": 0.75, "value": 0.949, "holds": True},
    ],
}  # fmt: skip


def layer(node, how, before, after, why=None):
    return {"node": node, "weight": "w", "how": how, "error_before": before, "error_after": after, "why": why}


RECOVERY = {
    "recover": "lstsq",
    "layers": [layer("/a/conv", "lstsq", 0.31, 0.07), layer("/b/gemm", "none", None, None, "too few samples")],
}


def test_a_search_and_a_recovery_are_shown_when_there_were_any(folder, tmp_path):
    document = read_report(folder / "prune.json")
    n_before = len(Tree((folder / "prune.html").read_text()).found("svg"))
    write_report(document | {"trade": CURVE, "recovery": RECOVERY, "metric": CURVE["figures"]}, tmp_path / "p.html")
    tree = Tree((tmp_path / "p.html").read_text(encoding="utf-8"))
    assert len(tree.found("svg")) == n_before - 1 + 2
    for words in ("Trade", "0.71", "does not hold", "Repairs", "0.07", "too few samples", "0.95 → 0.94"):
        assert words in tree.words, words


def test_failed_cells_and_failed_checks_are_said(folder, tmp_path):
    hurt = read_report(folder / "hurt.json")
    broken = {**dict.fromkeys(("relative_error", "cosine", "top1", "mismatch", "metric")), "error": "no luck"}
    hurt["groups"][0]["cells"][0].update(broken)
    write_report(hurt, tmp_path / "h.html")
    assert "failed" in Tree((tmp_path / "h.html").read_text(encoding="utf-8")).words
    document = read_report(folder / "prune.json")
    document["verification"].update(ok=False, exact=None, exact_reason="the pruned model does not run")
    write_report(document, tmp_path / "p.html")
    words = Tree((tmp_path / "p.html").read_text(encoding="utf-8")).words
    assert "verification FAILED" in words
    assert "Not compared with the masked twin: the pruned model does not run." in words


def test_labels_stay_short_and_apart():
    names = [f"/features/features.{k}/conv/conv.{j}/Conv" for k in (3, 12) for j in (0, 2)]
    assert labels(names) == ["features.3/conv.0", "features.3/conv.2", "features.12/conv.0", "features.12/conv.2"]
    assert labels(["stem", "last"]) == ["stem", "last"]
    assert labels(["/a/b", "/a//b"]) == ["/a/b", "/a//b"]
    long = labels([f"block{'x' * 40}{k}{'y' * 40}" for k in range(3)])
    assert len(set(long)) == 3
    assert max(map(len, long)) <= 22
    assert long[1].endswith("y (2)")
    assert labels([]) == []
    assert short("abcdefghijkl", 7) == "ab…ijkl"


# --- what goes wrong ---


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["missing.json", "-o", "r.html"], 3, "cannot be read"),
        (["text.json", "-o", "r.html"], 3, "not JSON"),
        (["list.json", "-o", "r.html"], 3, "not the result of a run"),
        (["verify.json", "-o", "r.html"], 3, "no page can be made of it"),
        (["part.json", "-o", "r.html"], 3, "lacks 'plan', 'params', 'macs', 'bytes'"),
        (["part.json", "-o", "r.pdf"], 3, "lacks"),
        (["part.json", "-o", "part.json"], 2, "would overwrite the result"),
        (["part.json"], 2, "-o"),
    ],
)
def test_the_command_refuses(tmp_path, monkeypatch, arguments, code, message):
    monkeypatch.chdir(tmp_path)
    for name, text in {
        "text.json": "no", "list.json": "[1]", "verify.json": '{"command": "verify"}',
        "part.json": '{"command": "prune", "model": "m"}',
    }.items():  # fmt: skip
        Path(name).write_text(text)
    result = invoke("report", *arguments)
    assert result.exit_code == code, result.output
    assert message in result.output
    assert not Path("r.html").exists()


def test_a_sensitivity_must_be_one_and_of_the_same_model(folder, tmp_path):
    for path, beside, message in (
        ("prune.json", "prune.json", "not of sensitivity"),
        ("hurt.json", "hurt.json", "goes beside one of prune"),
    ):
        with pytest.raises(onnxprune.DataError, match=message):
            read_report(folder / path, sensitivity=folder / beside)
    hurt = json.loads((folder / "hurt.json").read_text()) | {"source_sha256": "0" * 64}
    (tmp_path / "other.json").write_text(json.dumps(hurt))
    with pytest.raises(onnxprune.DataError, match="another model"):
        read_report(folder / "prune.json", sensitivity=tmp_path / "other.json")


@pytest.mark.parametrize("command", ["prune", "sensitivity"])
def test_a_report_that_cannot_be_written_is_refused_before_the_work(tmp_path, monkeypatch, command):
    arguments = ["--ratio", "0.5", "-o", tmp_path / "o.onnx"] if command == "prune" else ["--data", DATA]
    result = invoke(command, MODEL, *arguments, "--report", tmp_path / "r.pdf")
    assert result.exit_code == 2
    assert "a report is .html or .json, not .pdf" in result.output
    find = __import__("importlib.util").util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "matplotlib" else find(name))
    result = invoke(command, MODEL, *arguments, "--report", tmp_path / "r.html")
    assert result.exit_code == 2
    assert "pip install 'onnxprune[report]'" in result.output
    assert list(tmp_path.iterdir()) == []


# --- in a browser ---

BROWSER = os.environ.get("ONNXPRUNE_BROWSER") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    if BROWSER is None:
        pytest.skip("needs Chromium; ONNXPRUNE_BROWSER names one")
    with playwright.sync_playwright() as run:
        started = run.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def visit(browser):
    """Open a page with the network off; whatever it asks for or complains about fails the test."""
    contexts, wrong = [], []

    def open_page(path, **options):
        context = browser.new_context(offline=True, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda request: wrong.append(request.url) if request.url != path.as_uri() else None)
        page.goto(path.as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert wrong == []


def column(page, table, k):
    return page.eval_on_selector_all(
        f"#{table} tbody tr", f"rows => rows.filter(r => !r.hidden).map(r => r.cells[{k}].textContent)"
    )


@pytest.mark.slow
def test_clicking_through_the_page(folder, visit):
    page = visit(folder / "prune.html")
    order = column(page, "groups", 0)
    head = page.locator("#groups thead th").nth(1)
    head.get_by_role("button").click()
    rising = [int(n.replace(",", "")) for n in column(page, "groups", 1)]
    assert rising == sorted(rising)
    assert head.get_attribute("aria-sort") == "ascending"
    head.get_by_role("button").click()
    assert [int(n.replace(",", "")) for n in column(page, "groups", 1)] == rising[::-1]
    page.locator("#groups thead th").first.get_by_role("button").press("Enter")
    assert column(page, "groups", 0) == sorted(order)
    assert head.get_attribute("aria-sort") is None
    page.locator("nav a", has_text="Frozen parts").click()
    assert page.url.endswith("#frozen")
    first = page.locator("#frozen details").first
    assert not first.locator("p").is_visible()
    first.locator("summary").click()
    assert first.locator("p").is_visible()


@pytest.mark.slow
def test_the_filter_hides_rows_and_counts_them(folder, tmp_path, visit):
    document = read_report(folder / "prune.json")
    some = document["plan"]["groups"]
    document["plan"]["groups"] = [{**g, "id": f"{g['id']}/{k}"} for k in range(3) for g in some]
    document["histograms"] = {}
    write_report(document, tmp_path / "p.html")
    page = visit(tmp_path / "p.html")
    page.get_by_role("searchbox", name="Filter").fill("STEM channels")
    assert column(page, "groups", 0) == ["stem/0", "stem/1", "stem/2"]
    assert page.locator("#groups-filter output").text_content() == "3 of 18 rows"
    page.get_by_role("searchbox", name="Filter").press("Enter")
    page.get_by_role("searchbox", name="Filter").fill("")
    assert len(column(page, "groups", 0)) == 18


@pytest.mark.slow
@pytest.mark.parametrize("name", ["prune.html", "hurt.html"])
@pytest.mark.parametrize(("width", "scheme"), [(360, "light"), (1200, "dark")])
def test_no_size_or_color_scheme_spoils_the_page(folder, visit, name, width, scheme):
    page = visit(folder / name, viewport={"width": width, "height": 740}, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") == 0
    found = page.evaluate("""() => {
        const parse = (text) => text.match(/[\\d.]+/g).slice(0, 3).map(Number);
        const linear = (v) => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
        const light = (text) => parse(text).map((v) => linear(v / 255))
            .reduce((sum, v, k) => sum + v * [.2126, .7152, .0722][k], 0);
        const ground = light(getComputedStyle(document.querySelector("section")).backgroundColor);
        return [...document.querySelectorAll("section td, section th, section p, figcaption, svg text")].map((part) => {
            const style = getComputedStyle(part);
            const ink = light(part.tagName === "text" ? style.fill : style.color);
            return (Math.max(ink, ground) + .05) / (Math.min(ink, ground) + .05);
        });
    }""")
    assert len(found) > 30
    assert min(found) >= 4.5


@pytest.mark.slow
def test_the_page_prints_with_everything_unfolded(folder, tmp_path, visit):
    page = visit(folder / "prune.html")
    page.emulate_media(media="print", color_scheme="dark")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate("[...document.querySelectorAll('details')].every((part) => part.open)")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not page.locator("nav").is_visible()
    assert len(page.pdf(path=tmp_path / "page.pdf")) > 20_000


@pytest.mark.slow
def test_the_page_without_scripts_shows_every_row(folder, visit):
    page = visit(folder / "prune.html", java_script_enabled=False)
    assert page.locator("#groups tbody tr").count() == 6
    assert page.locator("#groups thead button").count() == 0
    assert page.locator("#heat tbody tr").last.is_visible()
