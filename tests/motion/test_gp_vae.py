"""The VAEs' losses, latent distributions and checkpoints, with every network and prior."""

from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from small_conversations import SmallSource, small_conversation, train_briefly

from dialogue_nerfstudio.conversation.errors import DialogueError
from dialogue_nerfstudio.motion.gp_vae import GpVae, GpVaeConfig, energy_score
from dialogue_nerfstudio.motion.personal_pose import PersonalPoses
from dialogue_nerfstudio.motion.sequence_networks import smooth_pieces

SMALL = GpVaeConfig(
    window_frames=50,
    beginning_frames=15,
    width=16,
    latent_size=4,
    layers=1,
    cross_modal_layers=1,
    latent_steps=20,
    fit_every=5,
)
KINDS = [("mlp", "normal"), ("lstm", "normal"), ("transformer", "normal"), ("transformer", "gp")]


@pytest.fixture(scope="module")
def source() -> SmallSource:
    return SmallSource([small_conversation(number) for number in range(4)], SMALL.window)


@pytest.fixture(scope="module")
def trained(source):
    return _trained(SMALL, source, 40)


def _trained(config: GpVaeConfig, source: SmallSource, steps: int) -> GpVae:
    torch.manual_seed(0)
    return train_briefly(config.build(source.statistics), source, range(steps))


def _mean_losses(model, source, step: int) -> float:
    torch.manual_seed(0)
    with torch.no_grad():
        return float(sum(model.losses(source.batch(range(len(source))), step).values()))


@pytest.mark.parametrize(("network", "prior"), KINDS)
def test_training_lowers_both_stages_losses(source, network, prior):
    model = _trained(replace(SMALL, network=network, prior=prior), source, 1)
    begun = _mean_losses(model, source, 0)
    train_briefly(model, source, range(1, 20))
    assert _mean_losses(model, source, 0) < 0.9 * begun
    latent_only = _mean_losses(model, source, 20)
    train_briefly(model, source, range(20, 40))
    assert _mean_losses(model, source, 20) < 0.99 * latent_only


def test_second_stage_leaves_the_latent_space_alone(source, trained):
    latent_only = _trained(SMALL, source, 20)
    for (name, before), (_, after) in zip(latent_only.named_parameters(), trained.named_parameters(), strict=True):
        if name.startswith(("encoder", "decoder")):
            torch.testing.assert_close(before, after, rtol=0.0, atol=0.0, msg=name)
    assert not torch.equal(latent_only.cross_modal.output_layer.weight, trained.cross_modal.output_layer.weight)


def test_second_stage_learns_from_the_selected_person_alone(source):
    model = replace(SMALL, person=2).build(source.statistics).train()
    windows = source.batch(range(len(source)))
    others = [index for index in range(len(source)) if int(windows.person[index]) != 2]
    sum(model.losses(source.batch(others), 100).values()).backward()
    assert all(p.grad is None or p.grad.abs().max() == 0.0 for p in model.parameters())
    sum(model.losses(windows, 100).values()).backward()
    assert model.cross_modal.output_layer.weight.grad.abs().max() > 0.0


def test_beginning_says_nothing_of_frames_that_were_not_given(source, trained):
    whole, beginning = trained.observe(source.batch([0, 1]))
    posterior, features = trained.encode(beginning)
    count = trained.beginning_tokens
    assert features.shape[1] == count
    assert posterior.precision[..., count:].abs().max() == 0.0 and posterior.precision[..., :count].min() > 0.0
    later = whole.clone()
    later[:, SMALL.beginning_frames :] += 1.0
    torch.testing.assert_close(trained.encode(later[:, : SMALL.beginning_frames])[0].mean(), posterior.mean())


def test_beginning_does_not_know_of_later_blinks(source, trained):
    windows = source.batch(range(len(source)))
    _, beginning = trained.observe(windows)
    windows.own.blink[:, SMALL.beginning_frames + 5 :] = 0.0
    torch.testing.assert_close(trained.observe(windows)[1], beginning)


def test_withheld_sound_cannot_be_heard(source, trained):
    windows = source.batch([0, 1])
    nothing = torch.zeros(2, SMALL.window, dtype=torch.bool)
    _, beginning = trained.observe(windows)
    before = trained.predict(beginning, trained.hear(windows, nothing)).mean()
    heard = trained.predict(beginning, trained.hear(windows, ~nothing)).mean()
    windows.own.prosody += 1.0
    windows.partner.speaking = ~windows.partner.speaking
    torch.testing.assert_close(trained.predict(beginning, trained.hear(windows, nothing)).mean(), before)
    assert (heard - before).abs().max() > 1e-3


def test_spectrogram_is_heard_where_asked_for(source):
    model = replace(SMALL, audio="mel").build(source.statistics).eval()
    assert model.config.needs_mel
    windows = source.batch([0, 1])
    everything = torch.ones(2, SMALL.window, dtype=torch.bool)
    _, beginning = model.observe(windows)
    before = model.predict(beginning, model.hear(windows, everything)).mean()
    windows.partner.mel += 0.5
    assert (model.predict(beginning, model.hear(windows, everything)).mean() - before).abs().max() > 1e-5
    windows.partner.mel = None
    with pytest.raises(ValueError, match="spectrogram"):
        model.hear(windows, everything)


def test_density_of_attributes_is_that_of_blinks(source, trained):
    windows = source.batch(range(len(source)))
    whole, _ = trained.observe(windows)
    events = trained.blink_density(whole).sum()
    crossings = (windows.own.blink[:, 1:, 0] > 0.5) & (windows.own.blink[:, :-1, 0] <= 0.5)
    # Blinks at a window's edges count partly.
    assert float(events) == pytest.approx(float(crossings.sum()), rel=0.2)


def test_figures_are_numbers_and_reconstruction_beats_prediction(source, trained):
    figures = trained.figures(source.batch(range(len(source))))
    assert all(np.isfinite(value) for value in figures.values())
    assert figures["future_diversity"] > 0.05
    assert figures["future_error_mean"] < figures["future_error_sample"]


@pytest.mark.parametrize(("network", "prior"), KINDS)
def test_checkpoint_and_config_are_all_that_is_needed(source, network, prior):
    config = replace(SMALL, network=network, prior=prior)
    model = _trained(config, source, 3)
    restored = GpVaeConfig(**asdict(config)).build(source.statistics)
    restored.load_state_dict(model.state_dict())
    restored.eval()
    windows = source.batch([0, 1])
    torch.manual_seed(1)
    expected = model.figures(windows)
    torch.manual_seed(1)
    assert restored.figures(windows) == expected


@pytest.mark.parametrize("change", [{"beginning_frames": 12}, {"beginning_frames": 30}, {"window_frames": 52}])
def test_lengths_that_do_not_fit_are_refused(source, change):
    with pytest.raises(DialogueError, match=r"must be a multiple|at most half"):
        replace(SMALL, **change).build(source.statistics)


def test_personal_poses_are_means_and_spreads():
    poses = PersonalPoses(3, torch.arange(6.0))
    draw = torch.Generator().manual_seed(0)
    for _ in range(50):
        relative = torch.randn(2, 200, 6, generator=draw) * torch.tensor([0.1, 0.1, 0.1, 0.01, 0.01, 0.01])
        poses.collect(torch.tensor([0, 1]), relative * torch.tensor([1.0, 3.0])[:, None, None] + 0.5)
    of = poses.of(torch.tensor([0, 1, 2]))
    torch.testing.assert_close(of.rest[:2], torch.full((2, 6), 0.5), atol=0.02, rtol=0.0)
    torch.testing.assert_close(of.rest[2], torch.arange(6.0))
    torch.testing.assert_close(of.spread[0, [0, 3]], torch.tensor([0.1, 0.01]), rtol=0.15, atol=0.0)
    torch.testing.assert_close(of.spread[1, [0, 3]], torch.tensor([0.3, 0.03]), rtol=0.05, atol=0.0)
    # Nothing is known of the third: √((0.1² + 0.3²) / 2).
    torch.testing.assert_close(of.spread[2, 0], torch.tensor(0.2236), rtol=0.05, atol=0.0)
    pose = torch.randn(3, 5, 6)
    torch.testing.assert_close(of.to_head_pose(of.to_relative(pose)), pose, atol=1e-5, rtol=1e-5)


def test_a_long_reference_gives_what_training_found():
    poses = PersonalPoses(1, torch.zeros(6))
    recorded = 0.1 * torch.randn(1, 20_000, 6) + 0.3
    poses.collect(torch.tensor([0]), recorded)
    of_reference, of_training = poses.of_reference(recorded[0].numpy()), poses.of(torch.tensor([0]))
    torch.testing.assert_close(of_reference.rest, of_training.rest[0])
    torch.testing.assert_close(of_reference.spread, of_training.spread[0], rtol=1e-4, atol=0.0)


def test_poses_relative_to_everybody_keep_where_and_how_far_each_moves():
    poses = PersonalPoses(2, torch.zeros(6), shared=True)
    recorded = torch.randn(2, 20_000, 6) * torch.tensor([0.1, 0.3])[:, None, None]
    recorded += torch.tensor([-0.2, 0.4])[:, None, None]
    poses.collect(torch.tensor([0, 1]), recorded)
    of = poses.of(torch.tensor([0, 1]))
    torch.testing.assert_close(of.rest, torch.full((2, 6), 0.1), atol=0.005, rtol=0.0)
    # √(0.3² between the two + (0.1² + 0.3²) / 2 within).
    torch.testing.assert_close(of.spread, torch.full((2, 6), 0.3742), rtol=0.02, atol=0.0)
    relative = of.to_relative(recorded)
    torch.testing.assert_close(relative[0].mean(), torch.tensor(-0.8018), rtol=0.03, atol=0.0)
    torch.testing.assert_close(relative[1].std(), torch.tensor(0.8018), rtol=0.03, atol=0.0)
    of_stranger = poses.of_reference(recorded[0].numpy() + 5.0)
    torch.testing.assert_close(of_stranger.rest, of.rest[0])
    torch.testing.assert_close(of_stranger.spread, of.spread[0])


@pytest.mark.parametrize("frame", ["person", "everybody"])
def test_attributes_tell_where_people_rest_only_in_everybodys_frame(source, frame):
    model = replace(SMALL, frame=frame).build(source.statistics)
    windows = source.batch(range(len(source)))
    model.poses.collect(windows.person, windows.own.head_pose)
    whole, beginning = model.observe(windows)
    torch.testing.assert_close(beginning[..., :6], whole[:, : SMALL.beginning_frames, :6])
    rests = torch.stack([whole[windows.person == person, :, :6].mean((0, 1)) for person in windows.person.unique()])
    if frame == "person":
        torch.testing.assert_close(rests, torch.zeros_like(rests), atol=1e-3, rtol=0.0)
    else:
        assert rests.std(0).max() > 0.3


@pytest.mark.parametrize("token", [1, 5])
def test_pieces_are_smooth_and_keep_constants(token):
    pieces = smooth_pieces(50, token)
    assert pieces.shape == (50, 50 // token, 3)
    constant = torch.zeros(50 // token, 3)
    constant[:, 0] = 2.0
    torch.testing.assert_close(torch.einsum("tnk,nk->t", pieces, constant), torch.full((50,), 2.0))
    # A token in the middle acts on two tokens' length of frames, and fades out at both ends.
    acts = torch.nonzero(pieces[:, 5, 0])[:, 0]
    assert len(acts) == 2 * token - 1
    assert pieces[acts[0], 5, 0] < 0.15 or token == 1


@pytest.mark.parametrize(("network", "prior"), KINDS)
def test_a_change_of_basis_changes_no_reconstruction(source, network, prior):
    model = _trained(replace(SMALL, network=network, prior=prior, fit_every=1000), source, 20)
    whole, _ = model.observe(source.batch(range(len(source))))
    latent = torch.randn(len(whole), SMALL.latent_size, model.num_tokens)
    basis = model.moments.fitting_basis()
    decoded = model.decode(latent)
    before = None if prior == "normal" else model.prior.length_scales.clone()
    model.fit_basis()
    changed = torch.einsum("ij,bjn->bin", basis.change.float(), latent - basis.mean.float()[:, None])
    torch.testing.assert_close(model.decode(changed), decoded, atol=1e-4, rtol=1e-3)
    assert prior == "normal" or not torch.equal(model.prior.length_scales, before)
    assert not model.moments.weight > 0.0


def test_samples_of_the_prior_move_as_people_do(source):
    model = _trained(replace(SMALL, latent_steps=60, fit_every=10), source, 60)
    whole, _ = model.observe(source.batch(range(len(source))))
    latent = model.prior.sample(200, model.num_tokens, torch.Generator().manual_seed(0), whole)
    ratio = model.decode(latent)[..., :6].std((0, 1)) / whole[..., :6].std((0, 1))
    assert ratio.min() > 0.5 and ratio.max() < 1.6


def test_energy_score_prefers_the_true_spread():
    draw = torch.Generator().manual_seed(0)

    def score(scale: float) -> float:
        one, other, true = torch.randn(3, 4000, 20, 2, generator=draw)
        return float(energy_score(scale * one, scale * other, true).mean())

    assert score(1.0) < min(score(0.6), score(1.5), score(0.0))
