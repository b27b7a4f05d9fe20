"""The model: what a frame depends on, that it learns, what a checkpoint holds, which frame a camera shows."""

import copy
import shutil
import warnings
from dataclasses import replace

import pytest
import torch
from short_training import train

from dialogue_nerfstudio.conversation import DialogueError, load_conversation, save_conversation
from dialogue_nerfstudio.encodings.hash_grid import HashGrid
from dialogue_nerfstudio.nerf.losses import binary_entropy, mask_loss
from dialogue_nerfstudio.nerf.pipeline import DialoguePipeline
from dialogue_nerfstudio.nerf.signals import ConversationSignals


def camera_of(pipeline, participant=0):
    cameras = pipeline.datamanager.eval_dataset.cameras
    index = int((cameras.metadata["participant"].squeeze(-1) == participant).nonzero()[0])
    return cameras[index : index + 1]


def picture(pipeline, frame, participant, drive="role"):
    # The same depths for every picture: nothing is random in evaluation.
    pipeline.eval()
    pipeline.model.trained_drives = {"audio", "expression"}
    return pipeline.model.render_frame(camera_of(pipeline, participant), frame, participant, drive)["rgb"]


def with_signals(pipeline, **changes):
    signals = pipeline.model.signals
    pipeline.model.set_signals(replace(signals, **changes))
    return signals


@pytest.fixture
def lively(pipeline):
    """A pipeline whose untrained avatars show what they are conditioned on."""
    for field in (pipeline.model.head_field, pipeline.model.torso_field):
        for grid in field.grid.grids:
            torch.nn.init.uniform_(grid.table, -1.0, 1.0)
    torch.nn.init.normal_(pipeline.model.torso_field.deformation.output_layer.weight, std=0.1)
    return pipeline


def test_a_picture_has_every_output(pipeline):
    camera = camera_of(pipeline)
    pipeline.eval()
    outputs = pipeline.model.get_outputs_for_camera(camera)
    assert next(iter(outputs)) == "rgb"
    assert {name: tuple(value.shape) for name, value in outputs.items()} == {
        "rgb": (32, 32, 3),
        "depth": (32, 32, 1),
        "accumulation": (32, 32, 1),
        "head": (32, 32, 1),
        "torso": (32, 32, 1),
    }
    assert all(torch.isfinite(value).all() for value in outputs.values())
    torch.testing.assert_close(outputs["head"] + outputs["torso"], outputs["accumulation"], atol=1e-4, rtol=0)


def test_where_nobody_is_the_plate_is_seen(pipeline):
    """Corners of the picture lie outside both boxes: the recorded background, pixel by pixel."""
    plate = load_conversation(pipeline.datamanager.config.data).background("p0")
    rgb = picture(pipeline, 0, 0)
    torch.testing.assert_close(rgb[0, 0], torch.tensor(plate[0, 0] / 255.0, dtype=torch.float32), atol=1e-5, rtol=0)
    torch.testing.assert_close(rgb[0, -1], torch.tensor(plate[0, -1] / 255.0, dtype=torch.float32), atol=1e-5, rtol=0)


def test_roles_choose_what_moves_a_face(lively):
    """Frame 2: p0 speaks, p1 listens. Sound moves only the speaker, expression only the listener."""
    before = [picture(lively, 2, person) for person in (0, 1)]
    original = with_signals(lively, audio=torch.randn_like(lively.model.signals.audio))
    sound = [picture(lively, 2, person) for person in (0, 1)]
    assert not torch.equal(sound[0], before[0]) and torch.equal(sound[1], before[1])
    lively.model.set_signals(replace(original, expression=original.expression + 0.5))
    face = [picture(lively, 2, person) for person in (0, 1)]
    assert torch.equal(face[0], before[0]) and not torch.equal(face[1], before[1])


@pytest.mark.parametrize("drive, moved", [("audio", (True, False)), ("expression", (False, False))])
def test_a_forced_drive(lively, drive, moved):
    """By audio, the listener hears silence instead of the speaker; by expression, nobody hears anything."""
    before = [picture(lively, 2, person, drive) for person in (0, 1)]
    with_signals(lively, audio=torch.randn_like(lively.model.signals.audio))
    after = [picture(lively, 2, person, drive) for person in (0, 1)]
    assert tuple(not torch.equal(a, b) for a, b in zip(after, before, strict=True)) == moved


def test_eyes_and_pose_move_everybody(lively):
    original = lively.model.signals
    for changes in ({"blink": original.blink + 0.5}, {"translation": original.translation + 0.01}):
        before = [picture(lively, 2, person) for person in (0, 1)]
        lively.model.set_signals(replace(original, **changes))
        assert not any(torch.equal(picture(lively, 2, person), b) for person, b in zip((0, 1), before, strict=True))
        lively.model.set_signals(original)


def test_sway_moves_torsos_and_nothing_else(lively):
    lively.eval()
    lively.model.trained_drives = {"expression"}
    original, camera = lively.model.signals, camera_of(lively, 0)
    before = lively.model.render_frame(camera, 2, 0, "expression")
    swaying = torch.tensor([0.002, -0.001, 0.01, 0.01, -0.01, 0.005]).expand_as(original.sway)
    lively.model.set_signals(replace(original, sway=swaying))
    after = lively.model.render_frame(camera, 2, 0, "expression")
    lively.model.set_signals(original)
    torso = before["torso"][..., 0] > 0.05
    assert (before["rgb"] - after["rgb"]).abs().amax(dim=-1)[torso].max() > 1e-3
    alone = (before["torso"] + after["torso"])[..., 0] == 0
    assert alone.any() and torch.equal(before["rgb"][alone], after["rgb"][alone])


def test_avatars_from_before_there_was_sway_have_none(small_config):
    torso = small_config.model.torso
    old = object.__new__(type(torso))
    old.__setstate__({name: value for name, value in torso.__dict__.items() if name != "sway"})
    assert torso.sway and not old.sway and old.pose_size == 6
    small_config.model.torso = old
    pipeline = DialoguePipeline(small_config, device="cpu", test_mode="inference")
    assert pipeline.model.conditions(0, torch.tensor([3]), "expression").et.shape == (1, 6)


def test_avatars_from_before_widths_were_measured_know_rigid_sway(small_config):
    torso = small_config.model.torso
    old = object.__new__(type(torso))
    old.__setstate__({name: value for name, value in torso.__dict__.items() if name != "sway_size"})
    assert old.sway and old.pose_size == 9 and torso.pose_size == 12
    small_config.model.torso = old
    pipeline = DialoguePipeline(small_config, device="cpu", test_mode="inference")
    assert pipeline.model.conditions(0, torch.tensor([3]), "expression").et.shape == (1, 9)


def test_a_torso_with_history_follows_the_poses_before(small_config):
    small_config.model.torso.pose_history = 6
    model = DialoguePipeline(small_config, device="cpu", test_mode="inference").model.eval()
    frames = torch.tensor([0, 10])
    now, lately, _ = model.conditions(0, frames, "expression").et.split([6, 6, 6], dim=-1)
    scaled = model._scaled_pose(0, torch.arange(24))
    torch.testing.assert_close(now, scaled[frames])
    torch.testing.assert_close(lately, torch.stack([scaled[0], scaled[4:9].mean(dim=0)]))


def test_other_signals_change_the_frame_and_come_back(lively, tiny):
    before = picture(lively, 2, 1)
    original = lively.model.signals
    motion = load_conversation(tiny).participants[0].motion
    motion.expression_residual = motion.expression_residual[:, :0]
    lively.model.set_signals(original.with_motion({"p1": motion}))
    assert not torch.equal(picture(lively, 2, 1), before)
    lively.model.set_signals(original)
    assert torch.equal(picture(lively, 2, 1), before)
    with pytest.raises(DialogueError, match="these signals are for a, b"):
        lively.model.set_signals(replace(original, participant_ids=("a", "b")))


def test_a_recording_without_a_residual_opens_in_silence(tiny, small_config, tmp_path):
    conversation = load_conversation(shutil.copytree(tiny, tmp_path / "conversation"))
    for person in conversation.participants:
        person.motion.expression_residual = person.motion.expression_residual[:, :0]
    save_conversation(conversation, conversation.root)
    small_config.datamanager.data = conversation.root
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "std\\(\\)")
        model = DialoguePipeline(small_config, device="cpu", test_mode="inference").model
    assert model.residual_scale.shape == (2, 0)


def test_every_parameter_learns(lively):
    lively.datamanager.config.participants_per_batch = 2
    lively.train()
    for step in range(3):
        _, losses, _ = lively.get_train_loss_dict(step)
        sum(losses.values()).backward()
    silent = [
        name
        for name, parameter in lively.model.named_parameters()
        if parameter.numel() and (parameter.grad is None or parameter.grad.abs().sum() == 0)
    ]
    assert silent == []
    groups = lively.get_param_groups()
    assert sum(map(len, groups.values())) == sum(p.numel() > 0 for p in lively.model.parameters())


def test_it_learns(pipeline):
    losses = train(pipeline, 60)
    assert sum(losses[-10:]) < 0.35 * sum(losses[:10])


def test_rays_of_any_order_are_rendered_alike(pipeline):
    pipeline.datamanager.config.participants_per_batch = 2
    bundle, _ = pipeline.datamanager.next_train(0)
    pipeline.eval()
    pipeline.model.trained_drives = {"audio", "expression"}
    order = torch.randperm(len(bundle))
    sorted_rgb, shuffled_rgb = pipeline.model(bundle)["rgb"], pipeline.model(bundle[order])["rgb"]
    torch.testing.assert_close(shuffled_rgb, sorted_rgb[order], atol=1e-5, rtol=1e-4)


def test_chunks_do_not_show(pipeline):
    whole = picture(pipeline, 3, 0)
    pipeline.model.config.eval_num_rays_per_chunk = 100
    torch.testing.assert_close(picture(pipeline, 3, 0), whole, atol=1e-5, rtol=1e-4)


def test_which_frame_a_camera_shows(pipeline):
    model = pipeline.model
    metadata = {"frame": torch.tensor([[7]]), "participant": torch.tensor([[1]])}
    assert model.resolve_frame(metadata, torch.tensor([[0.5]])) == (7, 1)
    assert model.resolve_frame({"cam_idx": 3}, torch.tensor([[0.5]])) == (12, 0)
    assert model.resolve_frame(None, torch.tensor([[1.4]])) == (23, 0)
    assert model.resolve_frame(None, torch.tensor([[-0.2]])) == (0, 0)
    model.panel.frame, model.panel.participant = 5, 1
    assert model.resolve_frame(None, None) == (5, 1)
    assert model.resolve_frame(None, torch.tensor([[0.0]])) == (0, 1)


def test_frames_and_people_that_do_not_exist(pipeline):
    pipeline.eval()
    with pytest.raises(DialogueError, match="no frame 24"):
        pipeline.model.render_frame(camera_of(pipeline), 24, 0)
    with pytest.raises(DialogueError, match="no participant 2"):
        pipeline.model.render_frame(camera_of(pipeline), 0, 2)


def test_a_drive_that_training_never_saw_is_refused(pipeline):
    pipeline.model.config.drive = "expression"
    train(pipeline, 1)
    pipeline.eval()
    assert pipeline.model.trained_drives == {"expression"}
    with pytest.raises(DialogueError, match="trained without audio"):
        pipeline.model.render_frame(camera_of(pipeline), 2, 0, "audio")


def test_metrics_have_the_same_finite_keys_for_every_picture(pipeline):
    pipeline.eval()
    keys = set()
    for index in (0, 5):
        camera, batch = pipeline.datamanager.fixed_indices_eval_dataloader.get_camera(index)
        outputs = pipeline.model.get_outputs_for_camera(camera)
        metrics, images = pipeline.model.get_image_metrics_and_images(outputs, batch)
        assert all(isinstance(value, float) and value == value for value in metrics.values())
        assert all(image.shape[-1] == 3 for image in images.values())
        keys.add(frozenset(metrics))
    assert len(keys) == 1
    assert {"psnr", "ssim", "psnr_head", "ssim_head", "psnr_mouth", "ssim_mouth"} <= next(iter(keys))


def test_mask_loss_is_small_only_for_the_right_part():
    labels = torch.tensor([0, 1, 2, 3])
    head, torso = torch.tensor([0.0, 0.0, 0.4, 1.0]), torch.tensor([0.0, 1.0, 0.6, 0.0])
    right = mask_loss(head, torso, labels)
    assert right < 1e-5
    assert mask_loss(torso, head, labels) > 1.0
    assert mask_loss(torch.tensor([0.0, 0.0, 0.1, 1.0]), torch.tensor([0.0, 1.0, 0.1, 0.0]), labels) > 0.3


def test_binary_entropy_peaks_at_one_half():
    assert binary_entropy(torch.tensor([0.5])) == pytest.approx(0.6931, abs=1e-3)
    assert binary_entropy(torch.tensor([0.0, 1.0])) < 2e-3


# Checkpoints ----------------------------------------------------------------------------------------------------


def checkpoint(pipeline):
    return {key: copy.deepcopy(value) for key, value in pipeline.state_dict().items()}


def test_a_checkpoint_brings_back_the_same_picture(pipeline, small_config):
    train(pipeline, 20)
    pipeline.eval()
    before = pipeline.model.render_frame(camera_of(pipeline), 3, 0)["rgb"]
    other = DialoguePipeline(small_config, device="cpu", test_mode="inference")
    other.load_strictly(checkpoint(pipeline), 20)
    other.eval()
    assert torch.equal(other.model.render_frame(camera_of(other), 3, 0)["rgb"], before)
    assert other.model.trained_drives == pipeline.model.trained_drives
    assert not any(key.startswith("_model.signal_audio") for key in checkpoint(pipeline))


def test_occupancy_grids_wait_for_steps_that_show_their_person(pipeline, monkeypatch):
    model, shown, updated = pipeline.model, [0, 0], [0, 0]
    model.config.occupancy_interval = 4

    def update(participant):
        assert shown[participant] % 4 == 0
        updated[participant] += 1

    monkeypatch.setattr(model, "_update_occupancy_of", update)
    pipeline.train()
    for step in range(20):
        bundle, _ = pipeline.datamanager.next_train(step)
        shown[int(bundle.metadata["participant"][0])] += 1
        model.get_outputs(bundle)
        model.update_occupancy(step)
    assert all(shown) and updated == [steps // 4 for steps in shown]


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("kernel", "cutlass", "hash-grid kernel 'cutlass'"),
        ("grid_layout", "other", "layout"),
        ("participants", ["p0", "x"], "participants"),
        ("grid_sharing", "shared", "grid sharing"),
        ("head_grid", {"num_levels": 3}, "hash grid of the head"),
        ("expression_basis", "flame", "expression basis"),
        ("format", 99, "upgrade"),
        ("format", 1, "train again"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_in_a_sentence(pipeline, key, value, message):
    state = checkpoint(pipeline)
    state["_model._extra_state"][key] = value
    before = checkpoint(pipeline)
    with pytest.raises(DialogueError, match=message) as error:
        pipeline.load_strictly(state, 0)
    assert "\n" not in str(error.value)
    assert torch.equal(before["_model.head_field.grid.grids.0.table"], pipeline.model.head_field.grid.grids[0].table)


def test_a_checkpoint_of_another_width_or_method_is_refused(pipeline, small_config):
    state = checkpoint(pipeline)
    state["_model.head_field.density_input.weight"] = torch.zeros(7, 8)
    with pytest.raises(DialogueError, match="density_input"):
        pipeline.load_strictly(state, 0)
    with pytest.raises(DialogueError, match="not written by dialogue-nerf"):
        pipeline.load_strictly({"_model.field.weight": torch.zeros(1)}, 0)


def test_torch_checkpoints_load_with_the_numba_kernel(pipeline, small_config):
    pytest.importorskip("numba", reason="the numba kernel needs numba")
    small_config = copy.deepcopy(small_config)
    small_config.model.head.grid = replace(small_config.model.head.grid, kernel="numba")
    small_config.model.torso.grid = replace(small_config.model.torso.grid, kernel="numba")
    other = DialoguePipeline(small_config, device="cpu", test_mode="inference")
    other.load_strictly(checkpoint(pipeline), 0)
    torch.testing.assert_close(picture(other, 3, 0), picture(pipeline, 3, 0), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("kernel", ["torch", "numba", "triton", "tcnn"])
def test_a_checkpoint_says_its_kernel_and_every_kernel_may_read_it(pipeline, kernel):
    state = checkpoint(pipeline)
    state["_model._extra_state"]["kernel"] = kernel
    pipeline.load_strictly(state, 0)


def test_a_training_step_under_autocast_reads_the_grids_where_float32_does(pipeline, monkeypatch):
    """Mixed precision moves no sample: the positions that reach the grids are equal, and what is learned is finite."""
    read = {False: [], True: []}
    bundle, batch = pipeline.datamanager.next_train(0)
    encode = HashGrid.forward
    for mixed, positions_read in read.items():

        def remember(grid, positions, positions_read=positions_read):
            positions_read.append(positions)
            return encode(grid, positions)

        monkeypatch.setattr(HashGrid, "forward", remember)
        torch.manual_seed(0)
        pipeline.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            outputs = pipeline.model(copy.deepcopy(bundle))
            sum(pipeline.model.get_loss_dict(outputs, batch).values()).backward()
    assert len(read[True]) == len(read[False]) > 0
    for reference, positions in zip(read[False], read[True], strict=True):
        assert positions.dtype == torch.float32 and torch.equal(positions, reference)
    gradients = [parameter.grad for parameter in pipeline.model.torso_field.deformation.parameters()]
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert sum(gradient.abs().sum() for gradient in gradients) > 0


def test_signals_of_a_recording_are_the_models_first(pipeline, tiny):
    signals = ConversationSignals.from_conversation(load_conversation(tiny))
    for name, tensor in signals.tensors.items():
        assert torch.equal(pipeline.model.signals.tensors[name], tensor), name
