"""Every layout of data arrives as uint8 (N, C, H, W) with int64 labels, and nothing is lost."""
import gzip
import pickle

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from common import batches, load_data, resize


def shapes(data):
    assert data.x_train.dtype == data.x_test.dtype == torch.uint8
    assert data.y_train.dtype == data.y_test.dtype == torch.int64
    assert len(data.x_train) == len(data.y_train) and len(data.x_test) == len(data.y_test)
    assert data.x_train.shape[1:] == data.x_test.shape[1:]
    return len(data.x_train), len(data.x_test), *data.x_train.shape[1:]


def picture(file, color=(0, 0, 0), size=(8, 8), mode="RGB"):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, color).save(file)


def test_digits_need_no_download_and_look_like_mnist():
    data = load_data("digits")
    assert shapes(data) == (1500, 297, 1, 28, 28)
    assert data.classes == list("0123456789")
    assert data.x_train[:, :, :4].max() == 0 and data.x_train.max() == 255   # dark frame, white ink


def test_mnist_files_in_torchvisions_layout(tmp_path):
    raw = tmp_path / "KMNIST" / "raw"
    raw.mkdir(parents=True)
    x = np.random.default_rng(0).integers(0, 256, (6, 28, 28), np.uint8)
    for split in ("train", "t10k"):
        header = np.array([0x803, 6, 28, 28], ">i4").tobytes()
        (raw / f"{split}-images-idx3-ubyte").write_bytes(header + x.tobytes())
        (raw / f"{split}-labels-idx1-ubyte").write_bytes(
            np.array([0x801, 6], ">i4").tobytes() + bytes(range(6)))
    data = load_data("KMNIST", tmp_path)
    assert shapes(data) == (6, 6, 1, 28, 28)
    assert torch.equal(data.x_train[:, 0], torch.from_numpy(x))
    assert data.y_test.tolist() == [*range(6)]


def test_cifar10_files_in_torchvisions_layout(tmp_path, monkeypatch):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    x = np.random.default_rng(0).integers(0, 256, (5, 3072), np.uint8)
    for name in ("data_batch_1", "test_batch"):
        (folder / name).write_bytes(pickle.dumps({"data": x, "labels": [0, 1, 2, 3, 9]}))
    names = [f"c{i}" for i in range(10)]
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": names}))
    cifar = torchvision.datasets.CIFAR10   # the small files have other checksums than the real ones
    monkeypatch.setattr(cifar, "train_list", [["data_batch_1", None]])
    monkeypatch.setattr(cifar, "test_list", [["test_batch", None]])
    monkeypatch.setattr(cifar, "meta", cifar.meta | {"md5": None})
    data = load_data("CIFAR10", tmp_path)
    assert shapes(data) == (5, 5, 3, 32, 32) and data.classes[9] == "c9"
    assert torch.equal(data.x_test.flatten(1), torch.from_numpy(x))


def test_packed_files_put_there_by_hand_are_unpacked(tmp_path, monkeypatch):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    files = {"images-idx3-ubyte": np.array([0x803, 2, 28, 28], ">i4").tobytes() + bytes(2 * 784),
             "labels-idx1-ubyte": np.array([0x801, 2], ">i4").tobytes() + bytes([3, 4])}
    resources = []
    for split in ("train", "t10k"):
        for name, content in files.items():
            (raw / f"{split}-{name}.gz").write_bytes(gzip.compress(content))
            resources.append((f"{split}-{name}.gz", None))
    monkeypatch.setattr(torchvision.datasets.MNIST, "resources", resources)
    monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", ["http://127.0.0.1:9/"])   # nobody
    data = load_data("MNIST", tmp_path)
    assert shapes(data) == (2, 2, 1, 28, 28)
    assert data.classes == [*"0123456789"]   # torchvision's are "0 - zero" and so on


@pytest.mark.parametrize("layout", ["flat", "classes", "split", "split flat"])
def test_image_folders(tmp_path, layout):
    """Picture i is filled with i, so that order, split and label can be checked."""
    for i in range(20):
        part = ("train" if i < 15 else "test") if "split" in layout else ""
        kind = "" if "flat" in layout else ("cat", "dog")[i % 2]
        picture(tmp_path / part / kind / f"{i:02d}.png", (i, i, 255 - i))
    data = load_data(str(tmp_path))
    n_test = 5 if "split" in layout else 2
    assert shapes(data) == (20 - n_test, n_test, 3, 8, 8)
    filled = torch.cat([data.x_train[:, 0, 0, 0], data.x_test[:, 0, 0, 0]])
    assert sorted(filled.tolist()) == [*range(20)]
    if layout == "flat":
        assert data.x_test[:, 0, 0, 0].tolist() == [9, 19]   # every tenth
    if "flat" in layout:
        assert data.classes == []
    else:
        assert data.classes == ["cat", "dog"]
        assert torch.equal(torch.cat([data.y_train, data.y_test]), filled.long() % 2)


def test_one_colour_picture_makes_all_rgb_and_an_all_grey_folder_stays_grey(tmp_path):
    for i in range(10):
        picture(tmp_path / f"{i}.png", 7, mode="L")
    assert shapes(load_data(str(tmp_path))) == (9, 1, 1, 8, 8)
    picture(tmp_path / "5.png", (1, 2, 3))
    data = load_data(str(tmp_path))
    assert shapes(data) == (9, 1, 3, 8, 8)
    assert data.x_train[5, :, 0, 0].tolist() == [1, 2, 3]
    assert data.x_train[0, :, 0, 0].tolist() == [7, 7, 7]


def test_image_size_crops_the_centre_square(tmp_path):
    for i in range(10):
        image = Image.new("RGB", (24, 8), "red")
        image.paste("blue", (8, 0, 16, 8))   # the centre square
        image.save(tmp_path / f"{i}.png")
    data = load_data(str(tmp_path), image_size=4)
    assert shapes(data) == (9, 1, 3, 4, 4)
    assert (data.x_train[:, 2] == 255).all() and (data.x_train[:, 0] == 0).all()


def test_files_of_cameras_and_of_folders_that_were_looked_at(tmp_path):
    """Upper-case endings, turned pictures that say so, and hidden files."""
    for i in range(10):
        picture(tmp_path / f"{i}.PNG", mode="L", color=0)
    picture(tmp_path / ".hidden.png", mode="L", color=0, size=(9, 9))
    turned = Image.new("L", (8, 8))
    turned.paste(255, (0, 0, 4, 8))   # white at the left
    exif = turned.getexif()
    exif[0x0112] = 6                  # turn it to the right: white at the top
    turned.save(tmp_path / "0.PNG", exif=exif)
    data = load_data(str(tmp_path))
    assert shapes(data) == (9, 1, 1, 8, 8)
    assert (data.x_train[0, 0, :4] == 255).all() and not data.x_train[0, 0, 4:].any()


def test_image_size_is_that_of_training_and_test_and_antialiased():
    assert shapes(load_data("digits", image_size=32)) == (1500, 297, 1, 32, 32)
    lines = torch.zeros(1, 1, 32, 32, dtype=torch.uint8)
    lines[..., ::4] = 255   # a quarter is white: without a filter all of it, or nothing, would be
    assert (resize(lines, 8)[..., 1:-1].float() - 64).abs().max() < 20


@pytest.mark.parametrize("shape", [(8, 8), (8, 8, 1), (8, 8, 3), (6, 9, 3)])
@pytest.mark.parametrize("label_shape", [(-1,), (-1, 1)])
def test_npz(npz, shape, label_shape):
    x = np.random.default_rng(1).integers(0, 256, (20, *shape), np.uint8)
    labels = (np.arange(20) % 4).astype(np.uint8).reshape(label_shape)
    data = load_data(str(npz(x_train=x, x_test=x[:7], y_train=labels)))
    assert shapes(data) == (20, 7, *((1, *shape) if len(shape) == 2 else (shape[2], *shape[:2])))
    assert data.x_train[3].permute(1, 2, 0).reshape(shape).equal(torch.from_numpy(x[3]))
    assert data.y_train.tolist() == [i % 4 for i in range(20)] and data.classes == list("0123")


def test_npz_labels_may_have_names_or_be_left_out(npz):
    assert load_data(str(npz(classes=np.array([*"abcd"])))).classes == [*"abcd"]
    bare = load_data(str(npz(y_train=None, y_test=None)))
    assert bare.classes == [] and bare.y_train.eq(0).all()


def test_a_subset_is_the_same_for_every_seed_and_in_stored_order():
    torch.manual_seed(1)
    a = load_data("digits", train_size=100, test_size=10)
    torch.manual_seed(2)
    b = load_data("digits", train_size=100, test_size=10)
    assert torch.equal(a.x_train, b.x_train) and shapes(a)[:2] == (100, 10)
    whole = load_data("digits")
    found = [int((whole.x_train == x).flatten(1).all(1).nonzero()[0]) for x in a.x_train]
    assert found == sorted(found) and len({*found}) == 100
    assert torch.equal(a.y_train, whole.y_train[found])


def test_batches_see_every_image_once_and_keep_labels_with_images():
    x = torch.arange(10, dtype=torch.uint8).view(10, 1, 1, 1)
    torch.manual_seed(0)
    parts = list(batches(x, torch.arange(10), batch_size=4, shuffle=True))
    assert [len(part) for part, _ in parts] == [4, 4, 2]
    values, labels = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    torch.testing.assert_close(values.flatten() * 255, labels.float())
    assert labels.tolist() != [*range(10)] and labels.sort().values.tolist() == [*range(10)]
    in_order = batches(x, torch.arange(10), batch_size=4, shuffle=False)
    assert torch.cat([y for _, y in in_order]).tolist() == [*range(10)]


@pytest.mark.parametrize("name, expected", [
    ("MNIST", (60_000, 10_000, 1, 28, 28)), ("FashionMNIST", (60_000, 10_000, 1, 28, 28)),
    ("cifar10.npz", (25_000, 10_000, 3, 32, 32)), ("birds32", (5430, 603, 3, 32, 32))])
def test_real_data_where_it_is_at_hand(real, name, expected):
    folder = real(name)
    dataset = name if name.endswith("MNIST") else str(folder / name)
    assert shapes(load_data(dataset, folder)) == expected
