"""The moving average of weights: its numbers, and that training, saving and loading never meet it by mistake."""

import copy

import pytest
import torch
from short_training import train

from dialogue_nerfstudio.nerf.pipeline import DialoguePipeline
from dialogue_nerfstudio.nerf.weight_average import WeightAverage


def test_the_average_follows_its_recurrence():
    parameters = [torch.nn.Parameter(torch.tensor([1.0, 2.0])), torch.nn.Parameter(torch.ones(3, 2))]
    average = WeightAverage(parameters)
    expected = [parameter.detach().clone() for parameter in parameters]
    for update in range(30):
        with torch.no_grad():
            for parameter in parameters:
                parameter += update
        average.update(0.9)
        decay = min(0.9, (1 + update) / (10 + update))
        expected = [decay * old + (1 - decay) * p.detach() for old, p in zip(expected, parameters, strict=True)]
    for found, wanted in zip(average.averages(), expected, strict=True):
        torch.testing.assert_close(found, wanted)


def test_showing_the_average_and_the_weights_again():
    parameter = torch.nn.Parameter(torch.zeros(5))
    average = WeightAverage([parameter])
    storage = parameter.data_ptr()
    with torch.no_grad():
        parameter.fill_(10.0)
    average.update(0.99)
    average.show(True)
    average.show(True)
    torch.testing.assert_close(parameter.detach(), torch.full((5,), 9.0))
    with average.hidden():
        assert float(parameter[0].detach()) == 10.0
    assert average.shown
    average.show(False)
    assert parameter.data_ptr() == storage and float(parameter[0].detach()) == 10.0


@pytest.fixture
def averaged(small_config):
    small_config.model.average_decay = 0.5
    small_config.model.average_interval = 1
    return small_config


def test_evaluation_shows_the_average_and_checkpoints_hold_both(averaged):
    torch.manual_seed(0)
    pipeline = DialoguePipeline(averaged, device="cpu", test_mode="val")
    for step in range(3):
        train(pipeline, 1)
        pipeline.model.update_average(step)
    name = "head_field.density_input.weight"
    weights = dict(pipeline.model.named_parameters())[name].detach().clone()
    in_training = {key: value.clone() for key, value in pipeline.state_dict().items() if torch.is_tensor(value)}
    pipeline.eval()
    average = dict(pipeline.model.named_parameters())[name].detach().clone()
    assert not torch.equal(average, weights)
    in_evaluation = pipeline.state_dict()
    for key, value in in_training.items():
        assert torch.equal(value, in_evaluation[key]), key
    assert torch.equal(in_evaluation[f"_model.{name}"], weights)

    # Loaded for rendering, while the average is shown: the same picture. Loaded for training: the same weights.
    state = copy.deepcopy(in_evaluation)
    rendering = DialoguePipeline(averaged, device="cpu", test_mode="inference").eval()
    rendering.load_strictly(state, 3)
    assert torch.equal(dict(rendering.model.named_parameters())[name], average)
    camera = pipeline.datamanager.eval_dataset.cameras[0:1]
    pictures = [p.model.render_frame(camera, 0, 0, "expression")["rgb"] for p in (pipeline, rendering)]
    assert torch.equal(*pictures)
    resumed = DialoguePipeline(averaged, device="cpu", test_mode="val")
    resumed.load_strictly(state, 3)
    assert torch.equal(dict(resumed.train().model.named_parameters())[name], weights)
    assert int(resumed.model.weight_average.updates) == 3
