"""Data as people have it: read where it is unambiguous, with a line on what was done; else refused
in one line that says how to convert it. Never a traceback, never a wrong number in silence."""
import gzip
import io
import os
import pickle
import random
import shutil
import struct
import zipfile
import zlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torchvision
from PIL import EpsImagePlugin, Image

import readers
from common import save_grid, save_latent
from readers import load_data, read_image

GREY = np.random.default_rng(0).integers(0, 256, (27, 8, 8), np.uint8)
GREY[0, 0, 0], GREY[0, 0, 1] = 0, 255
LABELS = np.arange(27) % 3


def save_image(file, colour=0, mode="L", size=(8, 8)):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(file)


def read(path, **flags):
    """(data, what was said) of a data set."""
    lines = []
    data = load_data(str(path), say=lines.append, **flags)
    return data, "\n".join(lines)


def refusal(capsys, path, **flags):
    """The one line with which a data set is refused."""
    with pytest.raises(SystemExit) as stop:
        load_data(path, **flags)
    printed = capsys.readouterr()
    assert stop.value.code == 2
    assert printed.out == "" and printed.err.count("\n") == 1
    return printed.err


# ----------------------------------------------------------------------- pixels, labels and splits

def test_masks_of_zeros_and_ones_are_not_trained_on_as_black(npz, tmp_path):
    mask = (GREY > 127).astype(np.uint8)
    data, said = read(npz(x_train=mask[:20], x_test=mask[20:]))
    assert torch.equal(data.x_train[:, 0], torch.from_numpy(mask[:20] * 255))
    assert torch.equal(data.x_test[:, 0], torch.from_numpy(mask[20:] * 255))
    assert "multiplied by 255" in said and said.count("\n") == 0

    for i in range(20):
        Image.fromarray(mask[i]).save(tmp_path / f"{i}.png")
    data, said = read(tmp_path)
    assert data.x_train.unique().tolist() == [0, 255] and "multiplied by 255" in said
    black, said = read(npz(x_train=mask[:20] * 0, x_test=mask[20:] * 0))
    assert black.x_train.max() == 0 and said == ""


def test_masks_beside_grey_test_images_are_refused(npz, capsys):
    line = refusal(capsys, npz(x_train=GREY[:20] // 128))
    assert "end at 1" in line and "by 255" in line


def test_labels_that_do_not_begin_at_zero_get_no_class_of_their_own(npz):
    data, said = read(npz(y_train=np.arange(20) % 4 + 1, y_test=np.arange(7) % 4 + 1))
    assert data.classes == ["1", "2", "3", "4"] and "numbered from 0" in said
    assert data.y_train.tolist() == (np.arange(20) % 4).tolist()
    assert data.y_test.tolist() == (np.arange(7) % 4).tolist()

    data, said = read(npz(classes=np.array(["a", "b", "c", "d", "never"])))
    assert data.classes == list("abcd") and "never" in said


def test_a_class_that_is_tested_but_never_trained_is_refused(npz, tmp_path, capsys):
    assert "class 9 has test images" in refusal(capsys, npz(y_test=np.full(7, 9)))
    for name in ("train/cat/0", "train/dog/0", "test/cat/0", "test/emu/0"):
        save_image(tmp_path / f"{name}.png")
    assert "class emu has test images" in refusal(capsys, tmp_path)


@pytest.mark.parametrize("counts", [(20, 20), (10,) * 10, (3, 40, 1), (2,) * 10, (1, 14)])
def test_a_tenth_is_split_off_by_class_and_every_class_is_trained(npz, counts):
    y = np.repeat(np.arange(len(counts)), counts)
    x = np.arange(1, len(y) + 1, dtype=np.uint8)[:, None, None].repeat(8, 1)
    x[0] = 255
    file = npz(x_train=x, y_train=y, x_test=None, y_test=None)
    data, said = read(file)
    assert len(data.y_test) in (len(y) // 10, len(y) // 10 - 1) and "no test part" in said
    for label, count in enumerate(counts):
        n_train, n_test = (data.y_train == label).sum(), (data.y_test == label).sum()
        assert n_train + n_test == count and n_train >= 1 and abs(n_test - count / 10) < 1
    pixels = torch.cat([data.x_train[:, 0, 0, 0], data.x_test[:, 0, 0, 0]])
    assert sorted(pixels.tolist()) == sorted(x[:, 0, 0].tolist())   # none twice, none lost
    torch.manual_seed(7)
    assert torch.equal(read(file)[0].x_test, data.x_test)


def test_a_split_does_not_follow_the_order_of_names(tmp_path):
    """Ten greys in turn: the tenth grey was all of the test set, and never trained."""
    for i in range(100):
        save_image(tmp_path / f"{i:03d}.png", 100 + i % 10)
    data, _ = read(tmp_path)
    assert len(data.x_test) == 10
    assert len(data.x_train[:, 0, 0, 0].unique()) == 10
    x = np.stack([np.full((8, 8), 100 + i % 10, np.uint8) for i in range(100)])
    np.savez(tmp_path / "same.npz", x_train=x)
    assert torch.equal(read(tmp_path / "same.npz")[0].x_test, data.x_test)   # one rule for both


def test_one_image_per_class_leaves_none_for_testing(tmp_path, capsys):
    for i in range(10):
        save_image(tmp_path / str(i) / "0.png")
    assert "one image per class" in refusal(capsys, tmp_path)


# ---------------------------------------------------------------------------------------- folders

@pytest.mark.parametrize("train, test", [
    ("train", "test"), ("train", "val"), ("train", "valid"), ("train", "validation"),
    ("Train", "Test"), ("TRAIN", "Val"),
])
def test_names_of_the_test_part(tmp_path, train, test):
    for i in range(6):
        save_image(tmp_path / train / f"{i}.png", i + 10)
    save_image(tmp_path / test / "0.png", 99)
    data, said = read(tmp_path)
    assert data.classes == [] and said == ""
    assert data.x_train[:, 0, 0, 0].tolist() == [10, 11, 12, 13, 14, 15]
    assert data.x_test[:, 0, 0, 0].tolist() == [99]


def test_a_folder_with_nothing_but_train_is_split(tmp_path):
    for i in range(20):
        save_image(tmp_path / "train" / "ab"[i % 2] / f"{i}.png")
    save_image(tmp_path / "map.png")
    save_image(tmp_path / "run" / "map.png")
    (tmp_path / "run" / "checkpoint.pt").write_text("")
    data, said = read(tmp_path)
    assert data.classes == ["a", "b"] and len(data.x_test) == 2 and "no test part" in said
    assert "1 beside train/ and test/ (first: map.png)" in said


def test_what_is_left_out_of_a_folder_is_said_in_one_line(tmp_path):
    for i in range(3):
        save_image(tmp_path / "train" / "cat" / f"{i}.png", 1 + i)
        save_image(tmp_path / "train" / "cat" / "more" / "still" / f"{i}.png", 11 + i)   # deeper
        save_image(tmp_path / "train" / "dog" / f"{i}.gif", 21 + i)
        save_image(tmp_path / "val" / "cat" / f"{i}.png")
    for name in ("cat", "dog"):
        save_image(tmp_path / "test" / name / "0.png")
    save_image(tmp_path / "train" / "run" / "sample_001.png", size=(99, 99))
    (tmp_path / "train" / "run" / "args.txt").write_text("--latent=2\n")
    save_image(tmp_path / "train" / "cat" / ".hidden.png")
    (tmp_path / "train" / "cat" / "la\x1bbels.csv").write_text("")
    os.mkfifo(tmp_path / "train" / "cat" / "pipe.png")
    (tmp_path / "train" / "cat" / "loop").symlink_to(tmp_path / "train")

    data, said = read(tmp_path)
    assert data.classes == ["cat", "dog"]
    assert sorted(data.x_train[:, 0, 0, 0].tolist()) == [1, 2, 3, 11, 12, 13, 21, 22, 23]
    assert data.y_train.tolist() == [0] * 6 + [1] * 3
    left_out, converted, deeper = said.split("\n")
    assert "8 from grey to RGB (first: train/cat/0.png)" in converted   # a .gif has colours
    assert "3 images lie in deeper folders" in deeper and "cat/more/still/0.png" in deeper
    for words in ("3 beside train/ and test/ (first: val/cat/0.png)",
                  "2 in run folders (first: train/run/args.txt)", "1 no plain files", "pipe.png",
                  "1 no images by their names (first: train/cat/la\\x1bbels.csv)"):
        assert words in left_out


def test_a_run_among_the_images_is_refused(tmp_path, capsys):
    for i in range(10):
        save_image(tmp_path / f"{i}.png")
    (tmp_path / "checkpoint.pt").write_bytes(b"")
    assert "holds a run" in refusal(capsys, tmp_path)


@pytest.mark.parametrize("ending", ["gif", "webp", "avif"])
def test_the_first_frame_of_a_film(tmp_path, ending):
    if f".{ending}" not in readers.image_endings():
        pytest.skip(f"this Pillow reads no {ending}")
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / f"a.{ending}", save_all=True, append_images=frames[1:])
    image, remarks = read_image(tmp_path / f"a.{ending}")
    x = image[0, :, 8, 8].tolist()
    assert x[0] > 240 and x[2] < 15
    assert remarks == ["frames"]


@pytest.mark.parametrize("background, level", [("white", 255), ("black", 0)])
@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "RGB"])
def test_what_is_transparent_shows_the_background_and_what_is_not_stays(tmp_path, mode, background,
                                                                        level):
    """Left half transparent, with noise under it; the right half keeps its grey, exactly."""
    noise = Image.fromarray(GREY[1] // 2)
    grey = Image.new("L", (8, 8), 77)
    alpha = Image.fromarray(np.repeat([[0] * 4 + [255] * 4], 8, 0).astype(np.uint8))
    image = Image.composite(grey, noise, alpha)
    if mode in ("RGBA", "LA"):
        image = image.convert(mode)
        image.putalpha(alpha)
        image.save(tmp_path / "0.png")
    else:
        image = Image.composite(grey, Image.new("L", (8, 8), 200), alpha).convert(mode)
        key = (200, 200, 200) if mode == "RGB" else image.getpixel((0, 0))
        image.save(tmp_path / "0.png", transparency=key)
    for i in range(1, 12):
        shutil.copy(tmp_path / "0.png", tmp_path / f"{i}.png")
    data, said = read(tmp_path, background=background)
    x = data.x_train
    assert x.shape[1] == (1 if mode in ("L", "LA") else 3)
    assert (x[..., :4] == level).all() and (x[..., 4:] == 77).all()
    assert f"images converted: 12 from transparent to {background} (first: 0.png)" in said
    assert "grey" not in said   # all are, or none


def test_what_was_converted_is_said(tmp_path, monkeypatch):
    """In one line; of a folder in the cache as of one that is read."""
    for i in range(12):
        save_image(tmp_path / "own" / f"{i:02d}.png", (i, 0, 9, 255), "RGBA")   # all opaque
    save_image(tmp_path / "own" / "03.png", 7)
    save_image(tmp_path / "own" / "05.png", 7)
    save_image(tmp_path / "own" / "06.png", (1, 2, 3, 254), "RGBA")
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "own" / "08.png", save_all=True, append_images=frames[1:])
    data, said = read(tmp_path / "own")
    assert data.x_train.shape[1] == 3
    assert said.splitlines()[0].endswith(
        "own: images converted: 2 from grey to RGB (first: 03.png), 1 from transparent to white "
        "(first: 06.png), 1 from several frames to the first (first: 08.png)")
    monkeypatch.setattr(readers, "DECODED_ONCE", 0)
    for _ in range(2):   # decoded into the cache, then read from it
        _, again = read(tmp_path / "own", cache=tmp_path / "cache")
        assert again == said


# ------------------------------------------------------------------- damaged and hostile files

@pytest.mark.parametrize("ending", ["png", "jpg", "webp", "tiff", "bmp", "ppm", "gif"])
def test_damaged_images_end_in_one_line(ending):
    """Cut off, overwritten and spliced, with EXIF: read, or a ValueError that names the file."""
    rng = random.Random(ending)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 24, 3), np.uint8))
    exif = image.getexif()
    exif[0x0112], exif[0x010E] = 6, "a text"
    buffer = io.BytesIO()
    image.save(buffer, {"jpg": "jpeg"}.get(ending, ending).replace("ppm", "PPM"), exif=exif)
    whole = buffer.getvalue()
    n_refused = 0
    for _ in range(50):
        content = bytearray(whole)
        for _ in range(rng.randrange(1, 8)):
            content[rng.randrange(min(len(content), rng.choice((40, 200, 10**6))))] = \
                rng.randrange(256)
        if rng.random() < 0.4:
            del content[rng.randrange(1, len(content)):]
        file = NamedBytes(content)
        try:
            x, _ = read_image(file, size=8)
        except ValueError as error:
            n_refused += 1
            assert str(error).startswith("torn.png ")
        else:
            assert x.dtype == torch.uint8 and x.shape[1] in (1, 3)
    assert n_refused > 5


class NamedBytes(io.BytesIO):
    """A file in memory with a name."""

    def __str__(self):
        return "torn.png"


def png_of(width, height):
    """A grey PNG in a few bytes, whose pixels never come."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n"
    for kind, body in ((b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 100)), (b"IEND", b"")):
        content += struct.pack(">I", len(body)) + kind + body
        content += struct.pack(">I", zlib.crc32(kind + body))
    return content


@pytest.mark.parametrize("size, words", [
    ((50_000, 50_000), ["too large", "make it smaller"]),
    ((13_000, 13_000), ["too large", "--image-size"]),
])
def test_a_decompression_bomb_is_too_large(tmp_path, size, words):
    (tmp_path / "0.png").write_bytes(png_of(*size))
    with pytest.raises(ValueError, match="0.png") as error:
        read_image(tmp_path / "0.png")
    for word in words:
        assert word in str(error.value)
    assert "complete" not in str(error.value)


def test_postscript_in_a_png_is_never_handed_to_another_program(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *a, **k: calls.append(a))
    Image.new("RGB", (8, 8)).save(tmp_path / "0.eps")
    (tmp_path / "0.eps").rename(tmp_path / "0.png")
    with pytest.raises(ValueError, match="0.png is not a complete image"):
        read_image(tmp_path / "0.png")
    assert calls == []


def test_damaged_images_can_be_skipped(tmp_path, capsys):
    for i in range(12):
        save_image(tmp_path / "ab"[i % 2] / f"{i}.png", i + 10)
    (tmp_path / "a" / "4.png").write_bytes(b"nothing")
    assert "4.png is not a complete image" in refusal(capsys, tmp_path)
    data, said = read(tmp_path, skip_broken=True)
    assert len(data.x_train) + len(data.x_test) == 11
    assert "1 damaged (first: a/4.png)" in said
    assert torch.equal(data.y_train, (data.x_train[:, 0, 0, 0] % 2).long())


# ------------------------------------------------------------------------------------ npz and npy

def keras(x, y, **more):
    """The Keras keys, 20 images for training and 7 for testing."""
    return {"x_train": x[:20], "y_train": y[:20], "x_test": x[20:], "y_test": y[20:], **more}


NAMES = np.array(["b", "c", "a"])[LABELS]


@pytest.mark.parametrize("arrays, classes, words", [
    (keras(GREY.astype(np.int64), LABELS), "012", "int64 pixels from 0 to 255"),
    (keras(GREY.astype(">u2"), LABELS), "012", "uint16 pixels"),
    (keras(GREY.astype(np.float64), LABELS), "012", "float64 pixels from 0 to 255"),
    (keras((GREY / 255).astype(np.float16), LABELS), "012", "multiplied by 255"),
    (keras((GREY / 255).astype(np.float32), LABELS), "012", "multiplied by 255"),
    (keras(GREY / 127.5 - 1, LABELS), "012", "in [-1, 1]"),
    (keras(GREY[:, None], LABELS), "012", "channels first"),
    (keras(GREY, np.eye(3)[LABELS]), "012", "one-hot"),
    (keras(GREY, LABELS.astype(np.float32)), "012", "float32 labels"),
    (keras(GREY, NAMES), "abc", "texts: a, b, c"),
    (keras(GREY, NAMES.astype("S")), "abc", "texts: a, b, c"),
    (keras(GREY, NAMES, classes=np.array(list("cab"))), "cab", ""),
    (keras(GREY, LABELS, classes=np.array([b"k", b"l", b"m"])), "klm", ""),
    ({"X_train": GREY[:20], "y_train": LABELS[:20], "X_test": GREY[20:], "y_test": LABELS[20:]},
     "012", ""),
    ({"train_images": GREY[:20], "train_labels": LABELS[:20, None], "val_images": GREY[:5],
      "val_labels": LABELS[:5], "test_images": GREY[20:], "test_labels": LABELS[20:, None]},
     "012", "left out val_images, val_labels"),
    ({"x_train": GREY[:20], "y_train": LABELS[:20], "x_val": GREY[20:], "y_val": LABELS[20:]},
     "012", "x_val is that"),
])
def test_arrays_as_people_have_them(tmp_path, arrays, classes, words):
    np.savez(tmp_path / "own.npz", **arrays)
    (tmp_path / "own.npz").rename(tmp_path / "own.NPZ")
    data, said = read(tmp_path / "own.NPZ")
    assert torch.equal(data.x_train[:, 0], torch.from_numpy(GREY[:20]))
    assert torch.equal(data.x_test[:, 0], torch.from_numpy(GREY[20:]))
    assert data.classes == list(classes)
    names = [data.classes[label] for label in torch.cat([data.y_train, data.y_test])]
    expected = "bca" if classes in ("abc", "cab") else classes
    assert names == [expected[label] for label in LABELS]
    assert words in said and said.count("\n") == 0 and (said == "") == (words == "")


@pytest.mark.parametrize("keys", [("images", "labels"), ("X", "y"), ("x", "y"), ("x_train", None)])
def test_arrays_without_a_test_part(tmp_path, keys):
    arrays = {keys[0]: GREY > 99, keys[1]: LABELS}
    arrays.pop(None, None)
    np.savez(tmp_path / "own.npz", **arrays)
    data, said = read(tmp_path / "own.npz")
    assert len(data.x_train) == 25 and len(data.x_test) == 2
    assert data.x_train.unique().tolist() == [0, 255]
    assert "True and False" in said and "no test part" in said
    assert data.classes == (list("012") if keys[1] else [])


def test_an_npy_file_holds_images(tmp_path):
    np.save(tmp_path / "own.npy", GREY)
    data, _ = read(tmp_path / "own.npy")
    assert data.classes == [] and len(data.x_train) == 25 and data.x_test.shape == (2, 1, 8, 8)


@pytest.mark.parametrize("arrays, words", [
    (keras(GREY * 1.5, LABELS), ["astype('uint8')", "from 0 to 382.5"]),
    (keras(GREY / 255 - 0.5, LABELS), ["astype('uint8')", "-0.5"]),
    (keras(GREY.astype(np.int32) * 257, LABELS), ["astype('uint8')", "65535"]),
    (keras(np.where(GREY > 9, np.nan, 0.5), LABELS), ["nan", "uint8"]),
    (keras(GREY.reshape(27, 64), LABELS), ["x.reshape(-1, 28, 28)"]),
    (keras(np.stack([GREY] * 4, -1), LABELS), ["1 or 3 channels", "alpha = x[..., 3:]"]),
    (keras(GREY, NAMES.astype(object)), ["y.astype('U')"]),
    (keras(GREY * 1j, LABELS), ["complex128", "uint8"]),
    (keras(GREY, GREY[:, 0] / 255), ["y.argmax(1)"]),
    (keras(GREY, LABELS + 0.5), ["whole numbers (N,)"]),
    (keras(GREY, LABELS, classes=np.array(["a", "b", "a"])), ["a more than once"]),
    (keras(GREY, NAMES, classes=np.array(["a", "b"])), ["label c is not among"]),
    (keras(GREY, LABELS) | {"y_train": NAMES[:20]}, ["agree in dtype"]),
    (keras(GREY, LABELS) | {"x_train": np.uint8(3)}, ["uint8 (N, H, W)"]),
    ({"pixels": GREY}, ["x_train"]),
])
def test_arrays_that_are_ambiguous_are_refused(tmp_path, capsys, arrays, words):
    np.savez(tmp_path / "own.npz", **arrays)
    line = refusal(capsys, tmp_path / "own.npz")
    for word in ["own.npz", *words]:
        assert word in line


def test_only_known_arrays_are_read(npz, capsys):
    file = npz()
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("huge.npy", b"\x93NUMPY\x01\x00 this would fail if it were read")
        archive.writestr("images.npy", b"\x93NUMPY\x01\x00 this, too: x_train comes first")
        archive.writestr("notes\x1b.txt", "no array")
    data, said = read(file)
    assert len(data.x_train) == 20
    assert "left out huge, images, notes\\x1b.txt" in said

    file = npz(x_test=None, y_test=None)
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("x_test", "text")
    assert "x_test is no array" in refusal(capsys, file)


# ------------------------------------------------------------------------------- names and paths

@pytest.mark.parametrize("flags, word", [
    ({"name": ""}, "--dataset is empty"),
    ({"name": "digits", "folder": " "}, "--data is empty"),
    ({"name": "x" * 5000}, "was not found"),
    ({"name": "\x1b[2J"}, "\\x1b[2J was not found"),
])
def test_paths_that_are_none(capsys, flags, word):
    flags = {"path": flags.pop("name"), **flags}
    assert word in refusal(capsys, **flags)


def test_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    np.save(tmp_path / "own.npy", GREY)
    assert len(read("~/own.npy")[0].x_train) == 25


def test_hostile_class_names_are_printed_and_drawn(tmp_path):
    folders = [b"US$5_$", b"a$b", b"$", b"caf\xe9", b"\x1b[31m", "кот".encode(), b"a\\$", b"_x"]
    for i, folder in enumerate(folders):
        for j in range(2):
            save_image(tmp_path / "images" / os.fsdecode(folder) / f"{j}.png", 10 * i + j)
    data, _ = read(tmp_path / "images")
    assert all(name.isprintable() for name in data.classes)
    assert {"caf\\udce9", "\\x1b[31m", "US$5_$"} <= set(data.classes)

    classes = [*data.classes, "x" * 10**6]
    y = torch.arange(len(classes))
    data = data._replace(classes=classes, y_test=y)
    save_latent(tmp_path / "map.png", {"VAE": torch.randn(len(y), 2)}, data,
                SimpleNamespace(beta=1))
    save_grid(tmp_path / "grid.png", torch.zeros(len(y), 1, 8, 8), 1, classes)
    for name in ("grid", "map"):
        with Image.open(tmp_path / f"{name}.png") as image:
            assert image.width < 2000


def test_names_in_any_script_can_be_told_apart(tmp_path):
    """Not rows of the same boxes, which a font draws for a letter that it lacks."""
    pytest.importorskip("matplotlib")
    rows = []
    for name in ("кот", "пёс", "γάτα", "猫", "犬", "고양이"):
        save_grid(tmp_path / "grid.png", torch.ones(1, 1, 8, 8), 1, [name, ""])
        rows.append((tmp_path / "grid.png").read_bytes())
    assert len(set(rows)) == len(rows)


# ------------------------------------------------------------------------------- named data sets

def idx_file(x):
    """An array as a file of MNIST's format."""
    return bytes([0, 0, 8, x.ndim]) + np.array(x.shape, ">i4").tobytes() + x.tobytes()


def test_a_truncated_file_that_shadows_a_good_one_is_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", ["http://127.0.0.1:9/"])
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for split in ("train", "t10k"):
        for name, array in (("images-idx3", GREY), ("labels-idx1", LABELS.astype(np.uint8))):
            content = idx_file(array)
            (raw / f"{split}-{name}-ubyte.gz").write_bytes(gzip.compress(content))
            (raw / f"{split}-{name}-ubyte").write_bytes(content)
    for size in (0, 5, 500):
        (raw / "t10k-images-idx3-ubyte").write_bytes(idx_file(GREY)[:size])
        line = refusal(capsys, "MNIST", folder=tmp_path)
        assert f"{raw}/t10k-images-idx3-ubyte is damaged; delete the broken file" in line


def test_letters_stand_upright_and_begin_at_a(tmp_path):
    raw = tmp_path / "EMNIST" / "raw"
    raw.mkdir(parents=True)
    for split in ("train", "test"):
        for name, array in (("images-idx3", GREY), ("labels-idx1", LABELS.astype(np.uint8) + 1)):
            (raw / f"emnist-letters-{split}-{name}-ubyte").write_bytes(idx_file(array))
    data = load_data("EMNIST", tmp_path)
    assert torch.equal(data.x_train[:, 0], torch.from_numpy(GREY).mT)
    assert data.y_test.tolist() == LABELS.tolist()
    assert data.classes == list("abcdefghijklmnopqrstuvwxyz")


def test_street_view_house_numbers(tmp_path, monkeypatch):
    scipy_io = pytest.importorskip("scipy.io")
    x = np.random.default_rng(0).integers(0, 256, (32, 32, 3, 5), np.uint8)
    split_list = {}
    for split in ("train", "test"):
        name = f"{split}_32x32.mat"
        scipy_io.savemat(tmp_path / name, {"X": x, "y": np.array([[1], [2], [10], [9], [1]])})
        split_list[split] = ["http://127.0.0.1:9/", name, None]
    monkeypatch.setattr(torchvision.datasets.SVHN, "split_list", split_list)
    data = load_data("SVHN", tmp_path)
    assert torch.equal(data.x_train, torch.from_numpy(x).permute(3, 2, 0, 1))
    assert data.y_test.tolist() == [1, 2, 0, 9, 1] and data.classes == list("0123456789")


def test_cifar100(tmp_path, monkeypatch):
    x = np.random.default_rng(0).integers(0, 256, (5, 3072), np.uint8)
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    for name in ("train", "test"):
        (folder / name).write_bytes(pickle.dumps({"data": x, "fine_labels": [0, 1, 2, 3, 99]}))
    names = [f"c{i}" for i in range(100)]
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": names}))
    cifar = torchvision.datasets.CIFAR100
    monkeypatch.setattr(cifar, "train_list", [["train", None]])
    monkeypatch.setattr(cifar, "test_list", [["test", None]])
    monkeypatch.setattr(cifar, "meta", cifar.meta | {"md5": None})
    data = load_data("CIFAR100", tmp_path)
    assert torch.equal(data.x_test.flatten(1), torch.from_numpy(x))
    assert data.y_train.tolist() == [0, 1, 2, 3, 99] and data.classes == names


@pytest.mark.parametrize("name, place, file", [
    ("EMNIST", "EMNIST/raw", "gzip.zip"),
    ("SVHN", "", "test_32x32.mat"),
    ("CIFAR100", "", "cifar-100-python.tar.gz"),
])
def test_what_to_put_where(tmp_path, capsys, monkeypatch, name, place, file):
    def unreachable(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(getattr(torchvision.datasets, name), "download", unreachable)
    line = refusal(capsys, name, folder=tmp_path)
    assert f"in {tmp_path / place} " in line and file in line
