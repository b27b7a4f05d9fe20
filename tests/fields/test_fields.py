"""Head and torso fields: shapes, what depends on what, gradients, the deformation's start."""

import pytest
import torch

from dialogue_nerfstudio.encodings.hash_grid import HashGridConfig
from dialogue_nerfstudio.fields.deformation import Deformation, DeformationConfig
from dialogue_nerfstudio.fields.head_field import HeadField, HeadFieldConfig
from dialogue_nerfstudio.fields.signal_encoder import HeadSignal, SignalEncoder, SignalEncoderConfig
from dialogue_nerfstudio.fields.torso_field import TorsoField, TorsoFieldConfig

GRID = HashGridConfig(num_levels=4, log2_hashmap_size=10, base_resolution=4, max_resolution=16, kernel="torch")
BOXES = torch.tensor([[[-0.1, -0.1, -0.1], [0.1, 0.1, 0.1]], [[-0.2, -0.2, -0.2], [0.2, 0.2, 0.2]]])
COUNTS = [6, 10]


def head_field(sharing="per-participant"):
    field = HeadField(HeadFieldConfig(view_dependent=True, grid=GRID), sharing, BOXES, face=8, eyes=4)
    for grid in field.grid.grids:
        torch.nn.init.uniform_(grid.table, -0.5, 0.5)
    return field


def torso_field(sharing="per-participant", **options):
    field = TorsoField(TorsoFieldConfig(grid=GRID, **options), sharing, BOXES)
    for grid in field.grid.grids:
        torch.nn.init.uniform_(grid.table, -0.5, 0.5)
    return field


def head_inputs():
    points = (torch.rand(16, 3) - 0.5) * 0.2
    directions = torch.nn.functional.normalize(torch.randn(5, 3), dim=-1)
    rays = torch.tensor([0] * 6 + [1, 1, 2, 2, 3, 3, 3, 4, 4, 4])
    return points, directions, rays, HeadSignal(face=torch.randn(2, 8), eyes=torch.randn(2, 4))


def evaluate_head(field, points, directions, rays, signal, participant=0):
    density, geometry, gates = field.density(points, participant, signal, COUNTS)
    return density, field.colour(geometry, gates, directions, rays, participant, signal, COUNTS), gates


@pytest.mark.parametrize("sharing", ["per-participant", "shared"])
def test_head_shapes_and_gradients(sharing):
    field = head_field(sharing)
    points, directions, rays, signal = head_inputs()
    signal.face.requires_grad_(), signal.eyes.requires_grad_()
    results = [evaluate_head(field, points, directions, rays, signal, participant) for participant in (0, 1)]
    for density, colour, gates in results:
        assert density.shape == (16,) and colour.shape == (16, 3) and gates.shape == (16, 7)
        assert (density > 0).all() and (colour >= 0).all() and (colour <= 1).all()
    sum(density.log().square().sum() + colour.square().sum() for density, colour, _ in results).backward()
    silent = [name for name, p in field.named_parameters() if p.grad is None or p.grad.abs().sum() == 0]
    assert silent == []
    assert signal.face.grad.abs().sum() > 0 and signal.eyes.grad.abs().sum() > 0


def test_the_signal_moves_geometry_and_colour_of_its_own_frame_only():
    field = head_field()
    points, directions, rays, signal = head_inputs()
    other = HeadSignal(face=signal.face.clone(), eyes=signal.eyes)
    other.face[1] += 1.0
    before, after = (
        evaluate_head(field, points, directions, rays, signal),
        evaluate_head(field, points, directions, rays, other),
    )
    assert torch.equal(before[0][:6], after[0][:6]) and torch.equal(before[1][:6], after[1][:6])
    assert (before[0][6:] != after[0][6:]).all() and (before[1][6:] != after[1][6:]).any()


def test_a_closed_gate_keeps_the_signal_out():
    field = head_field()
    torch.nn.init.constant_(field.gate[-1].bias, -1e4)
    points, directions, rays, signal = head_inputs()
    other = HeadSignal(face=signal.face + 1.0, eyes=signal.eyes - 1.0)
    for before, after in zip(
        evaluate_head(field, points, directions, rays, signal),
        evaluate_head(field, points, directions, rays, other),
        strict=True,
    ):
        torch.testing.assert_close(before, after)


def test_participants_differ_by_codes_where_the_grid_is_shared():
    field = head_field("shared")
    points, directions, rays, signal = head_inputs()
    scaled = points * 2.0  # The same place in the second participant's box.
    one, two = (evaluate_head(field, p, directions, rays, signal, i) for i, p in enumerate((points, scaled)))
    assert not torch.allclose(one[0], two[0])
    field.codes.shape.data[1], field.codes.appearance.data[1] = field.codes.shape[0], field.codes.appearance[0]
    same = evaluate_head(field, scaled, directions, rays, signal, 1)
    torch.testing.assert_close(one[0], same[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(one[1], same[1], rtol=1e-4, atol=1e-5)


def test_deformation_starts_as_the_identity_and_can_learn():
    deformation = Deformation(DeformationConfig(), pose_size=6, condition_size=6, num_participants=2)
    points, condition = torch.rand(16, 3) * 2 - 1, torch.randn(2, 6)
    assert deformation(points, condition, condition, COUNTS, 0).abs().max() == 0
    torch.nn.init.normal_(deformation.output_layer.weight)
    shift = deformation(points, condition, condition, COUNTS, 0)
    moved = deformation(points, condition, condition + torch.tensor([[0.0], [1.0]]), COUNTS, 0)
    assert torch.equal(shift[:6], moved[:6]) and not torch.allclose(shift[6:], moved[6:])


def test_the_affine_part_of_the_deformation_can_be_any_rigid_motion_linear_in_the_pose():
    deformation = Deformation(DeformationConfig(), pose_size=6, condition_size=6, num_participants=2)
    pose, points = torch.randn(2, 6), torch.rand(16, 3) * 2 - 1
    # Column k is entry k of the 4 x 3 matrix [linear part; shift]: let translation x shift along y.
    deformation.affine.data[1, 3, 3 * 3 + 1] = 0.5
    shift = deformation(points, pose, pose, COUNTS, 1)
    expected = torch.zeros(16, 3)
    expected[:6, 1], expected[6:, 1] = 0.5 * pose[0, 3], 0.5 * pose[1, 3]
    torch.testing.assert_close(shift, expected)
    # Another body follows its own head in its own way.
    assert deformation(points, pose, pose, COUNTS, 0).abs().max() == 0


@pytest.mark.parametrize(
    "deform, pose_history, pose_appearance, sway, size",
    [(True, 0, False, True, 12), (True, 12, True, True, 18), (False, 0, True, False, 6)],
)
def test_torso_shapes_and_gradients(deform, pose_history, pose_appearance, sway, size):
    field = torso_field(deform=deform, pose_history=pose_history, pose_appearance=pose_appearance, sway=sway)
    points, et = (torch.rand(16, 3) - 0.5) * 0.2, torch.rand(2, size) - 0.5
    if deform:
        torch.nn.init.normal_(field.deformation.output_layer.weight, std=0.1)
    total = 0.0
    for participant in (0, 1):
        density, geometry, shift = field.density(points, participant, et, COUNTS)
        colour = field.colour(geometry, participant)
        assert density.shape == (16,) and colour.shape == (16, 3) and shift.shape == (16, 3)
        assert deform or shift.abs().max() == 0
        total = total + density.log().square().sum() + colour.square().sum()
    total.backward()
    assert [n for n, p in field.named_parameters() if p.grad is None or p.grad.abs().sum() == 0] == []


def test_signal_encoder_takes_audio_or_expression_but_never_both():
    encoder = SignalEncoder(SignalEncoderConfig(), num_participants=2, expression_size=5, residual_size=3)
    mel, frames = torch.randn(10, 16, 80), torch.tensor([4, 5])
    from_audio, audible = torch.tensor([True, False]), torch.tensor([True, True])
    expression, residual = torch.randn(2, 5), torch.randn(2, 3)
    blink, gaze = torch.rand(2, 2), torch.randn(2, 4)

    def encode(**changes):
        inputs = dict(audio=mel, expression=expression, residual=residual, blink=blink, gaze=gaze) | changes
        return encoder(0, frames, from_audio, audible, **inputs)

    before = encode()
    other_sound, other_face = encode(audio=mel + 1.0), encode(expression=expression + 1.0)
    assert not torch.allclose(before.face[0], other_sound.face[0]) and torch.equal(before.face[1], other_sound.face[1])
    assert torch.equal(before.face[0], other_face.face[0]) and not torch.allclose(before.face[1], other_face.face[1])
    other_eyes = encode(blink=1.0 - blink)
    assert torch.equal(before.face, other_eyes.face) and (before.eyes != other_eyes.eyes).any(dim=1).all()
    sum(value.square().sum() for value in (before.face, before.eyes)).backward()
    assert [n for n, p in encoder.named_parameters() if p.grad is None or p.grad.abs().sum() == 0] == []
