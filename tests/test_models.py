"""The layers that compute the same with less work: against torch's own, forward and back, in every layout and at odd sizes."""
import copy

import pytest
import torch
import torch.nn.functional as F
from lazyseg.models import _WEIGHTS, Generator, MaxPool, Outliner, ReflectConv, in_fours, winograd

LAYOUTS = torch.contiguous_format, torch.channels_last


def plain(x, weight): return F.conv2d(F.pad(x, (1,)*4, mode='reflect'), weight)


def gradients(f, *tensors):
    tensors = [t.detach().clone(memory_format=torch.preserve_format).requires_grad_() for t in tensors]
    y = f(*tensors)
    weights = torch.arange(y.numel(), dtype=y.dtype).cos().view(y.shape) # every pixel counts, and no two alike
    return y.detach(), *torch.autograd.grad((y*weights).sum(), tensors)


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('size', [(4, 4), (4, 12), (16, 8), (20, 4)])
def test_winograd_is_a_convolution(size, layout):
    torch.manual_seed(0)
    x, weight = torch.randn(3, 5, *size, dtype=torch.float64).contiguous(memory_format=layout), torch.randn(7, 5, 3, 3, dtype=torch.float64)
    for w in (weight, weight.contiguous(memory_format=torch.channels_last)):
        for ours, theirs in zip(gradients(winograd, x, w), gradients(plain, x, w)): torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    assert winograd(x, weight).is_contiguous(memory_format=layout)


def test_only_what_is_asked_for_is_worked_out():
    x, weight = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 3, 3, requires_grad=True)
    assert torch.autograd.grad(winograd(x, weight).sum(), weight)[0].shape == weight.shape # a film needs no gradient
    with pytest.raises(RuntimeError, match='once_differentiable'): # and nobody takes a wrong second derivative for a right one
        x.requires_grad_()
        first, = torch.autograd.grad(winograd(x, weight).square().sum(), x, create_graph=True)
        first.sum().backward()


def test_a_line_of_four_is_its_own_mirror():
    sums, results = in_fours(8, torch.float64)
    line, weights = torch.arange(8.).double(), torch.tensor([1., 10, 100]).double()
    products = (sums @ line).view(6, 2)*(_WEIGHTS @ weights)[:, None]
    seen = F.pad(line[None, None], (1, 1), mode='reflect')
    torch.testing.assert_close(results @ products.flatten(), F.conv1d(seen, weights[None, None])[0, 0])


@pytest.mark.parametrize('net', [lambda: Generator(32, 2), lambda: Generator(32, 2, 'instance', 'transpose', 'plain'), lambda: Generator(32, 1, 'none'), lambda: Outliner(32, 2)])
@pytest.mark.parametrize('layout', LAYOUTS)
def test_a_network_learns_the_same(net, layout, monkeypatch):
    "One step of a whole network, with and without."
    torch.manual_seed(1)
    net, films, taken = net(), torch.rand(8, 1, 64, 96), []
    pays = ReflectConv.pays
    monkeypatch.setattr(ReflectConv, 'pays', lambda self, x: taken.append(pays(self, x)) or taken[-1])
    found = []
    for few in (True, False):
        monkeypatch.setattr(ReflectConv, 'few', few)
        one = copy.deepcopy(net).to(memory_format=layout)
        out = one(films.contiguous(memory_format=layout))
        (getattr(out, 'film', out)*films).mean().backward()
        found.append([getattr(out, 'film', out).detach(), *(p.grad for p in one.parameters())])
        assert any(taken) == few # at this width and size it is taken
        taken.clear()
    for ours, theirs in zip(*found): # a pixel at the edge of a ReLU or of a pool may fall to its other side, so not number by number
        apart = (ours - theirs).norm()/(theirs.norm() + 1e-6)
        assert apart < .02, apart


def test_where_it_is_not_taken():
    layer, film = ReflectConv(64, 128), torch.rand(8, 64, 8, 8)
    assert layer.pays(film)
    assert not ReflectConv(64, 64).pays(film) and not layer.pays(film[:4]) and not layer.pays(film[..., :6])
    assert not layer.pays(film.double()) and not layer.eval().pays(film)
    kept = copy.deepcopy(layer.state_dict())
    assert [*kept] == ['weight', 'bias'] and kept['weight'].shape == (128, 64, 3, 3) # a model that was kept before can be read
    torch.testing.assert_close(layer(film[..., :6]), F.conv2d(F.pad(film[..., :6], (1,)*4, mode='reflect'), layer.weight, layer.bias))


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('kind', [torch.float32, torch.bfloat16])
def test_the_largest_of_four(layout, kind):
    torch.manual_seed(0)
    x = torch.randn(3, 4, 6, 10).to(kind).contiguous(memory_format=layout)
    for a, b in zip(gradients(MaxPool(), x), gradients(lambda x: F.max_pool2d(x, 2), x)): assert torch.equal(a, b)
    x[0, 0, :2, :2] = float('nan') # is seen, and not passed over
    assert MaxPool()(x)[0, 0, 0, 0].isnan()
    y, grad = gradients(MaxPool(), torch.zeros(1, 1, 4, 4)) # of equal ones, one has all of it
    assert (grad != 0).sum() == 4 and torch.equal(F.max_pool2d(grad.abs(), 2)[0, 0], torch.arange(4.).cos().view(2, 2).abs())
