"""Claim: a flow is a change of variables that can be undone, so that it knows the density of an
image exactly:

    z = f(x, y),   log p(x|y) = log N(z; 0, I) + log |det df/dx|
"""
import math

import pytest
import torch
from small import random_data
from torch.autograd.functional import jacobian
from torch.distributions import Normal, TransformedDistribution
from torch.distributions.transforms import AffineTransform, SigmoidTransform

import flow
from run import make_scheduler

SHAPE = (1, 4, 4)   # the smallest image that can be squeezed twice
COLOUR = (3, 8, 8)


def flow_args(*argv):
    """The flags of flow.py for a small model."""
    return flow.flags().parse_args(["--couplings=4", "--hidden=8", *argv])


def trained(shape, *argv, classes=3):
    """A flow whose weights are random everywhere, as after training."""
    torch.manual_seed(0)
    model = flow.build(shape, classes, flow_args(*argv))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


def images(shape, n=5):
    """Random continuous images in (0, 1), and labels."""
    generator = torch.Generator().manual_seed(1)
    return torch.rand(n, *shape, generator=generator), torch.arange(n) % 3


both = pytest.mark.parametrize("argv", [(), ("--conditional",)], ids=["plain", "conditional"])


@both
@torch.no_grad()
def test_every_layer_and_the_whole_can_be_undone(argv):
    model = trained(COLOUR, *argv)
    x, y = images(COLOUR)
    h = x
    for layer in [*model.fine, *model.coarse]:
        if layer is model.coarse[0]:
            h = h.chunk(2, dim=1)[1]
        z, _ = layer(h, y)
        torch.testing.assert_close(layer.inverse(z, y), h, rtol=0, atol=1e-4)
        h = z
    z, _ = model(x, y)
    torch.testing.assert_close(model.inverse(z, y), x, rtol=0, atol=1e-4)
    assert not torch.allclose(z, model(x.flip(0), y)[0])   # it is a code of the image


def log_det_by_autograd(layer, x, y):
    """log |det dz/dx| of one image, from all of its derivatives."""
    n = x.numel()
    derivatives = jacobian(lambda x: layer(x, y)[0], x)   # of every number by every number
    return torch.linalg.slogdet(derivatives.reshape(n, n)).logabsdet


@both
def test_log_determinants_are_those_of_autograd(argv):
    model = trained(SHAPE, *argv).double()
    x, y = images(SHAPE, 1)
    h = x.double()
    for layer in [*model.fine, *model.coarse]:
        if layer is model.coarse[0]:
            h = h.chunk(2, dim=1)[1]
        z, log_det = layer(h, y)
        torch.testing.assert_close(log_det[0], log_det_by_autograd(layer, h, y), atol=1e-5, rtol=0)
        h = z.detach()
    _, log_det = model(x.double(), y)
    expected = log_det_by_autograd(model, x.double(), y)
    torch.testing.assert_close(log_det[0], expected, atol=1e-4, rtol=0)
    assert log_det.abs() > 1


@torch.no_grad()
def test_amp_changes_the_loss_by_little():
    """The networks compute in bfloat16; scales, sums and the density stay in float32."""
    model = trained(COLOUR)
    x, y = images(COLOUR)
    log_p = model.log_prob(x, y)
    with torch.autocast("cpu", torch.bfloat16):
        other = model.log_prob(x, y)
    assert other.dtype == torch.float32 and not torch.equal(other, log_p)
    assert ((other - log_p) / x[0].numel()).abs().max() < 0.01   # nats per number


def test_a_trained_density_integrates_to_one():
    """Two dimensions, as one pixel with two channels: six couplings learn a ring."""
    torch.manual_seed(0)
    args = flow_args("--hidden=16", "--blocks=0")
    mask = torch.tensor([1.0, 0.0])
    layers = torch.nn.ModuleList()
    for _ in range(3):
        layers.append(flow.Coupling(mask, 0, args))
        layers.append(flow.Coupling(1 - mask, 0, args))
    optimizer = torch.optim.Adam(layers.parameters(), lr=1e-2)

    def log_prob(x):
        total = 0
        for layer in layers:
            x, log_det = layer(x, None)
            total = total + log_det
        return Normal(0, 1).log_prob(x).sum((1, 2, 3)) + total

    def ring(n):
        angle, radius = 2 * math.pi * torch.rand(n), 2 + 0.2 * torch.randn(n)
        points = torch.stack([radius * angle.cos(), radius * angle.sin()], 1)
        return points[:, :, None, None]

    first = -log_prob(ring(1000)).mean().item()
    for _ in range(100):
        loss = -log_prob(ring(128)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < first - 0.7   # it has learned something

    layers.eval()
    side = torch.linspace(-6, 6, 121)
    with torch.no_grad():
        density = log_prob(torch.cartesian_prod(side, side)[:, :, None, None]).exp()
    assert density.sum() * 0.1 ** 2 == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("n", [2, 4, 8])
def test_masks_of_a_pair_cover_all_pixels(n):
    """What one coupling of a pair leaves the other changes, and each sees half of the numbers."""
    model = flow.build(COLOUR, 0, flow_args(f"--couplings={n}"))
    for layers in (model.fine, model.coarse):
        masks = [layer.mask for layer in layers if isinstance(layer, flow.Coupling)]
        assert len(masks) == n
        for mask in masks:
            assert mask.mean() == 0.5
        for first, second in zip(masks[0::2], masks[1::2], strict=True):
            assert (first + second == 1).all()


def test_the_checkerboard_is_one_of_pixels():
    """Before the squeeze the mask of channels is black and white like a chessboard."""
    args = flow_args("--couplings=4")
    mask = flow.make_couplings(8, 0, args)[0].mask              # (8, 1, 1): two channels squeezed
    pixels = flow.Squeeze().inverse(mask.expand(8, 3, 3)[None], None)[0]
    rows, columns = torch.meshgrid(torch.arange(6), torch.arange(6), indexing="ij")
    assert (pixels == ((rows + columns) % 2 == 0)).all()


def test_a_conditional_flow_depends_on_its_label_and_a_plain_one_does_not():
    x, y = images(COLOUR)
    other = (y + 1) % 3
    model = trained(COLOUR, "--conditional")
    assert (model.log_prob(x, y) - model.log_prob(x, other)).abs().min() > 1e-3
    model = trained(COLOUR)
    assert torch.equal(model.log_prob(x, y), model.log_prob(x, other))


def test_an_untrained_flow_is_the_logit():
    """Couplings begin as the identity: the density is that of torch.distributions, and bits per
    dimension follow by hand."""
    torch.manual_seed(0)
    model = flow.build(SHAPE, 0, flow_args())
    levels = torch.randint(0, 256, (5, *SHAPE))
    u = torch.rand(5, *SHAPE)
    loss = flow.loss_terms(model, levels / 255, torch.zeros(5).long(), u)

    to_pixel = [SigmoidTransform(), AffineTransform(-0.05 / 0.9, 1 / 0.9)]
    density = TransformedDistribution(Normal(0.0, 1.0), to_pixel)
    density_of_levels = density.log_prob((levels + u) / 256).exp() / 256   # an interval's share
    expected = -density_of_levels.log().sum((1, 2, 3))
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-2)

    bits = flow.bits_per_dimension(loss, SHAPE)
    torch.testing.assert_close(bits, -density_of_levels.log2().mean((1, 2, 3)),
                               rtol=1e-4, atol=1e-3)


def test_eight_bits_are_the_price_of_knowing_nothing():
    """A density of 1 everywhere gives each of the 256 levels the same share."""
    class Uniform:
        def log_prob(self, x, y):
            return torch.zeros(len(x))

    loss = flow.loss_terms(Uniform(), torch.rand(3, *COLOUR), None, 0.5)
    torch.testing.assert_close(flow.bits_per_dimension(loss, COLOUR), torch.full((3,), 8.0))


@torch.no_grad()
def test_evaluate_repeats_and_counts_every_image():
    data = random_data(n_test=11, shape=COLOUR)
    model, args = trained(COLOUR), flow_args()
    row = flow.evaluate(model, data, 1, args)
    torch.rand(7)                                    # its noise is its own
    assert flow.evaluate(model, data, 1, args) == row
    u = torch.rand(11, *COLOUR, generator=torch.Generator().manual_seed(0))
    loss = flow.loss_terms(model, data.x_test / 255, data.y_test, u).mean().item()
    assert row["test_loss"] == pytest.approx(loss, rel=1e-5)
    assert row["test_bpd"] == pytest.approx(loss / math.log(2) / 192, rel=1e-5)


def test_refreshed_norms_know_the_weights_of_now_and_the_training_goes_on_as_before():
    data = random_data(n_train=300, shape=COLOUR)
    model = trained(COLOUR)                          # new weights, old means
    before = {name: value.clone() for name, value in model.named_parameters()}
    torch.manual_seed(5)
    flow.refresh_norms(model, data)
    number = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(number, torch.rand(1))        # it has drawn none of these
    for name, value in model.named_parameters():
        assert torch.equal(value, before[name])

    norm = model.fine[-1].network.norm               # of the last coupling at the first scale
    seen = []
    norm.register_forward_hook(lambda _, inputs, output: seen.append(output.mean((0, 2, 3))))
    flow.evaluate(model, data, 1, flow_args())
    means = norm.bias.detach()
    assert (seen[0] - means).abs().max() < 0.5 * norm.weight.abs().max()


def test_couplings_see_numbers_of_mean_0_and_variance_1():
    model = flow.build(COLOUR, 0, flow_args())
    x, y = images(COLOUR, 50)
    model.fit(x, y)
    z, _ = model(x, y)                               # the couplings do nothing yet
    assert z.mean().abs() < 1e-4 and (z.std() - 1).abs() < 1e-4


def test_a_step_follows_the_clipped_gradient_of_images_with_noise(monkeypatch):
    """One batch: u is drawn from U(0, 1), and the step is that of plain gradient descent."""
    seen = []

    def spy(model, x, y, u):
        seen.append((x, y, u))
        return loss_terms(model, x, y, u)

    loss_terms = flow.loss_terms
    monkeypatch.setattr(flow, "loss_terms", spy)
    model, by_hand = trained(COLOUR).train(), trained(COLOUR).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    args = flow_args("--batch-size=20", "--lr-schedule=constant", "--epochs=1")
    data = random_data(shape=COLOUR)
    row = flow.train_epoch(model, optimizer, make_scheduler(optimizer, 20, args), data, 1, args)
    (x, y, u), = seen
    assert u.min() >= 0 and u.max() < 1
    assert u.mean() == pytest.approx(1 / 2, abs=0.02)
    assert u.std() == pytest.approx(math.sqrt(1 / 12), abs=0.01)
    loss = loss_terms(by_hand, x, y, u).mean()
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(by_hand.parameters(), flow.MAX_GRADIENT)
    assert norm > flow.MAX_GRADIENT   # so that the clipping is seen
    assert row["train_loss"] == pytest.approx(loss.item(), rel=1e-5)
    for p, q in zip(model.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(p, q - 1e-3 * q.grad, rtol=1e-4, atol=1e-5)


def test_a_run_fits_its_constants_once_and_its_norms_after_every_epoch(tmp_path, monkeypatch):
    refreshed = []
    refresh_norms = flow.refresh_norms
    monkeypatch.setattr(flow, "refresh_norms",
                        lambda *given: refreshed.append(given) or refresh_norms(*given))
    monkeypatch.setattr(flow, "save_figures", lambda *_: None)
    model, _ = flow.main(dataset="digits", train_size=100, test_size=20, couplings=2, hidden=4,
                         epochs=2, quiet=True, device="cpu", out=tmp_path / "run")
    assert len(refreshed) == 2
    fitted = [layer for layer in model.modules() if isinstance(layer, flow.Standardize)]
    assert fitted and all((layer.deviation != 1).any() for layer in fitted)
