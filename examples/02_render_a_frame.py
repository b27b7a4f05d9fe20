"""Render one frame of one participant from a checkpoint, from the camera that recorded it and from 10° to its side.

python examples/02_render_a_frame.py outputs/chat/dialogue-nerf/…/config.yml --frame 30 --output frame.png
"""

import copy
from pathlib import Path

import torch
import tyro
from PIL import Image
from scipy.spatial.transform import Rotation

from dialogue_nerfstudio.cli.render import nerfstudio_camera
from dialogue_nerfstudio.cli.training import to_picture
from dialogue_nerfstudio.conversation.conversation import load_conversation
from dialogue_nerfstudio.nerf.load import load_pipeline_for_rendering
from dialogue_nerfstudio.output.layout import side_by_side


def main(
    load_config: tyro.conf.Positional[Path], frame: int = 0, participant: str = "p0", output: Path = Path("frame.png")
) -> None:
    """Render a frame twice.

    Args:
        load_config: config.yml that ns-train wrote.
        frame: of the recording.
        participant: whom to render.
        output: picture to write.
    """
    config, pipeline = load_pipeline_for_rendering(load_config)
    person = load_conversation(config.pipeline.datamanager.data).participant(participant)
    row = pipeline.model.participant_ids.index(participant)

    front = nerfstudio_camera(person.camera, height=128)
    side = copy.deepcopy(front)
    # The person sits at the origin of person space, so turning the camera's pose turns it around them.
    turn = torch.tensor(Rotation.from_euler("y", 10, degrees=True).as_matrix(), dtype=torch.float32)
    side.camera_to_worlds = turn @ front.camera_to_worlds

    pictures = [to_picture(pipeline.model.render_frame(camera, frame, row)["rgb"]) for camera in (front, side)]
    Image.fromarray(side_by_side(pictures)).save(output)


if __name__ == "__main__":
    tyro.cli(main)
