"""Corruptions by themselves: any size, no state, seeds, severities, and the parts that have an oracle."""

from __future__ import annotations

import hashlib
import itertools
import random
import subprocess
import sys

import numpy as np
import pytest
import torch

from prunekit.errors import InputError
from prunekit.evaluation.corruptions import (
    BENCHMARK,
    CORRUPTIONS,
    SEVERITIES,
    VALIDATION,
    Cell,
    corrupt,
    parse_corruptions,
    register_corruption,
)
from prunekit.evaluation.corruptions.blur import displaced
from prunekit.evaluation.corruptions.filters import Floats, defocused, motion_blurred, stretched
from prunekit.evaluation.corruptions.frost import frost_texture
from prunekit.evaluation.corruptions.weather import plasma
from prunekit.kept_images import Pixels
from tests.support import ROOT
from tests.support.photos import photo

NAMES = list(CORRUPTIONS)
RANDOM = [name for name, corruption in CORRUPTIONS.items() if corruption.is_random]
#: What averages pixels, or moves them, leaves an image of one color as it is.
AVERAGES = ("defocus_blur", "gaussian_blur", "glass_blur", "motion_blur", "zoom_blur", "elastic_transform", "pixelate")
CELLS = [(name, severity) for name in NAMES for severity in SEVERITIES]


def distance(a: Pixels, b: Pixels) -> float:
    return float(np.abs(a.astype(float) - b).mean())


def unlikeness(a: Pixels, b: Pixels) -> float:
    return 1 - float(np.corrcoef(a.ravel(), b.ravel())[0, 1])


def test_there_are_fifteen_and_four() -> None:
    assert (len(BENCHMARK), len(VALIDATION), len(CORRUPTIONS)) == (15, 4, 19)
    assert all(len(corruption.parameters) == 5 for corruption in CORRUPTIONS.values())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 9), (9, 1), (2, 3), (7, 8), (32, 32), (33, 47), (70, 35)])
def test_every_size_is_corrupted_and_no_image_changed(name: str, height: int, width: int) -> None:
    image = photo(height, width)
    before = image.copy()
    image.flags.writeable = False
    for severity in SEVERITIES:
        found = corrupt(image, name, severity)
        assert found.dtype == np.uint8
        assert found.shape == image.shape
    assert np.array_equal(image, before)


@pytest.mark.parametrize(("name", "severity"), CELLS)
def test_what_is_random_depends_on_the_image_the_seed_and_the_cell_alone(name: str, severity: int) -> None:
    image = photo(40, 52)
    first = corrupt(image, name, severity, image_id=3, seed=1)
    corrupt(photo(9, 9), name, severity, image_id=4, seed=1)
    assert np.array_equal(first, corrupt(image, name, severity, image_id=3, seed=1))
    for other in ({"image_id": 4, "seed": 1}, {"image_id": 3, "seed": 2}, {"image_id": "3b", "seed": 1}):
        assert np.array_equal(first, corrupt(image, name, severity, **other)) != (name in RANDOM)


def test_no_global_generator_is_asked_or_moved() -> None:
    def states() -> list[str]:
        return [str(np.random.get_state()), str(random.getstate()), str(torch.get_rng_state().tolist())]  # noqa: NPY002

    before = states()
    for name in NAMES:
        corrupt(photo(36, 33), name, 3)
    assert states() == before


@pytest.mark.slow
def test_another_process_gives_the_same_bits() -> None:
    program = (
        "import hashlib; from tests.support.photos import photo\n"
        "from prunekit.evaluation.corruptions import CORRUPTIONS, corrupt\n"
        "for name in CORRUPTIONS: print(hashlib.sha256(corrupt(photo(35, 50), name, 3, 12, 1).tobytes()).hexdigest())\n"
    )
    command = [sys.executable, "-c", program]
    found = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout.split()
    assert found == [hashlib.sha256(corrupt(photo(35, 50), name, 3, 12, 1).tobytes()).hexdigest() for name in NAMES]


@pytest.mark.parametrize("name", NAMES)
def test_a_higher_severity_changes_more(name: str) -> None:
    images = [photo(96, 128, seed) for seed in range(4)]
    # Frost takes away of the image's light what it adds of its own: distances say little.
    measure = unlikeness if name == "frost" else distance
    moved = [
        sum(measure(corrupt(image, name, severity, key), image) for key, image in enumerate(images))
        for severity in SEVERITIES
    ]
    # Saturation goes down at 1 and 2, up from 3 on. The glass of severity 2 moves pixels farther, but once.
    rising = (moved[:2], moved[2:]) if name == "saturate" else (moved,)
    slack = 0.8 if name in ("glass_blur", "snow", "frost", "fog", "spatter") else 1.0
    for values in rising:
        assert all(later >= slack * earlier for earlier, later in itertools.pairwise(values)), moved
        assert values[-1] > values[0] > 0


@pytest.mark.parametrize("name", AVERAGES)
@pytest.mark.parametrize("severity", SEVERITIES)
def test_what_averages_leaves_one_color_as_it_is(name: str, severity: int) -> None:
    image = np.broadcast_to(np.array([7, 100, 255], dtype=np.uint8), (45, 38, 3))
    # The edge of the largest disks is softened beyond their kernel, whose weights then sum to a little more than 1.
    slack = 1 if name == "defocus_blur" and severity >= 4 else 0
    assert np.abs(corrupt(image, name, severity).astype(int) - image).max() <= slack


@pytest.mark.parametrize("name", [name for name in BENCHMARK if "noise" not in name and name != "frost"])
def test_gray_stays_gray(name: str) -> None:
    image = np.repeat(photo(40, 50)[..., :1], 3, axis=-1)
    found = corrupt(image, name, 3).astype(int)
    assert np.ptp(found, axis=-1).max() <= (2 if name == "jpeg_compression" else 0)


def test_gray_becomes_red_when_saturated_as_in_the_benchmark() -> None:
    image = np.full((4, 5, 3), 100, dtype=np.uint8)
    assert corrupt(image, "saturate", 3).tolist() == image.tolist()
    assert corrupt(image, "saturate", 5)[0, 0].tolist() == [100, 80, 80]


def test_black_and_white_images_are_corrupted_too() -> None:
    for value in (0, 255):
        for name, severity in CELLS:
            assert corrupt(np.full((12, 15, 3), value, dtype=np.uint8), name, severity).shape == (12, 15, 3)


def test_noise_has_its_published_size() -> None:
    gray = np.full((200, 200, 3), 128, dtype=np.uint8)
    for severity, sigma in zip(SEVERITIES[:3], (0.08, 0.12, 0.18), strict=True):
        assert corrupt(gray, "gaussian_noise", severity).std() / 255 == pytest.approx(sigma, rel=0.03)
    photons = corrupt(gray, "shot_noise", 1) / 255
    assert photons.std() == pytest.approx((128 / 255 / 60) ** 0.5, rel=0.03)
    for severity, share in zip(SEVERITIES, (0.03, 0.06, 0.09, 0.17, 0.27), strict=True):
        hit = corrupt(gray, "impulse_noise", severity)
        assert (hit != 128).mean() == pytest.approx(share, rel=0.05)
        assert (hit == 255).sum() / (hit != 128).sum() == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize(
    ("height", "width", "reach"), [(5, 6, 1), (12, 9, 2), (9, 31, 4), (31, 9, 4), (8, 8, 4), (3, 9, 2)]
)
def test_pixels_displaced_at_once_are_those_displaced_one_after_another(height: int, width: int, reach: int) -> None:
    draw = np.random.default_rng(height)
    x = draw.random((height, width, 3))
    shape = (2, max(height - 2 * reach, 0), max(width - 2 * reach, 0))
    right, down = draw.integers(-reach, reach, shape)
    expected = x.copy()
    for i in range(shape[1]):
        for j in range(shape[2]):
            row, column = height - reach - i, width - reach - j
            expected[row, column] = expected[row + down[i, j], column + right[i, j]]
    assert np.array_equal(displaced(x, right, down, reach), expected)


def _defocused(x: Floats, radius: int) -> Floats:
    """Average over a disk without softening, pixel by pixel."""
    height, width, channels = x.shape
    padded = np.pad(x, ((radius, radius), (radius, radius), (0, 0)), mode="reflect")
    total, count = np.zeros((height, width, channels)), 0
    for dy in range(-radius, radius + 1):
        for dx in range(-radius, radius + 1):
            if dy * dy + dx * dx <= radius * radius:
                total += padded[radius + dy : radius + dy + height, radius + dx : radius + dx + width]
                count += 1
    mean: Floats = total / count
    return mean


def test_defocus_averages_over_a_disk() -> None:
    x = np.random.default_rng(0).random((30, 41, 3))
    assert defocused(x, 3, 0.05) == pytest.approx(_defocused(x, 3), abs=1e-9)
    assert defocused(x, 9, 0.05) == pytest.approx(_defocused(x, 9), abs=1e-9)


def test_motion_goes_along_the_rows_and_down() -> None:
    x = np.zeros((9, 9))
    x[4, 4] = 1
    weights = np.exp(-(np.arange(5) ** 2) / 8)
    weights /= weights.sum()
    assert motion_blurred(x, 2, 2.0, 0)[4].tolist() == pytest.approx([*weights[::-1], 0, 0, 0, 0])
    assert motion_blurred(x, 2, 2.0, -90)[:, 4].tolist() == pytest.approx([0, 0, 0, 0, *weights])


def test_stretching_keeps_ends_and_lines() -> None:
    ramp = np.linspace(2, 5, 7)[:, None] * np.ones((7, 2))
    found = stretched(ramp, 19, 0)
    assert found == pytest.approx(np.linspace(2, 5, 19)[:, None] * np.ones((19, 2)))
    assert stretched(np.full((1, 3), 4.0), 6, 0).tolist() == [[4.0] * 3] * 6


def test_clouds_are_rough_and_joined_at_their_edges() -> None:
    rough, smooth = (plasma(128, decay, np.random.default_rng(0)) for decay in (1.4, 2.0))
    for cloud in (rough, smooth):
        assert (cloud.min(), cloud.max(), cloud.shape) == (0, 1, (128, 128))
        steps, seam = np.abs(np.diff(cloud, axis=1)), np.abs(cloud[:, 0] - cloud[:, -1])
        assert seam.max() <= 2 * steps.max()
    assert np.abs(np.diff(rough, axis=0)).mean() > 1.5 * np.abs(np.diff(smooth, axis=0)).mean()


def test_frost_is_bluish_bright_and_has_large_and_small_shapes() -> None:
    textures = [frost_texture(128, 160, np.random.default_rng(seed)) for seed in range(16)]
    red, green, blue = np.mean(textures, axis=(0, 1, 2))
    assert red < green < blue
    assert 0.5 < green < 0.7
    gray = textures[0].mean(axis=-1)
    power = np.abs(np.fft.rfft2(gray - gray.mean())) ** 2
    frequency = np.hypot(np.fft.fftfreq(128)[:, None], np.fft.rfftfreq(160))
    octaves = [
        power[(frequency > low) & (frequency <= 2 * low)].mean() for low in (1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4)
    ]
    falls = np.diff(np.log2(octaves))
    assert (falls < -1).all()
    assert (falls > -4).all()


def test_names_severities_and_groups_are_read() -> None:
    assert parse_corruptions("fog:2, snow") == (("fog", 2), *(("snow", severity) for severity in SEVERITIES))
    assert len(parse_corruptions("benchmark")) == 75
    assert len(parse_corruptions("validation,all")) == 95
    assert parse_corruptions("fog:3,fog:3") == (("fog", 3),)
    assert [cell.name for cell in parse_corruptions("benchmark:5")][:2] == ["gaussian_noise-5", "shot_noise-5"]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("smog", "got 'smog'"),
        ("fog:6", "a severity from 1 to 5 for fog, got 6"),
        ("fog:0", "got 0"),
        ("fog:heavy", "got 'heavy'"),
        ("fog:", "got ''"),
        (" ,", "Expected names of corruptions"),
    ],
)
def test_what_is_wrong_with_names_is_one_sentence(text: str, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        parse_corruptions(text)


@pytest.mark.parametrize(
    "image",
    [np.zeros((4, 5), np.uint8), np.zeros((4, 5, 1), np.uint8), np.zeros((4, 5, 3)), np.zeros((0, 5, 3), np.uint8)],
)
def test_other_images_are_refused(image: Pixels) -> None:
    with pytest.raises(InputError, match=r"Expected an RGB image, uint8 \[H, W, 3\], got"):
        corrupt(image, "fog", 1)


def test_other_corruptions_and_severities_are_refused() -> None:
    with pytest.raises(InputError, match="got 'smog'"):
        corrupt(photo(4, 4), "smog", 1)
    with pytest.raises(InputError, match="a severity from 1 to 5 for fog, got 6"):
        corrupt(photo(4, 4), "fog", 6)


def darker(x: Floats, share: float) -> Floats:
    return x * share


def test_corruptions_of_ones_own_have_a_name_and_no_part_in_the_benchmark() -> None:
    register_corruption("darker", darker, (0.9, 0.8, 0.7, 0.6, 0.5), is_random=False)
    image = photo(6, 7)
    assert np.array_equal(corrupt(image, "darker", 5), image // 2)
    assert Cell("darker", 2).identity == {"corruption": "darker", "severity": 2, "parameters": [0.8], "version": 1}
    assert len(parse_corruptions("all")) == 100
    assert len(parse_corruptions("benchmark")) == 75
    for name, count in (("darker", 5), ("fog", 5), ("all", 5), ("dark-er", 5), ("", 5), ("darkest", 4)):
        with pytest.raises(InputError, match=r"Expected .* the corruption"):
            register_corruption(name, darker, (0.5,) * count, is_random=False)
