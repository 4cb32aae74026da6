"""Every layout of data arrives as uint8 (N, C, H, W) with int64 labels, and nothing is lost."""
import gzip
import pickle

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

import vae
from readers import READERS, load_data, resize


def check_layout(data, n_train, n_test, *shape):
    """The types of every data set, and the sizes of this one."""
    assert data.x_train.dtype == data.x_test.dtype == torch.uint8
    assert data.y_train.dtype == data.y_test.dtype == torch.int64
    assert data.x_train.shape == (n_train, *shape) and data.y_train.shape == (n_train,)
    assert data.x_test.shape == (n_test, *shape) and data.y_test.shape == (n_test,)


def save_image(file, colour, size=(8, 8), mode="RGB"):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(file)


def idx_files(x, y):
    """{end of a name: content} of the files that MNIST, Fashion-MNIST and KMNIST come in."""
    image_header = np.array([0x803, *x.shape], ">i4").tobytes()
    label_header = np.array([0x801, len(y)], ">i4").tobytes()
    return {"images-idx3-ubyte": image_header + x.tobytes(),
            "labels-idx1-ubyte": label_header + bytes(y)}


# --------------------------------------------------------------------------- named data sets

def test_digits_need_no_download_and_look_like_mnist():
    data = load_data("digits")
    check_layout(data, 1500, 297, 1, 28, 28)
    assert data.classes == list("0123456789")
    assert data.x_train[:, :, :4].max() == 0 and data.x_train.max() == 255   # dark frame, white ink
    assert 20 < data.x_train.float().mean() < 60                             # and not much of it
    assert data.y_train[:10].tolist() == list(range(10))


def test_idx_files_in_torchvisions_layout(tmp_path):
    x = np.random.default_rng(0).integers(0, 256, (6, 28, 28), np.uint8)
    raw = tmp_path / "KMNIST" / "raw"
    raw.mkdir(parents=True)
    for split in ("train", "t10k"):
        for name, content in idx_files(x, range(6)).items():
            (raw / f"{split}-{name}").write_bytes(content)
    data = load_data("KMNIST", tmp_path)
    check_layout(data, 6, 6, 1, 28, 28)
    assert torch.equal(data.x_train[:, 0], torch.from_numpy(x))
    assert data.y_test.tolist() == [0, 1, 2, 3, 4, 5]


def test_packed_idx_files_put_there_by_hand_are_unpacked(tmp_path, monkeypatch):
    x = np.zeros((2, 28, 28), np.uint8)
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    resources = []
    for split in ("train", "t10k"):
        for name, content in idx_files(x, [3, 4]).items():
            (raw / f"{split}-{name}.gz").write_bytes(gzip.compress(content))
            resources.append((f"{split}-{name}.gz", None))   # None: another checksum than MNIST's
    monkeypatch.setattr(torchvision.datasets.MNIST, "resources", resources)
    monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", ["http://127.0.0.1:9/"])   # nobody
    data = load_data("MNIST", tmp_path)
    check_layout(data, 2, 2, 1, 28, 28)
    assert data.y_train.tolist() == [3, 4]
    assert data.classes == list("0123456789")   # torchvision's are "0 - zero" and so on


def test_cifar10_files_in_torchvisions_layout(tmp_path, monkeypatch):
    x = np.random.default_rng(0).integers(0, 256, (5, 3072), np.uint8)
    names = [f"c{i}" for i in range(10)]
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in ("data_batch_1", "test_batch"):
        (folder / name).write_bytes(pickle.dumps({"data": x, "labels": [0, 1, 2, 3, 9]}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": names}))
    cifar = torchvision.datasets.CIFAR10   # the small files have other checksums than the real ones
    monkeypatch.setattr(cifar, "train_list", [["data_batch_1", None]])
    monkeypatch.setattr(cifar, "test_list", [["test_batch", None]])
    monkeypatch.setattr(cifar, "meta", cifar.meta | {"md5": None})
    data = load_data("CIFAR10", tmp_path)
    check_layout(data, 5, 5, 3, 32, 32)
    assert torch.equal(data.x_test.flatten(1), torch.from_numpy(x))   # red first, then green, blue
    assert data.y_train.tolist() == [0, 1, 2, 3, 9] and data.classes == names


def test_a_new_named_data_set_is_one_function_and_one_line(tmp_path, monkeypatch, capsys):
    def read_stripes(name, folder):
        x = torch.zeros(20, 1, 8, 8, dtype=torch.uint8)
        x[..., ::2] = 255
        return x, torch.zeros(20).long(), x, torch.zeros(20).long(), []

    monkeypatch.setitem(READERS, "stripes", read_stripes)
    _, rows = vae.main(dataset="stripes", epochs=1, hidden=4, out=tmp_path / "run", quiet=True)
    assert rows[0]["epoch"] == 1
    with pytest.raises(SystemExit):
        vae.main(["--help"])
    assert "stripes" in capsys.readouterr().out


@pytest.mark.parametrize("name, sizes", [
    ("MNIST", (60_000, 10_000, 1, 28, 28)),
    ("FashionMNIST", (60_000, 10_000, 1, 28, 28)),
    ("cifar10.npz", (25_000, 10_000, 3, 32, 32)),
    ("birds32", (5430, 603, 3, 32, 32)),
])
def test_real_data(real, name, sizes):
    folder = real(name)
    dataset = name if name in READERS else str(folder / name)
    check_layout(load_data(dataset, folder), *sizes)


# -------------------------------------------------------------------------------- image folders

@pytest.mark.parametrize("has_classes", [False, True])
@pytest.mark.parametrize("has_split", [False, True])
def test_image_folders(tmp_path, has_split, has_classes):
    """Image i is filled with i, so that order, split and label can be checked."""
    for i in range(20):
        folder = tmp_path
        if has_split:
            folder = folder / ("train" if i < 15 else "test")
        if has_classes:
            folder = folder / ("dog" if i % 2 else "cat")
        save_image(folder / f"{i:02d}.png", (i, i, 255 - i))
    data = load_data(str(tmp_path))
    n_test = 5 if has_split else 2
    check_layout(data, 20 - n_test, n_test, 3, 8, 8)

    filled = torch.cat([data.x_train[:, 0, 0, 0], data.x_test[:, 0, 0, 0]])
    assert sorted(filled.tolist()) == list(range(20))
    if not has_split and not has_classes:
        assert len(set(data.x_test[:, 0, 0, 0].tolist())) == 2
    labels = torch.cat([data.y_train, data.y_test])
    if has_classes:
        assert data.classes == ["cat", "dog"]
        assert torch.equal(labels, filled.long() % 2)
    else:
        assert data.classes == [] and labels.eq(0).all()


def test_one_colour_image_makes_all_rgb_and_an_all_grey_folder_stays_grey(tmp_path):
    for i in range(10):
        save_image(tmp_path / f"{i}.png", 7, mode="L")
    check_layout(load_data(str(tmp_path)), 9, 1, 1, 8, 8)
    save_image(tmp_path / "5.png", (1, 2, 3))
    data = load_data(str(tmp_path))
    check_layout(data, 9, 1, 3, 8, 8)
    colours = torch.cat([data.x_train, data.x_test])[:, :, 0, 0].tolist()
    assert sorted(colours) == [[1, 2, 3]] + [[7, 7, 7]] * 9


def test_upper_case_endings_turned_photographs_and_hidden_files(tmp_path):
    for i in range(10):
        save_image(tmp_path / f"{i}.PNG", 0, mode="L")
    save_image(tmp_path / ".hidden.png", 0, size=(9, 9), mode="L")
    turned = Image.new("L", (8, 8))
    turned.paste(255, (0, 0, 4, 8))   # white at the left
    exif = turned.getexif()
    exif[0x0112] = 6                  # says: turn it to the right, white to the top
    turned.save(tmp_path / "0.PNG", exif=exif)
    data = load_data(str(tmp_path))
    check_layout(data, 9, 1, 1, 8, 8)
    images = torch.cat([data.x_train, data.x_test])[:, 0]
    bright = images[images.flatten(1).amax(1) > 0]
    assert len(bright) == 1 and (bright[0, :4] == 255).all() and (bright[0, 4:] == 0).all()


# -------------------------------------------------------------------------------------- resizing

def test_image_size_crops_the_centre_square(tmp_path):
    for i in range(10):
        image = Image.new("RGB", (24, 8), "red")
        image.paste("blue", (8, 0, 16, 8))   # the centre square
        image.save(tmp_path / f"{i}.png")
    data = load_data(str(tmp_path), image_size=4)
    check_layout(data, 9, 1, 3, 4, 4)
    assert (data.x_train[:, 2] == 255).all() and (data.x_train[:, 0] == 0).all()


def test_image_size_is_that_of_training_and_test_and_antialiased():
    check_layout(load_data("digits", image_size=32), 1500, 297, 1, 32, 32)
    lines = torch.zeros(1, 1, 32, 32, dtype=torch.uint8)
    lines[..., ::4] = 255   # a quarter is white: without a filter all of it, or nothing, would be
    inner = resize(lines, 8)[..., 1:-1].float()
    assert (inner - 255 / 4).abs().max() < 20


# ------------------------------------------------------------------------------------------ npz

@pytest.mark.parametrize("shape, expected", [
    ((8, 8), (1, 8, 8)),
    ((8, 8, 1), (1, 8, 8)),
    ((8, 8, 3), (3, 8, 8)),
    ((6, 9, 3), (3, 6, 9)),
])
@pytest.mark.parametrize("label_shape", [(20,), (20, 1)])
def test_npz(npz, shape, expected, label_shape):
    x = np.random.default_rng(1).integers(0, 256, (20, *shape), np.uint8)
    labels = (np.arange(20) % 4).astype(np.uint8)
    data = load_data(str(npz(x_train=x, x_test=x[:7], y_train=labels.reshape(label_shape))))
    check_layout(data, 20, 7, *expected)
    back = data.x_train.permute(0, 2, 3, 1).reshape(x.shape)   # (N, C, H, W) -> as it was stored
    assert torch.equal(back, torch.from_numpy(x))
    assert data.y_train.tolist() == labels.tolist() and data.classes == list("0123")


def test_npz_labels_may_have_names_or_be_left_out(npz):
    assert load_data(str(npz(classes=np.array(list("abcd"))))).classes == list("abcd")
    bare = load_data(str(npz(y_train=None, y_test=None)))
    assert bare.classes == [] and bare.y_train.eq(0).all() and bare.y_test.eq(0).all()


# -------------------------------------------------------------------------------------- subsets

def test_a_subset_is_the_same_for_every_seed_and_in_stored_order():
    torch.manual_seed(1)
    first = load_data("digits", train_size=100, test_size=10)
    torch.manual_seed(2)
    again = load_data("digits", train_size=100, test_size=10)
    check_layout(first, 100, 10, 1, 28, 28)
    assert torch.equal(first.x_train, again.x_train)

    whole = load_data("digits")
    places = []
    for x in first.x_train:
        same = (whole.x_train == x).flatten(1).all(1)
        places.append(same.nonzero()[0].item())
    assert places == sorted(set(places)) and places != list(range(100))
    assert torch.equal(first.y_train, whole.y_train[places])
