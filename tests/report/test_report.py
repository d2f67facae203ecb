"""The report shows a run, says how it was measured, and needs no other file."""

from __future__ import annotations

import base64
import csv
import io
import shutil
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from prunekit.detection.pictures import LabeledBox, class_color, draw_boxes
from prunekit.errors import InputError
from prunekit.pipeline import RunFolder, read_rows
from prunekit.report import DENSE, write_report

TWO_DIGITS = ("false_positives_per_image", "false_positive_share", "attack_success_rate", "churn")


class Page(HTMLParser):
    """Collects what a page holds."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.sources: list[str] = []
        self.alternatives: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        given = dict(attrs)
        self.sources += [value for name in ("src", "href", "srcset") if (value := given.get(name))]
        self.alternatives += [value for name in ("alt",) if (value := given.get(name))]


@pytest.fixture(scope="module")
def folder(shapes_run: RunFolder, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    copy = tmp_path_factory.mktemp("report") / "run"
    shutil.copytree(shapes_run.root, copy)
    write_report(RunFolder(copy))
    return RunFolder(copy)


@pytest.fixture(scope="module")
def text(folder: RunFolder) -> str:
    return folder.report.read_text()


def test_the_page_needs_no_other_file(text: str) -> None:
    page = Page(text)
    assert page.sources
    assert all(source.startswith(("data:image/png;base64,", "data:image/jpeg;base64,")) for source in page.sources)
    assert not page.tags.keys() & {"script", "link", "iframe"}
    assert "url(" not in text
    for source in page.sources:
        Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))).verify()


def test_every_ratio_is_in_the_table_with_its_figures(folder: RunFolder, text: str) -> None:
    for row in read_rows(folder.results):
        assert f"<td>{float(row['ratio']):g} %</td>" in text
        assert f"<td>{float(row['ap']):.3f}</td>" in text
        assert f"{int(row['nonzero_parameters']):,}" in text
        assert f"{float(row['speedup']):.2f}×" in text


def test_figures_at_the_threshold_of_the_report_have_a_table_of_their_own(folder: RunFolder, tmp_path: Path) -> None:
    shutil.copytree(folder.root, tmp_path / "known")
    known = RunFolder(tmp_path / "known")
    rows = read_rows(known.results)
    figures = dict.fromkeys(("confident_ap", "confident_ap50", "attacked_confident_ap", "attacked_confident_ap50"))
    figures |= dict.fromkeys(("false_positives_per_image", "false_positive_share", "attack_success_rate"))
    figures |= dict.fromkeys(("transfer_ap", "churn"))
    values = {name: f"0.{11 * number}" for number, name in enumerate(figures, start=1)}
    with known.results.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows([*rows[:-1], rows[-1] | values | {"macs": "8000", "kept_macs": "5000"}])
    last = write_report(known).read_text().split("At a score of 0.5")[1].split("</tbody>")[0].split("<tr>")[-1]
    shown = [f"{float(value):.{2 if name in TWO_DIGITS else 3}f}" for name, value in values.items()]
    cells = [cell.split("</td>")[0] for cell in last.split("<td>")[1:]]
    assert cells[2:] == [*shown, "0.625"]


def test_the_unpruned_model_of_several_variants_is_one_row(folder: RunFolder, tmp_path: Path) -> None:
    shutil.copytree(folder.root, tmp_path / "two")
    two = RunFolder(tmp_path / "two")
    head, *lines = two.results.read_text().splitlines(keepends=True)
    two.results.write_text(head + "".join(lines + [line.replace("unstructured", "filter") for line in lines]))
    for path in [*two.root.rglob("*unstructured-*")]:  # files of the second variant's pictures
        copy = path.with_name(path.name.replace("unstructured", "filter"))
        _ = shutil.copytree(path, copy) if path.is_dir() else shutil.copy(path, copy)
    text = write_report(two).read_text()
    ratios = [float(row["ratio"]) for row in read_rows(folder.results)]
    for table in text.split("<tbody>")[1:]:
        assert table.count("<td>0 %</td>") == table.count("<td>unpruned</td>") == 1
        for structure in ("unstructured", "filter"):
            assert table.count(f"<tr><td>{structure}") == len(ratios) - 1
    assert '<div class="plots wide">' in text
    assert '<div class="plots">' in folder.report.read_text()


def test_pictures_show_truth_clean_and_attacked_at_each_ratio(text: str) -> None:
    alternatives = Page(text).alternatives
    assert sum("ground truth" in text for text in alternatives) == 4
    for ratio in (0, 50, 90):
        for kind in ("clean", "attacked"):
            assert sum(text.endswith(f", {ratio} % pruned, {kind}") for text in alternatives) == 4


def test_it_says_how_it_was_measured_and_what_is_not_claimed(folder: RunFolder, text: str) -> None:
    environment = folder.read_json("environment.json")
    assert environment["processor"]["name"] in text
    assert "1 thread," in text
    assert environment["packages"]["torch"] in text
    assert "what follows the network (decode, nms) is torch's code, timed separately" in text
    notes = folder.read_json("acceleration/ratio_0.json")["notes"]
    assert notes[-1] == "torch runs what follows the network: decode, nms"
    assert "What is not claimed" in text
    assert "different machines" not in text


def test_rows_of_different_machines_are_pointed_out(folder: RunFolder, tmp_path: Path) -> None:
    shutil.copytree(folder.root, tmp_path / "mixed")
    mixed = RunFolder(tmp_path / "mixed")
    lines = mixed.results.read_text().splitlines()
    machine = folder.read_json("environment.json")["processor"]["name"]
    lines[1] = lines[1].replace(machine, machine + " II")
    mixed.results.write_text("\n".join(lines) + "\n")
    assert "measured on different machines" in write_report(mixed).read_text()


def test_names_from_the_data_cannot_break_the_page(folder: RunFolder, tmp_path: Path) -> None:
    shutil.copytree(folder.root, tmp_path / "odd")
    odd = RunFolder(tmp_path / "odd")
    description = odd.read_json("examples/examples.json")
    description["images"][0]["file_name"] = "<script>alert(1)</script>.jpg"
    odd.write_json("examples/examples.json", description)
    page = Page(write_report(odd).read_text())
    assert page.tags["script"] == 0


def test_plots_are_png_files_of_their_own(folder: RunFolder) -> None:
    for name in ("average_precision", "latency"):
        with Image.open(folder.root / "plots" / f"{name}.png") as image:
            assert image.format == "PNG"
            assert image.width > 800


def test_a_folder_without_results_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"results\.csv does not exist"):
        write_report(RunFolder(tmp_path))


def test_boxes_are_drawn_where_they_are() -> None:
    box = LabeledBox((50.0, 60.0, 150.0, 110.0), label=1, name="star", score=0.5)
    gray = Image.new("RGB", (100, 80), (128, 128, 128))  # half the original's 200×160 pixels
    with draw_boxes(gray, [box], original_width=200) as drawn:
        zoom = drawn.width / 200
        on_box, gray_places = [(50, 85), (150, 85), (120, 110)], [(100, 85), (20, 85)]
        expected = {place: class_color(1) for place in on_box} | dict.fromkeys(gray_places, (128, 128, 128))
        for (x, y), color in expected.items():
            found = np.array(drawn.getpixel((round(x * zoom), round(y * zoom))), dtype=int)
            assert np.abs(found - color).max() < 40, (x, y)  # JPEG


def test_the_page_says_how_much_faster_than_dense_engines_where_they_were_timed(
    folder: RunFolder, text: str, tmp_path: Path
) -> None:
    assert "over dense" not in text
    copy = RunFolder(tmp_path / "run")
    shutil.copytree(folder.root, copy.root)
    copy.write_json(DENSE, {"a dense engine": 123.456, "another": 200.0})
    write_report(copy)
    with_dense = copy.report.read_text()
    assert "a dense engine 123.46 ms, another 200.00 ms" in with_dense
    unpruned = next(row for row in read_rows(copy.results) if float(row["ratio"]) == 0)
    assert f"<td>{123.456 / float(unpruned['latency_ms']):.2f}×</td>" in with_dense
