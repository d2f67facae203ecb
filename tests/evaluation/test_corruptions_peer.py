"""Corruptions against imagecorruptions-imaug 1.1.5, pixel by pixel: both draw the same numbers in the same order.

Bytes may differ by 1: both round down, and what is a whole number here may miss it by a rounding error there. On
purpose different are

* frost: its textures are synthetic, the peer's are photographs. Statistics are compared.
* spatter of severity 1 to 3: distances are Euclidean here, sums of steps there. With exact distances both are equal.
* the sizes: the peer asks for 32 pixels a side.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import prunekit.evaluation.corruptions.frost as frost_module
from prunekit.evaluation.corruptions.catalog import CORRUPTIONS, SEVERITIES, as_bytes, corrupt
from prunekit.evaluation.corruptions.frost import frost_texture
from prunekit.evaluation.corruptions.spatter import edges
from prunekit.kept_images import Pixels
from tests.support.photos import photo

WHY = "needs imagecorruptions: pip install imagecorruptions-imaug==1.1.5 (with opencv, scikit-image and numba)"
peer: Any = pytest.importorskip("imagecorruptions.corruptions", reason=WHY, exc_type=ImportError)
cv2: Any = pytest.importorskip("cv2", reason=WHY, exc_type=ImportError)

SEED = 7
SEEDED = ("impulse_noise", "glass_blur")  # the peer seeds these by an argument, others by the global generator
EQUAL = ("impulse_noise", "pixelate", "jpeg_compression")  # nothing but bytes is computed


class PeersDraws:
    """What the peer's global generator draws, under the names of numpy's new one."""

    def __init__(self) -> None:
        self._global, self._own = np.random.RandomState(SEED), np.random.default_rng(SEED)

    def normal(self, loc: float = 0.0, scale: float = 1.0, size: Any = None) -> Any:
        return self._global.normal(loc, scale, size)

    def uniform(self, low: float, high: float, size: Any = None) -> Any:
        return self._global.uniform(low, high, size)

    def poisson(self, mean: Any) -> Any:
        return self._global.poisson(mean)

    def integers(self, low: int, high: int, size: Any) -> Any:
        return self._global.randint(low, high, size)

    def random(self, size: Any) -> Any:
        return self._own.random(size)


def ours(image: Pixels, name: str, severity: int) -> Pixels:
    corruption = CORRUPTIONS[name]
    draws = [PeersDraws()] if corruption.is_random else []
    return as_bytes(corruption.apply(image / 255, *draws, *corruption.parameters[severity - 1]))


def theirs(image: Pixels, name: str, severity: int) -> Pixels:
    from imagecorruptions import corrupt as corrupt_by_peer

    state = np.random.get_state()  # noqa: NPY002
    np.random.seed(SEED)  # noqa: NPY002
    try:
        seed = {"seed": SEED} if name in SEEDED else {}
        found: Pixels = corrupt_by_peer(image, severity, name, **seed)
    finally:
        np.random.set_state(state)  # noqa: NPY002
    return found


@pytest.fixture(autouse=True)
def _exact_and_interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the peer measure distances exactly, and draw by numpy what its compiled code draws by itself."""
    shuffle, measure = peer._shuffle_pixels_njit_glass_blur, cv2.distanceTransform
    monkeypatch.setattr(peer, "_shuffle_pixels_njit_glass_blur", getattr(shuffle, "py_func", shuffle))
    monkeypatch.setattr(cv2, "distanceTransform", lambda x, kind, _: measure(x, kind, cv2.DIST_MASK_PRECISE))


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("name", [name for name in CORRUPTIONS if name != "frost"])
def test_it_is_the_peers(name: str, severity: int) -> None:
    for image in (photo(61, 97), photo(120, 64, seed=1)):
        found, expected = ours(image, name, severity).astype(int), theirs(image, name, severity)
        assert np.abs(found - expected).max() <= (0 if name in EQUAL else 1)
        assert np.abs(found - expected).mean() < 0.2
        assert np.abs(found - image).mean() > 0.2  # so that something was compared


def test_frost_has_the_statistics_of_the_peers_photographs() -> None:
    folder = Path(peer.__file__).parent / "frost"
    photos = [cv2.imread(str(path))[..., ::-1] / 255 for path in sorted(folder.iterdir())]
    ours = [frost_texture(60, 80, np.random.default_rng(seed)) for seed in range(120)]
    assert len(photos) == 6

    def means(textures: Any) -> Any:
        return np.array([texture.mean(axis=(0, 1)) for texture in textures])

    assert means(ours).mean(axis=0) == pytest.approx(means(photos).mean(axis=0), abs=0.03)
    assert means(ours).std(axis=0) == pytest.approx(means(photos).std(axis=0), abs=0.08)
    spread = [np.mean([texture.std(axis=(0, 1)).mean() for texture in textures]) for textures in (ours, photos)]
    assert spread[0] == pytest.approx(spread[1], rel=0.15)


def test_frost_is_laid_over_the_image_as_by_the_peer(monkeypatch: pytest.MonkeyPatch) -> None:
    white = np.full((64, 64, 3), 255, dtype=np.uint8)  # whatever the crop
    monkeypatch.setattr(cv2, "imread", lambda _: white)
    monkeypatch.setattr(frost_module, "frost_texture", lambda height, width, _: np.ones((height, width, 3)))
    image = photo(48, 40)
    for severity in SEVERITIES:
        found, expected = corrupt(image, "frost", severity).astype(int), theirs(image, "frost", severity)
        assert np.abs(found - expected).max() <= 1


def test_edges_are_opencvs() -> None:
    for seed in range(5):
        image = photo(70, 90, seed)[..., 1]
        expected = cv2.Canny(image, 50, 150) > 0
        assert np.array_equal(edges(image), expected)
        assert 0 < expected.sum() < expected.size
