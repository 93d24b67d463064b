"""Images as a graph takes them: Pillow's route and NumPy's agree to the bit, for every mode, turn, size and filter."""

from __future__ import annotations

import io
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tidemill.core.errors import ConfigError, DataError
from tidemill.packaging.image import Decode
from tidemill.packaging.image_config import ImageConfig
from tidemill.packaging.image_reference import prepare


def decode(folder: Path, **declared: Any) -> Decode:
    (folder / "image.json").write_text(json.dumps(declared))
    return Decode(folder, column="image", input="x")


def column(*images: bytes) -> dict[str, np.ndarray]:
    made = np.empty((len(images), 1), object)
    made[:, 0] = images
    return {"image": made}


def png(image: Image.Image, **more: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", **more)
    return file.getvalue()


def noise(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    if mode == "I;16":
        return Image.fromarray(rng.integers(0, 65536, (height, width), np.uint16))
    depth = {"RGB": 3, "RGBA": 4, "L": 1, "LA": 2}.get(mode, 3)
    values = rng.integers(0, 256, (height, width, depth), np.uint8)
    image = Image.fromarray(values[..., 0] if depth == 1 else values)
    return image.convert(mode) if image.mode != mode else image


@settings(max_examples=60, deadline=None)
@given(
    size=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    wanted=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    resize=st.sampled_from(["exact", "shorter", "none"]),
    resample=st.sampled_from(["nearest", "bilinear", "bicubic"]),
    mode=st.sampled_from(["RGB", "RGBA", "L", "LA", "P", "1", "I;16"]),
    seed=st.integers(0, 99),
    grey=st.booleans(),
)
def test_numpy_makes_the_same(
    tmp_path_factory: pytest.TempPathFactory, size: Any, wanted: Any, resize: str, resample: str, mode: str, seed: int, grey: bool
) -> None:
    content = png(noise(*size, mode, seed))
    declared = {
        "width": wanted[0],
        "height": wanted[1],
        "resize": resize,
        "resample": resample,
        "type": "uint8",
        "mode": "L" if grey else "RGB",
    }
    made = decode(tmp_path_factory.getbasetemp(), **declared)(column(content))["x"]
    expected = prepare(content, ImageConfig.of(declared))
    assert made.shape == (1, 1 if grey else 3, wanted[1], wanted[0])
    assert np.array_equal(made[0], expected)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_is_turned_as_its_camera_says(tmp_path: Path, orientation: int) -> None:
    upright = noise(6, 4)
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = png(upright, exif=exif)
    declared: dict[str, Any] = {"width": 6, "height": 6, "resize": "none", "type": "uint8"}
    made = decode(tmp_path, **declared)(column(content))["x"][0]
    assert np.array_equal(made, prepare(content, ImageConfig.of(declared)))
    left = decode(tmp_path, **declared, orientation=False)(column(content))["x"][0]
    assert np.array_equal(left, decode(tmp_path, **declared)(column(png(upright)))["x"][0])
    assert np.array_equal(made, left) == (orientation == 1)


def test_values_are_scaled_and_laid_out_as_declared(tmp_path: Path) -> None:
    content = png(Image.new("RGB", (2, 2), (255, 51, 0)))
    declared: dict[str, Any] = {"width": 2, "height": 2, "mean": [0.5, 0.1, 0.0], "std": [0.5, 0.1, 2.0]}
    first = decode(tmp_path, **declared)(column(content))["x"]
    assert (first.shape, first.dtype) == ((1, 3, 2, 2), np.float32)
    assert first[0, :, 0, 0] == pytest.approx([1.0, 1.0, 0.0], abs=1e-6)
    turned = decode(tmp_path, **declared, layout="NHWC", channels="BGR")(column(content))["x"]
    assert turned.shape == (1, 2, 2, 3)
    assert turned[0, 0, 0] == pytest.approx([0.0, 1.0, 1.0], abs=1e-6)
    assert np.allclose(turned[0], prepare(content, ImageConfig.of({**declared, "layout": "NHWC", "channels": "BGR"})))


def test_what_is_transparent_is_white(tmp_path: Path) -> None:
    clear = Image.new("RGBA", (3, 3), (255, 0, 0, 0))
    made = decode(tmp_path, width=3, height=3, type="uint8")(column(png(clear)))["x"]
    assert (made == 255).all()


def test_limits_hold_before_a_pixel_is_decoded(tmp_path: Path) -> None:
    reader = decode(tmp_path, width=4, height=4)
    reader.limit(max_pixels=100, max_bytes=10_000)
    whole = png(noise(11, 10))
    with pytest.raises(DataError, match=r"at most 100 pixels, has 11 x 10"):
        reader.rows(column(whole))
    # Its header alone is enough: the rest of this one is missing.
    with pytest.raises(DataError, match="at most 100 pixels"):
        reader.rows(column(whole[:60]))
    with pytest.raises(DataError, match="at most 10,000 bytes"):
        reader.rows(column(b"x" * 10_001))
    assert reader(column(png(noise(10, 10))))["x"].shape == (1, 3, 4, 4)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_no_damage_does_more_than_refuse(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(["PNG", "JPEG", "WEBP"]))
    file = io.BytesIO()
    noise(16, 16).save(file, kind)
    content = bytearray(file.getvalue())
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(content)))
    reader = decode(tmp_path_factory.getbasetemp(), width=8, height=8)
    reader.limit(max_pixels=1_000_000, max_bytes=1_000_000)
    with suppress(DataError):
        assert reader(column(bytes(content[:cut])))["x"].shape == (1, 3, 8, 8)


def test_variants_are_like_the_example_and_always_the_same(tmp_path: Path) -> None:
    reader = decode(tmp_path, width=8, height=8)
    example = column(png(noise(30, 20)))
    made = reader.variants(example, 5)
    assert reader(made)["x"].shape == (5, 3, 8, 8)
    assert made["image"].ravel().tolist() == reader.variants(example, 5)["image"].ravel().tolist()
    assert reader(reader.variants(column(b"none"), 3))["x"].shape == (3, 3, 8, 8)


def test_a_declaration_is_checked(tmp_path: Path) -> None:
    for wrong in (
        {"width": 0},
        {"resize": "stretch"},
        {"mean": [1, 2]},
        {"formats": ["GIF"]},
        {"shorter": 2},
        {"std": [1, 1, float("nan")]},
    ):
        with pytest.raises(ConfigError, match=r"image\.json"):
            ImageConfig.of({"width": 4, "height": 4, **wrong})
    with pytest.raises(DataError, match="must be a declaration of images"):
        Decode(tmp_path, column="image", input="x")
    assert ImageConfig.of(ImageConfig(width=4, height=5).to_json()) == ImageConfig(width=4, height=5)
