"""Data that need not fit: image folders decoded once into a mapped file, arrays that are mapped,
and images that stay on the processor while the model is on another device. Each gives what the
plain way gives, to the last digit."""
import multiprocessing
import os
import re
import signal
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image

import common
import flow
import gan
import metrics
import readers
import vae
from common import Data, HostImages
from readers import load_data
from tools import large_data


def is_mapped(x):
    """Whether a tensor lies in a mapped file."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, end = (int(number, 16) for number in line.split()[0].split("-"))
        if start <= x.data_ptr() < end:
            return line.endswith(".npy") or line.endswith(".npz")
    return False


def read(path, tmp_path, **flags):
    """(data, what was said) of a data set; decoded images are kept in tmp_path / "cache"."""
    lines = []
    data = load_data(str(path), say=lines.append, cache=tmp_path / "cache", **flags)
    return data, "\n".join(lines)


def assert_same(data, other):
    for name in ("x_train", "y_train", "x_test", "y_test"):
        assert torch.equal(getattr(data, name), getattr(other, name)), name
    assert data.classes == other.classes


# ---------------------------------------------------------------------------------------- folders

@pytest.fixture
def folder(tmp_path):
    """40 images of two classes, one in colour, one damaged, and a file that is no image."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 9, 8), np.uint8)
    for i in range(40):
        file = tmp_path / "images" / "ab"[i % 2] / f"{i:02d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(pixels[i])
        image = image.convert("RGB") if i == 33 else image
        image.save(file)
    (tmp_path / "images" / "a" / "10.png").write_bytes(b"nothing")
    (tmp_path / "images" / "a" / "notes.txt").write_text("none")
    return tmp_path / "images"


def decode_once(monkeypatch):
    monkeypatch.setattr(readers, "DECODED_ONCE", 0)


@pytest.mark.parametrize("flags", [{}, {"image_size": 6}, {"train_size": 20, "test_size": 2}])
def test_a_folder_is_decoded_once(folder, tmp_path, monkeypatch, flags):
    plain, said = read(folder, tmp_path, skip_broken=True, **flags)
    assert "1 damaged (first: a/10.png)" in said and "notes.txt" in said and "no test part" in said
    assert not (tmp_path / "cache").exists()
    decode_once(monkeypatch)
    first, said_first = read(folder, tmp_path, skip_broken=True, **flags)
    monkeypatch.setattr(readers, "read_image", None)   # a call would fail
    second, said_second = read(folder, tmp_path, skip_broken=True, **flags)
    for data in (first, second):
        assert_same(plain, data)
    assert said == said_first == said_second
    if "train_size" not in flags:
        assert is_mapped(second.x_train) and is_mapped(second.x_test)
        assert not is_mapped(plain.x_train)


def test_a_folder_with_train_and_test_keeps_their_order(folder, tmp_path, monkeypatch):
    (folder / "a" / "10.png").unlink()
    folder.rename(tmp_path / "train")
    (tmp_path / "own").mkdir()
    (tmp_path / "train").rename(tmp_path / "own" / "train")
    for i in (0, 1):
        file = tmp_path / "own" / "test" / "ab"[i] / "0.png"
        file.parent.mkdir(parents=True)
        Image.new("L", (8, 9), 77 + i).save(file)
    plain, _ = read(tmp_path / "own", tmp_path)
    decode_once(monkeypatch)
    for _ in range(2):
        data, _ = read(tmp_path / "own", tmp_path)
        assert_same(plain, data)
    assert data.x_test[:, 0, 0, 0].tolist() == [77, 78]


def test_what_has_changed_is_decoded_again(folder, tmp_path, monkeypatch):
    decode_once(monkeypatch)
    read(folder, tmp_path, skip_broken=True)
    (old,) = (tmp_path / "cache").glob("*.npy")
    file = folder / "b" / "01.png"
    for change in ("content", "time", "name"):
        if change == "content":
            Image.new("L", (8, 9), 201).save(file)
        elif change == "time":
            os.utime(file, ns=(1, 1))
        else:
            file.rename(folder / "b" / "01b.png")
        data, _ = read(folder, tmp_path, skip_broken=True)
        (new,) = (tmp_path / "cache").glob("*.npy")    # and the old one is gone
        assert new != old
        old = new
    both = torch.cat([data.x_train, data.x_test])
    assert (both == 201).flatten(1).all(1).sum() == 1
    read(folder, tmp_path, skip_broken=True, image_size=4)
    assert len([*(tmp_path / "cache").glob("*.npy")]) == 2   # another size is kept beside


@pytest.mark.parametrize("content", [b"", b"half of a file"])
def test_a_kept_file_that_is_broken_is_made_again(folder, tmp_path, monkeypatch, content):
    decode_once(monkeypatch)
    data, _ = read(folder, tmp_path, skip_broken=True)
    (kept,) = (tmp_path / "cache").glob("*.npy")
    content = content or kept.read_bytes()[:1000]
    kept.unlink()   # it is mapped
    kept.write_bytes(content)
    kept.with_name(f"{kept.name.rpartition('-')[0]}.part").write_bytes(b"of a run that was killed")
    assert_same(data, read(folder, tmp_path, skip_broken=True)[0])
    names = sorted(file.suffix for file in (tmp_path / "cache").iterdir())
    assert names == [".lock", ".npy"]


def test_refusals_are_those_of_a_small_folder(folder, tmp_path, monkeypatch, capsys):
    lines = []
    for once in (2 ** 20, 0):
        monkeypatch.setattr(readers, "DECODED_ONCE", once)
        Image.new("L", (8, 9)).save(folder / "a" / "10.png")
        Image.new("L", (7, 7)).save(folder / "b" / "39.png")
        for content in (None, b"nothing"):
            if content is not None:
                (folder / "a" / "10.png").write_bytes(content)
            with pytest.raises(SystemExit) as stop:
                read(folder, tmp_path)
            assert stop.value.code == 2
        lines.append(capsys.readouterr().err)
    assert "39.png differs in size" in lines[0] and "10.png is not a complete image" in lines[0]
    assert lines[0] == lines[1]
    assert not [*(tmp_path / "cache").glob("*.npy")]


def test_without_a_cache_images_are_decoded_into_memory(folder, tmp_path, monkeypatch):
    plain, _ = read(folder, tmp_path, skip_broken=True)
    decode_once(monkeypatch)
    (tmp_path / "cache").write_text("a file in the place of the folder")
    data, said = read(folder, tmp_path, skip_broken=True)
    assert_same(plain, data)
    assert "cannot be written" in said and said.count("no test part") == 1


def decode_slowly(folder, cache, begun):
    """Decode a folder in a session of its own, and say when the first image is read."""
    os.setsid()
    read_image = readers.read_image

    def slow(*args):
        begun.set()
        time.sleep(0.05)
        return read_image(*args)

    readers.DECODED_ONCE, readers.read_image = 0, slow
    load_data(str(folder), skip_broken=True, cache=cache, say=print)


def test_a_kill_while_decoding_leaves_nothing_half(folder, tmp_path, monkeypatch):
    fork = multiprocessing.get_context("fork")
    begun = fork.Event()
    process = fork.Process(target=decode_slowly, args=(folder, tmp_path / "cache", begun))
    process.start()
    assert begun.wait(60)
    os.killpg(process.pid, signal.SIGKILL)   # and the processes that it has started
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert [file.suffix for file in (tmp_path / "cache").iterdir()] == [".lock"]
    decode_once(monkeypatch)
    assert len(read(folder, tmp_path, skip_broken=True)[0].x_train) == 36


# ------------------------------------------------------------------------------------- arrays

X = np.random.default_rng(1).integers(0, 256, (60, 8, 9, 3), np.uint8)
Y = np.arange(60) % 3


def save_arrays(tmp_path, kind, x, has_test):
    """The images and labels Y in a file, or in a folder of .npy files."""
    arrays = {"x_train": x, "y_train": Y}
    if has_test:
        arrays = {"x_train": x[:50], "y_train": Y[:50], "x_test": x[50:], "y_test": Y[50:]}
    if kind == "npy":
        (tmp_path / "own").mkdir()
        for name, array in arrays.items():
            np.save(tmp_path / "own" / f"{name}.npy", array)
        return tmp_path / "own"
    if kind == "fortran":
        arrays = {name: np.asfortranarray(array) for name, array in arrays.items()}
    save = np.savez_compressed if kind == "compressed" else np.savez
    save(tmp_path / "own.npz", **arrays)
    return tmp_path / "own.npz"


@pytest.mark.parametrize("has_test", [True, False])
@pytest.mark.parametrize("kind, x", [
    ("npz", X), ("npz", X[..., 0].copy()), ("npz", X.transpose(0, 3, 1, 2).copy()), ("npy", X),
    ("compressed", X), ("npz", X / 255), ("fortran", X),
])
def test_arrays_are_mapped_where_they_are_stored_as_they_are_used(tmp_path, monkeypatch, kind, x,
                                                                  has_test):
    file = save_arrays(tmp_path, kind, x, has_test)
    plain, said = read(file, tmp_path)
    assert not is_mapped(plain.x_train)
    monkeypatch.setattr(readers, "MAPPED_FROM", 0)
    for _ in range(2):
        data, said_now = read(file, tmp_path)
        assert_same(plain, data)
        assert said in said_now
    as_used = kind in ("npz", "npy") and x.dtype == np.uint8
    assert is_mapped(data.x_train) == is_mapped(data.x_test) == as_used


def test_a_mapped_array_is_checked_and_never_written_to(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(readers, "MAPPED_FROM", 0)
    file = save_arrays(tmp_path, "npz", X, True)
    content = file.read_bytes()
    data, _ = read(file, tmp_path)
    data.x_train.zero_()
    assert file.read_bytes() == content
    damaged = bytearray(content)
    damaged[content.index(X[3].tobytes())] ^= 1
    assert zlib.crc32(damaged) != zlib.crc32(content)
    file.unlink()   # it is mapped
    file.write_bytes(damaged)
    with pytest.raises(SystemExit):
        read(file, tmp_path)
    assert "CRC" in capsys.readouterr().err


def test_more_images_than_memory_can_be_mapped(tmp_path):
    """A file with a hole: as long as four times the memory, of which it takes nothing."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    n = 4 * memory // (64 * 64 * 3)
    file = tmp_path / "huge.npy"
    with open(file, "wb") as huge:
        header = {"descr": "|u1", "fortran_order": False, "shape": (n, 64, 64, 3)}
        np.lib.format.write_array_header_1_0(huge, header)
        try:
            huge.truncate(huge.tell() + n * 64 * 64 * 3)
        except OSError:
            pytest.skip("no file of this size here")
    with open(file, "rb") as huge:
        x = readers.as_tensor(readers.map_images(huge)).permute(0, 3, 1, 2)
    before = large_data.anonymous_memory()
    images = x.index_select(0, torch.randint(n, (64,)))
    assert images.shape == (64, 3, 64, 64) and images.max() == 0
    assert large_data.anonymous_memory() - before < 100


def test_reading_mapped_images_copies_none_of_them(tmp_path, monkeypatch):
    """246 MB of black images; a copy of all of them, however short, would be seen."""
    monkeypatch.setattr(readers, "MAPPED_FROM", 0)
    for name, n in (("x_train", 20_000), ("x_test", 10)):
        images = np.lib.format.open_memmap(tmp_path / f"{name}.npy", "w+", np.uint8,
                                           (n, 64, 64, 3))
        images[0] = 255
    memory = large_data.AnonymousMemory()
    before = large_data.anonymous_memory()
    memory.start()
    data, _ = read(tmp_path, tmp_path)
    assert is_mapped(data.x_train) and data.x_train.shape == (20_000, 3, 64, 64)
    assert memory.peak - before < 100


# ------------------------------------------------------------- images here, the model elsewhere

@pytest.fixture
def on_host(monkeypatch):
    """A function after which all images stay on the processor, as if the device were another."""
    def wrapped(x_train, x_test, device, data_on):
        return HostImages(x_train, device), HostImages(x_test, device)
    return lambda: monkeypatch.setattr(readers, "place_images", wrapped)


def without_seconds(rows):
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


@pytest.mark.parametrize("script, flags", [
    (vae, {"epochs": 1, "binarize": "dynamic"}),
    (vae, {"epochs": 1, "binarize": "threshold", "rotate": 20.0}),
    (gan, {"iterations": 2, "critic_steps": 1, "width": 4, "eval_every": 0, "batch_size": 16}),
    (flow, {"epochs": 1, "hidden": 4, "couplings": 2, "train_size": 200, "test_size": 20}),
])
def test_training_is_the_same_from_the_host(tmp_path, on_host, capsys, no_plots, script, flags):
    flags = {"dataset": "digits", "device": "cpu"} | flags
    if script is vae:
        flags |= {"hidden": 8, "latent": 2, "train_size": 300, "test_size": 50}
    _, rows = script.main(out=tmp_path / "plain", **flags)
    assert "the images on cpu" not in capsys.readouterr().out
    on_host()
    _, again = script.main(out=tmp_path / "host", **flags)
    assert without_seconds(again) == without_seconds(rows)
    assert "on cpu, the images on cpu" in capsys.readouterr().out


def test_a_classifier_is_trained_the_same_from_the_host(tmp_path, on_host, monkeypatch):
    monkeypatch.setattr(metrics, "IMAGES", 300)
    weights = []
    for place in (lambda: None, on_host):
        place()
        data = load_data("digits", train_size=300, test_size=50)
        network = metrics.trained_classifier(data, tmp_path / str(len(weights)), quiet=True)
        weights.append(torch.cat([p.flatten() for p in network.parameters()]))
        images = next(metrics.image_batches(data.x_test, 20))
        assert images.shape == (20, 1, 28, 28)
    assert isinstance(data.x_train, HostImages) and torch.equal(*weights)


def test_images_go_to_a_device_where_half_its_free_memory_holds_them(monkeypatch):
    x = torch.zeros(100, 1, 8, 8, dtype=torch.uint8)   # 6,400 bytes, twice
    meta, cuda = torch.device("meta"), torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (25_599, 10 ** 9))
    stay, _ = readers.place_images(x, x, cuda, None)
    assert isinstance(stay, HostImages) and stay.device == cuda and stay.images is x
    assert readers.fits(12_799, cuda) and not readers.fits(12_800, cuda)

    moved, _ = readers.place_images(x, x, meta, None)    # of other devices nothing is known
    assert moved.device == meta
    forced, _ = readers.place_images(x, x, meta, "cpu")
    assert isinstance(forced, HostImages) and forced[[3, 5]].device == meta
    assert readers.place_images(x, x, torch.device("cpu"), "cpu")[0] is x   # nothing to move


def test_images_in_parts(monkeypatch):
    """What is made part by part is what would be made at once."""
    x = torch.randint(0, 256, (70, 3, 8, 6), dtype=torch.uint8)
    flipped = x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)   # as an .npz has them
    y = torch.zeros(70, dtype=torch.long)
    data = Data("own", x, y, x, y, [])
    args = vae.flags().parse_args(["--binarize=dynamic"])
    whole = common.binarize(data, args).x_test
    monkeypatch.setattr(common, "PIXELS_AT_A_TIME", 1000)
    assert torch.equal(common.binarize(data, args).x_test, whole)
    other = common.binarize(data._replace(x_test=flipped), args).x_test
    assert torch.equal(other, whole)
    args.binarize = "threshold"
    assert torch.equal(common.binarize(data, args).x_train, (x >= 128).byte() * 255)


def test_the_measurement_of_large_data(folder, tmp_path, monkeypatch, capsys):
    def time_here(loop, args):
        args.loop = loop
        with monkeypatch.context() as patch:   # for what it replaces itself
            patch.setattr(readers, "MAPPED_FROM", readers.MAPPED_FROM)
            patch.setattr(vae, "batches", vae.batches)
            patch.setattr(vae, "train_epoch", vae.train_epoch)
            result = large_data.time_loop(args)
        args.loop = None
        return result

    monkeypatch.setattr(large_data, "time_in_process", time_here)
    monkeypatch.setattr(large_data, "TEST_IMAGES", 20)
    decode_once(monkeypatch)
    (folder / "a" / "10.png").unlink()
    found = large_data.main([str(tmp_path), "--images", "1000", "--steps", "2",
                             "--folder", str(folder)])
    mapped, memory = (found["loops"][loop][0] for loop in large_data.LOOPS)
    assert mapped["loss"] == memory["loss"] and mapped["speed"] > 0
    assert mapped["peak"] > mapped["imported"] > 0
    assert found["decoding"]["images"] == 39 and found["decoding"]["second start"] < 5
    printed = capsys.readouterr().out
    assert "| mapped |" in printed and "39 image files" in printed


def test_the_page_has_the_recorded_numbers():
    """Images per second and MB of memory."""
    page = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    table = (ROOT / "results" / "runs" / "large-data" / "table.txt").read_text(encoding="utf-8")
    paragraph = page.partition("[Measured]")[2].partition("\n\n")[0]
    numbers = re.findall(r"[\d,]*\d{3}", paragraph)
    assert len(numbers) == 7 and set(numbers) <= set(re.findall(r"[\d,]+\d", table))


def test_images_are_moved_to_the_device_where_data_on_says_so(monkeypatch):
    """Also where they do not seem to fit; "cpu" keeps them even where they do."""
    x = torch.zeros(3, 1, 2, 2, dtype=torch.uint8)
    monkeypatch.setattr(readers, "fits", lambda n_bytes, device: False)
    meta = torch.device("meta")
    on_device, _ = readers.place_images(x, x, meta, "device")
    on_host, _ = readers.place_images(x, x, meta, None)
    assert on_device.device == meta and isinstance(on_host, HostImages)
    monkeypatch.setattr(readers, "fits", lambda n_bytes, device: True)
    on_device, _ = readers.place_images(x, x, meta, None)
    on_host, _ = readers.place_images(x, x, meta, "cpu")
    assert on_device.device == meta and isinstance(on_host, HostImages)
