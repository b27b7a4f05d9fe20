"""The published field against a plain transcription of the equations, weight by weight."""

import math

import pytest
import torch
import torch.nn.functional as F

from dialogue_nerfstudio.encodings.frequency import FrequencyEncoding, sinusoids
from dialogue_nerfstudio.encodings.hash_grid import HashGridConfig
from dialogue_nerfstudio.encodings.spatial import spatial_encoding
from dialogue_nerfstudio.fields.audio_net import AudioNetConfig
from dialogue_nerfstudio.fields.published_field import (
    PublishedField,
    PublishedFieldConfig,
    PublishedSignal,
    PublishedSignalEncoder,
)

SMALL = PublishedFieldConfig(
    position_octaves=4,
    direction_octaves=2,
    width=16,
    latent_size=8,
    deformation_width=12,
    audio=AudioNetConfig(base_width=2, code_size=16),
    audio_size=6,
    eyes_size=4,
)


def gamma(p, octaves):
    """DialogueNeRF equation 2, one number after another."""
    values = []
    for octave in range(octaves):
        values += [math.sin(2**octave * math.pi * v) for v in p]
        values += [math.cos(2**octave * math.pi * v) for v in p]
    return torch.tensor(values)


def layer(linear, x):
    return linear.weight @ x + linear.bias


def head_by_hand(field, x, d, participant, speech, expression):
    """σ and c of one sample: a speaker's where `speech` is given, else a listener's."""
    kind = "speaker" if speech is not None else "listener"
    shape, appearance = field.codes[participant, 0]
    p = gamma([v / 2 for v in x.tolist()], field.config.position_octaves)
    if speech is not None:
        p = torch.cat([p, speech])
    h = torch.relu(layer(field.inputs[kind], p) + layer(field.shape_input, shape))
    for number, block in enumerate(field.trunk, start=1):
        h = torch.relu(layer(block, h))
        if number == 4:
            h = h + layer(field.shape_again, shape) + layer(field.again[kind], p)
    sigma = torch.relu(layer(field.density_output, h))
    v = layer(field.feature, h) + layer(field.appearance, appearance)
    if speech is None:
        v = v + layer(field.expression, expression)
    v = v + layer(field.direction, gamma([c / 2 for c in d.tolist()], field.config.direction_octaves))
    return sigma[0], torch.sigmoid(layer(field.colour_output, torch.relu(v)))


def torso_by_hand(field, x, d, participant, et):
    shape, appearance = field.codes[participant, 1]
    pose = [et]
    for octave in range(3):
        pose += [torch.sin(2**octave * math.pi * et), torch.cos(2**octave * math.pi * et)]
    pose = torch.cat(pose)
    p = gamma([v / 2 for v in x.tolist()], field.config.position_octaves)
    h = torch.relu(layer(field.deformation.input, torch.cat([p, pose])))
    for number, block in enumerate(field.deformation.hidden, start=2):
        if number == 5:
            h = h + layer(field.deformation.again, p)
        h = torch.relu(layer(block, h))
    warped = torch.cat([p + layer(field.deformation.output, h), pose])
    h = torch.relu(layer(field.inputs["torso"], warped) + layer(field.shape_input, shape))
    for number, block in enumerate(field.trunk, start=1):
        h = torch.relu(layer(block, h))
        if number == 4:
            h = h + layer(field.shape_again, shape) + layer(field.again["torso"], warped)
    v = layer(field.feature, h) + layer(field.appearance, appearance)
    v = v + layer(field.direction, gamma([c / 2 for c in d.tolist()], field.config.direction_octaves))
    return torch.relu(layer(field.density_output, h))[0], torch.sigmoid(layer(field.colour_output, torch.relu(v)))


@pytest.fixture
def scene():
    """Three frames (speaking, listening, speaking) with 2, 1 and 2 rays of 3 samples."""
    torch.manual_seed(0)
    field = PublishedField(SMALL, num_participants=2, expression_size=5)
    # Enough density that the ReLU is open on both sides.
    field.density_output.bias.data += 0.05
    ray_frames = torch.tensor([0, 0, 1, 2, 2])
    rays = torch.arange(5).repeat_interleave(3)
    counts = [6, 3, 6]
    positions = 0.3 * torch.randn(15, 3)
    directions = F.normalize(torch.randn(5, 3), dim=-1)
    signal = PublishedSignal(torch.tensor([True, False, True]), torch.randn(3, 10), torch.randn(3, 5))
    return field, positions, directions, rays, ray_frames, counts, signal


@pytest.mark.parametrize("participant", [0, 1])
def test_heads(scene, participant):
    field, positions, directions, rays, ray_frames, counts, signal = scene
    density, features = field.head_density(positions, participant, signal, counts)
    colour = field.head_colour(features, directions, rays, ray_frames, participant, signal)
    for index in range(15):
        ray = int(rays[index])
        frame = int(ray_frames[ray])
        speech = signal.speech[frame] if signal.speaks[frame] else None
        sigma, c = head_by_hand(field, positions[index], directions[ray], participant, speech, signal.expression[frame])
        torch.testing.assert_close(density[index], sigma, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(colour[index], c, atol=1e-5, rtol=1e-4)
    assert density.max() > 0


@pytest.mark.parametrize("participant", [0, 1])
def test_torsos(scene, participant):
    field, positions, directions, rays, ray_frames, counts, _ = scene
    et = torch.randn(3, 6)
    density, features = field.torso_density(positions, participant, et, counts)
    colour = field.torso_colour(features, directions, rays, participant)
    for index in range(15):
        ray = int(rays[index])
        sigma, c = torso_by_hand(field, positions[index], directions[ray], participant, et[int(ray_frames[ray])])
        torch.testing.assert_close(density[index], sigma, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(colour[index], c, atol=1e-5, rtol=1e-4)


def test_published_sizes():
    """γ(x) of 60 numbers, γ(et) of 42, eight layers of 256, codes of 256, a signal of 96."""
    field = PublishedField(PublishedFieldConfig(), num_participants=2, expression_size=34)
    assert field.inputs["listener"].in_features == 60 and field.inputs["torso"].in_features == 60 + 42
    assert field.inputs["speaker"].in_features == 60 + 96 and field.direction.in_features == 24
    assert len(field.trunk) + 1 == 8 and {block.out_features for block in field.trunk} == {256}
    assert 1 + len(field.deformation.hidden) == 5 and field.deformation.output.out_features == 60
    assert field.codes.shape == (2, 2, 2, 256)
    assert "codes" not in dict(field.named_parameters()) and "codes" in field.state_dict()


def test_an_expression_changes_a_listeners_colour_only(scene):
    field, positions, directions, rays, ray_frames, counts, signal = scene
    other = PublishedSignal(signal.speaks, signal.speech, signal.expression + 1.0)
    density, features = field.head_density(positions, 0, signal, counts)
    again, _ = field.head_density(positions, 0, other, counts)
    torch.testing.assert_close(density, again)
    first = field.head_colour(features, directions, rays, ray_frames, 0, signal)
    second = field.head_colour(features, directions, rays, ray_frames, 0, other)
    changed = (first - second).abs().amax(dim=-1) > 1e-4
    assert changed[6:9].all() and not changed[:6].any() and not changed[9:].any()


def test_signals_of_speakers_and_listeners():
    torch.manual_seed(0)
    encoder = PublishedSignalEncoder(SMALL)
    speaks = torch.tensor([True, False])
    signal = encoder(
        torch.tensor([3, 4]), speaks, speaks, torch.randn(9, 16, 80), torch.randn(2, 5), torch.rand(2, 2),
        torch.randn(2, 4),
    )  # fmt: skip
    assert signal.speech.shape == (2, 10) and signal.expression.shape == (2, 5 + 6)
    assert signal.speech[0].abs().sum() > 0 and not signal.speech[1].any()
    signal.speech.sum().backward()
    assert encoder.audio_net.encoder[1].weight.grad.abs().sum() > 0


def test_positional_encoding_of_a_box():
    encoding = spatial_encoding("frequency", HashGridConfig(num_levels=6))
    assert isinstance(encoding, FrequencyEncoding) and encoding.out_dim == 36
    points = torch.rand(7, 3)
    torch.testing.assert_close(encoding(points)[2], gamma((2 * points[2] - 1).tolist(), 6), atol=1e-5, rtol=0)
    torch.testing.assert_close(
        sinusoids(torch.tensor([0.5]), 2), torch.tensor([1.0, 0.0, 0.0, -1.0]), atol=1e-6, rtol=0
    )
