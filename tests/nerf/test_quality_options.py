"""Image-quality options in the avatars: each does what its config field says, and the lip stage comes at the end."""

import numpy as np
import pytest
import torch
from short_training import train

from dialogue_nerfstudio.conversation import DialogueError
from dialogue_nerfstudio.nerf.pipeline import DialoguePipeline


def test_eyes_mixed_into_the_face_code(small_config):
    small_config.model.signals.separate_eyes = False
    pipeline = DialoguePipeline(small_config, device="cpu", test_mode="val")
    signal = pipeline.model.conditions(0, torch.tensor([0, 3]), "expression").signal
    assert signal.eyes.shape == (2, 0) and pipeline.model.head_field.density_eyes is None
    pipeline.model.signal_blink += 0.5
    assert not torch.equal(pipeline.model.conditions(0, torch.tensor([0, 3]), "expression").signal.face, signal.face)
    assert np.isfinite(train(pipeline, 2)).all()


def test_separate_eyes_leave_the_face_code_alone(small_config):
    small_config.model.signal_noise = 0.0
    pipeline = DialoguePipeline(small_config, device="cpu", test_mode="val")
    frames = torch.tensor([0, 3])
    before = pipeline.model.conditions(0, frames, "expression").signal
    pipeline.model.signal_blink += 0.5
    after = pipeline.model.conditions(0, frames, "expression").signal
    assert torch.equal(before.face, after.face) and not torch.equal(before.eyes, after.eyes)


def test_without_region_attention_every_gate_is_open(small_config):
    small_config.model.head.region_attention = False
    field = DialoguePipeline(small_config, device="cpu", test_mode="val").model.head_field
    assert torch.equal(field.gates(torch.randn(5, field.grid.out_dim)), torch.ones(5, field.num_gates))
    assert not any(name.startswith("gate") for name, _ in field.named_parameters())


def test_frame_appearance_colours_training_frames_only(small_config):
    small_config.model.frame_appearance = True
    torch.manual_seed(0)
    pipeline = DialoguePipeline(small_config, device="cpu", test_mode="val")
    model = pipeline.model
    camera = pipeline.datamanager.eval_dataset.cameras[0:1]
    pipeline.eval()
    before = model.render_frame(camera, 0, 0, "expression")["rgb"]
    torch.nn.init.normal_(model.appearance_codes.values, std=3.0)
    assert torch.equal(model.render_frame(camera, 0, 0, "expression")["rgb"], before)
    pipeline.train()
    rays, batch = pipeline.datamanager.next_train(0)
    outputs = model(rays)
    losses = model.get_loss_dict(outputs, batch)
    sum(losses.values()).backward()
    assert float(losses["appearance"]) > 0 and float(model.appearance_codes.values.grad.abs().sum()) > 0
    held_out = ~model.appearance_codes.trained
    assert held_out.any() and float(model.appearance_codes.values.grad[:, held_out].abs().sum()) == 0.0


def test_refinement_moves_heads_by_gradients_of_pictures(small_config):
    small_config.model.refinement.per_frame = small_config.model.refinement.by_signal = True
    torch.manual_seed(0)
    pipeline = DialoguePipeline(small_config, device="cpu", test_mode="val")
    refinement = pipeline.model.pose_refinement
    train(pipeline, 3)
    assert float(refinement.linear.abs().sum()) > 0 and float(refinement.frame_codes.values.abs().sum()) > 0
    frames = torch.arange(4)
    pipeline.eval()
    pipeline.model.trained_drives = {"expression"}
    # A step shows one person, so that three may have met only one.
    met = int(refinement.linear.detach().abs().sum(dim=(1, 2)).argmax())
    conditions = pipeline.model.conditions(met, frames, "expression")
    assert not torch.equal(conditions.translation, pipeline.model.signal_translation[met, frames])
    turned = conditions.rotation @ conditions.rotation.transpose(1, 2)
    torch.testing.assert_close(turned, torch.eye(3).expand(4, 3, 3), atol=1e-5, rtol=0)


def test_signal_noise_is_of_training_only(small_config):
    small_config.model.signal_noise = 0.5
    pipeline = DialoguePipeline(small_config, device="cpu", test_mode="val")
    frames = torch.tensor([0, 3])

    def face():
        return pipeline.model.conditions(0, frames, "expression").signal.face

    assert not torch.equal(face(), face())
    pipeline.eval()
    pipeline.model.trained_drives = {"expression"}
    assert torch.equal(face(), face())


def test_distortion_is_in_the_loss_when_asked_for(small_config):
    small_config.model.distortion_coefficient = 0.01
    small_config.model.spread_coefficient = 0.0
    pipeline = DialoguePipeline(small_config, device="cpu", test_mode="val")
    _, losses, _ = pipeline.get_train_loss_dict(0)
    assert float(losses["distortion"].detach()) > 0 and "spread" not in losses


def test_the_lip_stage_shows_patches_of_mouths_in_the_last_odd_steps(small_config):
    small_config.datamanager.lip_stage_share = 0.25
    small_config.datamanager.lip_patch_size = 8
    pipeline = DialoguePipeline(small_config, device="cpu", test_mode="val")
    manager = pipeline.datamanager
    manager.total_steps = 20
    kinds = ["patch_size" in manager.next_train(step)[1] for step in range(20)]
    assert [step for step, patches in enumerate(kinds) if patches] == [15, 17, 19]
    rays, batch = manager.next_train(15)
    assert len(rays) == len(batch["image"]) == 4 * 64 and int(batch["patch_size"]) == 8
    frames, participant = rays.metadata["frame"].view(4, 64), int(rays.metadata["participant"][0])
    assert (frames == frames[:, :1]).all()
    store, regions = manager.stores[participant], manager._regions[participant]
    for frame, patch in zip(frames[:, 0].tolist(), batch["image"].view(4, 8, 8, 3), strict=True):
        windows = torch.from_numpy(store.frames[frame].astype(np.float32) / 255.0).unfold(0, 8, 1).unfold(1, 8, 1)
        row, column = (windows.permute(0, 1, 3, 4, 2) == patch).flatten(2).all(-1).nonzero()[0].tolist()
        left, top, right, bottom = regions.mouth[frame]
        assert left - 4 <= column < right and top - 4 <= row < bottom
    _, losses, _ = pipeline.get_train_loss_dict(15)
    assert float(losses["lip_patches"].detach()) > 0


def test_a_lip_stage_needs_to_know_the_end(small_config):
    small_config.datamanager.lip_stage_share = 0.25
    pipeline = DialoguePipeline(small_config, device="cpu", test_mode="val")
    with pytest.raises(DialogueError, match="total_steps"):
        pipeline.datamanager.next_train(1)


def test_a_tri_plane_trains_and_its_checkpoint_fits_only_itself(small_config):
    small_config.model.head.encoding = "tri-plane"
    pipeline = DialoguePipeline(small_config, device="cpu", test_mode="val")
    tables = [name for name, _ in pipeline.model.head_field.named_parameters() if name.endswith(".table")]
    # Three planes, an atlas of both people.
    assert len(tables) == 3 and np.isfinite(train(pipeline, 2)).all()
    state = pipeline.state_dict()
    small_config.model.head.encoding = "grid"
    other = DialoguePipeline(small_config, device="cpu", test_mode="inference")
    with pytest.raises(DialogueError, match="hash grid of the head"):
        other.load_strictly(state, 2)


def test_swapped_eyes_do_not_count_within_their_box(small_config):
    """With every frame's eyes swapped, what is in the box of the eyes has no photometric gradient, the rest has."""
    small_config.model.eyes_swap = 1.0
    small_config.model.signal_noise = 0.0
    pipeline = DialoguePipeline(small_config, device="cpu", test_mode="val")
    model, manager = pipeline.model, pipeline.datamanager
    frames = torch.arange(6)
    torch.manual_seed(0)
    swapped, again = (model.conditions(0, frames, "expression") for _ in range(2))
    assert bool(swapped.foreign_eyes.all()) and not torch.equal(swapped.signal.eyes, again.signal.eyes)
    assert torch.equal(swapped.signal.face, again.signal.face)

    rays, batch = manager.next_train(0)
    row, width = int(rays.metadata["participant"][0]), manager.stores[0].shape[2]
    left, top, right, bottom = manager._regions[row].eyes[rays.metadata["frame"].view(-1).numpy()].T
    pixels = [
        (manager._pixel_directions[row] - direction).square().sum(dim=-1).argmin().item()
        for direction in rays.directions
    ]
    y, x = np.divmod(pixels, width)
    inside = (left <= x) & (x < right) & (top <= y) & (y < bottom)
    assert batch["in_eyes"].tolist() == inside.tolist() and inside.any() and not inside.all()

    outputs = {name: value.detach() for name, value in model(rays).items()}
    outputs["rgb"].requires_grad_()
    model.get_loss_dict(outputs, batch)["photometric"].backward()
    counted = outputs["rgb"].grad.abs().sum(dim=-1) > 0
    assert not counted[batch["in_eyes"]].any() and counted[~batch["in_eyes"]].any()
    model.eval()
    model.trained_drives = {"expression"}
    assert model.conditions(0, frames, "expression").foreign_eyes is None


def test_an_expression_corrects_poses_only_where_it_moves_the_face(small_config):
    small_config.model.refinement.by_signal = True
    model = DialoguePipeline(small_config, device="cpu", test_mode="inference").model.eval()
    torch.nn.init.normal_(model.pose_refinement.linear)
    frames = torch.arange(6)
    before = {drive: model.conditions(0, frames, drive).translation for drive in ("audio", "expression")}
    model.signal_expression += 0.5
    after = {drive: model.conditions(0, frames, drive).translation for drive in ("audio", "expression")}
    assert torch.equal(after["audio"], before["audio"]) and not torch.equal(after["expression"], before["expression"])
