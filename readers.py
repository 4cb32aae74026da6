"""Reading data sets: named ones, image folders and files of arrays. Skip this file until data of
your own are refused.

load_data returns a Data (common.py). Whatever cannot be used ends the program with one line that
says what was found and how to mend it; what was converted or left out is said in a line, too.
"""
import contextlib
import hashlib
import io
import json
import math
import os
import socket
import struct
import tempfile
import warnings
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional as F

from common import (
    Condition,
    Data,
    HostImages,
    describe,
    encode_values,
    fail,
    printable,
    safe_name,
    shortened,
    tell,
    vectors,
    watched,
)


def load_data(name, folder="data", device="cpu", image_size=None, train_size=None, test_size=None,
              skip_broken=False, background="white", rotate=None, condition="label", say=tell,
              data_on=None, cache="results/cache"):
    """Read a data set by name or path, resize it, take subsets and turn the images.

    name: a key of READERS, an image folder or an .npz file; folder: where the named ones lie.
    Where a folder or file has no test part, a tenth of it becomes that (split_off_test); the first
    edition took every tenth of the sorted files, so its runs had another split. What was converted
    or left out is handed to `say`, a line each. Ends the program with one line if the data cannot
    be used. skip_broken: leave out damaged images of a folder; background: the colour on which its
    transparent images are put, white or black. rotate: turn each image by an angle of its own, of
    up to as many degrees. condition: what a conditional model is told: the label, the angle (that
    is, all conditions that the images come with), both, none; None: all there is. data_on: "cpu"
    lets the images stay there, "device" moves all of them; None: as they fit. cache: the folder
    for decoded images.
    """
    if not str(name).strip():
        fail("--dataset is empty; give the name of a data set, or a path")
    if not str(folder).strip():
        fail("--data is empty; give a folder")
    path = Path(os.path.expanduser(name))
    folder = os.path.expanduser(folder)
    notes = []   # said at the end: a refusal is one line

    if name in READERS:
        try:
            x_train, y_train, x_test, y_test, classes = READERS[name](name, folder)
        except NotAvailable as error:
            fail(str(error))
        values_train, values_test = torch.empty(len(x_train), 0), torch.empty(len(x_test), 0)
        conditions = []
    else:
        options = FolderOptions(image_size, skip_broken, background)
        parts = read_path(path, options, cache, notes, say)
        x_train, y_train, x_test, y_test, classes = arrange(f"--dataset {path}", parts, notes)
        values_train, values_test = parts.values[~parts.is_test], parts.values[parts.is_test]
        conditions = describe(parts.value_names, values_train)
    if rotate is not None:
        values_train = add_angles(values_train, rotate, seed=20)
        values_test = add_angles(values_test, rotate, seed=21)
        conditions.append(Condition("angle", "angle", -rotate, rotate))

    keep = random_subset(len(x_train), train_size, "--train-size")
    x_train, y_train, values_train = x_train[keep], y_train[keep], values_train[keep]
    keep = random_subset(len(x_test), test_size, "--test-size")
    x_test, y_test, values_test = x_test[keep], y_test[keep], values_test[keep]
    x_train, x_test = resize(x_train, image_size), resize(x_test, image_size)
    if rotate is not None:
        x_train, x_test = turn(x_train, values_train[:, -1]), turn(x_test, values_test[:, -1])
    for note in notes:
        say(printable(f"--dataset {path}: {note}"))

    name = path.name if os.path.isdir(path) else path.stem
    x_train, x_test = place_images(x_train, x_test, torch.device(device), data_on)
    data = Data(printable(name), x_train, y_train.to(device), x_test, y_test.to(device), classes)
    if condition in ("label", "none"):
        conditions = []
    if condition == "label" or (condition in (None, "both") and not conditions):
        return data
    n_labels = len(classes) if condition in (None, "both") else 0
    v_train = vectors(y_train, n_labels, encode_values(values_train, conditions))
    v_test = vectors(y_test, n_labels, encode_values(values_test, conditions))
    return data._replace(v_train=v_train.to(device), v_test=v_test.to(device),
                         conditions=tuple(conditions))


def read_path(path, options, cache, notes, say):
    """The Parts of an image folder, of an .npz file or of a folder of .npy files."""
    if os.path.isfile(path / "x_train.npy"):
        return read_arrays(path, cache, notes, say)
    if os.path.isdir(path):
        return read_folder(path, options, cache, notes, say)
    if os.path.isfile(path) and path.suffix.lower() in (".npz", ".npy"):
        return read_arrays(path, cache, notes, say)
    fail(f"--dataset {path} was not found; use {', '.join(READERS)}, the path of an image folder "
         "or of an .npz file")


def place_images(x_train, x_test, device, data_on):
    """Both on the device or, if they do not fit there or data_on is "cpu", both as HostImages."""
    if device.type == "cpu":
        return x_train, x_test
    stay = data_on == "cpu"
    if data_on is None:
        stay = not fits(x_train.numel() + x_test.numel(), device)
    if stay:
        return HostImages(x_train, device), HostImages(x_test, device)
    return x_train.to(device), x_test.to(device)


def fits(n_bytes, device):
    """Whether images may take so many bytes of a device: half of what is free there, because
    training takes some, too."""
    if device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    return n_bytes <= free / 2


def random_subset(n, size, flag):
    """Which `size` of n images to keep, in their order; all of them if size is None."""
    if size is None:
        return slice(None)
    if size > n:
        fail(f"{flag} {size}: there are only {n} images")
    generator = torch.Generator().manual_seed(0)   # every --seed trains on the same images
    return torch.randperm(n, generator=generator)[:size].sort().values


def add_angles(values, degrees, seed):
    """Values of conditions (N, n), and an angle for each image, uniform within -degrees and
    degrees: (N, n + 1). Always the same, whatever --seed is."""
    generator = torch.Generator().manual_seed(seed)
    share = torch.rand(len(values), generator=generator, dtype=torch.float64)   # of the range
    return torch.cat([values, ((2 * share - 1) * degrees)[:, None]], dim=1)


def turn(x, angles):
    """Turn images, uint8 (N, C, H, W), by angles in degrees (N,), to the left where they are
    positive. The same as torchvision's rotate with bilinear interpolation, image by image, and many
    times as fast."""
    height, width = x.shape[2:]
    turned = torch.empty_like(x)
    for part in torch.arange(len(x)).split(1000):
        angle = torch.deg2rad(angles[part]).float()
        cos, sin, zero = torch.cos(angle), torch.sin(angle), torch.zeros(len(part))
        # Where each pixel comes from: positions run from -1 to 1 along both sides.
        to_source = torch.stack([cos, -sin * height / width, zero,
                                 sin * width / height, cos, zero], dim=1).view(-1, 2, 3)
        grid = F.affine_grid(to_source, list(x[part].shape), align_corners=False)
        images = F.grid_sample(x[part].float(), grid, "bilinear", align_corners=False)
        turned[part] = images.round().byte()
    return turned


# Named data sets

def read_digits(name, folder):
    """scikit-learn's 1,797 handwritten digits, 8x8 in 17 greys, enlarged and framed like MNIST's.

    Nothing is downloaded. The first 1,500 are for training, 297 for testing.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        fail("--dataset digits needs scikit-learn; pip install scikit-learn, or use another")
    x, y = load_digits(return_X_y=True)
    x = torch.from_numpy(x).float().view(-1, 1, 8, 8) / 16
    x = F.interpolate(x, size=20, mode="bicubic").clamp(0, 1)     # (1797, 1, 20, 20)
    x = F.pad(x, (4, 4, 4, 4)).mul(255).round().byte()            # (1797, 1, 28, 28)
    y = torch.from_numpy(y).long()
    classes = [str(digit) for digit in range(10)]
    return x[:1500], y[:1500], x[1500:], y[1500:], classes


def read_torchvision(name, folder):
    """MNIST, its relatives and CIFAR by torchvision."""
    train, test = open_torchvision(name, folder, {"train": True}, {"train": False})
    x_train, y_train = channels_first(train.data), torch.as_tensor(train.targets)
    x_test, y_test = channels_first(test.data), torch.as_tensor(test.targets)
    classes = [label.split(" - ")[0] for label in train.classes]   # MNIST has "0 - zero"
    return x_train, y_train, x_test, y_test, classes


def read_letters(name, folder):
    """EMNIST's letters, a to z, large and small ones as one class."""
    train, test = open_torchvision(name, folder, {"split": "letters", "train": True},
                                   {"split": "letters", "train": False})
    x_train, y_train = channels_first(train.data.mT), train.targets - 1   # lying, numbered from 1
    x_test, y_test = channels_first(test.data.mT), test.targets - 1
    return x_train, y_train, x_test, y_test, train.classes[1:]


def read_svhn(name, folder):
    """Street View House Numbers: digits in colour, 32x32."""
    train, test = open_torchvision(name, folder, {"split": "train"}, {"split": "test"})
    classes = [str(digit) for digit in range(10)]
    return (torch.tensor(train.data), torch.tensor(train.labels),
            torch.tensor(test.data), torch.tensor(test.labels), classes)


class NotAvailable(Exception):
    """A named data set is not complete on disk, and cannot be downloaded."""


def open_torchvision(name, folder, train_flags, test_flags):
    """Training and test part of a torchvision data set, downloaded if `folder` lacks it; gives up
    after 10 s of silence. Raises NotAvailable."""
    from torchvision import datasets
    dataset = getattr(datasets, name)
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(10)
    try:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            train = dataset(folder, download=True, **train_flags)
            test = dataset(folder, download=True, **test_flags)
    except Exception as error:   # a damaged file can raise anything
        place, files = files_of(name, dataset, folder)
        for file in sorted(place.glob("*-ubyte")):
            if not is_whole_idx(file):   # torchvision would not unpack a good .gz over it
                raise NotAvailable(
                    f"--dataset {name}: {file} is damaged; delete the broken file, and put "
                    f"{', '.join(files)} into {place} if it is not there") from None
        raise NotAvailable(
            f"--dataset {name} is not complete in {place} and could not be downloaded ({error}); "
            f"put {', '.join(files)} there, or use --dataset digits") from None
    finally:
        socket.setdefaulttimeout(timeout)
    return train, test


def files_of(name, dataset, folder):
    """Where a torchvision data set lies, and what it is downloaded as."""
    if name == "SVHN":
        return Path(folder), [dataset.split_list[split][1] for split in ("train", "test")]
    if name == "EMNIST":
        return Path(folder, name, "raw"), [Path(dataset.url).name]
    if hasattr(dataset, "filename"):   # CIFAR is one file
        return Path(folder), [dataset.filename]
    return Path(folder, name, "raw"), [file for file, _ in dataset.resources]


def is_at_hand(name, folder):
    """Whether a data set, by name or path, can be read without a download."""
    if name == "digits" or name not in READERS:
        return name == "digits" or os.path.exists(os.path.expanduser(name))
    from torchvision import datasets
    dataset = getattr(datasets, name)
    place, files = files_of(name, dataset, os.path.expanduser(folder))
    if hasattr(dataset, "base_folder") and (place / dataset.base_folder).is_dir():   # CIFAR
        return True
    for file in files:   # as it was downloaded, or unpacked
        if not (place / file).exists() and not (place / file).with_suffix("").exists():
            return False
    return True


def is_whole_idx(file):
    """Whether a file of MNIST's format has the size that its header says."""
    header = file.read_bytes()[:16]
    if len(header) < 8:
        return False
    n_dimensions = header[3]
    sizes = np.frombuffer(header[4:4 + 4 * n_dimensions], ">u4").astype(object)
    return file.stat().st_size == 4 + 4 * n_dimensions + math.prod(sizes)


# A new data set is one function (name, folder) -> x_train, y_train, x_test, y_test, classes, with
# images uint8 (N, C, H, W) and labels int64 (N,), and one line here.
READERS = {
    "digits": read_digits,
    "MNIST": read_torchvision,
    "FashionMNIST": read_torchvision,
    "KMNIST": read_torchvision,
    "EMNIST": read_letters,
    "CIFAR10": read_torchvision,
    "CIFAR100": read_torchvision,
    "SVHN": read_svhn,
}


# What folders and files have in common

class Parts(NamedTuple):
    """What a folder or file holds. All but the images is of both parts, in the file's order."""
    x_train: torch.Tensor                 # uint8 (N, C, H, W)
    x_test: torch.Tensor
    y: torch.Tensor                       # int64 (N,); zeros if there are no labels
    names: list | None                    # of the labels; None if they have none; empty: no labels
    is_test: torch.Tensor                 # bool (N,)
    values: torch.Tensor                  # of conditions, double (N, n)
    value_names: tuple = ()


def arrange(place, parts, notes):
    """The Parts of the data at `place` -> x_train, y_train, x_test, y_test, classes."""
    x_train, x_test, names = parts.x_train, parts.x_test, parts.names
    y_train, y_test = parts.y[~parts.is_test], parts.y[parts.is_test]

    if brightest(x_train) == 1:   # masks: grey level 1 of 255 would be nearly black
        if brightest(x_test) > 1:
            fail(f"{place}: training pixels end at 1, test pixels at {brightest(x_test)}; multiply "
                 "the training images by 255")
        notes.append("pixels are 0 and 1; multiplied by 255")
        x_train, x_test = x_train * 255, x_test * 255

    if names == []:
        return x_train, y_train, x_test, y_test, []
    trained = y_train.unique()   # sorted
    untrained = y_test[~torch.isin(y_test, trained)]
    if len(untrained) > 0:
        label = untrained[0].item()
        shown = label if names is None else names[label]
        fail(f"{place}: class {shown} has test images, but none for training; add some, or remove "
             "it from the test part")
    classes = number_classes(trained, names, notes)
    y_train, y_test = torch.searchsorted(trained, y_train), torch.searchsorted(trained, y_test)
    return x_train, y_train, x_test, y_test, classes


def brightest(x):
    """The greatest of all pixels, part by part: max() first copies images with channels last."""
    return max(part.max().item() for part in x.split(1000))


def find_test(is_test, y, place, notes):
    """Which images of labels y (N,) are for testing: is_test or, if it is None, a tenth."""
    if is_test is not None:
        return is_test
    is_test = split_off_test(y, place)
    notes.append(f"no test part; {int(is_test.sum())} of {len(is_test)} images are that, a tenth "
                 "of each class, drawn at random and always the same")
    return is_test


def split_off_test(y, place):
    """Which images of labels y (N,) are for testing: a tenth of each class, always the same.

    Every tenth of the images in random order, sorted by class; a class of one image is trained.
    """
    if len(y) < 10:
        fail(f"{place}: {len(y)} images are too few; a test set needs 10")
    generator = torch.Generator().manual_seed(10)   # not the one of --seed
    shuffled = torch.randperm(len(y), generator=generator)
    by_class = shuffled[y[shuffled].argsort(stable=True)]
    tenth = by_class[9::10]
    _, class_of, sizes = y.unique(return_inverse=True, return_counts=True)
    is_test = torch.zeros(len(y), dtype=torch.bool)
    is_test[tenth] = sizes[class_of[tenth]] > 1
    if not is_test.any():
        fail(f"{place} has one image per class; a test set needs two of a class")
    return is_test


def number_classes(trained, names, notes):
    """Names of the classes 0, 1 ... that stand for the labels `trained`; names: of all labels."""
    if names is None:
        classes = [str(label) for label in trained.tolist()]
        if trained[-1] != len(trained) - 1:
            notes.append(f"labels {listing(classes)} are numbered from 0; their names stay")
        return classes
    missing = []
    for label, name in enumerate(names):
        if label not in trained:
            missing.append(name)
    if missing:
        notes.append(f"no images of {listing(missing)}; left out as a class")
    return [printable(names[label]) for label in trained.tolist()]


def listing(names):
    """The first few of many names, for a line."""
    shown = [shortened(name) for name in names[:5]]
    return ", ".join(shown) + (f" ... ({len(names)})" if len(names) > 5 else "")


# Files of arrays

# Images and labels by the names that Keras, scikit-learn, MedMNIST and people give them.
TRAIN_KEYS = {"x_train": "y_train", "X_train": "y_train", "train_images": "train_labels",
              "images": "labels", "X": "y", "x": "y", "data": "labels"}
TEST_KEYS = {"x_test": "y_test", "X_test": "y_test", "test_images": "test_labels",
             "x_val": "y_val", "X_val": "y_val", "val_images": "val_labels"}


def read_arrays(path, cache, notes, say):
    """Images (N, H, W), (N, H, W, C) or (N, C, H, W) with or without labels under TRAIN_KEYS and
    TEST_KEYS; `classes`, the names of the labels, optional; conditions (see read_conditions). An
    .npy file holds images only; a folder has an .npy file for each name. cache: the folder for
    large files without a test part, whose images are brought into order there."""
    arrays = load_arrays(path, notes)
    found = [f"{key} {array.dtype} {array.shape}" for key, array in arrays.items()]
    found = f"--dataset {path} holds {', '.join(found) or 'no known names'}"

    train, test = find_key(arrays, TRAIN_KEYS), find_key(arrays, TEST_KEYS)
    if train is None or (test is None and "y_test" in arrays):
        fail(f"{found}; images belong in x_train and x_test, labels in y_train and y_test")
    keys = [train] if test is None else [train, test]
    if test is not None and "val" in test:
        notes.append(f"no test part; {test} is that")
    check_alike(arrays, keys, found)
    images = as_images(arrays, keys, found, notes)
    n = sum(len(arrays[key]) for key in keys)
    is_test = None
    if test is not None:
        is_test = torch.arange(n) >= len(arrays[train])
    sizes = [len(arrays[key]) for key in keys]
    values, value_names = read_conditions(arrays, sizes, found)
    if value_names:
        notes.append(f"conditions are {listing(value_names)}")

    label_keys = [(TRAIN_KEYS | TEST_KEYS)[key] for key in keys]
    if not any(key in arrays for key in label_keys):
        y, names = torch.zeros(n, dtype=torch.long), []
    else:
        y, names = read_labels(arrays, keys, label_keys, found, path, notes)
    is_test = find_test(is_test, y, f"--dataset {path}", notes)
    if len(images) == 1 and isinstance(arrays[train], np.memmap):
        images = train_first(images[0], is_test, path, cache, notes, say)
    elif len(images) == 1:
        images = images[0][~is_test], images[0][is_test]
    return Parts(*images, y, names, is_test, values, value_names)


def as_images(arrays, keys, found, notes):
    """The images of a file, uint8 (N, C, H, W): [training, test]; [all] where there is no test
    part, or where they must be converted, which goes by the pixels of all."""
    parts = [arrays[key] for key in keys]
    if any(part.dtype != np.uint8 for part in parts):
        parts = [np.concatenate(parts)]
    images = []
    for part in parts:
        said = notes if not images else []   # of the training images only
        images.append(to_uint8(to_layout(part, found, said), keys[0], found, said))
    return images


def train_first(x, is_test, path, cache, notes, say):
    """x_train, x_test of all images x of a mapped file: they are written in this order, once, into
    the folder `cache`, so that both parts can be mapped, too."""
    file = path / "x_train.npy" if path.is_dir() else path
    status = file.stat()
    try:
        with kept_images(cache, path, (), f"{status.st_size} {status.st_mtime_ns}") as file:
            kept = load_kept(file)
            if kept is None:
                say(printable(f"--dataset {path}: bringing the training images to the front, once, "
                              f"in {file.parent}"))
                kept = keep_images(file, x, in_parts(is_test), {})
    except OSError as error:
        notes.append(not_kept(cache, error))
        return x[~is_test], x[is_test]
    x, _ = kept
    n = int((~is_test).sum())
    return x[:n], x[n:]


def in_parts(is_test):
    """The rows of the training images, and then those of the test images, (N,)."""
    return torch.cat([(~is_test).nonzero()[:, 0], is_test.nonzero()[:, 0]])


def read_labels(arrays, keys, label_keys, found, path, notes):
    """The labels of training and test images, int64 (N,), and the names of the classes or None."""
    for image_key, key in zip(keys, label_keys, strict=True):
        if key not in arrays or arrays[key].shape[:1] != arrays[image_key].shape[:1]:
            fail(f"{found}; y_train and y_test must be whole numbers (N,), one for each image")
        if arrays[key].ndim == 2 and arrays[key].shape[1] == 1:
            arrays[key] = arrays[key][:, 0]
    names = None
    if "classes" in arrays:
        names = [as_text(name) for name in arrays["classes"].flat]
    check_alike(arrays, label_keys, found)
    y = np.concatenate([arrays[key] for key in label_keys])
    y, names = to_labels(y, names, found, notes)
    check_names(y, names, path)
    return y, names


def read_conditions(arrays, sizes, found):
    """c_train and c_test, numbers (N, n) or (N,), a row for each image -> values (N, n), names.

    sizes: how many images there are, [training, test]; only [all] where there is no test part, and
    then c_train is of all. `conditions`, optional, has their names. Without conditions n is 0.
    """
    keys = ["c_train", "c_test"][:len(sizes)]
    given = [key for key in ("c_train", "c_test") if key in arrays]
    if not given:
        return torch.empty(sum(sizes), 0), ()
    must = f"{' and '.join(keys)} must be numbers (N, n), a row for each image"
    if given != keys:
        fail(f"{found}; {must}; add what is missing, or remove {', '.join(given)}")
    parts = []
    for key, size in zip(keys, sizes, strict=True):
        part = arrays[key]
        if part.ndim == 1:
            part = part[:, None]
        if part.ndim != 2 or part.shape[1] == 0 or part.dtype.kind not in "biuf":
            fail(f"{found}; {must}")
        if len(part) != size:
            fail(f"{found}; {must}; {key} has {len(part)} rows for {size} images")
        if not np.isfinite(part).all():
            fail(f"{found}; {key} has values that are not finite; repair or remove those images")
        parts.append(torch.from_numpy(part.astype(np.float64)))
    n = parts[0].shape[1]
    if parts[-1].shape[1] != n:
        fail(f"{found}; c_train and c_test must agree in all but N")
    names = [f"c{i + 1}" for i in range(n)]
    if "conditions" in arrays:
        names = [printable(as_text(name)) for name in arrays["conditions"].flat]
    if len(names) != n or len(set(names)) != n:
        fail(f"{found}; `conditions` must have {n} different names, one for each column of c_train")
    return torch.cat(parts), tuple(names)


def load_arrays(path, notes):
    """{name: array} of images, labels, conditions and names; nothing else in the file is read.
    Large arrays of images are mapped if they are stored as they are used: uint8, uncompressed."""
    arrays = {}
    archive = None
    try:
        if os.path.isdir(path):
            keys = sorted(file.stem for file in path.glob("*.npy"))
        elif path.suffix.lower() == ".npy":
            return {"x_train": load_npy(path)}
        else:
            archive = np.load(path, allow_pickle=False)   # a pickle could run any code
            if isinstance(archive, np.ndarray):
                return {"x_train": archive}
            keys = archive.files
        wanted = known_keys(keys)
        for key in keys:
            if key in wanted and archive is None:
                arrays[key] = load_npy(path / f"{key}.npy")
            elif key in wanted:
                arrays[key] = load_member(archive, key)
    except Exception as error:   # a file that is something else can raise anything
        fail(f"--dataset {path}: {error}; store plain arrays with numpy.savez, texts as "
             "y.astype('U')")
    finally:
        if hasattr(archive, "close"):
            archive.close()
    for key, array in arrays.items():
        if not isinstance(array, np.ndarray):
            fail(f"--dataset {path}: {key} is no array; store plain arrays with numpy.savez")
    others = [key for key in keys if key not in wanted]
    if others:
        notes.append(f"left out {listing(others)}")
    return arrays


def known_keys(keys):
    """The names of arrays that are read where a file has these."""
    wanted = {"y_train", "y_test", "classes", "c_train", "c_test", "conditions"}
    for known in (TRAIN_KEYS, TEST_KEYS):
        key = find_key(keys, known)
        if key is not None:
            wanted.update((key, known[key]))
    return wanted


# Bytes from which an array is mapped: pages of the file are read as they are needed, and the system
# takes them back where memory is short. A smaller one is read, so that its file may change.
MAPPED_FROM = 2 ** 28


def load_npy(path):
    """The array in an .npy file, mapped if it is large and uint8."""
    if os.path.getsize(path) >= MAPPED_FROM:
        with open(path, "rb") as file:
            array = map_images(file)
        if array is not None:
            return array
    return np.load(path, allow_pickle=False)


def load_member(archive, key):
    """An array of an .npz file, mapped if it is large, uint8 and not compressed."""
    members = {member.filename: member for member in archive.zip.infolist()}
    member = members.get(f"{key}.npy")
    if member is None or member.file_size < MAPPED_FROM:
        return archive[key]
    if member.compress_type != zipfile.ZIP_STORED:
        return archive[key]
    with archive.zip.open(member) as content:
        while content.read(2 ** 24):   # to the end, where it raises if the checksum differs
            pass
    with open(archive.zip.filename, "rb") as file:
        file.seek(member.header_offset + 26)   # in the header before the array
        n_name, n_extra = struct.unpack("<HH", file.read(4))
        file.seek(n_name + n_extra, os.SEEK_CUR)
        array = map_images(file)
    return archive[key] if array is None else array


def map_images(file):
    """The uint8 array in .npy format that begins where an open file stands, mapped; None if it is
    of another type or order."""
    if np.lib.format.read_magic(file) != (1, 0):
        return None
    shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(file)
    if dtype != np.uint8 or fortran_order:
        return None
    return map_rows(file, shape, file.tell())


def map_rows(file, shape, offset=0):
    """The bytes of an open file from `offset` on as a uint8 array, mapped."""
    try:
        return np.memmap(file, np.uint8, "c", offset, shape)   # what is written to it stays here
    except OSError:   # more than the memory, of which such a map reserves as much: read only
        return np.memmap(file, np.uint8, "r", offset, shape)


def as_tensor(array):
    """A tensor of an array, on the same memory."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)


def find_key(keys, known):
    """The first of the known keys that is among keys, or None."""
    for key in known:
        if key in keys:
            return key
    return None


def check_alike(arrays, keys, found):
    """Training and test part must be of one kind and shape."""
    must = "images must be uint8 (N, H, W) or (N, H, W, C), labels whole numbers (N,)"
    kinds = {"b": "whole", "i": "whole", "u": "whole", "f": "float", "S": "bytes", "U": "text"}
    for key in keys:
        array, first = arrays[key], arrays[keys[0]]
        if array.dtype.kind not in kinds or array.size == 0 or array.ndim == 0:
            fail(f"{found}; {must}")
        if array.shape[1:] != first.shape[1:]:
            fail(f"{found}; {keys[0]} and {key} must agree in all but N; {must}")
        if kinds[array.dtype.kind] != kinds[first.dtype.kind]:
            fail(f"{found}; {keys[0]} and {key} must agree in dtype; {must}")


def to_layout(x, found, notes):
    """Images in any layout -> (N, C, H, W) with one or three channels."""
    if x.ndim == 3:
        return x[:, None]
    if x.ndim == 4 and x.shape[3] in (1, 3):
        return x.transpose(0, 3, 1, 2)
    if x.ndim == 4 and x.shape[1] in (1, 3):
        notes.append(f"images are {x.shape[1:]}, channels first")
        return x
    if x.ndim == 4 and x.shape[3] == 4:
        fail(f"{found}; images must have 1 or 3 channels; on white: alpha = x[..., 3:] / 255; "
             "x = (alpha * x[..., :3] + 255 * (1 - alpha)).astype('uint8')")
    fail(f"{found}; images must be (N, H, W), (N, H, W, C) or (N, C, H, W) with 1 or 3 channels; "
         "for rows of 784 pixels: x = x.reshape(-1, 28, 28)")


def to_uint8(x, key, found, notes):
    """Pixels of any type -> a uint8 tensor: bool and floats in [0, 1] or [-1, 1] are stretched,
    whole numbers from 0 to 255 are taken as they are. Else ends the program."""
    if x.dtype == np.uint8:
        return as_tensor(x if isinstance(x, np.memmap) else np.ascontiguousarray(x))
    if x.dtype.kind in "SU":
        fail(f"{found}; {key} must be uint8 (N, H, W)")
    low, high = float(x.min()), float(x.max())
    is_float = x.dtype.kind == "f"
    if x.dtype == bool:
        notes.append("pixels are True and False; made 255 and 0")
        x = x * np.uint8(255)
    elif is_float and low >= 0 and high <= 1:
        notes.append(f"{x.dtype} pixels in [0, 1]; multiplied by 255")
        x = (x * 255).round()
    elif is_float and -1 <= low < -0.9 and high <= 1:
        notes.append(f"{x.dtype} pixels in [-1, 1]; brought to 0 to 255")
        x = ((x + 1) * 127.5).round()
    elif low >= 0 and high <= 255 and (x == x.round()).all():
        notes.append(f"{x.dtype} pixels from {low:g} to {high:g}; taken as uint8")
    else:
        fail(f"{found}; pixels are from {low:g} to {high:g}; bring them to uint8 from 0 to 255: "
             "x = ((x - low) / (high - low) * 255).round().astype('uint8'), with low and high of "
             "all images")
    return torch.from_numpy(np.ascontiguousarray(x.astype(np.uint8)))


def to_labels(y, names, found, notes):
    """Labels as whole numbers (N,), one-hot rows (N, K) or texts (N,) -> int64 (N,), names."""
    if y.ndim == 2 and y.dtype.kind in "biuf":
        is_one_hot = ((y == 0) | (y == 1)).all() and (y.sum(1) == 1).all()
        if is_one_hot:
            notes.append("labels are one-hot")
            y = y.argmax(1)
    if y.ndim == 1 and y.dtype.kind in "SU":
        texts = [as_text(text) for text in y]
        if names is None:
            names = sorted(set(texts))
            notes.append(f"labels are texts: {listing(names)}")
        number = {name: label for label, name in enumerate(names)}
        for text in texts:
            if text not in number:
                fail(f"{found}; label {shortened(text)} is not among `classes`")
        y = np.array([number[text] for text in texts])
    if y.ndim == 1 and y.dtype.kind == "f" and np.isfinite(y).all() and (y == y.round()).all():
        notes.append(f"{y.dtype} labels are taken as whole numbers")
    elif y.ndim != 1 or y.dtype.kind not in "biu":
        fail(f"{found}; labels must be whole numbers (N,), one per image; for rows of scores: "
             "y = y.argmax(1)")
    return torch.from_numpy(y.astype(np.int64)), names


def check_names(y, names, path):
    """Labels must be numbered from 0, and every name must belong to one of them."""
    low, high = int(y.min()), int(y.max())
    if names is None:
        if low < 0:
            fail(f"--dataset {path}: labels from {low} to {high}; number them from 0")
        return
    if low < 0 or high >= len(names):
        fail(f"--dataset {path}: labels from {low} to {high} are out of range for {len(names)} "
             "classes; number them from 0")
    for name in names:
        if names.count(name) > 1:
            fail(f"--dataset {path}: `classes` has {shortened(name)} more than once; give each "
                 "label a name of its own")


def as_text(name):
    """A name from an array, which may be bytes."""
    return name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name)


# Image folders

TEST_FOLDERS = ("test", "val", "valid", "validation")

# What Pillow may read. It goes by a file's content and knows others, some of which it hands to
# other programs, as PostScript.
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "PPM", "GIF", "AVIF")

# Without --image-size, 2048 x 2048: no model here takes a larger image, and a small file can hold
# one that fills the memory.
MAX_PIXELS = 2 ** 22


# Bytes of image files from which a folder is decoded once, into a file that is mapped from then on:
# some half a second of work.
DECODED_ONCE = 2 ** 20

DECODER = 2   # to be raised where read_image or resize change: what was decoded is decoded again


class FolderOptions(NamedTuple):
    """How the images of a folder are read; as in load_data."""
    size: int | None
    skip_broken: bool
    background: str


class Listing(NamedTuple):
    """The image files of a folder."""
    root: Path
    pairs: list     # (file, class), the training images first
    n_train: int    # all of them where there is no test part
    left_out: dict  # {why: [file, ...]}


def read_folder(root, options, cache, notes, say):
    """Images in `root` itself or in one folder per class, at any depth; or the same in train/ and
    test/ (or one of TEST_FOLDERS). Grey if all images are grey, else RGB. Those of a large folder
    are kept, decoded, in the folder `cache`."""
    left_out = {}
    try:
        train, test = find_parts(root, left_out)
        pairs = list_images(train, left_out)
        n_train = len(pairs)
        if test is not None:
            pairs += list_images(test, left_out)
        key, n_bytes = state_of(root, pairs)
    except OSError as error:
        fail(f"--dataset {root} cannot be read ({error})")
    files = Listing(root, pairs, n_train, left_out)
    if n_bytes < DECODED_ONCE:
        return decode_folder(files, options, None, notes, say)
    try:
        with kept_images(cache, root, tuple(options), f"{DECODER} {key}") as file:
            return decode_folder(files, options, file, notes, say)
    except OSError as error:
        notes.append(not_kept(cache, error))
    return decode_folder(files, options, None, notes, say)


def state_of(root, pairs):
    """A text with the names, sizes and times of files, and the sum of their sizes. OSError."""
    lines, n_bytes = [], 0
    for file, _ in pairs:
        status = file.stat()
        n_bytes += status.st_size
        lines.append(f"{file.relative_to(root)} {status.st_size} {status.st_mtime_ns}")
    return "\n".join(lines), n_bytes


def decode_folder(files, options, file, notes, say):
    """The Parts of a folder, whose images are in `file`, or are written there; None: in memory."""
    root, pairs, n_train = files.root, files.pairs, files.n_train
    has_test = n_train < len(pairs)
    kept = load_kept(file)
    x, remarks = kept or decode_images(files, options, file, say)

    damaged = set(remarks.get("damaged", []))
    is_good = torch.tensor([i not in damaged for i in range(len(pairs))])
    is_test = (torch.arange(len(pairs)) >= n_train)[is_good]
    if not is_good.any() or (has_test and (is_test.all() or not is_test.any())):
        fail(f"--dataset {root}: every image of train/ or test/ is damaged; repair them")
    labels = [name for (_, name), good in zip(pairs, is_good.tolist(), strict=True) if good]
    names = sorted(set(labels))
    if len(names) > 1 and "" in names:
        fail(f"--dataset {root}: sort both train/ and test/ into class folders, or neither")
    number = {name: label for label, name in enumerate(names)}
    y = torch.tensor([number[name] for name in labels])
    if names == [""]:
        names = []

    own_notes = folder_notes(files, remarks, options)
    is_test = find_test(is_test if has_test else None, y, f"--dataset {root}", own_notes)
    order = in_parts(is_test)
    if file is None:
        x = x.index_select(0, order)
    elif kept is None:
        x, _ = keep_images(file, x, order, remarks)
    notes += own_notes
    n = int((~is_test).sum())
    return Parts(x[:n], x[n:], y, names, is_test, torch.empty(len(y), 0))


def folder_notes(files, remarks, options):
    """What is said of a folder: what was left out or converted, and what lies deep. remarks: of
    decode_images."""
    left_out = files.left_out | remarked(files, remarks, {"damaged": "damaged"})
    converted = remarked(files, remarks, {
        "grey": "from grey to RGB",
        "transparent": f"from transparent to {options.background}",
        "frames": "from several frames to the first",
    })
    notes = []
    if left_out:
        notes.append(f"files left out: {counts(files.root, left_out)}")
    if converted:
        notes.append(f"images converted: {counts(files.root, converted)}")
    deeper = [file for file, name in files.pairs if name not in ("", file.parent.name)]
    if deeper:
        notes.append(f"{len(deeper)} images lie in deeper folders (first: "
                     f"{deeper[0].relative_to(files.root)}); the first folder is their class")
    return notes


def remarked(files, remarks, words):
    """The files of some remarks: {words: [file, ...]}. words: {remark: what is said of it}."""
    found = {}
    for remark, said in words.items():
        if remark in remarks:
            found[said] = [files.pairs[i][0] for i in remarks[remark]]
    return found


def decode_images(files, options, kept_in, say):
    """The images of all files, uint8 (N, C, H, W), and remarks on them, {"damaged": [3, 7], ...},
    with the numbers of the files. kept_in: the file in which they will be kept; None: they are
    decoded here and stay in memory."""
    paths = [file for file, _ in files.pairs]
    decoder = Decoder(paths, options.size, options.background)
    images = (decoder[i] for i in range(len(paths)))
    if kept_in is not None:
        message = (f"--dataset {files.root}: decoding {len(paths):,} images, once; they are kept "
                   f"in {kept_in.parent}")
        images = watched(decoder.in_processes(), len(paths), message, quiet=say is not tell)
    shape = None
    channels = 1
    remarks = {}
    with scratch_file(kept_in) as raw:
        for i, (image, remarks_on_it) in enumerate(images):
            if isinstance(image, ValueError):
                if not options.skip_broken:
                    fail(str(image))
                remarks.setdefault("damaged", []).append(i)
                continue
            for remark in remarks_on_it:
                remarks.setdefault(remark, []).append(i)
            if shape is not None and image.shape[2:] != shape:
                fail(f"{paths[i]} differs in size from {paths[0]}; use --image-size to make all "
                     "alike")
            shape = image.shape[2:]
            channels = max(channels, image.shape[1])
            raw.write(np.repeat(image, 3 // image.shape[1], axis=1))   # grey, for now, as RGB
        raw.flush()
        if channels == 1:
            remarks.pop("grey", None)   # they stay so
        n = len(paths) - len(remarks.get("damaged", []))
        shape = (n, 3, *(shape or (1, 1)))
        if n == 0:
            array = np.empty(shape, np.uint8)
        elif kept_in is None:
            array = np.frombuffer(raw.getbuffer(), np.uint8).reshape(shape)
        else:
            array = map_rows(raw, shape)
    return as_tensor(array)[:, :channels], remarks


@contextlib.contextmanager
def scratch_file(kept_in):
    """An open file for images that are not in order yet: one without a name beside the file in
    which they will be kept, so that a kill leaves nothing; or, if that is None, one in memory."""
    if kept_in is None:
        yield io.BytesIO()
    else:
        with tempfile.TemporaryFile(dir=kept_in.parent) as file:
            yield file


class Decoder:
    """Image files as (uint8 array (1, C, H, W), remarks); of one that cannot be used a ValueError
    stands in the array's place."""

    def __init__(self, files, size, background):
        self.files, self.size, self.background = files, size, background

    def __len__(self):
        return len(self.files)

    def __getitem__(self, i):
        try:
            x, remarks = read_image(self.files[i], self.size, self.background)
        except ValueError as error:
            return error, []
        return resize(x, self.size).numpy(), remarks

    def in_processes(self):
        """Yield all of them in order, decoded by a process for each core, up to 16."""
        from torch.utils.data import DataLoader
        n = os.cpu_count()
        if hasattr(os, "sched_getaffinity"):   # of which this process may use some
            n = len(os.sched_getaffinity(0))
        n = min(n, 16)   # more would wait for the one that writes
        loader = DataLoader(self, batch_size=32, collate_fn=list, num_workers=n,
                            generator=torch.Generator())   # training draws from another
        try:
            for images in loader:
                yield from images
        except RuntimeError as error:   # out of memory, most likely
            fail(f"a process that decodes images has ended ({error}); free memory, and start again",
                 status=1)


# Decoded images in files

@contextlib.contextmanager
def kept_images(folder, path, options, key):
    """The file in which the images of a data set, read with options, are kept, or will be:
    images-NAME-SOURCE-KEY.npy, with hashes of path and options, and of the state of the data set
    when they were decoded. It is locked: of two runs that start at once the second waits for the
    images of the first. Raises OSError."""
    source = hashlib.sha256(os.fsencode(f"{path.resolve()} {options}")).hexdigest()[:8]
    name = f"images-{safe_name(path.name)}-{source}"
    key = hashlib.sha256(os.fsencode(key)).hexdigest()[:16]
    os.makedirs(folder, exist_ok=True)
    with open(Path(folder, f"{name}.lock"), "a") as owner:
        lock(owner)
        yield Path(folder, f"{name}-{key}.npy")


def load_kept(file):
    """Images that keep_images has written, mapped, and the remarks on them; None where there are
    none."""
    if file is None or not file.is_file():
        return None
    try:
        with open(file, "rb") as kept:
            array = map_images(kept)
            kept.seek(array.offset + array.size)
            return as_tensor(array), json.loads(kept.read())
    except (OSError, ValueError):   # cut short by something else
        return None


def keep_images(file, x, order, remarks):
    """Write images x in an order, and behind them the remarks of decode_images; those of an earlier
    state of the folder are removed. Returns what load_kept does. Raises OSError."""
    name = file.name.rpartition("-")[0]
    for old in file.parent.glob(f"{name}-*.npy"):
        old.unlink()
    partial = file.with_name(f"{name}.part")   # of a run that was killed it is written over
    with open(partial, "wb") as kept:
        shape = (len(order), *x.shape[1:])
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(kept, header)
        for rows in order.split(1000):
            kept.write(x.index_select(0, rows).numpy())
        kept.write(json.dumps(remarks).encode())
        kept.flush()
        os.fsync(kept.fileno())
    os.replace(partial, file)
    return load_kept(file)


def not_kept(folder, error):
    """What is said where decoded images cannot be kept."""
    return f"{folder} cannot be written ({error.strerror}); all images are read into memory"


def lock(file):
    """Wait until no other process has locked the file, and lock it, where the system can."""
    try:
        import fcntl
        fcntl.flock(file, fcntl.LOCK_EX)
    except (ImportError, OSError):   # Windows; a network folder without locks
        pass


# Folders of images

def find_parts(root, left_out):
    """(folder of training images, folder of test images or None)."""
    if is_run(root):
        fail(f"--dataset {root} holds a run; keep images and runs in folders of their own")
    folders = {}
    for path in sorted(root.iterdir()):
        if path.is_dir() and not path.name.startswith(".") and not is_run(path):
            folders[path.name.lower()] = path
    train, test = folders.get("train"), None
    for name in TEST_FOLDERS:
        if test is None:
            test = folders.get(name)
    if train is None or (test is None and len(folders) > 1):   # train/ is a class, of vehicles say
        return root, None
    beside = files_below(root, left_out, skip=(train, test))
    if beside:
        left_out["beside train/ and test/"] = beside
    return train, test


def list_images(root, left_out):
    """Sorted (file, class) pairs; the class is the first folder below `root`, or ""."""
    endings = image_endings()
    pairs = []
    for file in files_below(root, left_out):
        parts = file.relative_to(root).parts
        if not file.is_file():
            left_out.setdefault("no plain files", []).append(file)
        elif file.suffix.lower() not in endings:
            left_out.setdefault("no images by their names", []).append(file)
        else:
            pairs.append((file, "" if len(parts) == 1 else parts[0]))
    if not pairs:
        fail(f"--dataset {root} holds no images ({' '.join(endings)})")
    names = {name for _, name in pairs}
    if len(names) > 1 and "" in names:
        fail(f"--dataset {root} mixes images and class folders; use one or the other")
    return pairs


def files_below(folder, left_out, above=(), skip=()):
    """Every file below a folder, sorted; not what is hidden, what lies in run folders, and in the
    folders to skip. above: the folders that this one lies in."""
    real = folder.resolve()
    if real in above:   # a link to a folder that it lies in
        return []
    if is_run(folder):
        left_out.setdefault("in run folders", []).extend(sorted(folder.iterdir()))
        return []
    files = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path in skip:
            continue
        if path.is_dir():
            files += files_below(path, left_out, (*above, real))
        else:
            files.append(path)
    return files


def is_run(folder):
    """Whether a script of ours writes into this folder."""
    return any((folder / name).is_file() for name in ("checkpoint.pt", "args.txt"))


def image_endings():
    """The endings of names of the files that are read, as ".png"."""
    from PIL import Image
    endings = []
    for ending, name in Image.registered_extensions().items():
        if name in IMAGE_FORMATS:
            endings.append(ending)
    return sorted(endings)


def counts(root, kinds):
    """How many files there are of each kind, and the first: {kind: [file, ...]} -> text."""
    texts = []
    for kind, files in kinds.items():
        texts.append(f"{len(files)} {kind} (first: {files[0].relative_to(root)})")
    return ", ".join(texts)


def read_image(file, size=None, background="white"):
    """An image file -> uint8 (1, C, H, W), one channel if it is grey and three if not, and a list
    of remarks: "grey"; "frames", of which the first is taken; "transparent", in places, where
    it shows the background. ValueError if it cannot be used."""
    from PIL import Image, ImageOps
    Image.init()
    formats = [name for name in IMAGE_FORMATS if name in Image.OPEN]   # AVIF is not everywhere
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")   # of oddities in a file that can be read
        try:
            with Image.open(file, formats=formats) as image:
                pixels = None
                remarks = []
                mode, area = image.mode, image.width * image.height
                if mode[0] not in "IF" and (size is not None or area <= MAX_PIXELS):
                    upright = ImageOps.exif_transpose(image)
                    opaque, was_transparent = without_alpha(upright, background)
                    pixels = np.array(opaque)
                    if was_transparent:
                        remarks.append("transparent")
                    if getattr(image, "is_animated", False):
                        remarks.append("frames")
        except Image.DecompressionBombError:
            raise ValueError(f"{file} is too large; make it smaller, or remove it") from None
        except Exception as error:   # a damaged file can raise anything
            reason = str(error) or type(error).__name__
            raise ValueError(f"{file} is not a complete image ({reason}); repair or remove "
                             "it") from None
    if mode[0] in "IF":
        raise ValueError(f"{file} has more than 8 bits per channel; save it with 8")
    if pixels is None:
        raise ValueError(f"{file} is too large ({area} pixels); use --image-size")
    if pixels.ndim == 2:
        remarks.append("grey")
    return channels_first(pixels[None]), remarks


def without_alpha(image, background):
    """A Pillow image as L or RGB, and whether any of its pixels was not opaque. What lies under
    transparent pixels is often noise, so they show the background."""
    from PIL import Image
    mode = "L" if image.mode in ("1", "L", "LA", "La") else "RGB"
    if not image.has_transparency_data:
        return image.convert(mode), False
    image = image.convert("RGBA")
    lowest, _ = image.getchannel("A").getextrema()
    behind = Image.new("RGBA", image.size, background)
    return Image.alpha_composite(behind, image).convert(mode), lowest < 255


def channels_first(x):
    """(N, H, W) or (N, H, W, C), array or tensor -> tensor (N, C, H, W)."""
    x = torch.as_tensor(x)
    if x.ndim == 3:
        x = x[..., None]
    return x.permute(0, 3, 1, 2).contiguous()


def resize(x, size):
    """Crop the centre square and resize it to size x size, antialiased: uint8 (N, C, H, W) in and
    out. Without a size nothing changes."""
    if size is None or x.shape[2:] == (size, size):
        return x
    from torchvision.transforms.v2 import functional as transforms
    side = min(x.shape[2:])
    made = torch.empty(*x.shape[:2], size, size, dtype=torch.uint8)
    for part, rows in zip(x.split(1000), made.split(1000), strict=True):
        square = transforms.center_crop(part, [side, side])
        rows.copy_(transforms.resize(square, [size, size], antialias=True))
    return made
