"""Head and torso fields translated into block programs, for one participant and one frame.

What a translation does not know it refuses by returning None, and the field is evaluated by torch: parameters or
modules that it was not written for, options of later making that are not at their defaults, tensors that are not
float32 on the CPU. Tests hold the programs against the fields.
"""

from dataclasses import MISSING, fields
from typing import Any, Iterable, Optional, Set

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dialogue_nerfstudio.encodings.hash_grid import HashGrid
from dialogue_nerfstudio.encodings.spatial import PLANES, TriPlane
from dialogue_nerfstudio.fields.conditioning import frequency_encoding
from dialogue_nerfstudio.fields.head_field import HeadField
from dialogue_nerfstudio.fields.participant_grids import ParticipantGrids, atlas_block
from dialogue_nerfstudio.fields.program import (
    DIRECTION_ROW,
    POSITION_ROW,
    FieldProgram,
    ProgramBuilder,
    matrix,
    padded,
)
from dialogue_nerfstudio.fields.signal_encoder import HeadSignal
from dialogue_nerfstudio.fields.torso_field import TorsoField

HEAD_CHILDREN = {
    *("codes", "grid", "gate", "density_input", "density_code", "density_face", "density_eyes", "density_modulation"),
    *("density_hidden", "colour_input", "colour_code", "colour_direction", "colour_face", "colour_eyes"),
    "colour_hidden",
}
HEAD_OPTIONS = {
    *(
        "grid",
        "encoding",
        "hidden_width",
        "density_layers",
        "colour_layers",
        "geometry_features",
        "latent_size",
        "face_regions",
    ),
    *("eye_regions", "initial_density", "mlp_kernel", "view_dependent"),
}
TORSO_CHILDREN = {
    *("codes", "grid", "deformation", "input_layer", "condition_layer", "hidden", "density_output", "colour_code"),
    "colour_output",
}
TORSO_OPTIONS = {
    *(
        "grid",
        "encoding",
        "deformation",
        "deform",
        "pose_frequencies",
        "pose_appearance",
        "pose_history",
        "sway",
        "sway_size",
        "hidden_width",
    ),
    *("hidden_layers", "latent_size", "initial_density"),
}
DEFORMATION_CHILDREN = {"affine", "position_layer", "condition_layer", "hidden", "output_layer"}
DEFORMATION_OPTIONS = {"position_frequencies", "hidden_width", "hidden_layers"}
GRID_OPTIONS = {
    *("num_dims", "num_levels", "features_per_level", "log2_hashmap_size", "base_resolution", "max_resolution"),
    "kernel",
}


def _is_known(module: nn.Module, children: Set[str], options: Set[str]) -> bool:
    """Whether a module has no other parts and no other options away from their defaults."""
    names = {name for name, _ in module.named_children()} | {name for name, _ in module.named_parameters(recurse=False)}
    if not names <= children:
        return False
    for option in fields(module.config):
        if option.name not in options:
            default = option.default if option.default is not MISSING else option.default_factory()
            if getattr(module.config, option.name) != default:
                return False
    return all(p.device.type == "cpu" and p.dtype == torch.float32 for p in module.parameters())


def _grid_is_known(grids: Any) -> bool:
    return (
        type(grids) is ParticipantGrids
        and grids.sharing in ("per-participant", "shared", "atlas")
        and {name for name, _ in grids.named_children()} == {"grids"}
        and all(_encoding_is_known(encoding) for encoding in grids.grids)
    )


def _encoding_is_known(encoding: nn.Module) -> bool:
    grids, num_dims = (list(encoding.planes), 2) if type(encoding) is TriPlane else ([encoding], 3)
    return all(
        type(grid) is HashGrid and _is_known(grid, {"table"}, GRID_OPTIONS) and grid.config.num_dims == num_dims
        for grid in grids
    )


def head_is_known(field: nn.Module) -> bool:
    """Whether `head_program` can translate this field."""
    return type(field) is HeadField and _is_known(field, HEAD_CHILDREN, HEAD_OPTIONS) and _grid_is_known(field.grid)


def torso_is_known(field: nn.Module) -> bool:
    """Whether `torso_program` can translate this field."""
    if type(field) is not TorsoField or not _is_known(field, TORSO_CHILDREN, TORSO_OPTIONS):
        return False
    if field.config.deform and not _is_known(field.deformation, DEFORMATION_CHILDREN, DEFORMATION_OPTIONS):
        return False
    return _grid_is_known(field.grid)


def _box_coordinates(build: ProgramBuilder, grids: ParticipantGrids, participant: int, low: float) -> int:
    """Position in the participant's box, from `low` to 1."""
    scale = (1.0 - low) / grids.box_size[participant]
    return build.dense(POSITION_ROW, torch.diag(scale), low - grids.box_min[participant] * scale)


def _grid_features(
    build: ProgramBuilder, grids: ParticipantGrids, participant: int, position: int, out: Optional[int] = None
) -> int:
    """`ParticipantGrids.forward` at positions of [0, 1] in the participant's box; where the features are."""
    grid = grids.grids[participant if grids.sharing == "per-participant" else 0]
    if grids.blocks > 1:
        block = torch.tensor(atlas_block(participant, grids.blocks, grids.encoding), dtype=torch.float32)
        build.clamp(position, 3)
        position = build.dense(position, torch.eye(3) / grids.blocks, block / grids.blocks)
    out = build.rows(grid.out_dim) if out is None else out
    if not isinstance(grid, TriPlane):
        build.grid(position, grid, out)
        return out
    at = out
    for plane, axes in zip(grid.planes, PLANES, strict=True):
        # The plane's axes first; which one comes third does not matter.
        order = torch.eye(3)[:, [*axes, 3 - sum(axes)]]
        build.grid(build.dense(position, order, torch.zeros(3)), plane, at)
        at += plane.out_dim
    return out


def _layers(build: ProgramBuilder, first: int, layers: Iterable[nn.Module]) -> int:
    """Linear layers, all but a last one that ends the list followed by a ReLU; where the result is. A ReLU in front
    belongs to the layer before."""
    layers = list(layers)
    for index, layer in enumerate(layers):
        if isinstance(layer, nn.Linear):
            first = build.dense(first, matrix(layer), layer.bias, relu=index + 1 < len(layers))
    return first


@torch.no_grad()
def head_program(field: HeadField, participant: int, signal: HeadSignal) -> Optional[FieldProgram]:
    """`HeadField.density` and `.colour` for one frame's signal; None where the field has parts unknown here."""
    if not head_is_known(field) or signal.appearance is not None:
        return None
    config = field.config
    regions = config.face_regions + field.eye_regions
    shape_code, appearance_code = field.codes.of(participant)

    build = ProgramBuilder()
    num_features = field.grid.out_dim
    position = _box_coordinates(build, field.grid, participant, low=0.0)
    # The first layer's inputs are neighbours: features, features · last gate, gates.
    features = build.rows(2 * num_features + padded(regions + 1))
    modulated, gates = features + num_features, features + 2 * num_features
    # The gates and the last layer's outputs are neighbours too: they are what colour needs.
    raw = build.rows(padded(1 + config.geometry_features))
    stop = raw + 1 + config.geometry_features
    _grid_features(build, field.grid, participant, position, features)
    hidden = build.dense(features, matrix(field.gate[0]), field.gate[0].bias, relu=True)
    build.dense(hidden, matrix(field.gate[2]), field.gate[2].bias, out=gates)
    build.sigmoid(gates, regions + 1)
    build.multiply(features, num_features, gates + regions, modulated)
    modulation = field.density_modulation(torch.cat([signal.face, signal.eyes], dim=-1))
    by_signal = field._signal_matrices(field.density_face, field.density_eyes, signal)[0]
    weights = torch.cat([matrix(field.density_input), modulation.view(num_features, -1), by_signal])
    hidden = build.dense(features, weights, field.density_code(shape_code), relu=True)
    *inner, last = field.density_hidden
    hidden = _layers(build, hidden, inner)
    build.dense(hidden, matrix(last), last.bias, out=raw)
    density_row = build.exponential(raw, config.initial_density)
    density = build.finish()

    build = ProgramBuilder(first_row=stop)
    direction = build.direction(DIRECTION_ROW)
    bias = field.colour_direction.bias, field.colour_code(appearance_code)
    hidden = build.dense(direction, matrix(field.colour_direction), sum(b for b in bias if b is not None))
    build.dense_add(gates, field._signal_matrices(field.colour_face, field.colour_eyes, signal)[0], hidden)
    build.dense_add(raw + 1, matrix(field.colour_input), hidden, relu=True)
    red = _layers(build, hidden, field.colour_hidden)
    build.sigmoid(red, 3)
    return FieldProgram(density, density_row, (gates, stop), build.finish(), red)


@torch.no_grad()
def torso_program(field: TorsoField, participant: int, et: Float[Tensor, "1 pose"]) -> Optional[FieldProgram]:
    """`TorsoField.density` and `.colour` for one frame's pose; None where the field has parts unknown here."""
    if not torso_is_known(field):
        return None
    config = field.config
    condition = frequency_encoding(et, config.pose_frequencies)
    shape_code, appearance_code = field.codes.of(participant)

    build = ProgramBuilder()
    position = _box_coordinates(build, field.grid, participant, low=0.0)
    if config.deform:
        deformation = field.deformation
        signed = _box_coordinates(build, field.grid, participant, low=-1.0)
        encoded = build.frequency(signed, deformation.config.position_frequencies)
        bias = deformation.condition_layer(torch.cat([condition[0], shape_code]))
        hidden = build.dense(encoded, matrix(deformation.position_layer), bias, relu=True)
        hidden = _layers(build, hidden, deformation.hidden)
        # x′ in [0, 1] is position + ½ shift, and the shift's affine part joins the network's.
        affine = (et @ deformation.affine[participant]).view(4, 3)
        last = deformation.output_layer
        moved = build.dense(hidden, 0.5 * matrix(last), 0.5 * (last.bias + affine[3]))
        build.dense_add(signed, 0.5 * affine[:3], moved)
        build.dense_add(position, torch.eye(3), moved)
        position = moved
    features = _grid_features(build, field.grid, participant, position)
    constant = shape_code
    if config.pose_appearance:
        constant = torch.cat([condition[0], shape_code])
    hidden = build.dense(features, matrix(field.input_layer), field.condition_layer(constant), relu=True)
    geometry = _layers(build, hidden, field.hidden)
    raw = build.dense(geometry, matrix(field.density_output), field.density_output.bias)
    density_row = build.exponential(raw, config.initial_density)
    density = build.finish()

    stop = geometry + config.hidden_width
    build = ProgramBuilder(first_row=stop)
    red = build.dense(geometry, matrix(field.colour_output), field.colour_code(appearance_code))
    build.sigmoid(red, 3)
    return FieldProgram(density, density_row, (geometry, stop), build.finish(), red)
