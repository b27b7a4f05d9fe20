"""Truth renderer: the people of a simulated conversation, drawn from any camera in any pose and expression.

Conventions: as in `head_model.py`; cameras and poses in person space, metres and radians. What a recording keeps silent
about, how the body sways while the head takes another pose, stays as it was in the frame that is asked for.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import List, Optional

import numpy as np
from jaxtyping import Bool, Float, UInt8

from dialogue_nerfstudio.conversation.conversation import Camera, Conversation, load_conversation
from dialogue_nerfstudio.conversation.errors import DialogueError
from dialogue_nerfstudio.conversation.files import read_npz
from dialogue_nerfstudio.conversation.simulate.head_model import PersonState
from dialogue_nerfstudio.conversation.simulate.people import cast
from dialogue_nerfstudio.conversation.simulate.ray_marcher import render_background, render_person
from dialogue_nerfstudio.conversation.simulate.sample import SimulatedPerson


@dataclass(frozen=True)
class TrueView:
    """What a camera sees of a simulated person."""

    rgb: UInt8[np.ndarray, "height width 3"]
    labels: UInt8[np.ndarray, "height width"]
    """Background 0, torso 1, neck 2, head 3."""
    depth: Float[np.ndarray, "height width"]
    """Metres along the ray; 0 on the background."""
    background: UInt8[np.ndarray, "height width 3"]
    """The same view with nobody in it."""

    @property
    def silhouette(self) -> Bool[np.ndarray, "height width"]:
        """Where the person is."""
        return self.labels > 0


class TruthRenderer:
    """Renders the people of a `truth` folder again.

    Looks come from the stored seed, motions, cameras and sway from the folder's files, so that a motion edited or cut
    afterwards is the one that is drawn.

    Args:
        root: the folder `truth` that `ns-dialogue simulate` wrote.

    Raises:
        DialogueError: it is no simulation's truth, or damaged.
    """

    def __init__(self, root: Path):
        self.conversation: Conversation = load_conversation(root)
        config = self.conversation.provenance.get("config", {})
        if not self.conversation.provenance.get("synthetic") or not {"num_people", "seed"} <= set(config):
            raise DialogueError(
                f"{root} is not the truth of a simulation; give the folder truth/ that `ns-dialogue simulate` wrote."
            )
        looks = cast(int(config["num_people"]), int(config["seed"]))
        if len(looks) != len(self.conversation.participants):
            raise DialogueError(
                f"{root} has {len(self.conversation.participants)} participants, its simulation {len(looks)}; "
                "simulate it again."
            )
        self.people: List[SimulatedPerson] = []
        for person, participant in zip(looks, self.conversation.participants, strict=True):
            path = self.conversation.participant_path(participant.id, "simulation.npz")
            torso_pose = read_npz(path).get("torso_pose")
            if torso_pose is None or torso_pose.shape != (self.conversation.num_frames, 6):
                raise DialogueError(f"{path} does not hold the torso's pose in every frame; simulate it again.")
            self.people.append(SimulatedPerson(person, participant.motion, torso_pose, participant.camera))

    def state(
        self,
        participant: int,
        frame: int,
        head_pose: Optional[Float[np.ndarray, "6"]] = None,
        expression: Optional[Float[np.ndarray, " num_expressions"]] = None,
        torso_pose: Optional[Float[np.ndarray, "6"]] = None,
    ) -> PersonState:
        """Everything that moves, at a frame, with what is given in place of what the frame holds.

        Raises:
            DialogueError: there is no such participant or frame.
        """
        if not 0 <= participant < len(self.people):
            raise DialogueError(f"there is no participant {participant}; there are {len(self.people)}.")
        if not 0 <= frame < self.conversation.num_frames:
            raise DialogueError(f"there is no frame {frame}; the simulation has {self.conversation.num_frames}.")
        changes = {"head_pose": head_pose, "expression": expression, "torso_pose": torso_pose}
        given = {name: np.asarray(value) for name, value in changes.items() if value is not None}
        return replace(self.people[participant].state(frame), **given)

    def render(
        self,
        participant: int,
        frame: int,
        camera: Optional[Camera] = None,
        head_pose: Optional[Float[np.ndarray, "6"]] = None,
        expression: Optional[Float[np.ndarray, " num_expressions"]] = None,
        torso_pose: Optional[Float[np.ndarray, "6"]] = None,
    ) -> TrueView:
        """A person at a frame, as another camera would have seen them, or in another pose or expression.

        Args:
            participant: row in the conversation's participants.
            frame: gives everything that is not given.
            camera: pinhole camera in the person's space; None for the recording one.
            head_pose: axis-angle and translation, head to person space.
            expression: coefficients in the shared basis.
            torso_pose: axis-angle and translation of the sway.

        Raises:
            DialogueError: there is no such participant or frame.
        """
        state = self.state(participant, frame, head_pose, expression, torso_pose)
        simulated = self.people[participant]
        camera = camera or simulated.camera
        rgb, labels, depth = render_person(simulated.person, state, camera)
        return TrueView(rgb, labels, depth, render_background(simulated.person, camera))
