"""Speed of our loops beside the usual ones, and beside nothing but their matrix products.

The usual loop is the same network fed by a torchvision data set and a DataLoader, in the layout and
with the Adam that come by default, and with loss.item() in every step. Each loop runs in its own
process, in turn; the medians of the rounds are printed. On a busy machine ratios hold, single times
do not.

    python benchmark.py                # the MLP of vae.py, 784-400-20, and seconds to 105.6 nats
    python benchmark.py --model conv   # vae.py --arch conv
    python benchmark.py --model gan    # gan.py --loss wgan-gp
"""
import json
import resource
import statistics
import subprocess
import sys
import time

import torch
from torch.utils._python_dispatch import TorchDispatchMode

import gan
import vae
from common import Data, check, load_data, make_parser, number, parse_flags, pick_device

OURS = ("ours", "ours --amp", "ours --compile", "ours --amp --compile")
LOOPS = {"vae": ("usual", *OURS, "matrix products", "usual to 105.6", "ours --amp to 105.6"),
         "conv": ("usual", *OURS, "matrix products"),
         "gan": ("usual", "ours", "ours --amp", "matrix products")}   # no --compile for wgan-gp
TARGET = 105.6   # nats, where pytorch/examples ends
IMAGES = {"vae": 60_000, "conv": 6400, "gan": 1600}   # per timing
TO_TARGET = {"epochs": 5, "lr": 8e-3, "lr_schedule": "onecycle"}   # chosen on held-out images


def flags():
    parser = make_parser("benchmark", "Time training on MNIST.")
    add = parser.add_argument
    add("--model", choices=LOOPS, default="vae", help="what is trained")
    add("--data", default="data", help="folder of MNIST")
    add("--train-size", type=number(int, 128), help="use fewer training images")
    add("--rounds", type=number(int, 1), default=3, help="how often each loop is timed")
    add("--device", default="auto", help="as in vae.py")
    add("--loop", help="time this loop once, in this process, and print JSON")
    return parser


def run_flags(args):
    """The flags of the script that is timed."""
    script = gan if args.model == "gan" else vae
    usual = ["--lr=1e-3", "--lr-schedule=constant"]
    own = {"vae": ["--hidden=400", *usual], "conv": ["--arch=conv", *usual],
           "gan": ["--loss=wgan-gp"]}[args.model]
    run = script.flags().parse_args(own)
    run.amp = "--amp" in args.loop
    images = torch.empty(2, 1, 28, 28, dtype=torch.uint8)   # all that the checks ask of MNIST
    script.check_flags(run, Data("MNIST", images, None, images, None, []))
    return run


def usual_loaders(args, batch_size, *transform):
    from torch.utils.data import DataLoader, Subset
    from torchvision import datasets, transforms
    transform = transforms.Compose([transforms.ToTensor(), *transform])
    train, test = (datasets.MNIST(args.data, train=train, transform=transform)
                   for train in (True, False))
    train = Subset(train, range(args.train_size))
    return DataLoader(train, batch_size, shuffle=True), DataLoader(test, batch_size)


def usual_vae(args):
    """The loop of countless tutorials: one image at a time through Python, one wait a step."""
    run = run_flags(args)
    train, test = usual_loaders(args, run.batch_size)
    model = vae.VAE((1, 28, 28), run).to(args.device, memory_format=torch.contiguous_format)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def step(x):
        x = x.to(args.device)
        recon, kl, _ = vae.loss_terms(model, x, torch.randn(len(x), 20, device=x.device))
        return (recon + kl).sum()

    def train_epoch():
        model.train()
        total = 0
        for x, _ in train:
            optimizer.zero_grad()
            loss = step(x)
            (loss / len(x)).backward()
            optimizer.step()
            total += loss.item()
        return total / len(train.dataset)

    def test_epoch():
        model.eval()
        with torch.no_grad():
            return sum(step(x).item() for x, _ in test) / len(test.dataset)

    return train_epoch, test_epoch


def usual_gan(args):
    """WGAN-GP as many know it: the fake batch keeps its graph into the generator."""
    from torchvision import transforms
    run = run_flags(args)
    train, _ = usual_loaders(args, run.batch_size, transforms.Pad(2),
                             transforms.Normalize(0.5, 0.5))
    generator, critic = (kind((1, 28, 28), run, 0).to(args.device,
                                                      memory_format=torch.contiguous_format)
                         for kind in (gan.Generator, gan.Discriminator))
    g_optimizer, d_optimizer = (torch.optim.Adam(network.parameters(), run.lr, betas=(0.0, 0.9))
                                for network in (generator, critic))

    def train_epoch():
        for i, (x, y) in enumerate(train, 1):
            x, y = x.to(args.device), y.to(args.device)
            fake = generator(torch.randn(len(x), run.latent, device=x.device), y)
            penalty = gan.gradient_penalty(critic, x, fake, y).mean()
            loss = critic(fake, y).mean() - critic(x, y).mean() + gan.LAMBDA * penalty
            d_optimizer.zero_grad()
            loss.backward()
            d_optimizer.step()
            if i % run.critic_steps == 0:
                z = torch.randn(len(x), run.latent, device=x.device)
                g_loss = -critic(generator(z, y), y).mean()
                g_optimizer.zero_grad()
                g_loss.backward()
                g_optimizer.step()
                g_loss.item()
            loss.item()
        return 0.0

    return train_epoch, lambda: 0.0


def our_data(args):
    """The training images that usual_loaders has."""
    data = load_data("MNIST", args.data, args.device)
    return data._replace(x_train=data.x_train[:args.train_size],
                         y_train=data.y_train[:args.train_size])


def our_vae(args, **replaced):
    """vae.py itself."""
    run = run_flags(args)
    vars(run).update(replaced)
    data = our_data(args)
    learner = vae.make_learner(vae.VAE((1, 28, 28), run).to(args.device), data, run)
    compiled = torch.compile(vae.loss_terms, dynamic=False)
    terms = compiled if "--compile" in args.loop else vae.loss_terms
    return (lambda: vae.train_epoch(learner, terms, data, 1, run)["train_loss"],
            lambda: vae.evaluate(learner.model, data, 1, run)["test_loss"])


def our_gan(args):
    """gan.py's steps, its running average included."""
    run, data = run_flags(args), our_data(args)
    generator, average, critic = (kind((1, 28, 28), run, 0).to(args.device) for kind in
                                  (gan.Generator, gan.Generator, gan.Discriminator))
    g_optimizer, d_optimizer = (
        torch.optim.Adam(network.parameters(), run.lr, betas=(0.0, 0.9), fused=True)
        for network in (generator, critic))

    def train_epoch():
        for i in range(1, args.train_size // run.batch_size + 1):
            x, y = gan.real_batch(data, run)
            gan.discriminator_step(generator, critic, d_optimizer, x, y, run)
            if i % run.critic_steps == 0:
                gan.generator_step(generator, critic, g_optimizer, y, run)
                gan.update_average(average, generator, run.ema)
        return 0.0

    return train_epoch, lambda: 0.0


class Record(TorchDispatchMode):
    """Remembers every large matrix product and convolution that is done, those of both kinds of
    backward passes included."""
    KINDS = ("aten.mm", "aten.addmm", "aten.convolution")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if str(func).startswith(self.KINDS):
            tensors = [a for a in args if isinstance(a, torch.Tensor) and a.ndim > 1]
            if min(min(a.shape) for a in tensors) >= 100 or "convolution" in str(func):
                self.calls.append((func, args))
        return func(*args, **(kwargs or {}))


def matrix_products(args):
    """The products of a few of our own steps, over and over, and nothing else."""
    size, args.train_size = args.train_size, 640
    train_epoch, _ = (our_gan if args.model == "gan" else our_vae)(args)
    train_epoch()
    with Record() as record:
        record.calls = calls = []
        train_epoch()

    @torch.no_grad()
    def replay():
        for i in range(len(calls) * size // 640):   # as many as in the steps of `size` images
            func, operands = calls[i % len(calls)]
            func(*operands)
        return 0.0

    return replay, lambda: 0.0


def time_loop(args):
    """Seconds of a training epoch and of a test, after one to warm up; the losses; the memory."""
    kind = {"usual": usual_gan if args.model == "gan" else usual_vae,
            "matrix products": matrix_products}.get(args.loop.split(" to ")[0])
    kind = kind or (our_gan if args.model == "gan" else our_vae)
    torch.manual_seed(1)
    found = {}
    epochs = kind(args)
    for _ in range(2):
        for name, epoch in zip(("train", "test"), epochs, strict=True):
            start = time.perf_counter()
            found[f"{name}_loss"] = epoch()
            if args.device.startswith("cuda"):
                torch.cuda.synchronize()
            found[name] = time.perf_counter() - start
    found["MB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if args.device.startswith("cuda"):
        found["MB"] = torch.cuda.max_memory_allocated() / 2 ** 20
    return found


def time_to_target(args):
    """Seconds of training and testing until the test loss is TARGET."""
    torch.manual_seed(1)
    if args.loop.startswith("usual"):
        (train, test), most = usual_vae(args), 20
    else:
        (train, test), most = our_vae(args, **TO_TARGET), TO_TARGET["epochs"]
    start = time.perf_counter()
    loss, epochs = float("inf"), 0
    while loss > TARGET and epochs < most:
        train()
        loss, epochs = test(), epochs + 1
    return {"seconds": time.perf_counter() - start, "epochs": epochs, "test_loss": loss}


def main(argv=(), **overrides):
    """Print the table. Returns {loop: {"train": seconds, "test": seconds, ...}}, medians."""
    args, _ = parse_flags(flags(), argv, overrides)
    loops = [loop for loop in LOOPS[args.model] if not args.train_size or " to " not in loop]
    args.train_size = args.train_size or IMAGES[args.model]
    args.device = str(pick_device(args.device))
    if args.loop:
        check(args.loop in loops, f"--loop must be one of {', '.join(loops)}, not {args.loop}")
        found = (time_to_target if " to " in args.loop else time_loop)(args)
        print(json.dumps(found))
        return found
    load_data("MNIST", args.data, train_size=args.train_size)   # or one line says why not
    times = {loop: [] for loop in loops}
    for _ in range(args.rounds):
        for loop in loops:
            size = [] if " to " in loop else [f"--train-size={args.train_size}"]
            command = [sys.executable, __file__, f"--loop={loop}", f"--model={args.model}",
                       f"--data={args.data}", f"--device={args.device}", *size]
            done = subprocess.run(command, capture_output=True, text=True)
            check(done.returncode == 0, f"{loop}: {done.stderr}", status=1)
            times[loop].append(json.loads(done.stdout.splitlines()[-1]))
    table = {loop: {key: statistics.median(found[key] for found in rounds) for key in rounds[0]}
             for loop, rounds in times.items()}
    show(table, args)
    return table


def show(table, args):
    print(f"benchmark.py --model {args.model}: torch {torch.__version__}, {args.device}, "
          f"{torch.get_num_threads()} threads, {args.train_size} images, median of {args.rounds}")
    print("| loop | train s | test s | images/s | epoch / usual | train / products | MB | loss |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    usual, floor = table["usual"]["train"] + table["usual"]["test"], table["matrix products"]
    for loop, t in table.items():
        if " to " not in loop:
            print(f"| {loop} | {t['train']:.2f} | {t['test']:.2f} | "
                  f"{args.train_size / t['train']:,.0f} | {(t['train'] + t['test']) / usual:.2f} | "
                  f"{t['train'] / floor['train']:.2f} | {t['MB']:,.0f} | {t['test_loss']:.1f} |")
    for loop, t in table.items():
        if " to " in loop:
            missed = ", not reached" if t["test_loss"] > TARGET else ""
            print(f"\n{loop}: {t['seconds']:.1f} s, {t['epochs']:.0f} epochs, test loss "
                  f"{t['test_loss']:.2f}{missed}")


if __name__ == "__main__":
    main(sys.argv[1:])
