"""Grids of several participants: who reads what, and how their parameters grow."""

import pytest
import torch

from dialogue_nerfstudio.encodings.hash_grid import HashGridConfig
from dialogue_nerfstudio.fields.participant_grids import ParticipantGrids, atlas_config, blocks_per_axis

CONFIG = HashGridConfig(num_levels=3, log2_hashmap_size=19, base_resolution=8, max_resolution=16, kernel="torch")


def grids(sharing, num_participants, config=CONFIG):
    torch.manual_seed(0)
    boxes = torch.tensor([[-1.0, -1.0, -1.0], [1.0, 1.0, 1.0]]).expand(num_participants, 2, 3)
    module = ParticipantGrids(config, sharing, boxes)
    for grid in module.grids:
        torch.nn.init.normal_(grid.table)
    return module


def touched(module, participant):
    """Entries that the inside of a participant's box reads."""
    module.zero_grad()
    # More than a cell away from the surface, where neighbouring blocks meet.
    module(0.2 + 0.6 * torch.rand(4096, 3), participant).sum().backward()
    grid = module.grids[participant if module.sharing == "per-participant" else 0]
    return grid.table.grad.abs().sum(dim=-1) > 0


def test_an_atlas_without_collisions_keeps_everybody_apart():
    module = grids("atlas", 5)
    entries = [touched(module, participant) for participant in range(5)]
    assert len(module.grids) == 1 and all(mask.any() for mask in entries)
    assert not (torch.stack(entries).sum(dim=0) > 1).any()


@pytest.mark.parametrize("num_participants", [2, 4, 7])
def test_in_an_atlas_of_planes_nobody_lies_behind_anybody(num_participants):
    boxes = torch.tensor([[-1.0, -1.0, -1.0], [1.0, 1.0, 1.0]]).expand(num_participants, 2, 3)
    module = ParticipantGrids(CONFIG, "atlas", boxes, "tri-plane")
    entries = []
    for participant in range(num_participants):
        module.zero_grad()
        module(0.2 + 0.6 * torch.rand(4096, 3), participant).sum().backward()
        entries.append([plane.table.grad.abs().sum(dim=-1) > 0 for plane in module.grids[0].planes])
    for plane in range(3):
        read = torch.stack([of_person[plane] for of_person in entries])
        assert read.any(dim=1).all() and not (read.sum(dim=0) > 1).any()


def test_a_shared_grid_reads_the_same_for_everybody():
    module = grids("shared", 3)
    positions = torch.rand(50, 3)
    assert torch.equal(module(positions, 0), module(positions, 2))


@pytest.mark.parametrize("num_participants, blocks, doublings", [(1, 1, 0), (2, 2, 0), (3, 2, 0), (4, 2, 1), (9, 3, 1)])
def test_an_atlas_keeps_the_size_of_cells(num_participants, blocks, doublings):
    assert blocks_per_axis(num_participants) == blocks
    config = atlas_config(CONFIG, num_participants)
    assert config.base_resolution == blocks * CONFIG.base_resolution
    assert config.max_resolution == blocks * CONFIG.max_resolution
    assert config.log2_hashmap_size == CONFIG.log2_hashmap_size + doublings
    if num_participants == 1:
        alone, atlas = grids("per-participant", 1), grids("atlas", 1)
        positions = torch.rand(20, 3)
        assert torch.equal(alone(positions, 0), atlas(positions, 0))


def test_parameters_of_an_atlas_grow_slower_than_people():
    hashed = HashGridConfig(log2_hashmap_size=12, kernel="torch")
    sizes = {p: sum(t.numel() for t in grids("atlas", p, hashed).parameters()) for p in (1, 2, 4, 8, 16)}
    separate = {p: sum(t.numel() for t in grids("per-participant", p, hashed).parameters()) for p in sizes}
    assert separate[4] == 4 * separate[1]
    assert sizes[2] < 1.6 * sizes[1] and sizes[4] < 2.6 * sizes[1]
    assert all(sizes[p] < p**0.75 * separate[1] for p in sizes if p > 1)


def test_positions_outside_the_box_read_its_surface():
    module = grids("atlas", 4)
    outside, surface = torch.tensor([[1.7, 0.5, -2.0]]), torch.tensor([[1.0, 0.5, 0.0]])
    assert torch.equal(module(outside, 3), module(surface, 3))
