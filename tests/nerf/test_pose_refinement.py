"""Pose refinement: what a correction means, where it applies, and that it finds a wrong pose again."""

import math

import torch

from dialogue_nerfstudio.nerf.pose_refinement import UNIT, PoseRefinement, PoseRefinementConfig, corrected
from dialogue_nerfstudio.rendering.rays import axis_angle_to_matrix

TRAINED = torch.tensor([True, True, True, False])


def test_a_correction_turns_in_head_space_and_moves_in_person_space():
    rotation = axis_angle_to_matrix(torch.tensor([[0.0, math.pi / 2, 0.0]]))
    correction = torch.tensor([[math.pi / 2, 0.0, 0.0, 0.1, 0.0, 0.0]]) / UNIT
    found, moved = corrected(rotation, torch.zeros(1, 3), correction)
    # The head's x axis stays where it was; its y axis turns to where its z axis was: person x.
    torch.testing.assert_close(found[0] @ torch.tensor([1.0, 0, 0]), torch.tensor([0.0, 0, -1]), atol=1e-6, rtol=0)
    torch.testing.assert_close(found[0] @ torch.tensor([0.0, 1, 0]), torch.tensor([1.0, 0, 0]), atol=1e-6, rtol=0)
    torch.testing.assert_close(moved, torch.tensor([[0.1, 0.0, 0.0]]))


def test_frames_are_corrected_in_training_only_and_signals_always():
    torch.manual_seed(0)
    refinement = PoseRefinement(PoseRefinementConfig(per_frame=True, by_signal=True), 2, TRAINED, 3)
    frames, signals = torch.arange(4), torch.randn(4, 3)
    assert float(refinement(0, frames, signals).abs().sum()) == 0.0
    torch.nn.init.normal_(refinement.frame_codes.values)
    torch.nn.init.normal_(refinement.linear)
    by_signal = signals @ refinement.linear[1]
    torch.testing.assert_close(refinement.eval()(1, frames, signals), by_signal)
    training = refinement.train()(1, frames, signals) - by_signal
    torch.testing.assert_close(training[:3].mean(dim=0), torch.zeros(6), atol=1e-6, rtol=0)
    assert float(training[3].abs().sum()) == 0.0 and float(training[:3].abs().min()) > 0


def test_it_finds_a_wrong_pose_again():
    """Points seen in head space, with poses that are off by a zero-mean error: gradients of rays undo it."""
    torch.manual_seed(0)
    true = 0.5 * torch.randn(1, 3, 6)
    true = true - true.mean(dim=1, keepdim=True)
    refinement = PoseRefinement(PoseRefinementConfig(per_frame=True), 1, TRAINED, 1)
    points, frames, identity = 0.1 * torch.randn(20, 3), torch.arange(3), torch.eye(3).expand(3, 3, 3)
    optimizer = torch.optim.Adam(refinement.parameters(), lr=0.05)

    def seen(correction):
        rotation, translation = corrected(identity, torch.zeros(3, 3), correction)
        return (points - translation[:, None]) @ rotation

    for _ in range(200):
        optimizer.zero_grad()
        loss = (seen(refinement(0, frames, torch.zeros(3, 1))) - seen(true[0])).square().mean()
        (1e4 * loss).backward()
        optimizer.step()
    torch.testing.assert_close(refinement(0, frames, torch.zeros(3, 1)), true[0], atol=0.05, rtol=0)
