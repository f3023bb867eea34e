"""The report's page as a browser and a reader without eyes get it, made of runs' folders."""

import html
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from simulated_study import simulate, study_of
from study_runs import finished_run

from boxtwin.datasets.image_io import write_png
from boxtwin.datasets.sample import Dataset, Detections, Sample
from boxtwin.evaluation.examples import EXAMPLES_FILE, keep_examples, load_examples
from boxtwin.evaluation.matching import match, match_detections
from boxtwin.evaluation.resampled_ap import MATCHES_FILE, save_matches
from boxtwin.lettering import class_colour
from boxtwin.studies.conditions import condition_table
from boxtwin.studies.evidence import Evidence
from boxtwin.studies.next_runs import plan
from boxtwin.studies.report.gallery import galleries, nearly_empty, store_cards
from boxtwin.studies.report.page import write_report
from boxtwin.studies.report.plots import Drawing
from boxtwin.studies.report.sections import Section
from boxtwin.studies.report.summary import Summary, printed
from boxtwin.studies.runs import StudyRun
from boxtwin.studies.study import Study, costs, unattributed

BROWSER = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), ""
)
GOLDEN = Path(__file__).with_name("golden_page.txt")
SECTION = Section(
    "The <ratio>",
    ("More helps & no more.",),
    (
        Drawing(
            '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 4 2"><path d="M0 0L4 2"/></svg>', "A line, falling."
        ),
    ),
)


@pytest.fixture
def dataset(make_coco: Callable[..., object]) -> Dataset:
    """24 images in four scenes, with 0 to 4 objects each."""
    return make_coco(scenes=[6, 6, 6, 6], objects=(1, 0, 2, 4)).read(group_by=r"^([^_]+)_")  # type: ignore[attr-defined]


def found_in(samples: tuple[Sample, ...], share: float, seed: int) -> dict[int, Detections]:
    rng, found = np.random.default_rng(seed), {}
    for sample in samples:
        hit = rng.random(len(sample.boxes)) < share
        boxes = np.concatenate([sample.boxes[hit].astype(np.float64), [[2.0, 2.0, 9.0, 9.0]]])
        scores = np.sort(rng.random(len(boxes)))[::-1]
        found[sample.image_id] = Detections(boxes, scores, np.zeros(len(boxes), dtype=np.int64))
    return found


def make_run(folder: Path, dataset: Dataset, variations: int, seed: int, **metrics: float) -> StudyRun:
    """A run's folder with all that the page reads of it, and the run."""
    name = f"s2-x{variations}-{'repeat' if variations else 'none'}-yolov3_nano-seed{seed}"
    here, samples = folder / name, dataset.samples
    here.mkdir(parents=True)
    found = found_in(samples, 0.5 + 0.03 * variations, seed)
    save_matches(here / MATCHES_FILE, match_detections(samples, found, len(dataset.category_ids)))
    keep_examples(here / EXAMPLES_FILE, samples, found, 0.3)
    counted = {image_id: int((each.scores >= 0.3).sum()) for image_id, each in found.items()}
    counts = [
        {
            "image_id": s.image_id,
            "file_name": s.name,
            "group": s.group,
            "true": len(s.boxes),
            "found": counted[s.image_id],
        }
        for s in samples
    ]
    (here / "result.json").write_text(json.dumps({"counts": counts}))
    if variations:
        write_card(here)
    mae = float(np.mean([abs(entry["true"] - entry["found"]) for entry in counts]))  # type: ignore[operator]
    figures = {
        "test/map": 0.2,
        "test/map_50": 0.4 + 0.01 * seed,
        "test/count_mae": mae,
        "data/real_images": 40.0,
        "time/train": 10.0 + seed,
    }
    return finished_run(
        name,
        variations,
        seed,
        metrics=figures | metrics,
        output_dir=str(here),
        overrides=f"split=s2 variations={variations} seed={seed}",
        store="repeat-0123456789ab" if variations else "",
    )


def write_card(folder: Path) -> None:
    write_png(folder / "label_card.png", np.random.default_rng(0).integers(0, 255, (60, 1400, 3)).astype(np.uint8))
    quantiles = {"0.05": 0.1, "0.25": 0.2, "0.5": 0.3, "0.75": 0.4, "0.95": 0.5}
    evidence = {"response": {"edges": [], "decisions": {"kept": {"boxes": 7, "quantiles": quantiles, "histogram": []}}}}
    content = {"kept": 7, "shifted": 1, "dropped": 2, "added": 0, "images": 8, "refused": 1, "evidence": evidence}
    (folder / "label_card.json").write_text(json.dumps(content | {"reasons": {"too <few> boxes": 1}}))


@pytest.fixture
def study(tmp_path: Path, dataset: Dataset) -> list[StudyRun]:
    """Two seeds without variations, two with ten of them."""
    cost = {"time/store_vary": 5.0, "time/store_fit": 2.0, "data/cost_usd": 1.25, "data/label_minutes": 3.5}
    runs = [make_run(tmp_path / "cells", dataset, 0, seed) for seed in (0, 1)]
    return runs + [make_run(tmp_path / "cells", dataset, 10, seed, **cost) for seed in (0, 1)]


def report(runs: list[StudyRun], folder: Path, sections: tuple[Section, ...] = ()) -> Path:
    kept = {this_run.run_id: Evidence.load(Path(this_run.output_dir)) for this_run in runs if this_run.output_dir}
    evidence = {run: evidence for run, evidence in kept.items() if evidence is not None}
    study = Study.of(runs, evidence)
    summary = Summary.of(study)
    return write_report(study, replace(summary, sections=[*summary.sections, *sections]), folder)


class Reader(HTMLParser):
    """What of a page can be read aloud, and what it points to."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.silent: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.addresses += [given[name] or "" for name in ("src", "href", "srcset", "action", "poster") if name in given]
        self.ids += [given["id"] or ""] if "id" in given else []
        if (tag == "img" and not given.get("alt")) or (
            tag == "svg" and not (given.get("aria-label") or given.get("aria-hidden"))
        ):
            self.silent.append(str(attrs))
        if tag not in ("meta", "img", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def read_page(path: Path) -> Reader:
    reader = Reader()
    reader.feed(path.read_text())
    assert reader.open == []
    reader.text = re.sub(r"\s+", " ", reader.text)
    return reader


def test_all_parts_stand_in_their_order_and_each_picture_in_words(study: list[StudyRun], tmp_path: Path) -> None:
    path = report(study, tmp_path / "report", (SECTION,))
    page = read_page(path)
    order = ["On s2 (40 real images), 10 variations", "Curves", "Table", "Every comparison", "s2 x10 repeat: AP50"]
    order += ["The <ratio>", "Cost", "Slices", "By crowding", "By scene"]
    order += ["Count errors by image", "Test images under each condition", "The variations and their labels"]
    order += ["How to reproduce"]
    body = page.text[page.text.index("do the variations help?", 80) :]
    after_contents = body.index("How to reproduce") + 1
    places = [body.index(words, after_contents if number else 0) for number, words in enumerate(order)]
    assert places == sorted(places)
    assert page.silent == []
    assert all(address.startswith(("data:", "#")) for address in page.addresses)
    assert {address[1:] for address in page.addresses if address.startswith("#")} <= set(page.ids)
    assert len(set(page.ids)) == len(page.ids)
    content = path.read_text()
    assert "<script" not in content
    assert not re.search(r"url\(|@import", content)
    for words in (
        "A line, falling.",
        "More helps & no more.",
        "too <few> boxes",
        "7 kept",
        "2 seeds",
        "2 pairs",
    ):
        assert words in page.text
    assert "python train.py split=s2 variations=10 seed=1" in page.text


def wording(page: Path) -> list[str]:
    """What a page says, a line for each block, and the texts of its pictures."""
    text = re.sub(r"<style>.*?</style>", "", page.read_text(), flags=re.DOTALL)
    said = [f"[{html.unescape(alt)}]" for alt in re.findall(r'(?:alt|aria-label)="([^"]*)"', text)]
    blocks = re.split(r"<(?:p|li|h\d|tr|summary|pre|th|td)\b[^>]*>", text)
    lines = (" ".join(html.unescape(re.sub(r"<[^>]+>", "", block)).split()) for block in blocks)
    return [*filter(None, lines), *said]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (EXAMPLES_FILE, b""),
        ("label_card.json", b'{"kept": 7'),
        ("label_card.json", b"[1]"),
        ("label_card.json", b'{"kept": 7}'),
        ("label_card.png", b""),
    ],
)
def test_damaged_pictures_and_cards_are_left_out_with_a_warning(
    name: str, content: bytes, study: list[StudyRun], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for this_run in study:
        (Path(this_run.output_dir) / name).write_bytes(content)
    assert "Every comparison" in report(study, tmp_path / "report").read_text()
    assert f"{name} is damaged and left out of the report" in caplog.text


def test_the_wording_is_that_of_the_golden_page(
    study: list[StudyRun], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Golden is the text of a simulated study, on the terminal and as a page, and of the page of the runs on disk."""
    monkeypatch.chdir(tmp_path)
    sizes = [("s1", 0, "none", 80.0, 0.7), ("s1n20", 0, "none", 20.0, 0.5), ("s2", 0, "none", 40.0, 0.6)]
    tried = [("s2", number, "pixel_ddpm", 40.0, ap50) for number, ap50 in ((2, 0.61), (5, 0.64), (10, 0.66))]
    runs, _, figures = simulate([*sizes, *tried, ("s2", 10, "repeat", 40.0, 0.6)], seeds=9, seed_noise=0.004)
    runs[-1] = replace(runs[-1], status="FAILED")
    runs[0] = replace(runs[0], provenance={"commit": "4437dbc1", "clean": "true"}, overrides="")
    simulated = study_of(runs, condition_table(runs), figures)
    candidates = plan(simulated)
    summary = Summary.of(simulated, candidates)
    terminal = printed(simulated, summary).splitlines()
    pages = write_report(simulated, summary, tmp_path / "simulated"), report(study, tmp_path / "report")
    (tmp_path / GOLDEN.name).write_text("\n".join([*terminal, *wording(pages[0]), *wording(pages[1])]) + "\n")
    same = (tmp_path / GOLDEN.name).read_text() == GOLDEN.read_text()
    assert same, f"the wording has changed; if that is wanted: cp {tmp_path / GOLDEN.name} {GOLDEN}"


@pytest.mark.parametrize(
    ("kept", "is_noted"), [({"dropped": 9}, True), ({"kept": 1, "dropped": 9}, False), ({"objects": 9}, True)]
)
def test_a_store_that_is_nearly_empty_is_noted(study: list[StudyRun], kept: dict[str, int], is_noted: bool) -> None:
    """Fewer boxes than a tenth of those of its sources; a card of an older version has no numbers."""
    for run in study[2:]:
        content = {"kept": 0, "shifted": 0, "dropped": 0, "added": 0, "images": 8, "refused": 0, "reasons": {}}
        (Path(run.output_dir) / "label_card.json").write_text(json.dumps(content | kept))
    kept_of = {run.run_id: Evidence.load(Path(run.output_dir)) for run in study}
    of_study = Study.of(study, {run: evidence for run, evidence in kept_of.items() if evidence is not None})
    assert nearly_empty(store_cards(of_study)) == ([("repeat-0123456789ab, for s2", 0, 9)] if is_noted else [])
    said = [note for note in Summary.of(of_study).notes if "repeat-0123456789ab" in note]
    assert len(said) == is_noted
    for run in study[2:]:
        (Path(run.output_dir) / "label_card.json").write_text("{}")
    assert nearly_empty(store_cards(of_study)) == []


def test_costs_are_those_of_the_store_once_and_of_a_run(
    study: list[StudyRun], tmp_path: Path, dataset: Dataset
) -> None:
    rows = condition_table(study)
    base, varied = costs(rows)
    assert (base.fit_seconds, base.vary_seconds, base.usd, base.label_minutes) == (0, 0, 0, 0)
    assert (varied.fit_seconds, varied.vary_seconds, varied.usd, varied.label_minutes) == (2, 5, 1.25, 3.5)
    assert varied.train_seconds == 10.5
    assert unattributed(study) == []
    old = make_run(tmp_path / "old", dataset, 2, 0, **{"time/generate": 41.0})
    (cost,) = costs(condition_table([old]))
    assert np.isnan([cost.fit_seconds, cost.vary_seconds, cost.usd, cost.label_minutes]).all()
    assert unattributed([old]) == [(old.name, 41.0)]
    text = read_page(report([old], tmp_path / "report")).text
    assert "not known" in text
    assert f"{old.name}: 41 s" in text


def test_the_same_images_are_drawn_under_each_condition(study: list[StudyRun], dataset: Dataset) -> None:
    fixed, worst = galleries(Study.of(study))
    assert fixed.columns == worst.columns == ("truth", "s2 x0", "s2 x10 repeat")
    assert len(fixed.images) == 4
    assert not {image.name for image in fixed.images} & {image.name for image in worst.images}
    by_name = {sample.name: sample for sample in dataset.samples}
    for image in (*fixed.images, *worst.images):
        sample = by_name[image.name]
        for drawing, share in zip(image.drawings[1:], (0.5, 0.8), strict=True):
            found = found_in(dataset.samples, share, 0)[sample.image_id]
            found = Detections(*(part[found.scores >= 0.3] for part in found))
            matches = match(sample, found)
            kinds = [mark.kind for mark in drawing.marks]
            assert kinds.count("right") == matches.right.sum()
            assert kinds.count("missed") == matches.missed.sum()
            assert drawing.text.startswith(f"found {len(found.boxes)}")
        assert image.drawings[0].text == f"{len(sample.boxes)} true"


def test_detections_in_crowds_are_shown_and_not_counted(study: list[StudyRun], dataset: Dataset) -> None:
    samples = [replace(sample, crowd=np.ones(len(sample.boxes), dtype=bool)) for sample in dataset.samples]
    found = {
        sample.image_id: Detections(sample.boxes.astype(np.float64), np.ones(n := len(sample.boxes)), np.zeros(n, int))
        for sample in samples
    }
    for run in study:
        keep_examples(Path(run.output_dir) / EXAMPLES_FILE, samples, found, 0.3)
    (fixed,) = galleries(Study.of(study))  # none is counted wrong
    assert max(len(image.drawings[1].marks) for image in fixed.images) > 1
    assert {drawing.text.split(":")[0] for image in fixed.images for drawing in image.drawings[1:]} == {"found 0"}


def test_conditions_with_other_test_labels_have_galleries_of_their_own(study: list[StudyRun]) -> None:
    by_labels = [replace(run, condition={**run.condition, "data.test": str(bool(run.variations))}) for run in study]
    columns = [gallery.columns for gallery in galleries(Study.of(by_labels))]
    assert sorted({len(each) for each in columns}) == [2]
    assert len({each[1] for each in columns}) == 2


def test_classes_have_corners_and_counts_of_their_own(study: list[StudyRun], dataset: Dataset) -> None:
    names = ("ship", "<i>buoy")
    by_name = {sample.name: sample for sample in dataset.samples}
    for run in study:
        samples = [replace(sample, labels=np.arange(len(sample.boxes)) % 2) for sample in dataset.samples]
        found = {
            image: Detections(each.boxes, each.scores, np.arange(len(each.boxes)) % 2)
            for image, each in found_in(dataset.samples, 0.8, run.seed).items()
        }
        keep_examples(Path(run.output_dir) / EXAMPLES_FILE, samples, found, (0.3, 0.6), names)
    fixed, _ = galleries(Study.of(study))
    assert fixed.classes == (("ship", class_colour(0)), ("<i>buoy", class_colour(1)))
    for image in fixed.images:
        boxes = by_name[image.name].boxes
        colours = [mark.colour for mark in image.drawings[0].marks]
        assert colours == [class_colour(number % 2) for number in range(len(boxes))]
        assert ("1 ship" in image.drawings[0].text) == (len(boxes) in (1, 2))


def test_a_run_keeps_little_and_the_same_images_whatever_it_finds(study: list[StudyRun]) -> None:
    kept = [load_examples(Path(run.output_dir) / EXAMPLES_FILE) for run in study]
    names = [[p.sample.name for p in each.pictured if not p.worst] for each in kept if each is not None]
    assert len(names) == 4
    assert all(each == names[0] for each in names)
    assert all((Path(run.output_dir) / EXAMPLES_FILE).stat().st_size < 60_000 for run in study)
    assert load_examples(Path(study[0].output_dir) / "no such file") is None


def test_runs_without_what_the_page_shows_are_left_out(study: list[StudyRun], tmp_path: Path) -> None:
    for run in study:
        for name in (EXAMPLES_FILE, "label_card.json"):
            (Path(run.output_dir) / name).unlink(missing_ok=True)
    text = read_page(report(study, tmp_path / "plain")).text
    assert "Slices" in text
    assert "Test images under each condition" not in text
    assert "The variations and their labels" not in text
    for run in study:
        (Path(run.output_dir) / MATCHES_FILE).unlink()
    text = read_page(report(study, tmp_path / "bare")).text
    assert "Slices" not in text
    assert "Count errors by image" not in text


@pytest.mark.parametrize("members", [slice(0, 1), slice(2, 3), slice(1, 3), slice(0, 0)])
def test_one_run_no_variations_no_seed_in_common_and_none(
    study: list[StudyRun], members: slice, tmp_path: Path
) -> None:
    page = read_page(report(study[members], tmp_path / "report"))
    assert page.silent == []
    assert "significant" not in page.text.replace("not significant", "")


def run_browser(page: Path, folder: Path, *options: str) -> tuple[str, str]:
    """What a headless browser prints and what it logs."""
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"]
    flags += ["--no-first-run", "--disable-extensions", "--disable-background-networking", "--enable-logging=stderr"]
    done = subprocess.run(
        [BROWSER, *flags, f"--user-data-dir={folder / 'profile'}", *options, page.as_uri()],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


@pytest.mark.skipif(not BROWSER, reason="no chromium here: the page is not looked at by a browser")
@pytest.mark.timeout(600)
@pytest.mark.parametrize("width", [375, 1280])
def test_a_browser_finds_no_error_no_network_and_no_overflow(study: list[StudyRun], width: int, tmp_path: Path) -> None:
    path = report(study, tmp_path / "report", (SECTION,))
    # What the browser sees of the page, from within; the page itself has no script. It stands in a frame, since the
    # browser makes no window as narrow as a phone.
    probe = """<script>addEventListener("load", () => {
      const pictures = [...document.images];
      parent.postMessage(JSON.stringify({
        wide: document.documentElement.scrollWidth - innerWidth,
        width: innerWidth,
        broken: pictures.filter(p => p.complete && !p.naturalWidth).length,
        used: [...document.querySelectorAll("use")].filter(u => !u.getBBox().width).length,
        requests: performance.getEntriesByType("resource").map(e => e.name).filter(n => !n.startsWith("data:")),
        dark: matchMedia("(prefers-color-scheme: dark)").matches,
        paper: getComputedStyle(document.body).backgroundColor,
      }), "*")})</script>"""
    (tmp_path / "probed.html").write_text(path.read_text().replace("</body>", f"{probe}</body>"))
    frame = tmp_path / "frame.html"
    frame.write_text(
        '<meta name="color-scheme" content="light dark"><pre id="seen"></pre>'
        '<script>addEventListener("message", m => { document.getElementById("seen").textContent = m.data })</script>'
        f'<iframe src="probed.html" style="width: {width}px; height: 900px; border: 0"></iframe>'
    )
    for dark, paper in ((False, "rgb(255, 255, 255)"), (True, "rgb(20, 24, 28)")):
        theme = ("--force-dark-mode",) if dark else ()
        options = ("--dump-dom", "--virtual-time-budget=10000", "--window-size=1400,1000", *theme)
        printed, logged = run_browser(frame, tmp_path, *options)
        seen = json.loads(html.unescape(re.findall(r'<pre id="seen">(.*?)</pre>', printed, re.DOTALL)[0]))
        assert seen == {
            "wide": 0, "width": width, "broken": 0, "used": 0, "requests": [], "dark": dark, "paper": paper
        }  # fmt: skip
        assert "CONSOLE" not in logged
