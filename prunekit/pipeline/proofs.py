"""What is proven of a classifier, image by image: margins in a ball by bounds, radii by randomized smoothing."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from prunekit.config import Config
from prunekit.evaluation.evaluate import Subject
from prunekit.evaluation.smoothing import Certificate, CertificationConfig, certified_figures, certify_all
from prunekit.evaluation.verification import labels_images, verified_accuracy, verify
from prunekit.files import csv_text, write_text
from prunekit.pipeline.store import StageFolder
from prunekit.progress import SilentProgress
from prunekit.task import Task

MARGINS, RADII = "margins.csv", "radii.csv"
# The table while there are images left: an interrupted process goes on with the next one.
_BEGUN = "radii.partial.csv"
_HEADER = "image_id,label,predicted,radius\n"
#: Figures by name, and the names of the files that hold what they are computed from.
Proof = tuple[dict[str, Any], list[str]]
#: By image id: the right class, and what is certified.
Certified = dict[int, tuple[int, Certificate]]


def require_provable(config: Config, task: Task) -> None:
    """Raise InputError when something shall be proven of what is no classifier."""
    for option in ("verify", "certify"):
        if getattr(config, option):
            labels_images(task, f"--{option}")


def require_bounds(subject: Subject, eps: float | None) -> None:
    """Raise InputError, before any work, when a model that shall be verified calls something without a bound."""
    if eps is not None:
        verify(replace(subject, dataset=subject.dataset.part(1), progress=SilentProgress()), eps)


def write_margins(folder: StageFolder, subject: Subject, eps: float) -> Proof:
    """Write the margins of a classifier's images in their balls of radius eps."""
    margins = verify(subject, eps)
    rows = ([key, f"{margin:.9g}", int(margin > 0)] for key, margin in margins.items())
    write_text(folder.file(MARGINS), csv_text(("image_id", "margin", "verified"), rows))
    return {"eps": eps, "verified_accuracy": verified_accuracy(margins)}, [MARGINS]


def radii_identity(config: CertificationConfig) -> dict[str, Any]:
    """Return what certified figures depend on, beside the model and the data."""
    return {**asdict(config.smoothing), "radii": list(config.certify_radii)}


def write_radii(folder: StageFolder, subject: Subject, config: CertificationConfig) -> Proof:
    """Write the certified radii of a classifier's images, or those that an interrupted process did not come to."""
    begun = folder.file(_BEGUN)
    known = _read(begun)
    write_text(begun, _table(known))
    with begun.open("a") as file:
        for image_id, label, found in certify_all(subject, config.smoothing, known):
            file.write(_row(image_id, label, found))
            file.flush()
    certified = _read(begun)  # with the digits of the file, whoever has written it
    write_text(folder.file(RADII), _table(certified))
    begun.unlink()
    labels = {key: label for key, (label, _) in certified.items()}
    certificates = {key: certificate for key, (_, certificate) in certified.items()}
    return {"sigma": config.sigma, **certified_figures(certificates, labels, config.certify_radii)}, [RADII]


def _table(certified: Certified) -> str:
    return _HEADER + "".join(_row(key, *one) for key, one in certified.items())


def _row(image_id: int, label: int, found: Certificate) -> str:
    return f"{image_id},{label},{found.label},{found.radius:.9g}\n"


def _read(path: Path) -> Certified:
    """Return the rows that were written to the end; none of a table that the disk spoilt."""
    try:
        rows = [line.split(",") for line in path.read_text().split("\n")[1:-1]] if path.is_file() else []
        return {int(key): (int(label), Certificate(int(one), float(radius))) for key, label, one, radius in rows}
    except ValueError:
        return {}
