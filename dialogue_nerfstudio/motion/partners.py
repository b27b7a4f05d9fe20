"""Whom each person of a conversation attends to, frame by frame: whoever else speaks, and in a pause who spoke last."""

import numpy as np
from jaxtyping import Bool, Int


class PartnerTracker:
    """Partners of P people, decided from the past alone, in blocks of any length.

    Of several who speak it is who began last. Before anybody else has spoken it is the next person; whoever is alone
    has none.
    """

    def __init__(self, num_people: int):
        self._partner = np.array([(person + 1) % num_people for person in range(num_people)])
        if num_people == 1:
            self._partner[:] = -1
        self._frame = 0
        self._begun = np.full(num_people, -1)
        """When whoever speaks began, −1 for the silent."""

    def follow(self, speaking: Bool[np.ndarray, "P T"]) -> Int[np.ndarray, "P T"]:
        """The partner's number of each person in each of the next frames; −1 for whoever is alone."""
        people, frames = speaking.shape
        if people <= 2:
            return np.repeat(self._partner[:, None], frames, axis=1)
        chosen = np.empty((people, frames), dtype=np.int64)
        for frame in range(frames):
            speaks = speaking[:, frame]
            self._begun = np.where(speaks, np.where(self._begun < 0, self._frame, self._begun), -1)
            self._frame += 1
            for person in range(people):
                others = np.where(np.arange(people) == person, -1, self._begun)
                if others.max() >= 0:
                    self._partner[person] = others.argmax()
            chosen[:, frame] = self._partner
        return chosen
