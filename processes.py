"""Several processes, started by torchrun, that train one model on the rows of each batch:

    torchrun --nproc-per-node 2 vae.py --batch-size 256

Each process draws the same permutation and the same noise for the whole batch and takes its own
rows; after backward() the gradients are averaged, by one sum of a flat vector. So 1, 2 and 8
processes give the same log, up to rounding. (DistributedDataParallel would not do: it averages in
a hook on forward(), and our loops call encode, decode and a gradient penalty.) Process 0 alone
prints and writes.

With one process nothing here imports or starts anything.
"""
import atexit
import os

import torch


class Ended(Exception):
    """Another process of the run is gone."""


def count():
    """The number of processes, which torchrun sets."""
    return int(os.environ.get("WORLD_SIZE", 1))


def rank():
    """The number of this process: 0, 1 ..."""
    return int(os.environ.get("RANK", 0))


def is_first_here():
    """Whether this is the first process on its machine."""
    return int(os.environ.get("LOCAL_RANK", 0)) == 0


def own_rows():
    """A slice of the rows of a batch that are this process's, every count()-th; of all if it is
    alone."""
    return slice(rank(), None, count())


def average_gradients(model, n_rows):
    """Let .grad be that of the mean over the rows of all processes; n_rows: those of this one."""
    if count() == 1:
        return
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    parts = [gradient.flatten() for gradient in gradients]
    parts.append(torch.ones(1, device=parts[0].device))       # becomes the number of all rows
    flat = total(n_rows * torch.cat(parts))
    mean = flat[:-1] / flat[-1]
    sizes = [gradient.numel() for gradient in gradients]
    for gradient, part in zip(gradients, mean.split(sizes), strict=True):
        gradient.copy_(part.view_as(gradient))


def total(x):
    """The sum over all processes of a tensor of the same shape in each. Raises Ended."""
    if count() == 1:
        return x
    from torch import distributed
    try:
        distributed.all_reduce(x)
    except RuntimeError as error:
        raise Ended(error) from None
    return x


def collect(value):
    """A list of what each process has, anything that can be pickled. Raises Ended."""
    if count() == 1:
        return [value]
    from torch import distributed
    values = [None] * count()
    try:
        distributed.all_gather_object(values, value)
    except RuntimeError as error:
        raise Ended(error) from None
    return values


def start(device):
    """Find the other processes. Raises RuntimeError where they cannot be reached, or where this
    torch cannot talk to them."""
    if count() == 1:
        return
    from torch import distributed
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if not distributed.is_initialized():
        distributed.init_process_group()          # gloo for processors, NCCL for GPUs
        atexit.register(distributed.destroy_process_group)
