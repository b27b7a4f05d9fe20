"""Slab test and sampling along rays against hand cases and many random points."""

import torch

from dialogue_nerfstudio.rendering.boxes import intersect_box
from dialogue_nerfstudio.rendering.sampling import points_along, stratified

BOX = torch.tensor([[-1.0, -2.0, -0.5], [1.0, 0.5, 0.5]])


def test_hand_cases() -> None:
    origins = torch.tensor([[0, 0, 3], [0, 0, 3], [0, 3, 0], [0, 0, 0], [-1, 0, 3], [5, 0, 0]]).float()
    directions = torch.tensor([[0, 0, -1], [0, 0, 1], [0, 0, -1], [0, 0, -2], [0, 0, -1], [-1, 0, 0]]).float()
    near, far = intersect_box(origins, directions, BOX[0], BOX[1])
    hit = far > near
    # Through the middle; away from it; beside it; from inside, with a direction of length 2; along a face; along x.
    assert hit.tolist() == [True, False, False, True, True, True]
    torch.testing.assert_close(near[hit], torch.tensor([2.5, 0.0, 2.5, 4.0]))
    torch.testing.assert_close(far[hit], torch.tensor([3.5, 0.25, 3.5, 6.0]))


def test_hits_are_where_dense_points_are_inside() -> None:
    origins, directions = torch.randn(300, 3) * 2, torch.randn(300, 3)
    near, far = intersect_box(origins, directions, BOX[0], BOX[1])
    t = torch.linspace(0, 20, 4000).expand(300, -1)
    points = points_along(origins, directions, t)
    inside = ((points >= BOX[0]) & (points <= BOX[1])).all(dim=-1)
    predicted = (t > near[:, None]) & (t < far[:, None])
    assert (inside == predicted).float().mean() > 0.9999


def test_one_box_a_ray() -> None:
    origins, directions = torch.tensor([[0.0, 0, 3]]).repeat(2, 1), torch.tensor([[0.0, 0, -1]]).repeat(2, 1)
    near, _ = intersect_box(origins, directions, BOX[:1].repeat(2, 1), torch.tensor([[1, 1, 0.5], [1, 1, 0.25]]))
    torch.testing.assert_close(near, torch.tensor([2.5, 2.75]))


def test_samples_tile_the_interval() -> None:
    near, far = torch.rand(20), torch.rand(20) + 1.0
    for perturb in (False, True):
        t, delta = stratified(near, far, 16, perturb)
        torch.testing.assert_close(delta.sum(dim=-1), far - near)
        bins = near[:, None] + torch.arange(17) * ((far - near) / 16)[:, None]
        assert (t >= bins[:, :-1] - 1e-6).all() and (t <= bins[:, 1:] + 1e-6).all()
    first = stratified(near, far, 16, True, torch.Generator().manual_seed(1))[0]
    assert torch.equal(first, stratified(near, far, 16, True, torch.Generator().manual_seed(1))[0])


def test_missed_boxes_weigh_nothing() -> None:
    t, delta = stratified(torch.tensor([2.0]), torch.tensor([1.0]), 4, perturb=True)
    assert (delta == 0).all() and (t == 2.0).all()
