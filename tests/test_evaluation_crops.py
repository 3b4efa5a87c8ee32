"""Images of evaluation data to crops: paths, files' contents, photos with landmarks."""

import hashlib
import io
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from networks import pictures
from photos import TEMPLATE
from PIL import Image

from prefiqs_ext.evaluation.datasets.readers import read_folders
from prefiqs_ext.evaluation.datasets.sources import (
    EncodedCrop,
    LandmarkedPhoto,
    SwappedCrop,
    hash_source,
    read_every_crop,
)
from prefiqs_ext.exceptions import FileAccessError, FileFormatError, MissingFileError
from prefiqs_ext.faces import CropTemplate, UnreadableImage, align, decode_rgb, read_rgb
from prefiqs_ext.faces.align import estimate_similarity

transform = pytest.importorskip("skimage.transform")

SIZE = (112, 96)
NARROW = CropTemplate(SIZE)


def png(picture):
    file = io.BytesIO()
    Image.fromarray(picture.permute(1, 2, 0).numpy()).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def photo(tmp_path):
    file = tmp_path / "photo.png"
    file.write_bytes(png(pictures(1, (150, 130), seed=3)[0]))
    return str(file)


def test_every_kind_in_order(tmp_path, photo):
    faces = pictures(2, SIZE)
    (tmp_path / "crop.png").write_bytes(png(faces[0]))
    landmarks = TEMPLATE * 1.2 + (3, 20)
    sources = [str(tmp_path / "crop.png"), EncodedCrop(png(faces[1]), "image 1"), LandmarkedPhoto(photo, landmarks)]
    crops = list(read_every_crop(sources, NARROW))
    assert all(crop.dtype == torch.uint8 and crop.is_contiguous() for crop in crops)
    assert torch.equal(torch.stack(crops[:2]), faces)
    assert torch.equal(next(read_every_crop([SwappedCrop(str(tmp_path / "crop.png"))], NARROW)), faces[0].flip(0))
    assert np.array_equal(crops[2].permute(1, 2, 0), align(read_rgb(photo), landmarks, NARROW))


def test_mpo_is_its_first_picture(tmp_path):
    """As cameras of two lenses write them, in a folder of a person."""
    first, second = (Image.fromarray(picture.permute(1, 2, 0).numpy()) for picture in pictures(2, SIZE))
    (tmp_path / "people" / "ann").mkdir(parents=True)
    first.save(tmp_path / "people" / "ann" / "1.MPO", "MPO", save_all=True, append_images=[second], quality=95)
    first.save(tmp_path / "alone.jpg", quality=95)
    (crop,) = read_every_crop(read_folders(tmp_path / "people").images, NARROW)
    assert np.array_equal(crop.permute(1, 2, 0), read_rgb(tmp_path / "alone.jpg"))


def test_lazy(photo):
    crops = read_every_crop((LandmarkedPhoto(path, TEMPLATE) for path in (photo, "missing.png")), NARROW)
    assert next(crops).shape == (3, *SIZE)
    with pytest.raises(MissingFileError, match=r"missing\.png"):
        next(crops)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("missing.png", r"cannot read missing\.png \(No such file"),
        (EncodedCrop(b"", "image 17 of lfw.bin"), r"cannot read image 17 of lfw\.bin: the file is empty"),
        (EncodedCrop(b"\xff\xd8\xff no jpeg", "image 17 of lfw.bin"), r"cannot read image 17 of lfw\.bin: "),
        (EncodedCrop(png(pictures(1, SIZE)[0])[:-400], "image 17 of lfw.bin"), r"cannot read image 17 of lfw\.bin: "),
        (
            EncodedCrop(png(pictures(1, 112)[0]), "image 17 of lfw.bin"),
            r"lfw\.bin: expected a crop of 96 x 112 pixels",
        ),
        (LandmarkedPhoto("missing.png", TEMPLATE), r"cannot read missing\.png"),
    ],
)
def test_refused(source, message):
    with pytest.raises((FileFormatError, MissingFileError), match=message) as caught:
        list(read_every_crop([source], NARROW))
    assert "\n" not in str(caught.value)


def test_refused_files(photo):
    with pytest.raises(ValueError, match=r"photo\.png: expected a crop of 96 x 112 pixels, got 130 x 150"):
        next(read_every_crop([photo], NARROW))
    with pytest.raises(ValueError, match=r"photo\.png: expected five different landmarks"):
        next(read_every_crop([LandmarkedPhoto(photo, TEMPLATE[[0] * 5])], NARROW))


def test_published_landmarks_are_taken_whatever_they_are(photo):
    """As the benchmark's own evaluation does; scikit-image's estimate of the same points."""
    points = TEMPLATE[[1, 0, 2, 4, 3]] + np.arange(10).reshape(5, 2)
    template = TEMPLATE * (SIZE[0] / 112) + ((SIZE[1] - SIZE[0]) / 2, 0)
    theirs = transform.SimilarityTransform.from_estimate(points, template).params[:2]
    np.testing.assert_allclose(estimate_similarity(points, NARROW, any_fit=True), theirs, atol=1e-9)
    with pytest.raises(ValueError, match="landmarks of a face"):
        estimate_similarity(points, NARROW)
    (crop,) = read_every_crop([LandmarkedPhoto(photo, points)], NARROW)
    assert np.array_equal(crop.permute(1, 2, 0), align(read_rgb(photo), points, NARROW, any_fit=True))


def test_content_with_too_many_pixels_is_refused_before_decoding():
    header = b"P6 100000 100000 255\n"
    with pytest.raises(UnreadableImage, match="megapixels"):
        decode_rgb(header, "image 0")


def test_what_is_no_file_is_refused_before_it_is_hashed(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "endless.jpg").symlink_to("/dev/zero")
    for name in ("pipe.jpg", "endless.jpg"):
        with pytest.raises(FileAccessError, match=rf"{name} \(expected a regular file, got a pipe or a device"):
            hash_source(str(tmp_path / name))


def test_digest(photo, tmp_path):
    content = Path(photo).read_bytes()
    (tmp_path / "copy.png").write_bytes(content)
    plain = hash_source(photo)
    assert plain == hashlib.sha256(content).digest()
    assert plain == hash_source(str(tmp_path / "copy.png")) == hash_source(EncodedCrop(content, "image 0"))
    aligned = hash_source(LandmarkedPhoto(photo, TEMPLATE))
    assert aligned == hash_source(LandmarkedPhoto(str(tmp_path / "copy.png"), TEMPLATE.astype(np.float64)))
    assert (
        len({plain, aligned, hash_source(LandmarkedPhoto(photo, TEMPLATE + 1)), hash_source(SwappedCrop(photo))}) == 4
    )
