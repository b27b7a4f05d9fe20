"""Dataparser, frame store and datamanager: the right pixels, rays, frames and splits."""

import os

import numpy as np
import pytest
import torch

from dialogue_nerfstudio.conversation import DialogueError, load_conversation
from dialogue_nerfstudio.nerf.dataparser import ConversationDataParserConfig
from dialogue_nerfstudio.nerf.frame_store import FrameStore, resize_frame, resize_labels


def test_cameras_carry_frame_and_participant_and_times(tiny):
    outputs = ConversationDataParserConfig(data=tiny).setup().get_dataparser_outputs("val")
    frames = load_conversation(tiny).eval_frames
    cameras = outputs.cameras
    assert len(cameras) == 2 * len(frames) == len(outputs.image_filenames)
    assert cameras.metadata["frame"].squeeze(-1).tolist() == 2 * frames.tolist()
    assert cameras.metadata["participant"].squeeze(-1).tolist() == [0] * len(frames) + [1] * len(frames)
    assert (cameras.times.squeeze(-1) * 23).round().tolist() == 2 * frames.tolist()


def test_resolution_scales_the_camera_and_never_enlarges(tiny):
    half = ConversationDataParserConfig(data=tiny, resolution=16).setup().get_dataparser_outputs("train").cameras
    assert half.width[0] == 16 and half.fx[0] == 32 and half.cx[0] == 8
    full = ConversationDataParserConfig(data=tiny, resolution=512).setup().get_dataparser_outputs("train").cameras
    assert full.width[0] == 32 and full.fx[0] == 64


def test_eval_fraction_and_interval(tiny):
    parser = ConversationDataParserConfig(data=tiny, eval_fraction=0.5, eval_interval=3).setup()
    train, val = parser.get_dataparser_outputs("train").cameras, parser.get_dataparser_outputs("val").cameras
    assert len(train) == 24 and val.metadata["frame"].squeeze(-1).tolist() == 2 * [12, 15, 18, 21]


def test_data_that_is_missing_is_named(tmp_path):
    with pytest.raises(DialogueError, match="not a folder"):
        ConversationDataParserConfig(data=tmp_path / "nothing").setup().get_dataparser_outputs("train")


def test_frame_store_holds_the_video_and_is_reused(tiny, tmp_path):
    conversation = load_conversation(tiny)
    store = FrameStore(conversation, "p1", 16, 16, tmp_path)
    assert store.frames.shape == (24, 16, 16, 3) and store.labels.shape == (24, 16, 16)
    np.testing.assert_array_equal(store.frames[5], resize_frame(conversation.frames("p1")[5], 16, 16))
    np.testing.assert_array_equal(store.labels[5], resize_labels(conversation.labels("p1")[5], 16, 16))
    (file,) = tmp_path.rglob("frames.npy")
    written = file.stat().st_mtime_ns
    assert FrameStore(conversation, "p1", 16, 16, tmp_path).frames.shape[0] == 24
    assert file.stat().st_mtime_ns == written
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(".")]


def test_resizing_averages_colours_and_keeps_labels():
    frame = np.zeros((4, 4, 3), np.uint8)
    frame[:2, :2] = [[[0], [100]], [[200], [100]]]
    assert (resize_frame(frame, 2, 2)[0, 0] == 100).all()
    labels = np.array([[0, 0, 3, 3]] * 4, np.uint8)
    assert set(np.unique(resize_labels(labels, 2, 2))) == {0, 3}


def test_training_rays_see_the_pixels_they_are_paired_with(pipeline):
    """Every ray, projected back, hits the pixel whose colour the batch pairs it with."""
    bundle, batch = pipeline.datamanager.next_train(0)
    frames, participants = bundle.metadata["frame"].view(-1), bundle.metadata["participant"].view(-1)
    assert len(bundle) == 256 and frames.unique().numel() == 4
    assert (frames[1:] >= frames[:-1]).all() and participants.unique().numel() == 1
    person = int(participants[0])
    camera = pipeline.datamanager.dataparser.conversation.participants[person].camera
    direction = bundle.directions / -bundle.directions[:, 2:]
    column = (direction[:, 0] * camera.focal + camera.cx).floor().long()
    row = (-direction[:, 1] * camera.focal + camera.cy).floor().long()
    store = pipeline.datamanager.stores[person]
    expected = store.frames[frames.numpy(), row.numpy(), column.numpy()] / 255.0
    np.testing.assert_allclose(batch["image"].numpy(), expected, atol=1e-6)
    assert (batch["label"].numpy() == store.labels[frames.numpy(), row.numpy(), column.numpy()]).all()
    assert set(frames.tolist()) <= set(pipeline.datamanager.dataparser.conversation.train_frames.tolist())


def _sampler(tiny, cache, **shares):
    """A sampler of the first participant's frames, and its frame store."""
    from dialogue_nerfstudio.nerf.datamanager import DialogueDataManagerConfig, FaceRegions, RaySampler

    conversation = load_conversation(tiny)
    store = FrameStore(conversation, "p0", 32, 32, cache)
    regions = FaceRegions(np.zeros((24, 478, 2)), np.zeros(24, dtype=bool), (1.0, 1.0), 32, 32)
    regions.mouth[:, :] = [10, 20, 14, 23]
    regions.mouth[3] = 0
    zero = dict.fromkeys(("face_share", "border_share", "mouth_share", "eyes_share", "picture_share"), 0.0)
    config = DialogueDataManagerConfig(**{**zero, **shares})
    return RaySampler(store, regions, config, np.arange(20), seed=0), store


def test_rays_of_a_region_cover_it_evenly(tiny, cache):
    sampler, store = _sampler(tiny, cache, face_share=1.0)
    hits = np.zeros((24, 32 * 32))
    for _ in range(300):
        frames, pixels = sampler.draw(200, 4)
        assert (np.diff(frames) > 0).all() and [len(part) for part in pixels] == [50] * 4
        for frame, part in zip(frames, pixels, strict=True):
            np.add.at(hits[frame], part, 1)
    head = store.labels.reshape(24, -1) == 3
    assert hits[~head].sum() < 0.01 * hits.sum()
    inside = hits.sum(axis=0)[head[:20].all(axis=0)]
    assert inside.std() < 1.3 * np.sqrt(inside.mean())


def test_border_rays_lie_where_labels_change(tiny, cache):
    sampler, store = _sampler(tiny, cache, border_share=0.5)
    frames, pixels = sampler.draw(512, 4)
    for frame, part in zip(frames, pixels, strict=True):
        labels = np.pad(store.labels[frame], 1, mode="edge")
        row, column = np.divmod(part[:64], 32)
        around = [labels[row + 1 + down, column + 1 + right] for down, right in ((-1, 0), (1, 0), (0, -1), (0, 1))]
        on_border = (np.stack(around) != store.labels[frame][row, column]).any(axis=0)
        assert on_border.mean() > 0.95


def test_box_rays_stay_in_their_box_and_shares_above_one_are_cut(tiny, cache):
    sampler, _ = _sampler(tiny, cache, mouth_share=1.0, eyes_share=1.0)
    frames, pixels = sampler.draw(20 * 20, 20)
    for frame, part in zip(frames, pixels, strict=True):
        row, column = np.divmod(part, 32)
        inside = (row >= 20) & (row < 23) & (column >= 10) & (column < 14)
        assert len(part) == 20 and inside.all() == (frame != 3)


def test_rays_agree_with_nerfstudios_cameras(pipeline):
    cameras = pipeline.datamanager.train_dataset.cameras
    expected = cameras[0:1].generate_rays(camera_indices=0, keep_shape=True)
    torch.testing.assert_close(pipeline.datamanager._pixel_directions[0], expected.directions.view(-1, 3))


def test_several_participants_in_a_batch(small_config):
    from dialogue_nerfstudio.nerf.pipeline import DialoguePipeline

    small_config.datamanager.participants_per_batch = 2
    pipeline = DialoguePipeline(small_config, device="cpu", test_mode="val")
    bundle, batch = pipeline.datamanager.next_train(0)
    assert bundle.metadata["participant"].view(-1).tolist() == [0] * 128 + [1] * 128
    outputs = pipeline.model(bundle)
    assert outputs["rgb"].shape == (256, 3)
    pipeline.model.get_loss_dict(outputs, batch)["photometric"].backward()
    assert all(grid.table.grad.abs().sum() > 0 for grid in pipeline.model.head_field.grid.grids)


def test_evaluation_images_have_labels_and_mouth_boxes(pipeline):
    camera, batch = pipeline.datamanager.next_eval_image(0)
    assert camera.shape == (1,) and batch["image"].shape == (32, 32, 3) and batch["label"].shape == (32, 32, 1)
    left, top, right, bottom = batch["mouth_box"].tolist()
    assert 0 <= left < right <= 32 and 0 <= top < bottom <= 32


def test_default_cache_follows_the_environment(monkeypatch, tmp_path):
    from dialogue_nerfstudio.nerf.frame_store import default_cache_folder

    monkeypatch.setitem(os.environ, "XDG_CACHE_HOME", str(tmp_path))
    assert default_cache_folder() == tmp_path / "dialogue-nerfstudio"
