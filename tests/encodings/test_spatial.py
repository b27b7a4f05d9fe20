"""Encodings by name: a tri-plane is three plane grids side by side, constant along each plane's normal."""

import pytest
import torch

from dialogue_nerfstudio.conversation import DialogueError
from dialogue_nerfstudio.encodings.hash_grid import HashGrid, HashGridConfig
from dialogue_nerfstudio.encodings.spatial import TriPlane, spatial_encoding

SMALL = HashGridConfig(num_levels=3, features_per_level=2, log2_hashmap_size=8, base_resolution=4, max_resolution=16)


def test_a_tri_plane_is_three_plane_grids():
    torch.manual_seed(0)
    encoding = spatial_encoding("tri-plane", SMALL)
    for plane in encoding.planes:
        torch.nn.init.uniform_(plane.table, -1.0, 1.0)
    positions = torch.rand(50, 3)
    features = encoding(positions)
    assert features.shape == (50, encoding.out_dim) == (50, 18)
    xy, yz, xz = features.split(6, dim=-1)
    for part, axes, normal, plane in ((xy, [0, 1], 2, 0), (yz, [1, 2], 0, 1), (xz, [0, 2], 1, 2)):
        torch.testing.assert_close(part, encoding.planes[plane](positions[:, axes]))
        moved = positions.clone()
        moved[:, normal] = torch.rand(50)
        torch.testing.assert_close(encoding(moved)[:, 6 * plane : 6 * plane + 6], part)


def test_tables_get_gradients_and_positions_too():
    encoding = TriPlane(SMALL)
    for plane in encoding.planes:
        torch.nn.init.uniform_(plane.table, -1.0, 1.0)
    positions = torch.rand(20, 3, requires_grad=True)
    encoding(positions).square().sum().backward()
    assert all(plane.table.grad.abs().sum() > 0 for plane in encoding.planes)
    assert (positions.grad.abs().sum(dim=0) > 0).all()
    assert all(name.endswith(".table") for name, _ in encoding.named_parameters())


def test_a_grid_by_name_and_an_unknown_name():
    assert isinstance(spatial_encoding("grid", SMALL), HashGrid)
    with pytest.raises(DialogueError, match="no encoding 'cube'"):
        spatial_encoding("cube", SMALL)
