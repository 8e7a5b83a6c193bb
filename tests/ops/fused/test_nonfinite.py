"""NaN and infinities reach the queries that see them and no others, in outputs and in every gradient."""

import pytest
import torch

from landmark.ops.attention import landmark_attention

BLOCK, LENGTH, DIM = 3, 22, 16
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BACKENDS = ["reference", "blockwise", "fused"]


def inputs():
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, heads, LENGTH, DIM) for heads in (4, 2, 2)]
    return [torch.randn(shape, generator=generator).to(DEVICE) for shape in shapes]


def masks(name):
    """Options of attention, and which positions are hidden from which: bool [B,T,T], or [B,1,T]."""
    place = torch.arange(LENGTH, device=DEVICE)
    if name == "padding":
        mask = torch.ones(2, LENGTH, dtype=torch.bool, device=DEVICE)
        mask[0, :6] = mask[1, 17:] = False
        return {"key_mask": mask}
    if name == "documents":
        return {"document_ids": torch.stack((place // 9, place // 14))}
    return {}


def results(backend, tensors, options, weights):
    leaves = [x.clone().requires_grad_() for x in tensors]
    out = landmark_attention(*leaves, block_size=BLOCK, backend=backend, **options)
    # Who looks at no row that is NaN gets no gradient from it.
    loss = torch.where(weights != 0, out, 0.0).mul(weights).sum()
    return [out.detach(), *torch.autograd.grad(loss, leaves)]


def close(found, wanted):
    for x, y in zip(found, wanted, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("number", [torch.nan, -torch.inf])
def test_values_of_landmarks_are_not_read(backend, softcap, number):
    q, k, v = inputs()
    options = {"softcap": softcap}
    weights = torch.randn_like(q)
    wanted = results(backend, (q, k, v), options, weights)
    v[:, :, BLOCK :: BLOCK + 1] = number
    close(results(backend, (q, k, v), options, weights), wanted)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("number", [torch.nan, torch.inf])
def test_padding_is_not_read(backend, softcap, number):
    q, k, v = inputs()
    options = masks("padding") | {"softcap": softcap}
    real = options["key_mask"][:, None, :, None]
    weights = torch.randn_like(q) * real
    wanted = [x * real for x in results(backend, (q, k, v), options, weights)]
    tainted = [torch.where(real, x, number) for x in (q, k, v)]
    found = results(backend, tainted, options, weights)
    close([torch.where(real, x, 0.0) for x in found], wanted)
    assert all(x[~real.expand_as(x)].eq(0).all() for x in found[2:])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize(("which", "number"), [("key", torch.nan), ("value", torch.nan), ("value", torch.inf)])
def test_other_documents_are_not_read(backend, softcap, which, number):
    q, k, v = inputs()
    options = masks("documents") | {"softcap": softcap}
    documents = options["document_ids"]
    own = (documents == documents[:, 10:11])[:, None, :, None]  # the document of position 10
    weights = torch.randn_like(q) * own
    wanted = [x * own for x in results(backend, (q, k, v), options, weights)]
    tainted = {"key": k.clone(), "value": v.clone()}
    tainted[which] = torch.where(own, tainted[which], number)
    found = results(backend, (q, tainted["key"], tainted["value"]), options, weights)
    close([torch.where(own, x, 0.0) for x in found], wanted)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("which", "number"), [("key", torch.nan), ("value", torch.nan), ("value", torch.inf)])
@pytest.mark.parametrize("place", [5, 7, 13])
def test_who_sees_it_and_nobody_else(backend, which, number, place):
    """Position 7 is a landmark, whose key is seen from its next block on, and whose value by nobody."""
    q, k, v = inputs()
    wanted = results(backend, (q, k, v), {}, torch.zeros_like(q))[0]
    tainted = {"key": k, "value": v}[which]
    tainted[0, 1, place, 2] = number
    found = landmark_attention(q, k, v, block_size=BLOCK, backend=backend)
    seen = torch.zeros_like(found, dtype=torch.bool)
    if which == "key":
        seen[0, 2:, place if place != 7 else 8 :] = True
    elif place != 7:
        seen[0, 2:, place:, 2] = True
    assert torch.equal(~found.isfinite(), seen)
    torch.testing.assert_close(found[~seen], wanted[~seen], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("which", ["key", "value"])
def test_later_tokens_are_not_read_in_gradients(backend, which):
    q, k, v = inputs()
    weights = torch.randn_like(q)
    wanted = results(backend, (q, k, v), {}, weights)[1]
    {"key": k, "value": v}[which][:, :, 14:] = torch.nan
    found = results(backend, (q, k, v), {}, weights)[1]
    torch.testing.assert_close(found[:, :, :14], wanted[:, :, :14], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_gradient_of_who_sees_it_is_not_finite(backend):
    q, k, v = inputs()
    v[0, 0, 5, 2] = torch.nan
    query_grad = results(backend, (q, k, v), {}, torch.ones_like(q))[1]
    assert query_grad[0, :2, 5:].isnan().any(-1).all()
    assert query_grad[0, :2, :5].isfinite().all()
    assert query_grad[0, 2:].isfinite().all()
    assert query_grad[1].isfinite().all()


def test_blocks_of_several_tiles_too():
    place = torch.arange(290, device=DEVICE)
    options = {"document_ids": (place // 140)[None], "block_size": 130, "softcap": 2.0}
    own = (options["document_ids"] == 1)[:, None, :, None]
    q, k, v = (torch.randn(1, 1, 290, DIM, device=DEVICE) for _ in range(3))
    outs = []
    for inputs in ([q, k, v], [q, *(torch.where(own, x, torch.nan) for x in (k, v))]):
        leaves = [x.clone().requires_grad_() for x in inputs]
        out = torch.where(own, landmark_attention(*leaves, **options, backend="fused"), 0.0)
        outs.append([out.detach(), *(torch.where(own, x, 0.0) for x in torch.autograd.grad(out.sum(), leaves))])
    close(outs[1], outs[0])
