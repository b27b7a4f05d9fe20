"""Whole pictures through the compiled march against the same pictures through torch."""

import pytest
import torch

from dialogue_nerfstudio.nerf.fast_rendering import RayCache, why_not_fast
from dialogue_nerfstudio.nerf.pipeline import DialoguePipeline


def lively_model(config):
    torch.manual_seed(0)
    # Sizes with which no sample lies exactly between two cells, where a rounding would decide whether it is seen.
    config.model.occupancy.resolution, config.model.head_samples, config.model.torso_samples = 15, 24, 16
    model = DialoguePipeline(config, device="cpu", test_mode="inference").model.eval()
    for name, parameter in model.named_parameters():
        if name.endswith("table"):
            torch.nn.init.uniform_(parameter, -1.0, 1.0)
    for grid in (*model.head_occupancy, *model.torso_occupancy):
        grid.occupied.copy_(torch.rand(len(grid.occupied)) < 0.6)
    model.trained_drives = {"audio", "expression"}
    return model


def camera(model, row=0, size=48):
    from dialogue_nerfstudio.cli.render import nerfstudio_camera

    return nerfstudio_camera(model.plates._cameras[row], size)


@pytest.mark.parametrize(
    "sharing, encoding, separate_eyes",
    [("per-participant", "grid", True), ("shared", "grid", True), ("per-participant", "tri-plane", False)],
)
def test_pictures_are_the_same(small_config, sharing, encoding, separate_eyes):
    """Within what the termination threshold may hide: over 45 dB, for both drives and everybody, from anywhere."""
    small_config.model.grid_sharing = sharing
    small_config.model.head.encoding = small_config.model.torso.encoding = encoding
    small_config.model.signals.separate_eyes = separate_eyes
    model = lively_model(small_config)
    assert why_not_fast(model) is None
    for row, frame, drive in ((0, 2, "audio"), (1, 9, "expression"), (1, 2, "role")):
        view = camera(model, row)
        view.camera_to_worlds[0, 0, 3] += 0.1 * row
        fast = model.render_frame(view, frame, row, drive)
        model.config.fast_inference = False
        general = model.render_frame(view, frame, row, drive)
        model.config.fast_inference = True
        assert list(fast) == list(general)
        assert general["head"].max() > 0.1 and general["torso"].max() > 0.1
        assert -10 * torch.log10((fast["rgb"] - general["rgb"]).square().mean() + 1e-12) > 45
        for name in ("accumulation", "head", "torso"):
            # The threshold itself, where light ends, and no more for all but the odd ray that grazes a cell.
            difference = (fast[name] - general[name]).abs().flatten().sort().values
            assert difference[-10] < 2 * model.config.termination_threshold, name
        assert (fast["depth"] - general["depth"]).abs().median() < 1e-3


def test_a_model_the_march_does_not_know_goes_through_torch(small_config):
    model = lively_model(small_config)
    expected = model.render_frame(camera(model), 2, 0)["rgb"]
    model.head_field.unknown = torch.nn.Linear(1, 1)
    assert "head field" in why_not_fast(model)
    assert (model.render_frame(camera(model), 2, 0)["rgb"] - expected).square().mean() < 1e-4
    del model.head_field.unknown
    model.config.torso_samples = 65
    assert "samples" in why_not_fast(model)
    model.config.fast_inference = False
    assert "off" in why_not_fast(model)


def test_rays_are_kept_while_the_camera_stands_still(small_config):
    model = lively_model(small_config)
    casts = []
    kept = RayCache(lambda view, row: casts.append(row) or model._cast_rays(view, row))
    first = kept(camera(model), 0)
    assert kept(camera(model), 0) is first
    moved = camera(model)
    moved.camera_to_worlds[0, 0, 3] += 0.01
    assert not torch.equal(kept(moved, 0).origins, first.origins)
    kept(camera(model, size=32), 0), kept(camera(model), 1)
    assert casts == [0, 0, 0, 1]
