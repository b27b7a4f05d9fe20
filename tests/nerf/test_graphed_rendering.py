"""Pictures of fixed sizes against those of the ordinary march, frame after frame; on a GPU through recorded graphs."""

import copy

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from dialogue_nerfstudio.nerf.graphed_rendering import GraphedPictures
from dialogue_nerfstudio.nerf.pipeline import DialoguePipeline
from dialogue_nerfstudio.rendering.fixed_march import Capacity, fixed_march
from dialogue_nerfstudio.rendering.recorded_march import STEP, fits, roomy


def lively_model(config, device="cpu"):
    torch.manual_seed(0)
    config.model.occupancy.resolution = 15
    config.model.fast_inference = False
    model = DialoguePipeline(config, device=device, test_mode="inference").model.eval()
    for name, parameter in model.named_parameters():
        if name.endswith("table"):
            torch.nn.init.uniform_(parameter, -1.0, 1.0)
    for grid in (*model.head_occupancy, *model.torso_occupancy):
        grid.occupied.copy_(torch.rand(len(grid.occupied)) < 0.6)
    model.trained_drives = {"audio", "expression"}
    return model


def rays_of(model, row, size=40):
    from dialogue_nerfstudio.cli.render import nerfstudio_camera

    return model._picture_rays(nerfstudio_camera(model.plates._cameras[row], size).to(model.device), row)


def test_pictures_are_the_same(small_config):
    """Several frames of two people, so that one recording serves frames that differ in what they need."""
    model = lively_model(small_config)
    pictures = GraphedPictures(model)
    for row, frame in ((0, 2), (1, 9), (0, 15), (0, 3), (1, 0)):
        rays = rays_of(model, row)
        with torch.no_grad():
            conditions = model.conditions(row, torch.tensor([frame]), "role")
            expected = model.render_picture(rays, conditions)
            seen = pictures(rays, conditions)
        assert expected["head"].max() > 0.1 and expected["torso"].max() > 0.1
        assert list(seen) == list(expected)
        for name, value in expected.items():
            torch.testing.assert_close(seen[name], value, atol=1e-5, rtol=1e-4)
    assert len(pictures._recordings) == 2


def test_a_frame_that_does_not_fit_is_rendered_again(small_config):
    model = lively_model(small_config)
    pictures, rays = GraphedPictures(model), rays_of(model, 0)
    with torch.no_grad():
        conditions = model.conditions(0, torch.tensor([2]), "role")
        expected = pictures(rays, conditions)["rgb"]
        march = next(iter(pictures._recordings.values())).march
        march.settle([Capacity(64, 64, 64), Capacity(64, 64, 64)])
        torch.testing.assert_close(pictures(rays, conditions)["rgb"], expected)
    assert march.capacities[0].live > 64


def test_fields_of_a_frame_ask_a_gpu_for_nothing(small_config):
    """On imagined CUDA tensors, which have no values: sources, fields and march of a picture need none."""
    model = lively_model(small_config)
    rays = rays_of(model, 0)
    with torch.no_grad():
        conditions = model.conditions(0, torch.tensor([2]), "role")
    with FakeTensorMode(allow_non_fake_inputs=True):

        def imagined(tensor: torch.Tensor) -> torch.Tensor:
            return torch.empty(tensor.shape, dtype=tensor.dtype, device="cuda")

        conditions = copy.copy(conditions)
        for name in ("rotation", "translation", "et"):
            setattr(conditions, name, imagined(getattr(conditions, name)))
        conditions.signal = copy.copy(conditions.signal)
        conditions.signal.face = imagined(conditions.signal.face)
        conditions.signal.eyes = imagined(conditions.signal.eyes)
        for module in model.modules():
            for tensors in (module._parameters, module._buffers):
                for name, value in tensors.items():
                    if value is not None:
                        made = imagined(value)
                        tensors[name] = torch.nn.Parameter(made) if tensors is module._parameters else made
        first = torch.zeros(len(rays.origins), dtype=torch.long, device="cuda")
        origins, directions, background = (imagined(part) for part in (rays.origins, rays.directions, rays.background))
        with torch.no_grad():
            sources = model.sources(origins, directions, first, conditions, fixed=True)
            seen = fixed_march(sources, background, [Capacity(900, 800, 700)] * 2, 5e-3, 1e-2)
    assert seen.composite.rgb.is_cuda and seen.composite.rgb.shape == rays.background.shape


def test_recording_pays_for_cameras_that_stand_still(small_config):
    model = lively_model(small_config)
    pictures, first, second = GraphedPictures(model), rays_of(model, 0), rays_of(model, 1)
    assert [pictures.pays(rays) for rays in (first, first, second, first)] == [False, True, False, False]
    with torch.no_grad():
        pictures(first, model.conditions(0, torch.tensor([2]), "role"))
    assert [pictures.pays(rays) for rays in (second, first, second, first)] == [False, True, False, True]
    model._graphed_pictures = pictures
    model.train()
    assert not pictures._recordings


def test_room():
    assert roomy([1, STEP, 0]) == Capacity(STEP, 2 * STEP, STEP)
    assert fits(Capacity(3, 2, 1), [3, 2, 1]) and not fits(Capacity(3, 2, 1), [3, 3, 1])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_graphs_replay_every_frame(small_config):
    small_config.model.head.half_inference = small_config.model.torso.half_inference = False
    model = lively_model(small_config, "cuda")
    rays = rays_of(model, 0)
    for frame in (2, 9, 15, 3):
        with torch.no_grad():
            conditions = model.conditions(0, torch.tensor([frame], device="cuda"), "role")
            model.config.cuda_graphs = False
            expected = model.render_picture(rays, conditions)
            model.config.cuda_graphs = True
            seen = model.render_picture(rays, conditions)
        for name, value in expected.items():
            torch.testing.assert_close(seen[name], value, atol=1e-4, rtol=1e-3)
    assert next(iter(model._graphed_pictures._recordings.values())).march.recorded
