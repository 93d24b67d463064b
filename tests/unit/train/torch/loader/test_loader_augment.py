from __future__ import annotations

import numpy as np
import pytest

from tidemill.core.errors import ConfigError
from tidemill.train.torch.loader.arrays import ArraySource
from tidemill.train.torch.loader.augment import Augment, Augmented
from tidemill.train.torch.loader.config import LoaderConfig
from tidemill.train.torch.loader.loader import Loader

ALL = Augment(crop=3, flip=0.5, erase=0.5)


def images(count: int, *, channels: int = 1, height: int = 8, width: int = 10) -> np.ndarray:
    """Pixels above 0, each another."""
    size = channels * height * width
    return (1 + np.arange(count * size) % 250).astype(np.uint8).reshape(count, channels, height, width)


def test_an_image_is_moved_by_as_much_as_it_may_and_black_comes_in() -> None:
    pixels, rows = images(500), np.arange(500)
    made = Augmented(Augment(crop=2), seed=0).apply(pixels, rows, epoch=0)
    assert made.shape == pixels.shape
    assert made.dtype == np.uint8
    seen = set()
    for before, after in zip(pixels, made, strict=True):
        padded = np.pad(before, ((0, 0), (2, 2), (2, 2)))
        found = [(y, x) for y in range(5) for x in range(5) if np.array_equal(padded[:, y : y + 8, x : x + 10], after)]
        assert len(found) == 1
        seen.update(found)
    assert len(seen) == 25


def test_about_as_many_images_are_mirrored_as_shall_be() -> None:
    pixels, rows = images(2000), np.arange(2000)
    made = Augmented(Augment(flip=0.3), seed=1).apply(pixels, rows, epoch=0)
    mirrored = np.array([np.array_equal(after, before[..., ::-1]) for before, after in zip(pixels, made, strict=True)])
    assert all(np.array_equal(after, before) for before, after, turned in zip(pixels, made, mirrored, strict=True) if not turned)
    assert 0.26 < mirrored.mean() < 0.34


def test_a_rectangle_of_the_stated_size_is_wiped_out() -> None:
    pixels = images(1000, channels=3, height=32, width=32)
    made = Augmented(Augment(erase=0.5), seed=2).apply(pixels, np.arange(1000), epoch=0)
    black_NHW = (made == 0).all(axis=1)
    assert ((made == 0).any(axis=1) == black_NHW).all()
    some = black_NHW.any(axis=(1, 2))
    assert 0.45 < some.mean() < 0.55
    for black in black_NHW[some]:
        y, x = np.flatnonzero(black.any(axis=1)), np.flatnonzero(black.any(axis=0))
        assert black[y[0] : y[-1] + 1, x[0] : x[-1] + 1].all()
        assert 0.01 < black.mean() < 0.36


def test_what_is_drawn_follows_from_seed_epoch_and_row_alone() -> None:
    pixels, rows = images(64), np.arange(100, 164)
    whole = Augmented(ALL, seed=7).apply(pixels, rows, epoch=3)
    order = np.random.default_rng(0).permutation(64)
    for part in np.array_split(order, 5):
        np.testing.assert_array_equal(Augmented(ALL, seed=7).apply(pixels[part], rows[part], epoch=3), whole[part])
    for other in (Augmented(ALL, seed=8).apply(pixels, rows, epoch=3), Augmented(ALL, seed=7).apply(pixels, rows, epoch=4)):
        assert (other != whole).any(axis=(1, 2, 3)).mean() > 0.8
    same_image = Augmented(ALL, seed=7).apply(np.repeat(pixels[:1], 64, axis=0), rows, epoch=3)
    assert len({image.tobytes() for image in same_image}) > 30


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_images_are_the_same_for_any_ranks_and_workers(dtype: type) -> None:
    pixels = images(90).astype(dtype)
    seen = []
    for ranks, workers in ((1, 0), (1, 3), (3, 2)):
        found = {}
        for rank in range(ranks):
            source = ArraySource({"pixels": pixels}, np.zeros(90, np.int64), augment=ALL, seed=4)
            loader = Loader(source, batch_rows=20, seed=4, rank=rank, ranks=ranks, config=LoaderConfig(workers=workers))
            for step in loader.steps(1):
                for micro in step.micro:
                    assert micro.inputs["pixels"].numpy().dtype == dtype
                    found |= {int(row): image.tobytes() for row, image in zip(micro.rows, micro.inputs["pixels"].numpy(), strict=True)}
        found.pop(-1, None)
        assert len(found) == 90
        seen.append(found)
    assert seen[0] == seen[1] == seen[2]


@pytest.mark.parametrize("wrong", [{"crop": -1}, {"flip": 1.5}, {"erase": -0.1}])
def test_what_no_image_can_be_done_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=r"crop must be at least 0, flip and erase in 0\.\.1"):
        Augment(**wrong)  # type: ignore[arg-type]
