"""Hash grids of several participants: one each, one for all, or one in which everybody has a place of their own.

Conventions: positions are [n, 3], in metres in the space of the participant's box (`normalise`) or in [0, 1] within it;
features are those of `encodings.hash_grid`.
"""

from dataclasses import replace
from typing import Literal, Tuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dialogue_nerfstudio.encodings.hash_grid import HashGridConfig
from dialogue_nerfstudio.encodings.spatial import EncodingName, spatial_encoding

GridSharing = Literal["per-participant", "shared", "atlas"]


def blocks_per_axis(num_participants: int, encoding: EncodingName = "grid") -> int:
    """Blocks along an axis of the smallest cube of blocks that has one for each participant: b³ of them in a grid over
    space, b² in a tri-plane, because no two may lie behind each other along any axis."""
    dimensions = 3 if encoding == "grid" else 2
    blocks = 1
    while blocks**dimensions < num_participants:
        blocks += 1
    return blocks


def atlas_block(participant: int, blocks: int, encoding: EncodingName = "grid") -> Tuple[int, int, int]:
    """The participant's block in the cube. Those of a tri-plane form a Latin square: in each of its three planes all
    participants have places of their own."""
    x, y = participant % blocks, participant // blocks % blocks
    return x, y, participant // blocks**2 % blocks if encoding == "grid" else (x + y) % blocks


def atlas_config(config: HashGridConfig, num_participants: int, encoding: EncodingName = "grid") -> HashGridConfig:
    """The grid that holds everybody's block: cells as small as `config`'s, and a table that grows as the square root
    of the number of participants, in powers of two (2 share one of the size of one; 4 one of twice that)."""
    blocks = blocks_per_axis(num_participants, encoding)
    return replace(
        config,
        base_resolution=config.base_resolution * blocks,
        max_resolution=config.max_resolution * blocks,
        log2_hashmap_size=config.log2_hashmap_size + (num_participants.bit_length() - 1) // 2,
    )


class ParticipantGrids(nn.Module):
    """Hash grids over a box of each participant.

    - "per-participant": a table each. Parameters grow with the number of participants.
    - "shared": one table, read at the same place for everybody; only latent codes tell participants apart, as in
      DialogueNeRF's section 4.2. Whatever is stored has to serve everybody.
    - "atlas": one table over a cube of blocks, a block each, so that the same place of two heads hashes to unrelated
      entries. Collisions between participants are resolved as Müller et al. 2022, section 3, resolve those within one
      scene: whoever sees an entry more often decides it, and the other levels and the network tell the rest apart.

    Args:
        config: of the grid over one box.
        sharing: one of the above.
        boxes: of the participants.
        encoding: what reads each box: a hash grid, or another of `encodings.spatial`.
    """

    box_min: Float[Tensor, "participants 3"]
    box_size: Float[Tensor, "participants 3"]

    def __init__(
        self,
        config: HashGridConfig,
        sharing: GridSharing,
        boxes: Float[Tensor, "participants 2 3"],
        encoding: EncodingName = "grid",
    ):
        super().__init__()
        self.sharing, self.encoding, self.blocks = sharing, encoding, 1
        if sharing == "atlas":
            self.blocks = blocks_per_axis(len(boxes), encoding)
            config = atlas_config(config, len(boxes), encoding)
        self.grids = nn.ModuleList(
            spatial_encoding(encoding, config) for _ in range(len(boxes) if sharing == "per-participant" else 1)
        )
        self.register_buffer("box_min", boxes[:, 0].clone())
        self.register_buffer("box_size", (boxes[:, 1] - boxes[:, 0]).clone())

    @property
    def out_dim(self) -> int:
        return self.grids[0].out_dim

    def normalise(self, positions: Float[Tensor, "n 3"], participant: int) -> Float[Tensor, "n 3"]:
        """Metres to [0, 1] within the participant's box."""
        return (positions - self.box_min[participant]) / self.box_size[participant]

    def forward(self, unit_positions: Float[Tensor, "n 3"], participant: int) -> Float[Tensor, "n features"]:
        """Features at positions of [0, 1]; positions outside get those of the box's surface."""
        grid = self.grids[participant if self.sharing == "per-participant" else 0]
        inside = unit_positions.clamp(0.0, 1.0)
        if self.blocks > 1:
            block = atlas_block(participant, self.blocks, self.encoding)
            inside = (inside + torch.tensor(block, device=inside.device)) / self.blocks
        return grid(inside).float()
