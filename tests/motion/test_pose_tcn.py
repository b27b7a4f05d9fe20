"""pose-tcn: what its network can see, that blocks give what one call gives, and that it learns an invented rule."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from motion_stand_in import InventedWindows, invented_statistics

from dialogue_nerfstudio.conversation import DialogueError
from dialogue_nerfstudio.conversation.motion import EXPRESSION_NAMES, Motion
from dialogue_nerfstudio.motion.generator import Character, join_parts
from dialogue_nerfstudio.motion.pose_tcn import (
    KnownPeople,
    PoseTcn,
    PoseTcnConfig,
    PoseTcnGenerator,
    masked_correlation,
    pitch,
)
from dialogue_nerfstudio.motion.signals import MotionSignals
from dialogue_nerfstudio.motion.tcn import TcnConfig

SMALL = PoseTcnConfig(tcn=TcnConfig(channels=8, levels=3), context=60, target=60)


def small_model(config: PoseTcnConfig = SMALL) -> PoseTcn:
    """Untrained, but with all its parts at work."""
    model = config.build(invented_statistics()).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        model.residual_covariances.zero_()
        for lag in range(config.residual_order + 1):
            model.residual_covariances[lag] = 0.95**lag * torch.eye(6)
    return model


def characters(num_people: int = 2, frames: int = 80, size: float = 0.02) -> list:
    rng = np.random.default_rng(3)
    people = []
    for number in range(num_people):
        pose = np.cumsum(rng.normal(0.0, size / 10, (frames, 6)), axis=0).astype(np.float32)
        reference = Motion(
            head_pose=pose,
            expression=np.zeros((frames, len(EXPRESSION_NAMES)), np.float32),
            blink=np.zeros((frames, 2), np.float32),
            gaze=np.zeros((frames, 2, 2), np.float32),
            expression_residual=np.zeros((frames, 0), np.float32),
        )
        people.append(Character(f"p{number}", reference, np.arange(frames) % 50 < 25))
    return people


def signals(frames: int = 103, num_people: int = 2) -> MotionSignals:
    rng = np.random.default_rng(5)
    speaking = np.stack([np.arange(frames) // 30 % num_people == person for person in range(num_people)])
    prosody = (rng.random((num_people, frames, 2)) * 0.2 * speaking[..., None]).astype(np.float32)
    mel = np.full((num_people, round(frames * 3.2), 80), -1.0, np.float32)
    return MotionSignals(tuple(f"p{person}" for person in range(num_people)), prosody, mel, speaking)


def streamed(generator: PoseTcnGenerator, heard: MotionSignals, people: list, cuts: list) -> dict:
    stream = generator.begin(people, 7)
    edges = [0, *cuts, heard.num_frames]
    blocks = [stream.advance(heard.frames(*edge)) for edge in pairwise(edges)]
    return join_parts([*blocks, stream.finish()])


@pytest.mark.parametrize("num_people", [1, 2, 3])
@pytest.mark.parametrize("reaction", [5, 3])
def test_blocks_of_any_length_give_what_one_call_gives(num_people, reaction):
    generator = small_model(replace(SMALL, reaction=reaction)).generator()
    heard, people = signals(num_people=num_people), characters(num_people)
    whole = generator.generate(heard, people, 7)
    for cuts in ([5], [50, 55, 60], list(range(5, 103, 5))):
        parts = streamed(generator, heard, people, cuts)
        for person in whole:
            assert whole[person]["head_pose"].shape == (103, 6)
            np.testing.assert_array_equal(parts[person]["head_pose"], whole[person]["head_pose"])


def test_a_stream_equals_the_network_that_was_trained():
    """The expected poses of a stream are `predict`'s, given what the stream itself generated for the partner."""
    model = small_model()
    people, heard = characters(frames=60), signals(60)
    generator = model.generator(sampled=False)
    generated = generator.generate(heard, people, 0)
    windows = InventedWindows(SMALL.window).batch([0])
    for side, who in ((windows.own, 0), (windows.partner, 1)):
        reference = torch.from_numpy(people[who].reference.head_pose)
        side.head_pose = torch.cat([reference, torch.from_numpy(generated[f"p{who}"]["head_pose"])])[None]
        was = torch.from_numpy(people[who].was_speaking)
        side.speaking = torch.cat([was & False, torch.from_numpy(heard.speaking[who])])[None]
        side.prosody = torch.cat([torch.zeros(60, 2), torch.from_numpy(heard.prosody[who])])[None]
    # Rest and habits are of the recorded roles, of which nothing was to be heard.
    known = model.character(windows.own.head_pose[:, :60], torch.from_numpy(people[0].was_speaking)[None])
    model.character = lambda *_: known
    expected, deviation = model.predict(windows)
    error = windows.own.head_pose[0, 60:] - expected[0]
    # What is left is the start pose's distance, which the residual process takes back.
    z = (error / deviation[0]).detach().numpy()
    assert np.abs(z[-5:]).max() < 0.2 * np.abs(z[:5]).max()
    transition = generator.process[0]
    # Before it, the window remembers the recorded context, the stream a held pose.
    for frame in range(SMALL.tcn.receptive_field + SMALL.reaction + SMALL.residual_order, 60):
        past = z[frame - SMALL.residual_order : frame][::-1].reshape(-1)
        np.testing.assert_allclose(z[frame], transition @ past, atol=2e-3)


@pytest.mark.parametrize("levels", [2, 3])
def test_the_receptive_field_is_what_the_config_says_and_nothing_of_the_future_is_seen(levels):
    config = replace(SMALL, tcn=TcnConfig(channels=8, levels=levels, weight_norm=True))
    model = small_model(config)
    channels = torch.randn(16, 20, 100, requires_grad=True)
    expected, _ = model.expect(channels, torch.randn(16, 54))
    expected[:, 70].sum().backward()
    seen = torch.nonzero(channels.grad.abs().sum(dim=(0, 1))).squeeze(1)
    assert (int(seen[0]), int(seen[-1])) == (70 - config.tcn.receptive_field + 1, 70)


def test_a_partner_is_seen_late_and_sound_at_once():
    generator, people, heard = small_model().generator(sampled=False), characters(), signals(60)
    before = generator.generate(heard, people, 0)
    # p1 speaks in frames 30 … 59; a change of p1's sound at 32 moves both at 32 and nobody earlier.
    louder = replace(heard, prosody=heard.prosody.copy())
    louder.prosody[1, 32] += 0.3
    after = generator.generate(louder, people, 0)
    for person in before:
        change = np.abs(after[person]["head_pose"] - before[person]["head_pose"]).max(axis=1)
        assert (change[:32] == 0).all() and change[32] > 0
    # The head of p1 moves p0 no earlier than `reaction` frames later.
    model = small_model()
    windows = InventedWindows(SMALL.window).batch([0, 1])
    expected, _ = model.predict(windows)
    windows.partner.head_pose[:, SMALL.context + 20] += 0.1
    moved = (model.predict(windows)[0] - expected).abs().amax(dim=(0, 2))
    assert (moved[: 20 + SMALL.reaction] == 0).all() and moved[20 + SMALL.reaction] > 0


@pytest.mark.parametrize("name", ["use_audio", "use_partner_pose"])
def test_an_ablation_is_deaf_or_blind(name):
    model = small_model(replace(SMALL, **{name: False}))
    windows = InventedWindows(SMALL.window).batch([0, 1])
    expected, _ = model.predict(windows)
    if name == "use_audio":
        windows.own.prosody, windows.partner.prosody = (
            torch.rand_like(x.prosody) for x in (windows.own, windows.partner)
        )
    else:
        windows.partner.head_pose = torch.randn_like(windows.partner.head_pose)
    torch.testing.assert_close(model.predict(windows)[0], expected, rtol=0, atol=0)


@pytest.mark.parametrize("sampled", [False, True])
def test_the_start_pose_is_honoured_and_left_smoothly(sampled):
    people = characters()
    people[0].reference.head_pose[-9:] += np.float32(0.05)
    generated = small_model().generator(sampled=sampled).generate(signals(), people, 0)
    for person in people:
        poses = generated[person.id]["head_pose"]
        np.testing.assert_allclose(poses[0], person.reference.head_pose[-1], atol=1e-6)
        if not sampled:
            assert np.abs(np.diff(poses[:3], axis=0)).max() < 0.03


def test_seeds():
    generator, people, heard = small_model().generator(), characters(), signals()
    first, again, other = (generator.generate(heard, people, seed)["p0"]["head_pose"] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3


def test_neither_frozen_nor_drifting_nor_worked_up():
    """The network answers whatever it sees with far more: people must stay within bounds all the same."""
    model = small_model()
    with torch.no_grad():
        model.tcn.leave.weight *= 20
    people = characters()
    for answering, largest in ((model, 20.0), (small_model(), 2.0)):
        stream, parts = answering.generator().begin(people, 0), []
        for _ in range(8):
            parts.append(stream.advance(signals(300))["p0"]["head_pose"])
        spread = np.array([part.std(axis=0).mean() for part in parts])
        assert spread.min() > 0.3 * spread.max() and spread.min() > 0.005
        assert max(np.abs(part).max() for part in parts) < largest


def test_who_cannot_be_moved_is_said():
    generator = small_model().generator()
    nobody = characters(frames=80)
    nobody[1] = Character("p1", nobody[1].reference.slice(0, 0), np.zeros(0, bool))
    with pytest.raises(DialogueError, match="p1 has no recorded motion"):
        generator.begin(nobody, 0)
    nobody[1] = Character("p1", nobody[0].reference, np.zeros(3, bool))
    with pytest.raises(DialogueError, match="roles are of 3 frames"):
        generator.begin(nobody, 0)
    with pytest.raises(DialogueError, match="looks 34 back"):
        small_model(replace(SMALL, context=20))
    with pytest.raises(ValueError, match="signals are of"):
        generator.begin(characters(), 0).advance(replace(signals(), participant_ids=("a", "b")))


def test_people_are_recognised_by_where_they_rest():
    known = KnownPeople(4)
    rng = torch.Generator().manual_seed(0)
    homes = torch.tensor([[0.1] * 6, [0.0] * 6, [-0.1] * 6])
    for _ in range(20):
        known.meet(torch.arange(3), homes + 0.005 * torch.randn(3, 6, generator=rng))
    seen = known.recognise(torch.cat([homes + 0.003, torch.full((1, 6), 0.05)]))
    torch.testing.assert_close(seen[:3, :3], torch.eye(3), atol=0.01, rtol=0)
    # Somebody who rests where nobody does is a stranger, and so is person 3, who was never met.
    assert seen[3].sum() < 0.01 and known.certain(torch.tensor([3])).sum() == 0


def test_strangers_differ_from_known_people_only_by_their_code():
    model, windows = small_model(), InventedWindows(SMALL.window).batch([0, 1])
    before, _ = model.predict(windows)
    model.known.meet(windows.person, windows.own.head_pose[:, 0])
    known, _ = model.predict(windows)
    with torch.no_grad():
        model.codes.zero_()
    assert (known - before).abs().max() > 1e-4
    torch.testing.assert_close(model.predict(windows)[0], before, rtol=0, atol=0)


def test_pitch_is_the_angle_of_looking_up():
    from scipy.spatial.transform import Rotation

    angles = np.array([[0.3, 0.2, -0.1], [0.0, -0.4, 0.0], [0.0, 0.0, 0.2], [-0.2, 0.1, 0.4]])
    rotation = Rotation.from_euler("YXZ", angles * np.array([1.0, -1.0, 1.0]))
    pose = np.concatenate([rotation.as_rotvec(), np.zeros((4, 3))], axis=1).astype(np.float32)
    np.testing.assert_allclose(pitch(torch.from_numpy(pose)), angles[:, 1], atol=1e-6)


def test_masked_correlation_is_within_windows():
    a = torch.tensor([[1.0, 2.0, 3.0, 99.0], [11.0, 12.0, 13.0, -5.0]])
    b = torch.tensor([[2.0, 4.0, 6.0, -7.0], [-1.0, 1.0, 3.0, 8.0]])
    mask = torch.tensor([[True, True, True, False]] * 2)
    assert masked_correlation(a, b, mask) == pytest.approx(1.0)
    assert np.isnan(masked_correlation(a, torch.ones_like(b), mask))


def test_it_learns_the_invented_rule():
    config = replace(SMALL, tcn=TcnConfig(channels=16, levels=3))
    torch.manual_seed(0)
    model, data = config.build(invented_statistics()), InventedWindows(SMALL.window)
    optimiser = torch.optim.Adam(model.parameters(), 5e-3)
    for step in range(150):
        losses = model.losses(data.draw(8, np.random.default_rng(step)), step)
        optimiser.zero_grad()
        sum(losses.values()).backward()
        optimiser.step()
    model.eval()
    held_out = InventedWindows(SMALL.window, seed=1)
    figures = model.figures(held_out.batch(range(len(held_out))))
    assert figures["share_of_ceiling"] > 0.7, figures
    # A generated residual is of the size that was missed.
    assert 0.5 < float(model.residual_covariances[0].diagonal().mean()) < 2.0
