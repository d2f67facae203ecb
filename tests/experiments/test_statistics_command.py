"""`prunekit statistics`: files, page and sentences from a table of values."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from tests.support.commands import invoke, succeed


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("values") / "values.csv"
    lines = ["structure,scores,metric,run,pruning_ratio_percent,value"]
    for scores, lead in (("deeplift", 0.2), ("scaled", 0.0)):
        for metric in ("map", "latency_ms"):
            for ratio in (0, 50, 99):
                lines += [
                    f"filter,{scores},{metric},{run},{ratio},{0.5 - ratio / 300 + lead + run / 100}"
                    for run in (1, 2, 3)
                ]
    path.write_text("\n".join([*lines, "none,none,map,1,0,0.123"]) + "\n")
    return path


@pytest.fixture(scope="module")
def out(table: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("statistics")
    printed = succeed("statistics", {"values": table, "out": out}).stdout
    assert "map, deeplift vs. scaled: after Holm's correction deeplift is higher at 50 and 99 %." in printed
    return out


def test_each_table_and_figure_is_there_in_every_format(out: Path) -> None:
    tables = {path.name for path in (out / "tables").iterdir()}
    stems = {
        "comparisons",
        *(f"{kind}-{metric}" for kind in ("means", "p-values", "runs") for metric in ("map", "latency_ms")),
    }
    names = {f"{stem}.{suffix}" for stem in stems if not stem.startswith("runs") for suffix in ("csv", "md", "tex")}
    assert names <= tables
    assert {f"runs-map-{scores}.tex" for scores in ("deeplift", "scaled")} <= tables
    figures = {path.name for path in (out / "figures").iterdir()}
    assert figures == {f"{metric}-1-scores.{kind}" for metric in ("map", "latency_ms") for kind in ("png", "svg")}
    with Image.open(out / "figures" / "map-1-scores.png") as image:
        assert min(image.size) > 300


def test_a_figure_shows_each_configuration_and_the_weights_as_given(out: Path) -> None:
    text = (out / "figures" / "map-1-scores.svg").read_text()
    for label in ("deeplift", "scaled", "weights as given", "Pruning ratio in %"):
        assert label in text
    assert "weights as given" not in (out / "figures" / "latency_ms-1-scores.svg").read_text()


def test_the_weights_as_given_may_be_said_on_the_command_line(table: Path, tmp_path: Path) -> None:
    succeed("statistics", {"values": table, "out": tmp_path, "given": "latency_ms=0.5"})
    assert "weights as given" in (tmp_path / "figures" / "latency_ms-1-scores.svg").read_text()


@pytest.mark.parametrize(
    ("given", "message"), [("map", "expected METRIC=VALUE"), ("ap=1", "expected a metric among map, latency_ms")]
)
def test_weights_as_given_that_make_no_sense_are_one_sentence(
    table: Path, tmp_path: Path, given: str, message: str
) -> None:
    result = invoke("statistics", {"values": table, "out": tmp_path, "given": given})
    assert result.exit_code == 2
    assert message in result.stderr.replace("\n", " ")


def test_the_page_needs_no_other_file_and_says_what_cannot_be(out: Path) -> None:
    page = (out / "statistics.html").read_text()
    assert page.count("data:image/png;base64,") == 2
    assert "What cannot be" in page
    assert "map, deeplift vs. scaled at 0 %: nothing is pruned, so both are the same model" in page
    assert 'src="figures' not in page


def test_the_same_values_make_the_same_files(table: Path, out: Path, tmp_path: Path) -> None:
    succeed("statistics", {"values": table, "out": tmp_path})
    for path in (path for path in out.rglob("*") if path.is_file()):
        assert (tmp_path / path.relative_to(out)).read_bytes() == path.read_bytes()


def test_a_table_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    result = invoke("statistics", {"values": tmp_path / "none.csv", "out": tmp_path})
    assert result.exit_code == 2
    assert "Expected a table of values as CSV" in result.stderr
