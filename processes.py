"""Several processes, started by torchrun, that train one model on the rows of each batch:

    torchrun --nproc-per-node 2 vae.py --batch-size 256

Each process draws the same permutation and the same noise for the whole batch and takes its own
rows; after backward() the gradients are averaged, by one sum of a flat vector. Batch normalisation
takes mean and variance over the rows of all. So 1, 2 and 8 processes give the same log, up to
rounding. (DistributedDataParallel would not do: it averages in a hook on forward(), and our loops
call encode, decode and a gradient penalty.) Process 0 alone prints and writes. It was tried on
processors only.

With one process nothing here does anything. docs/scaling.md says when several pay.
"""
import atexit
import os

import torch
from torch.nn.modules.batchnorm import _BatchNorm


class Ended(Exception):
    """Another process of the run is gone."""


# What is written for all processes to read, after start(); on one machine torchrun keeps it.
STORE = {}


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
    flat = total(torch.cat(parts).mul_(n_rows))
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


# ------------------------------------------------------------------------- batch normalisation

def share_norms(model):
    """Let the batch normalisation in a model use mean and variance over the rows of all processes.
    Returns whether there is any, and several processes.

    (nn.SyncBatchNorm runs on GPUs only, and takes the place of a subclass without what that adds,
    such as the labels of flow.py's ConditionalNorm.)
    """
    if count() == 1:
        return False
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    for norm in norms:
        # A class of the same name, whose super().forward is that of SharedNorm.
        own_class = type(norm)
        norm.__class__ = type(own_class.__name__, (own_class, SharedNorm), {})
    return len(norms) > 0


class SharedNorm(_BatchNorm):
    """Batch normalisation over the rows of all processes; in evaluation like any other."""

    def forward(self, x):
        """x (B, C, ...) -> the same shape; B: the rows of this process."""
        if not self.training:
            return super().forward(x)
        others = [dim for dim in range(x.ndim) if dim != 1]
        n = x.new_full((1,), x[:, 0].numel(), dtype=torch.float32)        # numbers in a channel
        var, mean = torch.var_mean(x.float(), others, correction=0)       # (C,) each
        sums = torch.cat([n * mean, n * (var + mean.square()), n])
        sums = SharedSum.apply(sums, len(x))                              # of all processes
        n = sums[-1].detach()
        mean, square = (sums[:-1] / n).chunk(2)
        var = square - mean.square()
        self.update(mean.detach(), var.detach() * n / (n - 1))

        scale = torch.rsqrt(var + self.eps)
        if self.affine:
            scale = scale * self.weight
        shift = -mean * scale
        if self.affine:
            shift = shift + self.bias
        shape = [-1] + [1] * (x.ndim - 2)                                 # (C, 1, 1) of an image
        return (x * scale.view(shape) + shift.view(shape)).to(x.dtype)

    def update(self, mean, var):
        """The running mean and variance follow those of a batch, (C,) each."""
        if not self.track_running_stats:
            return
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(var, self.momentum)


class SharedSum(torch.autograd.Function):
    """total(x), with a gradient: every process's loss depends on every process's x.

    Each loss is a mean over its own rows, and average_gradients weights it by their number; so does
    this, or the gradient of an uneven last batch would be wrong.
    """

    @staticmethod
    def forward(ctx, x, n_rows):
        ctx.n_rows = n_rows
        return total(x.clone())

    @staticmethod
    def backward(ctx, gradient):
        return total(ctx.n_rows * gradient) / ctx.n_rows, None


# ------------------------------------------------------------------------- their start and end

def start(device):
    """Find the other processes. Raises ValueError where this torch has no way to talk to them,
    RuntimeError where they cannot be reached."""
    if count() == 1:
        return
    from torch import distributed
    if not distributed.is_available():
        raise ValueError("this PyTorch was built without torch.distributed")
    backend = distributed.get_default_backend_for_device(device)   # gloo; NCCL for GPUs of NVIDIA
    if not distributed.is_backend_available(backend):
        raise ValueError(f"this PyTorch was built without {backend}, which {device.type} needs")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if distributed.is_initialized():   # by an earlier run in this program
        return
    store, _, _ = next(distributed.rendezvous("env://"))
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        # torchrun keeps it over restarts: what lost processes have written would be read again.
        attempt = os.environ["TORCHELASTIC_RESTART_COUNT"]
        store = distributed.PrefixStore(f"attempt {attempt}", store)
    STORE["of all"] = store
    distributed.init_process_group(store=store, rank=rank(), world_size=count())
    atexit.register(distributed.destroy_process_group)
    distributed.all_reduce(torch.zeros(1, device=device))          # fails here, if it must fail


def has_last_word():
    """Whether this process is the one that says why all of them end: the first that asks."""
    if not STORE:
        return True
    try:
        return STORE["of all"].add("last word", 1) == 1
    except RuntimeError:   # it was kept by a process that is gone
        return is_first_here()
